"""Reading one image into 8-bit RGB or grey, or saying exactly why not.

The one reader of learnkit: training, checks and deployment all see a file through `read_image`. It
guesses nothing (16-bit and float pixels need a range, an animation needs a frame), decodes only the
formats on its list, and never touches Pillow's global settings, so threads may share it (but
registers HEIF at the first such file where pillow-heif is installed).
"""

from __future__ import annotations

import io
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps

from learnkit.data.geometry import (
    Planes,
    eight_bits,
    image_of_pixels,
    is_tensor,
    pixels_last,
)
from learnkit.errors import DataError, ImageNotFoundError, ImageReadError, number_of, warn_user
from learnkit.storage.array_files import MAX_CHANNELS, array_in, array_shape
from learnkit.storage.filesystem import open_regular

if TYPE_CHECKING:
    import torch


# Pillow is told these by name, so that none of its rarer decoders ever sees a file.
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF", "PPM")
_NPY = ".npy"
_READ = "png jpg jpeg jpe jfif bmp tif tiff webp gif pbm pgm ppm pnm"
# Images by their names in formats that are not read, or only with what may not be installed.
_OTHERS = (
    "heic heif hif avif jxl jp2 j2k jpx apng dib tga ico icns psd svg eps pcx dds exr hdr dcm "
    "dicom raw dng cr2 cr3 nef nrw arw orf raf rw2 pef srw"
)
IMAGE_EXTENSIONS = frozenset({*(f".{name}" for name in _READ.split()), _NPY})
_HEIF = frozenset({".heic", ".heif", ".hif"})
if find_spec("PIL._avif"):  # in Pillow's own wheels from 11.3 on
    FORMATS, IMAGE_EXTENSIONS = (*FORMATS, "AVIF"), IMAGE_EXTENSIONS | {".avif"}
if find_spec("pillow_heif"):  # the extra `heif`
    IMAGE_EXTENSIONS |= _HEIF
_OTHER_EXTENSIONS = frozenset(f".{name}" for name in _OTHERS.split()) - IMAGE_EXTENSIONS
# What macOS zips add, and what `learnkit clean` and `learnkit label` put aside.
_PASSED_OVER = {"__MACOSX", "_removed", "_unusable"}
MAX_PIXELS = 50_000_000
_ORIENTATION = 0x0112  # the EXIF tag
_QUARTER_TURNS = (5, 6, 7, 8)  # its values that swap width and height


def read_image(
    source: Any,
    *,
    channels: int = 3,
    bit_depth: int | None = None,
    background: int | tuple[int, int, int] = 255,
    exif_transpose: bool = True,
    max_pixels: int = MAX_PIXELS,
    plain_convert: bool = False,
    draft: Callable[[tuple[int, int]], int] | None = None,
) -> Image.Image:
    """Upright 8-bit image of mode "RGB" (`channels=3`) or "L" (`channels=1`), decoded in full.

    Of another number of `channels` it is a `Planes`, of images that have just so many: .npy files
    (H, W, C) of uint8 or uint16, TIFF files with that many samples or pages, arrays and tensors.
    Nothing is converted to them.

    Grey, palette, 1-bit, CMYK and alpha are converted; 16-bit grey is scaled to 0..255, never
    clipped. Of a camera's multi-picture JPEG (MPO) the main picture is read.

    Args:
        source: Path, bytes, binary file object, PIL image, array (H, W) or (H, W, C) or tensor
            (C, H, W) of uint8 or uint16.
        channels: 1 to 16.
        bit_depth: Bits in use in images of more than 8 bits (12 for a 12-bit camera). Left out,
            16-bit images use the full 16 bits and 32-bit ones are refused.
        background: Grey value or (r, g, b) seen through transparent pixels.
        exif_transpose: Turn the image as its EXIF orientation says (Pillow turns TIFF always).
        max_pixels: Larger images are refused by their header, before anything is decoded.
        plain_convert: Convert as Pillow's `convert` alone does, which is how fastai reads: alpha
            and colour keys are dropped, pixels of more than 8 bits are clipped to 0..255, of an
            animation the first frame is read; `bit_depth` and `background` play no part.
        draft: By what factor (1, 2, 4, 8) a JPEG file of a (width, height) is decoded smaller,
            which libjpeg does in a fraction of the time. Images at hand are never.

    Raises:
        ImageReadError: The file is missing, empty, damaged, too large, of another format, has
            several frames, or its pixels have no known range. The message names the file.
        DataError: An option breaks its rule.

    >>> read_image(np.full((4, 6), 65535, "uint16")).getpixel((0, 0))
    (255, 255, 255)
    """
    check_read_options(channels, bit_depth, background, max_pixels)
    with naming_errors(name := source_name(source), source):
        if (pixels := array_of(source, name, channels, max_pixels)) is not None:
            return image_of_pixels(_checked_array(pixels, name, channels, bit_depth, max_pixels))
        draft = None if draft is None else partial(_shrink, draft, exif_transpose)
        image = _decode(source, name, bit_depth, max_pixels, plain_convert, draft)
        if exif_transpose and image.getexif().get(_ORIENTATION, 1) != 1:
            image = ImageOps.exif_transpose(image)
        if plain_convert:
            return image.convert("RGB" if channels == 3 else "L")
        image = eight_bit_image(image, name, bit_depth)
        if image.has_transparency_data:
            image = _composite(image, background)
        return image.convert("RGB" if channels == 3 else "L")


def find_images(folder: str | os.PathLike[str]) -> list[Path]:
    """Every file below `folder` with an image extension, sorted by path; hidden ones are skipped.

    Warns of images in formats that are not read. Links are followed, a link back to a folder above
    itself is not.

    Raises:
        DataError: `folder` is not a folder.
    """
    images, others = image_files(folder)
    if others:
        warn_user(f"below {str(folder)!r}: {unread_text(others)}")
    return images


def image_files(folder: str | os.PathLike[str]) -> tuple[list[Path], list[Path]]:
    """(files `find_images` finds, images by their names in formats that are not read), by path.

    Raises:
        DataError: `folder` is not a folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"folder {str(folder)!r} does not exist or is not a folder; check the path")
    images, others = [], []
    for path in _walk(folder, ()):
        if (extension := path.suffix.lower()) in IMAGE_EXTENSIONS:
            images.append(path)
        elif extension in _OTHER_EXTENSIONS:
            others.append(path)
    return sorted(images), sorted(others)


def unread_text(others: Iterable[str | os.PathLike[str]]) -> str:
    """How many images there are in formats that are not read, and the remedy, for a message.

    >>> unread_text(["a.dcm", "b.DCM", "c.psd"])
    '3 images not read (2 .dcm, 1 .psd); convert them to PNG'
    """
    counted = extension_counts(others)
    heif = _HEIF.isdisjoint(IMAGE_EXTENSIONS) and not _HEIF.isdisjoint(counted)
    remedy = 'for .heic and .heif `pip install "learnkit[heif]"`; others: ' if heif else ""
    shown = ", ".join(f"{n} {extension}" for extension, n in counted.items())
    n = number_of(sum(counted.values()), "image")
    return f"{n} not read ({shown}); {remedy}convert them to PNG"


def extension_counts(paths: Iterable[str | os.PathLike[str]]) -> dict[str, int]:
    """Number of files by extension, in small letters, the most frequent first."""
    counted = Counter(Path(path).suffix.lower() for path in paths)
    return dict(sorted(counted.items(), key=lambda item: (-item[1], item[0])))


def image_size(path: str | os.PathLike[str], *, exif_transpose: bool = True) -> tuple[int, int]:
    """(width, height) of an image file as `read_image` gives it; only the header is read.

    Raises:
        ImageReadError: The file is missing, or no image.
    """
    name = source_name(path)
    with naming_errors(name, path), open_regular(path) as file:
        if shape := array_shape(file):
            return shape[1], shape[0]
        image = _open(file, name)
        width, height = image.size
        # Pillow turns a TIFF itself, and decodes a whole PNG in search of EXIF data behind it.
        tells = image.format != "TIFF" and (image.format != "PNG" or "exif" in image.info)
        turned = exif_transpose and tells and image.getexif().get(_ORIENTATION, 1) in _QUARTER_TURNS
    return (height, width) if turned else (width, height)


def image_kind(path: str | os.PathLike[str]) -> tuple[Any, ...]:
    """What decides how an image file is converted: format, mode, transparency, several frames.

    Raises:
        ImageReadError: The file is missing, or no image.
    """
    name = source_name(path)
    with naming_errors(name, path), open_regular(path) as file:
        if array_shape(file) is not None:
            return "array", "", False, False
        image = _open(file, name, first_frame=True)
        several = getattr(image, "n_frames", 1) > 1
        return image.format, image.mode, image.has_transparency_data, several


def array_of(source: Any, name: str, channels: int, max_pixels: int) -> np.ndarray | None:
    """uint8 or uint16 (H, W, C) of what is no picture of Pillow's; None of all that is.

    That are .npy files, and, where neither grey nor colour is asked for, TIFF files and arrays.

    Raises:
        ImageReadError: It is none of these though `channels` ask for it, too large or damaged.
    """
    wide, is_path = channels not in (1, 3), isinstance(source, str | os.PathLike)
    if isinstance(source, np.ndarray) or is_tensor(source):
        return pixels_last(source) if wide else None
    if isinstance(source, Image.Image | Planes):
        return np.asarray(source) if wide or isinstance(source, Planes) else None
    others = isinstance(source, bytes | bytearray | memoryview) or hasattr(source, "seek")
    if not (is_path or others) or (is_path and not wide and Path(source).suffix.lower() != _NPY):
        return None
    if isinstance(source, bytes | bytearray | memoryview):
        source = io.BytesIO(source)
    with open_regular(source) if is_path else nullcontext(source) as file:
        try:
            return array_in(file, channels, max_pixels)
        except (ValueError, KeyError, SyntaxError, zlib.error) as error:
            raise ImageReadError(f"image {name} cannot be read: {error}") from error


def _checked_array(
    pixels: np.ndarray, name: str, channels: int, bit_depth: int | None, max_pixels: int
) -> np.ndarray:
    """The array as uint8 (H, W, C) with just so many channels."""
    shape = (*pixels.shape, 1) if pixels.ndim == 2 else pixels.shape
    if len(shape) != 3 or shape[2] != channels:
        raise ImageReadError(
            f"image {name} has shape {pixels.shape}, and `channels` is {channels}; it must be "
            f"(H, W, {channels}): say the number it has, or move its channels to the end"
        )
    check_pixel_count(shape[1], shape[0], name, max_pixels)
    if pixels.dtype not in (np.uint8, np.uint16):
        raise ImageReadError(
            f"image {name} has values of type {pixels.dtype}, whose range is not known; it must "
            "be uint8 or uint16: multiply floats in 0..1 by 255, round and cast"
        )
    pixels = pixels.reshape(shape)
    return pixels if pixels.dtype == np.uint8 else eight_bits(pixels, bit_depth or 16, name)


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is passed over.

    Those are dot files, what macOS zips add, and images that people have put aside.
    """
    return name.startswith(".") or name in _PASSED_OVER


@contextmanager
def naming_errors(name: str, source: Any) -> Iterator[None]:
    """Turn whatever Pillow raises on damaged data into an ImageReadError that names the image."""
    try:
        yield
    except ImageReadError:
        raise
    except Exception as error:  # decoders raise nearly anything
        kind = ImageNotFoundError if isinstance(error, FileNotFoundError) else ImageReadError
        raise kind(f"image {name} cannot be read: {_reason(error, source)}") from error


def source_name(source: Any) -> str:
    """Quoted file name, or what kind of object it is: how messages name an image."""
    if isinstance(source, str | os.PathLike):
        return repr(os.fspath(source))
    if isinstance(source, bytes | bytearray | memoryview):
        return f"of {len(source)} bytes"
    name = getattr(source, "filename", None) or getattr(source, "name", None)
    return repr(os.fspath(name)) if isinstance(name, str | os.PathLike) else type(source).__name__


def check_read_options(
    channels: int, bit_depth: int | None, background: Any, max_pixels: int
) -> None:
    """Raise DataError unless the options of `read_image` make sense."""
    if not (_is_int(channels) and 1 <= channels <= MAX_CHANNELS):
        raise DataError(
            f"`channels` is {channels!r}; it must be 3 (RGB), 1 (grey), or another whole number up "
            f"to {MAX_CHANNELS}"
        )
    if bit_depth is not None and not (_is_int(bit_depth) and 8 <= bit_depth <= 32):
        raise DataError(f"`bit_depth` is {bit_depth!r}; it must be None or an integer from 8 to 32")
    colour = background if isinstance(background, tuple | list) else (background,) * 3
    if len(colour) != 3 or not all(_is_int(value) and 0 <= value <= 255 for value in colour):
        raise DataError(f"`background` is {background!r}; it must be 0..255 or three of those")
    if not (_is_int(max_pixels) and max_pixels > 0):
        raise DataError(f"`max_pixels` is {max_pixels!r}; it must be a positive integer")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _walk(folder: Path, above: tuple[str, ...]) -> Iterator[Path]:
    """Visible files below `folder`; `above` are the real folders on the way, against link loops."""
    above = (*above, os.path.realpath(folder))
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_hidden(entry.name):
                continue
            if not entry.is_dir():
                yield Path(entry.path)
            elif not (entry.is_symlink() and os.path.realpath(entry.path) in above):
                yield from _walk(Path(entry.path), above)


def _decode(
    source: Any,
    name: str,
    bit_depth: int | None,
    max_pixels: int,
    first_frame: bool,
    shrink: Callable[[Image.Image], None] | None,
) -> Image.Image:
    """Loaded PIL image of any kind of source, in whatever mode it came."""
    if isinstance(source, np.ndarray) or is_tensor(source):
        return image_from_array(source, name, bit_depth, max_pixels)
    if isinstance(source, Image.Image):
        return _loaded(source, name, bit_depth, max_pixels)
    if isinstance(source, str | os.PathLike):
        with open_regular(source) as file:
            return _loaded(_open(file, name, first_frame), name, bit_depth, max_pixels, shrink)
    if isinstance(source, bytes | bytearray | memoryview):
        source = io.BytesIO(source)
    if hasattr(source, "read") and hasattr(source, "seek"):
        return _loaded(_open(source, name, first_frame), name, bit_depth, max_pixels, shrink)
    raise ImageReadError(
        f"`source` is a {type(source).__name__}; an image is read from a path, bytes, a binary "
        "file, a PIL image, an array (H, W, C) or a tensor (C, H, W)"
    )


def open_picture(file: IO[bytes]) -> Image.Image:
    """PIL image of a file in one of the formats that are read, not decoded yet.

    Raises what Pillow raises for others.
    """
    begin, at = file.read(12), file.tell()
    file.seek(at - len(begin))
    formats = FORMATS
    # HEIF's container, the ISO base media file, says its type from the fifth byte on
    if begin[4:8] == b"ftyp" and find_spec("pillow_heif"):
        import pillow_heif  # only now: most processes never see such a file

        pillow_heif.register_heif_opener()
        formats = (*FORMATS, "HEIF")
    return Image.open(file, formats=formats)


def _open(file: IO[bytes], name: str, first_frame: bool = False) -> Image.Image:
    """PIL image of a file with one frame, or of the first one, not decoded yet."""
    image = open_picture(file)
    # An MPO is a JPEG with previews or a second eye behind it; its first frame is the photograph.
    plain = first_frame or image.format == "MPO"
    n_frames = 1 if plain else getattr(image, "n_frames", 1)
    if n_frames > 1:
        raise ImageReadError(
            f"image {name} has {n_frames} frames; which one is meant is not known. Save that one "
            "as a file of its own, or open it with Pillow, `seek` to it and pass the PIL image"
        )
    return image


def _loaded(
    image: Image.Image,
    name: str,
    bit_depth: int | None,
    max_pixels: int,
    shrink: Callable[[Image.Image], None] | None = None,
) -> Image.Image:
    """The same image, decoded after its header was found acceptable."""
    # Before `load`: a file of a few kB may claim, and take, gigabytes.
    check_pixel_count(*image.size, name, max_pixels)
    if bit_depth not in (None, 16):
        # Pillow decodes 16-bit colour to 8 bits; its raw mode tells before it does.
        raw_modes = [str(tile[3]) for tile in getattr(image, "tile", [])]
        if not image.mode.startswith("I") and any(";16" in mode for mode in raw_modes):
            raise ImageReadError(
                f"image {name} has 16-bit colour, which is read as its upper 8 bits; `bit_depth="
                f"{bit_depth}` cannot be applied. Pass a uint16 array instead"
            )
    if shrink is not None and image.format == "JPEG":
        shrink(image)
    image.load()
    return image


def _shrink(draft: Callable[[tuple[int, int]], int], upright: bool, image: Image.Image) -> None:
    """Let a JPEG that is not decoded yet be decoded smaller, by the factor for its upright size."""
    width, height = image.size
    turned = upright and image.getexif().get(_ORIENTATION, 1) in _QUARTER_TURNS
    factor = draft((height, width) if turned else (width, height))
    if factor > 1:
        # Pillow takes the smallest of libjpeg's scales that is not below this size
        image.draft(None, (width // factor, height // factor))


def _composite(image: Image.Image, background: int | tuple[int, int, int]) -> Image.Image:
    """RGB of `image` laid over a plain background."""
    colour = (background,) * 3 if isinstance(background, int) else tuple(background)
    canvas = Image.new("RGBA", image.size, (*colour, 255))
    canvas.alpha_composite(image.convert("RGBA"))
    return canvas.convert("RGB")


def _reason(error: Exception, source: Any) -> str:
    """One clause saying what went wrong, and what to do about it."""
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}; check the path and its permissions"
    if isinstance(error, Image.DecompressionBombError):
        return f"{error} It was not decoded; shrink it"
    if isinstance(error, Image.UnidentifiedImageError):
        head = _head(source)
        if not head:
            return "it is empty (0 bytes); remove or replace it"
        return f"it begins with {head!r}: not {', '.join(FORMATS)}. Convert or remove it"
    return f"{error or type(error).__name__}; the file is damaged or incomplete, replace it"


def _head(source: Any) -> bytes:
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source[:16])
    if isinstance(source, str | os.PathLike):
        with open_regular(source) as file:
            return file.read(16)
    source.seek(0)
    return source.read(16)


_CHANNELS = (1, 2, 3, 4)  # grey, grey and alpha, RGB, RGBA


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
    # Pillow scales a PPM of more than 8 bits to 16.
    if image.mode == "I" and bit_depth is None and image.format != "PPM":
        raise ImageReadError(
            f"image {name} has 32-bit pixels, whose range is not known; say `bit_depth=` (16, ...)"
        )
    return Image.fromarray(eight_bits(np.asarray(image), bit_depth or 16, name))


def image_from_array(
    source: np.ndarray | torch.Tensor, name: str, bit_depth: int | None, max_pixels: int
) -> Image.Image:
    """8-bit PIL image of an array (H, W[, C]) or a tensor (C, H, W) of uint8 or uint16."""
    pixels = pixels_last(source)
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
        pixels = eight_bits(pixels, bit_depth or 16, name)
    pixels = pixels[..., 0] if pixels.shape[2] == 1 else pixels
    return Image.fromarray(np.ascontiguousarray(pixels))
