"""Charts of a page as coordinates: the histogram of scores and the reliability diagram."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from learnkit.report.document import share_text

WIDTH, HEIGHT = 560, 200  # of a chart, in its own units
_BARS = 40
_FEW = 10  # images of a bin whose rate means little


@dataclass(frozen=True)
class ChartBar:
    """A bar of a chart, and what it says."""

    x: float
    y: float
    width: float
    height: float
    text: str
    is_sure: bool = True
    mark: float | None = None  # height of a line across it


@dataclass(frozen=True)
class Histogram:
    """Scores of known and of strange images over one axis.

    Attributes:
        low: score at the left end.
        high: score at the right end; the last bars hold what is above, too.
        known: bars upwards from the middle line.
        strange: bars downwards from it.
        middle: where that line is.
        cut: whether some are above the right end.
    """

    low: float
    high: float
    known: list[ChartBar]
    strange: list[ChartBar]
    middle: float
    cut: bool

    def x(self, score: float) -> float:
        """Where a score is, at most at an end."""
        at = WIDTH * (score - self.low) / (self.high - self.low)
        return round(min(max(at, 0.0), float(WIDTH)), 2)


def score_histogram(
    known: Sequence[float], strange: Sequence[float], threshold: float | None
) -> Histogram | None:
    """The histogram of OOD scores, None without any; each side is drawn as shares of its images."""
    both = [np.sort(np.array(one, float)) for one in (known, strange)]
    scores = np.concatenate(both)
    if not len(scores):
        return None
    # a few far outliers would press all others into one bar
    tops = [np.quantile(one, 0.98) for one in both if len(one)] + [
        scores[0] if threshold is None else threshold
    ]
    low, high = float(min(scores[0], *tops)), float(max(tops))
    # all scores may be the same, and the axis needs a length
    high += 0.05 * (high - low) or max(abs(high), 1.0) * 0.05
    edges = np.linspace(low, high, _BARS + 1)
    middle = HEIGHT / 2 if len(strange) else HEIGHT
    # numpy leaves out what lies above the last edge
    counts = [np.histogram(np.minimum(one, high), edges)[0] for one in both]
    tallest = max((c.max() / len(one) for c, one in zip(counts, both, strict=True) if len(one)))
    sides = []
    for side, (count, one) in enumerate(zip(counts, both, strict=True)):
        bars = []
        for k in np.flatnonzero(count):
            tall = round(middle * 0.96 * count[k] / len(one) / tallest, 2)
            text = f"{count[k]} from {edges[k]:.3g} to {edges[k + 1]:.3g}"
            y = middle if side else round(middle - tall, 2)
            bars.append(ChartBar(WIDTH / _BARS * k, y, WIDTH / _BARS - 1, tall, text))
        sides.append(bars)
    return Histogram(low, high, *sides, middle, bool(scores.max() > high))


@dataclass(frozen=True)
class Reliability:
    """How often it is right where it says how sure it is.

    Attributes:
        bars: a bin each, as high as the share that is right, with a mark where it says it is.
        start: the least confidence there can be, one in the number of classes.
        sentence: of the bin with most images.
    """

    bars: list[ChartBar]
    start: float
    sentence: str


def reliability_diagram(bins: Mapping[str, Any], n_classes: int) -> Reliability | None:
    """The reliability diagram of `bins` (edges, n, confidence, accuracy), None if all are empty.

    Its axis begins at one in the number of classes: below that no class is predicted.
    """
    start = 1 / n_classes if n_classes > 1 else 0.0
    x = lambda confidence: WIDTH * (max(confidence, start) - start) / (1 - start)
    bars, largest = [], 0
    sentence = ""
    for k, n in enumerate(bins["n"]):
        left, right = x(bins["edges"][k]), x(bins["edges"][k + 1])
        # a bin that ends where the axis begins, or before, has no width
        if not n or right <= left:
            continue
        said, true = bins["confidence"][k], bins["accuracy"][k]
        images = "1 image" if n == 1 else f"{n} images"
        sure = share_text(said, 0)
        text = f"Where it says {sure}, it is right in {100 * true:.0f} of 100 ({images})."
        tall = HEIGHT * true
        mark = round(HEIGHT * (1 - said), 2)
        at = round(left + 1, 2), round(HEIGHT - tall, 2), round(right - left - 2, 2)
        bars.append(ChartBar(*at, round(tall, 2), text, n >= _FEW, mark))
        if n > largest:
            largest, sentence = n, text
    return Reliability(bars, start, sentence) if bars else None
