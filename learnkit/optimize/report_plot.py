"""The picture of a conversion report: how fast, and at what price."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from learnkit.errors import OptimizeError
from learnkit.optimize.gates import ratio_text
from learnkit.optimize.quality import Speed
from learnkit.optimize.report_rows import EAGER

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_CHOSEN, _OTHER = ("#0072B2", "#80b8d8"), ("#767676", "#bdbdbd")  # first batch size, others
_HEIGHT = 0.8  # of the bars of one variant together; 1 is the way to the next


def plot_speeds(speeds: Sequence[Speed], title: str, ax: Axes | None = None) -> Axes:
    """Axes with a bar per batch size for each of `speeds`, the first on top.

    Raises:
        OptimizeError: nothing was timed.
    """
    speeds = [one for one in speeds if one.ratios]
    if not speeds:
        raise OptimizeError("the report has no times to plot: nothing was timed")
    batches = list(speeds[0].ratios)
    ax = _new_axes(len(speeds), len(batches)) if ax is None else ax
    for i, batch in enumerate(batches):
        _bars(ax, speeds, batch, (i + 0.5) / len(batches) - 0.5, _HEIGHT / len(batches), i)
    kept = ["" if math.isnan(one.agreement) else f"{one.agreement:.1%} kept, " for one in speeds]
    names = [f"{one.name}\n{k}{one.outcome}".strip() for one, k in zip(speeds, kept, strict=True)]
    ax.set_yticks(range(len(speeds)), names, parse_math=False)
    ax.invert_yaxis()
    ax.set_xlim(0, 1.45 * max(ratio for one in speeds for ratio in one.ratios.values()))
    ax.axvline(1, color="#767676", linewidth=0.8, linestyle=":")
    ax.set_xlabel(f"times as fast as {EAGER}")
    ax.set_title(title, parse_math=False)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _bars(
    ax: Axes, speeds: Sequence[Speed], batch: int, shift: float, height: float, shade: int
) -> None:
    """The bars of one batch size, `shift` beside the middle."""
    places = [i + _HEIGHT * shift for i in range(len(speeds))]
    colours = [(_CHOSEN if one.is_chosen else _OTHER)[min(shade, 1)] for one in speeds]
    bars = ax.barh(places, [one.ratios[batch] for one in speeds], 0.92 * height, color=colours)
    digits = lambda ms: f"{ms:.0f}" if ms >= 100 else f"{ms:.3g}"
    labels = [
        f"{ratio_text(one.ratios[batch])}  {digits(one.times[batch])} ms, batch {batch}"
        for one in speeds
    ]
    ax.bar_label(bars, labels, padding=4, fontsize="small")


def _new_axes(n: int, n_batches: int) -> Axes:
    import matplotlib.pyplot as plt

    size = (7.5, 0.9 + n * max(0.45, 0.24 * n_batches))
    return plt.subplots(figsize=size, layout="constrained")[1]
