"""How a dataset looks: a grid of its images, and a table of its counts.

`Display` is a base of `ImageDataset`.
"""

import html
import math
from typing import Any

import numpy as np

from learnkit.data.image import read_image
from learnkit.errors import DataError, ImageReadError

_MAX_ROWS = 30


class Display:
    """`show` and the notebook table of `ImageDataset`."""

    def show(
        self, n: int = 9, *, seed: int | None = 42, axes: Any = None, side: float = 2.0
    ) -> np.ndarray:
        """Array of matplotlib axes with `n` images and their labels; unreadable ones say so.

        Args:
            n: Number of images, at most; fewer when the dataset is smaller.
            seed: Of the drawing by lot; None takes the first `n`.
            axes: Axes to draw on, one per image; None makes a figure.
            side: Inches per image in that figure.
        """
        if not isinstance(n, int) or n < 1:
            raise DataError(f"`n` is {n!r}; it must be a positive integer")
        n = min(n, len(self))
        shown = self.filter(np.arange(len(self)) < n) if seed is None else self.sample(n, seed)
        axes = _grid(max(n, 1), side) if axes is None else np.atleast_1d(axes)
        for axis in axes.flat:
            axis.axis("off")
        for axis, path, label in zip(axes.flat, shown.paths, shown.labels, strict=False):
            _show_image(axis, path)
            title = label if isinstance(label, str) else ", ".join(label)
            axis.set_title(title, fontsize="small", parse_math=False)
        return axes

    def _repr_html_(self) -> str:
        """HTML table of images per class and split, for notebooks."""
        counts = self.counts()
        head = "".join(f"<th>{name}</th>" for name in counts.columns)
        rows = zip(counts.index[:_MAX_ROWS], counts.to_numpy(), strict=False)
        body = "".join(_html_row(name, numbers) for name, numbers in rows)
        if len(counts) > _MAX_ROWS:
            body += f"<tr><td>and {len(counts) - _MAX_ROWS} more classes</td></tr>"
        return (
            f"<div><b>{len(self)} images, {self.n_classes} classes</b> in "
            f"<code>{html.escape(str(self.root))}</code>"
            f"<table><tr><th>class</th>{head}</tr>{body}</table></div>"
        )


def _html_row(name: str, numbers: np.ndarray) -> str:
    cells = "".join(f"<td>{number}</td>" for number in numbers)
    return f"<tr><td>{html.escape(name)}</td>{cells}</tr>"


def _grid(n: int, side: float) -> np.ndarray:
    import matplotlib.pyplot as plt

    n_cols = math.ceil(math.sqrt(n))
    n_rows = math.ceil(n / n_cols)
    size = (side * n_cols, (side + 0.25) * n_rows)
    return plt.subplots(n_rows, n_cols, figsize=size, squeeze=False, layout="constrained")[1]


def _show_image(axis: Any, path: Any) -> None:
    try:
        axis.imshow(read_image(path))
    except ImageReadError:
        axis.text(0.5, 0.5, "unreadable", ha="center", va="center", transform=axis.transAxes)
