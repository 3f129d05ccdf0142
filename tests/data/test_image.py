"""Every odd file gives either its right pixels or an error that names it."""

import io
import os
import resource
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from learnkit.data.dataset import ImageDataset
from learnkit.data.image import find_images, image_size, read_image
from learnkit.data.preprocess import Preprocessing
from learnkit.errors import DataError, ImageReadError


def pixels(image):
    return np.asarray(image).tolist()


def encode(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def noise(height=12, width=10, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, channels)).astype("uint8").squeeze()


def png(width, height, rows, depth=8, colour=2):
    """PNG bytes from raw filtered rows, whatever the header says."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


# -- the same image by any door -------------------------------------------------------------------


def test_every_kind_of_source_gives_the_same_pixels(tmp_path):
    array = noise()
    image = Image.fromarray(array)
    path = tmp_path / "x.png"
    image.save(path)
    with open(path, "rb") as file:
        sources = [path, str(path), path.read_bytes(), bytearray(path.read_bytes()), file, image]
        sources += [array, torch.from_numpy(array).permute(2, 0, 1), array[:, :, ::-1][:, :, ::-1]]
        for source in sources:
            got = read_image(source)
            assert type(got) is Image.Image
            assert got.mode == "RGB"
            assert pixels(got) == array.tolist()


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "WEBP"])
def test_lossless_formats_give_the_pixels_that_were_saved(format):
    array = noise()
    assert (
        pixels(read_image(encode(Image.fromarray(array), format, lossless=True))) == array.tolist()
    )


def test_jpeg_and_gif_give_pillows_pixels():
    for format in ("JPEG", "GIF"):
        data = encode(Image.fromarray(noise()), format)
        with Image.open(io.BytesIO(data)) as image:
            assert pixels(read_image(data)) == pixels(image.convert("RGB"))


def test_grey_comes_as_one_channel_or_three():
    array = noise(channels=1)
    for source in (array, array[..., None], torch.from_numpy(array)[None], Image.fromarray(array)):
        assert pixels(read_image(source, channels=1)) == array.tolist()
        assert pixels(read_image(source)) == np.stack([array] * 3, -1).tolist()


def test_reading_twice_changes_nothing_and_the_source_stays_as_it_was():
    image = Image.fromarray(noise(channels=4))
    before = pixels(image)
    once = read_image(image)
    assert pixels(read_image(once)) == pixels(once)
    assert pixels(image) == before
    array = noise()
    read_image(array).paste("red", (0, 0, 5, 5))
    assert (array == noise()).all()


# -- odd pixels ------------------------------------------------------------------------------------


def test_16_bit_grey_is_scaled_and_not_clipped(tmp_path):
    values = np.array([[0, 128, 129], [257, 32896, 65535]], dtype="uint16")
    wanted = [[0, 0, 1], [1, 128, 255]]
    for format in ("PNG", "TIFF"):
        path = tmp_path / f"deep.{format.lower()}"
        Image.fromarray(values).save(path)
        assert pixels(read_image(path, channels=1)) == wanted
    assert pixels(read_image(values, channels=1)) == wanted
    assert pixels(read_image(torch.from_numpy(values)[None], channels=1)) == wanted


def test_a_declared_bit_depth_spreads_its_range():
    values = np.array([[0, 2048, 4095]], dtype="uint16")
    assert pixels(read_image(values, channels=1, bit_depth=12)) == [[0, 128, 255]]
    assert pixels(read_image(encode(Image.fromarray(values)), channels=1, bit_depth=12)) == [
        [0, 128, 255]
    ]
    colour = np.stack([values] * 3, -1)
    assert pixels(read_image(colour, bit_depth=12)) == [[[0] * 3, [128] * 3, [255] * 3]]


def test_every_16_bit_value_is_rounded_to_nearest():
    values = np.arange(65536, dtype="uint16").reshape(256, 256)
    got = np.asarray(read_image(values, channels=1)).astype(int)
    assert (abs(got * 65535 - values.astype(int) * 255) <= 65535 / 2).all()


def test_values_beyond_the_declared_bits_are_refused():
    deep = Image.fromarray(np.array([[5000]], dtype="uint16"))
    with pytest.raises(ImageReadError, match=r"values 5000..5000, outside the 0..4095 of"):
        read_image(deep, bit_depth=12)


def test_bit_depth_leaves_8_bit_images_alone():
    assert pixels(read_image(noise(), bit_depth=12)) == noise().tolist()


def test_16_bit_colour_is_read_by_its_upper_bits_and_refuses_a_bit_depth():
    rows = b"\x00" + struct.pack(">6H", 0x1234, 0x5678, 0x9ABC, 0, 0xFFFF, 0x00FF)
    data = png(2, 1, rows, depth=16)
    assert pixels(read_image(data)) == [[[0x12, 0x56, 0x9A], [0, 255, 0]]]
    with pytest.raises(
        ImageReadError, match=r"has 16-bit colour.*`bit_depth=12` cannot be applied"
    ):
        read_image(data, bit_depth=12)


def test_32_bit_integers_need_a_declared_range():
    data = encode(Image.fromarray(np.array([[0, 1000, 1023]], dtype="int32")), "TIFF")
    with pytest.raises(
        ImageReadError, match=r"32-bit pixels, whose range is not known; say `bit_d"
    ):
        read_image(data)
    assert pixels(read_image(data, channels=1, bit_depth=10)) == [[0, 249, 255]]
    negative = Image.fromarray(np.array([[-1, 5]], dtype="int32"))
    with pytest.raises(ImageReadError, match=r"values -1..5, outside the 0..1023"):
        read_image(negative, bit_depth=10)


def test_float_tiffs_are_refused():
    data = encode(Image.fromarray(np.random.rand(4, 4).astype("float32")), "TIFF")  # noqa: NPY002
    with pytest.raises(ImageReadError, match="float pixels, whose range is not known; scale them"):
        read_image(data)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_every_common_mode_becomes_rgb_or_grey(mode):
    image = Image.fromarray(noise()).convert("RGB")
    image = image.convert("P").convert("PA") if mode == "PA" else image.convert(mode)
    opaque = image.convert("RGB")
    assert pixels(read_image(image)) == pixels(opaque)
    assert read_image(image, channels=1).mode == "L"


def test_cmyk_jpegs_keep_their_colours():
    image = Image.new("RGB", (16, 16), (200, 40, 90))
    got = np.asarray(read_image(encode(image.convert("CMYK"), "JPEG", quality=95)))
    assert abs(got.astype(int) - [200, 40, 90]).max() <= 4


def test_alpha_is_laid_over_the_background():
    image = Image.fromarray(np.array([[[100, 0, 200, a] for a in (255, 0, 128)]], dtype="uint8"))
    assert pixels(read_image(image))[0][:2] == [[100, 0, 200], [255] * 3]
    assert pixels(read_image(image, background=0))[0][1] == [0, 0, 0]
    assert pixels(read_image(image, background=(9, 8, 7)))[0][1] == [9, 8, 7]
    half = np.array(pixels(read_image(image, background=0))[0][2])
    assert abs(half - np.array([100, 0, 200]) * 128 / 255).max() <= 1


@pytest.mark.parametrize(("name", "mode"), [("x.ppm", "RGB"), ("x.pgm", "L"), ("x.pnm", "RGB")])
def test_plain_formats_are_found_and_give_the_pixels_that_were_saved(tmp_path, name, mode):
    saved = Image.fromarray(noise()).convert(mode)
    saved.save(tmp_path / name)
    assert find_images(tmp_path) == [tmp_path / name]
    assert pixels(read_image(tmp_path / name)) == pixels(saved.convert("RGB"))


def test_a_deep_pgm_is_read_by_its_own_range(tmp_path):
    values = [0, 100, 2000, 4095]
    data = b"P5 4 1 4095\n" + b"".join(value.to_bytes(2, "big") for value in values)
    found = np.asarray(read_image(data, channels=1)).ravel()
    np.testing.assert_allclose(found, np.array(values) / 4095 * 255, atol=0.51)


@pytest.mark.parametrize(("name", "needs"), [("x.avif", "PIL._avif"), ("x.heic", "pillow_heif")])
def test_photographs_of_phones_are_read_where_that_is_installed(tmp_path, name, needs):
    pytest.importorskip(needs)
    y, x = np.mgrid[:48, :64]
    wanted = np.stack([4 * x, 5 * y, 128 + 0 * x], axis=-1).astype("uint8")
    image = Image.fromarray(wanted)
    if needs == "pillow_heif":  # which is registered by reading alone
        image = pytest.importorskip(needs).from_pillow(image)
    image.save(tmp_path / name, quality=95)
    assert find_images(tmp_path) == [tmp_path / name]
    found = np.asarray(read_image(tmp_path / name)).astype(int)
    assert np.abs(found - wanted).mean() < 3
    assert image_size(tmp_path / name) == (64, 48)


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
def test_hidden_colours_behind_transparency_never_show(format):
    hidden = noise(channels=4)
    hidden[..., 3] = 0
    assert (
        np.asarray(read_image(encode(Image.fromarray(hidden), format), background=7)) == 7
    ).all()


def test_palettes_with_and_without_transparency():
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.putdata([0, 1, 2])
    plain = [[[10, 20, 30], [40, 50, 60], [70, 80, 90]]]
    assert pixels(read_image(encode(image))) == plain
    assert pixels(read_image(encode(image, "GIF"))) == plain
    clear = [[[10, 20, 30], [255] * 3, [70, 80, 90]]]
    assert pixels(read_image(encode(image, transparency=1))) == clear
    assert pixels(read_image(encode(image, "GIF", transparency=1))) == clear
    assert pixels(read_image(encode(image, transparency=b"\xff\x00\xff"))) == clear


def test_a_transparent_colour_key_is_seen_through():
    rgb = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], dtype="uint8"))
    assert pixels(read_image(encode(rgb, transparency=(1, 2, 3)), background=0)) == [
        [[0, 0, 0], [4, 5, 6]]
    ]
    grey = Image.fromarray(np.array([[50, 60]], dtype="uint8"))
    assert pixels(read_image(encode(grey, transparency=60), channels=1)) == [[50, 255]]


def test_one_bit_images_are_black_and_white():
    image = Image.fromarray(np.array([[0, 255, 255]], dtype="uint8")).convert("1")
    assert pixels(read_image(encode(image), channels=1)) == [[0, 255, 255]]


# -- orientation and frames ------------------------------------------------------------------------


# The standard says on which side row 0 and column 0 of the stored pixels belong.
UPRIGHT = {
    1: lambda s: s,  # top, left
    2: lambda s: s[:, ::-1],  # top, right
    3: lambda s: s[::-1, ::-1],  # bottom, right
    4: lambda s: s[::-1],  # bottom, left
    5: lambda s: s.swapaxes(0, 1),  # left, top
    6: lambda s: s.swapaxes(0, 1)[:, ::-1],  # right, top
    7: lambda s: s.swapaxes(0, 1)[::-1, ::-1],  # right, bottom
    8: lambda s: s.swapaxes(0, 1)[::-1],  # left, bottom
}


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_honoured(format, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {} if format == "JPEG" else {"lossless": True}
    stored = Image.fromarray(noise(24, 16))
    with Image.open(io.BytesIO(encode(stored, format, **options))) as image:
        wanted = UPRIGHT[orientation](np.asarray(image.convert("RGB")))
    assert pixels(read_image(encode(stored, format, exif=exif, **options))) == wanted.tolist()


def test_exif_orientation_can_be_ignored():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(Image.new("RGB", (6, 4)), exif=exif)
    assert read_image(data).size == (4, 6)
    assert read_image(data, exif_transpose=False).size == (6, 4)
    assert read_image(read_image(data)).size == (4, 6)


def test_16_bit_images_are_turned_too():
    exif = Image.Exif()
    exif[0x0112] = 6
    values = np.arange(6, dtype="uint16").reshape(2, 3) * 257
    got = read_image(encode(Image.fromarray(values), exif=exif), channels=1)
    assert pixels(got) == np.rot90(values // 257, -1).tolist()


@pytest.mark.parametrize("format", ["GIF", "TIFF", "PNG", "WEBP"])
def test_several_frames_are_refused_with_their_number(tmp_path, format):
    frames = [Image.fromarray(noise(seed=i)) for i in range(2)]
    path = tmp_path / f"many.{format.lower()}"
    frames[0].save(path, format, save_all=True, append_images=frames[1:])
    with pytest.raises(ImageReadError, match=r"many\.\w+' has 2 frames; .* `seek` to it and pass"):
        read_image(path)
    with Image.open(path) as image:
        image.seek(1)
        wanted = np.asarray(image.convert("RGB"))
        assert pixels(read_image(image)) == wanted.tolist()


def test_a_cameras_multi_picture_file_is_its_main_picture():
    first, second = (Image.fromarray(noise(16, 16, seed=i)) for i in range(2))
    data = encode(first, "MPO", save_all=True, append_images=[second])
    with Image.open(io.BytesIO(data)) as image:
        assert image.n_frames == 2
        assert pixels(read_image(data)) == pixels(image.convert("RGB"))


# -- damaged, foreign and absurd files -------------------------------------------------------------


@pytest.mark.parametrize("format", ["PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF"])
def test_truncated_files_are_named(tmp_path, format):
    data = encode(Image.fromarray(noise(64, 64)), format)
    for share in (0.3, 0.6, 0.9):
        path = tmp_path / "cut"
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(ImageReadError, match=r"cut' cannot be read: .*(replace|remove)"):
            read_image(path)


def test_an_empty_file_is_called_empty(tmp_path):
    path = tmp_path / "zero.jpg"
    path.touch()
    with pytest.raises(ImageReadError, match=r"zero.jpg' cannot be read: it is empty \(0 bytes\)"):
        read_image(path)
    with pytest.raises(ImageReadError, match="image of 0 bytes cannot be read"):
        read_image(b"")
    with pytest.raises(ImageReadError, match="it is empty"):
        read_image(io.BytesIO())


def test_a_web_page_called_jpg_is_shown_for_what_it_is(tmp_path):
    path = tmp_path / "page.jpg"
    path.write_text("<!DOCTYPE html><html>not found</html>", encoding="utf-8")
    with pytest.raises(ImageReadError, match=r"begins with b'<!DOCTYPE html><': not PNG, JPEG"):
        read_image(path)


def test_formats_off_the_list_are_not_tried(tmp_path):
    path = tmp_path / "x.png"
    Image.fromarray(noise()).save(path, "PCX")
    with pytest.raises(ImageReadError, match=r"begins with b'.n.x05.*: not PNG"):
        read_image(path)


def test_a_bad_checksum_is_found():
    data = bytearray(encode(Image.fromarray(noise(64, 64))))
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(ImageReadError, match="damaged or incomplete, replace it"):
        read_image(bytes(data))


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(ImageReadError, match=r"absent.png' cannot be read: there is no such file"):
        read_image(tmp_path / "absent.png")
    with pytest.raises(ImageReadError, match="cannot be read: Is a directory; check the path"):
        read_image(tmp_path)
    with pytest.raises(ImageReadError, match=r"cannot be read: embedded null"):
        read_image("a\0b")


def test_the_error_is_also_an_oserror_and_keeps_its_cause():
    with pytest.raises(OSError, match="cannot be read") as caught:
        read_image(b"nonsense")
    assert caught.value.__cause__ is not None


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [9_000, 10_400, 30_000])
def test_a_bomb_is_refused_by_its_header_and_costs_no_memory(tmp_path, side, monkeypatch):
    path = tmp_path / "bomb.png"
    path.write_bytes(png(side, side, b"\0" * 1000))
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: pytest.fail("it was decoded"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ImageReadError, match=r"bomb.png'.*(over the limit|not decoded; shrink it)"):
        read_image(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


def test_the_cap_can_be_moved():
    with pytest.raises(ImageReadError, match=r"has 10 x 12 = 120 pixels, over the limit of 100"):
        read_image(encode(Image.fromarray(noise())), max_pixels=100)
    with pytest.raises(ImageReadError, match="over the limit of 100"):
        read_image(noise(), max_pixels=100)
    with pytest.raises(ImageReadError, match="over the limit of 100"):
        read_image(Image.fromarray(noise()), max_pixels=100)
    assert read_image(noise(), max_pixels=120).size == (10, 12)


@pytest.mark.parametrize("size", [(1, 1), (1, 20_000), (20_000, 1)])
def test_extreme_shapes_keep_their_pixels(size):
    array = noise(*size)
    array = array.reshape(*size, 3)
    assert pixels(read_image(encode(Image.fromarray(array)))) == array.tolist()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (noise().astype("float32"), "values of type float32, whose range is not known"),
        (noise().astype("int64"), "values of type int64"),
        (torch.zeros(3, 4, 4), "values of type torch.float32"),
        (noise()[None], r"shape \(1, 12, 10, 3\); it must be \(H, W\) or \(H, W, C\)"),
        (np.zeros(5, "uint8"), r"shape \(5,\)"),
        (np.zeros((4, 4, 7), "uint8"), r"shape \(4, 4, 7\); .* C from 1 to 4"),
        (torch.zeros(12, 10, 3, dtype=torch.uint8), r"shape \(12, 10, 3\); it must be \(C, H, W\)"),
        (torch.zeros(12, 10, dtype=torch.uint8), r"shape \(12, 10\); it must be \(C, H, W\)"),
        (np.zeros((0, 4, 3), "uint8"), "is 4 x 0; it has no pixels"),
        ([[1, 2]], "`source` is a list; an image is read from a path, bytes"),
        (None, "`source` is a NoneType"),
        (7, "`source` is a int"),
    ],
)
def test_sources_that_are_no_images_are_refused(source, message):
    with pytest.raises(ImageReadError, match=message):
        read_image(source)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 17}, "`channels` is 17; it must be 3"),
        ({"bit_depth": 7}, "`bit_depth` is 7; it must be None or an integer from 8 to 32"),
        ({"bit_depth": True}, "`bit_depth` is True"),
        ({"background": -1}, "`background` is -1; it must be 0..255"),
        ({"background": (1, 2)}, r"`background` is \(1, 2\)"),
        ({"max_pixels": 0.5}, "`max_pixels` is 0.5"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(DataError, match=message):
        read_image(noise(), **options)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_flipped_bytes_give_an_image_or_a_named_error():
    rng = np.random.default_rng(0)
    for format in ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF"):
        whole = encode(Image.fromarray(noise(16, 16)), format)
        for _ in range(60):
            data = bytearray(whole)
            for position in rng.integers(0, len(data), 3):
                data[position] = rng.integers(0, 256)
            try:
                image = read_image(bytes(data))
            except ImageReadError as error:
                message = str(error)
            else:
                message = f"image of {len(data)} bytes" if image.mode == "RGB" else ""
            assert message.startswith(f"image of {len(data)} bytes")


def test_pillows_global_settings_are_never_touched(tmp_path, monkeypatch):
    (tmp_path / "cut.jpg").write_bytes(encode(Image.fromarray(noise(64, 64)), "JPEG")[:600])
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
    for source in (png(9_000, 9_000, b""), tmp_path / "cut.jpg"):
        with pytest.raises(ImageReadError):
            read_image(source)
    assert before == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)


def test_eight_threads_read_what_one_reads(tmp_path):
    paths = []
    for i in range(24):
        paths.append(tmp_path / f"{i}.{'png' if i % 2 else 'jpg'}")
        Image.fromarray(noise(40, 30, seed=i)).save(paths[-1])
    alone = [pixels(read_image(path)) for path in paths]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda path: pixels(read_image(path)), paths))
    assert together == alone


@pytest.mark.parametrize("format", ["PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF"])
@pytest.mark.parametrize("orientation", [None, 1, 3, 6, 8])
def test_the_size_is_that_of_the_pixels_without_decoding_them(
    format, orientation, tmp_path, monkeypatch
):
    file, exif = tmp_path / "image", Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    file.write_bytes(encode(Image.new("RGB", (9, 5)), format, exif=exif))
    as_read = [read_image(file, exif_transpose=turn).size for turn in (True, False)]
    if format != "WEBP":  # whose decoder opens the whole file
        monkeypatch.setattr(ImageFile.ImageFile, "load", None)
    assert [image_size(file, exif_transpose=turn) for turn in (True, False)] == as_read


def test_the_size_of_what_is_no_image_is_an_error_that_names_it(tmp_path):
    (tmp_path / "text.png").write_text("no image")
    for file in (tmp_path / "text.png", tmp_path / "missing.png", str(tmp_path)):
        with pytest.raises(ImageReadError, match=str(file)):
            image_size(file)


def within(seconds, function):
    """What a function that might wait for ever raises."""
    with ThreadPoolExecutor(1) as pool, pytest.raises(Exception) as caught:  # noqa: PT011
        pool.submit(function).result(seconds)
    return caught.value


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
class TestPipes:
    @pytest.fixture
    def pipe(self, tmp_path):
        path = tmp_path / "a" / "pipe.png"
        path.parent.mkdir()
        os.mkfifo(path)
        # released in the end, so that a reader that does wait fails the test and no more
        yield path
        os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK))

    @pytest.mark.parametrize("read", [read_image, image_size, Preprocessing(8).read])
    def test_a_pipe_among_the_images_is_refused_at_once(self, pipe, read):
        error = within(20, lambda: read(pipe))
        assert isinstance(error, ImageReadError)
        assert "pipe.png' cannot be read: it is a pipe or a device, no regular file" in str(error)

    def test_the_rest_of_a_folder_is_checked_and_digested(self, pipe):
        Image.fromarray(noise()).save(pipe.with_name("b.png"))
        data = ImageDataset.from_folder(pipe.parent.parent)
        found = data.check(progress=False)
        assert "pipe.png" in found.loc[found["finding"] == "unreadable", "path"].item()
        assert isinstance(within(20, lambda: data.fingerprint(content=True)), ImageReadError)

    def test_a_device_is_refused_and_a_link_to_a_file_is_read(self, tmp_path):
        with pytest.raises(ImageReadError, match="pipe or a device"):
            read_image("/dev/zero")
        Image.fromarray(noise()).save(tmp_path / "b.png")
        (tmp_path / "c.png").symlink_to(tmp_path / "b.png")
        assert pixels(read_image(tmp_path / "c.png")) == noise().tolist()
