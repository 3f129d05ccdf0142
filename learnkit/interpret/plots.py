"""Plots of an interpretation, arrays in, Axes out, each over numbers that stand elsewhere.

Functions of one picture take `ax=` and return it; functions of several return an array of Axes. No
rc parameter is touched, and the colours are told apart by colour-blind readers (Okabe and Ito).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from learnkit.interpret.canvas import GREY, axes_grid, new_axes, shorten
from learnkit.interpret.curves import plot_history as plot_history
from learnkit.interpret.curves import plot_reliability as plot_reliability

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MAX_CELLS_WITH_TEXT = 32  # classes up to which the numbers in the cells can be read
_MAX_TICKS = 60


def plot_confusion(
    confusion: np.ndarray,
    classes: Sequence[str],
    *,
    ax: Axes | None = None,
    normalize: bool = False,
    title: str = "Confusion matrix",
    cmap: str = "Blues",
    norm_dec: int = 2,
    plot_txt: bool = True,
    figsize: tuple[float, float] | None = None,
) -> Axes:
    """Draw a confusion matrix (C, C), rows the truth, and return the Axes.

    Args:
        confusion: counts.
        classes: C names; long ones are shortened; above 60 only every second (third, ...) is.
        ax: where to draw; a new figure whose size follows C if None.
        normalize: show shares of each row; rows without samples stay grey.
        title: of the Axes.
        cmap: colours, light for few.
        norm_dec: decimals of the shares.
        plot_txt: write the numbers into the cells, up to 32 classes.
        figsize: of the new figure, in inches.
    """
    import matplotlib as mpl
    from matplotlib.colors import PowerNorm

    confusion, n = np.asarray(confusion), len(classes)
    ax = ax or new_axes(figsize or (_matrix_side(n) + 0.6, _matrix_side(n)), layout="compressed")
    values = confusion.astype(float)
    if normalize:  # rows without samples become NaN, which the colours show as grey
        totals = confusion.sum(1, keepdims=True)
        values = np.where(totals > 0, values / np.maximum(totals, 1), np.nan)
    colors = mpl.colormaps[cmap].with_extremes(bad="#f0f0f0") if isinstance(cmap, str) else cmap
    top = 1.0 if normalize else max(1.0, np.nanmax(values, initial=0))
    written = plot_txt and n <= _MAX_CELLS_WITH_TEXT
    # Without numbers the rare mistakes must be seen by their colour: its square root grows sooner.
    scale = PowerNorm(1.0 if written else 0.5, vmin=0, vmax=top)
    image = ax.imshow(values, cmap=colors, norm=scale, interpolation="nearest")
    _name_both_axes(ax, classes)
    ax.set(title=title, xlabel="Predicted", ylabel="Actual")
    ax.spines[:].set_color("none")
    if written:
        _write_cells(ax, values, confusion, top, norm_dec if normalize else None)
    else:
        ax.figure.colorbar(image, ax=ax, fraction=0.046, pad=0.03)
    return ax


def plot_label_confusions(
    confusions: np.ndarray,
    classes: Sequence[str],
    *,
    normalize: bool = False,
    title: str = "Confusion matrix per label",
    cmap: str = "Blues",
    norm_dec: int = 2,
    plot_txt: bool = True,
    figsize: tuple[float, float] | None = None,
) -> np.ndarray:
    """Draw one 2 x 2 matrix per label from (C, 2, 2) counts; return the Axes (C,)."""
    axes = axes_grid(len(classes), n_cols=min(5, len(classes)), cell=(2.3, 2.4), figsize=figsize)
    for ax, matrix, name in zip(axes, confusions, classes, strict=True):
        options = {"normalize": normalize, "cmap": cmap, "norm_dec": norm_dec}
        plot_confusion(
            matrix, ["no", "yes"], ax=ax, title=shorten(name, 24), plot_txt=plot_txt, **options
        )
    if len(axes):
        axes[0].figure.suptitle(title)
    return axes


def plot_image_grid(
    images: Sequence[np.ndarray],
    titles: Sequence[str] | None = None,
    *,
    heatmaps: Sequence[np.ndarray | None] | None = None,
    alpha: float = 0.6,
    cmap: str = "magma",
    suptitle: str | None = None,
    n_cols: int | None = None,
    figsize: tuple[float, float] | None = None,
) -> np.ndarray:
    """Draw images in a grid, nearly square, and return the Axes (n,).

    Args:
        images: arrays (H, W) or (H, W, 3) in 0..1.
        titles: one text per image; may have several lines.
        heatmaps: one map (h, w), 0 or more, per image, or None for those without; stretched over
            the image bilinearly, each scaled to its own maximum.
        alpha: opacity of the heatmaps.
        cmap: colours of the heatmaps.
        suptitle: over the whole figure.
        n_cols: images per row.
        figsize: in inches.
    """
    titles = titles or [""] * len(images)
    heatmaps = heatmaps if heatmaps is not None else [None] * len(images)
    n_lines = 1 + max((text.count("\n") for text in titles), default=0)
    n_cols = n_cols or max(1, int(np.ceil(np.sqrt(len(images)))))
    axes = axes_grid(len(images), n_cols=n_cols, cell=(2.6, 2.5 + 0.17 * n_lines), figsize=figsize)
    for ax, image, text, heat in zip(axes, images, titles, heatmaps, strict=True):
        ax.imshow(image, cmap="gray", vmin=0, vmax=1)
        if heat is not None:
            draw_heatmap(ax, heat, np.shape(image)[:2], alpha=alpha, cmap=cmap)
        ax.set_title(text, fontsize=9, linespacing=1.25)
        ax.axis("off")
    if suptitle and len(axes):
        axes[0].figure.suptitle(f"{suptitle}\n", fontsize=9, color=GREY)
    return axes


def draw_heatmap(
    ax: Axes, heat: np.ndarray, size: tuple[int, int], *, alpha: float = 0.6, cmap: str = "magma"
) -> Axes:
    """Lay a map (h, w) over an image of `size` (H, W) already drawn on `ax`; return the Axes.

    A map without any evidence, zero everywhere, leaves the image unchanged.
    """
    if np.max(heat) > 0:
        extent = (-0.5, size[1] - 0.5, size[0] - 0.5, -0.5)
        options = {"alpha": alpha, "cmap": cmap, "vmin": 0, "vmax": np.max(heat)}
        ax.imshow(heat, extent=extent, interpolation="bilinear", **options)
    return ax


def _write_cells(
    ax: Axes, values: np.ndarray, counts: np.ndarray, top: float, decimals: int | None
) -> None:
    """Write each number into its cell, in a colour that can be read there; zeros stay faint."""
    size = float(np.clip(150 / max(len(values), 1), 5.5, 11))
    for (row, column), value in np.ndenumerate(values):
        if np.isnan(value):
            text, color = "–", GREY
        else:
            text = f"{counts[row, column]}" if decimals is None else f"{value:.{decimals}f}"
            color = "white" if value > 0.6 * top else "black" if value > 0 else "#b0b0b0"
        ax.text(column, row, text, ha="center", va="center", color=color, fontsize=size)


def _name_both_axes(ax: Axes, classes: Sequence[str]) -> None:
    """Write the class names along both sides of a matrix, as many as fit."""
    n = len(classes)
    step = int(np.ceil(n / _MAX_TICKS)) or 1
    ticks = np.arange(0, n, step)
    names = [shorten(classes[i]) for i in ticks]
    room = 50 * _matrix_side(n) / max(len(ticks), 1)  # points per name
    size = float(np.clip(0.62 * room, 5.5, 10))
    ax.set_yticks(ticks, names, fontsize=size)
    flat = max(map(len, names), default=0) * size * 0.6 < room
    turn = (
        {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if n <= 20 else {"rotation": 90}
    )
    ax.set_xticks(ticks, names, fontsize=size, **({} if flat else turn))
    ax.tick_params(length=0 if step == 1 else 2)


def _matrix_side(n: int) -> float:
    """Return a side in inches that leaves every class a legible row."""
    return float(np.clip(2.2 + 0.42 * n, 3.4, 13))
