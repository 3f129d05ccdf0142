"""From arrays, tensors and deep pixels to 8-bit PIL images: the arithmetic part of reading."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from learnkit.errors import ImageReadError

if TYPE_CHECKING:
    import torch

_CHANNELS = (1, 2, 3, 4)  # grey, grey and alpha, RGB, RGBA


def is_tensor(value: Any) -> bool:
    """Whether `value` is a torch tensor; torch is not imported to ask."""
    torch = sys.modules.get("torch")
    return isinstance(value, getattr(torch, "Tensor", ()))


def check_pixel_count(width: int, height: int, name: str, max_pixels: int) -> None:
    """Raise ImageReadError for an image without pixels or with more than `max_pixels`."""
    if width * height > max_pixels:
        raise ImageReadError(
            f"image {name} has {width} x {height} = {width * height:,} pixels, over the limit of "
            f"{max_pixels:,}; it was not decoded. Shrink it, or raise `max_pixels` if you trust it"
        )
    if width < 1 or height < 1:
        raise ImageReadError(f"image {name} is {width} x {height}; it has no pixels")


def eight_bit_image(image: Image.Image, name: str, bit_depth: int | None) -> Image.Image:
    """`image` itself, or its 16- or 32-bit grey scaled to mode "L"."""
    if image.mode == "F":
        raise ImageReadError(
            f"image {name} has float pixels, whose range is not known; scale them to 0..255 and "
            "save as 8 bits, or pass a uint8 array"
        )
    if not image.mode.startswith("I"):
        return image
    if image.mode == "I" and bit_depth is None:
        raise ImageReadError(
            f"image {name} has 32-bit pixels, whose range is not known; say `bit_depth=` (16, ...)"
        )
    return Image.fromarray(_scale(np.asarray(image), bit_depth or 16, name))


def _scale(values: np.ndarray, bits: int, name: str) -> np.ndarray:
    """uint8 of the same shape, 0..2^bits-1 mapped to 0..255 and rounded to nearest."""
    top = 2**bits - 1
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > top:
        raise ImageReadError(
            f"image {name} has values {low}..{high}, outside the 0..{top} of `bit_depth={bits}`; "
            "declare the bits it really uses"
        )
    wide = values.astype(np.uint32 if bits <= 16 else np.uint64)
    return ((wide * 255 + top // 2) // top).astype(np.uint8)


def image_from_array(
    source: np.ndarray | torch.Tensor, name: str, bit_depth: int | None, max_pixels: int
) -> Image.Image:
    """8-bit PIL image of an array (H, W[, C]) or a tensor (C, H, W) of uint8 or uint16."""
    pixels = _channels_last(source)
    if pixels.ndim != 3 or pixels.shape[2] not in _CHANNELS:
        layout = "(C, H, W)" if is_tensor(source) else "(H, W) or (H, W, C)"
        raise ImageReadError(
            f"image {name} has shape {tuple(source.shape)}; it must be {layout} with C from 1 to 4"
        )
    if pixels.dtype not in (np.uint8, np.uint16):
        raise ImageReadError(
            f"image {name} has values of type {source.dtype}, whose range is not known; it must "
            "be uint8 or uint16: multiply floats in 0..1 by 255, round and cast"
        )
    check_pixel_count(pixels.shape[1], pixels.shape[0], name, max_pixels)
    if pixels.dtype == np.uint16:
        pixels = _scale(pixels, bit_depth or 16, name)
    pixels = pixels[..., 0] if pixels.shape[2] == 1 else pixels
    return Image.fromarray(np.ascontiguousarray(pixels))


def _channels_last(source: np.ndarray | torch.Tensor) -> np.ndarray:
    """Array view (H, W, C) of an image array or tensor; other shapes come back with other axes."""
    if is_tensor(source):
        array = source.detach().cpu().numpy()
        return array.transpose(1, 2, 0) if array.ndim == 3 else array[None, None]
    return source[..., None] if source.ndim == 2 else source
