"""DLDatasets of all four types come back as they went in, whichever way HALCON wrote them."""

import copy
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learnkit.data.annotations.dl_dataset import (
    RECTANGLE1,
    RECTANGLE2,
    DLDataset,
    read_dl_dataset,
)
from learnkit.data.dataset import ImageDataset
from learnkit.errors import DataError

TUPLES = {"class_names", "class_ids", "class_weights", "image_label_id", "bbox_label_id"}
TUPLES |= {*RECTANGLE1, *RECTANGLE2, "coco_raw_annotations", "samples"}

texts = st.text(max_size=5)
numbers = st.floats(-1e6, 1e6, allow_nan=False) | st.integers(-(2**40), 2**40)
sizes = st.floats(0, 1e6)
values = st.recursive(  # what the unknown keys hold
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
file_names = st.lists(
    st.text("ab ä.", min_size=1, max_size=4).filter(lambda part: part != ".."),
    min_size=1,
    max_size=3,
).map("/".join)


def boxes_of(draw, kind, ids):
    n = draw(st.integers(0, 3)) if ids else 0

    def listed(elements):
        return draw(st.lists(elements, min_size=n, max_size=n))

    found = {"bbox_label_id": listed(st.sampled_from(ids)) if ids else []}
    if kind == "rectangle1":
        for low, high in (RECTANGLE1[::2], RECTANGLE1[1::2]):
            found[low] = listed(numbers)
            found[high] = [one + size for one, size in zip(found[low], listed(sizes), strict=True)]
        if draw(st.booleans()):
            raw = st.fixed_dictionaries({"bbox": st.lists(numbers, min_size=2, max_size=4)})
            found["coco_raw_annotations"] = listed(raw)
        return found
    found |= {key: listed(numbers) for key in RECTANGLE2[:3]}
    return found | {key: listed(sizes) for key in RECTANGLE2[3:]}


@st.composite
def dl_datasets(draw):
    kind = draw(
        st.sampled_from(["classification", "segmentation", "anomaly", "rectangle1", "rectangle2"])
    )
    ids = draw(st.lists(st.integers(0, 65_534), unique=True, max_size=4))
    names = draw(st.lists(texts, unique=True, min_size=len(ids), max_size=len(ids)))
    found = {"class_names": names, "class_ids": ids, "image_dir": draw(texts)}
    for key in ("dlsample_dir", "anomaly_dir", "segmentation_dir"):
        if draw(st.booleans()):
            found[key] = draw(texts)
    if draw(st.booleans()):
        found["preprocess_param"] = draw(st.dictionaries(texts, values, max_size=3))
        found["class_weights"] = draw(st.lists(sizes, max_size=3))
    image_ids = draw(st.lists(st.integers(0, 10**9), unique=True, max_size=3))
    found["samples"] = [sample_of(draw, kind, one, names, ids) for one in image_ids]
    return draw(st.dictionaries(texts.map("own_".__add__), values, max_size=2)) | found


def sample_of(draw, kind, image_id, names, ids):
    sample = {"image_file_name": draw(file_names), "image_id": image_id}
    if draw(st.booleans()):
        sample["split"] = draw(st.sampled_from(["train", "validation", "test"]))
        sample["dlsample_file_name"] = draw(file_names)
    if kind == "classification":
        sample["image_label_id"] = draw(st.lists(st.sampled_from(ids), unique=True)) if ids else []
    elif kind == "segmentation":
        sample["segmentation_file_name"] = draw(file_names)
    elif kind == "anomaly" and names:
        sample["anomaly_label"] = draw(st.sampled_from(names))
        sample["anomaly_file_name"] = draw(file_names)
    elif kind.startswith("rectangle"):
        sample |= boxes_of(draw, kind, ids)
    return draw(st.dictionaries(texts.map("own_".__add__), values, max_size=2)) | sample


def odd(entries, draw):
    """The same dictionary in forms that HALCON, its binding and JSON write."""
    found = {}
    for key, value in entries.items():
        if key == "samples":
            value = [odd(sample, draw) for sample in value]
        if key in TUPLES:
            forms = [value, tuple(value), dict(enumerate(value))]
            forms += [{str(i): value[i] for i in reversed(range(len(value)))}]
            forms += value if len(value) == 1 else []
            forms += [np.array(value)] if key in {*RECTANGLE2, "class_ids"} else []
            value = draw(st.sampled_from(range(len(forms))).map(forms.__getitem__))
        elif key in ("image_id", "image_file_name", "split") and draw(st.booleans()):
            value = [value]
        found[key] = value
    return found


@given(dl_datasets())
def test_every_type_comes_back_as_it_went_in(dictionary):
    before = copy.deepcopy(dictionary)
    written = read_dl_dataset(dictionary).to_dict()
    assert written == dictionary == before
    assert list(written) == list(dictionary)
    assert read_dl_dataset(json.loads(json.dumps(written, allow_nan=False))).to_dict() == dictionary


@given(dl_datasets(), st.data())
def test_the_odd_forms_mean_the_same(dictionary, data):
    told = odd(dictionary, data.draw)
    before = copy.deepcopy(told)
    assert read_dl_dataset(told) == read_dl_dataset(dictionary)
    np.testing.assert_equal(told, before)


BOX = {"bbox_label_id": [3], "bbox_row1": [1], "bbox_col1": [2.5], "bbox_row2": [4]}
BOX |= {"bbox_col2": [2.5]}
ROTATED = {"bbox_label_id": [3], "bbox_row": [1], "bbox_col": [2], "bbox_phi": [9.0]}
ROTATED |= {"bbox_length1": [3], "bbox_length2": [0]}


def dictionary(*samples, **changes):
    found = {"image_dir": "/images", "class_names": ["ok", "nok"], "class_ids": [0, 3]}
    named = [{"image_file_name": f"{i}.png", "image_id": i} | one for i, one in enumerate(samples)]
    return found | {"samples": named} | changes


@pytest.mark.parametrize(
    ("sample", "kind", "instance"),
    [
        ({"anomaly_label": "ok", "image_label_id": [0]}, "anomaly_detection", None),
        ({"image_label_id": [0], "bbox_label_id": []}, "classification", None),
        (BOX | {"segmentation_file_name": "a.png"}, "detection", "rectangle1"),
        (ROTATED, "detection", "rectangle2"),
        ({"segmentation_file_name": "a.png"}, "segmentation", None),
        ({}, None, None),
    ],
)
def test_the_type_is_told_in_halcons_order(sample, kind, instance):
    data = DLDataset(dictionary({}, sample))
    assert (data.type, data.instance_type) == (kind, instance)


def test_booleans_are_halcons_one_and_zero():
    data = DLDataset(dictionary({"image_label_id": [False]})).to_dict()
    assert data["samples"][0]["image_label_id"][0] is not False
    assert data == dictionary({"image_label_id": [0]})


def test_arrays_inside_coco_annotations_are_lists_again():
    raw = {"0": {"segmentation": {"0": {"0": 1, "1": 2.5}}, "iscrowd": 0}}
    data = DLDataset(dictionary(BOX | {"coco_raw_annotations": raw})).to_dict()
    assert data["samples"][0]["coco_raw_annotations"] == [
        {"segmentation": [[1, 2.5]], "iscrowd": 0}
    ]


def test_what_is_written_shares_nothing_with_what_was_read():
    source = dictionary({"image_label_id": [0], "mine": {"deep": [1]}})
    data = DLDataset(source)
    data.to_dict()["samples"][0]["mine"]["deep"].append(2)
    source["samples"][0]["mine"]["deep"].append(3)
    assert data.to_dict()["samples"][0]["mine"] == {"deep": [1]}


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ([], r"`dictionary` is \[\]; a DLDataset is a dictionary with 'samples'"),
        ({"samples": []}, r"has no 'class_names'; it has \['samples'\]"),
        (dictionary(samples=["x"]), "sample 0 is 'x'; a sample is a dictionary"),
        (dictionary(class_ids=[0, 65_535]), r"'class_ids' has 65535; .* in 0\.\.65534"),
        (dictionary(class_ids=[0, -1]), "'class_ids' has -1"),
        (dictionary(class_ids=[0, 1.0]), "'class_ids' has 1.0; ids are integers"),
        (dictionary(class_ids=[3, 3]), "'class_ids' has 3 more than once; each class has its own"),
        (dictionary(class_names=["a", "a"]), "'class_names' has 'a' more than once"),
        (dictionary(class_names=["a", 3]), "'class_names' has 3; names are text"),
        (dictionary(class_names="a"), "1 'class_names' for 2 'class_ids'; one each is needed"),
        (dictionary(class_weights=[1, -1]), "'class_weights' has -1; weights are numbers from 0"),
        (dictionary(class_weights=[1, float("nan")]), r"'class_weights'\[1\] is nan; .* holds"),
        (dictionary(image_dir=3), "the dictionary has 'image_dir' 3; it is one text"),
        (dictionary(mine={"a": {1: 2}}), r"'mine'\['a'\] has the key 1; keys are text, or 0, 1"),
        (dictionary(mine={1, 2}), r"'mine' is \{1, 2\}; a DLDataset holds what JSON holds"),
        (dictionary({}, {7: 1}), "sample 1 has the key 7; keys are text"),
        (dictionary({}, {"image_id": 0}), "sample 1 has 'image_id' 0, as sample 0 has; each"),
        (dictionary({"image_id": 1.5}), "sample 0 has 'image_id' 1.5; it is one integer"),
        (dictionary(samples=[{"a": 1}]), r"sample 0 has no 'image_file_name'; it has \['a'\]"),
        (dictionary({"split": "valid"}), "sample 0 has 'split' 'valid'; splits are 'train', "),
        (dictionary({"split": ["train", "test"]}), "'split' .* it is one text"),
        (dictionary({"anomaly_label": "bad"}), r"'anomaly_label' 'bad'; 'class_names' are \['ok'"),
        (dictionary({"image_label_id": [0, 1]}), r"'image_label_id' 1; 'class_ids' are \[0, 3\]"),
        (dictionary({"image_label_id": [3, 3]}), "'image_label_id' 3 more than once; an image"),
        (dictionary(BOX | {"bbox_label_id": [1]}), "sample 0 has 'bbox_label_id' 1; 'class_ids'"),
        (dictionary(BOX | {"bbox_row1": [1, 2]}), "2 'bbox_row1' for 1 'bbox_label_id'; one each"),
        (dictionary(BOX | {"bbox_row1": [5]}), "'bbox_row1' 5 beyond 'bbox_row2' 4"),
        (dictionary(BOX | {"bbox_col1": [3]}), "'bbox_col1' 3 beyond 'bbox_col2' 2.5"),
        (dictionary(BOX | {"bbox_row1": ["1"]}), "'bbox_row1' '1'; coordinates are numbers"),
        (dictionary(BOX | {"bbox_row1": [np.inf]}), r"sample 0: 'bbox_row1'\[0\] is inf"),
        (dictionary({"bbox_label_id": [3]}), r"keys \['bbox_label_id'\]; boxes have .* or all of"),
        (dictionary({"bbox_row1": []}), r"has the keys \['bbox_row1'\]; boxes have"),
        (dictionary(BOX | ROTATED), "has the keys .* or all of bbox_row, bbox_col"),
        (dictionary(ROTATED | {"bbox_length2": -1}), "'bbox_length2' -1; half edges are 0 or more"),
        (dictionary(BOX, {}, ROTATED), "sample 0 has 'bbox_row1' and sample 2 has 'bbox_row'; one"),
        (dictionary(BOX | {"coco_raw_annotations": [1]}), "annotations' 1; each is a dictionary"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_a_broken_dataset_is_refused_by_sample_and_key(broken, message):
    with pytest.raises(DataError, match=message):
        read_dl_dataset(broken) if isinstance(broken, dict) else DLDataset(broken)


@pytest.mark.parametrize(
    "name", ["../a", "a/../../b", "a\\..\\b", "/etc/a", "\\\\pc\\a", "C:\\a", ""]
)
@pytest.mark.parametrize(
    ("key", "folder"),
    [
        ("image_file_name", "image_dir"),
        ("dlsample_file_name", "dlsample_dir"),
        ("segmentation_file_name", "segmentation_dir"),
        ("anomaly_file_name", "anomaly_dir"),
    ],
)
def test_a_file_name_that_leaves_its_folder_is_refused(key, folder, name):
    with pytest.raises(DataError, match=f"sample 1 has '{key}' .* must lie below '{folder}'"):
        DLDataset(dictionary({}, {key: name}))


def test_a_file_is_read_and_a_closed_or_broken_one_refused(tmp_path):
    path, data = tmp_path / "data.json", dictionary(BOX)
    path.write_text(json.dumps(data), encoding="utf-8")
    assert read_dl_dataset(path) == read_dl_dataset(str(path)) == DLDataset(data)
    for text, message in (("{", "data.json is not strict JSON"), ("[]", "not an object")):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match=message):
            read_dl_dataset(path)
    with pytest.raises(DataError, match=r"there is no file .*; `source` is a dictionary or JSON"):
        read_dl_dataset(tmp_path / "other.json")
    with pytest.raises(DataError, match=r"write_dict \(DLDataset, 'x.json'"):
        read_dl_dataset(tmp_path / "x.hdict")


@settings(max_examples=25, deadline=None)  # of the disk
@given(dl_datasets())
def test_a_written_file_is_read_again(tmp_path_factory, dictionary):
    path = tmp_path_factory.mktemp("written") / "data.json"
    DLDataset(dictionary).write(path)
    assert read_dl_dataset(path).to_dict() == dictionary
    assert [file.name for file in path.parent.iterdir()] == ["data.json"]


def test_what_cannot_be_written_is_refused_and_leaves_nothing(tmp_path):
    data = DLDataset(dictionary(BOX))
    with pytest.raises(DataError, match=r"'x.hdict' would be HALCON's binary form, .* call it .js"):
        data.write(tmp_path / "x.hdict")
    with pytest.raises(DataError, match=r"cannot be written: .*No such file"):
        data.write(tmp_path / "none" / "x.json")
    with pytest.raises(DataError, match=r"cannot be written: .*surrogates"):
        DLDataset(dictionary(BOX, mine="\ud800")).write(tmp_path / "x.json")
    assert list(tmp_path.iterdir()) == []


def test_an_image_dataset_is_read_from_a_file_and_from_odd_forms(tmp_path):
    data = dictionary({"image_label_id": [3]}, {"image_label_id": [0]})
    (tmp_path / "data.json").write_text(json.dumps(data), encoding="utf-8")
    arrays = {"0": data["samples"][0], "1": data["samples"][1] | {"image_id": [1]}}
    for form in (tmp_path / "data.json", data | {"samples": arrays}):
        found = ImageDataset.from_halcon(form, check_files=False)
        assert found.labels == ["nok", "ok"]
        assert found.to_halcon() == data
