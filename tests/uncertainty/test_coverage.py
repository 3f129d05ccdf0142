import numpy as np
import pytest

from learnkit.errors import UncertaintyError
from learnkit.uncertainty import coverage
from learnkit.uncertainty.coverage import cover

WIDTH = 0.9


def slow_cover(features, weights, n, known):
    """The definition, image by image."""
    both = np.concatenate([features, known])
    both = both / np.linalg.norm(both, axis=1, keepdims=True)
    both = both - both.mean(0)
    both = both / np.linalg.norm(both, axis=1, keepdims=True)
    pool, known = both[: len(features)], both[len(features) :]
    kernel = lambda a, b: np.exp(-((a[:, None] - b) ** 2).sum(-1) / WIDTH**2)
    reached = np.zeros(len(pool))
    if len(known):
        reached = kernel(known, pool).max(0)
    chosen = []
    for _ in range(n):
        total = [
            -1 if i in chosen else (weights * np.maximum(reached, kernel(pool[[i]], pool)[0])).sum()
            for i in range(len(pool))
        ]
        chosen.append(int(np.argmax(total)))
        reached = np.maximum(reached, kernel(pool[[chosen[-1]]], pool)[0])
    return chosen


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("n_known", [0, 7])
def test_lazy_choices_are_those_of_the_slow_loop(rng, n_known):
    features, known = rng.random((150, 12)), rng.random((n_known, 12))
    weights = rng.random(150)
    found = cover(features, weights, 40, known=known)
    assert found.chosen.tolist() == slow_cover(features, weights, 40, known)


def test_blocks_and_forgotten_rows_change_nothing(rng, monkeypatch):
    features, weights = rng.random((90, 6)), rng.random(90)
    wanted = cover(features, weights, 30).chosen.tolist()
    monkeypatch.setattr(coverage, "_BLOCK", 7)
    monkeypatch.setattr(coverage, "_STALE", 2)
    monkeypatch.setattr(
        coverage._Greedy, "_rows_of", lambda self, places: self._kernel(self._pool[places])
    )
    assert cover(features, weights, 30).chosen.tolist() == wanted


def test_one_of_each_cluster_comes_first_the_largest_before_all(rng):
    centers = np.eye(5) * 10
    sizes = [30, 20, 12, 7, 4]
    features = np.concatenate(
        [c + rng.normal(size=(n, 5)) / 5 for c, n in zip(centers, sizes, strict=True)]
    )
    cluster = np.repeat(range(5), sizes)
    order = rng.permutation(len(cluster))
    found = cover(features[order], np.ones(len(order)), 5)
    assert cluster[order][found.chosen].tolist() == [0, 1, 2, 3, 4]
    assert found.n_covered.tolist() == sizes
    known = centers[[0, 3]]
    found = cover(features[order], np.ones(len(order)), 3, known=known)
    assert cluster[order][found.chosen].tolist() == [1, 2, 4]


def test_images_in_no_doubt_come_last(rng):
    features = rng.random((40, 8))
    weights = np.where(np.arange(40) < 10, 1.0, 0.0)
    # the ten in doubt are covered by themselves at the latest; afterwards nothing is gained
    assert set(range(10)) <= set(cover(features, weights, 40).chosen.tolist())
    assert sorted(cover(features, weights, 40).chosen.tolist()) == [*range(40)]
    assert cover(features, np.zeros(40), 3).chosen.tolist() == [0, 1, 2]


def test_of_a_large_pool_the_same_images_stand_for_all_whatever_the_order(rng, monkeypatch):
    monkeypatch.setattr(coverage, "_TARGETS", 50)
    features, weights = rng.random((200, 8)), rng.random(200)
    order = rng.permutation(200)
    found = cover(features, weights, 10)
    again = cover(features[order], weights[order], 10)
    assert order[again.chosen].tolist() == found.chosen.tolist()
    assert found.n_covered.sum() <= 200


def test_copies_are_chosen_last(rng):
    features = np.repeat(rng.random((6, 8)), 4, axis=0)
    found = cover(features, np.ones(24), 24)
    assert {i // 4 for i in found.chosen[:6].tolist()} == set(range(6))
    assert found.n_covered.tolist() == [4] * 6 + [0] * 18


def test_all_of_a_pool_of_one_and_blank_images_can_be_chosen():
    assert cover([[1.0, 2.0]], [0.5], 1).chosen.tolist() == [0]
    assert sorted(cover(np.zeros((3, 4)), np.ones(3), 3).chosen.tolist()) == [0, 1, 2]


def test_steps_are_counted(rng):
    steps = []
    cover(rng.random((30, 4)), np.ones(30), 5, done=steps.append)
    assert sum(steps) == 35


@pytest.mark.parametrize("n", [0, -1, 4, True, 1.5])
def test_a_number_out_of_range_is_refused(n):
    with pytest.raises(UncertaintyError, match="choose from 1 to 3, the number of images"):
        cover(np.eye(3), np.ones(3), n)


def test_weights_must_fit():
    with pytest.raises(UncertaintyError, match=r"\(3, 3\) and `weights` \(2,\)"):
        cover(np.eye(3), np.ones(2), 1)
    with pytest.raises(UncertaintyError, match="holds -1 in row 1; a weight is 0 or more"):
        cover(np.eye(3), [1, -1, 1], 1)
