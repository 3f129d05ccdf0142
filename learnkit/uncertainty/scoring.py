"""Scoring of pooled features: their embedding, and by one head logits and OOD scores of it.

The one definition that every predictor uses, with torch or without. An embedded feature is a row of
length one, the same to the bit wherever it is made: each row is looked at alone and its length
summed exactly, so that neither batch nor machine shows. That is what makes sums of embedded
features additive without any rounding.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from learnkit.uncertainty.blas_threads import single_blas_thread
from learnkit.uncertainty.checks import Array, as_floats
from learnkit.uncertainty.conformal import Calibration
from learnkit.uncertainty.ood import (
    BLANK_SCORE,
    ClassDistances,
    Neighbors,
    combine,
    energy_score,
    is_blank,
    max_softmax_score,
    softmax,
    standardize,
)
from learnkit.uncertainty.threshold import Threshold, manual_threshold

OF_CLASSES = frozenset({"mahalanobis", "relative"})  # parts that need distances to class means
OF_LOGITS = frozenset({"msp", "energy"})
PARTS = OF_CLASSES | OF_LOGITS | {"knn"}

GRID = 2**15  # steps from 0 to 1 of the integer grid on which features are remembered
BLANK = 1e-12  # a feature with no larger entry has no direction
_FINE = 2.0**40
_BLOCK = 2**18  # numbers worked on at once
_FEW = 64  # rows, as of a batch that was predicted: their products are not worth a second thread


def unit_rows(features: Array, *, root: bool) -> Array:
    """Rows of length 1, float64 (N, D); a row of zeros stays zero.

    With `root` the signed square root is taken first, which tames the few large entries of features
    that are never negative.

    >>> unit_rows([[3.0, 4.0], [0.0, 0.0]], root=False).tolist()
    [[0.6, 0.8], [0.0, 0.0]]
    >>> unit_rows([[9.0, 16.0]], root=True).tolist()
    [[0.6, 0.8]]
    """
    features = as_floats(features, name="features")
    rows = np.empty(features.shape)
    step = max(1, _BLOCK // max(features.shape[1], 1))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        x = features[part]
        if root:
            size = np.abs(x)
            # the root of 1e-24 is 1e-12, below which a feature counts as blank
            x = np.where(size <= BLANK**2, 0.0, np.copysign(np.sqrt(size), x))
        rows[part] = _scaled(x)
    return rows


def _scaled(x: Array) -> Array:
    """Rows divided by their largest entry, which keeps squares in range, then by their length."""
    top = np.abs(x).max(1, keepdims=True, initial=0.0)
    blank = top <= BLANK
    x = np.where(blank, 0.0, x / np.where(blank, 1.0, top))
    # sums of 2^13 integers up to 2^40 are exact; wider features are summed block by block
    starts = range(0, x.shape[1], 2**13)
    length = np.sqrt(sum(_square_sum(x[:, start : start + 2**13]) for start in starts))
    return x / np.where(blank, 1.0, length)


def _square_sum(x: Array) -> Array:
    """Squared length of each row (N, 1), of rows with no entry above 1."""
    # Two integers for each square: their sums are exact in float64 and so do not depend on the
    # order of summation, which differs between libraries and with the shape of a batch.
    square = x * x * _FINE
    coarse = np.rint(square)
    fine = np.rint((square - coarse) * _FINE)
    total = coarse.sum(1, keepdims=True) / _FINE
    return total + fine.sum(1, keepdims=True) / (_FINE * _FINE)


def _threads_for(features: Array) -> AbstractContextManager:
    return single_blas_thread if len(features) <= _FEW else nullcontext()


@dataclass(frozen=True, eq=False)
class Scoring:
    """A head as numbers: what turns pooled features (N, D) into logits and OOD scores.

    Attributes:
        labels: whether `weight` and `bias` give the labels, or the network itself.
        root: whether features are square-rooted before they are scaled to length 1.
        temperature: what the logits have been divided by.
        standards: (part, mean, spread) of every part of the OOD score; a score of one part has
            mean 0 and spread 1.
        threshold: above it a score is flagged.
        weight: of the calibrated classifier on embedded features, float64 (C, D).
        bias: likewise, (C,); -inf for a class without images.
        nonconformity: scores and weights (R,) that prediction sets are calibrated by, and the true
            classes (R,) where each class has a quantile of its own.
        shifts: added to the OOD score of an image by its predicted class, (C,), so that one
            threshold keeps its promise for every class by itself; None to leave scores as they are.
        distances: to the class means, where a part of the score needs them.
        neighbors: remembered features, where "knn" is a part.
    """

    labels: bool
    root: bool
    temperature: float
    standards: tuple[tuple[str, float, float], ...]
    threshold: Threshold
    weight: Array
    bias: Array
    nonconformity: Calibration
    distances: ClassDistances | None = None
    neighbors: Neighbors | None = None
    shifts: Array | None = None

    def logits(self, features: Array) -> Array:
        """Calibrated logits float32 (N, C) of pooled features (N, D)."""
        with _threads_for(features):
            return self._affine(unit_rows(features, root=self.root)).astype("float32")

    def probs(self, features: Array) -> Array:
        """Probabilities float32 (N, C) of pooled features (N, D); rows sum to 1."""
        return softmax(self.logits(features).astype("float64")).astype("float32")

    def ood_scores(self, features: Array) -> Array:
        """OOD scores of pooled features, float64 (N,), higher = further out of distribution.

        A blank image, whose features are all but zero, scores above every threshold.
        """
        with _threads_for(features):
            return self._ood_scores(unit_rows(features, root=self.root), features)

    def probs_and_ood_scores(self, features: Array) -> tuple[Array, Array]:
        """What `probs` and `ood_scores` give, for the work of embedding features once."""
        with _threads_for(features):
            embedded = unit_rows(features, root=self.root)
            # rounded to float32 first, as in `probs`: the two must agree to the bit
            logits = self._affine(embedded).astype("float32")
            probs = softmax(logits.astype("float64")).astype("float32")
            return probs, self._ood_scores(embedded, features)

    def _ood_scores(self, embedded: Array, features: Array) -> Array:
        raw = self._raw_scores(embedded, {part for part, _, _ in self.standards})
        parts = (standardize(raw[part], loc, spread) for part, loc, spread in self.standards)
        scores = combine(*parts)
        if self.shifts is not None:
            scores = scores + self.shifts[self._affine(embedded).argmax(1)]
        # embedded, a blank frame is a row of zeros, with a score like any other
        return np.where(is_blank(features), BLANK_SCORE, scores)

    def ood_fields(self, features: Array) -> list[dict[str, Any]]:
        """The fields of a `Prediction` from `ood_score` on, of each row of features (N, D)."""
        scores = self.ood_scores(features)
        p_values = self.threshold.p_values(scores).tolist()
        # sets of a trained head need its validation images; other heads leave all classes
        sets = self.nonconformity if self.labels or len(self.nonconformity[0]) else None
        return [
            {
                "ood_score": score,
                "ood_threshold": self.threshold.value,
                "p_value": None if math.isnan(p_value) else p_value,
                "nonconformity": sets,
            }
            for score, p_value in zip(scores.tolist(), p_values, strict=True)
        ]

    def with_threshold(self, value: float) -> Scoring:
        """The same with a threshold set by hand; p-values stay ranks among the same scores.

        Raises:
            UncertaintyError: the value is no finite number.
        """
        return replace(self, threshold=manual_threshold(value, self.threshold))

    @cached_property
    def _in_order(self) -> tuple[Array, Array]:
        """Weight and bias of the classes with images, in an order that is not that of arrival."""
        # the last bits of a product depend on the columns beside it
        order = np.lexsort((self.weight[:, 0], self.bias))
        order = order[np.isfinite(self.bias[order])]
        return self.weight[order], self.bias[order]

    def _affine(self, embedded: Array) -> Array:
        return embedded @ self.weight.T + self.bias

    def _raw_scores(self, embedded: Array, parts: Collection[str]) -> dict[str, Array]:
        """The parts of the score (N,) before they are standardised."""
        found = {}
        if not OF_CLASSES.isdisjoint(parts):
            found["relative"] = self.distances.relative(embedded)
        if "mahalanobis" in parts:
            found["mahalanobis"] = found["relative"] + self.distances.from_center(embedded)
        if "knn" in parts:
            found["knn"] = self.neighbors.nearest(embedded)
        if not OF_LOGITS.isdisjoint(parts):
            weight, bias = self._in_order
            logits = embedded @ weight.T + bias
            found["msp"] = max_softmax_score(logits)
            # the logits are divided by the temperature already
            found["energy"] = self.temperature * energy_score(logits)
        return found
