"""The factor of the logits with the smallest log loss, by Newton's method."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from learnkit.uncertainty.checks import Array

_CHUNK = 2**15  # logits worked on at once: what lies about fits a processor's cache
_IMPOSSIBLE = -1e30  # for -inf: of probability 0 as well, but 0 times it is 0
_PRECISE = 1e-6  # Newton's last step: the next would be of its square


class LogLoss(NamedTuple):
    """Log loss of `softmax(b * logits + offset)` as a function of b, up to a constant.

    `logits (N,C)`, the largest of each row 0, -inf for classes that cannot be; `truth (N,)` those
    of the right class; `weights (N,)`; `offset (C,)`, which b does not touch.
    """

    logits: Array
    truth: Array
    weights: Array
    offset: Array | float = 0.0

    def slope(self, factor: float) -> tuple[float, float]:
        """First and second derivative at `factor`."""
        slope = curvature = 0.0
        step = max(1, _CHUNK // self.logits.shape[1])
        for start in range(0, len(self.logits), step):
            part = slice(start, start + step)
            l = np.maximum(self.logits[part], _IMPOSSIBLE)
            odds = factor * l
            odds += self.offset
            odds -= odds.max(1, keepdims=True)
            np.exp(odds, out=odds)
            total = odds.sum(1)
            odds *= l
            mean, square = odds.sum(1) / total, np.einsum("ij,ij->i", odds, l) / total
            slope += float(self.weights[part] @ (mean - self.truth[part]))
            curvature += float(self.weights[part] @ (square - mean * mean))
        n = float(self.weights.sum())
        return slope / n, curvature / n


class Expected(NamedTuple):
    """The factor before any sample is seen: about `factor`, off by `spread` in its log.

    `n` is how many samples the log loss is the mean of; the more, the less this counts.
    """

    factor: float
    spread: float
    n: float


def best_factor(
    loss: LogLoss,
    low: float,
    high: float,
    *,
    start: float = 1.0,
    expected: Expected | None = None,
) -> float:
    """Return b = 1/T in low..high with the smallest log loss: Newton's method in a bracket.

    The log loss is convex in b, so its slope has one zero, or the best b is one of the ends. Steps
    are taken in log b, in which it bends alike over decades. An `expected` factor adds a penalty:
    half the squared distance from it in log b, in spreads.
    """
    bounds = {math.log(low): low, math.log(high): high}
    ends, tested = sorted(bounds), [False, False]
    place = min(max(math.log(start), ends[0]), ends[1])
    for _ in range(100):
        slope, bend = _in_log(loss, place, expected)
        ends[slope > 0], tested[slope > 0] = place, True
        step = slope / bend if bend > 0 else math.copysign(2.0, slope)
        next_ = min(max(place - step, ends[0]), ends[1])
        if all(tested) and next_ in ends:
            next_ = sum(ends) / 2
        if abs(next_ - place) <= _PRECISE:
            break
        place = next_
    return bounds.get(next_, math.exp(next_))


def _in_log(loss: LogLoss, place: float, expected: Expected | None) -> tuple[float, float]:
    """First and second derivative with respect to the logarithm of the factor."""
    factor = math.exp(place)
    slope, curvature = (d * factor**k for k, d in enumerate(loss.slope(factor), start=1))
    pull = 1 / (expected.spread**2 * expected.n) if expected else 0.0
    off = place - math.log(expected.factor) if expected else 0.0
    return slope + pull * off, curvature + slope + pull
