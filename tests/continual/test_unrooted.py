"""Distances without the square root: equal to those of a classifier that never took it."""

import math

import numpy as np
import pytest
import torch

from learnkit.continual.classifier import ContinualClassifier
from learnkit.continual.embedding import embed, unroot
from learnkit.continual.honest import Reference, judge
from learnkit.continual.leave_one_out import memory_rows
from learnkit.continual.statistics import ClassStatistics
from learnkit.continual.unrooted import RememberedMeans

D = 12


def features(n, seed=0):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.gamma(0.7, size=(n, D)))


def statistics(x, labels, memory_size=64):
    empty = ClassStatistics.empty(D, root=True, memory_size=memory_size)
    return empty.update(x, labels).canonical()


def slow_scores(x, groups, variance):
    """min over the classes of |x - mean|^2 - variance / n, of plain unit-length features."""
    return [
        min(((row - group.mean(0)) ** 2).sum().item() - variance / len(group) for group in groups)
        for row in x
    ]


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_root_can_be_taken_back(sign):
    x = features(9) * torch.tensor([1.0, sign] * (D // 2))
    torch.testing.assert_close(unroot(embed(x, root=True)), embed(x, root=False))
    assert unroot(torch.zeros(1, D)).tolist() == [[0.0] * D]


def test_scores_are_debiased_distances_to_the_means_of_what_is_remembered():
    x, labels = features(11), list("aaaaabbbbcc")
    groups = [embed(x, root=False)[start:stop] for start, stop in ((0, 5), (5, 9), (9, 11))]
    variance = sum(((g - g.mean(0)) ** 2).sum().item() for g in groups) / (11 - 3)
    means = RememberedMeans.of(statistics(x, labels).memory)
    assert means.counts.tolist() == [5, 4, 2]
    assert means.variance == pytest.approx(variance, rel=1e-3)  # the grid rounds
    fresh = embed(features(20, seed=1), root=False)
    expected = slow_scores(fresh, groups, variance)
    assert means.scores(fresh).tolist() == pytest.approx(expected, abs=1e-3)


def test_copies_count_as_often_as_they_came():
    x = features(3)
    twice = RememberedMeans.of(statistics(x[[0, 0, 1, 2]], list("aaab")).memory)
    expected = embed(x, root=False)[[0, 0, 1]].mean(0)
    assert twice.counts.tolist() == [3, 1]
    torch.testing.assert_close(twice.means[0], expected, atol=1e-4, rtol=0)


def test_a_class_of_which_nothing_is_remembered_is_never_the_nearest():
    memory = statistics(features(4), list("aabb")).memory
    gone = RememberedMeans.of(memory.emptied([0]))
    only = RememberedMeans.of(memory.picked([1]))
    fresh = embed(features(5, seed=1), root=False)
    torch.testing.assert_close(gone.scores(fresh), only.scores(fresh))
    nothing = RememberedMeans.of(memory.emptied([0, 1]))
    assert nothing.scores(fresh).tolist() == [math.inf] * 5


def test_left_out_scores_are_those_of_means_without_the_sample():
    x, labels = features(8), list("aaaabbbb")
    x[1] = x[0]  # copies leave together
    stats = statistics(x, labels)
    rows, means = memory_rows(stats), RememberedMeans.of(stats.memory)
    at = torch.arange(len(rows))
    plain = unroot(rows.features)
    scores = means.left_out(rows, at, plain, torch.zeros(len(rows), dtype=torch.bool))
    every = embed(x, root=False)
    for i, score in enumerate(scores.tolist()):
        others = [
            torch.stack([z for z in every[part] if (z - plain[i]).norm() > 1e-3])
            for part in (slice(0, 4), slice(4, 8))
        ]
        expected = slow_scores(plain[i : i + 1], others, means.variance)[0]
        assert score == pytest.approx(expected, abs=2e-3)


def test_a_row_that_plays_a_class_of_one_image_knows_its_partner_alone():
    stats = statistics(features(6), list("aaabbb"))
    rows, means = memory_rows(stats), RememberedMeans.of(stats.memory)
    plain, every = unroot(rows.features), torch.arange(len(rows))
    scores = means.left_out(rows, every, plain, torch.ones(len(rows), dtype=torch.bool))
    for i, score in enumerate(scores.tolist()):
        partner = plain[rows.partners[i], None]
        other = plain[rows.labels != rows.labels[i]]
        expected = slow_scores(plain[i : i + 1], [partner, other], means.variance)[0]
        assert score == pytest.approx(expected)


def test_one_image_of_each_class_still_has_a_score():
    means = RememberedMeans.of(statistics(features(3), list("abc")).memory)
    assert means.variance == 0.5  # a default
    assert means.scores(embed(features(4, seed=1), root=False)).isfinite().all()


def test_a_rooted_classifier_measures_distances_as_one_without_the_root():
    x, labels = features(30), list("abc") * 10
    stats = statistics(x, labels)
    rooted = Reference.of(stats.memory, root=True)
    plain = ClassStatistics.empty(D, root=False).update(x, labels).canonical()
    head = ContinualClassifier(D, root=True)
    head.extend(x, labels)
    linear, fresh = head.knowledge.derived.linear, features(20, seed=1)
    judged = judge(linear, embed(fresh, root=True), rooted)
    other = judge(linear, embed(fresh, root=False), Reference.of(plain.memory))
    torch.testing.assert_close(judged.unrooted_knn, other.knn, atol=1e-3, rtol=0)
    assert other.unrooted_knn.isinf().all()
    few = judge(linear, embed(fresh, root=True), rooted, {"relative"})
    torch.testing.assert_close(few.relative, judged.relative)
    assert few.knn.isinf().all()
    assert few.unrooted_knn.isinf().all()
