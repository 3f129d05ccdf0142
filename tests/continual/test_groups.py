"""Groups of images that are said to belong together: left out as a whole, whoever learned them."""

import json
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from continual_helpers import bursts, draw, examples, keep_every_row, on_grid
from hypothesis import given
from hypothesis import strategies as st

from learnkit.continual.classifier import ContinualClassifier
from learnkit.continual.closed_form.near_copies import of_no_learned_group, with_given_groups
from learnkit.continual.fingerprints import group_codes
from learnkit.continual.statistics import ClassStatistics
from learnkit.errors import DataError, StatisticsError
from learnkit.uncertainty.scoring import GRID

# one image a class is what these tests learn
pytestmark = pytest.mark.filterwarnings("ignore:no class has two images that differ")

few, D = examples(8), 12
seeds = st.integers(0, 999)


def learned(*batches, memory=64, width=D):
    head = ContinualClassifier(width, memory=memory)
    for features, labels, groups in batches:
        if labels:
            head.extend(features, labels, groups=groups)
    return head


def pick(batch, rows):
    return batch[0][list(rows)], *([part[row] for row in rows] for part in batch[1:])


def same(one, other):
    return one.statistics.equals(other.statistics) and one.threshold.value == other.threshold.value


def parts(seed=0, n=18):
    features, labels = draw({"a": n, "b": n - 6}, seed=seed)
    return features, labels, [f"part {i % 5}" for i in range(len(labels))]


def test_what_has_one_code_is_one_group_with_its_near_copies():
    assert with_given_groups([0, 1, 2, 3], [0, 0, 0, 0]) == (0, 1, 2, 3)
    assert with_given_groups([0, 1, 2, 3], [0, 7, 0, 7]) == (0, 1, 2, 1)
    # 0 and 2 are near copies, 2 and 3 of one part, 3 and 4 near copies
    assert with_given_groups([0, 1, 0, 3, 3], [0, 0, 5, 5, 0]) == (0, 1, 0, 0, 0)
    assert with_given_groups([0, 1, 2, 3, 4], [1, 2, 1, 2, 0]) == (0, 1, 0, 1, 4)


@few
@given(st.lists(st.integers(0, 3), min_size=1, max_size=9), st.lists(st.integers(0, 2), min_size=9))
def test_groups_are_the_connected_components_of_both(firsts, codes):
    near = [min(i, first) for i, first in enumerate(firsts)]
    near = [near[near[near[i]]] for i in near]  # heads are heads of themselves
    codes = codes[: len(near)]
    linked = np.eye(len(near), dtype=bool)
    for i, one in enumerate(near):
        for j, other in enumerate(near):
            linked[i, j] |= one == other or (codes[i] == codes[j] != 0)
    for _ in near:
        linked = linked @ linked
    wanted = [int(np.flatnonzero(row)[0]) for row in linked]
    assert list(with_given_groups(near, codes)) == wanted


@pytest.mark.parametrize("missing", [float("nan"), np.nan, np.float32("nan"), pd.NA, pd.NaT])
def test_a_missing_value_is_no_group(missing):
    assert group_codes([missing, "a", None], 3).tolist() == [0, *group_codes(["a"], 1), 0]
    features, labels = draw({"a": 6, "b": 6})
    head, plain = ContinualClassifier(D), ContinualClassifier(D)
    head.extend(features, labels, groups=[missing] * 12)
    plain.extend(features, labels)
    assert same(head, plain)


def test_groups_are_any_list_and_nothing_else():
    features, labels, groups = parts()
    head, other = ContinualClassifier(D), ContinualClassifier(D)
    head.extend(features, labels, groups=groups)
    other.extend(features, labels, groups=iter(groups))
    assert same(head, other)
    before = head.knowledge
    for wrong in (3, b"x" * len(labels), (group for group in "ab")):
        with pytest.raises(DataError, match="give one value for each of 30 images, None for none"):
            head.extend(features, labels, groups=wrong)
    assert head.knowledge is before


def test_codes_are_of_the_text_and_never_none():
    codes = group_codes(["7", 7, None, "8", np.int64(7)], 5)
    assert codes[0] == codes[1] == codes[4] != codes[3]
    assert (codes[2], codes.dtype) == (0, np.int64)
    assert (codes[[0, 1, 3, 4]] != 0).all()
    for wrong in (["a"], "ab", {"a": 1, "b": 2}):
        with pytest.raises(DataError, match="give one value for each of 2 images"):
            group_codes(wrong, 2)


def gathered(*batches, memory_size):
    stats = ClassStatistics.empty(D, root=False, memory_size=memory_size)
    for features, labels, groups in batches:
        if labels:
            stats = stats.update(features, labels).grouped(features, labels, groups)
    return stats


@few
@given(seeds, st.permutations(range(30)), st.lists(st.integers(1, 29), max_size=3), st.booleans())
def test_order_and_batches_leave_no_trace_of_groups(seed, order, cuts, small):
    batch, size = parts(seed), 7 if small else 64
    pieces = [pick(batch, piece) for piece in np.split(np.array(order), sorted(set(cuts)))]
    # some come again, and others say that they belong elsewhere
    twice = (*pick(batch, order[:9])[:2], [f"part {i % 2}" for i in range(9)])
    whole = gathered(twice, batch, memory_size=size)
    assert whole.memory.given().any()
    assert gathered(*pieces, twice, memory_size=size).equals(whole)
    merged = gathered(memory_size=size)
    for piece in (*pieces, twice):
        merged = gathered(piece, memory_size=size).merge(merged)
    assert merged.equals(whole)


def test_a_classifier_learns_groups_in_any_order_to_the_bit():
    batch = parts()
    backwards = learned(pick(batch, range(29, 11, -1)), pick(batch, range(12)))
    assert same(backwards, learned(batch))


def test_groups_are_kept_by_every_change():
    batch = parts()
    head = learned(batch)
    head.rename({"a": "c"})
    head.merge_classes(["c", "b"], "d")
    told = {g: group_codes([g], 1)[0] for g in set(batch[2])}
    rows = {
        tuple(row.tolist()): g
        for row, g in zip((on_grid(batch[0]) * GRID).short(), batch[2], strict=True)
    }
    cell = head.statistics.memory.cells[0]
    assert [told[rows[tuple(row.tolist())]] for row in cell.features] == list(cell.given)
    head.undo()
    head.undo()
    assert same(head, learned(batch))
    head.subtract(*pick(batch, range(18, 30))[:2])
    assert same(head, learned(pick(batch, range(18))))
    head.forget("a")
    assert not len(head.statistics.memory)


def test_groups_travel_with_the_state_and_are_none_of_an_earlier_one():
    head = learned(parts(), memory=9)
    config, tensors = head.state()
    assert tensors["memory_groups"].shape == (18,)
    back = ContinualClassifier.from_state(json.loads(json.dumps(config)), tensors)
    assert same(back, head)
    plain = {name: one for name, one in tensors.items() if name != "memory_groups"}
    without = learned((*parts()[:2], None), memory=9)
    assert same(ContinualClassifier.from_state(config, plain), without)
    assert "memory_groups" not in without.state()[1]
    for wrong in (tensors["memory_groups"][:-1], tensors["memory_groups"].float()):
        with pytest.raises(StatisticsError, match="memory_groups"):
            ContinualClassifier.from_state(config, {**tensors, "memory_groups": wrong})


def test_groups_may_be_said_of_images_that_were_learned_without():
    batch = parts()
    head = learned((*batch[:2], None))
    assert not same(head, learned(batch))
    head.extend(*batch[:2], groups=batch[2])
    assert same(head, learned(batch))


def test_wrong_groups_change_nothing():
    batch = parts()
    head = learned(batch)
    before = head.knowledge
    with pytest.raises(DataError, match="one value for each of 30 images"):
        head.extend(*batch[:2], groups=["x"])
    with pytest.raises(DataError, match="one value for each of 30 images"):
        head.extend(*draw({"a": 30}, seed=3), groups="part")
    assert head.knowledge is before


def false_alarms(images, labels, groups, fresh):
    head = ContinualClassifier(images.shape[1])
    head.extend(images, labels, groups=groups)
    return head.is_ood(fresh).float().mean().item()


@pytest.mark.parametrize("versions", [3, 10])
def test_bursts_that_are_said_flag_no_more_than_single_images(versions, monkeypatch):
    keep_every_row(monkeypatch)  # nobody sees that they belong together
    told, counts = [], {"a": 20, "b": 20}
    for seed in range(3):
        fresh, _ = draw({"a": 200, "b": 200}, width=128, seed=99 + seed)
        single = draw(counts, width=128, seed=seed)
        many = bursts(counts, width=128, versions=versions, seed=seed, apart=0.7)
        groups = [i % 40 for i in range(len(many[1]))]
        rates = [
            false_alarms(*one, fresh) for one in ((*single, None), (*many, groups), (*many, None))
        ]
        told.append(rates)
    single, grouped, silent = np.mean(told, axis=0)
    assert grouped <= 1.2 * single + 0.005
    assert grouped < silent


def random_split(seed=0, n_parts=12, views=20):
    """(learned, validation, fresh): views of parts, of which a random third is validation."""
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(3, 128)) * 0.5

    def of_parts(n, n_views):
        parts = means[:, None] + rng.normal(size=(3, n, 128)) * 0.6
        rows = parts[:, :, None] + rng.normal(size=(3, n, n_views, 128)) * 0.7
        labels = np.repeat(["a", "b", "c"], n * n_views).tolist()
        names = [f"part {i}" for i in range(n) for _ in range(n_views)] * 3
        return torch.from_numpy(rows.clip(0)).float().flatten(0, 2), labels, names

    batch, fresh = of_parts(n_parts, views), of_parts(100, 1)
    order = rng.permutation(len(batch[1]))
    third = len(order) // 3
    return pick(batch, order[third:]), pick(batch, order[:third]), fresh


NOTE = "validation images do not count: others of the groups they are said to be of are learned"


def test_validation_images_of_learned_groups_do_not_count():
    train, valid, fresh = random_split()
    head = ContinualClassifier(128)
    report = head.extend(*train[:2], groups=train[2], validation=valid)
    assert any(note.startswith(f"192 of 192 {NOTE}") for note in report.notes)
    assert head.knowledge.derived.n_fresh == 0
    alone = learned(train, width=128)
    assert head.threshold.value == alone.threshold.value
    assert head.temperature == alone.temperature
    assert float(head.is_ood(fresh[0]).double().mean()) <= 0.1
    assert not head.are_fresh(*valid).any()
    # nobody says what they are of: views of one part differ too much to be near copies
    head = ContinualClassifier(128)
    head.extend(*train[:2], groups=train[2], validation=valid[:2])
    assert float(head.is_ood(fresh[0]).double().mean()) > 0.5
    assert head.are_fresh(*valid[:2]).all()


def test_validation_images_of_other_groups_and_of_none_count():
    train, valid, _ = random_split()
    rows = [i for i, one in enumerate(train[2]) if int(one[5:]) > 3]
    kept = [i for i, one in enumerate(valid[2]) if int(one[5:]) <= 3]
    told = ContinualClassifier(128, memory=400)
    for part, names in (valid[2], None), (None, [None] * len(valid[2])):
        both = pick(train, rows)
        fresh = pick((*valid[:2], names or part), kept)
        told = ContinualClassifier(128, memory=400)
        report = told.extend(*both[:2], groups=both[2], validation=fresh)
        assert told.knowledge.derived.n_fresh == len(kept)
        assert not any(NOTE in note for note in report.notes)
    # the same names in another class are other parts
    other = ["b" if label == "a" else "a" for label in valid[1]]
    rows = [i for i, label in enumerate(train[1]) if label == "a"]
    told = ContinualClassifier(128, memory=400)
    both = pick(train, rows)
    told.extend(*both[:2], groups=both[2], class_names=["a", "b"])
    fresh = pick((valid[0], other, valid[2]), [i for i, one in enumerate(other) if one == "b"])
    assert told.are_fresh(*fresh).all()


def test_of_a_class_that_is_remembered_in_part_none_counts_where_some_groups_are_learned():
    train, valid, _ = random_split()
    strange = pick(valid, [i for i, one in enumerate(valid[2]) if one == "part 0"])
    rows = [i for i, one in enumerate(train[2]) if one != "part 0"]
    few, all_of_them = ContinualClassifier(128, memory=8), ContinualClassifier(128, memory=400)
    for head in few, all_of_them:
        head.extend(train[0][rows], [train[1][i] for i in rows], groups=[train[2][i] for i in rows])
        assert head.are_fresh(*strange).all()
    assert not few.are_fresh(*valid).any()
    assert np.array_equal(all_of_them.are_fresh(*valid), [one == "part 0" for one in valid[2]])


@pytest.mark.parametrize(
    ("given", "learned", "all_remembered", "fresh"),
    [
        ([7, 0, 8, 0], [7, 0, 9], True, [False, True, True, True]),
        ([7, 0, 8, 0], [7, 0, 9], False, [False] * 4),
        ([7, 0, 8, 0], (), False, [True] * 4),  # nobody said it of learned ones
        ([0, 0], [0, 0], False, [True] * 2),
        ([7, *[8] * 19], [7], False, [False, *[True] * 19]),  # a stray speaks for itself alone
        ([7, *[8] * 18], [7], False, [False] * 19),
        ([], [7], False, []),
    ],
)
def test_which_validation_images_are_of_no_learned_group(given, learned, all_remembered, fresh):
    found = of_no_learned_group(given, learned, all_remembered=all_remembered)
    assert found.tolist() == fresh


def test_groups_of_validation_images_travel_with_the_state_in_any_order():
    train, valid, _ = random_split()
    head = ContinualClassifier(128)
    head.extend(*train[:2], groups=train[2], validation=valid)
    config, tensors = head.state()
    back = ContinualClassifier.from_state(json.loads(json.dumps(config)), tensors)
    assert same(back, head)
    assert back.knowledge.derived.n_fresh == 0
    # validation images first, and what they are of said before or after the others are learned
    late = ContinualClassifier(128)
    first, then = range(150), range(150, len(train[1]))
    part, rest = pick(train, first), pick(train, then)
    late.extend(*part[:2], groups=part[2], validation=valid)
    late.extend(*rest[:2], groups=rest[2])
    assert late.threshold.value == head.threshold.value
    said = ContinualClassifier(128)
    said.extend(*train[:2], groups=train[2], validation=valid[:2])
    assert said.threshold.value != head.threshold.value
    said.extend(*pick(train, [0])[:2], validation=valid)
    assert said.threshold.value == head.threshold.value
    broken = {**tensors, "validation_groups": tensors["validation_groups"][1:]}
    with pytest.raises(StatisticsError, match="validation_groups"):
        ContinualClassifier.from_state(config, broken)
    before = head.threshold.value
    with pytest.raises(DataError, match="give one value for each of 240 images"):
        head.extend(*train[:2], validation=(*valid[:2], valid[2][:-1]))
    assert head.threshold.value == before


def test_a_group_leaves_as_a_whole_and_weighs_as_one():
    features, labels, groups = parts()
    head = learned((features, labels, groups))
    loo = head.knowledge.derived.linear.loo
    assert loo.n_single == 10  # five parts of each class
    z, memory = on_grid(features), loo.memory
    for row in loo.rows[:10]:
        own = memory.features[memory.members[row][memory.members[row] >= 0]]
        places = {int(torch.cdist(one[None], z).argmin()) for one in own}
        (name,), (part,) = {labels[i] for i in places}, {groups[i] for i in places}
        assert places == {i for i in range(30) if (labels[i], groups[i]) == (name, part)}


def test_a_class_of_one_group_is_taken_for_one_image_whatever_is_remembered():
    features, labels = draw({"a": 30, "b": 12, "c": 12}, width=24)
    groups = ["one day"] * 30 + [None] * 24
    for memory in (64, 8):
        head = ContinualClassifier(24, memory=memory)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            report = head.extend(features, labels, groups=groups)
        assert any("one image or group each of a: threshold" in note for note in report.notes)
        assert np.isfinite(head.threshold.value)
        assert not (head.knowledge.derived.linear.loo.memory.labels == 0).any()


def test_the_note_on_near_copies_names_the_remedy_until_it_is_taken():
    batch = bursts({"a": 12, "b": 12}, width=64)
    head = ContinualClassifier(64)
    notes = head.extend(*batch).notes
    assert any("near copies of others" in note and "say by `group=`" in note for note in notes)
    notes = head.extend(*batch, groups=[i % 24 for i in range(72)]).notes
    assert not any("near copies" in note for note in notes)
