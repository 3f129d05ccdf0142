import numpy as np
import pytest
import torch
from helpers import write_image_folder

from learnkit.data.dataset import ImageDataset
from learnkit.data.labelled_images import (
    Labelled,
    files_or_images,
    image_paths,
    images_of_split,
    labelled_images,
)
from learnkit.errors import DataError


@pytest.fixture
def folder(tmp_path):
    return write_image_folder(tmp_path / "new", {"dent": 4, "scratch": 6})


def picture():
    return np.zeros((4, 5, 3), "uint8")


def test_a_folder_of_class_folders_labels_itself(folder):
    found = labelled_images(folder)
    assert [path.parent.name for path in found.items] == found.labels
    assert sorted(set(found.labels)) == ["dent", "scratch"]
    assert len(found.items) == 10
    assert found.validation is None


def test_one_label_serves_a_whole_folder_and_a_single_image(folder):
    found = labelled_images(str(folder), "damage")
    assert (len(found.items), set(found.labels)) == (10, {"damage"})
    for one in (picture(), torch.zeros(3, 4, 5), "x.png", b"bytes", folder / "dent" / "000.png"):
        items, labels, _ = labelled_images(one, "damage")
        assert (len(items), labels) == (1, ["damage"])
        assert items[0] is one


def test_stacked_images_and_generators_are_taken_one_by_one():
    assert len(labelled_images(np.zeros((3, 4, 5, 3), "uint8"), list("aab")).items) == 3
    assert labelled_images((picture() for _ in "ab"), iter("ab")).labels == ["a", "b"]


def test_of_a_split_dataset_training_images_are_learned_and_validation_images_set_apart(folder):
    data = ImageDataset.from_folder(folder).split(0.5, 0.25, 0.25, seed=1)
    found = labelled_images(data)
    assert found.items == data.train.paths
    assert found.labels == data.train.labels
    assert found.validation.items == data.valid.paths
    assert found.validation.labels == data.valid.labels
    assert labelled_images(data.test).items == data.test.paths
    assert labelled_images(data.test).validation is None


def test_what_has_no_sound_labels_is_refused(folder):
    data = ImageDataset.from_folder(folder)
    for arguments, reason in [
        (([picture()],), "`labels` is missing for 1 images"),
        (([picture()], ["a", "b"]), "2 names for 1 images"),
        (([picture()], [3]), "`labels` holds 3"),
        (([picture()], [""]), "`labels` holds ''"),
        (([], []), "no images"),
        ((data, ["a"] * 10), "labels of its own"),
        ((folder / "nowhere",), "nowhere"),
        ((folder / "dent" / "000.png",), "not a folder"),
    ]:
        with pytest.raises(DataError, match=reason):
            labelled_images(*arguments)
    frame = data.frame.assign(label=[("dent", "scratch")] * 10)
    with pytest.raises(DataError, match="several labels"):
        labelled_images(ImageDataset(frame, folder))


def test_images_without_labels_come_from_folders_lists_and_datasets(folder):
    paths = ImageDataset.from_folder(folder).paths
    assert image_paths(folder) == image_paths(ImageDataset.from_folder(folder)) == sorted(paths)
    assert image_paths(paths[:2]) == paths[:2]
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        image_paths(folder / "empty")


def test_a_table_is_a_dataset_of_files_below_the_working_folder(folder, monkeypatch):
    data = ImageDataset.from_folder(folder).split(0.5, 0.5, 0, seed=1)
    monkeypatch.chdir(folder)
    found = labelled_images(data.frame)
    assert (found.items, found.labels) == (data.train.paths, data.train.labels)
    assert found.validation.items == data.valid.paths
    assert images_of_split(data.frame, ["valid"]) == (data.valid.paths, data.valid.labels)
    assert [path.resolve() for path in image_paths(data.frame)] == data.paths
    assert set(labelled_images(data.frame, "damage").labels) == {"damage"}


def test_what_is_labelled_already_stays_as_it_is():
    found = Labelled(["x.png", "y.png"], ["a", "b"], Labelled(["z.png"], ["a"]))
    assert labelled_images(found) is found
    assert images_of_split(found, ["valid"]) == (["x.png", "y.png"], ["a", "b"])
    assert files_or_images(found) == ["x.png", "y.png"]


def test_of_a_dataset_the_first_split_it_has_is_taken_and_all_of_it_without_one(folder):
    data = ImageDataset.from_folder(folder)
    assert images_of_split(data, ["test", "valid"]) == (data.paths, data.labels)
    valid = data.split(0.5, 0.5, 0, seed=1).valid
    split = data.split(0.5, 0.5, 0, seed=1)
    assert images_of_split(split, ["test", "valid"]) == (valid.paths, valid.labels)


def test_a_folder_is_labelled_by_its_folders_unless_images_lie_in_it(folder):
    data = ImageDataset.from_folder(folder)
    assert images_of_split(folder, ["train"]) == (data.paths, data.labels)
    assert images_of_split(folder / "dent", ["train"]) == (
        [path for path in data.paths if path.parent.name == "dent"],
        None,
    )
    assert images_of_split(["x.png"], ["train"]) == (["x.png"], None)
