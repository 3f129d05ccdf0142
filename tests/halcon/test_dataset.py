"""Datasets: reading, splitting, searching, preprocessing, samples."""

import copy
import re

import numpy as np
import pytest
from helpers import write_image_folder
from PIL import Image

import learnkit.halcon as ha

PARAM = ("classification", 32, 32, 3, [], [], "none", "full_domain", [], [], [], [])


def test_the_last_folder_is_the_class(images):
    found = ha.read_dl_dataset_classification(str(images), "last_folder")
    assert found["class_names"] == ["crack", "good", "rust"]
    assert found["class_ids"] == [0, 1, 2]
    assert len(found["samples"]) == 36
    first = found["samples"][0]
    assert first["image_file_name"] == "crack/000.png"
    assert first["image_label_id"] == [0]
    assert len({one["image_id"] for one in found["samples"]}) == 36


def test_several_folders_are_one_dataset(tmp_path):
    write_image_folder(tmp_path / "a", {"x": 2})
    write_image_folder(tmp_path / "b", {"x": 1, "y": 3})
    found = ha.read_dl_dataset_classification(
        [str(tmp_path / "a"), str(tmp_path / "b")], "last_folder"
    )
    assert found["class_names"] == ["x", "y"]
    assert sorted(s["image_file_name"] for s in found["samples"])[:2] == [
        "a/x/000.png",
        "a/x/001.png",
    ]


def test_file_names_tell_classes_without_digits_at_their_end(tmp_path):
    for name in ("Crack_01", "Crack_02", "no crack-1"):
        Image.new("L", (8, 8)).save(tmp_path / f"{name}.png")
    found = ha.read_dl_dataset_classification(str(tmp_path), "file_name")
    assert found["class_names"] == ["Crack", "no crack"]
    found = ha.read_dl_dataset_classification(str(tmp_path), re.compile(r"[_-](\d)"))
    assert found["class_names"] == ["0", "1"]


def test_wrong_sources_and_empty_folders_are_told(tmp_path, images):
    with pytest.raises(ha.HError, match="takes 'last_folder', 'file_name' or a compiled"):
        ha.read_dl_dataset_classification(str(images), "folder")
    with pytest.raises(ha.HError, match="there is no image below"):
        ha.read_dl_dataset_classification(str(tmp_path), "last_folder")


def test_a_split_has_the_shares_in_every_class(images):
    data = ha.read_dl_dataset_classification(str(images), "last_folder")
    assert ha.split_dl_dataset(data, 50, 25, []) is None
    for class_id in range(3):
        of_class = [s["split"] for s in data["samples"] if s["image_label_id"] == [class_id]]
        assert sorted(of_class) == ["test"] * 3 + ["train"] * 6 + ["validation"] * 3


def test_the_seed_decides_the_split(images):
    splits = []
    for seed in (1, 1, 2):
        data = ha.read_dl_dataset_classification(str(images), "last_folder")
        ha.set_system("seed_rand", seed)
        ha.split_dl_dataset(data, 50, 25, [])
        splits.append([s["split"] for s in data["samples"]])
    ha.set_system("seed_rand", 42)
    assert splits[0] == splits[1] != splits[2]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((-1, 20, []), "`training_percent` is -1; it lies in 0..100"),
        ((80, 21, []), "are more than 100 together"),
        ((50, 25, {"overwrite": "true"}), "does not know 'overwrite'; it takes 'overwrite_split'"),
        ((50, 25, {"overwrite_split": "yes"}), "'overwrite_split' is 'yes'"),
        ((50, 25, {"model_type": "segmentation"}), "for segmentation"),
    ],
)
def test_wrong_splits_are_refused_and_change_nothing(images, args, said):
    data = ha.read_dl_dataset_classification(str(images), "last_folder")
    before = copy.deepcopy(data)
    with pytest.raises(ha.HError, match=said):
        ha.split_dl_dataset(data, *args)
    assert data == before


def test_a_split_is_overwritten_only_when_asked(images):
    data = ha.read_dl_dataset_classification(str(images), "last_folder")
    ha.split_dl_dataset(data, 50, 25, [])
    with pytest.raises(ha.HError, match="set 'overwrite_split' to 'true'"):
        ha.split_dl_dataset(data, 25, 25, [])
    ha.split_dl_dataset(data, 25, 25, {"overwrite_split": "true"})
    assert [s["split"] for s in data["samples"]].count("train") == 9


@pytest.mark.parametrize(
    ("value", "mode", "found"),
    [([3], "match", [0]), ([3, 4], "match", [2]), ([3, 4], "or", [0, 1]), ([4], "contain", [1, 2])],
)
def test_samples_are_found_by_value(value, mode, found):
    samples = [{"k": 3}, {"k": [4]}, {"k": [3, 4]}, {"other": 3}]
    assert ha.find_dl_samples(samples, "k", value, mode) == found


def test_an_unknown_mode_is_told():
    with pytest.raises(ha.HError, match="takes 'match', 'or' or 'contain'"):
        ha.find_dl_samples([], "k", 1, "and")


def test_parameters_have_halcons_keys_and_defaults():
    found = ha.create_dl_preprocess_param(*PARAM)
    assert found["image_range_min"] == -127
    assert found["image_range_max"] == 128
    assert found["normalization_type"] == "none"
    assert found["domain_handling"] == "full_domain"
    for old, now in {"true": "first_channel", "false": "none"}.items():
        param = ha.create_dl_preprocess_param(*PARAM[:6], old, *PARAM[7:])
        assert param["normalization_type"] == now
    constant = ha.create_dl_preprocess_param(*PARAM[:6], "constant_values", *PARAM[7:])
    assert constant["mean_values_normalization"] == [123.675, 116.28, 103.53]
    assert constant["deviation_values_normalization"] == [58.395, 57.12, 57.375]


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (0, "segmentation", "only 'classification'"),
        (1, 0, "number of pixels"),
        (3, 17, r"it is a number in 1\.\.16"),
        (3, 0, r"it is a number in 1\.\.16"),
        (6, "mean", "takes 'none', 'all_channels'"),
        (7, "half", "takes 'full_domain'"),
    ],
)
def test_wrong_parameters_are_refused(place, value, said):
    args = list(PARAM)
    args[place] = value
    with pytest.raises(ha.HError, match=said):
        ha.create_dl_preprocess_param(*args)


def test_samples_hold_the_squeezed_images_without_loss(dataset, images):
    place = ha.find_dl_samples(dataset["samples"], "image_file_name", "crack/000.png", "match")
    (sample,) = ha.read_dl_samples(dataset, place)
    with Image.open(images / "crack" / "000.png") as image:
        wanted = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(sample["image"], wanted)
    assert sample["image_label_id"] == [0]
    (same,) = ha.gen_dl_samples(dataset, place, [], [])
    ha.preprocess_dl_samples(same, dataset["preprocess_param"])
    np.testing.assert_array_equal(same["image"], wanted)


def test_preprocessing_again_needs_to_be_allowed(written, tmp_path, images):
    data = ha.read_dl_dataset_classification(str(images), "last_folder")
    param = ha.create_dl_preprocess_param(*PARAM)
    quiet = {"show_progress": "false"}
    ha.preprocess_dl_dataset(data, tmp_path, param, quiet)
    before = copy.deepcopy(data)
    stamp = (tmp_path / "samples").stat().st_mtime_ns
    with pytest.raises(ha.HError, match="set 'overwrite_files' to 'true'"):
        ha.preprocess_dl_dataset(data, tmp_path, param, quiet)
    ha.preprocess_dl_dataset(data, tmp_path, param, {**quiet, "overwrite_files": "auto"})
    assert data == before
    assert (tmp_path / "samples").stat().st_mtime_ns == stamp
    smaller = {**param, "image_width": 16}
    ha.preprocess_dl_dataset(data, tmp_path, smaller, {**quiet, "overwrite_files": "auto"})
    assert ha.read_dl_samples(data, [0])[0]["image"].shape == (32, 16, 3)


def test_unreadable_images_are_all_named_and_nothing_is_left(tmp_path):
    write_image_folder(tmp_path / "in", {"a": 3, "b": 2})
    data = ha.read_dl_dataset_classification(str(tmp_path / "in"), "last_folder")
    for name in ("a/001.png", "b/000.png"):
        (tmp_path / "in" / name).write_bytes(b"no image")
    before = copy.deepcopy(data)
    with pytest.raises(ha.HError, match=r"2 of 5 images(.|\n)*a/001\.png(.|\n)*b/000\.png"):
        ha.preprocess_dl_dataset(
            data, tmp_path / "out", ha.create_dl_preprocess_param(*PARAM), {"show_progress": 0}
        )
    assert data == before
    assert not any((tmp_path / "out").glob("**/*"))


def test_written_samples_come_back(dataset, tmp_path):
    dataset["dlsample_dir"] = str(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    own_id = dataset["samples"][4]["image_id"]
    sample = {"image": pixels, "image_id": own_id, "image_label_id": [1], "note": ["ß", 2]}
    ha.write_dl_samples(dataset, [4], [sample], [], [])
    (found,) = ha.read_dl_samples(dataset, 4)
    np.testing.assert_array_equal(found["image"], pixels)
    assert found["note"] == ["ß", 2]
    assert found["image_id"] == own_id


def test_samples_are_not_written_in_the_place_of_others(dataset):
    sample = {"image": np.zeros((32, 32, 3), np.uint8), "image_id": -5}
    with pytest.raises(ha.HError, match="'image_id' -5 was to be written in the place of"):
        ha.write_dl_samples(dataset, [0], [sample], [], [])
    with pytest.raises(ha.HError, match="1 samples for 2 places"):
        ha.write_dl_samples(dataset, [0, 1], [sample], [], [])


@pytest.mark.parametrize("name", ["../up.png", "/etc/up.png", "a\\..\\..\\up.png", "C:/up.png", ""])
def test_files_of_samples_stay_in_their_folder(dataset, name):
    dataset["samples"][0]["dlsample_file_name"] = name
    with pytest.raises(ha.HError, match="must lie below 'dlsample_dir'"):
        ha.read_dl_samples(dataset, [0])


@pytest.mark.parametrize("place", [-1, 36, True, "0", 1.0])
def test_places_that_are_none_are_7926(dataset, place):
    with pytest.raises(ha.HOperatorError, match=r"there are the samples 0\.\.35") as e:
        ha.read_dl_samples(dataset, [place])
    assert e.value.error_code == ha.errors.H_ERR_DL_INVALID_SAMPLE_INDEX


def test_halcons_forms_of_json_are_read(dataset):
    odd = copy.deepcopy(dataset)
    for sample in odd["samples"]:
        (sample["image_label_id"],) = sample["image_label_id"]
    odd["class_ids"] = dict(enumerate(odd["class_ids"]))
    odd["class_names"] = {str(i): name for i, name in enumerate(odd["class_names"])}
    odd["samples"] = {str(i): one for i, one in enumerate(odd["samples"])}
    (one,) = ha.read_dl_samples(odd, [1])
    assert one["image_label_id"] == ha.read_dl_samples(dataset, [1])[0]["image_label_id"]
    odd = {**odd, "samples": list(odd["samples"].values())}
    ha.split_dl_dataset(odd, 50, 25, {"overwrite_split": 1})


def test_distortions_are_drawn_for_the_share_of_samples_asked_for():
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    samples = [{"image": pixels.copy()} for _ in range(400)]
    ha.augment_dl_samples(samples, {"augmentation_percentage": 25, "mirror": "c"})
    changed = [not np.array_equal(one["image"], pixels) for one in samples]
    assert abs(sum(changed) - 100) < 3 * np.sqrt(400 * 0.25 * 0.75)
    flipped = [one["image"] for one, is_changed in zip(samples, changed, strict=True) if is_changed]
    assert all(np.array_equal(one, pixels[:, ::-1]) for one in flipped)


@pytest.mark.parametrize(
    "param",
    [
        {"rotate": 90},
        {"rotate": 180},
        {"rotate_range": 20},
        {"mirror": "rc"},
        {"brightness_variation": 40},
        {"brightness_variation_spot": 90},
        {"contrast_variation": 0.5},
        {"saturation_variation": 0.9},
        {"crop_percentage": 60},
        {"crop_pixel": 9},
    ],
)
@pytest.mark.parametrize("shape", [(12, 16, 3), (12, 12, 1), (16, 12)])
def test_each_distortion_keeps_shape_and_type(param, shape):
    pixels = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    samples = [{"image": pixels.copy()} for _ in range(6)]
    ha.augment_dl_samples(samples, {"augmentation_percentage": 100, **param})
    assert all(s["image"].shape == shape and s["image"].dtype == np.uint8 for s in samples)
    is_grey = len(shape) == 2 or shape[-1] == 1
    if not (is_grey and "saturation_variation" in param):
        assert any(not np.array_equal(s["image"], pixels) for s in samples)


def test_half_a_turn_is_the_image_mirrored_twice():
    pixels = np.random.default_rng(2).integers(0, 256, (6, 8, 3), np.uint8)
    sample = {"image": pixels}
    ha.augment_dl_samples(sample, {"augmentation_percentage": 100, "rotate": 180})
    np.testing.assert_array_equal(sample["image"], pixels[::-1, ::-1])


@pytest.mark.parametrize(
    "param",
    [{"mirror": "x"}, {"rotate": 45}, {"crop_percentage": 101}, {"flip": 1}, {"rotate_range": "a"}],
)
def test_wrong_distortions_are_refused(param):
    with pytest.raises(ha.HError):
        ha.augment_dl_samples([], param)
