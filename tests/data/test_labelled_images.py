import os
import re

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import write_image_folder

from learnkit.data.dataset import ImageDataset
from learnkit.data.labelled_images import (
    Labelled,
    files_or_images,
    grouped_images,
    has_labels,
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
        items, labels, *_ = labelled_images(one, "damage")
        assert (len(items), labels) == (1, ["damage"])
        assert items[0] is one


def test_a_dictionary_of_halcon_is_the_dataset_it_describes(folder):
    data = ImageDataset.from_folder(folder).split(0.5, 0.25, 0.25, seed=1)
    dictionary = data.to_halcon()
    assert labelled_images(dictionary) == labelled_images(data)
    assert files_or_images(dictionary) == data.paths
    for split in ("train", "test"):
        assert images_of_split(dictionary, (split,)) == images_of_split(data, (split,))
    assert has_labels(dictionary)
    with pytest.raises(DataError, match="the dataset has labels of its own; leave it out"):
        labelled_images(dictionary, "dent")


@pytest.mark.parametrize(
    "given",
    [
        {"a.png": "dent", "b.png": "scratch"},
        {"dent": ["a.png"], "scratch": ["b.png"]},
        {"samples": [], "class_names": []},
        [{"image_file_name": "a.png", "image_label_id": [0]}],
        ["a.png", {"image": picture()}],
    ],
)
def test_other_dictionaries_are_not_taken_by_their_keys(given):
    for read in (
        labelled_images,
        lambda data: labelled_images(data, "dent"),
        files_or_images,
        image_paths,
        lambda data: images_of_split(data, ("train",)),
    ):
        with pytest.raises(DataError, match=r"dictionary with the keys '.*'; give a list of files"):
            read(given)


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


def test_validation_images_have_groups_too(folder):
    data = ImageDataset.from_folder(folder).split(0.5, 0.25, 0.25, seed=1)
    stem = r"([^/]+)\.png$"
    found = labelled_images(data, group=stem)
    assert found.groups == [path.stem for path in data.train.paths]
    assert found.validation.groups == [path.stem for path in data.valid.paths]
    assert labelled_images(data).validation.groups is None
    apart = Labelled(data.train.paths, data.train.labels, Labelled(data.valid.paths, []))
    found = grouped_images(apart, re.compile(stem))
    assert found.validation.groups == [path.stem for path in data.valid.paths]
    # what is said of those that are learned need not be said of others
    told = {path: i for i, path in enumerate(data.train.paths)}
    assert grouped_images(apart, told).validation.groups is None
    assert grouped_images(apart, [*told.values()]).validation.groups is None
    assert grouped_images(apart, None) is apart


def test_what_has_no_sound_labels_is_refused(folder):
    data = ImageDataset.from_folder(folder)
    for arguments, reason in [
        (([picture()],), "`labels` is missing for 1 image; give one per image, or one for all"),
        (([picture()], ["a", "b"]), "2 names for 1 image; give one each"),
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


def test_a_mapping_labels_files_by_their_names_in_any_order(folder):
    paths = ImageDataset.from_folder(folder).paths[:3]
    wanted = ["a", "b", "a"]
    by_file = dict(reversed(list(zip(map(str, paths), wanted, strict=True))))
    assert labelled_images(paths, by_file).labels == wanted
    relative = {os.path.relpath(path): label for path, label in by_file.items()}
    assert labelled_images(list(map(str, paths)), relative).labels == wanted
    for labels, reason in [
        (dict(list(by_file.items())[1:]), "`labels` lacks '.*' .1 in all"),
        ({**by_file, "other.png": "a"}, "`labels` names what is no image .*other.png"),
        ({**by_file, os.path.relpath(paths[0]): "b"}, "has two labels, 'a' and 'b'"),
        ({0: "a", 1: "b", 2: "a"}, "a mapping, which is read as {file: label}"),
        ({"a", "b"}, "`labels` is a set, which has no order"),
        (frozenset("abc"), "`labels` is a set, which has no order"),
    ]:
        with pytest.raises(DataError, match=reason):
            labelled_images(paths, labels)
    with pytest.raises(DataError, match="images without a name need a list"):
        labelled_images([picture()], {"x.png": "a"})


def test_one_file_under_two_labels_is_refused_however_it_is_written(folder):
    path = ImageDataset.from_folder(folder).paths[0]
    for other in (path, str(path), os.path.relpath(path), path.parent / "." / path.name):
        with pytest.raises(DataError, match=f"{path.name}' has two labels, 'a' and 'b'"):
            labelled_images([path, other], ["a", "b"])
    assert labelled_images([path, path], ["a", "a"]).labels == ["a", "a"]
    image = picture()
    assert labelled_images([image, image], ["a", "b"]).labels == ["a", "b"]  # no file to name


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


def test_an_array_of_file_names_is_a_list_of_files(folder):
    paths = ImageDataset.from_folder(folder).paths[:3]
    names = list(map(str, paths))
    for array, expected in (
        (np.array(names), names),
        (np.array(names, dtype=object), names),
        (np.array(list(map(os.fsencode, names))), names),
        (np.array(paths), paths),
        (np.array(names[0]), names[:1]),
    ):
        assert files_or_images(array) == expected
    assert labelled_images(np.array(names), np.array(list("aba"))).labels == ["a", "b", "a"]
    images = np.empty(2, dtype=object)
    images[:] = [picture(), np.zeros((6, 5, 3), "uint8")]
    assert [one.shape for one in files_or_images(images)] == [(4, 5, 3), (6, 5, 3)]


class TestSeriesOfLabels:
    """A Series says by its index which image each label is of."""

    @pytest.fixture
    def paths(self, folder):
        return list(map(str, ImageDataset.from_folder(folder).paths[:3]))

    def test_by_file_it_is_a_mapping(self, paths):
        labels = pd.Series(["a", "b", "c"], index=paths)
        for given in (labels, labels[::-1], labels.sample(frac=1, random_state=1)):
            assert labelled_images(paths, given).labels == ["a", "b", "c"]
        with pytest.raises(DataError, match=r"`labels` lacks"):
            labelled_images(paths, labels[:2])
        with pytest.raises(DataError, match=r"has two labels, 'a' and 'b'"):
            labelled_images(paths[:1], pd.Series(["a", "b"], index=paths[:1] * 2))

    def test_by_places_from_0_on_it_is_a_list(self, paths):
        assert labelled_images(paths, pd.Series(list("abc"))).labels == ["a", "b", "c"]

    def test_beside_files_of_the_same_index_it_is_a_list(self, paths):
        frame = pd.DataFrame({"file": paths, "name": list("abc")}, index=[7, 3, 5])
        assert labelled_images(frame["file"], frame["name"]).labels == ["a", "b", "c"]

    @pytest.mark.parametrize("index", [[2, 1, 0], [7, 3, 5], [0.5, 1.5, 2.5]])
    def test_by_anything_else_it_is_refused(self, paths, index):
        message = r"Series with the index .*: neither files nor places from 0 on. Give labels.toli"
        with pytest.raises(DataError, match=message):
            labelled_images(paths, pd.Series(list("abc"), index=index))
