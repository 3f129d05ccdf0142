"""How much of a sample may lie above a limit so that a promise about the next value holds."""

from __future__ import annotations

import math

import torch
from torch import Tensor

ROUNDING = 1e-9  # what a share may be off by before one more value is asked for


def sorted_together(values: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return both in ascending order of the values, ties in that of the weights."""
    order = weights.argsort(stable=True)
    order = order[values[order].argsort(stable=True)]
    return values[order], weights[order]


def first_with_little_above(values: Tensor, weights: Tensor, allowed: float) -> float:
    """Return the smallest of the sorted values with at most weight `allowed` above it."""
    above = weights.sum() - weights.cumsum(0)
    enough = above <= allowed + ROUNDING * weights.sum()
    return values[int(enough.nonzero()[0])].item()


def weight_of_next(weights: Tensor, guarantee: str) -> float:
    """Return the weight of the value to come: the mean, or the largest where a proof needs it."""
    return (weights.amax() if guarantee == "split" else weights.mean()).item()


def allowed_above(weights: Tensor, rate: float, guarantee: str, delta: float) -> float | None:
    """Weight of a sample that may lie above the limit; None if the sample is too small.

    "loo" and "split" count the next value with the sample, which makes the share of next values
    above the limit at most `rate` on average over samples. "pac" makes it so for all but a share
    `delta` of the samples.
    """
    if not len(weights):
        return None
    if guarantee == "pac":
        allowed = _allowed_with_confidence(weights, rate, delta)
    else:
        next_ = weight_of_next(weights, guarantee)
        allowed = rate * (weights.sum().item() + next_) - next_
    return None if allowed is None or allowed < -ROUNDING * weights.sum().item() else allowed


def _allowed_with_confidence(weights: Tensor, rate: float, delta: float) -> float | None:
    if weights.amin() == weights.amax():
        n_above = _binomial_quantile(len(weights), rate, delta)
        return None if n_above is None else n_above * weights[0].item()
    # In units of the largest weight every value adds at most 1 to the weight above the true limit,
    # whose mean is m; Chernoff: P(at most y) <= exp(-(m - y + y log(y / m))).
    unit = weights.amax().item()
    m = rate * weights.sum().item() / unit
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
    k = torch.arange(n + 1, dtype=torch.float64)
    n_ = torch.tensor(float(n), dtype=torch.float64)
    ways = torch.lgamma(n_ + 1) - torch.lgamma(k + 1) - torch.lgamma(n_ - k + 1)
    below = (ways + k * math.log(rate) + (n - k) * math.log1p(-rate)).exp().cumsum(0)
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
    if n == 0:
        return loc - scale * torch.special.ndtri(torch.tensor(rate).double()).item(), scale
    from scipy.special import stdtrit

    spread = scale * math.sqrt((n + 1) / (n - 1))
    return loc - spread * float(stdtrit(n - 1, rate)), spread


def upper_tail(standardized: Tensor, n: int) -> Tensor:
    """Probability of a larger value under the distribution of `prediction_limit`."""
    if n == 0:
        return torch.special.ndtr(-standardized)
    from scipy.special import stdtr

    return torch.as_tensor(stdtr(n - 1, -standardized.numpy())).reshape(standardized.shape)
