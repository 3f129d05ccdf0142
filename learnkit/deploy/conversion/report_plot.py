"""The picture of a conversion report: how fast, and at what price."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from learnkit.deploy.conversion.report_rows import EAGER, word
from learnkit.deploy.conversion.report_speeds import Speed, speeds_of
from learnkit.errors import OptimizeError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from learnkit.deploy.conversion.report import ConversionReport

_CHOSEN, _OTHER = ("#0072B2", "#80b8d8"), ("#767676", "#bdbdbd")  # first batch size, others
_HEIGHT = 0.8  # of the bars of one variant together; 1 is the way to the next


def plot_speeds(report: ConversionReport, ax: Axes | None = None) -> Axes:
    """Axes with a bar per variant and batch size: times as fast as eager torch."""
    speeds = [one for one in speeds_of(report) if one.ratios]
    if not speeds:
        raise OptimizeError("the report has no times to plot: nothing was timed")
    batches = list(speeds[0].ratios)
    ax = _new_axes(len(speeds), len(batches)) if ax is None else ax
    height = _HEIGHT / len(batches)
    for i, one in enumerate(speeds):
        for j, batch in enumerate(batches):
            y = i + (j - (len(batches) - 1) / 2) * height
            colour = (_CHOSEN if one.is_chosen else _OTHER)[min(j, 1)]
            bars = ax.barh(y, one.ratios[batch], height * 0.92, color=colour)
            label = f"{one.ratios[batch]:.1f}x  {_digits(one.medians[batch])} ms, batch {batch}"
            ax.bar_label(bars, [label], padding=4, fontsize="small")
    ax.set_yticks(range(len(speeds)), [_label(one) for one in speeds], parse_math=False)
    ax.invert_yaxis()
    return _dressed(ax, report, speeds)


def _digits(ms: float) -> str:
    return f"{ms:.0f}" if ms >= 100 else f"{ms:.3g}"


def _label(one: Speed) -> str:
    kept = "" if math.isnan(one.agreement) else f"{one.agreement:.1%} kept, "
    return "\n".join(part for part in (one.name, kept + one.outcome) if part)


def _new_axes(n: int, n_batches: int) -> Axes:
    import matplotlib.pyplot as plt

    size = (7.5, 0.9 + n * max(0.45, 0.24 * n_batches))
    return plt.subplots(figsize=size, layout="constrained")[1]


def _dressed(ax: Axes, report: ConversionReport, speeds: list[Speed]) -> Axes:
    top = max(ratio for one in speeds for ratio in one.ratios.values())
    ax.set_xlim(0, 1.45 * top)
    ax.axvline(1, color="#767676", linewidth=0.8, linestyle=":")
    ax.set_xlabel(f"times as fast as {EAGER}")
    ax.set_title(f"{report.variant} {word(report)}", parse_math=False)
    ax.spines[["top", "right"]].set_visible(False)
    return ax
