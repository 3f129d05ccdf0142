"""The factor of the logits with the smallest log loss, by Newton's method."""

from __future__ import annotations

import math

from torch import Tensor

_CHUNK = 2**21  # logits worked on at once


def best_factor(logits: Tensor, targets: Tensor, weights: Tensor, low: float, high: float) -> float:
    """Return b = 1/T in low..high with the smallest log loss: Newton's method in a bracket.

    The log loss is convex in b, so its slope has one zero, or the best b is one of the ends.
    """
    if _slope(logits, targets, weights, low)[0] >= 0:
        return low
    if _slope(logits, targets, weights, high)[0] <= 0:
        return high
    factor = min(max(1.0, low), high)
    for _ in range(100):
        slope, curvature = _slope(logits, targets, weights, factor)
        low, high = (low, factor) if slope > 0 else (factor, high)
        step = factor - slope / curvature if curvature > 0 else math.nan
        next_ = step if low < step < high else math.sqrt(low * high)
        if abs(next_ - factor) <= 1e-12 * factor:
            return next_
        factor = next_
    return factor


def _slope(logits: Tensor, targets: Tensor, weights: Tensor, factor: float) -> tuple[float, float]:
    """Return first and second derivative of the mean log loss of `factor * logits`."""
    slope = curvature = 0.0
    rows = max(1, _CHUNK // logits.shape[1])
    for part in zip(logits.split(rows), targets.split(rows), weights.split(rows), strict=True):
        l, truth, w = part
        probs = (factor * l).softmax(1)
        l = l.masked_fill(l.isneginf(), 0)  # of probability 0: 0 times infinity is 0 here
        mean = (probs * l).sum(1)
        variance = (probs * (l - mean[:, None]).square()).sum(1)
        slope += (w * (mean - l.gather(1, truth[:, None])[:, 0])).sum().item()
        curvature += (w * variance).sum().item()
    total = weights.sum().item()
    return slope / total, curvature / total
