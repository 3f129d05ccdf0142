"""Canvas of the plots: figures made to measure, readable names, safe colours."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from learnkit.report.notebook import AxesArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette: told apart by colour-blind readers.
BLUE, VERMILION, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#767676"


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
