"""DLDataset dictionaries go in and come out with their own keys, ids and names."""

import copy
import json

import pandas as pd
import pytest

from learnkit.data.dataset import ImageDataset
from learnkit.errors import DataError

DICTIONARY = {
    "image_dir": "/images",
    "class_names": ["scratch", "good", "dent"],
    "class_ids": [7, 2, 40],
    "samples": [
        {"image_file_name": "s/1.png", "image_id": 11, "image_label_id": [7], "split": "train"},
        {"image_file_name": "g/1.png", "image_id": 5, "image_label_id": 2, "split": "validation"},
        {"image_file_name": "d/1.png", "image_id": 9, "image_label_id": (40,), "split": "test"},
    ],
}


def changed(**changes):
    return {**copy.deepcopy(DICTIONARY), **changes}


def sample(**changes):
    return changed(samples=[{**DICTIONARY["samples"][0], **changes}])


def read(dictionary, **options):
    return ImageDataset.from_halcon(dictionary, check_files=False, **options)


def test_non_contiguous_ids_become_names_and_stay_known():
    data = read(DICTIONARY)
    assert data.labels == ["scratch", "good", "dent"]
    assert data.classes == ["dent", "good", "scratch"]
    assert data.class_ids == [40, 2, 7]
    assert data.targets.tolist() == [2, 1, 0]
    assert data.frame["image_id"].tolist() == [11, 5, 9]
    assert data.frame["split"].tolist() == ["train", "valid", "test"]


def test_the_dictionary_comes_back_with_the_same_meaning_and_is_json():
    back = read(DICTIONARY).to_halcon()
    assert json.loads(json.dumps(back, allow_nan=False)) == back
    assert set(back) == {"image_dir", "class_names", "class_ids", "samples"}
    names = dict(zip(DICTIONARY["class_ids"], DICTIONARY["class_names"], strict=True))
    assert dict(zip(back["class_ids"], back["class_names"], strict=True)) == names
    assert back["class_ids"] == sorted(back["class_ids"])
    ids = [[7], [2], [40]]
    wanted = [s | {"image_label_id": i} for s, i in zip(DICTIONARY["samples"], ids, strict=True)]
    assert back["samples"] == wanted
    assert read(back).fingerprint() == read(DICTIONARY).fingerprint()


def test_reading_leaves_the_dictionary_alone():
    before = copy.deepcopy(DICTIONARY)
    read(DICTIONARY).split(0.5, 0.5, 0, overwrite=True, stratify=False)
    assert before == DICTIONARY


def test_datasets_of_other_origin_number_their_classes_from_zero(tmp_path):
    frame = pd.DataFrame({"path": ["1", "2"], "label": ["b", "a"]})
    written = ImageDataset(frame, tmp_path).to_halcon()
    assert written["image_dir"] == str(tmp_path)
    assert (written["class_names"], written["class_ids"]) == (["a", "b"], [0, 1])
    assert written["samples"][0] == {
        "image_file_name": "1",
        "image_id": 0,
        "image_label_id": [1],
    }


def test_class_ids_follow_sub_datasets():
    data = read(DICTIONARY).filter([True, False, False])
    assert data.to_halcon()["class_ids"] == [2, 7, 40]
    assert data.to_halcon()["samples"][0]["image_label_id"] == [7]


def test_a_class_without_samples_keeps_its_id():
    data = read(changed(class_names=["scratch", "good", "dent", "new"], class_ids=[7, 2, 40, 3]))
    assert data.class_ids == [40, 2, 3, 7]


def test_further_keys_of_samples_travel():
    dictionary = sample(dlsample_file_name="1_dlsample.hdict", weight=2.5)
    data = read(dictionary)
    assert data.frame["weight"].tolist() == [2.5]
    assert data.to_halcon()["samples"][0]["dlsample_file_name"] == "1_dlsample.hdict"


def test_image_ids_default_to_the_position():
    samples = [{"image_file_name": f"{i}.png", "image_label_id": [7]} for i in range(3)]
    assert read(changed(samples=samples)).frame["image_id"].tolist() == [0, 1, 2]


def test_windows_separators_are_understood():
    assert read(sample(image_file_name="s\\1.png")).frame["path"].tolist() == ["s/1.png"]


def test_the_folder_can_be_another_one_now(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "1.png").touch()
    assert ImageDataset.from_halcon(sample(), tmp_path).root == tmp_path
    with pytest.raises(DataError, match="3 of 3 images do not exist"):
        ImageDataset.from_halcon({**DICTIONARY, "image_dir": str(tmp_path / "x")})


@pytest.mark.parametrize(
    ("dictionary", "message"),
    [
        ({"samples": []}, r"has no 'class_names'; it has \['samples'\]"),
        ({k: v for k, v in DICTIONARY.items() if k != "image_dir"}, "has no 'image_dir'; pass"),
        (changed(class_ids=[1, 2]), "3 'class_names' for 2 'class_ids'"),
        (changed(class_ids=[7, 7, 2]), r"'class_ids' has \[7\] more than once"),
        (changed(class_ids=[7, 2, 70000]), r"'class_ids' has 70000; ids lie in 0..65534"),
        (changed(class_ids=[7, 2, "x"]), "class_ids is 'x'; it must be one integer"),
        (changed(class_names=["a", "b", 3]), "'class_names' has 3; names are text"),
        (changed(class_names=["a", "b", "a"]), r"`classes` lists \['a'\] more than once"),
        (changed(samples=[]), "the table has no rows"),
        (sample(image_label_id=[3]), r"'image_label_id' 3; 'class_ids' are \[7, 2, 40\]"),
        (sample(image_label_id=[7, 3]), r"'image_label_id' 3; 'class_ids' are \[7, 2, 40\]"),
        (sample(image_label_id=["7"]), "image_label_id of sample 0 is .*7.*; .* one integer"),
        (sample(image_label_id=1.5), "must be one integer"),
        (sample(image_id="x"), "image_id of sample 0 is 'x'"),
        (sample(image_file_name="../x.png"), r"'\.\./x.png'; it must lie below 'image_dir'"),
        (sample(image_file_name="a\\..\\x.png"), "must lie below 'image_dir'"),
        (sample(image_file_name="/etc/x.png"), "must lie below 'image_dir'"),
        (sample(image_file_name="C:\\x.png"), "must lie below 'image_dir'"),
        (sample(image_file_name=3), "must lie below 'image_dir'"),
        (sample(split="later"), r"split \['later'\] is not known"),
        (sample(label="x"), "has a key 'label', which has no meaning here"),
        (
            changed(samples=[{"image_file_name": "1.png"}]),
            "sample 0 has no 'image_label_id'; every sample of classification has one",
        ),
        (
            changed(samples=[{"image_file_name": "1.png", "anomaly_label": "ok"}]),
            r"sample 0 has 'anomaly_label' 'ok'; 'class_names' are \['scratch', 'good', 'dent'\]",
        ),
        (changed(samples=DICTIONARY["samples"][:1] * 2), "listed more than once"),
    ],
)
def test_a_broken_dictionary_is_refused(dictionary, message):
    with pytest.raises(DataError, match=message):
        read(dictionary)


def test_several_ids_of_an_image_are_several_labels():
    samples = [
        {"image_file_name": f"{i}.png", "image_id": i, "image_label_id": ids}
        for i, ids in enumerate([[40, 7], 2, []])
    ]
    data = read(changed(samples=samples))
    assert data.labels == [("dent", "scratch"), ("good",), ()]
    assert data.targets.tolist() == [[1, 0, 1], [0, 1, 0], [0, 0, 0]]
    back = data.to_halcon()
    assert [one["image_label_id"] for one in back["samples"]] == [[40, 7], [2], []]
    assert read(back).frame.equals(data.frame)


def test_what_a_dictionary_cannot_say_is_refused(tmp_path):
    outside = ImageDataset(pd.DataFrame({"path": ["/x/1"], "label": ["a"]}), tmp_path)
    with pytest.raises(DataError, match="1 image outside the root, such as '/x/1'"):
        outside.to_halcon()
