"""Geometry of a resize: the part of an image that is kept, what lies beyond its edge; as fastai."""

import math

import numpy as np
from PIL import Image

from learnkit.errors import ImageReadError

METHODS = ("crop", "squish", "pad")
_NUMPY_PAD = {"zeros": "constant", "border": "edge", "reflection": "reflect"}
PAD_MODES = tuple(_NUMPY_PAD)
RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

Box = tuple[int, int, int, int]


def centred_box(
    size: tuple[int, int], target: tuple[int, int], method: str, crop: float = 1.0
) -> Box:
    """(left, top, right, bottom) of what is resized to `target`; reaches outside for "pad".

    Args:
        size: (width, height) of the image.
        target: (width, height) wanted in the end.
        method: "crop" is the largest box of the target's aspect inside the image, "pad" the
            smallest around it, "squish" the image.
        crop: Factor on the sides of that box.

    >>> centred_box((60, 40), (10, 10), "crop"), centred_box((60, 40), (10, 10), "pad")
    ((10, 0, 50, 40), (0, -10, 60, 50))
    """
    box: tuple[float, float] = size
    if method != "squish":
        ratios = [have / want for have, want in zip(size, target, strict=True)]
        scale = max(ratios) if method == "pad" else min(ratios)
        box = (scale * target[0], scale * target[1])
    # Truncation, and truncation again for the corner, is what fastai does; it lets a side become 0.
    width, height = (max(1, int(side * crop)) for side in box)
    left, top = int(0.5 * (size[0] - width)), int(0.5 * (size[1] - height))
    return left, top, left + width, top + height


def check_padding(size: tuple[int, int], box: Box, max_pixels: int) -> None:
    """Raise ImageReadError if padding a thin image to `box` would take more than `max_pixels`."""
    width, height = box[2] - box[0], box[3] - box[1]
    if width * height > max(max_pixels, math.prod(size)):
        raise ImageReadError(
            f"image of {size[0]} x {size[1]} would be padded to {width} x {height}, over "
            f"`max_pixels={max_pixels}`; use method 'squish' or 'crop'"
        )


def cut(image: Image.Image, box: Box, pad_mode: str = "zeros") -> Image.Image:
    """The pixels in `box`; those outside the image are filled in as `pad_mode` says."""
    left, top, right, bottom = box
    width, height = image.size
    inner = (max(left, 0), max(top, 0), min(right, width), min(bottom, height))
    if inner != (0, 0, width, height):
        image = image.crop(inner)
    if inner == box:
        return image
    pads = [(inner[1] - top, bottom - inner[3]), (inner[0] - left, right - inner[2]), (0, 0)]
    pixels = np.asarray(image)
    return Image.fromarray(np.pad(pixels, pads[: pixels.ndim], mode=_NUMPY_PAD[pad_mode]))
