"""Scores of pooled features in numpy alone: logits, out-of-distribution scores, p-values.

The one definition that every predictor uses, with torch or without.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from learnkit.errors import UncertaintyError
from learnkit.uncertainty.tails import normal_tail, student_tail

_BLANK = 1e-12  # a feature with no larger entry has no direction
_BLOCK = 2**22  # distances held at once
BLANK_SCORE = 1e30  # above every score of an image that shows something
_BLANK_ACTIVATION = 1e-6  # root mean square below which a feature vector says nothing
_FLOOR = -1.0  # standard deviations below the mean that one score of several may say

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Limit:
    """The score above which an image is flagged, and what p-values are counted by.

    `calibration_scores (n,)` are sorted, `calibration_weights (n,)` theirs; `loc` and `scale` are
    of the distribution that a "parametric" one assumes, 0 and 1 for others.
    """

    value: float
    source: str
    guarantee: str
    statement: str
    loc: float
    scale: float
    calibration_scores: Array
    calibration_weights: Array

    def p_values(self, scores: Array) -> Array:
        """Probability (N,) that a known image scores at least this; NaN if nothing is known."""
        n = len(self.calibration_scores)
        if self.source != "parametric":
            return self._rank(scores) if n else np.full_like(scores, math.nan)
        beyond = [(score - self.loc) / self.scale for score in scores.tolist()]
        tail = np.array([normal_tail(z) if n < 2 else student_tail(z, n - 1) for z in beyond])
        if not n:
            return tail
        return np.where(
            scores <= self.calibration_scores[-1], np.maximum(tail, self._rank(scores)), tail
        )

    def _rank(self, scores: Array) -> Array:
        """The share of weight at or above each score, the new image's own counted in."""
        below = np.concatenate([[0.0], self.calibration_weights.cumsum()])
        own = (
            self.calibration_weights.max()
            if self.guarantee == "split"
            else self.calibration_weights.mean()
        )
        return (below[-1] - below[np.searchsorted(self.calibration_scores, scores)] + own) / (
            below[-1] + own
        )


@dataclass(frozen=True, eq=False)
class ClassDistances:
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
class Scoring:
    """Logits and out-of-distribution scores of pooled features.

    `standards` holds (part, mean, spread) of every part of the score. `labels` says whether
    `weight (C,D)` and `bias (C,)` give the labels, or the network itself. `nonconformity` are
    scores and weights for prediction sets. `reference (K,D)` is remembered.
    """

    labels: bool
    root: bool
    temperature: float
    standards: tuple[tuple[str, float, float], ...]
    threshold: Limit
    weight: Array
    bias: Array
    nonconformity: tuple[Array, Array]
    distances: ClassDistances | None = None
    reference: Array | None = None

    def logits(self, features: Array) -> Array:
        """Calibrated logits float32 (N, C) of features (N, D)."""
        return self._affine(unit_rows(features, root=self.root)).astype(np.float32)

    def ood_scores(self, features: Array) -> Array:
        """How unusual images are, float64 (N,), higher = more unusual."""
        embedded = unit_rows(features, root=self.root)
        blank = np.sqrt(np.square(features, dtype=np.float64).mean(1)) < _BLANK_ACTIVATION
        parts = [(self._raw(part, embedded) - loc) / spread for part, loc, spread in self.standards]
        one = len(parts) == 1
        score = parts[0] if one else np.maximum(parts, _FLOOR).mean(0)
        return np.where(blank, BLANK_SCORE, score)

    def ood_fields(self, features: Array) -> list[dict[str, Any]]:
        """The fields of a `Prediction` from `ood_score` on, of each row of features (N, D)."""
        scores = self.ood_scores(features)
        p_values = self.threshold.p_values(scores).tolist()
        return [
            {
                "ood_score": score,
                "ood_threshold": self.threshold.value,
                "p_value": None if math.isnan(p_value) else p_value,
                "nonconformity": self.nonconformity,
            }
            for score, p_value in zip(scores.tolist(), p_values, strict=True)
        ]

    def with_threshold(self, value: float) -> Scoring:
        """The same with a threshold set by hand; p-values stay ranks among the same scores.

        Raises:
            UncertaintyError: the value is no finite number.
        """
        if type(value) not in (int, float) or not math.isfinite(value):
            raise UncertaintyError(f"`ood_threshold` is {value!r}; give one finite score")
        threshold = replace(
            self.threshold,
            value=float(value),
            source="manual",
            guarantee="none",
            statement="set by hand",
        )
        return replace(self, threshold=threshold)

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
        relative = self.distances.relative(embedded)
        if part == "relative":
            return relative
        return relative + self.distances.squared_lengths(embedded)


def unit_rows(features: Array, *, root: bool) -> Array:
    """Rows of length 1, float64 (N, D), as in `continual.embedding`; a row of zeros stays zero.

    >>> unit_rows(np.array([[9.0, 16.0], [0.0, 0.0]]), root=True).tolist()
    [[0.6, 0.8], [0.0, 0.0]]
    """
    x = features.astype(np.float64)
    if root:
        size = np.abs(x)
        x = np.where(size <= _BLANK**2, 0.0, np.sign(x) * np.sqrt(size))
    blank = np.abs(x).max(1, keepdims=True, initial=0.0) <= _BLANK
    length = np.sqrt(np.square(x).sum(1, keepdims=True))  # float32 squared stays within float64
    return np.where(blank, 0.0, x / np.where(blank, 1.0, length))


def nearest(embedded: Array, reference: Array) -> Array:
    """Distance (N,) to the nearest of `reference` (K, D)."""
    lengths = np.square(reference).sum(1)
    rows = max(1, _BLOCK // len(reference))
    parts = [np.zeros(0)]
    for start in range(0, len(embedded), rows):
        part = embedded[start : start + rows]
        squared = np.square(part).sum(1)[:, None] + lengths - 2 * part @ reference.T
        parts.append(np.maximum(squared, 0).min(1))
    return np.sqrt(np.concatenate(parts))


def softmax(logits: Array) -> Array:
    """Probabilities (N, C); they sum to 1."""
    odds = np.exp(logits - logits.max(1, keepdims=True))
    return odds / odds.sum(1, keepdims=True)


def sigmoid(logits: Array) -> Array:
    """Probabilities (N, C), each of its own."""
    odds = np.exp(-np.abs(logits))
    return np.where(logits >= 0, 1, odds) / (1 + odds)


def log_sum_exp(logits: Array) -> Array:
    """Logarithm of the sum of exponentials of each row, (N,)."""
    top = logits.max(1)
    return top + np.log(np.exp(logits - top[:, None]).sum(1))
