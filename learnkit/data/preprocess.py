"""The one recipe from an image to the network's input, shared by training, cache and deployment.

`Preprocessing` is data: it compares equal, travels as JSON and holds no callable. Its geometry is
fastai's `Resize` on the validation split, pixel for pixel, without fastai. Up to the pixels it does
without torch, too.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from learnkit.data.geometry import RESAMPLING, centred_box, check_padding, cut
from learnkit.data.image import MAX_PIXELS, read_image
from learnkit.data.preprocess_checks import check_batch, check_recipe, finite_floats
from learnkit.errors import DataError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Preprocessing:
    """How a file becomes a float32 tensor (C, H, W): read, crop, resize, scale, normalise.

    Args:
        size: (height, width) of the result; one integer means a square.
        channels: 3 (RGB) or 1 (grey).
        mean: Per channel, of pixels in 0..1; None for no normalisation.
        std: Per channel, of pixels in 0..1; given exactly when `mean` is.
        method: "crop" cuts the largest centred box of the target's aspect, "squish" distorts, "pad"
            fills up to the target's aspect.
        crop: Share of that box's sides that is kept, in (0, 1]; 1 for "pad".
        interpolation: Pillow's filter for the one resize, by name.
        bit_depth: As in `read_image`.
        background: As in `read_image`.
        exif_transpose: As in `read_image`.
        pad_mode: "zeros", "border" or "reflection": what "pad" fills with.
        max_pixels: As in `read_image`.

    Raises:
        DataError: A field breaks its rule; the message names it.

    >>> Preprocessing(224) == Preprocessing.from_dict(Preprocessing(224).to_dict())
    True
    """

    size: tuple[int, int]
    channels: int = 3
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    method: str = "crop"
    crop: float = 1.0
    interpolation: str = "bilinear"
    bit_depth: int | None = None
    background: int | tuple[int, int, int] = 255
    exif_transpose: bool = True
    pad_mode: str = "zeros"
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        size = (self.size,) * 2 if isinstance(self.size, int) else self.size
        for name, value in [("size", _tuple(size)), ("background", _tuple(self.background))]:
            object.__setattr__(self, name, value)
        for name in ("mean", "std"):
            object.__setattr__(self, name, finite_floats(name, getattr(self, name)))
        check_recipe(self)

    def read(self, source: Any) -> Image.Image:
        """PIL image of `size`, mode "RGB" or "L", of anything `read_image` takes."""
        return self.resize(self.decode(source))

    def decode(self, source: Any) -> Image.Image:
        """PIL image in its original size, mode "RGB" or "L", of anything `read_image` takes."""
        return read_image(
            source,
            channels=self.channels,
            bit_depth=self.bit_depth,
            background=self.background,
            exif_transpose=self.exif_transpose,
            max_pixels=self.max_pixels,
        )

    def resize(self, image: Image.Image) -> Image.Image:
        """PIL image of `size` and the same mode: a centred cut or fill, then one resize.

        Raises:
            ImageReadError: The image is so long and thin that padding would exceed `max_pixels`.
        """
        height, width = self.size
        box = centred_box(image.size, (width, height), self.method, self.crop)
        if self.method == "pad":
            check_padding(image.size, box, self.max_pixels)
        image = cut(image, box, self.pad_mode)
        return image.resize((width, height), RESAMPLING[self.interpolation])

    def pixels(self, source: Any) -> np.ndarray:
        """uint8 array (H, W, C), contiguous and its own memory, of anything `read_image` takes."""
        pixels = np.array(self.read(source), order="C")
        return pixels[..., None] if pixels.ndim == 2 else pixels

    def load(self, source: Any) -> torch.Tensor:
        """uint8 tensor (C, H, W), contiguous and its own memory, of anything `read_image` takes."""
        return to_tensor(self.read(source))

    def normalize(self, batch: torch.Tensor) -> torch.Tensor:
        """float32 of the same shape, `(x / 255 - mean) / std`; floats are taken as divided already.

        Args:
            batch: uint8 in 0..255 or floats in 0..1, (N, C, H, W) or (C, H, W); left unchanged.

        Raises:
            InputSizeError: The number of channels is another one.
            DataError: Floats leave 0..1, or the type is neither uint8 nor float.
        """
        import torch

        check_batch(batch, self.channels)
        x = batch.as_subclass(torch.Tensor).to(torch.float32, copy=True)
        if batch.dtype == torch.uint8:
            x.div_(255)
        if self.mean is None:
            return x
        mean, std = (x.new_tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return x.sub_(mean).div_(std)

    def __call__(self, source: Any) -> torch.Tensor:
        """float32 tensor (C, H, W), normalised: what the network sees of `source`."""
        return self.normalize(self.load(source))

    def replace(self, **changes: Any) -> Preprocessing:
        """The same recipe with some fields changed."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Every field as JSON types; `from_dict` gives an equal recipe back."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: list(v) if isinstance(v, tuple) else v for name, v in fields.items()}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Preprocessing:
        """The recipe that `to_dict` wrote; fields left out have their default.

        Raises:
            DataError: A field is unknown, `size` is missing, or a value breaks its rule.
        """
        if not isinstance(fields, dict) or "size" not in fields:
            raise DataError(
                f"preprocessing is {fields!r:.200}; it must be a dictionary with `size`"
            )
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(map(str, set(fields) - known)):
            raise DataError(
                f"preprocessing has unknown fields {unknown}; known are {sorted(known)}"
            )
        return cls(**fields)


def to_tensor(image: Image.Image) -> torch.Tensor:
    """uint8 tensor (C, H, W) of an 8-bit PIL image, contiguous and its own memory."""
    import torch

    pixels = np.asarray(image)
    channels_first = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return torch.from_numpy(np.array(channels_first, order="C"))


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value
