"""Arrays of .npy and TIFF files: as NumPy and Pillow read them, or refused with the reason."""

import gc
import io
import struct
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from learnkit.data.image import read_image
from learnkit.errors import ImageReadError
from learnkit.storage.array_files import array_in, npy_shape, read_tiff, tiff_pages

PIXELS = np.random.default_rng(0).integers(0, 256, (13, 9, 5)).astype("uint8")
LIMIT = 1_000_000


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def tiff(pixels, *, order="<", planar=False, deflate=False, per_strip=4, extra=()):
    """A TIFF of any number of samples, written by its specification."""
    height, width, n = pixels.shape
    planes = np.moveaxis(pixels, 2, 0)[..., None] if planar else pixels[None]
    data = [
        plane[top : top + per_strip].astype(pixels.dtype.newbyteorder(order)).tobytes()
        for plane in planes
        for top in range(0, height, per_strip)
    ]
    data = [zlib.compress(strip) if deflate else strip for strip in data]
    body, offsets = b"", []
    for strip in data:
        offsets.append(8 + len(body))
        body += strip + b"\0" * (len(strip) % 2)
    tags = {
        256: [width],
        257: [height],
        258: [pixels.itemsize * 8] * n,
        259: [8 if deflate else 1],
        262: [1],
        273: offsets,
        277: [n],
        278: [per_strip],
        279: [len(strip) for strip in data],
        284: [2 if planar else 1],
        **dict(extra),
    }
    start = 8 + len(body)
    entries, rest = b"", b""
    after = start + 2 + 12 * len(tags) + 4
    for tag, values in sorted(tags.items()):
        packed = struct.pack(f"{order}{len(values)}I", *values)
        if len(packed) > 4:
            entries += struct.pack(f"{order}HHII", tag, 4, len(values), after + len(rest))
            rest += packed
        else:
            entries += struct.pack(f"{order}HHI", tag, 4, len(values)) + packed.ljust(4, b"\0")
    magic = b"II*\0" if order == "<" else b"MM\0*"
    directory = struct.pack(f"{order}H", len(tags)) + entries + struct.pack(f"{order}I", 0)
    return magic + struct.pack(f"{order}I", start) + body + directory + rest


@pytest.mark.parametrize("kind", ["uint8", "uint16", ">u2"])
def test_npy_is_numpys(kind):
    array = (PIXELS.astype(kind) * (1 if kind == "uint8" else 250)).astype(kind)
    found = array_in(io.BytesIO(npy(array)), 5, LIMIT)
    assert np.array_equal(found, array)
    assert found.dtype.isnative


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize("kind", ["uint8", "uint16"])
def test_tiff_of_any_layout_comes_back(order, planar, deflate, kind):
    array = (PIXELS.astype(kind) * (1 if kind == "uint8" else 250)).astype(kind)
    raw = tiff(array, order=order, planar=planar, deflate=deflate)
    assert np.array_equal(array_in(io.BytesIO(raw), 5, LIMIT), array)


@pytest.mark.parametrize("compression", [None, "tiff_adobe_deflate", "tiff_deflate"])
@pytest.mark.parametrize("predictor", [1, 2])
def test_tiff_of_pillow_is_read_as_pillow_does(compression, predictor):
    file, image = io.BytesIO(), Image.fromarray(np.ascontiguousarray(PIXELS[..., :3]))
    image.save(file, "TIFF", compression=compression, tiffinfo={317: predictor})
    file.seek(0)
    found = read_tiff(file, tiff_pages(file), big_endian=False)
    assert np.array_equal(found, np.asarray(Image.open(file)))


def test_pages_are_channels():
    pages = [Image.fromarray(np.ascontiguousarray(PIXELS[..., i])) for i in range(5)]
    file = io.BytesIO()
    pages[0].save(file, "TIFF", save_all=True, append_images=pages[1:])
    file.seek(0)
    assert np.array_equal(array_in(file, 5, LIMIT), PIXELS)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (npy(PIXELS[..., :4]), r"it has shape \(13, 9, 4\), and `channels` is 5: it must be"),
        (npy(PIXELS[..., None]), r"it has shape \(13, 9, 5, 1\)"),
        (npy(np.moveaxis(PIXELS, 2, 0)), "move its channels to the end"),
        (npy(PIXELS.astype("float32")), "it holds float32; save uint8 or uint16 in C order"),
        (npy(np.asfortranarray(PIXELS)), "it holds uint8 in Fortran order; save"),
        (npy(np.array([{}], dtype=object)), "it holds object"),
        (npy(PIXELS)[:-9], "cannot be read: "),
        (npy(PIXELS)[:20], "cannot be read: "),
        (tiff(PIXELS, extra={259: [5]}.items()), "plain or deflated (its compression is 5)"),
        (tiff(PIXELS)[:-200], "cannot be read: "),
        (tiff(PIXELS, deflate=True)[:40] + b"\0" * 900, "cannot be read: "),
        (tiff(PIXELS[..., :4]), r"it has shape \(13, 9, 4\), and `channels` is 5"),
        (
            tiff(PIXELS, extra={256: [90_000], 257: [90_000]}.items()),
            "over the limit of 50,000,000",
        ),
        (b"GIF89a", "it is no .npy or TIFF file, which alone have so many"),
        (b"", "it is no .npy or TIFF file"),
    ],
    ids=range(15),
)
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # Pillow says so before it fails
def test_what_is_not_that_is_refused_by_name(raw, message, tmp_path):
    path = tmp_path / "a.npy"
    path.write_bytes(raw)
    pattern = message if "\\" in message else message.replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(ImageReadError, match=r"a\.npy' cannot be read: ") as caught:
        read_image(path, channels=5)
    assert caught.match(pattern)


def test_files_read_in_many_threads_are_read_as_in_one():
    file = io.BytesIO()
    np.save(file, np.zeros((3, 4, 2), np.uint8))
    # a collection of garbage that hands the turn on, amid the parser's work: hypothesis has one
    hand_on, before = lambda *_: time.sleep(1e-5), gc.get_threshold()
    gc.callbacks.append(hand_on)
    gc.set_threshold(5)
    try:
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _: npy_shape(io.BytesIO(file.getvalue())), range(200)))
    finally:
        gc.set_threshold(*before)
        gc.callbacks.remove(hand_on)
    assert set(found) == {((3, 4, 2), np.dtype("uint8"))}
