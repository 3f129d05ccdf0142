"""Masks: a class id for every pixel, read from what a file's pixels stand for, and written.

A mask that numbers its objects gives them one by one, with boxes and run lengths.
"""

from __future__ import annotations

import os
import posixpath
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from learnkit.data.annotations.boxes import smallest_rectangle
from learnkit.data.annotations.dl_dataset import MAX_CLASS_ID
from learnkit.data.annotations.rle import segmentations_of_numbers
from learnkit.errors import DataError, ImageReadError, first_few, number_of
from learnkit.storage.filesystem import open_regular, write_file

IGNORE = 65_535  # in a mask that was read: pixels of no class, which are neither learned nor judged
BACKGROUND = "background"
_FORMATS = ("PNG", "TIFF", "BMP")
_OPENED = (*_FORMATS, "JPEG", "WEBP", "GIF")  # to be told what they are
_MAX_PIXELS = 50_000_000  # as of images
# one more than fits a mask's 16 bits, so that no code can have it
_UNKNOWN = 65_536
_COLOURS = 1 << 24
_LAYERS = ("", "_mask", "_label", "_labels", "_gt")  # what may follow an image's name in a mask's

Value = int | tuple[int, int, int]


@dataclass(frozen=True)
class MaskCodes:
    """What the pixels of mask files stand for.

    Args:
        ids: Class id of each pixel value or (r, g, b).
        ignore: Values, or colours, of pixels of no class.
        binary: Every value but 0 counts as 1, as in masks of 0 and 255 and in instance images.

    Raises:
        DataError: Values and colours are mixed, or out of their range.
    """

    ids: Mapping[Value, int]
    ignore: tuple[Value, ...] = ()
    binary: bool = False

    def __post_init__(self) -> None:
        for value in (*self.ids, *self.ignore):
            is_value = type(value) is int and 0 <= value <= IGNORE
            if not (is_value or _is_colour(value)):
                raise DataError(
                    f"a mask's code is {value!r}; it is a pixel value in 0..65535, or a colour "
                    "(r, g, b) of numbers in 0..255"
                )
        if len({isinstance(value, tuple) for value in (*self.ids, *self.ignore)}) > 1:
            raise DataError(
                f"the codes {first_few(map(repr, (*self.ids, *self.ignore)))} mix values and "
                "colours; give all as values, or all as (r, g, b)"
            )
        if twice := [value for value in self.ignore if value in self.ids]:
            raise DataError(f"the code {twice[0]!r} is of a class and in `ignore`; keep it in one")

    @property
    def coloured(self) -> bool:
        """Whether codes are colours."""
        return any(isinstance(value, tuple) for value in (*self.ids, *self.ignore))

    @property
    def are_ids(self) -> bool:
        """Whether pixels are the ids of their classes."""
        return not self.binary and all(value == number for value, number in self.ids.items())


def mask_codes(
    classes: Sequence[str] | None,
    codes: Mapping[str, Any] | None,
    binary: str | None,
    ignore: Any,
) -> tuple[dict[str, int], MaskCodes]:
    """(id of each class, what the pixels stand for) of how a reader was called.

    One of the three is given: `classes` in the order of their values 0, 1, ...; `codes` with a
    value or (r, g, b) of each, where ids are the values, or 0, 1, ... of colours; `binary`, the
    class of every pixel that is not 0, beside "background".

    Raises:
        DataError: None or several are given, or a code breaks its rule.

    >>> mask_codes(None, {"soil": 3, "crop": 7}, None, 255)[0]
    {'soil': 3, 'crop': 7}
    """
    given = {"classes": classes, "codes": codes, "binary": binary}
    several = len([one for one in given.values() if one is not None]) != 1
    if several or isinstance(classes, str):
        shown = ", ".join(f"`{name}` is {value!r:.60}" for name, value in given.items())
        raise DataError(
            f"{shown}; give one of them: class names in the order of the pixel values 0, 1, ..., "
            "{name: value or (r, g, b)}, or the name of what is not 0"
        )
    ignored = tuple(_codes_listed(ignore))
    if binary is not None:
        return {BACKGROUND: 0, binary: 1}, MaskCodes({0: 0, 1: 1}, ignored, binary=True)
    if codes is None:
        codes = {name: number for number, name in enumerate(classes or ())}
    values = {name: _code(value) for name, value in codes.items()}
    if len(set(values.values())) != len(values):
        raise DataError(
            f"`codes` gives several classes one code: {values!r:.200}; each has its own"
        )
    coloured = any(isinstance(value, tuple) for value in values.values())
    numbered = enumerate(values) if coloured else ((values[name], name) for name in values)
    ids = {name: number for number, name in numbered}
    if wrong := [name for name, one in ids.items() if isinstance(one, int) and one > MAX_CLASS_ID]:
        raise DataError(f"`codes` gives {wrong[0]!r} {ids[wrong[0]]}; ids lie in 0..{MAX_CLASS_ID}")
    return ids, MaskCodes({value: ids[name] for name, value in values.items()}, ignored)


def read_mask(
    path: str | os.PathLike[str], codes: MaskCodes, size: tuple[int, int] | None = None
) -> np.ndarray:
    """The class id of every pixel, uint16 (H, W); `IGNORE` where none is.

    Args:
        path: A PNG, TIFF or BMP file of 1, 8 or 16 bits, with a palette, or in colour.
        codes: What its pixels stand for.
        size: (width, height) that it must have.

    Raises:
        ImageReadError: The file is missing, damaged, too large or of a format that changes values.
        DataError: It has another size, or pixels that `codes` do not know.
    """
    pixels = mask_pixels(path, size, coloured=codes.coloured)
    if codes.binary:
        # what is ignored is a value before it counts as 1
        ignored = np.isin(pixels, codes.ignore)
        pixels = np.where(ignored, pixels, pixels != 0)
    if codes.coloured:
        table = np.full(_COLOURS, _UNKNOWN, np.uint32)
        packed = pixels.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    else:
        table, packed = np.full(1 << 16, _UNKNOWN, np.uint32), pixels
    for value, number in {**codes.ids, **dict.fromkeys(codes.ignore, IGNORE)}.items():
        table[_packed(value)] = number
    found = table[packed]
    if (unknown := found == _UNKNOWN).any():
        _refuse_unknown(packed[unknown], codes, path)
    return found.astype(np.uint16)


def write_mask(path: str | os.PathLike[str], mask: np.ndarray) -> None:
    """Write whole numbers in 0..65535, (H, W), as a grey PNG: of 8 bits if all fit, else of 16.

    The file is there whole or not at all.

    Raises:
        DataError: `mask` is no such array, or the file cannot be written.
    """
    mask = np.asarray(mask)
    if mask.ndim != 2 or not mask.size or mask.dtype.kind not in "biu":
        raise DataError(
            f"`mask` is {mask.dtype} of shape {mask.shape}; it must be whole numbers (H, W)"
        )
    low, high = int(mask.min()), int(mask.max())
    if low < 0 or high > IGNORE:
        raise DataError(f"`mask` has values {low}..{high}; they must lie in 0..{IGNORE}")
    picture = Image.fromarray(np.ascontiguousarray(mask, np.uint8 if high < 256 else np.uint16))
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_file(Path(path), lambda file: picture.save(file, "PNG", optimize=False))
    except OSError as error:
        raise DataError(f"mask {os.fspath(path)!r} cannot be written: {error}") from error


def new_mask_files(images: Sequence[str], folder: str | os.PathLike[str]) -> list[Path]:
    """Where the masks of images are written: NAME.png in a folder that is new or empty.

    Raises:
        DataError: The folder holds something, an image has no place in it, or two have one.
    """
    target = Path(os.path.abspath(folder))
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise DataError(f"folder {str(target)!r} holds something; give one that is new or empty")
    if wrong := [path for path in images if Path(path).is_absolute()]:
        raise DataError(f"image {wrong[0]!r} lies outside the root; its mask has no place")
    names = [f"{_stem(path)}.png" for path in images]
    if len({name.casefold() for name in names}) < len(names):
        raise DataError("two images differ only in their extension; their masks would be one file")
    return [target / name for name in names]


def ids_in(mask: np.ndarray) -> list[int]:
    """The class ids in a mask that was read, ascending, without `IGNORE`."""
    return [int(one) for one in np.flatnonzero(np.bincount(mask.ravel())) if one != IGNORE]


def masks_of_images(images: Sequence[str], masks: Iterable[str]) -> list[str | None]:
    """The mask of each image: that with its path but for the extension, or "_mask" before it.

    Args:
        images: Paths below the folder of images, with "/".
        masks: Paths below the folder of masks, with "/".

    Raises:
        DataError: An image has two of them.

    >>> masks_of_images(["a/1.jpg", "a/2.jpg"], ["a/1.png", "b/2.png"])
    ['a/1.png', None]
    """
    by_stem = defaultdict(list)
    for mask in masks:
        by_stem[_stem(mask)].append(mask)
    found: list[str | None] = []
    for image in images:
        candidates = [mask for layer in _LAYERS for mask in by_stem.get(_stem(image) + layer, ())]
        if len(candidates) > 1:
            raise DataError(
                f"image {image!r} has {len(candidates)} masks, {first_few(map(repr, candidates))}; "
                "keep one of them"
            )
        found.append(candidates[0] if candidates else None)
    return found


def _stem(path: str) -> str:
    return posixpath.splitext(path)[0]


def _is_colour(value: Any) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) == 3
        and all(type(one) is int and 0 <= one <= 255 for one in value)
    )


def _code(value: Any) -> Value:
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    return tuple(value) if isinstance(value, list) else value


def _codes_listed(ignore: Any) -> list[Value]:
    """Values or colours of what may be none, one, or a list of them."""
    one = _code(ignore)
    if one is None:
        return []
    if isinstance(one, int) or _is_colour(one):
        return [one]
    if not isinstance(ignore, Collection) or isinstance(ignore, str):
        raise DataError(f"`ignore` is {ignore!r}; give a pixel value, a colour, or a list of them")
    return [_code(value) for value in ignore]


def _packed(value: Value) -> int:
    return value if isinstance(value, int) else (value[0] << 16) + (value[1] << 8) + value[2]


def _unpacked(value: int, coloured: bool) -> Value:
    return (value >> 16, value >> 8 & 255, value & 255) if coloured else value


def _refuse_unknown(values: np.ndarray, codes: MaskCodes, path: str | os.PathLike[str]) -> None:
    seen, counts = np.unique(values, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    shown = first_few(
        f"{_unpacked(int(seen[i]), codes.coloured)} ({number_of(counts[i], 'pixel')})"
        for i in order
    )
    kind = "colours" if codes.coloured else "values"
    raise DataError(
        f"mask {os.fspath(path)!r} has the {kind} {shown}; known are "
        f"{first_few(map(str, (*codes.ids, *codes.ignore)), 12)}: name them as classes, or say "
        "`ignore=`"
    )


def mask_pixels(
    path: str | os.PathLike[str], size: tuple[int, int] | None = None, *, coloured: bool = False
) -> np.ndarray:
    """The pixels of a mask file as they stand there: uint8 or uint16 (H, W), or uint8 (H, W, 3).

    Args:
        path: See `read_mask`.
        size: See `read_mask`.
        coloured: Give colours; else a palette's indices, and of grey images saved in colour a grey.

    Raises:
        ImageReadError: See `read_mask`.
        DataError: See `read_mask`; or it is in colour and `coloured` is False.
    """
    name = repr(os.fspath(path))
    try:
        with open_regular(path) as file, Image.open(file, formats=_OPENED) as image:
            _check_header(image, name, size)
            image.load()
            return _plain(image, name, coloured)
    except (ImageReadError, DataError):
        raise
    except Exception as error:  # decoders raise nearly anything
        raise ImageReadError(
            f"mask {name} cannot be read: {error or type(error).__name__}; replace the file"
        ) from error


def _check_header(image: Image.Image, name: str, size: tuple[int, int] | None) -> None:
    # a TIFF may hold JPEG data
    if image.format not in _FORMATS or image.info.get("compression") == "jpeg":
        raise ImageReadError(
            f"mask {name} is a {image.format} file, which may change pixel values; write masks as "
            "PNG or TIFF from where they were drawn"
        )
    if size is not None and image.size != size:
        raise DataError(
            f"mask {name} is {image.size[0]} x {image.size[1]} and its image {size[0]} x "
            f"{size[1]}; they must be of one size"
        )
    if image.width * image.height > _MAX_PIXELS:
        raise ImageReadError(
            f"mask {name} has {image.width} x {image.height} pixels, over the limit of "
            f"{_MAX_PIXELS:,}; it was not decoded"
        )
    if getattr(image, "n_frames", 1) > 1:
        raise ImageReadError(
            f"mask {name} has {image.n_frames} pages; which one is meant is not known: keep one"
        )


def _plain(image: Image.Image, name: str, coloured: bool) -> np.ndarray:
    if coloured:
        return np.asarray(image.convert("RGB"))
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > IGNORE:
            raise DataError(
                f"mask {name} has values {values.min()}..{values.max()}; they must lie in "
                f"0..{IGNORE}"
            )
        return values.astype(np.uint16)
    if image.mode in ("1", "L", "P", "LA"):
        values = np.asarray(image)
        return (values[..., 0] if values.ndim == 3 else values).astype(np.uint8)
    if image.mode not in ("RGB", "RGBA"):
        raise DataError(f"mask {name} is of mode {image.mode}; ids are whole numbers, one a pixel")
    colours = np.asarray(image.convert("RGB"))
    if (colours != colours[..., :1]).any():
        raise DataError(
            f"mask {name} is in colour ({image.mode}); say which colour is which class: "
            "`codes={'name': (r, g, b)}`"
        )
    return colours[..., 0]


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
