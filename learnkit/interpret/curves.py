"""Curves over epochs and confidences: training history and reliability."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from learnkit.errors import InterpretationError
from learnkit.interpret.canvas import (
    BLUE,
    GREEN,
    GREY,
    VERMILION,
    axes_grid,
    ink,
    lighten,
    new_axes,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from learnkit.evaluation.measures import CalibrationBins


def plot_history(
    frame: pd.DataFrame,
    *,
    ax: Axes | Sequence[Axes] | None = None,
    figsize: tuple[float, float] | None = None,
) -> Axes | np.ndarray:
    """Draw losses, errors and metrics per epoch.

    Args:
        frame: one row per epoch; columns epoch, train_loss, valid_loss, train_error, valid_error
            and any metrics, whichever of them exist.
        ax: one Axes for the losses alone, or as many as there are panels.
        figsize: of the new figure, in inches.

    Returns:
        The given single Axes, else the Axes of all panels (n,).

    Raises:
        InterpretationError: nothing was trained yet, or `ax` has the wrong number of Axes.
    """
    panels = history_panels(frame)
    if not panels:
        raise InterpretationError(
            "`frame` has no epoch with a loss or a metric; train first, for example `learn.fit(1)`"
        )
    alone = hasattr(ax, "plot")
    panels = panels[:1] if alone else panels
    if ax is None:
        size = figsize or (4.6 * len(panels), 3.4)
        axes = axes_grid(len(panels), n_cols=len(panels), cell=size, figsize=size)
    else:
        axes = np.array([ax] if alone else ax, dtype=object)
    if len(axes) != len(panels):
        raise InterpretationError(
            f"`ax` has {len(axes)} Axes for {len(panels)} panels ({', '.join(dict(panels))})"
        )
    epochs = frame["epoch"].to_numpy() if "epoch" in frame else np.arange(1, len(frame) + 1)
    for panel_ax, (name, columns) in zip(axes, panels, strict=True):
        _draw_curves(panel_ax, name, epochs, frame[columns])
    return ax if alone else axes


def history_panels(frame: pd.DataFrame) -> list[tuple[str, list[str]]]:
    """Return (name, columns) of the panels a history needs; shares have one together."""
    known = {"fit", "epoch", "lr", "time", "seconds"}
    columns = [c for c in frame.columns if frame[c].dtype.kind in "fiu" and frame[c].notna().any()]
    losses = [c for c in ("train_loss", "valid_loss") if c in columns]
    errors = [c for c in ("train_error", "valid_error") if c in columns]
    metrics = [c for c in columns if c not in {*known, *losses, *errors}]
    shares = [c for c in metrics if frame[c].min() >= 0 and frame[c].max() <= 1]
    panels = [("loss", losses), ("error", errors)]
    panels += [(shares[0] if len(shares) == 1 else "metrics", shares)]
    panels += [(c, [c]) for c in metrics if c not in shares]
    return [(name, group) for name, group in panels if group]


def plot_reliability(
    bins: CalibrationBins, *, ax: Axes | None = None, title: str = "Reliability"
) -> Axes:
    """Draw accuracy over confidence per bin and the ideal diagonal; return the Axes.

    Darker points hold more samples.

    Args:
        bins: what `learnkit.evaluation.measures.calibration_bins` returns.
        ax: where to draw; a new figure if None.
        title: of the Axes.
    """
    ax = ax or new_axes((4.2, 4.0))
    filled = bins.n > 0
    share = bins.n[filled] / max(1, bins.n.sum())
    accuracy, edges = bins.accuracy[filled], np.flatnonzero(filled) / len(bins.n)
    bars = {"width": 1 / len(bins.n), "align": "edge", "edgecolor": "white", "alpha": 0.35}
    ax.bar(edges, accuracy, color=BLUE, label="accuracy", **bars)
    ax.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--", label="ideal")
    points = {"s": 20 + 180 * np.sqrt(share), "label": "bin (area: samples)", "zorder": 3}
    ax.scatter(bins.confidence[filled], accuracy, color=BLUE, **points)
    ax.set(title=title, xlabel="Confidence", ylabel="Accuracy", xlim=(0, 1), ylim=(0, 1.03))
    ax.set_aspect("equal")
    ax.legend(frameon=False, loc="upper left", fontsize=8, markerscale=0.6)
    lighten(ax)
    return ax


def _draw_curves(ax: Axes, name: str, epochs: np.ndarray, curves: pd.DataFrame) -> None:
    """Draw one line per column; training blue, validation vermilion, the rest in turn."""
    from matplotlib.ticker import MaxNLocator

    further = iter([GREEN, "#CC79A7", "#56B4E9", "#E69F00", ink()] * len(curves.columns))
    for column in curves:
        kind = column.split("_")[0]
        color = {"train": BLUE, "valid": VERMILION}.get(kind) or next(further)
        label = column.removesuffix(f"_{name}") if kind in ("train", "valid") else column
        marker = "o" if len(epochs) <= 20 else None
        ax.plot(epochs, curves[column], color=color, label=label, marker=marker, markersize=3.5)
    ax.set(title=name, xlabel="epoch")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.margins(y=0.08)
    if len(curves.columns) > 1:
        ax.legend(frameon=False, fontsize=9)
    lighten(ax)
