"""Plots of an interpretation and of a training: arrays in, Axes out, over numbers made elsewhere.

Functions of one picture take `ax=` and return it; functions of several return an array of Axes. No
rc parameter is touched, and the colours are told apart by colour-blind readers (Okabe and Ito).
Below the plots stands the canvas they share: figures made to measure, colours, grid lines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from learnkit.errors import InterpretationError
from learnkit.report.figure_text import figure_names
from learnkit.report.notebook import AxesArray

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from learnkit.evaluation.measures import CalibrationBins


# Okabe and Ito's palette: told apart by colour-blind readers.
BLUE, VERMILION, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#767676"
_MAX_CELLS = 32  # classes up to which the numbers in the cells can be read
_MISTAKES = "Oranges"
_FAINT = (0.5, 0.5, 0.5, 0.15)  # seen on light and on dark paper
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

    A cell's colour is its share of its row, whatever the classes' sizes; mistakes have a hue of
    their own, and zeros are blank. Beyond 32 classes only those with mistakes are drawn, at most 32
    of the commonest mistakes, in their order; below the title stands what was left out.

    Args:
        confusion: counts.
        classes: C names; long ones are cut where they differ.
        ax: where to draw; a new figure whose size follows the classes drawn if None.
        normalize: write shares of each row instead of counts; rows without samples are grey.
        title: of the Axes.
        cmap: colours of what is right, light for few.
        norm_dec: decimals of the shares.
        plot_txt: write the numbers into the cells, up to 32 classes.
        figsize: of the new figure, in inches.
    """
    confusion = np.asarray(confusion)
    rows = _classes_of_mistakes(confusion)
    names, style = figure_names(classes)
    names, n = [names[i] for i in rows], len(rows)
    totals = confusion.sum(1, keepdims=True)  # of rows; NaN in those without samples
    # `where` computes both: without the maximum numpy would warn of 0 / 0
    shares = np.where(totals > 0, confusion / np.maximum(totals, 1), np.nan)[np.ix_(rows, rows)]
    counts = confusion[np.ix_(rows, rows)]
    # compressed: cells are square, and beside such axes `constrained` leaves gaps
    ax = ax or new_axes(figsize or (_matrix_side(n) + 0.6, _matrix_side(n)), layout="compressed")
    written = plot_txt and n <= _MAX_CELLS
    layers = _draw_cells(ax, shares, cmap)
    _name_both_axes(ax, names, style)
    ax.set(xlabel="Predicted", ylabel="Actual")
    ax.set_title("\n".join([title, *_left_out(confusion, rows)]), parse_math=False)
    ax.spines[:].set_color("none")
    if written:
        _write_cells(ax, shares, counts, layers, norm_dec if normalize else None)
        return ax
    for layer, what in zip(
        layers, ("right", "mistakes")[: 1 + bool(_n_wrong(counts))], strict=False
    ):
        bar = ax.figure.colorbar(layer, ax=ax, fraction=0.046, pad=0.03)
        bar.set_label(f"{what}: share of the row")
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
    """Draw one 2 x 2 matrix per label from (C, 2, 2) counts; return the Axes (C,).

    Beyond 32 labels only those with mistakes are drawn, at most 32 of the most.
    """
    confusions = np.asarray(confusions)
    mistakes = confusions[:, 0, 1] + confusions[:, 1, 0]
    drawn, (names, style) = _most(mistakes), figure_names(classes, 24)
    axes = axes_grid(len(drawn), n_cols=min(5, len(drawn) or 1), cell=(2.3, 2.4), figsize=figsize)
    options = {"normalize": normalize, "cmap": cmap, "norm_dec": norm_dec, "plot_txt": plot_txt}
    for ax, i in zip(axes, drawn, strict=True):
        plot_confusion(confusions[i], ["no", "yes"], ax=ax, **options)
        ax.set_title(names[i], **style)
    if len(axes):
        note = _left_out_note(mistakes, drawn, "labels")
        axes[0].figure.suptitle("\n".join([title, *note]), parse_math=False)
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
    style: Mapping[str, Any] | None = None,
) -> np.ndarray:
    """Draw images in a grid, nearly square, and return the Axes (n,).

    Where there is a heatmap, the image stands alone to the left of the one under the map.

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
        style: keywords for the titles, as `figure_names` gives them with names.
    """
    titles = titles or [""] * len(images)
    heatmaps = heatmaps if heatmaps is not None else [None] * len(images)
    n_lines = 1 + max((text.count("\n") for text in titles), default=0)
    wide = 2 if any(heat is not None and np.max(heat) > 0 for heat in heatmaps) else 1
    n_cols = n_cols or max(1, int(np.ceil(np.sqrt(len(images) / wide))))
    cell = (2.6 if wide == 1 else 4.2, (2.5 if wide == 1 else 2.1) + 0.17 * n_lines)
    axes = axes_grid(len(images), n_cols=n_cols, cell=cell, figsize=figsize)
    style = {"parse_math": False} if style is None else style
    for ax, image, text, heat in zip(axes, images, titles, heatmaps, strict=True):
        _draw_image(ax, np.asarray(image), heat, alpha=alpha, cmap=cmap)
        ax.set_title(text, fontsize=9, linespacing=1.25, **style)
        ax.axis("off")
    if suptitle and len(axes):
        axes[0].figure.suptitle(f"{suptitle}\n", fontsize=9, color=GREY, parse_math=False)
    return axes


def _draw_image(
    ax: Axes, image: np.ndarray, heat: np.ndarray | None, *, alpha: float, cmap: str
) -> None:
    """Draw an image (H, W[, 3]); where its map has evidence, beside itself under the map."""
    if heat is None or np.max(heat) <= 0:
        ax.imshow(image, cmap="gray", vmin=0, vmax=1)
        return
    (h, w), left = image.shape[:2], max(1, image.shape[1] // 24)
    colors = np.repeat(image[..., None], 3, 2) if image.ndim == 2 else image
    opaque = np.concatenate([colors, np.ones((h, w, 1))], 2)
    pair = np.concatenate([opaque, np.zeros((h, left, 4)), opaque], 1)
    ax.imshow(pair, extent=(-w - left - 0.5, w - 0.5, h - 0.5, -0.5))
    draw_heatmap(ax, heat, (h, w), alpha=alpha, cmap=cmap)
    ax.set_xlim(-w - left - 0.5, w - 0.5)  # drawing the map has set it to the map's


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


def _most(mistakes: np.ndarray) -> list[int]:
    """Places of all values if they are few or all zero, else of the largest, in order."""
    if len(mistakes) <= _MAX_CELLS or not mistakes.any():
        return list(range(len(mistakes)))
    largest = np.argsort(-mistakes, kind="stable")[:_MAX_CELLS]
    return sorted(i for i in largest.tolist() if mistakes[i])


def _classes_of_mistakes(confusion: np.ndarray) -> list[int]:
    """The classes to draw: all if they are few or never taken for each other, else of mistakes.

    Commonest mistakes first, as long as both classes find a place.
    """
    off = confusion - np.diag(np.diag(confusion))
    if len(off) <= _MAX_CELLS or not off.any():
        return list(range(len(off)))
    rows, columns = np.nonzero(off)
    order = np.argsort(-off[rows, columns], kind="stable")
    chosen: set[int] = set()
    for pair in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if len(chosen.union(pair)) <= _MAX_CELLS:
            chosen.update(pair)
    return sorted(chosen)


def _n_wrong(confusion: np.ndarray) -> int:
    return int(confusion.sum() - np.trace(confusion))


def _left_out(confusion: np.ndarray, rows: Sequence[int]) -> list[str]:
    """A line on the classes that are not drawn, and on mistakes there; none if all are."""
    n, n_wrong = len(confusion), _n_wrong(confusion)
    if len(rows) == n:
        return [] if n_wrong or not confusion.any() else ["no mistakes"]
    hidden = n_wrong - _n_wrong(confusion[np.ix_(rows, rows)])
    return [
        f"{len(rows)} of {n:,} classes, those of the commonest mistakes",
        f"left out: {n - len(rows):,} classes, {hidden:,} of {n_wrong:,} mistakes",
    ]


def _left_out_note(mistakes: np.ndarray, drawn: Sequence[int], what: str) -> list[str]:
    if len(drawn) == len(mistakes):
        return []
    hidden = int(mistakes.sum() - mistakes[drawn].sum())
    return [
        f"{len(drawn)} of {len(mistakes):,} {what}, those of the most mistakes; {hidden:,} of "
        f"{int(mistakes.sum()):,} mistakes are of the others"
    ]


def _draw_cells(ax: Axes, shares: np.ndarray, cmap: Any) -> tuple[Any, Any]:
    """The images of what is right and of mistakes, each in its colours; zeros are in neither."""
    import matplotlib as mpl
    from matplotlib.colors import PowerNorm

    empty, diagonal = np.isnan(shares), np.eye(len(shares), dtype=bool)
    drawn = []
    # the square root of a share grows sooner: rare mistakes must be seen by their colour
    for colors, gamma, others in ((cmap, 1.0, ~diagonal), (_MISTAKES, 0.5, diagonal)):
        values = np.ma.masked_where(empty | (shares == 0) | others, shares)
        colors = mpl.colormaps[colors] if isinstance(colors, str) else colors
        scale = PowerNorm(gamma, vmin=0, vmax=1)
        drawn.append(ax.imshow(values, cmap=colors, norm=scale, interpolation="nearest"))
    if empty.any():
        ax.imshow(np.where(empty[..., None], _FAINT, 0.0), interpolation="nearest")
    return drawn[0], drawn[1]


def _write_cells(
    ax: Axes,
    shares: np.ndarray,
    counts: np.ndarray,
    layers: tuple[Any, Any],
    decimals: int | None,
) -> None:
    """Write each number but zero into its cell, in a colour that can be read there."""
    size = float(np.clip(150 / max(len(shares), 1), 5.5, 11))
    for (row, column), share in np.ndenumerate(shares):
        if np.isnan(share):
            text, color = ("" if decimals is None else "–"), GREY
        elif share == 0:
            continue
        else:
            text = f"{counts[row, column]}" if decimals is None else f"{share:.{decimals}f}"
            layer = layers[row != column]
            red, green, blue, _ = layer.cmap(layer.norm(share))
            # how light it is to the eye: the luma of ITU-R BT.601
            is_dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.55
            color = "white" if is_dark else "black"
        if text:
            ax.text(column, row, text, ha="center", va="center", color=color, fontsize=size)


def _name_both_axes(ax: Axes, names: Sequence[str], style: Mapping[str, Any]) -> None:
    """Write the class names along both sides of a matrix, as many as fit."""
    from rich.cells import cell_len

    n = len(names)
    step = int(np.ceil(n / _MAX_TICKS)) or 1
    ticks = np.arange(0, n, step)
    names = [names[i] for i in ticks]
    room = 50 * _matrix_side(n) / max(len(ticks), 1)  # points per name
    size = float(np.clip(0.62 * room, 5.5, 10))
    ax.set_yticks(ticks, names, fontsize=size, **style)
    flat = max(map(cell_len, names), default=0) * size * 0.6 < room
    turn = (
        {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if n <= 20 else {"rotation": 90}
    )
    ax.set_xticks(ticks, names, fontsize=size, **style, **({} if flat else turn))
    ax.tick_params(length=0 if step == 1 else 2)


def _matrix_side(n: int) -> float:
    """Return a side in inches that leaves every class a legible row."""
    return float(np.clip(2.2 + 0.42 * n, 3.4, 13))


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
    # rather than draw fewer ticks than `min_n_ticks`, matplotlib takes fractions
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.margins(y=0.08)
    if len(curves.columns) > 1:
        ax.legend(frameon=False, fontsize=9)
    lighten(ax)


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


def ink() -> str:
    """The colour of text where figures are made now: dark on light paper, light on dark."""
    from matplotlib import rcParams

    return rcParams["text.color"]


def lighten(ax: Axes) -> None:
    """Leave of the frame and the grid only what helps to read values."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color=GREY, alpha=0.2, linewidth=0.8)
    ax.set_axisbelow(True)


def new_axes(figsize: tuple[float, float], *, layout: str = "constrained") -> Axes:
    """Return the Axes of a new figure of this size in inches."""
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=figsize, layout=layout)[1]


def axes_grid(
    n: int, *, n_cols: int, cell: tuple[float, float], figsize: tuple[float, float] | None
) -> np.ndarray:
    """Return `n` Axes of a new figure, (n,); what is left over of the last row stays blank."""
    import matplotlib.pyplot as plt

    if n == 0:
        return np.empty(0, dtype=object).view(AxesArray)
    n_rows = int(np.ceil(n / n_cols))
    size = figsize or (cell[0] * n_cols, cell[1] * n_rows + 0.4)
    axes = plt.subplots(n_rows, n_cols, figsize=size, layout="constrained", squeeze=False)[
        1
    ].ravel()
    for ax in axes[n:]:
        ax.axis("off")
    return axes[:n].view(AxesArray)
