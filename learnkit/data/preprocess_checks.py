"""The rules a `Preprocessing` keeps, and those of the batches it normalises."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from learnkit.data.geometry import METHODS, PAD_MODES, RESAMPLING
from learnkit.data.image import check_read_options
from learnkit.errors import DataError, InputSizeError

if TYPE_CHECKING:
    import torch

    from learnkit.data.preprocess import Preprocessing

_CHOICES = {
    "method": METHODS,
    "interpolation": tuple(RESAMPLING),
    "pad_mode": PAD_MODES,
    "exif_transpose": (True, False),
}
_MAX_SIDE = 16_384


def check_recipe(recipe: Preprocessing) -> None:
    """Raise DataError at the first field that breaks its rule; the message names it."""
    check_read_options(recipe.channels, recipe.bit_depth, recipe.background, recipe.max_pixels)
    _check_size(recipe.size)
    for name, allowed in _CHOICES.items():
        value = getattr(recipe, name)
        if type(value) is not type(allowed[0]) or value not in allowed:
            raise DataError(f"`{name}` is {value!r}; it must be one of {allowed}")
    _check_crop(recipe.crop, recipe.method)
    _check_statistics(recipe.mean, recipe.std, recipe.channels)


def check_batch(batch: torch.Tensor, channels: int) -> None:
    """Raise unless `batch` is uint8 or floats in 0..1, of shape (N, C, H, W) or (C, H, W).

    Raises:
        InputSizeError: Another shape or number of channels.
        DataError: Another type, or floats outside 0..1.
    """
    import torch

    if batch.ndim not in (3, 4) or batch.shape[-3] != channels:
        raise InputSizeError(
            f"`batch` has shape {tuple(batch.shape)}; it must be (N, {channels}, H, W)"
        )
    if batch.dtype == torch.uint8 or batch.numel() == 0:
        return
    if not batch.is_floating_point():
        raise DataError(f"`batch` is {batch.dtype}; it must be uint8 or floats in 0..1")
    low, high = batch.detach().aminmax()
    if not (low >= -1e-3 and high <= 1.001):
        raise DataError(
            f"`batch` has floats in {low:.4g}..{high:.4g}; they must lie in 0..1: divide by "
            "255 or pass uint8"
        )


def finite_floats(name: str, values: Any) -> tuple[float, ...] | None:
    """`values` as a tuple of finite floats; one number is a tuple of one, None stays None."""
    if values is None:
        return None
    try:
        numbers = np.asarray(values, dtype=np.float64).reshape(-1).tolist()
    except (TypeError, ValueError) as error:
        raise DataError(f"`{name}` is {values!r}; it must be one number per channel") from error
    if not all(map(math.isfinite, numbers)):
        raise DataError(f"`{name}` is {values!r}; every value must be finite")
    return tuple(numbers)


def _check_size(size: Any) -> None:
    if not (
        isinstance(size, tuple)
        and len(size) == 2
        and all(type(side) is int and 1 <= side <= _MAX_SIDE for side in size)
    ):
        raise DataError(f"`size` is {size!r}; it must be (height, width) in 1..{_MAX_SIDE}")


def _check_crop(crop: Any, method: str) -> None:
    if type(crop) not in (int, float) or not 0 < crop <= 1:
        raise DataError(f"`crop` is {crop!r}; it must be a share in (0, 1]")
    if method == "pad" and crop != 1:
        raise DataError(f"`crop` is {crop!r} with `method='pad'`, which cuts nothing; use 1")


def _check_statistics(
    mean: tuple[float, ...] | None, std: tuple[float, ...] | None, channels: int
) -> None:
    if (mean is None) != (std is None):
        raise DataError("`mean` and `std` go together; give both or neither")
    for name, values in [("mean", mean), ("std", std)]:
        if values is not None and len(values) != channels:
            raise DataError(
                f"`{name}` has {len(values)} values for {channels} channels; give one each"
            )
    if std is not None and min(std) <= 0:
        raise DataError(f"`std` is {std}; every value must be above 0")
