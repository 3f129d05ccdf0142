"""Groups of images: one meaning of `group` for splits and for what is learned."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from learnkit.data.dataset import ImageDataset
from learnkit.data.groups import groups_of
from learnkit.data.labelled_images import labelled_images
from learnkit.errors import DataError, SplitError

FILES = [f"{name}/part{i // 3}_{i}.png" for name in "ab" for i in range(12)]
PARTS = [str(i // 3) for _ in "ab" for i in range(12)]


def dataset(tmp_path, **columns):
    labels = [file[0] for file in FILES]
    return ImageDataset(pd.DataFrame({"path": FILES, "label": labels, **columns}), tmp_path)


def meanings(tmp_path):
    """What says the same groups of the same images."""
    return {
        "a column": "part",
        "an expression": r"part(\d+)",
        "compiled": re.compile(r"part(\d+)"),
        "by file": {tmp_path / file: part for file, part in zip(FILES, PARTS, strict=True)},
        "by relative file": dict(zip(FILES, PARTS, strict=True)),
        "a list": PARTS,
        "an array": np.array(PARTS),
        "a Series by place": pd.Series(PARTS),
        "a Series by file": pd.Series(PARTS, index=FILES)[::-1],
    }


@pytest.mark.parametrize("meaning", meanings(Path()))
def test_every_way_to_say_groups_splits_and_learns_alike(tmp_path, meaning):
    data, group = dataset(tmp_path, part=PARTS), meanings(tmp_path)[meaning]
    assert [str(one) for one in data.groups(group)] == PARTS
    split = data.split(0.5, 0.25, 0.25, group=group)
    assert split.fingerprint() == data.split(0.5, 0.25, 0.25, group="part").fingerprint()
    found = labelled_images(split, group=group)
    assert found.items == split.train.paths
    assert [str(one) for one in found.groups] == split.train.frame["part"].tolist()
    assert labelled_images(split).groups is None


def test_files_in_a_list_have_groups_by_their_paths(tmp_path):
    paths = [tmp_path / file for file in FILES]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert labelled_images(paths, "a", group=r"part\d+").groups == [f"part{p}" for p in PARTS]
    by_file = {str(path): part for path, part in zip(paths, PARTS, strict=True)}
    assert labelled_images(paths[:5], "a", group=by_file).groups == PARTS[:5]
    table = pd.DataFrame({"path": [str(path) for path in paths], "label": "a", "part": PARTS})
    assert labelled_images(table, group="part").groups == PARTS
    pictures = [np.zeros((4, 4, 3), "uint8")] * 2
    assert labelled_images(pictures, "a", group=["x", "y"]).groups == ["x", "y"]


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ("serial", r"'serial'; columns are \['image_id'.*finds nothing in 24 of 24 paths, such as"),
        (r"part[01]_", r"finds nothing in 12 of 24 paths, such as 'a/part2_6.png'"),
        (r"(part)(\d)", "has 2 groups; give it one, or none"),
        (r"part(", "is no regular expression"),
        ({"a/part0_0.png": 1}, r"lacks '.*part0_1.png' \(23 of 24 images\); give one group per"),
        ({1, 2}, "give a column, a regular expression, {file: group}, or a list"),
        (7, r"`group` is 7 \(int\)"),
        ([1], "has 1 value for 24 images"),
        ([1] * 23, "has 23 values for 24 images"),
        ([1] * 23 + [None], "or some are missing"),
        ([1.0] * 23 + [float("nan")], "or some are missing"),
        ([1] * 23 + [pd.NA], "or some are missing"),
    ],
)
def test_groups_that_do_not_say_one_for_every_image_are_refused(tmp_path, group, message):
    data = dataset(tmp_path)
    with pytest.raises(SplitError, match=message):
        data.split(0.5, 0.5, group=group)
    with pytest.raises(DataError, match=message):
        labelled_images(data, group=group)


def test_pictures_without_files_need_a_list():
    pictures = [np.zeros((4, 4, 3), "uint8")]
    with pytest.raises(DataError, match="finds nothing in 1 of 1 path"):
        groups_of("part", pictures)
    with pytest.raises(DataError, match="or a list with one value per image"):
        groups_of({"a.png": 1}, pictures)


class TestSeriesOfGroups:
    """A Series says by its index which image each group is of, as one of labels does."""

    def test_of_a_filtered_table_it_is_refused_for_a_dataset(self, tmp_path):
        data = dataset(tmp_path)
        kept = pd.Series(["x", *PARTS]).iloc[1:]
        remedy = r"`group` is a Series with the index 1, 2, .*: neither files nor places from 0 on"
        for ask in (data.groups, lambda group: labelled_images(data, group=group)):
            with pytest.raises(DataError, match=remedy + r". Give group.tolist\(\) if"):
                ask(kept)
        with pytest.raises(SplitError, match=remedy):
            data.split(0.5, 0.25, 0.25, group=kept)

    def test_of_the_table_that_is_learned_it_goes_by_rows(self, tmp_path):
        paths = [tmp_path / file for file in FILES]
        table = pd.DataFrame({"path": list(map(str, paths)), "label": "a", "part": PARTS})
        for path in paths:
            path.parent.mkdir(exist_ok=True)
            path.touch()
        some = table.sample(9, random_state=0)
        expected = dict(zip(map(str, paths), PARTS, strict=True))
        for data, labels in ((some, None), (some["path"], "a")):
            found = labelled_images(data, labels, group=some["part"])
            assert found.groups == [expected[str(path)] for path in found.items]

    def test_a_file_of_two_groups_is_refused(self, tmp_path):
        twice = pd.Series([*PARTS, "9"], index=[*FILES, FILES[0]])
        with pytest.raises(DataError, match=r"'a/part0_0.png' has two groups, '0' and '9'; leave"):
            dataset(tmp_path).groups(twice)
        assert dataset(tmp_path).groups(pd.Series([*PARTS, "0"], index=[*FILES, FILES[0]])) == PARTS

    def test_a_missing_one_is_told_as_such(self, tmp_path):
        for index in (FILES, range(24)):
            with pytest.raises(DataError, match="or some are missing"):
                dataset(tmp_path).groups(pd.Series([*PARTS[1:], None], index=index))
