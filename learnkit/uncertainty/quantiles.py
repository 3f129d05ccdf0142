"""Quantiles with a promise about the next value, of samples and of normal distributions."""

from __future__ import annotations

import math

import numpy as np

from learnkit.uncertainty.checks import Array

ROUNDING = 1e-9  # what a share may be off by before one more value is asked for


def sorted_together(values: Array, weights: Array) -> tuple[Array, Array]:
    """Return both in ascending order of the values, ties in that of the weights."""
    order = np.lexsort((weights, values))
    return values[order], weights[order]


def first_with_little_above(values: Array, weights: Array, allowed: float) -> float:
    """Return the smallest of the sorted values with at most weight `allowed` above it."""
    total = weights.sum()
    enough = total - weights.cumsum() <= allowed + ROUNDING * total
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
    return None if allowed is None or allowed < -ROUNDING * total else allowed


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
    low, high = 0.0, m
    for _ in range(60):
        y = (low + high) / 2
        fits = m - y + y * math.log(y / m) >= -math.log(delta)
        low, high = (y, high) if fits else (low, y)
    return low * unit


def _binomial_quantile(n: int, rate: float, delta: float) -> int | None:
    """Return the largest k with P(Binomial(n, rate) <= k) <= delta, None if not even 0 fits."""
    k = np.arange(n + 1)
    log_factorials = np.array([math.lgamma(i + 1) for i in range(n + 1)])
    ways = log_factorials[n] - log_factorials - log_factorials[::-1]
    below = np.exp(ways + k * math.log(rate) + (n - k) * math.log1p(-rate)).cumsum()
    n_fitting = int((below <= delta).sum())
    return n_fitting - 1 if n_fitting else None


def prediction_limit(loc: float, scale: float, n: int, rate: float) -> tuple[float, float]:
    """Value the next of a normal sample exceeds with probability `rate`, and its spread.

    Args:
        loc: mean of the sample, or of the distribution if `n` is 0.
        scale: standard deviation, of the sample with n in the denominator.
        n: size of the sample; 0 if the distribution is known.
        rate: in 0..1.

    Returns:
        The limit, and the scale for which `(value - loc) / scale` has Student's distribution with
        n - 1 degrees of freedom (the normal one if `n` is 0).
    """
    from scipy.special import ndtri, stdtrit  # where a threshold is fitted; not to predict

    if n == 0:
        return loc - scale * float(ndtri(rate)), scale
    spread = scale * math.sqrt((n + 1) / (n - 1))
    return loc - spread * float(stdtrit(n - 1, rate)), spread


def upper_tail(standardized: Array, n: int) -> Array:
    """Probability of a larger value under the distribution of `prediction_limit`."""
    values = np.ravel(standardized).tolist()
    tails = [math.erfc(z / math.sqrt(2)) / 2 if n == 0 else student_tail(z, n - 1) for z in values]
    return np.reshape(np.array(tails, np.float64), np.shape(standardized))


def student_tail(value: float, dof: int) -> float:
    """Probability that Student's t with `dof` degrees of freedom exceeds `value`.

    >>> round(student_tail(0.5, 1), 12) == round(0.5 - math.atan(0.5) / math.pi, 12)
    True
    """
    squared = value * value
    if squared == 0 or math.isinf(squared):
        return 0.5 if squared == 0 else float(value < 0)
    x, rest = dof / (dof + squared), 1 / (1 + dof / squared)
    half = _incomplete_beta(dof / 2, 0.5, x, rest) / 2
    return half if value > 0 else 1 - half


_TINY = 1e-300
_PRECISION = 1e-16
_MAX_TERMS = 10_000


def _incomplete_beta(a: float, b: float, x: float, rest: float) -> float:
    """Regularised incomplete beta function at `x`; `rest` is 1 - x without its rounding."""
    if x <= 0 or rest <= 0:
        return float(rest <= 0)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    front = math.exp(log_front + a * math.log(x) + b * math.log(rest))
    if x < (a + 1) / (a + b + 2):
        return front * _fraction(a, b, x) / a
    return 1 - front * _fraction(b, a, rest) / b


def _fraction(a: float, b: float, x: float) -> float:
    """Continued fraction of the incomplete beta function, by Lentz's method.

    Source: Press et al., "Numerical recipes", 3rd edition, 2007, section 6.4.
    """
    c, d = 1.0, 1 / _away(1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, _MAX_TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d, c = 1 / _away(1 + term * d), _away(1 + term / c)
            value *= c * d
        if abs(c * d - 1) < _PRECISION * 4:
            break
    return value


def _away(value: float) -> float:
    """`value`, never 0."""
    return value if abs(value) > _TINY else _TINY
