"""Arrays of pixels from .npy files and TIFF files of any number of channels.

Strictly: sizes are checked before anything is unpacked, and what is not on the list is refused.
"""

import math
import struct
import zlib
from typing import Any, BinaryIO

import numpy as np
from PIL import TiffImagePlugin

from learnkit.storage.formats import parse_literal

MAX_CHANNELS = 16
_OF_PILLOW = 4  # samples per pixel
_NPY = b"\x93NUMPY"
_TIFF = (b"II*\x00", b"MM\x00*")
# 8 is Adobe's deflate, 32946 the same under its older number
_PLAIN, _DEFLATE = {1}, {8, 32946}  # compressions of TIFF
_PLANAR, _DIFFERENCES = 2, 2


def array_in(file: BinaryIO, channels: int, max_pixels: int) -> np.ndarray | None:
    """uint8 or uint16 (H, W, channels) in a .npy or TIFF file; None of files for Pillow.

    Those are all but .npy files where 1 or 3 channels are asked for, as far as this can tell.

    Raises:
        ValueError: It has another shape or type, more pixels, is of another kind, or damaged.
    """
    start = file.tell()
    begin = file.read(8)
    file.seek(start)
    if is_npy(begin):
        shape, kind = npy_shape(file)
        _check_shape(shape, channels, max_pixels)
        data = file.read(math.prod(shape) * kind.itemsize)  # too little, if the file is cut off
        return np.frombuffer(data, kind).reshape(shape).astype(kind.newbyteorder("="))
    if channels in (1, 3):
        return None
    if not is_tiff(begin):
        raise ValueError(
            f"`channels` is {channels}, and it is no .npy or TIFF file, which alone have so many"
        )
    pages = tiff_pages(file)
    _check_shape(tiff_shape(pages), channels, max_pixels)
    return read_tiff(file, pages, big_endian=begin[:1] == b"M")


def array_shape(file: BinaryIO) -> tuple[int, ...] | None:
    """The shape of the array in a .npy file, or in a TIFF file of more channels than Pillow reads.

    None of every other file; the file stands where it stood.

    Raises:
        ValueError: It is a damaged .npy file.
    """
    start = file.tell()
    begin = file.read(8)
    file.seek(start)
    try:
        if is_npy(begin):
            return npy_shape(file)[0]
        pages = tiff_pages(file) if is_tiff(begin) else []
        return tiff_shape(pages) if len(pages) == 1 and pages[0].get(277, 1) > _OF_PILLOW else None
    except (KeyError, SyntaxError, struct.error) as error:
        raise ValueError(f"its header is damaged ({error})") from error
    finally:
        file.seek(start)


def _check_shape(shape: tuple[int, ...], channels: int, max_pixels: int) -> None:
    if len(shape) not in (2, 3) or (*shape, 1)[2] != channels:
        raise ValueError(
            f"it has shape {shape}, and `channels` is {channels}: it must be (H, W, {channels}); "
            "say the number it has, or move its channels to the end"
        )
    if shape[0] * shape[1] > max_pixels:
        raise ValueError(
            f"it has {shape[1]} x {shape[0]} pixels, over the limit of {max_pixels:,}; shrink it, "
            "or raise `max_pixels` if you trust it"
        )


def is_npy(begin: bytes) -> bool:
    """Whether a file that begins so is one of `numpy.save`."""
    return begin[: len(_NPY)] == _NPY


def is_tiff(begin: bytes) -> bool:
    """Whether a file that begins so is a TIFF (no BigTIFF)."""
    return begin[:4] in _TIFF


def npy_shape(file: BinaryIO) -> tuple[tuple[int, ...], np.dtype]:
    """(shape, type) of the array in a file of `numpy.save`, by its header; the file stands behind.

    Raises:
        ValueError: It has none, or one of another kind than uint8 and uint16 in C order.
    """
    magic = file.read(8)
    # two bytes in version 1 of the format, four in 2 and 3
    length = int.from_bytes(file.read(2 if magic[6:7] == b"\x01" else 4), "little")
    # 10,000: numpy's own limit, as Python's parser may crash on long texts
    if not is_npy(magic) or length > 10_000:
        raise ValueError("its header is damaged")
    about = parse_literal(file.read(length).decode("latin-1"))
    shape, kind = tuple(about["shape"]), np.dtype(about["descr"])
    if about["fortran_order"] or kind.newbyteorder("=") not in (np.uint8, np.uint16):
        raise ValueError(
            f"it holds {kind}{' in Fortran order' if about['fortran_order'] else ''}; save uint8 "
            "or uint16 in C order, as np.save(file, np.ascontiguousarray(pixels))"
        )
    return shape, kind


def tiff_pages(file: BinaryIO) -> list[dict[int, Any]]:
    """The tags of every page of a TIFF file, at most one more than channels are read.

    Raises:
        ValueError: It is none, or its pages go in a circle.
    """
    directory = TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
    pages, seen = [], set()
    while (offset := directory.next) and len(pages) <= MAX_CHANNELS:
        if offset in seen:
            raise ValueError("its pages go in a circle")
        seen.add(offset)
        file.seek(offset)
        directory.load(file)
        pages.append(dict(directory.items()))
    if not pages:
        raise ValueError("it has no page")
    return pages


def tiff_shape(pages: list[dict[int, Any]]) -> tuple[int, int, int]:
    """(height, width, channels): the samples of the one page, or one of each of several pages.

    Raises:
        ValueError: Several pages differ in size or have several samples.
    """
    shapes = {(int(p[257]), int(p[256]), int(p.get(277, 1))) for p in pages}
    if len(shapes) > 1 or (len(pages) > 1 and next(iter(shapes))[2] != 1):
        raise ValueError("its pages are no channels of one image: they differ, or are in colour")
    height, width, samples = shapes.pop()
    return height, width, samples * len(pages)


def read_tiff(file: BinaryIO, pages: list[dict[int, Any]], *, big_endian: bool) -> np.ndarray:
    """Array uint8 or uint16 (H, W, C) of a TIFF file, as `tiff_shape` says.

    Raises:
        ValueError: It is compressed in another way than by deflate, in tiles, of other types, or
            damaged.
    """
    return np.concatenate([_page(file, page, big_endian) for page in pages], axis=2)


def _page(file: BinaryIO, page: dict[int, Any], big_endian: bool) -> np.ndarray:
    height, width, samples = tiff_shape([page])
    # tags: 258 bits, 259 compression, 266 order of bits, 322 tiles, 339 kind of numbers
    bits = set(_several(page.get(258, 1)))
    compression = page.get(259, 1)
    plain = set(_several(page.get(339, 1))) == {1} and bits in ({8}, {16}) and 322 not in page
    if not plain or compression not in _PLAIN | _DEFLATE or page.get(266, 1) != 1:
        raise ValueError(
            "a TIFF of this number of channels is read in strips of 8 or 16 bits, plain or "
            f"deflated (its compression is {compression}); save it so, or as .npy"
        )
    kind = np.dtype("u1" if bits == {8} else ">u2" if big_endian else "<u2")
    # tags: 273 and 279 place and size of strips, 278 rows of one, 284 planes, 317 differences
    n_planes = samples if page.get(284, 1) == _PLANAR else 1
    per_strip = min(int(page.get(278, height)), height)
    offsets, counts = _several(page[273]), _several(page[279])
    strips, place = [], 0
    for _ in range(n_planes):
        for top in range(0, height, per_strip):
            shape = (min(per_strip, height - top), width, samples // n_planes)
            n_bytes = math.prod(shape) * kind.itemsize
            file.seek(offsets[place])
            data = file.read(counts[place])
            if compression in _DEFLATE:
                # no more than the strip can hold: a few bytes may unpack to gigabytes
                data = zlib.decompressobj().decompress(data, n_bytes)
            strips.append(np.frombuffer(data[:n_bytes], kind).reshape(shape))
            place += 1
    each = len(strips) // n_planes
    planes = [np.concatenate(strips[i * each : (i + 1) * each]) for i in range(n_planes)]
    pixels = np.concatenate(planes, axis=2)
    pixels = pixels.astype(kind.newbyteorder("="))
    if page.get(317, 1) == _DIFFERENCES and compression in _DEFLATE:
        # in the type itself: the differences wrap around, and numpy would add up in 64 bits
        pixels = np.add.accumulate(pixels, axis=1, dtype=pixels.dtype)
    return pixels


def _several(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)
