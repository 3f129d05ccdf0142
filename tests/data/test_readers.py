"""Folders, file names and tables become datasets, or an error names what is wrong."""

import os
import re
import unicodedata
from pathlib import Path

import pandas as pd
import pytest
from helpers import write_image_folder
from PIL import Image

from learnkit.data import image
from learnkit.data.dataset import ImageDataset
from learnkit.data.image import find_images
from learnkit.errors import DataError


def touch(root, *names):
    """Empty files: readers look at names only."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def test_folders_are_classes_and_rows_are_sorted(tmp_path):
    data = ImageDataset.from_folder(write_image_folder(tmp_path, {"b": 2, "a": 3}))
    assert data.classes == ["a", "b"]
    assert data.frame["path"].tolist() == [f"a/00{i}.png" for i in range(3)] + [
        f"b/00{i}.png" for i in range(2)
    ]
    assert all(path.is_file() for path in data.paths)
    assert data.splits == []


def test_the_immediate_parent_is_the_label_at_any_depth(tmp_path):
    data = ImageDataset.from_folder(touch(tmp_path, "x/good/1.png", "y/good/1.png", "bad/2.JPG"))
    assert dict(zip(data.frame["path"], data.labels, strict=True)) == {
        "bad/2.JPG": "bad",
        "x/good/1.png": "good",
        "y/good/1.png": "good",
    }


@pytest.mark.parametrize("names", [("train", "val"), ("train", "valid", "test"), ("Train", "VAL")])
def test_top_level_split_folders_are_splits(tmp_path, names):
    touch(tmp_path, *[f"{name}/{label}/1.png" for name in names for label in ("a", "b")])
    data = ImageDataset.from_folder(tmp_path)
    assert data.classes == ["a", "b"]
    assert data.splits == ["train", "valid", "test"][: len(names)]
    assert (data.counts() == 1).all(axis=None)
    assert data.check_split() is None


def test_split_names_beside_other_folders_are_classes(tmp_path):
    data = ImageDataset.from_folder(touch(tmp_path, "train/1.png", "boat/2.png"))
    assert data.classes == ["boat", "train"]
    assert data.splits == []


def test_classes_named_like_splits_can_be_asked_for(tmp_path):
    touch(tmp_path, "train/1.png", "test/2.png")
    with pytest.raises(DataError, match=r"2 images outside class folders.*`splits=False`"):
        ImageDataset.from_folder(tmp_path)
    assert ImageDataset.from_folder(tmp_path, splits=False).classes == ["test", "train"]


def test_no_folder_and_no_images_say_where_they_looked(tmp_path):
    with pytest.raises(DataError, match=r"absent' does not exist or is not a folder"):
        ImageDataset.from_folder(tmp_path / "absent")
    touch(tmp_path, "a/notes.txt")
    with pytest.raises(DataError, match=r"no images found under .* \.bmp, \.gif"):
        ImageDataset.from_folder(tmp_path)


def test_images_outside_class_folders_are_refused(tmp_path):
    touch(tmp_path, "a/1.png", "loose.png")
    with pytest.raises(DataError, match=r"1 image outside class folders, such as .*loose.png"):
        ImageDataset.from_folder(tmp_path)


def test_an_empty_class_folder_is_named_or_kept_as_a_class(tmp_path):
    touch(tmp_path, "a/1.png", "b/1.png", "void/notes.txt", "deep/c/1.png", "deep/hollow/x.txt")
    with pytest.raises(
        DataError, match=r"2 class folders without images: \['void', 'deep/hollow'\]"
    ):
        ImageDataset.from_folder(tmp_path)
    data = ImageDataset.from_folder(tmp_path, allow_empty=True)
    assert data.classes == ["a", "b", "c", "hollow", "void"]
    assert data.counts().loc["void"].sum() == 0


def test_a_class_missing_from_one_split_is_no_empty_class(tmp_path):
    touch(tmp_path, "train/a/1.png", "train/b/1.png", "val/a/2.png")
    (tmp_path / "val" / "b").mkdir()
    (tmp_path / "test").mkdir()
    assert ImageDataset.from_folder(tmp_path).counts().loc["b"].tolist() == [1, 0]


def test_hidden_files_and_folders_are_skipped(tmp_path):
    names = ["a/1.png", "a/._1.png", ".git/x.png", "__MACOSX/a/1.png", "a/.thumbs/1.png"]
    names += ["_removed/a/2.png", "_unusable/3.png"]
    assert len(ImageDataset.from_folder(touch(tmp_path, *names))) == 1


def test_folder_names_that_look_the_same_are_refused(tmp_path):
    twins = [unicodedata.normalize(form, "Gehäuse") for form in ("NFC", "NFD")]
    touch(tmp_path, *[f"{name}/1.png" for name in twins])
    if len(list(tmp_path.iterdir())) < 2:
        pytest.skip("this file system knows one spelling only")
    with pytest.raises(DataError, match="spelled in 2 ways that look the same"):
        ImageDataset.from_folder(tmp_path)


def test_decomposed_folder_names_find_their_files(tmp_path):
    name = unicodedata.normalize("NFD", "Gehäuse")
    data = ImageDataset.from_folder(write_image_folder(tmp_path, {name: 1, "b": 1}))
    assert data.classes == ["Gehäuse", "b"]
    assert all(path.is_file() for path in data.paths)


def test_links_out_of_the_folder_are_followed_and_loops_are_not(tmp_path):
    touch(tmp_path / "elsewhere", "1.png", "2.png")
    root = touch(tmp_path / "root", "a/1.png")
    (root / "b").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "loop").symlink_to(root)
    (root / "a" / "one.png").symlink_to(tmp_path / "elsewhere" / "1.png")
    data = ImageDataset.from_folder(root)
    assert data.frame["path"].tolist() == ["a/1.png", "a/one.png", "b/1.png", "b/2.png"]


def test_find_images_sorts_and_knows_extensions_in_any_case(tmp_path):
    touch(tmp_path, "b.PNG", "a.jpeg", "c/d.webp", "e.txt", "f.png.bak", "g.TIF")
    names = [path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path)]
    assert names == ["a.jpeg", "b.PNG", "c/d.webp", "g.TIF"]


def test_images_in_formats_that_are_not_read_are_counted_and_said(tmp_path):
    touch(tmp_path, "a/x.dcm", "a/y.DCM", "b/z.psd", "b/.hidden.psd", "a/notes.txt")
    write_image_folder(tmp_path, {"a": 2, "b": 2})
    named = ImageDataset.from_names(tmp_path, r"(\d)")
    for data in (ImageDataset.from_folder(tmp_path), named):
        assert "; skipped 2 .dcm, 1 .psd; " in repr(data)
        assert "skipped 2 .dcm, 1 .psd" in data._repr_html_()
        findings = data.split(0.5, 0.5).check(min_images=0, progress=False)
        row = findings[findings["finding"] == "skipped files"].iloc[0]
        assert (row["severity"], row["path"]) == ("warning", "")
        assert row["detail"].startswith("3 images not read (2 .dcm, 1 .psd); convert them")
        assert [Path(path).name for path in row["paths"]] == ["x.dcm", "y.DCM", "z.psd"]
        kept = data.drop(findings)  # what the finding is about is no image of the dataset
        assert len(kept) == len(data)
        assert "skipped" not in repr(kept)
    with pytest.warns(UserWarning, match=r"3 images not read \(2 .dcm, 1 .psd\)"):
        assert len(find_images(tmp_path)) == 4
    touch(tmp_path / "raw", "a/1.cr2")
    with pytest.raises(DataError, match=r"no images found .*; 1 image not read \(1 .cr2\)"):
        ImageDataset.from_folder(tmp_path / "raw")


def test_what_heic_needs_is_said_where_it_is_not_installed(monkeypatch):
    assert "heif" not in image.unread_text(["a.psd"])
    monkeypatch.setattr(image, "IMAGE_EXTENSIONS", frozenset({".png"}))
    text = image.unread_text(["a.HEIC", "b.psd"])
    assert 'for .heic and .heif `pip install "learnkit[heif]"`; others: convert them' in text


@pytest.mark.parametrize("names", [("Train", "Test", "Meta"), ("train", "val", "extra", "more")])
def test_splits_beside_other_folders_with_images_are_asked_about(tmp_path, names):
    train, test, *others = names
    touch(tmp_path, f"{train}/a/1.png", f"{train}/b/1.png", f"{test}/a/2.png")
    for name in others:
        (tmp_path / name).mkdir()
        (tmp_path / name / "about.txt").touch()
    data = ImageDataset.from_folder(tmp_path)  # without images they are no classes
    assert (data.classes, len(data.splits)) == (["a", "b"], 2)
    touch(tmp_path, *[f"{name}/0.png" for name in others])
    with pytest.raises(DataError) as caught:
        ImageDataset.from_folder(tmp_path)
    wanted = f"has the splits {sorted([train, test])} beside {', '.join(map(repr, others))} with"
    assert wanted in str(caught.value)
    assert "`splits=False`" in str(caught.value)
    assert ImageDataset.from_folder(tmp_path, splits=False).classes == sorted(["a", "b", *others])
    assert ImageDataset.from_folder(tmp_path / train).classes == ["a", "b"]


@pytest.fixture
def undecodable(tmp_path):
    """A folder with a file whose name is no UTF-8."""
    touch(tmp_path, "a/a_1.png")
    try:
        with open(os.fsencode(tmp_path) + b"/a/a_\xff.png", "wb"):
            pass
    except OSError:
        pytest.skip("this file system refuses such names")
    return tmp_path


def test_an_undecodable_file_name_survives(undecodable):
    data = ImageDataset.from_folder(undecodable)
    assert all(path.is_file() for path in data.paths)
    assert len(data.fingerprint()) == 64
    named = ImageDataset.from_names(undecodable, r"(?P<label>\w)_(?P<serial>.*)")
    assert set(named.frame["serial"]) == {"1.png", os.fsdecode(b"\xff.png")}
    again = ImageDataset.from_halcon(named.to_halcon())
    assert again.paths == named.paths == data.paths


def test_findings_name_undecodable_files_and_drop_them(undecodable):
    data = ImageDataset.from_folder(undecodable)
    findings = data.check(progress=False)
    empty = findings[findings["finding"] == "empty file"]
    assert set(empty["path"]) == {"a/a_1.png", os.fsdecode(b"a/a_\xff.png")}
    assert not len(data.drop(empty))


def test_a_class_name_that_is_no_text_is_refused(tmp_path):
    try:
        os.mkdir(os.fsencode(tmp_path) + b"/\xff")
    except OSError:
        pytest.skip("this file system refuses such names")
    (tmp_path / os.fsdecode(b"\xff") / "1.png").touch()
    with pytest.raises(DataError, match=r"'\\udcff'.*is no text.*rename"):
        ImageDataset.from_folder(tmp_path)


def test_names_are_labelled_by_the_group_of_a_pattern(tmp_path):
    touch(tmp_path, "cat_1.png", "sub/dog_2.png", "dog_3.jpg")
    data = ImageDataset.from_names(tmp_path, r"^([a-z]+)_\d+")
    assert dict(zip(data.frame["path"], data.labels, strict=True)) == {
        "cat_1.png": "cat",
        "dog_3.jpg": "dog",
        "sub/dog_2.png": "dog",
    }


def test_further_named_groups_become_columns_to_group_by(tmp_path):
    touch(
        tmp_path,
        *[f"{label}-{serial}-{i}.png" for label in "ab" for serial in range(6) for i in "xy"],
    )
    data = ImageDataset.from_names(tmp_path, r"(?P<label>\w)-(?P<serial>\d)")
    split = data.split(0.5, 0.5, group="serial").frame
    assert (split.groupby("serial")["split"].nunique() == 1).all()


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (r"(\d+)", r"does not match 1 of 2 file names, such as 'x.png'"),
        (r"\w+", "has 0 groups; it must have one"),
        (r"(a)(b)", "has 2 groups"),
        (r"(", "is no regular expression"),
        (r"(?P<label>.)(?P<split>.)", "names a group 'split', which is a column"),
    ],
)
def test_patterns_that_cannot_label_are_refused(tmp_path, pattern, message):
    touch(tmp_path, "1.png", "x.png")
    with pytest.raises(DataError, match=message):
        ImageDataset.from_names(tmp_path, pattern)


def write_csv(root, text):
    touch(root, "1.png", "2.png", "3.png")
    (root / "labels.csv").write_text(text, encoding="utf-8")
    return root / "labels.csv"


def test_a_csv_is_read_as_text_beside_its_images(tmp_path):
    csv = write_csv(tmp_path, "path,label,serial\n1.png,NA,007\n2.png,010,008\n3.png,None,\n")
    data = ImageDataset.from_csv(csv)
    assert data.labels == ["NA", "010", "None"]
    assert data.root == tmp_path
    assert data.frame["serial"].tolist() == ["007", "008", ""]


def test_csv_columns_splits_and_several_labels(tmp_path):
    csv = write_csv(tmp_path, "file;tags;part\n1.png;a b;train\n2.png;;validation\n3.png;b;\n")
    data = ImageDataset.from_csv(
        csv, tmp_path, path_col="file", label_col="tags", split_col="part", label_delim=" ", sep=";"
    )
    assert data.labels == [("a", "b"), (), ("b",)]
    assert data.frame["split"].tolist() == ["train", "valid", ""]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_table_comes_back_out_of_its_csv(tmp_path, encoding):
    data = ImageDataset.from_folder(write_image_folder(tmp_path, {"Gehäuse": 4, "b": 4}))
    data = data.split(0.5, 0.5)
    data.frame.to_csv(tmp_path / "table.csv", index=False, encoding=encoding)
    back = ImageDataset.from_csv(tmp_path / "table.csv")
    pd.testing.assert_frame_equal(back.frame, data.frame)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\n1.png,a\n2.png,\n", r"1 image, such as '2.png', has no label"),
        ("path,label\n1.png,a\n9.png,b\n", r"1 of 2 images do not exist, such as '.*9.png'"),
        ("path,label\n1.png,a\n../2.png,b\n", r"'../2.png' climbs with '\.\.'"),
        ("path,label,label\n1.png,a,b\n", r"columns \['label'\] more than once"),
        ("file,label\n1.png,a\n", r"no column 'path'; it has \['file', 'label'\]"),
        ("path,label\n", "the table has no rows"),
        ("", "cannot be read"),
        ("path,label\n1.png,a,b,c\n", "cannot be read"),
        ("path,label,split\n1.png,a,holdout\n", r"split \['holdout'\] is not known"),
    ],
)
def test_a_broken_csv_is_refused(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        ImageDataset.from_csv(write_csv(tmp_path, text))


def test_a_missing_csv_is_named(tmp_path):
    with pytest.raises(DataError, match=r"absent.csv' cannot be read"):
        ImageDataset.from_csv(tmp_path / "absent.csv")


def test_a_table_keeps_its_other_columns_and_is_left_alone(tmp_path):
    touch(tmp_path, "1.png", "2.png")
    frame = pd.DataFrame({"f": ["1.png", "2.png"], "y": [0, 1], "weight": [0.5, 2.0]}, index=[7, 9])
    kept = frame.copy()
    data = ImageDataset.from_df(frame, tmp_path, path_col="f", label_col="y")
    assert data.labels == ["0", "1"]
    assert data.frame["weight"].tolist() == [0.5, 2.0]
    pd.testing.assert_frame_equal(frame, kept)


def test_a_table_with_a_column_in_the_way_is_refused(tmp_path):
    frame = pd.DataFrame({"f": ["1.png"], "label": ["a"], "path": ["x"]})
    with pytest.raises(DataError, match="has a column 'path' besides the one used for it"):
        ImageDataset.from_df(frame, tmp_path, path_col="f")


def test_files_need_not_exist_if_not_checked(tmp_path):
    frame = pd.DataFrame({"path": ["1.png"], "label": ["a"]})
    with pytest.raises(DataError, match="1 of 1 image do not exist"):
        ImageDataset.from_df(frame, tmp_path)
    assert len(ImageDataset.from_df(frame, tmp_path, check_files=False)) == 1


def test_missing_labels_in_a_table_are_refused(tmp_path):
    frame = pd.DataFrame({"path": ["1.png", "2.png"], "label": ["a", float("nan")]})
    with pytest.raises(DataError, match=r"1 image, such as '2.png', has no label"):
        ImageDataset.from_df(frame, tmp_path, check_files=False)


@pytest.mark.parametrize("delimiter", ["", 5, b";"])
def test_a_delimiter_is_text(tmp_path, delimiter):
    frame = pd.DataFrame({"path": ["1.png"], "label": ["a"]})
    message = re.escape(f"`label_delim` is {delimiter!r}; give the text between two labels")
    with pytest.raises(DataError, match=message):
        ImageDataset.from_df(frame, tmp_path, label_delim=delimiter, check_files=False)


def test_a_delimiter_needs_text(tmp_path):
    frame = pd.DataFrame({"path": ["1.png"], "label": [3]})
    with pytest.raises(DataError, match="label 3 is no text; `label_delim` splits text"):
        ImageDataset.from_df(frame, tmp_path, label_delim=",", check_files=False)


def test_real_files_can_be_shown_after_reading(tmp_path):
    data = ImageDataset.from_folder(write_image_folder(tmp_path, {"a": 1, "b": 1}))
    with Image.open(data.paths[0]) as image:
        assert image.size == (20, 24)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1", "utf-16"])
def test_a_csv_file_is_read_in_its_encoding(tmp_path, encoding):
    (tmp_path / "a.csv").write_text("path,label\n1.png,Größe\n", encoding=encoding)
    data = ImageDataset.from_csv(tmp_path / "a.csv", encoding=encoding, check_files=False)
    assert data.classes == ["Größe"]


def test_another_encoding_is_said_with_the_way_to_name_it(tmp_path):
    (tmp_path / "a.csv").write_text("path,label\n1.png,Größe\n", encoding="latin-1")
    with pytest.raises(DataError, match=r"a\.csv' is no text in 'utf-8' .*say its `encoding=`"):
        ImageDataset.from_csv(tmp_path / "a.csv")
    with pytest.raises(DataError, match="`encoding` is 'klingon', which Python does not know"):
        ImageDataset.from_csv(tmp_path / "a.csv", encoding="klingon")


def test_what_training_writes_beside_the_classes_is_no_class(tmp_path):
    write_image_folder(tmp_path, {"a": 2, "b": 2})
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "one.pth").write_bytes(b"x")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "manifest.json").write_text("{}")
    assert list(ImageDataset.from_folder(tmp_path).classes) == ["a", "b"]
    (tmp_path / "models" / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"1 class folder without images: \['models'\]"):
        ImageDataset.from_folder(tmp_path)


FLAGS = (
    "image,rust,dent,scratch,is_valid\n1,1,0,0,False\n2,0,1,0,True\n3,1,1,0,False\n4,0,0,0,True\n"
)


@pytest.mark.parametrize(
    "spell",
    [
        lambda text: text,
        lambda text: text.replace(",1", ",1.0").replace(",0", ",0.0"),
        lambda text: text.replace("True", "1").replace("False", "0"),
        lambda text: text.replace(",1", ",TRUE").replace(",0", ",FALSE"),
    ],
    ids=["digits", "floats", "split in digits", "words"],
)
@pytest.mark.parametrize("kind", ["csv", "df"])
def test_columns_of_0_and_1_are_classes_and_booleans_a_split(tmp_path, spell, kind):
    touch(tmp_path, *[f"{i}.png" for i in range(1, 5)])
    csv = write_csv(tmp_path, spell(FLAGS))
    given = csv if kind == "csv" else pd.read_csv(csv)  # numbers and booleans of their own types
    read = ImageDataset.from_csv if kind == "csv" else ImageDataset.from_df
    if kind == "df":
        given["image"] = given["image"].astype(str)
    columns = {"path_col": "image", "label_col": ["rust", "dent", "scratch"]}
    data = read(given, tmp_path, **columns, split_col="is_valid", suffix=".png")
    assert data.multi_label
    assert data.classes == ["dent", "rust", "scratch"]  # also that of which there is no image
    assert data.labels == [("rust",), ("dent",), ("dent", "rust"), ()]
    assert data.frame["split"].tolist() == ["train", "valid", "train", "valid"]
    assert data.frame["path"].tolist() == [f"{i}.png" for i in range(1, 5)]
    assert list(data.frame) == ["image_id", "path", "label", "split"]


def test_exactly_one_in_every_row_is_one_label_per_image(tmp_path):
    touch(tmp_path, "1.png", "2.png")
    csv = write_csv(tmp_path, "path,MEL,NV\n1.png,1.0,0.0\n2.png,0.0,1.0\n")
    data = ImageDataset.from_csv(csv, label_col=["MEL", "NV"])
    assert (data.multi_label, data.labels) == (False, ["MEL", "NV"])


def test_the_same_csv_gives_fastais_items_targets_and_split(tmp_path):
    import learnkit._torchvision  # noqa: F401  # before fastai

    from fastai.data.block import MultiCategoryBlock
    from fastai.vision.data import ImageDataLoaders

    touch(tmp_path / "images", *[f"{i}.png" for i in range(1, 5)])
    for i in range(1, 5):
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / f"{i}.png")
    csv = write_csv(tmp_path, FLAGS)
    columns = ["dent", "rust", "scratch"]
    dls = ImageDataLoaders.from_csv(
        tmp_path,
        csv.name,
        folder="images",
        fn_col="image",
        suff=".png",
        label_col=columns,
        valid_col="is_valid",
        y_block=MultiCategoryBlock(encoded=True, vocab=columns),
        num_workers=0,
    )
    data = ImageDataset.from_csv(
        csv,
        tmp_path / "images",
        path_col="image",
        suffix=".png",
        label_col=columns,
        split_col="is_valid",
    )
    for ours, theirs in ((data.train, dls.train_ds), (data.valid, dls.valid_ds)):
        names = [f"{image}.png" for image in theirs.items["image"]]
        assert [path.name for path in ours.paths] == names
        assert ours.targets.tolist() == [theirs[i][1].int().tolist() for i in range(len(theirs))]


@pytest.mark.parametrize("value", ["2", "", "yes"])
def test_label_columns_hold_0_and_1(tmp_path, value):
    csv = write_csv(tmp_path, f"path,a,b\n1.png,1,{value}\n")
    with pytest.raises(DataError, match=f"label column 'b' has '{value}'; .* holds 0 or 1"):
        ImageDataset.from_csv(csv, label_col=["a", "b"], check_files=False)


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ("path,a,label", {}, "no other column called 'label'"),
        ("path,a,c", {"label_delim": ";"}, "no `label_delim`"),
        ("path,b,c", {}, "the table has no column 'a'"),
    ],
)
def test_label_columns_stand_alone(tmp_path, columns, options, message):
    csv = write_csv(tmp_path, f"{columns}\n1.png,1,0\n")
    with pytest.raises(DataError, match=message):
        ImageDataset.from_csv(csv, label_col=["a"], check_files=False, **options)


def test_a_split_of_words_and_booleans_is_refused(tmp_path):
    csv = write_csv(tmp_path, "path,label,split\n1.png,a,True\n2.png,b,train\n")
    with pytest.raises(DataError, match=r"split \['True'\] is not known"):
        ImageDataset.from_csv(csv, check_files=False)


def test_a_csv_of_excel_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "a.csv").write_text("path,label\n1.png,a\n", encoding="utf-8-sig")
    assert ImageDataset.from_csv(tmp_path / "a.csv", check_files=False).labels == ["a"]
