"""Masks say which class every pixel is of, whatever form they are saved in, and come back."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from learnkit.data.annotations.masks import (
    IGNORE,
    MaskCodes,
    ids_in,
    mask_codes,
    mask_pixels,
    masks_of_images,
    new_mask_files,
    read_mask,
    write_mask,
)
from learnkit.errors import DataError, ImageReadError

ANY = MaskCodes({number: number for number in range(300)})
SMALL = np.array([[0, 1, 2], [2, 0, 255]], np.uint8)


@settings(max_examples=40, deadline=None)  # of the disk
@given(
    arrays.arrays(
        st.sampled_from([np.uint8, np.uint16]),
        st.tuples(st.integers(1, 5), st.integers(1, 5)),
    )
)
def test_what_is_written_is_read_whatever_its_depth(tmp_path_factory, mask):
    path = tmp_path_factory.mktemp("masks") / "deep" / "mask.png"
    write_mask(path, mask)
    assert (mask_pixels(path, mask.shape[::-1]) == mask).all()
    with Image.open(path) as image:
        assert image.mode == ("L" if mask.max() < 256 else "I;16")


def test_ids_go_through_a_table_as_a_loop_would_do_it(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.choice([3, 7, 300, 65_535], (20, 30)).astype(np.uint16)
    write_mask(tmp_path / "m.png", pixels)
    codes = MaskCodes({3: 0, 7: 65_534, 300: 5}, (65_535,))
    meaning = {3: 0, 7: 65_534, 300: 5, 65_535: IGNORE}
    wanted = [[meaning[int(value)] for value in row] for row in pixels]
    found = read_mask(tmp_path / "m.png", codes, (30, 20))
    assert found.tolist() == wanted
    assert found.dtype == np.uint16
    assert ids_in(found) == [0, 5, 65_534]


@pytest.mark.parametrize("name", ["m.png", "m.tif", "m.bmp"])
@pytest.mark.parametrize("mode", ["L", "P", "1", "RGB", "RGBA", "I;16"])
def test_every_lossless_form_says_the_same(tmp_path, name, mode):
    values = (SMALL == 2).astype(np.uint8) * (255 if mode in ("RGB", "RGBA") else 1)
    image = Image.fromarray(values)
    if mode == "P":
        image.putpalette([9, 9, 9, 200, 0, 0])
    elif mode == "I;16":
        image = Image.fromarray(values.astype(np.uint16))
    elif mode == "1":
        image = Image.fromarray(values.astype(bool))
    elif mode in ("RGB", "RGBA"):
        image = image.convert(mode)
    if (name, mode) == ("m.bmp", "I;16"):
        pytest.skip("BMP has no 16-bit grey")
    image.save(tmp_path / name)
    found = read_mask(tmp_path / name, mask_codes(None, None, "crop", None)[1])
    assert found.tolist() == (SMALL == 2).astype(int).tolist()


@pytest.mark.parametrize("mode", ["RGB", "P", "RGBA"])
def test_colours_have_their_own_codes(tmp_path, mode):
    ids, codes = mask_codes(None, {"road": (128, 64, 128), "sky": [70, 130, 180]}, None, (0, 0, 0))
    assert ids == {"road": 0, "sky": 1}
    palette = {0: (128, 64, 128), 1: (70, 130, 180), IGNORE: (0, 0, 0)}
    wanted = np.array([[0, 1, 1], [IGNORE, 0, 1]])
    pixels = np.array([[palette[one] for one in row] for row in wanted.tolist()], np.uint8)
    image = Image.fromarray(pixels)
    (image.quantize(8) if mode == "P" else image.convert(mode)).save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png", codes).tolist() == wanted.tolist()


def test_all_but_zero_is_binary_and_what_is_ignored_is_not(tmp_path):
    write_mask(tmp_path / "m.png", SMALL)
    assert mask_codes(None, None, "defect", 255)[0] == {"background": 0, "defect": 1}
    found = read_mask(tmp_path / "m.png", mask_codes(None, None, "defect", 255)[1])
    assert found.tolist() == [[0, 1, 1], [1, 0, IGNORE]]


def test_classes_are_the_values_in_their_order():
    ids, codes = mask_codes(["soil", "crop"], None, None, [254, 255])
    assert ids == {"soil": 0, "crop": 1}
    assert codes == MaskCodes({0: 0, 1: 1}, (254, 255))
    assert codes.are_ids
    assert not mask_codes(None, {"a": (1, 2, 3)}, None, None)[1].are_ids


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (None, None, None, None),
            "`classes` is None, `codes` is None, `binary` is None; give",
        ),
        ((["a"], None, "b", None), r"`classes` is \['a'\], .* `binary` is 'b'; give one of them"),
        (("abc", None, None, None), "`classes` is 'abc'.*; give one of them: class names"),
        ((None, {"a": 1, "b": 1}, None, None), "`codes` gives several classes one code"),
        ((None, {"a": 65_535}, None, None), r"`codes` gives 'a' 65535; ids lie in 0..65534"),
        (
            (None, {"a": -1}, None, None),
            "code is -1; it is a pixel value in 0..65535, or a",
        ),
        ((None, {"a": (1, 2)}, None, None), r"code is \(1, 2\); it is a pixel value"),
        ((None, {"a": (1, 2, 256)}, None, None), r"code is \(1, 2, 256\)"),
        ((None, {"a": True}, None, None), "code is True"),
        (
            (None, {"a": 1, "b": (1, 2, 3)}, None, None),
            "mix values and colours; give all",
        ),
        ((None, {"a": 1}, None, 1), "the code 1 is of a class and in `ignore`; keep it in one"),
        ((["a"], None, None, "255"), "`ignore` is '255'; give a pixel value, a colour, or a list"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_codes_that_say_nothing_are_refused(arguments, message):
    with pytest.raises(DataError, match=message):
        mask_codes(*arguments)


def test_values_of_no_class_are_listed_with_their_pixels(tmp_path):
    write_mask(tmp_path / "m.png", SMALL)
    message = r"m.png' has the values 2 \(2 pixels\), 255 \(1 pixel\); known are 0, 1: name them"
    with pytest.raises(DataError, match=message):
        read_mask(tmp_path / "m.png", MaskCodes({0: 0, 1: 1}))
    Image.fromarray(np.dstack([SMALL, SMALL * 0, SMALL])).save(tmp_path / "c.png")
    with pytest.raises(DataError, match=r"in colour \(RGB\); say which colour is which class"):
        read_mask(tmp_path / "c.png", ANY)
    with pytest.raises(DataError, match=r"the colours \(2, 0, 2\) \(2 pixels\)"):
        read_mask(tmp_path / "c.png", MaskCodes({(0, 0, 0): 0, (1, 0, 1): 1}, ((255, 0, 255),)))


def test_files_that_change_values_or_are_no_mask_are_refused(tmp_path):
    grey = Image.fromarray(SMALL)
    for name, message in (
        ("m.jpg", "is a JPEG file, which may change"),
        ("m.gif", "is a GIF file"),
    ):
        grey.save(tmp_path / name)
        with pytest.raises(ImageReadError, match=message):
            read_mask(tmp_path / name, ANY)
    grey.convert("RGB").save(tmp_path / "j.tif", compression="jpeg")
    grey.save(tmp_path / "pages.tif", save_all=True, append_images=[grey])
    grey.convert("F").save(tmp_path / "f.tif")
    (tmp_path / "cut.png").write_bytes(_png(grey)[:-30])
    (tmp_path / "text.png").write_text("no mask")
    for name, message in (
        ("j.tif", "is a TIFF file, which may change pixel values; write masks as PNG or TIFF"),
        ("pages.tif", "has 2 pages; which one is meant is not known: keep one"),
        ("cut.png", "cannot be read"),
        ("text.png", "cannot be read"),
        ("none.png", "cannot be read: .*No such file"),
    ):
        with pytest.raises(ImageReadError, match=message):
            read_mask(tmp_path / name, ANY)
    with pytest.raises(DataError, match="is of mode F; ids are whole numbers, one a pixel"):
        read_mask(tmp_path / "f.tif", ANY)
    grey.save(tmp_path / "m.png")
    with pytest.raises(DataError, match="is 3 x 2 and its image 2 x 3; they must be of one size"):
        read_mask(tmp_path / "m.png", ANY, (2, 3))


def _png(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def test_a_mask_that_claims_to_be_huge_is_not_decoded(tmp_path):
    """The header of a small PNG is rewritten; its checksum is right."""
    import struct
    import zlib

    data = bytearray(_png(Image.fromarray(SMALL)))
    data[16:24] = struct.pack(">II", 9_000, 9_100)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    (tmp_path / "bomb.png").write_bytes(data)
    with pytest.raises(ImageReadError, match="9000 x 9100 pixels, over the limit"):
        read_mask(tmp_path / "bomb.png", ANY)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (
            np.zeros((2, 2)),
            r"`mask` is float64 of shape \(2, 2\); it must be whole numbers \(H, W\)",
        ),
        (np.zeros((2, 2, 3), int), r"of shape \(2, 2, 3\)"),
        (np.zeros((0, 2), int), r"of shape \(0, 2\)"),
        (np.array([[-1]]), r"has values -1..-1; they must lie in 0..65535"),
        (np.array([[65_536]]), r"has values 65536..65536"),
    ],
)
def test_what_is_no_mask_is_not_written(tmp_path, mask, message):
    with pytest.raises(DataError, match=message):
        write_mask(tmp_path / "m.png", mask)
    assert list(tmp_path.iterdir()) == []


def test_masks_are_found_by_name_below_the_same_folder():
    images = ["a/1.jpg", "a/2.jpeg", "b/1.png", "c/4.png"]
    masks = ["b/1_mask.png", "a/1.png", "a/2.tif", "1.png"]
    assert masks_of_images(images, masks) == ["a/1.png", "a/2.tif", "b/1_mask.png", None]
    with pytest.raises(DataError, match=r"'1.jpg' has 2 masks, '1.png', '1_mask.png'; keep one"):
        masks_of_images(["1.jpg"], ["1_mask.png", "1.png"])


def test_masks_are_written_into_a_new_folder_only(tmp_path):
    assert new_mask_files(["a/b.jpg"], tmp_path / "x") == [tmp_path / "x" / "a" / "b.png"]
    with pytest.raises(DataError, match="differ only in their extension"):
        new_mask_files(["a.jpg", "A.png"], tmp_path)
    with pytest.raises(DataError, match="lies outside the root; its mask has no place"):
        new_mask_files(["/a.jpg"], tmp_path)
    (tmp_path / "a.png").touch()
    with pytest.raises(DataError, match="holds something; give one that is new or empty"):
        new_mask_files(["a.jpg"], tmp_path)
