"""Conformal prediction: quantiles the next value seldom exceeds, and sets of classes by them.

Nonconformity scores of calibration images the network has not learned from say how wide a threshold
or a prediction set must be, for any network. The promise is about the average over images and
calibration sets.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from learnkit.errors import UncertaintyError
from learnkit.evaluation.inputs import check_labels, check_probs, check_same_length
from learnkit.uncertainty.checks import Array, check_rate, check_scores, check_weights

_ROUNDING = 1e-9  # what a share may be off by before one more value is asked for


def sorted_together(values: Array, weights: Array) -> tuple[Array, Array]:
    """Return both in ascending order of the values, ties in that of the weights."""
    # numpy sorts by the last key first
    order = np.lexsort((weights, values))
    return values[order], weights[order]


def first_with_little_above(values: Array, weights: Array, allowed: float) -> float:
    """Return the smallest of the sorted values with at most weight `allowed` above it."""
    total = weights.sum()
    enough = total - weights.cumsum() <= allowed + _ROUNDING * total
    return float(values[enough.argmax()])


def allowed_above(weights: Array, rate: float, guarantee: str, delta: float) -> float | None:
    """Weight of a sample that may lie above the limit; None if the sample is too small.

    "loo" and "split" count the next value with the sample, which makes the share of next values
    above the limit at most `rate` on average over samples. "pac" makes it so for all but a share
    `delta` of the samples.
    """
    if not len(weights):
        return None
    total = float(weights.sum())
    if guarantee == "pac":
        allowed = _allowed_with_confidence(weights, rate, delta)
    else:
        # of the next value: the mean, or the largest where a proof needs it
        next_ = float(weights.max() if guarantee == "split" else weights.mean())
        allowed = rate * (total + next_) - next_
    return None if allowed is None or allowed < -_ROUNDING * total else allowed


def _allowed_with_confidence(weights: Array, rate: float, delta: float) -> float | None:
    if weights.min() == weights.max():
        n_above = _binomial_quantile(len(weights), rate, delta)
        return None if n_above is None else n_above * float(weights[0])
    # In units of the largest weight every value adds at most 1 to the weight above the true limit,
    # whose mean is m; Chernoff: P(at most y) <= exp(-(m - y + y log(y / m))).
    unit = float(weights.max())
    m = rate * float(weights.sum()) / unit
    if m < -math.log(delta):
        return None
    # the exponent falls from m at y = 0 to 0 at y = m
    low, high = 0.0, m
    for _ in range(60):
        y = (low + high) / 2
        fits = m - y + y * math.log(y / m) >= -math.log(delta)
        low, high = (y, high) if fits else (low, y)
    return low * unit


def _binomial_quantile(n: int, rate: float, delta: float) -> int | None:
    """Return the largest k with P(Binomial(n, rate) <= k) <= delta, None if not even 0 fits."""
    k = np.arange(n + 1)
    # in logarithms: factorials overflow from 171 on
    log_factorials = np.array([math.lgamma(i + 1) for i in range(n + 1)])
    ways = log_factorials[n] - log_factorials - log_factorials[::-1]
    below = np.exp(ways + k * math.log(rate) + (n - k) * math.log1p(-rate)).cumsum()
    n_fitting = int((below <= delta).sum())
    return n_fitting - 1 if n_fitting else None


def conformal_quantile(scores: Any, alpha: float, *, weights: Any = None) -> float:
    """Score that the next one exceeds with probability at most `alpha`, or infinity.

    The `ceil((n + 1)(1 - alpha))`-th smallest of the n scores. Infinity if n is too small for
    `alpha`, below `1 / alpha - 1`: only sets of all classes keep the promise then.

    Args:
        scores: finite nonconformity scores (n,).
        alpha: in 0..1.
        weights: of the scores; the next one counts as the heaviest.

    >>> conformal_quantile(range(9), 0.1), conformal_quantile(range(8), 0.1)
    (8.0, inf)
    """
    scores, alpha = check_scores(scores), check_rate(alpha, name="alpha")
    scores, weights = sorted_together(scores, check_weights(weights, len(scores)))
    # the last argument, delta, counts for "pac" alone
    allowed = allowed_above(weights, alpha, "split", alpha)
    return math.inf if allowed is None else first_with_little_above(scores, weights, allowed)


Calibration = tuple[Array, Array] | tuple[Array, Array, Array]


def set_quantiles(calibration: Calibration, alpha: float, n_classes: int) -> float | Array:
    """Quantile of `prediction_sets`; of each class its own, float64 (C,), if labels are there.

    With labels the promise holds for the images of every class by itself (label-conditional, or
    Mondrian, prediction sets), and a class with fewer than `1 / alpha - 1` scores is in every set.

    Args:
        calibration: nonconformity scores (n,), their weights, and if wanted the true classes.
        alpha: in 0..1.
        n_classes: C.

    Source: Vovk, Gammerman and Shafer, "Algorithmic learning in a random world", 2005, section 4.5.

    >>> set_quantiles((np.arange(9.0), np.ones(9), np.zeros(9, int)), 0.1, 2)
    array([ 8., inf])
    """
    scores, weights, *labels = calibration
    if not labels:
        return conformal_quantile(scores, alpha, weights=weights)
    own = [np.flatnonzero(np.asarray(labels[0]) == place) for place in range(n_classes)]
    return np.array(
        [
            conformal_quantile(scores[rows], alpha, weights=weights[rows])
            if len(rows)
            else math.inf
            for rows in own
        ]
    )


def lac_scores(probs: Any, targets: Any) -> Array:
    """Nonconformity scores `1 - p(truth)`, float64 (N,) in 0..1; they give the smallest sets.

    Source: Sadinle, Lei and Wasserman, "Least ambiguous set-valued classifiers with bounded error
    levels", 2019.

    Raises:
        EvaluationError: no probabilities, or class numbers outside 0..C-1.
    """
    probs = check_probs(probs).astype(np.float64)
    targets = check_labels(targets, probs.shape[1])
    check_same_length(probs=probs, targets=targets)
    return 1 - np.take_along_axis(probs, targets[:, None], axis=1)[:, 0]


def prediction_sets(probs: Any, quantile: float | Array) -> Array:
    """Which classes belong to each image's set, bool (N, C): nonconformity of up to `quantile`.

    The likeliest class always belongs to it: no set is empty, and the coverage only grows.

    Args:
        probs: probabilities (N, C).
        quantile: from `set_quantiles` of the `lac_scores` of calibration images.

    >>> prediction_sets([[0.7, 0.2, 0.1], [0.5, 0.4, 0.1]], 0.65).tolist()
    [[True, False, False], [True, True, False]]
    """
    probs = check_probs(probs).astype(np.float64)
    if np.isnan(quantile).any():
        raise UncertaintyError("`quantile` is nan; take it from `conformal_quantile`")
    inside = 1 - probs <= quantile
    if len(probs):
        np.put_along_axis(inside, probs.argmax(1)[:, None], True, axis=1)
    return inside
