"""Images as HALCON's scripts read and pass them: arrays."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from learnkit.data import image as images
from learnkit.errors import ImageReadError
from learnkit.halcon.errors import (
    H_ERR_DL_INPUT_WRONG_TYPE,
    H_ERR_DL_INPUT_WRONG_VALUES,
    operator_error,
)
from learnkit.halcon.operators import as_tuple, operator
from learnkit.storage.array_files import array_shape
from learnkit.storage.filesystem import open_regular

RANGE_MIN, RANGE_MAX = -127.0, 128.0
_SHIFT = 127  # scale_image (Image, Image, 1, -127)
_GREY = {"1", "L", "LA", "I", "F", "I;16", "I;16B", "I;16L"}


@operator("Image")
def read_image(file_name: Any) -> Any:
    """The image of a file, or a list of images of several: uint8, (H, W) or (H, W, C).

    C is 3, or as many as a .npy file or a TIFF file of more than four samples has.
    """
    if isinstance(file_name, str | os.PathLike):
        return pixels_of(file_name)
    return [pixels_of(one) for one in as_tuple(file_name)]


def pixels_of(file: str | os.PathLike[str], channels: int | None = None) -> np.ndarray:
    """The pixels of a file: uint8, (H, W) or (H, W, C); `channels` is None for those it has."""
    if not isinstance(file, str | os.PathLike):
        raise ImageReadError(f"`file_name` is {file!r:.80}; it is the name of a file")
    # a copy: an array laid over an image of Pillow's cannot be written to
    return np.array(images.read_image(file, channels=channels or _channels(file)))


def _channels(file: str | os.PathLike[str]) -> int:
    kind, mode, *_ = images.image_kind(file)
    if kind == "array":
        with open_regular(file) as opened:
            # an array (H, W) has one channel
            return (*array_shape(opened), 1)[2]
    return 1 if mode in _GREY else 3


@operator("Image")
def himage_from_numpy_array(array: np.ndarray) -> np.ndarray:
    """The array itself: images are arrays here."""
    return np.asarray(array)


@operator("Array")
def himage_as_numpy_array(himage: np.ndarray) -> np.ndarray:
    """The array itself."""
    return np.asarray(himage)


@operator("Width", "Height")
def get_image_size(image: np.ndarray) -> tuple[int, int]:
    """(width, height) of an image."""
    height, width = as_bytes(image, "`image`").shape[:2]
    return width, height


def images_in(value: Any) -> list[Any]:
    """The images meant: one, a list of them, or an array (N, H, W, C)."""
    if isinstance(value, np.ndarray):
        # more than 16 are no channels but columns, of grey images (N, H, W)
        is_one = value.ndim == 2 or (value.ndim == 3 and value.shape[-1] <= 16)
        return [value] if is_one else list(value)
    if isinstance(value, str | os.PathLike | Image.Image) or not isinstance(value, Sequence):
        return [value]
    return as_tuple(value, nested=True)


def as_bytes(image: Any, where: str) -> np.ndarray:
    """An image's grey values as uint8 (H, W[, C]), as it was read.

    Floats are taken for what `scale_image (Image, Image, 1, -127)` makes and are shifted back; that
    is exact. No other float image is believed: whether 0.5 is half of white or nearly black,
    nothing in the image tells.

    Raises:
        HOperatorError: 7790, no array or of another type; 7791, grey values outside the range, or
            floats that were not shifted.
    """
    try:
        pixels = np.asarray(image)
    except ValueError:  # numbers of several lengths
        pixels = np.asarray(None)
    is_image = pixels.ndim in (2, 3) and 0 not in pixels.shape
    if is_image and pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype.kind != "f" or not is_image:
        raise operator_error(
            H_ERR_DL_INPUT_WRONG_TYPE,
            f"{where} has an 'image' of type {pixels.dtype} and shape {pixels.shape}; pass it as "
            "it was read: uint8, (height, width) or (height, width, channels)",
        )
    # in float32 a fraction of 1e-6 is lost in this sum, and would pass for a whole grey value
    shifted = pixels.astype(np.float64) + _SHIFT
    # NaN equals nothing; floats from 0 on may be grey values that nobody shifted
    exact = np.array_equal(shifted, np.rint(shifted)) and pixels.min(initial=0) < 0
    if not exact or shifted.min(initial=0) < 0 or shifted.max(initial=0) > 255:
        low, high = (float(f(pixels)) for f in (np.min, np.max)) if pixels.size else (0.0, 0.0)
        raise operator_error(
            H_ERR_DL_INPUT_WRONG_VALUES,
            f"{where} has an 'image' of floats in {low:.4g}..{high:.4g}, which are not grey values "
            f"shifted by -{_SHIFT} into {RANGE_MIN:.0f}..{RANGE_MAX:.0f}; pass the image as it was "
            "read, the network scales it",
        )
    return shifted.astype(np.uint8)
