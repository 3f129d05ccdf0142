"""Out-of-distribution (OOD) scores: their parts, how they are combined, and how well they detect.

Every score is float64 (N,), higher = further out of distribution. None of them divides by the
length of a feature vector: a frame without any feature gets `BLANK_SCORE` instead, see `is_blank`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from learnkit.errors import UncertaintyError, number_of
from learnkit.uncertainty.checks import (
    Array,
    as_floats,
    check_logits,
    check_rate,
    check_scores,
    check_weights,
)
from learnkit.uncertainty.conformal import sorted_together

# Above every score of an image that shows something, yet finite in single precision and in JSON.
BLANK_SCORE = 1e30
BLANK_ACTIVATION = 1e-6  # root mean square below which a feature vector says nothing
SCORE_FLOOR = -1.0  # standard deviations below the mean that one score of several may say
_BLOCK = 2**20  # numbers in the largest table of distances held at once


def softmax(logits: Array) -> Array:
    """Probabilities (N, C) of logits (N, C); they sum to 1."""
    # initial: numpy refuses the maximum of no class
    odds = logits - logits.max(1, keepdims=True, initial=-math.inf)
    np.exp(odds, out=odds)
    odds /= odds.sum(1, keepdims=True)
    return odds


def sigmoid(logits: Array) -> Array:
    """Probabilities (N, C), each of its own."""
    # of minus the size: the exponential of a large logit would overflow
    odds = np.exp(-np.abs(logits))
    return np.where(logits >= 0, 1, odds) / (1 + odds)


def max_softmax_score(logits: Any) -> Array:
    """One minus the largest softmax probability, in 0..1; higher = further out of distribution.

    Source: Hendrycks and Gimpel, "A baseline for detecting misclassified and out-of-distribution
    examples in neural networks", 2017.

    >>> max_softmax_score([[0.0, 0.0], [9.0, -9.0]]).round(6).tolist()
    [0.5, 0.0]
    """
    # in order: sums then have the same bits in whatever order the classes came
    return 1 - softmax(np.sort(check_logits(logits), 1)).max(1, initial=0.0)


def energy_score(logits: Any, temperature: float = 1.0) -> Array:
    """Free energy `-T log sum exp(logits / T)`; higher = further out of distribution.

    Source: Liu et al., "Energy-based out-of-distribution detection", 2020.
    """
    if not 0 < temperature < math.inf:
        raise UncertaintyError(f"`temperature` is {temperature}; it divides logits: above 0")
    # in order, as above
    logits = np.sort(check_logits(logits), 1) / temperature
    top = logits.max(1)
    return -temperature * (top + np.log(np.exp(logits - top[:, None]).sum(1)))


@dataclass(frozen=True, eq=False)
class Neighbors:
    """Remembered features (K, D) to be near to, embedded."""

    features: Array

    @cached_property
    def squares(self) -> Array:
        """Squared length of each, (K,)."""
        found = np.empty(len(self.features))
        step = max(1, _BLOCK // max(self.features.shape[1], 1))
        for start in range(0, len(found), step):  # no second table of that size
            part = slice(start, start + step)
            found[part] = np.square(self.features[part]).sum(1)
        return found

    def nearest(self, embedded: Array, hide: Callable[[Array, slice], None] | None = None) -> Array:
        """Euclidean distance (N,) to the nearest; infinite if there are none, or all are hidden.

        For vectors of unit length it lies in 0..2.

        Args:
            embedded: vectors (N, D).
            hide: sets entries of a table of distances (n, K) to infinity, given which rows
                of `embedded` the table is of: for leave-one-out scores.

        Source: Sun et al., "Out-of-distribution detection with deep nearest neighbors", 2022.

        >>> Neighbors(np.array([[0.0, 1.0], [0.6, 0.8]])).nearest(np.array([[1.0, 0.0]])).round(3)
        array([0.894])
        """
        found = np.full(len(embedded), math.inf)
        step = max(1, _BLOCK // max(len(self.features), 1))
        for start in range(0, len(found) if len(self.features) else 0, step):
            part = slice(start, start + step)
            # |a - b|^2 less |a|^2; in float64 the expansion is exact enough
            table = -2 * embedded[part] @ self.features.T
            table += self.squares
            if hide is not None:
                hide(table, part)
            # |a|^2 is the same in a row: added to its least entry alone, not to the whole table
            found[part] = table.min(1) + np.square(embedded[part]).sum(1)
        # rounding takes the distance of a vector to itself a little below 0
        return np.sqrt(np.maximum(found, 0))


@dataclass(frozen=True, eq=False)
class ClassDistances:
    """Squared Mahalanobis distances to class means, from embedded features (N, D).

    The distance to class c is `|u|^2 - 2 y @ covectors[c] + offsets[c]`: y is the feature counted
    from `center (D,)`, `|u|^2` its squared length in the space where the pooled covariance is the
    identity. `offsets (P,)` hold the squared lengths of the means there, less what their being
    means of few images adds on average: the mean of n images lies `d_eff / n` off its class, which
    would make images of a small class look out of distribution.
    `|u|^2 = base |y|^2 - |y @ axes|^2`; where `base` is 0, all axes are there and it is
    `|y @ axes|^2`. `axes (D, r)` is None where no length is asked for.
    """

    center: Array
    covectors: Array
    offsets: Array
    base: float
    axes: Array | None

    def relative(self, embedded: Array) -> Array:
        """Squared distance (N,) to the nearest class mean less that to the center.

        What is far about every image alike cancels, which helps with OOD images that are near.

        Source: Ren et al., "A simple fix to Mahalanobis distance for improving near-OOD detection",
        2021; deviating, both distances use the within-class covariance.
        """
        products = -2 * (embedded - self.center) @ self.covectors.T
        products += self.offsets
        return products.min(1)

    def from_center(self, embedded: Array) -> Array:
        """Squared distance (N,) to the center."""
        centered = embedded - self.center
        along = np.square(centered @ self.axes).sum(1)
        return self.base * np.square(centered).sum(1) - along if self.base else along

    def mahalanobis(self, embedded: Array) -> Array:
        """Squared distance (N,) to the nearest class mean.

        Source: Lee et al., "A simple unified framework for detecting out-of-distribution samples",
        2018; Mueller and Hein, "Mahalanobis++", 2025. The debiasing term is our addition.
        """
        return self.relative(embedded) + self.from_center(embedded)


def location_scale(scores: Any, weights: Any = None) -> tuple[float, float]:
    """Weighted mean and standard deviation of the scores of images that are not blank.

    A spread of 0 (one score, or all alike) comes back as 1, so that it can be divided by.

    Raises:
        UncertaintyError: no score is left, or one is not finite.
    """
    scores = check_scores(scores)
    weights = check_weights(weights, len(scores))
    kept = scores < BLANK_SCORE
    if not kept.any():
        raise UncertaintyError(
            f"`scores` has {number_of(len(scores), 'value')}, none of an image that shows "
            "something; at least"
            " one is needed to say what is in distribution"
        )
    # In ascending order: the sums must not depend, not in the last bit, on that of the images.
    scores, weights = sorted_together(scores[kept], weights[kept])
    weights = weights / weights.sum()
    loc = (weights * scores).sum()
    scale = math.sqrt((weights * (scores - loc) ** 2).sum())
    # What rounding leaves of a spread of 0 must not be blown up to 1.
    floor = 1e-12 * max(1.0, float(np.abs(scores).max()))
    return float(loc), scale if scale > floor else 1.0


def standardize(scores: Any, loc: float, scale: float) -> Array:
    """`(score - loc) / scale`; blank images keep their mark."""
    scores = as_floats(scores)
    if not 0 < scale < math.inf:
        raise UncertaintyError(f"`scale` is {scale}; a spread is finite and above 0")
    return np.where(scores < BLANK_SCORE, (scores - loc) / scale, scores)


def combine(*standardized: Any) -> Array:
    """One score of several standardised ones (N,) each: their mean, none counting below -1.

    A low score in one part must not make up for a high one in another. A single score comes back
    unchanged, and a blank image keeps its mark.

    >>> combine([0.0, 3.0, -9.0], [1.0, 1.0, 4.0]).tolist()
    [0.5, 2.0, 1.5]
    """
    # The mean of Mahalanobis, relative and nearest-neighbour scores detected OOD images at least as
    # well as the best of the three, to 0.005 of mean AUROC, on photographs near (.742; .730 alone)
    # and far (.984; .988) and on digits (.933; .917). Their maximum did not, by .02 on digits.
    if not standardized:
        raise UncertaintyError("`standardized` is empty; give at least one array of scores")
    stacked = np.stack([as_floats(scores) for scores in standardized])
    largest = stacked.max(0)
    if len(stacked) == 1:
        return largest
    return np.where(largest < BLANK_SCORE, np.maximum(stacked, SCORE_FLOOR).mean(0), largest)


def is_blank(features: Any) -> Array:
    """Whether feature vectors (N, D) are zero up to rounding, bool (N,).

    Such a vector (root mean square below 1e-6) has no direction: the frame is empty or saturated.
    """
    features = as_floats(features, name="features")
    return np.sqrt(np.square(features).mean(1)) < BLANK_ACTIVATION


def auroc(scores_in: Any, scores_out: Any) -> float:
    """Probability in 0..1 that an OOD image scores higher than a known one, ties counting half.

    The area under the ROC curve with the out-of-distribution images as the positive class; .5 is
    chance. NaN if either side is empty.

    >>> auroc([0.1, 0.2, 0.3], [0.25, 0.9])
    0.8333333333333334
    """
    known, ood = _both_sides(scores_in, scores_out)
    if not len(known) or not len(ood):
        return math.nan
    known = np.sort(known)
    below, up_to = np.searchsorted(known, ood), np.searchsorted(known, ood, side="right")
    return float((below + up_to).mean() / (2 * len(known)))


def fpr_at_tpr(scores_in: Any, scores_out: Any, *, tpr: float = 0.95) -> float:
    """Share of known images flagged when at least `tpr` of the OOD ones are; lower is better.

    The out-of-distribution images are the positive class. (Part of the literature swaps the
    classes and reports the OOD images passed when 95 % of the known ones pass.) NaN if either
    side is empty.

    >>> fpr_at_tpr([0.1, 0.2, 0.3, 0.4], [0.25, 0.9])
    0.5
    """
    known, ood = _both_sides(scores_in, scores_out)
    tpr = 1.0 if tpr == 1 else check_rate(tpr, name="tpr")
    if not len(known) or not len(ood):
        return math.nan
    # 1e-9: .07 * 100 is 7.000000000000001 in floating point, and asks for 7 images
    n_caught = math.ceil(tpr * len(ood) - 1e-9)
    cut = np.sort(ood)[len(ood) - n_caught]
    return float((known >= cut).mean())


@dataclass(frozen=True)
class OodEvaluation:
    """OOD detection by scores and a threshold, measured.

    Attributes:
        auroc: area under the ROC curve, OOD images positive.
        fpr_at_95_tpr: share of known images flagged when 95 % of the OOD ones are.
        false_alarm_rate: share of known images above the threshold.
        detection_rate: share of OOD images above the threshold.
        n_in: number of known images.
        n_out: number of OOD images.
        reason: why some of the numbers are NaN; empty if none is.
    """

    auroc: float
    fpr_at_95_tpr: float
    false_alarm_rate: float
    detection_rate: float
    n_in: int
    n_out: int
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, NaN as None: `json.dumps` takes it as it is."""
        values = asdict(self)
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in values.items()}


def evaluate_ood(scores_in: Any, scores_out: Any, threshold: float | None = None) -> OodEvaluation:
    """AUROC, FPR at 95 % TPR and, given a threshold, the realised rates of `score > threshold`.

    One-sided input is no error: what has no answer is NaN, and `reason` says why.
    """
    known, ood = _both_sides(scores_in, scores_out)
    sides = {"known": known, "out-of-distribution": ood}
    missing = [f"no {name} images" for name, scores in sides.items() if not len(scores)]
    if threshold is None:
        missing.append("no threshold")
    cut = math.nan if threshold is None else float(threshold)
    rates = [
        math.nan if math.isnan(cut) or not len(scores) else float((scores > cut).mean())
        for scores in (known, ood)
    ]
    sizes = len(known), len(ood)
    measured = auroc(known, ood), fpr_at_tpr(known, ood)
    return OodEvaluation(*measured, *rates, *sizes, reason=", ".join(missing))


def _both_sides(scores_in: Any, scores_out: Any) -> tuple[Array, Array]:
    return check_scores(scores_in, name="scores_in"), check_scores(scores_out, name="scores_out")
