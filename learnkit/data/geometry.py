"""Geometry of an image on its way to the network: which pixels, at which size, by which filter.

Every method is fastai's on validation images, pixel for pixel, without fastai: "crop", "squish" and
"pad" are its `Resize`, "keep" its `CropPad`, "grid" the resampling of its batch transforms.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from learnkit.errors import DataError, ImageReadError

METHODS = ("crop", "squish", "pad", "keep", "grid")
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
_MAX_SIDE = 16_384
_MAX_AREA = 50_000_000  # as of images that are read
_CHOICES = {"method": METHODS, "interpolation": tuple(RESAMPLING), "pad_mode": PAD_MODES}

if TYPE_CHECKING:
    import torch

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Resizing:
    """One change of an image's size; see `Preprocessing`, whose last one its own fields are.

    Args:
        size: (height, width) of the result; one integer means a square.
        method: "crop", "squish", "pad", "keep" or "grid".
        crop: Share of the sides of what is cut out that is kept; 1 for all but "crop", "squish".
        interpolation: Pillow's filter, by name; "keep" and "grid" need none.
        pad_mode: "zeros", "border" or "reflection": what "pad" and "keep" fill with.

    Raises:
        DataError: A field breaks its rule; the message names it.
    """

    size: tuple[int, int]
    method: str = "crop"
    crop: float = 1.0
    interpolation: str = "bilinear"
    pad_mode: str = "zeros"

    def __post_init__(self) -> None:
        size = (self.size,) * 2 if isinstance(self.size, int) else self.size
        object.__setattr__(self, "size", tuple(size) if isinstance(size, list) else size)
        check_resizing(self)

    def __call__(self, image: Image.Image, max_pixels: int) -> Image.Image:
        """PIL image of `size` and the same mode.

        Raises:
            ImageReadError: The image is so long and thin that padding would exceed `max_pixels`.
        """
        height, width = self.size
        if self.method == "grid":
            return _on_grid(image, self.size)
        box = centred_box(image.size, (width, height), self.method, self.crop)
        if self.method == "pad":
            check_padding(image.size, box, max_pixels)
        image = cut(image, box, self.pad_mode)
        if self.method == "keep":
            return image
        return image.resize((width, height), RESAMPLING[self.interpolation])

    def to_dict(self) -> dict[str, Any]:
        """Every field as JSON types."""
        return {**dataclasses.asdict(self), "size": list(self.size)}


class Planes:
    """An image of any number of channels: as much of Pillow's as changes of size need.

    Args:
        channels: One grey image of Pillow's for each, of one size.
    """

    def __init__(self, channels: Sequence[Image.Image]):
        self.channels, self.size = tuple(channels), channels[0].size
        self.mode = f"{len(self.channels)} channels"

    def crop(self, box: Box) -> Planes:
        """What lies in the box, of each channel."""
        return Planes([one.crop(box) for one in self.channels])

    def resize(self, size: tuple[int, int], resample: Any) -> Planes:
        """Each channel in another size."""
        return Planes([one.resize(size, resample) for one in self.channels])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.stack([np.asarray(one) for one in self.channels], axis=-1).astype(dtype or "u1")


def image_of_pixels(pixels: np.ndarray) -> Any:
    """The image of uint8 (H, W) or (H, W, C): Pillow's where C is 1 or 3, else `Planes`."""
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    if pixels.ndim == 2 or pixels.shape[2] == 3:
        return Image.fromarray(np.ascontiguousarray(pixels))
    planes = np.ascontiguousarray(np.moveaxis(pixels, -1, 0))
    return Planes([Image.fromarray(plane) for plane in planes])


def is_tensor(value: Any) -> bool:
    """Whether `value` is a torch tensor; torch is not imported to ask."""
    torch = sys.modules.get("torch")
    return isinstance(value, getattr(torch, "Tensor", ()))


def pixels_last(source: np.ndarray | torch.Tensor) -> np.ndarray:
    """Array view (H, W, C) of an image array or tensor; other shapes come back with other axes."""
    if is_tensor(source):
        array = source.detach().cpu().numpy()
        return array.transpose(1, 2, 0) if array.ndim == 3 else array[None, None]
    return source[..., None] if source.ndim == 2 else source


def eight_bits(values: np.ndarray, bits: int, name: str) -> np.ndarray:
    """uint8 of the same shape, 0..2^bits-1 mapped to 0..255 and rounded to nearest."""
    top = 2**bits - 1
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > top:
        raise ImageReadError(
            f"image {name} has values {low}..{high}, outside the 0..{top} of `bit_depth={bits}`; "
            "declare the bits it really uses"
        )
    # 65535 * 255 fits 32 bits, more bits do not; adding half the divisor rounds to nearest.
    wide = values.astype(np.uint32 if bits <= 16 else np.uint64)
    return ((wide * 255 + top // 2) // top).astype(np.uint8)


def check_resizing(one: Any) -> None:
    """Raise DataError at the first of the fields of a `Resizing` that breaks its rule."""
    size = one.size
    if not (
        isinstance(size, tuple)
        and len(size) == 2
        and all(type(side) is int and 1 <= side <= _MAX_SIDE for side in size)
    ):
        raise DataError(f"`size` is {size!r}; it must be (height, width) in 1..{_MAX_SIDE}")
    if math.prod(size) > _MAX_AREA:
        raise DataError(f"`size` is {size!r}; it must have {_MAX_AREA:,} pixels at most")
    for name, allowed in _CHOICES.items():
        value = getattr(one, name)
        if type(value) is not str or value not in allowed:
            raise DataError(f"`{name}` is {value!r}; it must be one of {allowed}")
    if type(one.crop) not in (int, float) or not 0 < one.crop <= 1:
        raise DataError(f"`crop` is {one.crop!r}; it must be a share in (0, 1]")
    if one.method not in ("crop", "squish") and one.crop != 1:
        raise DataError(
            f"`crop` is {one.crop!r} with `method={one.method!r}`, which cuts nothing; use 1"
        )


def centred_box(
    size: tuple[int, int], target: tuple[int, int], method: str, crop: float = 1.0
) -> Box:
    """(left, top, right, bottom) of what is resized to `target`; may reach outside.

    Args:
        size: (width, height) of the image.
        target: (width, height) wanted in the end.
        method: "crop" is the largest box of the target's aspect inside the image, "pad" the
            smallest around it, "squish" the image, "keep" a box of the target's size.
        crop: Factor on the sides of that box.

    >>> centred_box((60, 40), (10, 10), "crop"), centred_box((60, 40), (10, 10), "pad")
    ((10, 0, 50, 40), (0, -10, 60, 50))
    >>> centred_box((60, 5), (10, 10), "keep")
    (25, -3, 35, 7)
    """
    if method == "keep":
        left, top = ((have - want) // 2 for have, want in zip(size, target, strict=True))
        return left, top, left + target[0], top + target[1]
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
    return image_of_pixels(np.pad(pixels, pads[: pixels.ndim], mode=_NUMPY_PAD[pad_mode]))


def _on_grid(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resampled at `size` (height, width) points from corner to corner, rounded to 8 bits."""
    pixels = np.asarray(image, dtype=np.float32)
    height, width = pixels.shape[:2]
    # fastai averages first where the image shrinks by more than half; it compares these sides.
    factor = min(height / size[1], width / 2) / 2
    factor = factor if factor > 1 else 1.0
    rows = _grid_weights(height, size[0], factor)
    columns = _grid_weights(width, size[1], factor)
    found = np.tensordot(columns, np.tensordot(rows, pixels, (1, 0)), (1, 1))
    found = np.moveaxis(found, 0, 1)
    return image_of_pixels(np.rint(found).clip(0, 255).astype(np.uint8))


@lru_cache(maxsize=64)
def _grid_weights(n: int, wanted: int, factor: float) -> np.ndarray:
    """Weights (wanted, n) of one axis: means of windows, then between neighbours of these."""
    m = math.floor(n * (1 / factor)) if factor > 1 else n
    means = np.zeros((m, n))
    for i in range(m):
        # the windows of adaptive average pooling, by which torch resizes in mode "area"
        window = slice(i * n // m, -(-(i + 1) * n // m))
        means[i, window] = 1 / (window.stop - window.start)
    places = np.linspace(0, m - 1, wanted) if wanted > 1 else np.array([(m - 1) / 2])
    low = np.minimum(places.astype(int), max(m - 2, 0))
    share, points = places - low, np.arange(wanted)
    between = np.zeros((wanted, m))
    between[points, low] = 1 - share
    between[points, np.minimum(low + 1, m - 1)] += share
    return (between @ means).astype(np.float32)
