"""Pictures of a dataset: a grid of its images, and a table of its counts."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from learnkit.data.image import read_image
from learnkit.data.labels import Label
from learnkit.errors import ImageReadError
from learnkit.report.document import Document, Paragraph, Span, frame_table
from learnkit.report.figure_text import figure_names
from learnkit.report.notebook import AxesArray

_MAX_ROWS = 30


def show_images(
    paths: Sequence[Path], labels: Sequence[Label], *, axes: Any = None, side: float = 2.0
) -> np.ndarray:
    """Array of matplotlib axes with the images and their labels; unreadable ones say so.

    Args:
        paths: The files.
        labels: One per file.
        axes: Axes to draw on, one per image; None makes a figure.
        side: Inches per image in that figure.
    """
    axes = _grid(max(len(paths), 1), side) if axes is None else np.atleast_1d(axes)
    for axis in axes.flat:
        axis.axis("off")
    titles = [label if isinstance(label, str) else ", ".join(label) for label in labels]
    lines, style = figure_names(
        [line for title in titles for line in title.split("\n")],
        round(16 * side),  # characters that fit above an image
    )
    cut = iter(lines)
    for axis, path, title in zip(axes.flat, paths, titles, strict=False):
        try:
            axis.imshow(read_image(path))
        except ImageReadError:
            axis.text(0.5, 0.5, "unreadable", ha="center", va="center", transform=axis.transAxes)
        shown = "\n".join(next(cut) for _ in title.split("\n"))
        axis.set_title(shown, fontsize="small", **style)
    return axes


def counts_document(counts: pd.DataFrame, n_images: int, root: Path, skipped: str = "") -> Document:
    """Images per class and split, and what was `skipped`."""
    head = Span(f"{n_images} images, {len(counts)} classes", "strong")
    table = frame_table(counts, "class", max_rows=_MAX_ROWS, rest="classes")
    more = (f"; skipped {skipped}",) if skipped else ()
    return Document([Paragraph((head, " in ", Span(str(root), "code"), *more)), table])


def _grid(n: int, side: float) -> np.ndarray:
    import matplotlib.pyplot as plt

    n_cols = math.ceil(math.sqrt(n))
    n_rows = math.ceil(n / n_cols)
    size = (side * n_cols, (side + 0.25) * n_rows)
    options = {"figsize": size, "squeeze": False, "layout": "constrained"}
    return plt.subplots(n_rows, n_cols, **options)[1].view(AxesArray)
