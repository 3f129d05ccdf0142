"""Scores of left-out samples equal those of a covariance made without them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from learnkit.continual.closed_form.lda import fit_lda
from learnkit.continual.held_out import held_out_mahalanobis
from learnkit.continual.statistics import ClassStatistics

D = 7


def fitted(n, *, n_classes=2, shrinkage):
    rng = np.random.default_rng(n)
    x = torch.from_numpy(rng.gamma(0.8, size=(n * n_classes, D)))
    labels = [name for name in "abc"[:n_classes] for _ in range(n)]
    stats = ClassStatistics.empty(D, root=True, memory_size=64).update(x, labels).canonical()
    return fit_lda(stats.moments(), shrinkage=shrinkage)


def slow_score(linear, row):
    """Least debiased distance by a covariance without the sample, its round part held."""
    geometry, share = linear.geometry, linear.geometry.shrinkage
    memory = linear.loo.memory
    own, x = memory.labels[row], memory.features[row]
    kept = torch.arange(len(memory)) != row
    groups = [memory.features[kept & (memory.labels == c)] for c in range(len(geometry.counts))]
    scatter = sum((g - g.mean(0)).T @ (g - g.mean(0)) for g in groups)
    dof = geometry.spectrum.dof
    round_part = share * geometry.spectrum.total / dof / D * torch.eye(D).double()
    covariance = (1 - share) * scatter / max(dof - 1, 1) + round_part
    assert len(groups[own]) == geometry.counts[own] - 1
    return min(
        ((x - g.mean(0)) @ torch.linalg.solve(covariance, x - g.mean(0))).item()
        - geometry.d_eff / len(g)
        for g in groups
    )


@pytest.mark.parametrize(("n", "n_classes"), [(2, 1), (2, 2), (3, 3), (9, 2)])
@pytest.mark.parametrize("shrinkage", [0.3, 0.99])
def test_the_round_part_of_the_covariance_stays_as_images_go(n, n_classes, shrinkage):
    linear = fitted(n, n_classes=n_classes, shrinkage=shrinkage)
    scores = held_out_mahalanobis(linear)
    assert len(scores) == n * n_classes
    for i, row in enumerate(linear.loo.rows.tolist()):
        assert scores[i] == pytest.approx(slow_score(linear, row), rel=1e-6)


def test_where_nothing_is_divided_by_fewer_it_is_as_it_was():
    linear = fitted(4, shrinkage=1.0)
    assert held_out_mahalanobis(linear) is linear.loo.mahalanobis
    many = fitted(120, shrinkage=0.5)
    assert held_out_mahalanobis(many) is many.loo.mahalanobis


def test_rows_that_play_a_class_of_one_image_stay_as_they_are():
    linear = fitted(4, shrinkage=0.5)
    some = replace(linear, loo=replace(linear.loo, n_single=5))
    torch.testing.assert_close(held_out_mahalanobis(some)[5:], linear.loo.mahalanobis[5:])
    torch.testing.assert_close(held_out_mahalanobis(some)[:5], held_out_mahalanobis(linear)[:5])
