"""Scores of left-out samples equal those of a covariance made without them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from continual_helpers import bursts, gather, keep_every_row

from learnkit.continual.closed_form.lda import fit_lda
from learnkit.continual.held_out import (
    HeldOut,
    held_out_mahalanobis,
    held_out_weights,
    squared_bias,
)
from learnkit.continual.statistics import ClassStatistics

D = 7


def fitted(n, *, n_classes=2, shrinkage):
    rng = np.random.default_rng(n)
    x = torch.from_numpy(rng.gamma(0.8, size=(n * n_classes, D)))
    labels = [name for name in "abc"[:n_classes] for _ in range(n)]
    stats = ClassStatistics.empty(D, root=True, memory_size=64).update(x, labels).canonical()
    return fit_lda(stats.moments(), shrinkage=shrinkage)


def slow_score(linear, row):
    """Least debiased distance by a covariance without the sample's group, its round part held."""
    geometry, share = linear.geometry, linear.geometry.shrinkage
    memory, width = linear.loo.memory, linear.geometry.spectrum.n_features
    own, x, leaving = memory.labels[row], memory.features[row], memory.members[row]
    kept = ~torch.isin(torch.arange(len(memory)), leaving)
    n_left = int((leaving >= 0).sum())
    groups = [memory.features[kept & (memory.labels == c)] for c in range(len(geometry.counts))]
    scatter = sum((g - g.mean(0)).T @ (g - g.mean(0)) for g in groups)
    dof = geometry.spectrum.dof
    round_part = share * geometry.spectrum.total / dof / width * torch.eye(width).double()
    covariance = (1 - share) * scatter / max(dof - n_left, 1) + round_part
    assert len(groups[own]) == geometry.counts[own] - n_left
    return min(
        ((x - g.mean(0)) @ torch.linalg.solve(covariance, x - g.mean(0))).item()
        - geometry.d_eff / len(g)
        for g in groups
    )


@pytest.mark.parametrize(("n", "n_classes"), [(2, 1), (2, 2), (3, 3), (9, 2)])
@pytest.mark.parametrize("shrinkage", [0.3, 0.99])
def test_the_round_part_of_the_covariance_stays_as_images_go(n, n_classes, shrinkage, monkeypatch):
    keep_every_row(monkeypatch)
    linear = fitted(n, n_classes=n_classes, shrinkage=shrinkage)
    scores = held_out_mahalanobis(linear)
    assert len(scores) == n * n_classes
    for i, row in enumerate(linear.loo.rows.tolist()):
        assert scores[i] == pytest.approx(slow_score(linear, row), rel=1e-6)


@pytest.mark.parametrize("shrinkage", [0.3, 0.99])
def test_the_round_part_stays_as_groups_of_different_sizes_go(shrinkage):
    both = [bursts({"a": 8}, width=64, versions=3), bursts({"b": 9}, width=64, versions=1)]
    features, labels = torch.cat([x for x, _ in both]), [name for _, own in both for name in own]
    linear = fit_lda(gather(features, labels).moments(), shrinkage=shrinkage)
    assert linear.loo.memory.leaving.unique().tolist() == [1, 3]
    scores = held_out_mahalanobis(linear)
    assert len(scores) == 8 + 9
    for i, row in enumerate(linear.loo.rows.tolist()):
        assert scores[i] == pytest.approx(slow_score(linear, row), rel=1e-6)


def test_where_nothing_is_divided_by_fewer_it_is_as_it_was(monkeypatch):
    keep_every_row(monkeypatch)
    linear = fitted(4, shrinkage=1.0)
    assert held_out_mahalanobis(linear) is linear.loo.mahalanobis
    many = fitted(120, shrinkage=0.5)
    assert held_out_mahalanobis(many) is many.loo.mahalanobis


def test_rows_that_play_a_class_of_one_image_stay_as_they_are():
    linear = fitted(4, shrinkage=0.5)
    some = replace(linear, loo=replace(linear.loo, n_single=5))
    torch.testing.assert_close(held_out_mahalanobis(some)[5:], linear.loo.mahalanobis[5:])
    torch.testing.assert_close(held_out_mahalanobis(some)[:5], held_out_mahalanobis(linear)[:5])


def worth(n, most):
    return n * most / (n + most)


def test_weights_of_a_class_are_shared_by_what_its_images_say():
    # class 0: 2 validation images and 3 left out; class 1: 5 left out alone; class 2: 64 fresh ones
    fresh = torch.tensor([0, 0, *[2] * 64])
    single = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1, 2])
    mass = torch.tensor([3.0, 5.0, 2.0]).double()
    weights = held_out_weights(mass, fresh, single, fresh[:0]).numpy()
    left = worth(3, 20) * (1 - 2 / 64)
    unit = 0.3 / (2 + left)
    np.testing.assert_allclose(weights[:2], unit)
    np.testing.assert_allclose(weights[66:69], unit * left / 3)
    np.testing.assert_allclose(weights[69:74], 0.5 / 5)
    np.testing.assert_allclose(weights[2:66], 0.2 / 64)
    assert weights[74] == 0
    assert weights.sum() == pytest.approx(1)


def test_pairs_stand_in_for_a_class_of_one_image_until_it_has_validation_images():
    single, pairs = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 1])
    mass = torch.ones(3).double()
    none = held_out_weights(mass, single[:0], single, pairs).numpy()
    np.testing.assert_allclose(none[:4], 1 / 6)
    np.testing.assert_allclose(none[4:], [1 / 12, 1 / 12, 1 / 6])
    one = held_out_weights(mass, torch.tensor([2]), single, pairs).numpy()
    by_pairs = worth(3, 4) * 63 / 64
    np.testing.assert_allclose(one[0], 1 / 3 / (1 + by_pairs))
    np.testing.assert_allclose(one[5:].sum(), by_pairs / 3 / (1 + by_pairs))
    np.testing.assert_allclose(one[1:5], 1 / 6)


def test_one_more_validation_image_never_takes_away_more_than_it_brings():
    mass, single = torch.ones(2).double(), torch.arange(2).repeat_interleave(30)
    before = 0.0
    for n in range(1, 101):
        weights = held_out_weights(mass, torch.zeros(n).long(), single, single[:0])
        share = float(weights[:n].sum())
        assert before < share + 1e-12 <= 0.5 + 1e-9
        n_effective = 1 / float(weights[weights > 0].square().sum())
        assert n_effective > 40  # of 60 rows left out, whatever comes
        before = share


def rows_of(mahalanobis, margin=0.0, label=0):
    """Held-out rows of one class of two, with these scores and margins."""
    n = len(mahalanobis)
    zeros = np.zeros(n)
    logits = np.stack([np.broadcast_to(margin, n), zeros], 1)
    labels = np.full(n, label)
    scores = mahalanobis, zeros, zeros, zeros, np.arange(n)
    return HeldOut(logits, labels, np.full(n, 1 / n), *scores, "validation", n)


def test_the_bias_of_leaving_out_is_the_squared_difference_of_means_beyond_chance():
    rng = np.random.default_rng(0)
    left = rng.normal(size=50)
    shifted = rng.normal(size=20) + 3
    apart = (shifted.mean() - left.mean()) / max(left.std(), shifted.std())
    error = (1 / 20 + 1 / 50) ** 0.5
    for rules, allowed in (1, 2), (2, 2 + 2.4 / 20):
        found = squared_bias(rows_of(shifted), rows_of(left), rules)
        assert found == pytest.approx((apart - allowed * error) ** 2)
    # one image as far out as chance brings one
    assert squared_bias(rows_of(left[:1] * 0 + 4 * left.std() + left.mean()), rows_of(left)) == 0
    assert squared_bias(rows_of(left[:1] * 0 + 5 * left.std() + left.mean()), rows_of(left)) > 0
    # margins tell as well, and a class that has one kind only tells nothing
    same, lead = rng.normal(size=20), rng.normal(size=20) - 4
    assert squared_bias(rows_of(same, lead), rows_of(same, rng.normal(size=20))) > 4
    assert squared_bias(rows_of(shifted, label=1), rows_of(left)) == 0


def test_classes_that_differ_are_no_bias_where_validation_images_are_uneven():
    rng = np.random.default_rng(3)
    near, far = np.arange(2), np.arange(2) + 30  # scores of two classes, the same in both kinds
    scores = [(near, 20, far, 1), (near, 5, far, 5)]

    def both(low, n_low, high, n_high):
        values = np.concatenate([np.tile(low, n_low), np.tile(high, n_high)]).astype(float)
        rows = rows_of(values)
        labels = np.repeat([0, 1], [2 * n_low, 2 * n_high])
        return replace(rows, labels=labels, logits=rng.permuted(rows.logits, axis=1))

    assert squared_bias(both(*scores[0]), both(*scores[1])) == 0


def test_chance_hardly_ever_shows_as_bias():
    rng = np.random.default_rng(1)
    skewed = lambda size: rng.gamma(1.0, size=size)  # as distances of real images are
    for most, draw in (40, rng.normal), (40, skewed), (3, skewed):
        found = 0
        for _ in range(400):
            seen, left = draw(size=rng.integers(1, most)), draw(size=40)
            found += squared_bias(rows_of(seen, seen), rows_of(left, left)) > 0
        assert found < 0.06 * 400


def test_images_left_out_that_are_biased_say_less():
    mass, fresh = torch.ones(1).double(), torch.zeros(5).long()
    single = torch.zeros(30).long()
    plain = held_out_weights(mass, fresh, single, single[:0])
    biased = held_out_weights(mass, fresh, single, single[:0], squared_bias=2.0)
    left = worth(30, 1 / (1 / 20 + 2)) * (1 - 5 / 64)
    assert float(biased[:5].sum()) == pytest.approx(5 / (5 + left))
    assert float(biased[:5].sum()) > 0.9 > float(plain[:5].sum())
