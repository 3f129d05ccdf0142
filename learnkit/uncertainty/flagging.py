"""When an image is flagged as strange, and what is promised about it.

An image is flagged if and only if its score is above the threshold, never when it equals it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from learnkit.errors import UncertaintyError
from learnkit.uncertainty.checks import (
    as_tensor,
    check_choice,
    check_rate,
    check_score,
    check_scores,
    check_weights,
)
from learnkit.uncertainty.quantiles import upper_tail, weight_of_next

SOURCES = ("validation", "leave-one-out", "parametric", "manual")
GUARANTEES = ("loo", "split", "pac", "none")
_NO_SCORES = torch.zeros(0, dtype=torch.float64)


@dataclass(frozen=True)
class Threshold:
    """Where known ends and strange begins.

    Attributes:
        value: an image is flagged if its score is above this.
        source: where it comes from: "validation", "leave-one-out", "parametric" (a distribution
            was assumed, because the scores were too few) or "manual".
        n: number of calibration scores.
        false_alarm_rate: wanted share of known images flagged; None if manual.
        guarantee: what holds of it, "loo", "split" or "pac"; "none" if parametric or manual.
        delta: with "pac", the probability that the promise fails.
        statement: the promise in words.
        calibration_scores: sorted, float64 (n,); p-values are ranks among them.
        calibration_weights: their weights, float64 (n,).
        loc: mean of the assumed normal distribution, for p-values of a parametric threshold.
        scale: its standard deviation.
    """

    value: float
    source: str
    n: int = 0
    false_alarm_rate: float | None = None
    guarantee: str = "none"
    delta: float | None = None
    statement: str = ""
    calibration_scores: Tensor = field(default=_NO_SCORES, repr=False, compare=False)
    calibration_weights: Tensor = field(default=_NO_SCORES, repr=False, compare=False)
    loc: float | None = None
    scale: float | None = None

    def __float__(self) -> float:
        return self.value

    def is_ood(self, scores: Any) -> Tensor:
        """Whether each score is above the threshold, bool of the same shape."""
        return as_tensor(scores) > self.value

    def p_value(self, scores: Any) -> Tensor:
        """Probability, float64 in 0..1, that a known image scores at least this; small = strange.

        The rank among the calibration scores, the new image counted with them. A parametric
        threshold adds the tail of its distribution beyond them; a manual one without calibration
        scores knows nothing: NaN.
        """
        scores = as_tensor(scores)
        if self.source != "parametric":
            return self._rank(scores) if self.n else torch.full_like(scores, math.nan)
        tail = upper_tail((scores - self.loc) / self.scale, self.n if self.n > 1 else 0)
        if not self.n:
            return tail
        seen = scores <= self.calibration_scores[-1]
        return torch.where(seen, torch.maximum(tail, self._rank(scores)), tail)

    def _rank(self, scores: Tensor) -> Tensor:
        """Return the share of weight at or above each score, the new image's own counted in."""
        weights = self.calibration_weights
        below = torch.cat([weights.new_zeros(1), weights.cumsum(0)])
        rank = torch.searchsorted(self.calibration_scores, scores.contiguous())
        own = weight_of_next(weights, self.guarantee)
        return (below[-1] - below[rank] + own) / (below[-1] + own)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain Python values; `from_dict` reads it back."""
        names = [name for name in self.__dataclass_fields__ if not name.startswith("calibration_")]
        arrays = {
            "calibration_scores": self.calibration_scores.tolist(),
            "calibration_weights": self.calibration_weights.tolist(),
        }
        return {name: getattr(self, name) for name in names} | arrays

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Threshold:
        """Return the threshold `to_dict` described.

        Raises:
            UncertaintyError: keys are missing or unknown, or a value breaks a rule.
        """
        names = set(cls.__dataclass_fields__)
        if not isinstance(values, dict) or set(values) != names:
            odd = sorted(names ^ set(values)) if isinstance(values, dict) else type(values).__name__
            raise UncertaintyError(f"a threshold needs exactly its own keys; look at {odd}")
        return _checked(cls(**values))


def _checked(threshold: Threshold) -> Threshold:
    """Return a threshold read from data, or raise UncertaintyError at what none can have."""
    check_choice(threshold.source, SOURCES, name="source")
    check_choice(threshold.guarantee, GUARANTEES, name="guarantee")
    check_score(threshold.value, name="threshold")
    if threshold.false_alarm_rate is not None:
        check_rate(threshold.false_alarm_rate, name="false_alarm_rate")
    scores = check_scores(threshold.calibration_scores, name="calibration_scores")
    weights = check_weights(threshold.calibration_weights, len(scores))
    if threshold.n != len(scores) or (scores.diff() < 0).any():
        raise UncertaintyError(
            f"`calibration_scores` must be the {threshold.n!r} sorted scores the threshold counts"
        )
    if threshold.source == "parametric":
        scale = check_scores([threshold.loc, threshold.scale], name="loc, scale")[1]
        if scale <= 0:
            raise UncertaintyError(f"`scale` is {scale:g}; a spread is above 0")
    return replace(threshold, calibration_scores=scores, calibration_weights=weights)
