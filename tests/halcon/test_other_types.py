"""Datasets of masks, anomalies and boxes are read as HALCON's dictionaries."""

import json

import numpy as np
import pytest
from PIL import Image

import learnkit.halcon as ha
from learnkit.data.annotations.dl_dataset import DLDataset
from learnkit.data.annotations.masks import write_mask
from learnkit.halcon.dataset import preprocessed

MASK = np.zeros((9, 12), np.uint8)
MASK[2:5, 3:9] = 7


@pytest.fixture
def folder(tmp_path):
    for name in ("good/0.png", "cut/0.png", "cut/1.png", "dent/0.png"):
        for part, pixels in (("images", MASK + 50), ("masks", MASK)):
            path = tmp_path / part / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return tmp_path


def read(folder, *more):
    return ha.read_dl_dataset_segmentation(
        folder / "images", folder / "masks", ["soil", "weed"], [0, 7], *more
    )


def test_masks_are_found_by_name_and_their_ids_are_those_given(folder):
    data = read(folder)
    assert DLDataset(data).type == "segmentation"
    assert (data["class_names"], data["class_ids"]) == (["soil", "weed"], [0, 7])
    assert data["segmentation_dir"] == str(folder / "masks")
    assert data["samples"][0] == {
        "image_id": 1,
        "image_file_name": "cut/0.png",
        "segmentation_file_name": "cut/0.png",
    }
    assert [one["image_id"] for one in data["samples"]] == [1, 2, 3, 4]
    listed = read(folder, ["cut/1.png", "good/0.png"], ["dent/0.png", "cut/0.png"])
    assert [one["segmentation_file_name"] for one in listed["samples"]] == [
        "dent/0.png",
        "cut/0.png",
    ]
    assert ha.read_dl_dataset_segmentation(
        folder / "masks", folder / "masks", [str(i) for i in range(8)]
    )["class_ids"] == list(range(8))


def test_masks_that_do_not_fit_are_refused(folder):
    with pytest.raises(ha.HError, match="read_dl_dataset_segmentation does not know 'a'; it takes"):
        read(folder, [], [], {"a": 1})
    with pytest.raises(ha.HError, match=r"has the values 7 .*; known are 0, 8: name them"):
        ha.read_dl_dataset_segmentation(folder / "images", folder / "masks", ["a", "b"], [0, 8])
    with pytest.raises(ha.HError, match="2 images and 1 masks: some have none"):
        read(folder, ["cut/0.png", "cut/1.png"], ["cut/0.png"])
    with pytest.raises(ha.HError, match=r"'image_file_name' .*must lie below"):
        read(folder, ["../x.png"], ["cut/0.png"])
    write_mask(folder / "masks" / "cut" / "1.png", MASK[:3])
    with pytest.raises(ha.HError, match=r"1.png' is 12 x 3 and its image 12 x 9"):
        read(folder)
    (folder / "masks" / "cut" / "1.png").unlink()
    with pytest.raises(ha.HError, match=r"\['cut/1.png'\] have none"):
        read(folder)


def test_images_below_good_are_ok_and_masks_are_of_the_others(folder):
    data = ha.read_dl_dataset_anomaly(folder / "images", folder / "masks")
    assert DLDataset(data).type == "anomaly_detection"
    assert (data["class_names"], data["class_ids"]) == (["ok", "nok"], [0, 1])
    told = {
        one["image_file_name"]: (one["anomaly_label"], one.get("anomaly_file_name"))
        for one in data["samples"]
    }
    assert told == {
        "cut/0.png": ("nok", "cut/0.png"),
        "cut/1.png": ("nok", "cut/1.png"),
        "dent/0.png": ("nok", "dent/0.png"),
        "good/0.png": ("ok", None),
    }
    some = {"image_sub_dirs": ["good", "dent"]}
    chosen = ha.read_dl_dataset_anomaly(folder / "images", [], [], [], some)["samples"]
    assert [one["image_file_name"] for one in chosen] == ["dent/0.png", "good/0.png"]
    assert not any("anomaly_file_name" in one for one in chosen)
    listed = ha.read_dl_dataset_anomaly(
        folder / "images", folder / "masks", ["cut/1.png", "dent/0.png"], ["cut/0.png", ""]
    )["samples"]
    assert [one.get("anomaly_file_name") for one in listed] == ["cut/0.png", None]
    with pytest.raises(ha.HError, match="there are no images; check the folder"):
        ha.read_dl_dataset_anomaly(folder / "images", [], [], [], {"image_sub_dirs": "none"})
    with pytest.raises(ha.HError, match="1 images and 2 in `anomaly_list`; give one each"):
        ha.read_dl_dataset_anomaly(folder / "images", folder / "masks", "cut/1.png", ["a", "b"])


def test_boxes_of_coco_are_half_a_pixel_back_and_crowds_are_left_out(folder):
    box = {"id": 1, "image_id": 9, "category_id": 90, "bbox": [3, 2, 6, 3], "iscrowd": 0}
    crowd = {**box, "id": 2, "iscrowd": 1, "category_id": 4}
    told = {
        "images": [{"id": 9, "file_name": "cut/0.png", "width": 12, "height": 9, "license": 1}],
        "annotations": [crowd, box],
        "categories": [{"id": 90, "name": "weed"}, {"id": 4, "name": "soil"}],
    }
    file = folder / "instances.json"
    file.write_text(json.dumps(told), encoding="utf-8")
    data = ha.read_dl_dataset_from_coco(str(file), str(folder / "images"), [])
    assert (data["class_names"], data["class_ids"]) == (["soil", "weed"], [4, 90])
    sample = {"image_id": 9, "image_file_name": "cut/0.png", "bbox_label_id": [90]}
    sample |= {"bbox_row1": [1.5], "bbox_col1": [2.5], "bbox_row2": [4.5], "bbox_col2": [8.5]}
    assert data["samples"] == [sample]
    all_of_it = {"read_raw_annotations": "true", "read_only_noncrowd": "false"}
    (full,) = ha.read_dl_dataset_from_coco(file, folder / "images", all_of_it)["samples"]
    assert full["bbox_label_id"] == [4, 90]
    assert full["coco_raw_annotations"] == [crowd, box]
    with pytest.raises(ha.HError, match="'purpose' is 'keypoints'; it takes 'detection'"):
        ha.read_dl_dataset_from_coco(file, folder / "images", {"purpose": "keypoints"})
    file.write_text(json.dumps({**told, "annotations": [{**box, "image_id": 8}]}))
    with pytest.raises(ha.HError, match="annotation 0 has 'image_id' 8; it is the 'id'"):
        ha.read_dl_dataset_from_coco(file, folder / "images")


def test_a_sample_of_several_classes_is_not_learned_from(dataset):
    dataset["samples"][0]["image_label_id"] = [0, 1]
    with pytest.raises(ha.HOperatorError, match="several 'image_label_id', or none") as caught:
        preprocessed(dataset)
    assert caught.value.error_code == 7789
