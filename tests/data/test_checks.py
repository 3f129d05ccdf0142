"""Each fault that is planted is found, named and can be dropped; clean data give no findings."""

import io
import shutil

import numpy as np
import pytest
from helpers import show_progress_at_once, write_image_folder
from PIL import Image, ImageFilter

from learnkit.data import near_duplicates
from learnkit.data.checks import LIMITS, tones_of
from learnkit.data.dataset import ImageDataset
from learnkit.data.display import difference_picture
from learnkit.data.near_duplicates import is_moved, near_duplicate_groups, structure_and_spectrum
from learnkit.errors import DataError


def check(data, **options):
    return data.check(progress=False, **{"min_images": 1, **options})


def found(findings, name):
    return findings[findings["finding"] == name]


@pytest.fixture
def folder(tmp_path):
    return write_image_folder(tmp_path / "parts", {"nok": 6, "ok": 6})


def smooth(seed, side=96):
    """A random landscape whose thumbnail says what it is."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3)).astype("uint8")
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


def test_clean_data_give_an_empty_table_with_all_columns(folder):
    findings = check(ImageDataset.from_folder(folder))
    assert len(findings) == 0
    columns = ["finding", "severity", "path", "class", "split", "detail", "paths"]
    assert list(findings.columns) == columns


def test_empty_and_damaged_files_are_errors_with_their_place(folder):
    (folder / "ok" / "zero.png").touch()
    whole = (folder / "ok" / "000.png").read_bytes()
    (folder / "nok" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "nok" / "page.jpg").write_text("<html>404</html>", encoding="utf-8")
    data = ImageDataset.from_folder(folder)
    findings = check(data)
    assert findings["severity"].tolist() == ["error"] * 3
    assert found(findings, "empty file")["path"].tolist() == ["ok/zero.png"]
    bad = found(findings, "unreadable").set_index("path")
    assert list(bad.index) == ["nok/cut.png", "nok/page.jpg"]
    assert bad["class"].tolist() == ["nok", "nok"]
    assert "damaged or incomplete" in bad.loc["nok/cut.png", "detail"]
    assert "<html>" in bad.loc["nok/page.jpg", "detail"]
    assert len(data.drop(findings)) == 12
    assert check(data.drop(findings)).empty


def test_fast_reads_headers_only(folder):
    whole = (folder / "ok" / "000.png").read_bytes()
    (folder / "ok" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "ok" / "page.png").write_text("hello", encoding="utf-8")
    shutil.copy(folder / "nok" / "000.png", folder / "nok" / "copy.png")
    findings = check(ImageDataset.from_folder(folder), fast=True)
    assert found(findings, "unreadable")["path"].tolist() == ["ok/page.png"]
    assert found(findings, "duplicate")["path"].tolist() == ["nok/copy.png"]


def test_a_missing_file_is_unreadable(folder):
    data = ImageDataset.from_folder(folder)
    (folder / "ok" / "003.png").unlink()
    row = found(check(data), "unreadable").iloc[0]
    assert row["path"] == "ok/003.png"
    assert "No such file" in row["detail"]


def test_copies_name_all_but_the_one_to_keep(folder):
    for name in ("x.png", "y.png"):
        shutil.copy(folder / "ok" / "000.png", folder / "ok" / name)
    findings = check(ImageDataset.from_folder(folder))
    assert findings["finding"].tolist() == ["duplicate"] * 2
    assert findings["path"].tolist() == ["ok/x.png", "ok/y.png"]
    assert findings["severity"].tolist() == ["warning"] * 2
    assert findings["paths"].tolist() == [("ok/000.png", name) for name in findings["path"]]


def test_copies_across_splits_are_errors_and_the_one_in_train_goes(folder):
    shutil.copy(folder / "ok" / "000.png", folder / "ok" / "zzz.png")
    data = ImageDataset.from_folder(folder)
    frame = data.frame
    frame["split"] = ["test" if path == "ok/zzz.png" else "train" for path in frame["path"]]
    row = check(ImageDataset(frame, folder)).iloc[0]
    assert row["finding"] == "duplicate across splits"
    assert row["severity"] == "error"
    assert (row["path"], row["split"]) == ("ok/000.png", "train")
    assert row["detail"] == "of 'ok/zzz.png' in test"


def test_copies_with_another_label_are_all_suspect(folder):
    shutil.copy(folder / "ok" / "000.png", folder / "nok" / "same.png")
    findings = check(ImageDataset.from_folder(folder))
    assert set(findings["finding"]) == {"conflicting labels"}
    assert set(findings["path"]) == {"ok/000.png", "nok/same.png"}
    assert (findings["detail"] == "same file as nok and ok").all()


def test_recompressed_and_rescaled_images_are_near_duplicates_and_others_are_not(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    for i in range(30):
        smooth(i).save(tmp_path / "ab"[i % 2] / f"{i:02d}.png")
    smooth(4).save(tmp_path / "a" / "jpeg.jpg", quality=80)
    smooth(4).resize((64, 64), Image.Resampling.LANCZOS).save(tmp_path / "a" / "small.png")
    smooth(5).save(tmp_path / "a" / "other.jpg", quality=90)
    findings = check(ImageDataset.from_folder(tmp_path))
    near = found(findings, "near duplicate")
    assert near["path"].tolist() == ["a/jpeg.jpg", "a/small.png"]
    assert near["paths"].tolist() == [("a/04.png", "a/jpeg.jpg"), ("a/04.png", "a/small.png")]
    alike = found(findings, "look-alikes").iloc[0]
    assert set(alike["paths"]) == {"a/other.jpg", "b/05.png"}
    assert alike["path"] == ""
    assert alike["detail"] == "look the same but are labelled a and b"


def texture(seed, kind="grain", side=224):
    """An even surface that differs from others of its kind only in its fine structure."""
    rng, (y, x) = np.random.default_rng(seed), np.mgrid[:side, :side]
    grain = rng.normal(size=(side, side))
    smoother = (grain + np.roll(grain, 1, 0) + np.roll(grain, 1, 1) + np.roll(grain, 1, (0, 1))) / 2
    shift = rng.uniform(0, 6, 2)
    grey = (
        128
        + {
            "grain": 12 * grain,
            "faint": 4 * grain,
            "cloth": 6 * grain + 24 * np.sin(1.3 * x + shift[0]) * np.sin(1.1 * y + shift[1]),
            "lit alike": 12 * smoother + 70 * np.exp(-((x - 112) ** 2 + (y - 112) ** 2) / 16_000),
            "one part each": 6 * smoother + 90 * (np.hypot(x - side / 2, y - side / 2) < side / 3),
        }[kind]
    )
    return Image.fromarray(grey.clip(0, 255).astype("uint8")).convert("RGB")


def structure(image):
    return structure_and_spectrum(image)["structure"]


def spectrum(image):
    return structure_and_spectrum(image)["spectrum"]


KINDS = ("grain", "faint", "cloth", "lit alike", "one part each")


def copies(image):
    """Copies as they come about: by name the image and how it differs from `image`."""
    file, (width, height) = io.BytesIO(), image.size
    image.save(file, "JPEG", quality=85)
    bright = image.point(lambda value: min(255, round(1.05 * value + 4)))
    moved = Image.fromarray(np.roll(np.asarray(image), 1, (0, 1)))
    return {
        "smaller": image.resize((width * 2 // 3, height * 2 // 3), Image.Resampling.BICUBIC),
        "larger": image.resize((width * 2, height * 2), Image.Resampling.BILINEAR),
        "recompressed": Image.open(file),
        "brighter": bright,
        "moved": moved,
    }


@pytest.mark.parametrize("kind", KINDS)
def test_even_textures_are_told_apart_and_their_copies_found(kind):
    originals = [texture(seed, kind) for seed in range(20)]
    assert near_duplicate_groups(np.stack([*map(structure, originals)])) == []
    if kind == "one part each":  # one pixel moves the edge of the part by more than its texture
        found = {name: one for name, one in copies(originals[3]).items() if name != "moved"}
    else:
        found = copies(originals[3])
    for name, image in found.items():
        images = np.stack([*map(structure, [*originals, image])])
        assert near_duplicate_groups(images) == [[3, 20]], name


def groups_of(images):
    """Groups of images by their structures and spectra, and their pixels where it takes these."""
    compared = [np.stack([look(image) for image in images]) for look in (structure, spectrum)]
    return near_duplicate_groups(
        *compared, lambda i: np.asarray(images[i].convert("L"), np.float32)
    )


def moved_by(image, down, right):
    """The image moved, with its last row and column again where it leaves a gap."""
    padded = np.pad(np.asarray(image), [(2, 2), (2, 2), (0, 0)], mode="edge")
    height, width = image.height, image.width
    return Image.fromarray(padded[2 - down :, 2 - right :][:height, :width])


def recompressed(image, quality=85):
    """What JPEG leaves of it."""
    image.save(file := io.BytesIO(), "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


MOVES = [(1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-2, 2)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", [24, 32, 48, 96, 224])
def test_small_images_moved_by_a_pixel_or_two_are_found_and_others_told_apart(kind, side):
    originals = [texture(seed, kind, side) for seed in range(12)]
    assert groups_of(originals) == []
    for down, right in {24: MOVES[:4], 32: MOVES, 48: MOVES}.get(side, MOVES[4:]):
        moved = moved_by(originals[3], down, right)
        assert groups_of([*originals, moved]) == [[3, 12]], (down, right)


@pytest.mark.parametrize(
    ("change", "is_a_copy"),
    [
        (lambda image: image, True),
        (lambda image: recompressed(image, 95), True),
        (lambda image: image.point(lambda value: round(0.8 * value + 9)), True),
        (lambda image: image.point(lambda value: 255 - value), False),
        (lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), False),
        (lambda image: image.resize((31, 32)), False),
        (lambda image: Image.new("RGB", image.size, "grey"), False),
    ],
)
def test_of_a_moved_copy_only_place_and_light_may_differ(change, is_a_copy):
    image = texture(1, "cloth", 32)
    for down, right in [(0, 0), *MOVES]:
        pair = [np.asarray(one.convert("L"), np.float32) for one in (image, change(image))]
        pair[1] = np.roll(pair[1], (down, right), (0, 1))
        assert is_moved(*pair) is is_a_copy
        assert is_moved(*pair[::-1]) is is_a_copy


@pytest.mark.parametrize(("contrast", "flaw"), [(200, 220), (40, 40)])
def test_a_small_flaw_makes_another_picture_of_a_moved_board(contrast, flaw):
    rng = np.random.default_rng(0)
    board = np.kron(rng.integers(0, 2, (8, 8)), np.full((6, 6), contrast)).astype("float32")
    other = np.roll(board, 1, 1)
    assert is_moved(board, other)
    other[20:23, 20:23] = flaw - other[20:23, 20:23]
    assert not is_moved(board, other)


def test_images_moved_too_far_or_too_large_to_need_it_are_not_compared():
    image = texture(1, "cloth", 32)
    assert groups_of([image, moved_by(image, 2, 2)]) == [[0, 1]]
    assert groups_of([image, Image.fromarray(np.roll(np.asarray(image), 3, 1))]) == []
    assert spectrum(texture(0, side=256)).any()
    assert not spectrum(texture(0, side=257)).any()
    assert not spectrum(Image.new("RGB", (32, 32), "grey")).any()


def test_moved_copies_among_many_are_those_of_the_slow_loop(monkeypatch):
    monkeypatch.setattr(near_duplicates, "_BLOCK", 16)  # several blocks
    images = [texture(seed, "cloth", 32) for seed in range(30)]
    images += [moved_by(images[seed], seed % 3 - 1, 1) for seed in range(0, 30, 3)]
    images = [images[i] for i in np.random.default_rng(0).permutation(40)]
    pixels = [np.asarray(image.convert("L"), np.float32) for image in images]
    pairs = [[i, j] for j in range(40) for i in range(j) if is_moved(pixels[i], pixels[j])]
    assert len(pairs) == 10
    assert groups_of(images) == sorted(pairs)


def test_of_many_alike_few_are_read(monkeypatch):
    images = [texture(seed, "one part each", 32) for seed in range(60)]
    compared = [np.stack([look(image) for image in images]) for look in (structure, spectrum)]
    monkeypatch.setattr(near_duplicates, "_SPECTRA_ALIKE", -1)  # all are
    tried = []
    monkeypatch.setattr(near_duplicates, "is_moved", lambda a, b: bool(tried.append((a, b))))
    assert near_duplicate_groups(*compared, lambda i: i) == []
    assert len(tried) == 8 * 60
    x = compared[1] / np.linalg.norm(compared[1].astype(float), axis=1, keepdims=True)
    alike = np.sort((x @ x.T)[np.triu_indices(60, k=1)])
    assert min(x[i] @ x[j] for i, j in tried) == pytest.approx(alike[-8 * 60])


def test_a_check_finds_moved_copies_and_passes_over_files_gone_since(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    for seed in range(4):
        texture(seed, "cloth", 32).save(tmp_path / "a" / f"{seed}.png")
    deep = np.asarray(texture(7, "cloth", 32).convert("L")).astype("uint16") * 16
    for name, move in (("deep.png", 0), ("deeper.png", 1)):
        Image.fromarray(np.roll(deep, move, 0)).save(tmp_path / "a" / name)
    moved_by(texture(2, "cloth", 32), 0, 1).save(tmp_path / "a" / "moved.png")
    data = ImageDataset.from_folder(tmp_path)
    near = found(check(data), "near duplicate")
    assert near["paths"].tolist() == [("a/deep.png", "a/deeper.png"), ("a/2.png", "a/moved.png")]
    groups = near_duplicates.near_duplicate_groups

    def without_files(*args, **kwargs):
        (tmp_path / "a" / "moved.png").unlink()
        return groups(*args, **kwargs)

    monkeypatch.setattr("learnkit.data.checks.near_duplicate_groups", without_files)
    assert len(found(check(data), "near duplicate")) == 1


def test_images_without_contrast_are_compared_by_their_level():
    levels = [10, 10.4, 11, 50, 200, 201, 90]
    grain = np.random.default_rng(0).normal(0, 0.3, (len(levels), 90, 90))
    flat = np.rint(np.array(levels)[:, None, None] + grain).astype("uint8")
    images = [*map(Image.fromarray, flat), texture(0), texture(1)]
    structures = np.stack([*map(structure, images)])
    assert near_duplicate_groups(structures) == [[0, 1, 2], [4, 5]]


def test_near_duplicates_are_those_of_the_slow_loop(monkeypatch):
    monkeypatch.setattr(near_duplicates, "_BLOCK", 64)  # several blocks
    rng = np.random.default_rng(1)
    base = rng.integers(-127, 128, (120, 256))
    copies = base[:80] + rng.normal(0, 1, (80, 256)) * np.linspace(0, 90, 80)[:, None]
    flat = np.zeros((9, 256))
    flat[:, 0] = [3, 5, 4, 9, -128, 127, 11, 20, -20]
    x = np.concatenate([base, copies, flat]).clip(-128, 127).astype("int8")
    x = x[rng.permutation(len(x))]
    parent = np.arange(len(x))
    for i in range(len(x)):
        for j in range(i):
            a, b = x[i, 1:].astype(float), x[j, 1:].astype(float)
            lengths = np.linalg.norm(a) * np.linalg.norm(b)
            level = not a.any() and not b.any() and abs(int(x[i, 0]) - int(x[j, 0])) <= 1
            if level or (lengths and a @ b / lengths >= 0.88):
                parent[parent == parent[j]] = parent[i]
    slow = [np.flatnonzero(parent == root).tolist() for root in np.unique(parent)]
    groups = near_duplicate_groups(x)
    assert groups == sorted(group for group in slow if len(group) > 1)
    assert len(groups) > 20
    assert near_duplicate_groups(x[:0]) == []


def test_small_classes_are_counted_in_train(folder):
    data = ImageDataset.from_folder(folder)
    findings = found(check(data, min_images=7), "few images")
    assert findings["class"].tolist() == ["nok", "ok"]
    assert findings["detail"].tolist() == ["6 images in all, fewer than 7"] * 2
    split = data.split(0.5, 0.5)
    assert (
        found(check(split, min_images=4), "few images")["detail"].iloc[0].startswith("3 images in")
    )
    (folder / "empty").mkdir()
    empty = ImageDataset.from_folder(folder, allow_empty=True)
    assert found(check(empty), "few images")[["class", "severity"]].to_numpy().tolist() == [
        ["empty", "error"]
    ]


def test_a_class_without_images_in_a_split_is_told_with_a_remedy(folder):
    frame = ImageDataset.from_folder(folder).frame
    assert found(check(ImageDataset(frame, folder)), "absent from split").empty  # no split at all
    frame["split"] = ["train", "valid", "test"] * 4
    assert found(check(ImageDataset(frame, folder)), "absent from split").empty
    frame.loc[frame["label"] == "ok", "split"] = ["train"] * 5 + ["test"]
    findings = found(check(ImageDataset(frame, folder)), "absent from split")
    assert findings[["class", "severity", "path"]].to_numpy().tolist() == [["ok", "warning", ""]]
    detail = findings["detail"].iloc[0]
    assert detail.startswith("its images are 5 in train, 1 in test, none in valid, whose figures")
    assert "`split(..., overwrite=True)`" in detail
    frame.loc[frame["label"] == "ok", "split"] = "train"
    detail = found(check(ImageDataset(frame, folder)), "absent from split")["detail"].iloc[0]
    assert detail.startswith("its images are 6 in train, none in valid and test, whose")
    frame["label"] = [["nok"]] * 6 + [["nok", "ok"]] * 6
    findings = found(check(ImageDataset(frame, folder)), "absent from split")
    assert findings["class"].tolist() == ["ok"]
    assert found(check(ImageDataset(frame, folder).train), "absent from split").empty


def test_mixed_sizes_modes_and_extreme_shapes_are_reported(folder):
    Image.new("L", (300, 5), 9).save(folder / "ok" / "line.png")
    findings = check(ImageDataset.from_folder(folder)).set_index("finding")
    assert findings.loc["mixed modes", "detail"] == "RGB (12 images), L (1 image)"
    assert findings.loc["mixed sizes", "detail"] == "20 x 24 (12 images), 300 x 5 (1 image)"
    assert findings.loc["extreme aspect", "path"] == "ok/line.png"
    assert findings.loc["extreme aspect", "detail"] == "300 x 5 pixels"
    assert findings.loc["tiny image", "path"] == "ok/line.png"


@pytest.mark.parametrize(
    ("highest", "bits"), [(4000, 12), (4096, 14), (1023, 10), (200, 8), (20_000, 15)]
)
def test_16_bit_files_that_use_fewer_bits_get_a_bit_depth_suggested(tmp_path, highest, bits):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(3):
            values = rng.integers(0, highest, (20, 20)).astype("uint16")
            values[0, 0] = highest
            Image.fromarray(values).save(tmp_path / name / f"{i}.png")
    findings = check(ImageDataset.from_folder(tmp_path))
    assert findings["finding"].tolist() == ["unused bits"]
    assert f"values up to {highest} only" in findings["detail"][0]
    assert f"set `bit_depth={bits}`" in findings["detail"][0]
    assert len(findings["paths"][0]) == 6


def test_16_bit_files_that_use_their_bits_are_fine(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        values = np.random.default_rng(ord(name)).integers(0, 65536, (20, 20)).astype("uint16")
        Image.fromarray(values).save(tmp_path / name / "0.png")
    assert check(ImageDataset.from_folder(tmp_path)).empty


def test_dropping_ignores_findings_about_no_image_and_refuses_foreign_ones(folder):
    data = ImageDataset.from_folder(folder)
    findings = check(data, min_images=100)
    assert set(findings["path"]) == {""}
    assert len(data.drop(findings)) == 12
    findings["path"] = "ok/other.png"
    with pytest.raises(DataError, match=r"not in the dataset: \['ok/other.png'\]"):
        data.drop(findings)


def test_findings_come_worst_first_and_a_bar_shows_only_if_wanted(folder, capsys, monkeypatch):
    show_progress_at_once(monkeypatch)
    (folder / "ok" / "zero.png").touch()
    shutil.copy(folder / "ok" / "000.png", folder / "ok" / "copy.png")
    Image.new("RGB", (17, 19), "red").save(buffer := io.BytesIO(), "PNG")
    (folder / "nok" / "red.png").write_bytes(buffer.getvalue())
    data = ImageDataset.from_folder(folder)
    assert check(data)["severity"].tolist() == ["error", "warning", "info", "info"]
    assert "check images" not in capsys.readouterr().err
    data.check(min_images=1)
    assert "check images: 15 of 15 images" in capsys.readouterr().err


def test_multi_label_data_can_be_checked(folder):
    frame = ImageDataset.from_folder(folder).frame
    frame["label"] = [["a", "b"] if "nok" in path else ["a"] for path in frame["path"]]
    shutil.copy(folder / "ok" / "000.png", folder / "ok" / "001.png")
    row = check(ImageDataset(frame, folder)).iloc[0]
    assert (row["finding"], row["class"]) == ("duplicate", "a")


def noise(seed, side=64, low=0, high=256):
    return np.random.default_rng(seed).integers(low, high, (side, side)).astype("uint8")


def test_tones_are_those_of_a_slow_loop():
    pixels = noise(1)
    ordered = sorted(pixels.ravel().tolist())
    tones = tones_of(Image.fromarray(pixels))
    assert tones.low == ordered[int(np.ceil(0.01 * len(ordered))) - 1]
    assert tones.high == ordered[int(np.ceil(0.99 * len(ordered))) - 1]
    assert tones.contrast == pytest.approx(pixels.std())
    wide = np.pad(pixels.astype(float), 1, mode="edge")
    edges = [
        wide[i, j + 1] + wide[i + 2, j + 1] + wide[i + 1, j] + wide[i + 1, j + 2]
        - 4 * wide[i + 1, j + 1]
        for i in range(64)
        for j in range(64)
    ]  # fmt: skip
    assert tones.sharpness == pytest.approx(np.std(edges) / pixels.std(), rel=1e-5)


def test_sharpness_knows_neither_brightness_nor_contrast():
    pixels = noise(2, low=100, high=200)
    half = Image.fromarray(pixels // 2)
    assert tones_of(half).sharpness == pytest.approx(
        tones_of(Image.fromarray(pixels)).sharpness, rel=0.02
    )


@pytest.mark.parametrize(
    ("name", "picture", "detail"),
    [
        ("dark image", noise(3, high=50), "at most 49 of 255 (under 55)"),
        ("bright image", noise(4, low=210), "are above 210 of 255 (over 200)"),
        ("blank image", np.full((64, 64), 128, "uint8"), "grey levels deviate by 0 (under 1)"),
        ("blurred image", None, "(under 0.12)"),
    ],
    ids=["dark", "bright", "blank", "blurred"],
)
def test_pictures_that_show_little_are_found_and_their_limit_is_said(folder, name, picture, detail):
    if picture is None:
        picture = np.asarray(smooth(5).filter(ImageFilter.GaussianBlur(2)))
    Image.fromarray(picture).convert("RGB").save(folder / "ok/planted.png")
    (row,) = check(ImageDataset.from_folder(folder)).query("finding == @name").to_dict("records")
    assert (row["path"], row["severity"]) == ("ok/planted.png", "info")
    assert detail in row["detail"]
    key = name.split()[0]
    for limits in ({key: None}, {key: 254 if key == "bright" else 0}):
        assert found(check(ImageDataset.from_folder(folder), limits=limits), name).empty
    assert found(check(ImageDataset.from_folder(folder), fast=True), name).empty


def test_an_image_of_another_shape_than_the_others_is_odd(folder):
    Image.fromarray(noise(6, side=90)[:18]).convert("RGB").save(folder / "ok" / "wide.png")
    data = ImageDataset.from_folder(folder)
    (row,) = found(check(data), "odd shape").to_dict("records")
    assert row["path"] == "ok/wide.png"
    assert row["detail"] == "90 x 18 pixels, 6.0 times as wide as the middle image (over 2.5)"
    assert found(check(data, limits={"shape": 6.5}), "odd shape").empty
    few = data.filter([path.name == "wide.png" or path.stem == "000" for path in data.paths])
    assert found(check(few), "odd shape").empty


@pytest.mark.parametrize("limits", [{"dim": 3}, {"dark": -1}, {"dark": "55"}, {"side": True}])
def test_limits_that_are_none_are_refused(folder, limits):
    ((name, value),) = limits.items()
    with pytest.raises(DataError, match=f"`limits` has '{name}': {value!r}; give numbers of 0 or"):
        check(ImageDataset.from_folder(folder), limits=limits)
    assert "dark" in LIMITS


def test_the_difference_of_two_pictures_is_where_they_differ():
    one = Image.fromarray(np.full((80, 160, 3), 100, "uint8"))
    other = one.copy()
    other.paste((110, 100, 90), (40, 20, 60, 40))
    pixels = np.asarray(difference_picture(one, other))
    assert pixels.shape == (80, 160, 3)
    assert pixels[30, 50].tolist() == [40, 0, 40]
    assert not pixels[:15].any()
    assert not pixels[:, 70:].any()
    assert not np.asarray(difference_picture(one, one)).any()
    tall = Image.new("RGB", (10, 1000))
    assert difference_picture(tall, one).size == (160, 320)
