"""Boxes in HALCON's coordinates and in the image's: rectangles, edges and corners.

In HALCON's, (row, col) = (0, 0) is the middle of the first pixel. In the image's, (x, y) = (0, 0)
is the upper left corner of that pixel, as in COCO: x = col + 0.5, y = row + 0.5.

Datasets hold boxes in the image: upright ones as edges (x0, y0, x1, y1), rotated ones as
(x, y, length1, length2, phi), the middle, half edges, and HALCON's angle. They are converted where
they are read and where they are written, here, and nowhere else.
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
UPRIGHT, ROTATED = "boxes", "rotated_boxes"  # columns of a dataset
FIELDS = {UPRIGHT: "(x0, y0, x1, y1)", ROTATED: "(x, y, length1, length2, phi)"}
_DIGITS = 9  # decimals of a pixel
_HALF = 0.5  # pixels from the corner of a pixel to its middle
_SAME = 1e-6  # of the box's size: what corners may be off a rectangle


def edges_of_rectangles(rectangles: Any) -> np.ndarray:
    """Edges (x0, y0, x1, y1), float64 (N, 4), of (row1, col1, row2, col2), HALCON's rectangle1.

    Raises:
        DataError: `rectangles` is not (N, 4), is not finite, or a box ends before it begins.

    >>> edges_of_rectangles([[1.5, 4.5, 4.5, 9.5]]).tolist()  # rows 2 to 4, columns 5 to 9
    [[5.0, 2.0, 10.0, 5.0]]
    """
    return _rounded(_ordered(rectangles, "rectangles")[:, [1, 0, 3, 2]] + _HALF)


def rectangles_of_edges(edges: Any) -> np.ndarray:
    """HALCON's rectangle1 (row1, col1, row2, col2), float64 (N, 4), of edges (x0, y0, x1, y1).

    Raises:
        DataError: `edges` is not (N, 4), is not finite, or a box ends before it begins.
    """
    return _rounded(_ordered(edges, "edges")[:, [1, 0, 3, 2]] - _HALF)


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
    # arctan2 gives -pi for -0.0, as `-first[1]` is of a level edge
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


def rotated_of_rectangles(rectangles: Any) -> np.ndarray:
    """Rotated boxes (x, y, length1, length2, phi), float64 (N, 5), of HALCON's rectangle2.

    >>> rotated_of_rectangles([[3, 7, 0.5, 2.5, 1.5]]).tolist()
    [[7.5, 3.5, 2.5, 1.5, 0.5]]
    """
    row, col, phi, length1, length2 = _finite(rectangles, (5,), "rectangles").T
    return np.stack([_rounded(col + _HALF), _rounded(row + _HALF), length1, length2, phi], 1)


def rectangles_of_rotated(rotated: Any) -> np.ndarray:
    """HALCON's rectangle2 (row, col, phi, length1, length2), float64 (N, 5), of rotated boxes."""
    x, y, length1, length2, phi = _finite(rotated, (5,), ROTATED).T
    return np.stack([_rounded(y - _HALF), _rounded(x - _HALF), phi, length1, length2], 1)


def corners_of_rotated(rotated: Any) -> np.ndarray:
    """Corners (x, y), float64 (N, 4, 2), of rotated boxes; see `corners_of_rectangles`."""
    return corners_of_rectangles(rectangles_of_rotated(rotated))


def written(values: Any) -> list[Any]:
    """Coordinates as lists of plain numbers, to a billionth of a pixel.

    >>> written([0.1 + 0.2, -0.0])
    [0.3, 0.0]
    """
    found: list[Any] = _rounded(np.asarray(values, float)).tolist()
    return found


def checked_boxes(kind: str, boxes: Any, where: str) -> tuple[tuple[float, ...], ...]:
    """The boxes of one image as tuples of numbers.

    Args:
        kind: `UPRIGHT` or `ROTATED`.
        boxes: Rows of four or five numbers each; none is fine.
        where: The image, for messages.

    Raises:
        DataError: A box has another form, is not finite or has no area; or an angle is in degrees.
    """
    n = FIELDS[kind].count(",") + 1
    try:
        found = np.asarray([] if boxes is None else list(boxes), float)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"{where} has {kind!r} {boxes!r:.80}; it is a list of {FIELDS[kind]}"
        ) from error
    found = found.reshape(0, n) if not found.size else found
    if found.ndim != 2 or found.shape[1] != n:
        raise DataError(f"{where} has {kind!r} {boxes!r:.80}; it is a list of {FIELDS[kind]}")
    for i, box in enumerate(found.tolist()):
        if problem := _problem(kind, box):
            raise DataError(f"{where} has {kind!r}[{i}] {box}; {problem}")
    return tuple(tuple(box) for box in found.tolist())


def _problem(kind: str, box: list[float]) -> str:
    if not np.isfinite(box).all():
        return "all its numbers must be finite"
    if kind == UPRIGHT:
        empty = box[0] >= box[2] or box[1] >= box[3]
        return "x0 lies left of x1, y0 above y1: it has no area, remove or mend it" * empty
    if min(box[2:4]) <= 0:
        return "half edges are above 0: it has no area, remove or mend it"
    return "phi is in radians, and lies in -2 pi..2 pi" * (abs(box[4]) > 2 * np.pi)


def enclosing(kind: str, boxes: Any) -> np.ndarray:
    """Edges (x0, y0, x1, y1), float64 (N, 4), of the upright boxes around boxes of either kind."""
    if kind == UPRIGHT:
        return _finite(boxes, (4,), UPRIGHT)
    corners = corners_of_rotated(boxes)
    return np.concatenate([corners.min(1), corners.max(1)], 1)


def outside(kind: str, boxes: Any, size: tuple[int, int]) -> np.ndarray:
    """Share of each box, float64 (N,), that lies outside an image of (width, height).

    Of rotated boxes the upright ones around them count.
    """
    x0, y0, x1, y1 = enclosing(kind, boxes).T
    width, height = (
        np.maximum(0, np.minimum(high, side) - np.maximum(low, 0))
        for low, high, side in ((x0, x1, size[0]), (y0, y1, size[1]))
    )
    return 1 - width * height / ((x1 - x0) * (y1 - y0))


def smallest_rectangle(points: np.ndarray) -> tuple[float, ...]:
    """The rotated box of least area around points (x, y); length1 >= length2, phi in (-pi/2, pi/2].

    One of its sides lies on a side of the convex hull (Freeman and Shapira, 1975).

    >>> smallest_rectangle(np.array([[0, 0], [4, 0], [4, 2], [0, 2]]))
    (2.0, 1.0, 2.0, 1.0, 0.0)
    """
    hull = _hull(np.unique(np.asarray(points, float), axis=0))
    sides = np.roll(hull, -1, axis=0) - hull
    along = sides / np.hypot(*sides.T)[:, None]
    across = np.stack([-along[:, 1], along[:, 0]], 1)
    places = np.stack([hull @ along.T, hull @ across.T])  # (2, points, sides)
    low, high = places.min(1), places.max(1)
    lengths = (high - low) / 2
    best = int(np.argmin(np.round(lengths.prod(0), _DIGITS)))
    middle = (low + high)[:, best] / 2
    centre = middle[0] * along[best] + middle[1] * across[best]
    length1, length2 = lengths[:, best]
    direction = along[best]
    if length1 < length2:
        length1, length2, direction = length2, length1, across[best]
    phi = np.arctan2(-direction[1], direction[0])
    phi = phi - np.pi * (phi > np.pi / 2 + 1e-12) + np.pi * (phi <= -np.pi / 2 + 1e-12)
    return tuple(written([*centre, length1, length2, phi]))


def _hull(points: np.ndarray) -> np.ndarray:
    """Convex hull of points in ascending order (Andrew's monotone chain)."""
    chains = []
    for ordered in (points, points[::-1]):
        chain: list[np.ndarray] = []
        for point in ordered:
            while len(chain) > 1:
                (ax, ay), (bx, by) = chain[-1] - chain[-2], point - chain[-1]
                if ax * by - ay * bx > 0:
                    break
                chain.pop()
            chain.append(point)
        chains += chain[:-1]
    return np.array(chains)


def _rounded(values: np.ndarray) -> np.ndarray:
    """To a billionth of a pixel: so half a pixel added and taken away again leaves no trace."""
    return np.round(values, _DIGITS) + 0.0


def _ordered(values: Any, name: str) -> np.ndarray:
    found = _finite(values, (4,), name)
    if (wrong := np.flatnonzero((found[:, :2] > found[:, 2:]).any(1))).size:
        raise DataError(
            f"`{name}[{wrong[0]}]` is {found[wrong[0]].tolist()}; the first two lie before the last"
        )
    return found


def _finite(values: Any, shape: tuple[int, ...], name: str) -> np.ndarray:
    try:
        found = np.asarray(values, float)
    except (TypeError, ValueError, OverflowError) as error:  # the last: a huge int
        raise DataError(f"`{name}` is {values!r:.80}; it must be rows of numbers") from error
    if found.size == 0:
        return np.empty((0, *shape))
    if found.shape[1:] != shape or found.ndim != len(shape) + 1:
        wanted = ", ".join(map(str, shape))
        raise DataError(f"`{name}` has the shape {found.shape}; it must be (N, {wanted})")
    if (wrong := np.flatnonzero(~np.isfinite(found).reshape(len(found), -1).all(1))).size:
        raise DataError(f"`{name}[{wrong[0]}]` is {found[wrong[0]].tolist()}; it must be finite")
    return found
