"""The feature memory: which features it keeps does not depend on when they came."""

import hashlib

import pytest
import torch
from continual_helpers import examples
from hypothesis import given
from hypothesis import strategies as st

from learnkit.continual.memory import FeatureMemory
from learnkit.errors import DataError, StatisticsError

D = 3
few = examples(40)
# few values, so that copies are frequent
rows = st.lists(st.tuples(*[st.integers(-2, 2)] * D), min_size=1, max_size=30)


def empty(size, names=("a",)):
    return FeatureMemory(size, D).named(names)


def add(memory, grid, place=0):
    grid = torch.tensor(grid, dtype=torch.float64).reshape(-1, D)
    return memory.add(grid, torch.full((len(grid),), place))


def lowest(grid, size):
    """The distinct rows with the lowest hashes, by the plainest way there is."""
    key = b"learnkit feature memory"

    def code(row):
        data = b"".join(int(x).to_bytes(2, "little", signed=True) for x in row)
        return hashlib.blake2b(data, digest_size=16, key=key).digest()

    return [list(row) for row in sorted(set(grid), key=code)[:size]]


@few
@given(rows, st.integers(0, 8))
def test_the_features_with_the_lowest_hashes_stay(grid, size):
    memory = add(empty(size), grid)
    assert memory.of("a").tolist() == lowest(grid, size)
    assert memory.copies().tolist() == [grid.count(tuple(row)) for row in memory.of("a").tolist()]


@few
@given(rows, rows, st.integers(0, 8))
def test_merging_is_adding_whatever_the_order(one, other, size):
    whole = add(empty(size), one + other).cells[0]
    a, b = add(empty(size), one), add(empty(size), other)
    for memory in (a.merge(b), b.merge(a), add(a, other), add(b, one)):
        assert memory.cells[0].equals(whole)


@few
@given(rows, rows)
def test_removing_undoes_adding_while_nothing_was_pushed_out(one, other):
    before = add(empty(60), one)
    grid = torch.tensor(other, dtype=torch.float64)
    after = add(before, other).remove(grid, torch.zeros(len(other)).long(), [len(one + other)])
    assert after.cells[0].equals(before.cells[0])


@few
@given(rows, rows, st.integers(1, 8))
def test_joining_classes_is_as_if_all_had_come_to_one(one, other, size):
    memory = add(add(empty(size, ("a", "b")), one), other, 1)
    joined = memory.joined([1], 0)
    assert joined.cells[0].equals(add(empty(size), one + other).cells[0])
    assert len(joined.of("b")) == 0


def test_rows_and_labels_go_class_by_class():
    memory = add(add(empty(2, ("a", "none", "b")), [(1, 0, 0)]), [(0, 1, 0), (0, 0, 1)], 2)
    features, labels = memory.all()
    assert labels.tolist() == [0, 2, 2]
    assert features.dtype == torch.float64
    assert (features * 2**15).sum(0).tolist() == [1, 1, 1]
    assert memory.all(per_class=1)[1].tolist() == [0, 2]
    assert len(memory) == 3


def test_a_feature_that_was_never_added_cannot_be_removed_from_a_complete_memory():
    memory = add(empty(5), [(1, 0, 0)])
    other = torch.tensor([[0.0, 1.0, 0.0]])
    with pytest.raises(StatisticsError, match="never added"):
        memory.remove(other, torch.tensor([0]), [1])
    # with more images than are remembered nobody can tell
    assert memory.remove(other, torch.tensor([0]), [9]).cells[0].equals(memory.cells[0])


def test_a_memory_of_nothing_remembers_nothing():
    memory = add(empty(0), [(1, 0, 0)])
    assert len(memory) == 0
    assert memory.all()[0].shape == (0, D)
    assert memory.nbytes == 0


def test_unknown_classes_are_refused():
    with pytest.raises(DataError, match="no class 'b'"):
        empty(1).of("b")
