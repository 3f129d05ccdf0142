"""Fingerprints: what was learned is known when it comes again, and counts once."""

import hashlib
import json
from collections import Counter

import numpy as np
import pytest
import torch
from continual_helpers import draw, examples, gather, on_grid
from hypothesis import given
from hypothesis import strategies as st

from learnkit.continual.classifier import ContinualClassifier
from learnkit.continual.fingerprints import Fingerprints, fingerprints_of, less_one_of_each
from learnkit.continual.memory import Forgotten
from learnkit.errors import DataError, StatisticsError
from learnkit.uncertainty.scoring import GRID

few, D = examples(8), 12
codes = st.lists(st.integers(0, 5), max_size=12)
seeds = st.integers(0, 2**31)


def array(numbers):
    return np.array(numbers, dtype=np.uint64)


def learned(*batches, memory=4, **how):
    head = ContinualClassifier(D, memory=memory)
    for features, labels in batches:
        if labels:
            head.extend(features, labels, **how)
    return head


def pick(batch, rows):
    return batch[0][list(rows)], [batch[1][row] for row in rows]


def same(one, other):
    return one.statistics.equals(other.statistics) and one.threshold.value == other.threshold.value


# -- the multiset itself --------------------------------------------------------------------------


@few
@given(codes, codes)
def test_less_one_of_each_is_the_difference_of_multisets(held, gone):
    left, missing = less_one_of_each(array(sorted(held)), array(gone))
    assert left.tolist() == sorted((Counter(held) - Counter(gone)).elements())
    assert sorted(missing.tolist()) == sorted((Counter(gone) - Counter(held)).elements())


@few
@given(codes, codes)
def test_adding_is_merging_and_removing_undoes_it(one, other):
    index = torch.tensor([code % 2 for code in one]), torch.tensor([code % 2 for code in other])
    empty = Fingerprints().sized(2)
    first = empty.add(array(one), index[0].long())
    second = empty.add(array(other), index[1].long())
    both = first.add(array(other), index[1].long())
    assert both.equals(second.merge(first, torch.arange(2)))
    for place, held in enumerate(both.classes):
        assert held.tolist() == sorted(code for code in one + other if code % 2 == place)
    back = both.remove(array(other), index[1].long(), [99, 99], ["a", "b"])
    assert back.equals(first)
    assert both.joined([0], 1).classes[1].tolist() == sorted(one + other)
    assert len(both.emptied(0)) == len(both.classes[1])


def test_a_fingerprint_is_the_start_of_the_hash_and_the_same_everywhere():
    little, key = np.array([19661, -26214], dtype="<i2").tobytes(), b"learnkit feature memory"
    start = hashlib.blake2b(little, digest_size=16, key=key).digest()[:8]
    assert fingerprints_of(torch.tensor([[19661.0, -26214.0]])) == [int.from_bytes(start, "big")]


# -- learning -------------------------------------------------------------------------------------


@few
@given(seeds, st.lists(st.integers(0, 19), min_size=20, max_size=40), st.integers(0, 40))
def test_images_count_once_in_any_order_and_batches(seed, rows, cut):
    batch = draw({"a": 12, "b": 8}, seed=seed % 1000)
    rows = [*rows, *range(20)]
    pieces = pick(batch, rows[:cut]), pick(batch, rows[cut:])
    assert same(learned(*pieces), learned(batch))


def test_the_report_says_what_was_learned_already_and_again_counts_it():
    batch = draw({"a": 6, "b": 5})
    head = learned(batch)
    report = head.extend(*pick(batch, [0, 1, 1, 7]))
    assert report.notes[0] == (
        "already learned: 4 of 4 images, which count once; `again=True` counts them once more"
    )
    assert not report.images
    assert same(head, learned(batch))
    more = draw({"a": 2}, seed=1)
    report = head.extend(torch.cat([more[0], more[0][:1], batch[0][:1]]), ["a"] * 4)
    assert report.notes[0].startswith("already learned: 2 of 4 images")
    assert report.images == {"a": 2}
    report = head.extend(*pick(batch, [0, 0]), again=True)
    assert report.images == {"a": 2}
    assert not any("already" in note for note in report.notes)
    head.subtract(*pick(batch, [0, 0]))
    assert same(head, learned(batch, more))


def test_nothing_new_still_gives_places_and_refuses_bad_names():
    batch = draw({"a": 6, "b": 5})
    head = learned(batch)
    head.extend(*pick(batch, [0]), class_names=["a", "none"])
    assert head.classes == ("a", "b", "none")
    head.rename({"a": "ant"})
    with pytest.raises(DataError, match="class 'a' is called 'ant' now"):
        head.extend(*pick(batch, [0]))
    assert head.extend(batch[0][:1], ["ant"]).notes[0].startswith("already learned: 1 of 1")


def test_an_image_known_under_another_name_counts_for_both_and_is_said():
    batch = draw({"a": 6, "b": 5})
    head = learned(batch, memory=9)
    report = head.extend(batch[0][:2], ["b", "b"])
    assert report.images == {"b": 2}
    assert report.notes[0] == (
        "2 of 2 images were learned under another name before, and speak for both classes now; "
        "`subtract` them from the wrong one"
    )
    head.subtract(batch[0][:2], ["a", "a"])
    assert same(head, learned(pick(batch, range(2, 11)), (batch[0][:2], ["b", "b"]), memory=9))


def test_rename_merge_classes_and_undo_keep_what_is_known():
    batch = draw({"a": 6, "b": 5})
    head = learned(batch)
    head.merge_classes(["a", "b"], "c")
    head.rename({"c": "d"})
    assert head.extend(batch[0], ["d"] * 11).notes[0].startswith("already learned: 11 of 11")
    for _ in range(2):  # what changed nothing is no step
        head.undo()
    assert same(head, learned(batch))


def test_merged_statistics_say_what_both_sides_learned():
    batch = draw({"a": 6, "b": 5})
    head = learned(pick(batch, range(4)))
    other = gather(*pick(batch, range(3, 11)), memory_size=4)
    report = head.merge(other)
    assert report.notes[0] == (
        "learned on both sides, so that it counts twice now: 1 image; `subtract` once what is "
        "there twice"
    )
    head.subtract(*pick(batch, [3]))
    assert torch.equal(head.statistics.gram, learned(batch).statistics.gram)
    assert head.statistics.learned.union().tolist() == sorted(
        fingerprints_of(on_grid(batch[0]) * GRID).tolist()
    )


def test_an_image_never_learned_is_refused_whatever_is_remembered():
    batch = draw({"a": 30, "b": 5})
    head = learned(batch)
    before = head.knowledge
    strange = torch.cat([batch[0][:2], draw({"a": 1}, seed=5)[0]])
    message = r"1 of 3 images to be subtracted from class 'a' were never added to it \(rows 2\)"
    with pytest.raises(StatisticsError, match=message):
        head.subtract(strange, ["a"] * 3)
    assert head.knowledge is before
    head.subtract(strange[:2], ["a"] * 2)
    with pytest.raises(StatisticsError, match="2 of 2 images"):
        head.subtract(strange[:2], ["a"] * 2)


def test_images_are_known_whatever_their_class():
    batch, others = draw({"a": 9, "b": 5}), draw({"a": 3}, seed=1)
    stats = learned(batch).statistics
    assert stats.knows(torch.cat([others[0], batch[0]])).tolist() == [False] * 3 + [True] * 14
    assert stats.forget("a").knows(batch[0]).tolist() == [False] * 9 + [True] * 5


# -- forgotten and learned again ------------------------------------------------------------------


def scatter_of(*parts):
    """Within-class scatter of parts, each around its own mean, by definition."""
    found = torch.zeros(D, D, dtype=torch.float64)
    for part in parts:
        rows = part - part.mean(0)
        found += rows.T @ rows
    return found


@few
@given(seeds, st.permutations(range(24)), st.lists(st.integers(1, 23), max_size=3))
def test_what_is_learned_again_of_a_forgotten_class_counts_once_in_any_order(seed, order, cuts):
    batch = draw({"a": 24, "b": 6}, seed=seed % 1000)
    head = learned(batch)
    head.forget("a")
    once = learned(batch)
    once.forget("a")
    once.extend(*pick(batch, sorted(order[: len(order) // 2])))
    for piece in np.split(np.array(order[: len(order) // 2]), sorted(set(cuts))):
        if len(piece):
            head.extend(*pick(batch, piece))
    assert same(head, once)
    gone = head.statistics.memory.of("a")  # what is left is of images neither back nor remembered
    z = on_grid(batch[0])
    left = [one for one in head.statistics.forgotten for _ in range(one.count)]
    back = order[: len(order) // 2]
    was = learned(batch).statistics.memory.of("a").double() / GRID
    rest = [
        row for row in range(24) if row not in back and (torch.cdist(z[[row]], was) > 1e-9).all()
    ]
    assert len(left) == (len(rest) if len(rest) > 1 else 0)
    parts = [z[back], z[24:], *([z[rest]] if rest else [])]
    torch.testing.assert_close(head.statistics.scatter(), scatter_of(*parts), atol=1e-9, rtol=0)
    assert len(gone) == 4


def test_classes_forgotten_and_learned_again_are_as_before_to_the_bit_whatever_is_remembered():
    batch = draw({"a": 24, "b": 20})
    head = learned(batch)
    for name in "ab":
        head.forget(name)
    head.extend(*pick(batch, range(10, 40)))
    head.extend(*pick(batch, [*range(10), *range(40, 44)]))
    assert same(head, learned(batch))


def test_learning_again_under_another_name_takes_it_from_what_was_left():
    batch = draw({"a": 24, "b": 20})
    head = learned(batch)
    head.forget("a")
    head.extend(batch[0][:24], ["c"] * 24)
    assert not head.statistics.forgotten
    assert same(head, learned((batch[0], ["c"] * 24 + ["b"] * 20)))


def test_what_a_forgotten_class_left_is_subtracted_under_its_name_alone():
    batch = draw({"a": 24, "b": 20})
    head = learned(batch)
    head.forget("a")
    with pytest.raises(StatisticsError, match="class 'b'"):
        head.subtract(batch[0][:24], ["b"] * 24)
    stats = head.statistics
    left = np.flatnonzero(stats.recalled(batch[0])[1])
    assert len(left) == 20
    head.subtract(*pick(batch, left))
    assert same(head, learned(pick(batch, range(24, 44))))


def test_learning_half_of_a_forgotten_class_again_keeps_false_alarms():
    told = []
    for seed in range(4):
        batch = draw({"a": 24, "b": 24}, width=96, seed=seed)
        fresh = draw({"a": 100, "b": 100}, width=96, seed=50 + seed)[0]
        half = pick(batch, [*range(12), *range(24, 36)])
        head = ContinualClassifier(96, memory=10)
        head.extend(*half)
        few = head.is_ood(fresh).float().mean().item()
        head = ContinualClassifier(96, memory=10)
        head.extend(*batch)
        head.forget("a")
        head.forget("b")
        head.extend(*half)
        told.append((few, head.is_ood(fresh).float().mean().item()))
    few, again = np.mean(told, axis=0)
    assert again < few + 0.02


# -- files ----------------------------------------------------------------------------------------


def test_fingerprints_travel_with_the_state_and_what_is_left_of_classes():
    batch = draw({"a": 24, "b": 20})
    head = learned(batch)
    head.forget("a")
    config, tensors = head.state()
    assert tensors["fingerprints"].dtype == torch.int64
    assert tensors["fingerprint_sizes"].tolist() == [0, 20, 20]
    back = ContinualClassifier.from_state(json.loads(json.dumps(config)), tensors)
    assert same(back, head)
    back.extend(*batch)
    assert same(back, learned(batch))


def test_a_state_that_remembers_all_images_needs_no_fingerprints_beside():
    batch = draw({"a": 6, "b": 5})
    head = learned(batch, memory=6)
    config, tensors = head.state()
    assert "fingerprints" not in tensors
    back = ContinualClassifier.from_state(config, tensors)
    assert same(back, head)
    assert back.extend(*batch).notes[0].startswith("already learned: 11 of 11")


def old_state(head):
    config, tensors = head.state()
    names = ("fingerprints", "fingerprint_sizes")
    return config, {name: one for name, one in tensors.items() if name not in names}


def test_what_an_earlier_version_learned_is_known_as_far_as_it_is_remembered_and_said_once():
    batch = draw({"a": 24, "b": 20})
    old = old_state(learned(batch))
    head = ContinualClassifier.from_state(*old)
    written, known = head.state()[1], head.statistics.knows(batch[0])
    assert known.sum() == 8
    assert written.keys() == old[1].keys()
    assert all(torch.equal(written[name], one) for name, one in old[1].items())
    report = head.extend(*batch)
    assert report.notes[0].startswith("already learned: 8 of 44 images")
    assert any(
        note.startswith("an earlier version learned 36 of 44 images without noting which")
        for note in report.notes
    )
    assert report.images == {"a": 20, "b": 16}
    notes = head.extend(*draw({"a": 2}, seed=1)).notes
    assert not any("earlier version" in note for note in notes)
    assert head.extend(*batch).notes[0].startswith("already learned: 44 of 44")
    head.subtract(*draw({"a": 2}, seed=1))
    with pytest.warns(UserWarning, match="rest on an assumed distribution"):
        head.subtract(*batch)  # nothing of what is left is remembered any more
    assert head.n_images == {"a": 20, "b": 16}
    with pytest.raises(StatisticsError, match="not those that were added"):
        head.subtract(*pick(batch, np.flatnonzero(known)[-1:].repeat(16)))
    head.subtract(*pick(batch, np.flatnonzero(~known)))
    assert not head.statistics.n_images


def test_what_an_earlier_version_forgot_counts_twice_and_is_said():
    batch = draw({"a": 24, "b": 20})
    head = learned(batch)
    head.forget("a")
    head = ContinualClassifier.from_state(*old_state(head))
    notes = head.extend(*pick(batch, range(24))).notes
    said = "covariance that all classes share (20 of 'a'): those of them that are learned again"
    assert any(said in note for note in notes)
    head.forget("b")
    head = ContinualClassifier.from_state(*old_state(learned(batch)))
    assert "undo this and `subtract` the images of the class instead" in head.forget("a").notes[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {"fingerprints": t["fingerprints"][:-1]}, "has shape"),
        (lambda t: {"fingerprints": t["fingerprints"].flip(0)}, "not in order"),
        (lambda t: {"fingerprints": t["fingerprints"] * 0}, "lack images that are remembered"),
        (lambda t: {"fingerprint_sizes": t["fingerprint_sizes"][:-1]}, "fingerprint_sizes"),
        (lambda t: {"fingerprint_sizes": -t["fingerprint_sizes"]}, "for 64 images"),
        (lambda t: {"fingerprint_sizes": t["fingerprint_sizes"].flip(0)}, "for 64 images"),
        (lambda t: {"fingerprint_sizes": None}, "or `fingerprint_sizes` is missing"),
    ],
)
def test_damaged_fingerprints_are_refused(change, message):
    head = learned(draw({"a": 24, "b": 44}))
    head.forget("a")
    config, tensors = head.state()
    tensors = {name: one for name, one in (tensors | change(tensors)).items() if one is not None}
    with pytest.raises(StatisticsError, match=message):
        ContinualClassifier.from_state(config, tensors)


def test_all_copies_of_an_image_leave_the_remainder_of_a_forgotten_class():
    rows = torch.tensor([[3.0, -1.0, 2.0], [0.0, 5.0, 1.0]], dtype=torch.float64)
    own = fingerprints_of(rows)
    kept = Forgotten("a", 3, 2 * rows[0] + rows[1], np.sort(own[[0, 0, 1]]))
    left, products = kept.without(rows[:1], own[:1])
    assert (left.count, left.fingerprints.tolist()) == (1, [own[1]])
    assert torch.equal(left.total, rows[1])
    assert torch.equal(products, 2 * torch.outer(rows[0], rows[0]))
