"""The table, its rules and its views; labels and paths that try to be something else."""

import hashlib
import json
import re
import sys
import types
import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from learnkit.data.dataset import ImageDataset
from learnkit.errors import DataError, ImageReadError, SplitError


def dataset(labels, splits=None, **columns):
    frame = pd.DataFrame({"path": [f"{i:03d}.png" for i in range(len(labels))], **columns})
    frame["label"] = pd.Series(labels, dtype=object)
    if splits is not None:
        frame["split"] = splits
    return ImageDataset(frame, "somewhere")


def test_the_table_has_the_promised_columns_and_types():
    data = dataset(["b", "a", "b"], ["train", "val", None], serial=[7, 8, 9])
    frame = data.frame
    assert list(frame.columns) == ["image_id", "path", "label", "split", "serial"]
    assert frame["image_id"].dtype == np.int64
    assert frame["split"].tolist() == ["train", "valid", ""]
    assert data.classes == ["a", "b"]
    assert data.n_classes == 2
    assert data.labels == ["b", "a", "b"]
    assert data.targets.tolist() == [1, 0, 1]
    assert data.paths == [Path("somewhere").absolute() / f"{i:03d}.png" for i in range(3)]
    assert len(data) == 3


@pytest.mark.parametrize(
    ("names", "order"),
    [
        ([str(i) for i in range(12)], [str(i) for i in range(12)]),
        (["10", "-2", "0", "9", "-11"], ["-11", "-2", "0", "9", "10"]),
        (["010", "9", "0001"], ["0001", "9", "010"]),
        (["7", "07", "6"], ["6", "07", "7"]),  # of one value, but two names
        ([1, 11, 2], ["1", "2", "11"]),
        # not all are integers: as text
        (["10", "9", "none"], ["10", "9", "none"]),
        (["10.5", "9", "1e3"], ["10.5", "1e3", "9"]),
        (["part10", "part9"], ["part10", "part9"]),
        (["10", "9", "²"], ["10", "9", "²"]),
        (["10", "9", "٣"], ["10", "9", "٣"]),
        (["9", "1" * 5000], ["1" * 5000, "9"]),  # more digits than Python reads as a number
    ],
)
def test_classes_are_in_the_order_of_their_numbers_where_all_are_integers(names, order):
    for labels in (names, names[::-1]):
        data = dataset(labels)
        assert data.classes == order
        assert [order[place] for place in data.targets] == list(map(str, labels))
        assert data.class_ids == list(range(len(order)))


def test_ids_of_a_dictionary_stay_with_their_names_and_digests_with_their_images():
    frame = pd.DataFrame({"path": ["a.png", "b.png"], "label": ["10", "9"]})
    data = ImageDataset(frame, "somewhere", class_ids={"10": 0, "9": 3})
    assert (data.classes, data.class_ids) == (["9", "10"], [3, 0])
    assert data.to_halcon()["class_names"] == ["10", "9"]
    # as it was when all names were sorted as text
    rows = [["a.png", "10", "", ""], ["b.png", "9", "", ""]]
    text = json.dumps([["10", "9"], rows], separators=(",", ":"))
    assert data.fingerprint() == hashlib.sha256(text.encode()).hexdigest()


def test_nothing_a_caller_gets_changes_the_dataset():
    frame = pd.DataFrame({"path": list("wxyz"), "label": list("aabb")})
    data = ImageDataset(frame, ".")
    before = data.fingerprint()
    frame.loc[0, "label"] = "changed"
    copy = data.frame
    copy.loc[0, "label"] = "changed"
    data.classes.append("c")
    data.labels[0] = "z"
    data.split(0.5, 0.5)
    data.filter([True, False, True, False])
    assert data.fingerprint() == before
    assert data.classes == ["a", "b"]


def test_multi_labels_are_sorted_tuples_and_targets_are_zeros_and_ones():
    data = dataset([["b", "a"], [], ["c", "c"]])
    assert data.multi_label
    assert data.labels == [("a", "b"), (), ("c",)]
    assert data.targets.tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]
    assert data.counts()["unassigned"].tolist() == [1, 1, 1]


def test_integer_labels_are_names_of_their_digits():
    assert dataset([3, np.int64(10), 3]).labels == ["3", "10", "3"]


@pytest.mark.parametrize(
    "name", ["NO", "010", "a/b", "../../etc", "\0", "nan", "None", "<b>", "$x$"]
)
def test_an_odd_class_name_stays_exactly_itself(name, tmp_path):
    data = ImageDataset(pd.DataFrame({"path": ["1.png", "2.png"], "label": [name, "x"]}), tmp_path)
    assert data.labels == [name, "x"]
    assert all(path.parent == tmp_path for path in data.paths)
    assert list(tmp_path.iterdir()) == []
    assert ImageDataset.from_halcon(data.to_halcon(), check_files=False).labels == [name, "x"]


def test_names_are_kept_in_composed_form():
    decomposed = unicodedata.normalize("NFD", "Gehäuse")
    assert dataset([decomposed, "b"]).classes == ["Gehäuse", "b"]


def test_two_spellings_that_look_the_same_are_refused():
    twins = [unicodedata.normalize(form, "Gehäuse") for form in ("NFC", "NFD")]
    with pytest.raises(DataError, match=r"'Gehäuse' is spelled in 2 ways .*\\xe4.*a\\u0308"):
        dataset(twins)


def test_names_that_differ_only_in_case_or_spaces_are_warned_of_at_the_callers_line():
    with pytest.warns(UserWarning, match=r"'OK', 'o k', 'ok'\] differ only in case") as caught:
        dataset(["ok", "OK", "o k", "bad"])
    assert caught[0].filename == __file__


def test_names_that_no_class_may_be_given_are_warned_of(recwarn):
    data = dataset(["-5 C", "=1+1", "ok"])
    (said,) = recwarn
    assert said.filename == __file__
    assert str(said.message) == (
        "class '-5 C' begins with '-': spreadsheets would compute it; begin with a letter or a "
        "digit (so it is with 1 more). A model trained on it keeps the name; no class can be given "
        "one like it later"
    )
    data.filter([True, False, True])
    assert dataset(["-1", "7"]).classes == ["-1", "7"]  # numbers stay what they are
    assert len(recwarn) == 1


def test_letters_may_differ_in_case_on_purpose(tmp_path, recwarn):
    frame = pd.DataFrame({"path": ["0.png", "1.png"], "label": ["A", "a"]})
    frame.to_csv(tmp_path / "labels.csv", index=False)
    for name in ("A_0", "a_1"):
        (tmp_path / f"{name}.png").touch()
    halcon = ImageDataset(frame, tmp_path, case_sensitive=True).to_halcon()
    said = {"case_sensitive": True}
    made = [
        ImageDataset.from_df(frame, tmp_path, check_files=False, **said),
        ImageDataset.from_csv(tmp_path / "labels.csv", check_files=False, **said),
        ImageDataset.from_names(tmp_path, r"(\w)_", **said),
        ImageDataset.from_halcon(halcon, check_files=False, **said),
    ]
    assert not len(recwarn)
    for data in made:
        assert (data.classes, data.case_sensitive) == (["A", "a"], True)
        assert data.sample(1).case_sensitive
    assert not ImageDataset(frame[:1], tmp_path).case_sensitive
    frame["label"] = ["a b", "ab"]
    with pytest.warns(UserWarning, match=r"differ only in spaces; are they meant to be one\?$"):
        ImageDataset(frame, tmp_path, **said)


def test_one_text_is_no_list_of_classes(tmp_path):
    frame = pd.DataFrame({"path": ["0.png", "1.png"], "label": ["1", "2"]})
    with pytest.raises(DataError, match="`classes` is the text '12'; give a list"):
        ImageDataset(frame, tmp_path, classes="12")


@pytest.mark.parametrize("seed", [-1, 1.5, "x", True])
def test_a_seed_is_a_whole_number(seed):
    data = dataset(["a", "b"] * 4)
    rule = re.escape(f"`seed` is {seed!r}; give a whole number from 0 on, or None for another")
    with pytest.raises(DataError, match=rule):
        data.split(seed=seed)
    with pytest.raises(DataError, match=rule):
        data.sample(2, seed=seed)
    assert len(data.sample(2, seed=np.int64(3))) == len(data.sample(2, seed=None)) == 2
    assert data.split(0.5, 0.5, seed=None).splits == ["train", "valid"]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a", float("nan"), None], "have no label"),
        (["a", " "], r"1 image, such as '001.png', has no label \(seen: ' '\)"),
        (["a", 1.5], r"has the label 1.5 \(float\); labels are names or integers"),
        (["a", True], r"label True \(bool\)"),
        (["a", ["b"]], "mix single names and lists"),
        ([["a"], [None]], "has no label"),
        (["a", pd.NA], r"1 image, such as '001.png', has no label"),
        (pd.array(["a", pd.NA], dtype="string"), r"has no label \(seen: <NA>\)"),
        (pd.array([1, pd.NA], dtype="Int64"), r"'001.png', has no label \(seen: <NA>\)"),
        ([["a"], ["b", pd.NA]], r"1 image, such as '001.png', has no label \(seen: <NA>\)"),
        ([["a"], [pd.NA, None]], r"1 image, such as '001.png', has no label"),
        ([{"a": 1}, "b"], "labels must be names"),
        ([], "the table has no rows: no images found"),
    ],
)
def test_labels_that_are_none_are_refused(labels, message):
    with pytest.raises(DataError, match=message):
        dataset(labels)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": ["a.png", "a.png"]}, "1 image listed more than once, such as 'a.png'"),
        ({"path": ["a.png", "./a.png"]}, "more than once"),
        ({"path": ["a.png", "../b.png"]}, r"'../b.png' climbs with '..'"),
        ({"path": ["a.png", "/x/../y.png"]}, "climbs with"),
        ({"path": ["a.png", None]}, "is no file name; every row needs one"),
        ({"path": ["a.png", 7]}, "path 7 is no file name"),
        ({"image_id": [1, 1]}, r"`image_id` \[1\] is given to several images"),
        ({"image_id": [1, 2.5]}, "must be an integer in every row"),
        ({"split": ["train", "holdout"]}, r"split \['holdout'\] is not known; use 'train'"),
    ],
)
def test_a_broken_table_is_refused(change, message):
    frame = pd.DataFrame({"path": ["a.png", "b.png"], "label": ["x", "y"]}).assign(**change)
    with pytest.raises(DataError, match=message):
        ImageDataset(frame, "/x")


def test_double_and_missing_columns_are_named():
    frame = pd.DataFrame([["a", "b", "c"]], columns=["path", "label", "label"])
    with pytest.raises(DataError, match=r"columns \['label'\] more than once"):
        ImageDataset(frame, ".")
    with pytest.raises(DataError, match="no column 'label'; it has"):
        ImageDataset(pd.DataFrame({"path": ["a"]}), ".")


def test_absolute_paths_below_the_root_become_relative_and_others_stay(tmp_path):
    paths = [str(tmp_path / "in.png"), "/elsewhere/out.png"]
    data = ImageDataset(pd.DataFrame({"path": paths, "label": ["a", "b"]}), tmp_path)
    assert data.frame["path"].tolist() == ["in.png", "/elsewhere/out.png"]
    assert data.paths == [tmp_path / "in.png", Path("/elsewhere/out.png")]


def test_given_classes_must_cover_the_labels_and_may_hold_more():
    frame = pd.DataFrame({"path": ["1", "2"], "label": ["a", "b"]})
    data = ImageDataset(frame, ".", classes=["c", "b", "a"])
    assert data.classes == ["a", "b", "c"]
    assert data.counts().loc["c"].sum() == 0
    with pytest.raises(DataError, match=r"labels \['b'\] are not in `classes` \['a', 'c'\]"):
        ImageDataset(frame, ".", classes=["a", "c"])
    with pytest.raises(DataError, match=r"`classes` lists \['a'\] more than once"):
        ImageDataset(frame, ".", classes=["a", "a", "b"])


def test_class_ids_must_number_every_class():
    frame = pd.DataFrame({"path": ["1", "2"], "label": ["a", "b"]})
    assert ImageDataset(frame, ".", class_ids={"b": 3, "a": 9}).class_ids == [9, 3]
    with pytest.raises(DataError, match=r"numbers \['a'\]; it must number every class"):
        ImageDataset(frame, ".", class_ids={"a": 1})


def test_sub_datasets_keep_every_class_and_partition_the_rows():
    data = dataset(list("aabb") * 3, ["train", "valid", "train", "test"] * 3)
    assert data.splits == ["train", "valid", "test"]
    assert [len(data.train), len(data.valid), len(data.test)] == [6, 3, 3]
    assert data.valid.classes == ["a", "b"]
    assert set(data.valid.labels) == {"a"}
    ids = [i for part in (data.train, data.valid, data.test) for i in part.frame["image_id"]]
    assert sorted(ids) == list(range(12))


def test_a_split_that_is_not_there_is_named():
    with pytest.raises(SplitError, match=r"no 'train' images \(it has no split\); make them"):
        _ = dataset(["a", "b"]).train
    with pytest.raises(SplitError, match=r"no 'test' images \(it has \['train'\]\)"):
        _ = dataset(["a", "b"], ["train", "train"]).test


def test_counts_are_the_slow_loops_counts():
    rng = np.random.default_rng(0)
    labels = rng.choice(list("abcd"), 60).tolist()
    splits = rng.choice(["train", "valid", "test", ""], 60).tolist()
    counts = dataset(labels, splits).counts()
    assert list(counts.columns) == ["train", "valid", "test", "unassigned"]
    for label in "abcd":
        for split in counts.columns:
            wanted = (label, "" if split == "unassigned" else split)
            assert counts.loc[label, split] == list(zip(labels, splits, strict=True)).count(wanted)


def test_filter_takes_masks_and_callables():
    data = dataset(list("abc"), size=[1, 2, 3])
    assert data.filter(lambda frame: frame["size"] > 1).labels == ["b", "c"]
    assert data.filter(np.array([True, False, True])).labels == ["a", "c"]
    assert len(data.filter([False] * 3)) == 0
    with pytest.raises(DataError, match=r"`keep` is int64 .*one bool for each of the 3 rows"):
        data.filter([0, 1, 2])
    with pytest.raises(DataError, match="one bool for each"):
        data.filter([True])


def test_a_stratified_sample_has_every_class_by_its_share():
    data = dataset(["a"] * 60 + ["b"] * 30 + ["c"] * 9)
    third = data.sample(fraction=1 / 3, stratify=True)
    assert pd.Series(third.labels).value_counts().to_dict() == {"a": 20, "b": 10, "c": 3}
    ten = data.sample(10, stratify=True, seed=1)
    assert pd.Series(ten.labels).value_counts().to_dict() == {"a": 6, "b": 3, "c": 1}
    assert ten.paths != data.sample(10, stratify=True, seed=2).paths
    assert len(data.sample(fraction=1)) == 99
    assert len(data.sample(fraction=0.0, stratify=True)) == 0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "`n` is None and `fraction` None; give one of them"),
        ({"n": 1, "fraction": 0.5}, "`n` is 1 and `fraction` 0.5; give one of them"),
        ({"fraction": 1.5}, r"`fraction` is 1.5; it must lie in 0\.\.1"),
        ({"fraction": True}, r"`fraction` is True; it must lie in 0\.\.1"),
    ],
)
def test_a_sample_is_a_number_or_a_share(given, said):
    with pytest.raises(DataError, match=said):
        dataset(["a", "b"]).sample(**given)


def test_names_without_a_pattern_lose_digits_and_separators_at_their_end(tmp_path):
    for name in ("rust_01", "rust-2 (3)", "no rust_4", "0815"):
        (tmp_path / f"{name}.png").write_bytes(b"")
    data = ImageDataset.from_names(tmp_path)
    assert sorted(zip([path.stem for path in data.paths], data.labels, strict=True)) == [
        ("0815", "0815"),
        ("no rust_4", "no rust"),
        ("rust-2 (3)", "rust"),
        ("rust_01", "rust"),
    ]


def test_sample_is_seeded_ordered_and_without_repetition():
    data = dataset([f"{i % 3}" for i in range(50)])
    one, same, other = data.sample(10, 1), data.sample(10, 1), data.sample(10, 2)
    assert one.fingerprint() == same.fingerprint() != other.fingerprint()
    ids = one.frame["image_id"].tolist()
    assert ids == sorted(set(ids))
    assert len(ids) == 10
    with pytest.raises(DataError, match="`n` is 51; it must be an integer from 0 to 50"):
        data.sample(51)


def test_fingerprint_ignores_order_and_root_and_sees_everything_else(tmp_path):
    frame = pd.DataFrame({"path": list("abcd"), "label": list("xxyy"), "split": ["train"] * 4})
    base = ImageDataset(frame, tmp_path).fingerprint()
    assert len(bytes.fromhex(base)) == 32
    assert ImageDataset(frame[::-1], "/other").fingerprint() == base
    for column, value in [("path", "z"), ("label", "y"), ("split", "valid")]:
        changed = frame.copy()
        changed.loc[1, column] = value
        assert ImageDataset(changed, tmp_path).fingerprint() != base
    assert ImageDataset(frame, tmp_path, classes=list("xyz")).fingerprint() != base


def test_fingerprint_of_the_content_sees_one_changed_byte(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"pixels")
    data = ImageDataset(pd.DataFrame({"path": ["a", "b"], "label": ["x", "y"]}), tmp_path)
    plain, full = data.fingerprint(), data.fingerprint(content=True)
    assert plain != full
    (tmp_path / "b").write_bytes(b"pixelt")
    assert data.fingerprint() == plain
    assert data.fingerprint(content=True) != full
    (tmp_path / "b").unlink()
    with pytest.raises(ImageReadError, match="b' cannot be read: No such file"):
        data.fingerprint(content=True)


def test_check_split_names_labels_train_lacks_with_their_counts():
    splits = ["train", "train", "valid", "valid", "valid", "test"]
    with pytest.raises(
        DataError, match=r"'valid' has classes that 'train' lacks: 'c' \(2 images\)"
    ):
        dataset(["a", "b", "c", "c", "a", "b"], splits).check_split()
    with pytest.raises(DataError, match=r"'test' has classes that 'train' lacks: 'c' \(1"):
        dataset(["a", "b", "a", "b", "a", "c"], splits).check_split()
    assert dataset(["a", "b", "a", "b", "a", "b"], splits).check_split() is None


def test_check_split_refuses_one_class_and_missing_parts():
    said = r"every training image \(2\) is 'a'; telling classes apart"
    with pytest.raises(DataError, match=said):
        dataset(["a", "a", "a"], ["train", "train", "valid"]).check_split()
    with pytest.raises(SplitError, match="no 'valid' images"):
        dataset(["a", "b"], ["train", "train"]).check_split()
    with pytest.raises(SplitError, match="no 'valid' images"):
        dataset(["a", "b", "a"], ["train", "train", "test"]).check_split()
    with pytest.raises(SplitError, match="no 'train' images"):
        dataset(["a", "b"], ["valid", "valid"]).check_split()


def test_dataloaders_hands_everything_to_the_loaders_module(monkeypatch):
    module = types.ModuleType("learnkit.learner.dataloaders")
    module.image_dataloaders = lambda data, **options: (data, options)
    monkeypatch.setitem(sys.modules, "learnkit.learner.dataloaders", module)
    data = dataset(["a", "b"])
    got, options = data.dataloaders(64, 8, augment="none", seed=1)
    assert got is data
    assert options == {"size": 64, "bs": 8, "augment": "none", "seed": 1}


def test_repr_says_how_many_of_what():
    data = dataset(["a", "b", "a"], ["train", "valid", ""])
    assert "(0 images, 2 classes; empty; " in repr(data.filter([False] * 3))
    assert repr(data).startswith(
        "ImageDataset(3 images, 2 classes; train 1, valid 1, unassigned 1; "
    )


def labelled(counts, split="train"):
    rows = [(f"{name}{i}.png", name, split) for name, n in counts.items() for i in range(n)]
    return pd.DataFrame(rows, columns=["path", "label", "split"])


def test_class_weights_are_those_of_scikit_learn_over_the_training_images(tmp_path):
    from sklearn.utils.class_weight import compute_class_weight

    train = labelled({"a": 3, "b": 40, "c": 7})
    valid = labelled({"a": 9, "c": 1}, "valid").assign(path=lambda f: "v" + f["path"])
    data = ImageDataset(pd.concat([train, valid]), tmp_path)
    found = data.class_weights()
    expected = compute_class_weight("balanced", classes=np.array(list("abc")), y=train["label"])
    assert list(found) == data.classes
    assert list(found.values()) == pytest.approx(expected.tolist())
    roots = data.class_weights("sqrt")
    assert roots["a"] / roots["b"] == pytest.approx((40 / 3) ** 0.5)
    for weights in (found, roots):
        assert sum(weights[name] for name in train["label"]) == pytest.approx(len(train))
    assert data.class_weights(False) == {"a": 1, "b": 1, "c": 1}
    unsplit = ImageDataset(train.assign(split=""), tmp_path).class_weights()
    assert unsplit == found


def test_a_class_without_training_images_weighs_nothing(tmp_path):
    data = ImageDataset(labelled({"a": 3, "b": 4}), tmp_path, classes=["a", "b", "z"])
    assert data.class_weights()["z"] == 0
    assert data.class_weights()["a"] == pytest.approx(7 / 6)


def test_an_unknown_balance_is_refused(tmp_path):
    data = ImageDataset(labelled({"a": 3, "b": 4}), tmp_path)
    with pytest.raises(DataError, match=r"`balance` is 'log'; it must be True .* or False"):
        data.class_weights("log")
