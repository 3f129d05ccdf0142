"""Test-time augmentation (TTA): probabilities averaged over flips and crops of an image.

In numpy and Pillow alone, so that a model gives the same with torch and without.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from learnkit.errors import PredictionError

Array = np.ndarray

VIEWS = 10  # the image, four crops and their middle, each of them also mirrored
KEY = "tta"  # of a model's metadata, which travel in its bundle
_CROP = 7 / 8  # of the sides
_CORNERS = ((0.5, 0.5), (0, 0), (1, 1), (0, 1), (1, 0))  # top and left, as shares of what is cut


def checked_views(n: Any) -> int:
    """`n` if it is a number of views; else PredictionError."""
    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= VIEWS:
        raise PredictionError(
            f"`tta` is {n!r}; give from how many views an image is predicted: 1, the image as it "
            f"is, to {VIEWS}"
        )
    return n


def with_views(metadata: Mapping[str, Any], n: int) -> dict[str, Any]:
    """The metadata of a model that predicts from `n` views by itself."""
    kept = {key: value for key, value in metadata.items() if key != KEY}
    return kept if checked_views(n) == 1 else {**kept, KEY: n}


def view(images: Array, number: int) -> Array:
    """One view of images uint8 (N, H, W, channels), of their size; 0 is the images as they are.

    Odd numbers are mirrored left to right; from 2 on they are crops of 7/8 of the sides, enlarged:
    the middle first, then the corners, opposite ones in turn.

    >>> view(np.arange(4, dtype=np.uint8).reshape(1, 1, 4, 1), 1).flatten().tolist()
    [3, 2, 1, 0]
    """
    if number >= 2:
        images = _crops(images, *_CORNERS[number // 2 - 1])
    return np.ascontiguousarray(images[:, :, ::-1]) if number % 2 else images


def _crops(images: Array, top: float, left: float) -> Array:
    height, width = images.shape[1:3]
    y, x = top * (1 - _CROP) * height, left * (1 - _CROP) * width
    box = (x, y, x + _CROP * width, y + _CROP * height)
    how = {"size": (width, height), "resample": Image.Resampling.BILINEAR, "box": box}
    planes = [
        np.stack([np.asarray(Image.fromarray(plane).resize(**how)) for plane in image], -1)
        for image in images.transpose(0, 3, 1, 2)
    ]
    return np.stack(planes)
