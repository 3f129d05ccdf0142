"""Instances: single objects out of a mask that numbers them, with their boxes and run lengths."""

from __future__ import annotations

from typing import Any

import numpy as np

from learnkit.data.annotations.boxes import smallest_rectangle
from learnkit.data.annotations.rle import segmentations_of_numbers


def instances_of_mask(mask: np.ndarray, *, rotated: bool) -> list[dict[str, Any]]:
    """Each object of a mask, in the order of its numbers: {"number", "box", "segmentation"}.

    The box is (x0, y0, x1, y1), or, `rotated`, the smallest (x, y, length1, length2, phi) around
    the object's pixels; the segmentation COCO's run lengths.

    Args:
        mask: Whole numbers (H, W): 0 where no object is, and each object's own number.
        rotated: Which box.

    >>> instances_of_mask(np.array([[0, 7], [0, 7]]), rotated=False)[0]["box"]
    (1.0, 0.0, 2.0, 2.0)
    """
    from scipy.ndimage import find_objects

    numbers, compact = np.unique(mask, return_inverse=True)
    compact = compact.reshape(np.shape(mask)) + (numbers[0] != 0)  # 0 is no object
    places = find_objects(compact)
    return [
        {
            "number": int(numbers[i - (numbers[0] != 0)]),
            "box": _rotated(compact[place] == i, place) if rotated else _upright(place),
            "segmentation": segmentation,
        }
        for i, (place, segmentation) in enumerate(
            zip(places, segmentations_of_numbers(compact, len(places)), strict=True), 1
        )
    ]


def _upright(place: tuple[slice, ...]) -> tuple[float, ...]:
    rows, columns = place
    return tuple(map(float, (columns.start, rows.start, columns.stop, rows.stop)))


def _rotated(pixels: np.ndarray, place: tuple[slice, ...]) -> tuple[float, ...]:
    # the corners of the first and last pixel of each row hold the hull
    rows = np.flatnonzero(pixels.any(1))
    first = pixels[rows].argmax(1)
    last = pixels.shape[1] - pixels[rows, ::-1].argmax(1)
    ends = [np.stack([x, rows + more], 1) for x in (first, last) for more in (0, 1)]
    points = np.concatenate(ends)
    return smallest_rectangle(points + [place[1].start, place[0].start])
