"""Boxes in HALCON's coordinates and in the image's: rectangles, edges and corners.

In HALCON's, (row, col) = (0, 0) is the middle of the first pixel. In the image's, (x, y) = (0, 0)
is the upper left corner of that pixel, as in COCO: x = col + 0.5, y = row + 0.5.
"""

from typing import Any

import numpy as np

from learnkit.errors import DataError

__all__ = [  # both ways, for whatever reads or draws boxes
    "corners_of_rectangles",
    "edges_of_rectangles",
    "rectangles_of_corners",
    "rectangles_of_edges",
]
_HALF = 0.5  # pixels from the corner of a pixel to its middle
_SAME = 1e-6  # of the box's size: what corners may be off a rectangle


def edges_of_rectangles(rectangles: Any) -> np.ndarray:
    """Edges (x0, y0, x1, y1), float64 (N, 4), of (row1, col1, row2, col2), HALCON's rectangle1.

    Raises:
        DataError: `rectangles` is not (N, 4), is not finite, or a box ends before it begins.

    >>> edges_of_rectangles([[1.5, 4.5, 4.5, 9.5]]).tolist()  # rows 2 to 4, columns 5 to 9
    [[5.0, 2.0, 10.0, 5.0]]
    """
    return _ordered(rectangles, "rectangles")[:, [1, 0, 3, 2]] + _HALF


def rectangles_of_edges(edges: Any) -> np.ndarray:
    """HALCON's rectangle1 (row1, col1, row2, col2), float64 (N, 4), of edges (x0, y0, x1, y1).

    Raises:
        DataError: `edges` is not (N, 4), is not finite, or a box ends before it begins.
    """
    return _ordered(edges, "edges")[:, [1, 0, 3, 2]] - _HALF


def corners_of_rectangles(rectangles: Any) -> np.ndarray:
    """Corners (x, y), float64 (N, 4, 2), of (row, col, phi, length1, length2), HALCON's rectangle2.

    Lengths are half edges. Phi is counter-clockwise from the x axis, in radians; the way from the
    first corner to the second has its direction. Corners go round clockwise as seen: at phi 0 upper
    left, upper right, lower right, lower left.

    Raises:
        DataError: `rectangles` is not (N, 5), is not finite, or a length is below 0.
    """
    row, col, phi, length1, length2 = _finite(rectangles, (5,), "rectangles").T
    if (wrong := np.flatnonzero((length1 < 0) | (length2 < 0))).size:
        raise DataError(
            f"`rectangles[{wrong[0]}]` has the lengths {length1[wrong[0]]}, {length2[wrong[0]]}; "
            "half edges are 0 or more"
        )
    along = length1[:, None] * np.stack([np.cos(phi), -np.sin(phi)], 1)
    across = length2[:, None] * np.stack([np.sin(phi), np.cos(phi)], 1)
    ends = (-along - across, along - across, along + across, -along + across)
    return np.stack([col, row], 1)[:, None] + _HALF + np.stack(ends, 1)


def rectangles_of_corners(corners: Any) -> np.ndarray:
    """HALCON's rectangle2 (row, col, phi, length1, length2), float64 (N, 5), of four corners.

    Phi is in (-pi, pi]. The inverse of `corners_of_rectangles`.

    Raises:
        DataError: `corners` is not (N, 4, 2), is not finite, or a box has no right angles or goes
            round the other way.
    """
    corners = _finite(corners, (4, 2), "corners")
    x, y = corners.mean(1).T - _HALF
    first, second = (corners[:, 1] - corners[:, 0]).T, (corners[:, 2] - corners[:, 1]).T
    length1, length2 = np.hypot(*first) / 2, np.hypot(*second) / 2
    # the longer edge has the direction that rounding disturbs less
    phi = np.where(
        length1 >= length2, np.arctan2(-first[1], first[0]), np.arctan2(second[0], second[1])
    )
    phi = np.where(phi <= -np.pi, np.pi, phi)
    found = np.stack([y, x, phi, length1, length2], 1)
    off = np.abs(corners_of_rectangles(found) - corners).max((1, 2), initial=0)
    size = np.maximum(np.abs(corners).max((1, 2), initial=0), 1)
    if (wrong := np.flatnonzero(off > _SAME * size)).size:
        raise DataError(
            f"`corners[{wrong[0]}]` is {corners[wrong[0]].tolist()}, no rectangle; its corners go "
            "round clockwise as seen, at right angles"
        )
    return found


def _ordered(values: Any, name: str) -> np.ndarray:
    found = _finite(values, (4,), name)
    if (wrong := np.flatnonzero((found[:, :2] > found[:, 2:]).any(1))).size:
        raise DataError(
            f"`{name}[{wrong[0]}]` is {found[wrong[0]].tolist()}; the first two lie before the last"
        )
    return found


def _finite(values: Any, shape: tuple[int, ...], name: str) -> np.ndarray:
    found = np.asarray(values, float)
    if found.size == 0:
        return np.empty((0, *shape))
    if found.shape[1:] != shape or found.ndim != len(shape) + 1:
        wanted = ", ".join(map(str, shape))
        raise DataError(f"`{name}` has the shape {found.shape}; it must be (N, {wanted})")
    if (wrong := np.flatnonzero(~np.isfinite(found).reshape(len(found), -1).all(1))).size:
        raise DataError(f"`{name}[{wrong[0]}]` is {found[wrong[0]].tolist()}; it must be finite")
    return found
