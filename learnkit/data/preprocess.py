"""`Preprocessing`: the one recipe from an image to the network's input, wherever it is read.

It is data: it compares equal, travels as JSON and holds no callable. Its geometry is fastai's
`Resize` on the validation split, pixel for pixel, without fastai. Up to the pixels it does without
torch, too.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from learnkit.data.geometry import Resizing, centred_box, check_resizing, image_of_pixels
from learnkit.data.image import MAX_PIXELS, check_read_options, image_size, read_image
from learnkit.errors import DataError, ImageReadError, InputSizeError, number_of

if TYPE_CHECKING:
    import torch

PER_IMAGE = ("all_channels", "first_channel", None)
_DRAFTS = (8, 4, 2)  # by which libjpeg decodes smaller
_DRAFT_GAP = 3  # pixels of a draft per pixel of the result, at least
_MOST_CUT = 0.2  # share of the images' area
_N_SIZES = 200  # files whose headers are read to know it
_MAX_BEFORE = 8  # changes of size that come first; fastai has one


@dataclass(frozen=True)
class Preprocessing:
    """How a file becomes a float32 tensor (C, H, W): read, crop, resize, scale, normalise.

    Args:
        size: (height, width) of the result; one integer means a square.
        channels: 3 (RGB), 1 (grey), or any other number up to 16, of TIFF and .npy files and
            arrays that have just so many.
        mean: Per channel, of pixels in 0..1; None for no normalisation.
        std: Per channel, of pixels in 0..1; given exactly when `mean` is.
        method: "crop" cuts the largest centred box of the target's aspect, "squish" distorts, "pad"
            fills up to the target's aspect; "keep" cuts out, or fills up, without a resize; "grid"
            resamples from corner to corner, as fastai's batch transforms do.
        crop: Share of that box's sides that is kept, in (0, 1]; 1 for "pad", "keep" and "grid".
        interpolation: Pillow's filter for the one resize, by name.
        bit_depth: As in `read_image`.
        background: As in `read_image`.
        exif_transpose: As in `read_image`.
        pad_mode: "zeros", "border" or "reflection": what "pad" and "keep" fill with.
        max_pixels: As in `read_image`.
        before: Changes of size that come first, such as the larger one of fastai's presizing.
        plain_convert: As in `read_image`.
        per_image: Stretch the contrast of every image to 0..255 after the resize, against light
            that comes and goes: "all_channels" each channel by its own minimum and maximum,
            "first_channel" all by those of the first (what lies outside is cut off); what has one
            value only becomes 0. HALCON's normalisation types of these names, which its procedure
            `preprocess_dl_model_images` computes alike, in reals that it neither rounds nor cuts
            off; None leaves images as they are. `mean` and `std` come after it.
        draft: Decode JPEG files at a half, quarter or eighth where that leaves three pixels or more
            for each of the result and the same cut: several times faster for photographs, whose
            values move by 5 of 255 at most, on average by less than 1 (hard edges between
            saturated colours by 25). Images at hand come as they are.

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
    before: tuple[Resizing, ...] = ()
    plain_convert: bool = False
    draft: bool = False
    per_image: str | None = None

    def __post_init__(self) -> None:
        size = (self.size,) * 2 if isinstance(self.size, int) else self.size
        object.__setattr__(self, "before", tuple(map(_resizing, self.before)))
        for name, value in [("size", _tuple(size)), ("background", _tuple(self.background))]:
            object.__setattr__(self, name, value)
        for name in ("mean", "std"):
            object.__setattr__(self, name, finite_floats(name, getattr(self, name)))
        check_recipe(self)

    def read(self, source: Any) -> Image.Image:
        """Image of `size`, of anything `read_image` takes: PIL's "RGB" or "L", else `Planes`."""
        return self.resize(self._decode(source, self.draft_factor if self.draft else None))

    def decode(self, source: Any) -> Image.Image:
        """PIL image in its original size, mode "RGB" or "L", of anything `read_image` takes."""
        return self._decode(source, None)

    def draft_factor(self, size: tuple[int, int]) -> int:
        """By what a JPEG of `size` (width, height) may be decoded smaller: 8, 4, 2, or 1.

        >>> [Preprocessing(224).draft_factor(size) for size in ((4000, 3000), (500, 375))]
        [4, 1]
        """
        first = self.steps[0]
        if first.method not in ("crop", "squish", "pad") or first.interpolation == "nearest":
            return 1
        cut = partial(centred_box, target=first.size[::-1], method=first.method, crop=first.crop)
        box = cut(size)
        least = min((box[2] - box[0]) / first.size[1], (box[3] - box[1]) / first.size[0])
        for factor in _DRAFTS:
            if least >= _DRAFT_GAP * factor and not any(side % factor for side in size):
                # The same cut to the pixel: half a pixel of a draft would be seen at an edge.
                smaller = cut((size[0] // factor, size[1] // factor))
                if tuple(side * factor for side in smaller) == box:
                    return factor
        return 1

    def _decode(self, source: Any, draft: Callable[[tuple[int, int]], int] | None) -> Image.Image:
        return read_image(
            source,
            channels=self.channels,
            bit_depth=self.bit_depth,
            background=self.background,
            exif_transpose=self.exif_transpose,
            max_pixels=self.max_pixels,
            plain_convert=self.plain_convert,
            draft=draft,
        )

    def resize(self, image: Image.Image) -> Image.Image:
        """PIL image of `size` and the same mode: what `before` says, then a cut or fill, a resize.

        Last comes what `per_image` says.

        Raises:
            ImageReadError: The image is so long and thin that padding would exceed `max_pixels`.
        """
        for one in self.steps:
            image = one(image, self.max_pixels)
        return image if self.per_image is None else _stretched(image, self.per_image)

    @property
    def steps(self) -> tuple[Resizing, ...]:
        """All changes of size: those `before`, and that of its own fields."""
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(Resizing)}
        return (*self.before, Resizing(**own))

    def share_cut(self, size: tuple[int, int]) -> float:
        """Share of the area of an image of `size` (width, height) that "crop" cuts for its aspect.

        Zero for the other methods; what `crop` below 1 takes off all images alike is not counted.

        >>> Preprocessing(224).share_cut((400, 300))
        0.25
        """
        first = self.steps[0]
        if first.method in ("keep", "grid"):
            return 0.0
        left, top, right, bottom = centred_box(size, first.size[::-1], first.method)
        return max(0.0, 1 - (right - left) * (bottom - top) / math.prod(size))

    def seen_box(self, size: tuple[int, int]) -> tuple[float, float, float, float]:
        """What is left of an image of `size` (width, height): left, top, right, bottom.

        In shares of its sides; beyond 0..1 where it is filled up.

        >>> Preprocessing(224).seen_box((400, 300)), Preprocessing(8, method="pad").seen_box((2, 4))
        ((0.125, 0.0, 0.875, 1.0), (-0.5, 0.0, 1.5, 1.0))
        """
        low, high = (0.0, 0.0), (1.0, 1.0)
        for one in self.steps:
            target = one.size[::-1]
            whole = one.method == "grid"
            box = (0, 0, *size) if whole else centred_box(size, target, one.method, one.crop)
            ends = ((box[0], box[1]), (box[2], box[3]))
            low, high = (  # type: ignore[assignment]
                tuple(
                    a + (b - a) * at / side
                    for a, b, at, side in zip(low, high, end, size, strict=True)
                )
                for end in ends
            )
            size = target
        return *low, *high

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
        # fastai's TensorImage would come out as one, and cost a dispatch at every operation.
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
        fields |= {"before": [one.to_dict() for one in self.before]}
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


def note_on_cut(
    items: Sequence[Any],
    recipe: Preprocessing,
    remedy: str = 'a learner built on `dataloaders(method="squish")` sees it',
) -> tuple[str, ...]:
    """A note where "crop" cuts off more than a fifth of the images' area for its aspect.

    Known by the headers of up to 200 of the `items`; those that are no files say nothing.
    """
    areas, seen = 0, 0.0
    for place in np.linspace(0, len(items) - 1, min(len(items), _N_SIZES)).astype(int):
        try:
            size = image_size(items[place], exif_transpose=recipe.exif_transpose)
        except ImageReadError:  # reading it will tell; or a picture at hand
            continue
        areas += math.prod(size)
        seen += math.prod(size) * (1 - recipe.share_cut(size))
    if areas - seen <= _MOST_CUT * areas:
        return ()
    height, width = recipe.size
    return (
        f"fitting the images to {width} x {height} pixels cuts off {1 - seen / areas:.0%} of their "
        f"area, by a centred crop: what lies there is not seen; {remedy}",
    )


def to_tensor(image: Image.Image) -> torch.Tensor:
    """uint8 tensor (C, H, W) of an 8-bit PIL image, contiguous and its own memory."""
    import torch

    pixels = np.asarray(image)
    channels_first = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return torch.from_numpy(np.array(channels_first, order="C"))


def _stretched(image: Image.Image, kind: str) -> Image.Image:
    """The image with each channel, or the first one, reaching from 0 to 255."""
    pixels = np.asarray(image)
    values = pixels.reshape(-1, pixels.shape[2] if pixels.ndim == 3 else 1)
    low, high = values.min(0).astype(np.int64), values.max(0).astype(np.int64)
    if kind == "first_channel":
        low, high = low[:1].repeat(len(low)), high[:1].repeat(len(high))
    span = np.maximum(high - low, 1)
    # A table of the 256 values of each channel, in integers: the same bits on every machine.
    table = np.clip(np.arange(256)[:, None], low, high) - low
    table = ((table * 255 + span // 2) // span).astype(np.uint8)
    found = table[values, np.arange(len(low))].reshape(pixels.shape)
    return image_of_pixels(found)


def _resizing(one: Any) -> Any:
    """A `Resizing` of what `to_dict` made of it."""
    if not isinstance(one, dict):
        return one
    known = {field.name for field in dataclasses.fields(Resizing)}
    if unknown := sorted(map(str, set(one) - known)):
        raise DataError(f"`before` has unknown fields {unknown}; known are {sorted(known)}")
    return Resizing(**one)


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value


def check_recipe(recipe: Preprocessing) -> None:
    """Raise DataError at the first field that breaks its rule; the message names it."""
    check_read_options(recipe.channels, recipe.bit_depth, recipe.background, recipe.max_pixels)
    check_resizing(recipe)
    if not all(isinstance(one, Resizing) for one in recipe.before):
        raise DataError(f"`before` is {recipe.before!r:.200}; it must hold `Resizing`s")
    if len(recipe.before) > _MAX_BEFORE:
        raise DataError(f"`before` has {len(recipe.before)} steps; at most {_MAX_BEFORE} are taken")
    for name in ("exif_transpose", "plain_convert", "draft"):
        if (value := getattr(recipe, name)) not in (True, False) or type(value) is not bool:
            raise DataError(f"`{name}` is {value!r}; it must be one of (True, False)")
    if recipe.per_image not in PER_IMAGE:
        raise DataError(f"`per_image` is {recipe.per_image!r}; it must be one of {PER_IMAGE}")
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
    # so written that NaN is refused
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
    except (TypeError, ValueError, OverflowError) as error:  # the last: a huge int
        told = f"`{name}` is {values!r:.80}; it must be one number per channel"
        raise DataError(told) from error
    if not all(map(math.isfinite, numbers)):
        raise DataError(f"`{name}` is {values!r}; every value must be finite")
    return tuple(numbers)


def _check_statistics(
    mean: tuple[float, ...] | None, std: tuple[float, ...] | None, channels: int
) -> None:
    if (mean is None) != (std is None):
        raise DataError("`mean` and `std` go together; give both or neither")
    for name, values in [("mean", mean), ("std", std)]:
        if values is not None and len(values) != channels:
            raise DataError(
                f"`{name}` has {number_of(len(values), 'value')} for "
                f"{number_of(channels, 'channel')}; give one each"
            )
    if std is not None and min(std) <= 0:
        raise DataError(f"`std` is {std}; every value must be above 0")
