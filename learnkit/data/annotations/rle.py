"""COCO's segmentations: run lengths, compressed or not, and polygons, as masks and back.

The rules are pycocotools': runs go down the columns and begin with zeros; a polygon is drawn in
steps of a fifth of a pixel, and has the pixels whose middles an odd number of edges lies above.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from learnkit.errors import DataError

_SCALE = 5  # steps a pixel, of the boundary of a polygon
_MIDDLE = 2  # of them, where the middle of a pixel lies
_CHUNK = 1_000_000  # points of a boundary at a time
_FURTHEST = 1e8  # pixels: beyond, steps of a boundary would not fit
_MOST_BITS = 12  # characters of one number in compressed run lengths: 60 bits


def mask_of_segmentation(segmentation: Any, size: tuple[int, int], where: str) -> np.ndarray:
    """The pixels of an object, bool (height, width), of COCO's polygons or run lengths.

    Args:
        segmentation: A list of polygons [x, y, x, y, ...] in pixels, whose union it is; or
            {"size": [height, width], "counts": a list or a compressed text}.
        size: (height, width) of the image.
        where: Names it in messages.

    Raises:
        DataError: It is none of these, its size is another one, its runs do not fill it, or a
            boundary is longer than the image has pixels.
    """
    check_segmentation(segmentation, size, where)
    if isinstance(segmentation, Mapping):
        counts = _counts(segmentation["counts"], where)
        values = np.zeros(len(counts), bool)
        values[1::2] = True
        return np.repeat(values, counts).reshape(size[::-1]).T
    found = np.zeros(size, bool)
    for polygon in segmentation:
        found |= _polygon_mask(np.reshape(np.asarray(polygon, float), (-1, 2)), size, where)
    return found


def segmentation_of_mask(mask: np.ndarray) -> dict[str, Any]:
    """Compressed run lengths of a mask (height, width): {"size": [height, width], "counts": text}.

    >>> segmentation_of_mask(np.array([[0, 1], [0, 1]]))
    {'size': [2, 2], 'counts': '22'}
    """
    flat = np.asarray(mask, bool).T.reshape(-1)
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff([0, *changes, flat.size]).tolist()
    counts = [0, *counts] if flat.size and flat[0] else counts
    return {"size": list(np.shape(mask)), "counts": _compressed(counts)}


def segmentations_of_numbers(numbers: np.ndarray, n: int) -> list[dict[str, Any]]:
    """`segmentation_of_mask(numbers == i)` for i in 1..n, in one pass over (height, width).

    >>> segmentations_of_numbers(np.array([[0, 2], [1, 2]]), 2)[1]
    {'size': [2, 2], 'counts': '22'}
    """
    flat = numbers.T.reshape(-1)
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    ends = np.append(starts[1:], flat.size)
    order = np.argsort(flat[starts], kind="stable")
    first = np.searchsorted(flat[starts][order], np.arange(1, n + 2))
    found = []
    for i in range(n):
        runs = order[first[i] : first[i + 1]]
        edges = np.stack([starts[runs], ends[runs]], 1).reshape(-1)
        counts = np.diff([0, *edges, flat.size]).tolist()
        # an object that reaches the last pixel: no zeros follow it
        if not counts[-1] and len(counts) > 1:
            counts.pop()
        found.append({"size": list(numbers.shape), "counts": _compressed(counts)})
    return found


def check_segmentation(segmentation: Any, size: tuple[int, int] | None, where: str) -> None:
    """Return if it is COCO's polygons or run lengths of an image of this size; nothing is drawn.

    Raises:
        DataError: It is neither; the message says what of it.
    """
    if isinstance(segmentation, Mapping):
        _check_runs(segmentation, size, where)
        return
    if not isinstance(segmentation, Sequence) or isinstance(segmentation, str):
        raise DataError(
            f"{where} is {segmentation!r:.80}; it is a list of polygons, or 'size' and 'counts'"
        )
    for number, polygon in enumerate(segmentation):
        listed = isinstance(polygon, Sequence) and not isinstance(polygon, str)
        if not listed or len(polygon) < 6 or len(polygon) % 2:
            raise DataError(
                f"{where}[{number}] is {polygon!r:.80}; a polygon is a list x, y, x, y, ... of "
                "three points or more"
            )
        if wrong := [one for one in polygon if not _is_place(one)]:
            raise DataError(f"{where}[{number}] has {wrong[0]!r:.40}; coordinates are numbers")


def _is_place(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and abs(value) <= _FURTHEST  # NaN is not; `isfinite` raises for a huge int


def _check_runs(runs: Mapping[str, Any], size: tuple[int, int] | None, where: str) -> None:
    told = runs.get("size")
    whole = isinstance(told, Sequence) and len(told) == 2 and all(type(n) is int for n in told)
    if not whole or min(told) < 1:
        raise DataError(f"{where} has 'size' {told!r:.80}; it is [height, width] of the image")
    if size is not None and tuple(told) != tuple(size):
        raise DataError(f"{where} has 'size' {list(told)}; its image has {list(size)}")
    total = sum(_counts(runs.get("counts"), where))
    if total != told[0] * told[1]:
        raise DataError(
            f"{where} has 'counts' of {total} pixels; its 'size' {list(told)} has "
            f"{told[0] * told[1]}"
        )


def _counts(counts: Any, where: str) -> list[int]:
    if isinstance(counts, str):
        counts = _decompressed(counts, where)
    if not isinstance(counts, Sequence) or any(type(n) is not int or n < 0 for n in counts):
        raise DataError(
            f"{where} has 'counts' {counts!r:.80}; they are whole numbers from 0 on, or a text"
        )
    return list(counts)


def _compressed(counts: Sequence[int]) -> str:
    """COCO's text of run lengths: differences to the last but one, five bits a character."""
    text = []
    for i, count in enumerate(counts):
        # from the fourth run on only, as in pycocotools' `rleToString`
        rest, more = count - (counts[i - 2] if i > 2 else 0), True
        while more:
            bits = rest & 31
            rest >>= 5
            # the fifth bit of the last character is the sign: no more than that needs saying
            more = rest != (-1 if bits & 16 else 0)
            text.append(chr(bits + 32 * more + 48))
    return "".join(text)


def _decompressed(text: str, where: str) -> list[int]:
    counts: list[int] = []
    number = length = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or length >= _MOST_BITS:
            raise DataError(f"{where} has 'counts' {text!r:.80}, no run lengths in COCO's text")
        number |= (bits & 31) << 5 * length
        length += 1
        if bits & 32:
            continue
        if bits & 16:
            number -= 1 << 5 * length
        counts.append(number + (counts[-2] if len(counts) > 2 else 0))
        number = length = 0
    if length:
        raise DataError(f"{where} has 'counts' {text!r:.80}, which end within a number")
    return counts


def _polygon_mask(points: np.ndarray, size: tuple[int, int], where: str) -> np.ndarray:
    height, width = size
    # as in C: towards zero, not down
    ends = np.trunc(_SCALE * points + 0.5).astype(np.int64)
    edges = np.concatenate([ends, np.roll(ends, -1, axis=0)], 1)
    steps = np.maximum(np.abs(edges[:, 2] - edges[:, 0]), np.abs(edges[:, 3] - edges[:, 1])) + 1
    if (length := int(steps.sum()) // _SCALE) > 2 * height * width + 8 * (height + width) + 1000:
        raise DataError(
            f"{where} has a boundary of {length:,} pixels in an image of {width} x {height}; no "
            "object has such a one"
        )
    # a row more: an edge below the image changes no pixel
    changes = np.zeros((width, height + 1), bool)
    begin = 0
    while begin < len(edges):
        end = begin + max(1, int(np.searchsorted(steps[begin:].cumsum(), _CHUNK)))
        columns, rows = _crossings(edges[begin:end], steps[begin:end], size)
        # `at`: by indexing, a place that is crossed twice would be turned once
        np.logical_xor.at(changes, (columns, rows), True)
        begin = end
    return np.logical_xor.accumulate(changes, axis=1)[:, :height].T


def _crossings(
    edges: np.ndarray, steps: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """(column, row) of each place where a boundary crosses the middle of a column of pixels."""
    height, width = size
    x0, y0, x1, y1 = edges.T
    wide = np.abs(x1 - x0) >= np.abs(y1 - y0)
    flip = np.where(wide, x0 > x1, y0 > y1)
    low_x, high_x = np.where(flip, x1, x0), np.where(flip, x0, x1)
    low_y, high_y = np.where(flip, y1, y0), np.where(flip, y0, y1)
    rise = np.where(wide, high_y - low_y, high_x - low_x) / np.maximum(steps - 1, 1)
    edge = np.repeat(np.arange(len(edges)), steps)
    at = np.arange(len(edge)) - np.repeat(np.cumsum(steps) - steps, steps)
    at = np.where(flip[edge], steps[edge] - 1 - at, at)
    # the sums in this order: rounding is pycocotools', too
    low = np.where(wide, low_y, low_x)[edge]
    across = np.trunc(low + rise[edge] * at + 0.5).astype(np.int64)
    u = np.where(wide[edge], at + low_x[edge], across)
    v = np.where(wide[edge], across, at + low_y[edge])
    moved = np.flatnonzero((u[1:] != u[:-1]) & (edge[1:] == edge[:-1])) + 1
    left, top = np.minimum(u[moved], u[moved - 1]), np.minimum(v[moved], v[moved - 1])
    column, rest = np.divmod(left - _MIDDLE, _SCALE)
    inside = (rest == 0) & (column >= 0) & (column < width)
    row = np.ceil((top[inside] + 0.5) / _SCALE - 0.5)
    return column[inside], np.clip(row, 0, height).astype(np.int64)
