"""Masks and boxes drawn over their images, each class in a colour of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from learnkit.data.annotations.boxes import (
    ROTATED,
    UPRIGHT,
    corners_of_rotated,
)
from learnkit.data.annotations.masks import BACKGROUND, IGNORE
from learnkit.errors import DataError, ImageReadError
from learnkit.report.figure_text import figure_names

_ALPHA, _GREY = 0.45, (0.5, 0.5, 0.5, 0.6)
_PIXEL = 0.5  # in a picture of matplotlib's, (0, 0) is the middle of the first pixel
_LISTED = 12  # classes in a legend


class Overlay:
    """What is annotated on the images in the rows of a table, ready to be drawn over them.

    Args:
        rows: Of a dataset's table.
        mask_of: The mask of a row, or None.
        ids: Of the classes.
    """

    def __init__(
        self,
        rows: Sequence[Mapping[str, Any]],
        mask_of: Callable[[int], np.ndarray | None],
        ids: Mapping[str, int],
    ) -> None:
        self._rows, self._mask_of, self._ids = rows, mask_of, ids
        self._colours = class_colours(ids)

    def draw(self, i: int, axes: Any) -> None:
        """Draw the mask and the boxes of row i over the image on axes.

        A mask that cannot be read says so. Pixels of no class are grey, the background stays as it
        is. A line leads from the middle of a rotated box where it points.
        """
        row = self._rows[i]
        if row.get("mask") or "box_labels" in row:
            try:
                if (mask := self._mask_of(i)) is not None:
                    coloured = _coloured(mask, row, self._ids, self._colours)
                    axes.imshow(coloured, interpolation="nearest")
            except (DataError, ImageReadError):
                axes.text(0.5, 0.5, "mask unreadable", ha="center", transform=axes.transAxes)
        for name, corners in zip(row.get("box_labels", ()), _corners(row), strict=True):
            line = np.concatenate([corners, corners[:1]]) - _PIXEL
            axes.plot(*line.T, color=self._colours[name], linewidth=1.2)
            if ROTATED in row:
                ahead = np.stack([corners.mean(0), corners[1:3].mean(0)]) - _PIXEL
                axes.plot(*ahead.T, color=self._colours[name], linewidth=1.2)

    def add_legend(self, figure: Any) -> None:
        """Name classes beside their colours, of many the first; nothing if nothing is annotated."""
        from matplotlib.patches import Patch

        if not any("mask" in row or "box_labels" in row for row in self._rows):
            return
        names = [one for one in sorted(self._ids, key=self._ids.__getitem__) if one != BACKGROUND]
        texts, style = figure_names(names := names[:_LISTED])
        pairs = zip(names, texts, strict=True)
        patches = [Patch(color=self._colours[name], label=text) for name, text in pairs]
        place = {"loc": "outside lower center", "ncols": 6, "fontsize": "small"}
        for text in figure.legend(handles=patches, **place).get_texts():
            text.set(**style)


def class_colours(names: Mapping[str, int]) -> dict[str, tuple[float, ...]]:
    """A colour (r, g, b) in 0..1 for each class, in the order of ids; twenty, then again."""
    from matplotlib import colormaps

    colours = colormaps["tab20"].colors
    order = sorted(names, key=lambda name: names[name])
    shown = [name for name in order if name != BACKGROUND]
    # every second first: neighbours in this map are shades of one colour
    turns = [*range(0, 20, 2), *range(1, 20, 2)]
    return {name: tuple(colours[turns[i % 20]]) for i, name in enumerate(shown)} | {
        BACKGROUND: (0.5, 0.5, 0.5)
    }


def _coloured(
    mask: np.ndarray,
    row: Mapping[str, Any],
    ids: Mapping[str, int],
    colours: Mapping[str, tuple[float, ...]],
) -> np.ndarray:
    """float32 (H, W, 4) in 0..1."""
    found = np.zeros((*mask.shape, 4), np.float32)
    names = {number: name for name, number in ids.items()}
    if isinstance(row["label"], str):  # an anomaly: 1 is where the image is not good
        names = {1: row["label"]}
    for number in np.unique(mask).tolist():
        if number == IGNORE:
            found[mask == number] = _GREY
        elif (name := names.get(number, BACKGROUND)) != BACKGROUND:
            found[mask == number] = (*colours[name], _ALPHA)
    return found


def _corners(row: Mapping[str, Any]) -> np.ndarray:
    """The corners of boxes, (N, 4, 2), clockwise."""
    if ROTATED in row:
        return corners_of_rotated(row[ROTATED])
    edges = np.reshape(np.asarray(row.get(UPRIGHT, ()), float), (-1, 4))
    return edges[:, [[0, 1], [2, 1], [2, 3], [0, 3]]]
