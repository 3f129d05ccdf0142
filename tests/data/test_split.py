"""Shares are exact, groups whole, and nothing depends on the order of rows."""

import warnings
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learnkit.data.dataset import ImageDataset
from learnkit.data.split import SPLITS, assign_splits, check_shares
from learnkit.errors import SplitError


def dataset(counts, **columns):
    labels = [name for name, n in counts.items() for _ in range(n)]
    paths = [f"{i:04d}.png" for i in range(len(labels))]
    return ImageDataset(pd.DataFrame({"path": paths, "label": labels, **columns}), ".")


def test_large_classes_get_exactly_their_shares():
    counts = dataset({"a": 100, "b": 20, "c": 40}).split(0.7, 0.15).counts()
    assert counts.loc["a"].tolist() == [70, 15, 15]
    assert counts.loc["b"].tolist() == [14, 3, 3]
    assert counts.loc["c"].tolist() == [28, 6, 6]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    weights=st.tuples(st.integers(1, 9), st.integers(0, 9), st.integers(0, 9)),
    seed=st.integers(0, 3),
)
def test_every_stratum_is_rounded_fairly(sizes, weights, seed):
    shares = np.array(weights) / sum(weights)
    strata = [f"{i:02d}" for i, n in enumerate(sizes) for _ in range(n)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assigned = assign_splits(strata, shares, seed=seed)
    for i, n in enumerate(sizes):
        members = assigned[np.array(strata) == f"{i:02d}"]
        counts = np.bincount(members, minlength=3)
        assert counts.sum() == n
        assert counts[0] >= 1
        assert (counts[shares == 0] == 0).all()
        if n >= 2:
            assert (counts >= np.floor(n * shares - 1e-6) - (counts[0] == 1)).all()
            assert (counts[1:] <= np.ceil(n * shares[1:] + 1e-6)).all()
            assert counts[1] >= 1 or n * shares[1] < 0.5 or counts[0] == 1


def test_rounding_in_small_classes_does_not_starve_the_test_split():
    data = dataset({f"{i:03d}": 3 for i in range(100)}).split(0.7, 0.15)
    totals = data.counts().sum()
    assert abs(totals["train"] - 210) <= 1
    assert abs(totals["valid"] - 45) <= 1
    assert abs(totals["test"] - 45) <= 1


def test_a_class_of_two_is_always_learned():
    data = dataset({"a": 50, "b": 2, "c": 2}).split(0.1, 0.9)
    assert (data.counts()["train"] >= 1).all()
    assert (data.counts()["valid"] >= 1).all()


def test_every_class_owed_half_an_image_in_valid_has_one():
    counts = dataset({f"{i}": 3 for i in range(6)}).split(0.25, 0.2).counts()
    assert (counts["valid"] == 1).all()


def test_a_class_of_one_goes_to_train_and_is_named():
    with pytest.warns(UserWarning, match="single image, which goes to train: 'b', 'c'") as caught:
        data = dataset({"a": 10, "b": 1, "c": 1}).split(0.5, 0.5)
    assert data.counts().loc[["b", "c"], "train"].tolist() == [1, 1]
    assert caught[0].filename == __file__


def test_the_same_images_are_split_the_same_whatever_the_row_order():
    data = dataset({"a": 31, "b": 17, "c": 5})
    order = np.random.default_rng(3).permutation(len(data))
    shuffled = ImageDataset(data.frame.iloc[order], ".")
    assert data.split(0.6, 0.2).fingerprint() == shuffled.split(0.6, 0.2).fingerprint()


def test_seeds_differ_and_repeat():
    data = dataset({"a": 40, "b": 40})
    assert data.split(seed=1).fingerprint() == data.split(seed=1).fingerprint()
    assert data.split(seed=1).fingerprint() != data.split(seed=2).fingerprint()


def test_splitting_leaves_numpys_global_state_alone():
    np.random.seed(5)  # noqa: NPY002
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    dataset({"a": 10, "b": 10}).split()
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002


def test_without_stratification_only_the_whole_has_the_shares():
    data = dataset({"a": 37, "b": 60, "c": 3}).split(0.7, 0.2, stratify=False)
    assert [len(data.train), len(data.valid), len(data.test)] == [70, 20, 10]


def test_multi_label_images_are_stratified_by_their_rarest_label():
    labels = [["common"]] * 80 + [["common", "rare"]] * 10
    frame = pd.DataFrame({"path": [f"{i:03d}" for i in range(90)], "label": labels})
    counts = ImageDataset(frame, ".").split(0.5, 0.5).counts()
    assert counts.loc["rare"].tolist() == [5, 5]
    assert counts.loc["common"].tolist() == [45, 45]


@pytest.mark.parametrize("seed", range(5))
def test_groups_never_straddle_and_shares_come_close(seed):
    rng = np.random.default_rng(seed)
    parts = rng.integers(0, 120, 600)
    labels = [f"class {part % 3}" for part in parts]
    frame = pd.DataFrame({"path": [f"{i:03d}" for i in range(600)], "label": labels, "part": parts})
    data = ImageDataset(frame, ".").split(0.6, 0.2, 0.2, group="part", seed=seed)
    per_group = data.frame.groupby("part")["split"].nunique()
    assert (per_group == 1).all()
    shares = data.counts() / data.counts().to_numpy().sum(1, keepdims=True)
    assert (abs(shares - [0.6, 0.2, 0.2]) < 0.05).all(axis=None)


def test_small_grouped_classes_reach_valid_and_test_together():
    counts = {f"{i:02d}": 4 for i in range(40)}
    data = dataset(counts, part=[i // 2 for i in range(160)]).split(0.5, 0.25, 0.25, group="part")
    totals = data.counts().sum()
    assert (data.counts()["train"] >= 1).all()
    assert totals["train"] == pytest.approx(80, abs=8)
    assert totals["valid"] == pytest.approx(40, abs=8)


def test_a_class_in_one_group_goes_to_train_whole_and_is_named():
    groups = ["g0"] * 6 + [f"h{i}" for i in range(12)]
    with pytest.warns(UserWarning, match="single group, which goes to train: 'a'"):
        data = dataset({"a": 6, "b": 12}, g=groups).split(0.5, 0.5, group="g")
    assert data.counts().loc["a"].tolist() == [6, 0]


def test_a_class_in_two_groups_is_learned_even_if_train_is_owed_little():
    data = dataset({"a": 6, "b": 60}, g=[i // 3 for i in range(66)]).split(0.2, 0.8, group="g")
    assert data.counts().loc["a"].tolist() == [3, 3]


def test_grouped_splits_ignore_row_order_and_take_plain_values():
    parts = [i // 3 for i in range(60)]
    data = dataset({"a": 30, "b": 30}, part=parts)
    order = np.random.default_rng(0).permutation(60)
    shuffled = ImageDataset(data.frame.iloc[order], ".")
    one = data.split(0.5, 0.25, group="part").fingerprint()
    assert one == shuffled.split(0.5, 0.25, group="part").fingerprint()
    assert one == data.split(0.5, 0.25, group=parts).fingerprint()


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ("serial", r"`group` is 'serial'; columns are \['image_id'"),
        ([1, 2], "`group` has 2 values for 8 images"),
        ([1] * 7 + [None], "some are missing"),
    ],
)
def test_groups_must_be_known_for_every_image(group, message):
    with pytest.raises(SplitError, match=message):
        dataset({"a": 4, "b": 4}).split(0.5, 0.5, group=group)


def test_a_second_split_is_refused_unless_asked_for():
    data = dataset({"a": 10, "b": 10}).split(0.5, 0.5)
    with pytest.raises(SplitError, match=r"split already .*pass `overwrite=True` to split it anew"):
        data.split(0.8, 0.2)
    again = data.split(0.8, 0.2, overwrite=True)
    assert again.counts()["train"].tolist() == [8, 8]
    assert data.counts()["train"].tolist() == [5, 5]


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ((70, 15), "`train` is 70; it must be a share in 0..1, such as 0.7"),
        ((-0.1, 0.5), "`train` is -0.1"),
        ((0.7, "0.2"), "`valid` is '0.2'"),
        ((True, 0), "`train` is True"),
        ((0, 0.5), "`train` is 0; something must be left to learn from"),
        ((0.7, 0.4), r"is 1.1; it must be 1 \(leave `test` out for the rest\)"),
        ((0.5, 0.2, 0.2), "is 0.9; it must be 1"),
        ((float("nan"), 0.5), "`train` is nan"),
    ],
)
def test_wrong_shares_are_refused(shares, message):
    with pytest.raises(SplitError, match=message):
        dataset({"a": 10, "b": 10}).split(*shares)


def test_shares_that_sum_to_one_up_to_rounding_leave_no_test():
    assert check_shares(0.7, 0.3, None).tolist() == [0.7, 0.3, 0]
    assert dataset({"a": 10, "b": 10}).split(0.9, 0.1).splits == ["train", "valid"]
    assert check_shares(0.6, 0.3, 0.1).sum() == pytest.approx(1)


def test_a_split_that_would_stay_empty_is_refused():
    with pytest.raises(SplitError, match=r"no image falls to 'test': its share of 6 images"):
        dataset({"a": 3, "b": 3}).split(0.7, 0.25)


def test_assigned_names_are_the_three_known_ones():
    names = Counter(dataset({"a": 10, "b": 10}).split(0.6, 0.2).frame["split"])
    assert set(names) == set(SPLITS)
