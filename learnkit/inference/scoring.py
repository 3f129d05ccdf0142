"""What a head in the continual state says of features, computed with numpy alone.

The same formulae as in `continual` and `uncertainty`, of numbers that `judge_file` wrote; equal to
the torch side up to the rounding of sums.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from learnkit.errors import UncertaintyError
from learnkit.inference.arithmetic import embed, log_sum_exp, nearest, sigmoid, softmax
from learnkit.inference.batch import Result
from learnkit.inference.prediction import not_finite, prediction_of
from learnkit.inference.tails import normal_tail, student_tail

BLANK_SCORE = 1e30  # above every score of an image that shows something
_BLANK_ACTIVATION = 1e-6  # root mean square below which a feature vector says nothing
_FLOOR = -1.0  # standard deviations below the mean that one score of several may say

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Limit:
    """The score above which an image is flagged, and what p-values are counted by.

    `scores (n,)` are sorted, `weights (n,)` theirs; `loc` and `scale` are of the distribution that
    a "parametric" one assumes, 0 and 1 for others.
    """

    value: float
    source: str
    guarantee: str
    statement: str
    loc: float
    scale: float
    scores: Array
    weights: Array

    def p_values(self, scores: Array) -> Array:
        """Probability (N,) that a known image scores at least this; NaN if nothing is known."""
        n = len(self.scores)
        if self.source != "parametric":
            return self._rank(scores) if n else np.full_like(scores, math.nan)
        beyond = [(score - self.loc) / self.scale for score in scores.tolist()]
        tail = np.array([normal_tail(z) if n < 2 else student_tail(z, n - 1) for z in beyond])
        if not n:
            return tail
        return np.where(scores <= self.scores[-1], np.maximum(tail, self._rank(scores)), tail)

    def _rank(self, scores: Array) -> Array:
        """The share of weight at or above each score, the new image's own counted in."""
        below = np.concatenate([[0.0], self.weights.cumsum()])
        own = self.weights.max() if self.guarantee == "split" else self.weights.mean()
        return (below[-1] - below[np.searchsorted(self.scores, scores)] + own) / (below[-1] + own)


@dataclass(frozen=True, eq=False)
class Geometry:
    """Distances to class means, see `judge_file`; `axes` is None where no length is asked for."""

    center: Array
    covectors: Array
    offsets: Array
    base: float
    axes: Array | None

    def relative(self, embedded: Array) -> Array:
        """Squared distance (N,) to the nearest class mean, debiased, less that to the center."""
        products = (embedded - self.center) @ self.covectors.T
        return (self.offsets - 2 * products).min(1)

    def squared_lengths(self, embedded: Array) -> Array:
        """Squared distance (N,) to the center."""
        centered = embedded - self.center
        along = np.square(centered @ self.axes).sum(1)
        return self.base * np.square(centered).sum(1) - along if self.base else along


@dataclass(frozen=True, eq=False)
class Judge:
    """Labels and scores of pooled features.

    `standards` holds (part, mean, spread) of every part of the score. `labels` says whether
    `weight (C,D)` and `bias (C,)` give the labels, or the network itself. `nonconformity` are
    scores and weights for prediction sets. `reference (K,D)` is remembered.
    """

    labels: bool
    root: bool
    temperature: float
    standards: tuple[tuple[str, float, float], ...]
    limit: Limit
    weight: Array
    bias: Array
    nonconformity: tuple[Array, Array]
    geometry: Geometry | None = None
    reference: Array | None = None

    def logits(self, features: Array) -> Array:
        """Calibrated logits float32 (N, C) of features (N, D)."""
        return self._affine(embed(features, root=self.root)).astype(np.float32)

    def scores(self, features: Array) -> Array:
        """How unusual images are, float64 (N,), higher = more unusual."""
        embedded = embed(features, root=self.root)
        blank = np.sqrt(np.square(features, dtype=np.float64).mean(1)) < _BLANK_ACTIVATION
        parts = [(self._raw(part, embedded) - loc) / spread for part, loc, spread in self.standards]
        one = len(parts) == 1
        score = parts[0] if one else np.maximum(parts, _FLOOR).mean(0)
        return np.where(blank, BLANK_SCORE, score)

    def unusual(self, features: Array) -> list[dict[str, Any]]:
        """The fields of a `Prediction` from `ood_score` on, of each row of features (N, D)."""
        scores = self.scores(features)
        p_values = self.limit.p_values(scores).tolist()
        return [
            {
                "ood_score": score,
                "ood_threshold": self.limit.value,
                "p_value": None if math.isnan(p_value) else p_value,
                "nonconformity": self.nonconformity,
            }
            for score, p_value in zip(scores.tolist(), p_values, strict=True)
        ]

    def with_threshold(self, value: float) -> Judge:
        """The same with a threshold set by hand; p-values stay ranks among the same scores.

        Raises:
            UncertaintyError: the value is no finite number.
        """
        if type(value) not in (int, float) or not math.isfinite(value):
            raise UncertaintyError(f"`ood_threshold` is {value!r}; give one finite score")
        limit = replace(
            self.limit,
            value=float(value),
            source="manual",
            guarantee="none",
            statement="set by hand",
        )
        return replace(self, limit=limit)

    def _affine(self, embedded: Array) -> Array:
        return embedded @ self.weight.T + self.bias

    def _raw(self, part: str, embedded: Array) -> Array:
        """One part of the score (N,), before it is standardised."""
        if part == "msp":
            return 1 - softmax(self._affine(embedded)).max(1)
        if part == "energy":
            return -self.temperature * log_sum_exp(self._affine(embedded))
        if part == "knn":
            return nearest(embedded, self.reference)
        relative = self.geometry.relative(embedded)
        if part == "relative":
            return relative
        return relative + self.geometry.squared_lengths(embedded)


def judged(
    judge: Judge | None,
    features: Array,
    logits: Array | None,
    classes: tuple[str, ...],
    *,
    multi_label: bool = False,
    threshold: float = 0.5,
) -> list[Result]:
    """For each image its prediction, or a PredictionError.

    Args:
        judge: what the head says; None for a trained head that cannot tell unusual images.
        features: pooled features (N, D).
        logits: the network's own (N, C), where the labels come from them.
        classes: the C names.
        multi_label: an image may have several labels, or none.
        threshold: a label counts above it, if `multi_label`.
    """
    by_judge = judge is not None and judge.labels
    sound = np.isfinite(features if logits is None or by_judge else logits).all(1)
    if judge is not None:
        sound &= np.isfinite(features).all(1)
    kept = features[sound]
    values = judge.logits(kept) if by_judge else logits[sound]
    values = values.astype(np.float64)
    probs = (sigmoid(values) if multi_label else softmax(values)).astype(np.float32)
    told = [{}] * len(kept) if judge is None else judge.unusual(kept)
    rows = (
        prediction_of(row, classes, multi_label=multi_label, threshold=threshold, **ood)
        for row, ood in zip(probs, told, strict=True)
    )
    return [next(rows) if is_sound else not_finite() for is_sound in sound.tolist()]
