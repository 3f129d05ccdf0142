import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from continual_helpers import draw, embedded, gather

from learnkit.continual.closed_form import whitening
from learnkit.continual.closed_form.lda import fit_lda, fit_prototype
from learnkit.continual.closed_form.ridge import fit_ridge
from learnkit.continual.closed_form.threads import same_bits
from learnkit.continual.closed_form.whitening import fit_spectrum
from learnkit.models.eval_mode import torch_threads

COUNTS = {"a": 9, "b": 4, "c": 1, "d": 12}
WIDTH = 96
FITS = [fit_lda, fit_prototype, fit_ridge]


def few_images(counts=COUNTS):
    features, labels = draw(counts, width=WIDTH)
    return gather(features, labels).moments(), draw({"new": 20}, width=WIDTH, seed=1)[0]


@pytest.fixture
def all_axes(monkeypatch):
    def use():
        monkeypatch.setattr(whitening, "_FEW_AXES", 0.0)

    return use


def test_few_images_lie_in_few_dimensions_that_hold_all_scatter_and_all_means():
    moments, _ = few_images()
    spectrum = fit_spectrum(moments)
    n_axes = spectrum.axes.shape[1]
    assert n_axes <= WIDTH // 2
    torch.testing.assert_close(spectrum.axes.T @ spectrum.axes, torch.eye(n_axes).double())
    back = (spectrum.axes * spectrum.values) @ spectrum.axes.T
    torch.testing.assert_close(back, moments.scatter, rtol=0, atol=1e-13)
    means = spectrum.center + spectrum.means @ spectrum.axes.T
    torch.testing.assert_close(means, moments.means, rtol=0, atol=1e-13)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("shrinkage", [0.01, 0.3, 1.0])
def test_distances_of_any_image_are_those_of_the_whole_covariance(shrinkage, whole, all_axes):
    moments, fresh = few_images()
    if whole:
        all_axes()
    geometry = fit_spectrum(moments).geometry(shrinkage)
    assert (geometry.spectrum.tridiagonal is None) != whole
    fresh, round_ = embedded(fresh), moments.scatter.trace() / moments.dof / WIDTH
    covariance = (1 - shrinkage) * moments.scatter / moments.dof
    covariance += shrinkage * round_ * torch.eye(WIDTH, dtype=torch.float64)
    away = fresh[:, None] - moments.means
    squared = (away * torch.linalg.solve(covariance, away.mT).mT).sum(2)
    wanted = (squared - geometry.d_eff / moments.counts).amin(1)
    found = geometry.distances.mahalanobis(fresh.numpy())
    np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-9)
    assert geometry.log_det == pytest.approx(float(torch.logdet(covariance)), rel=1e-9)
    variance = torch.linalg.solve(covariance, moments.scatter / moments.dof).trace()
    assert geometry.d_eff == pytest.approx(float(variance), rel=1e-9)


@pytest.mark.parametrize("counts", [COUNTS, {"a": 20}, {"a": 2, "b": 2}], ids=str)
@pytest.mark.parametrize("fit", FITS)
def test_a_fit_in_few_dimensions_is_that_in_all(fit, counts, all_axes):
    moments, fresh = few_images(counts)
    few = fit(moments)
    all_axes()
    every = fit(moments)
    assert few.geometry.spectrum.axes.shape[1] < every.geometry.spectrum.axes.shape[1] == WIDTH
    assert few.shrinkage == every.shrinkage
    for name in "temperature", "expected_temperature":
        assert getattr(few, name) == pytest.approx(getattr(every, name), rel=1e-9)
    torch.testing.assert_close(few.logits(embedded(fresh)), every.logits(embedded(fresh)))
    for name in "logits", "mahalanobis", "relative":
        torch.testing.assert_close(getattr(few.loo, name), getattr(every.loo, name))
    scores = (one.geometry.distances.mahalanobis(embedded(fresh).numpy()) for one in (few, every))
    np.testing.assert_allclose(*scores, rtol=1e-9)


def test_a_remainder_of_a_forgotten_class_is_in_the_few_dimensions_too(all_axes):
    features, labels = draw({"a": 9, "b": 9, "gone": 12}, width=WIDTH)
    moments = gather(features, labels, memory_size=4).forget("gone").moments()
    few = fit_lda(moments)
    all_axes()
    every = fit_lda(moments)
    assert few.geometry.spectrum.axes.shape[1] < WIDTH
    torch.testing.assert_close(few.weight, every.weight)
    torch.testing.assert_close(few.loo.logits, every.loo.logits)


@pytest.fixture
def tridiagonal(all_axes):
    """(scatter, spectrum of it in axes where it is tridiagonal), wider than a block of these."""
    all_axes()
    features, labels = draw({"a": 200, "b": 150}, width=300)
    moments = gather(features, labels, memory_size=2).moments()
    return moments.scatter, fit_spectrum(moments)


def test_in_its_axes_the_scatter_is_tridiagonal(tridiagonal):
    scatter, spectrum = tridiagonal
    assert spectrum.axes.shape[1] > whitening._BLOCK
    torch.testing.assert_close(spectrum.axes.T @ spectrum.axes, torch.eye(300).double())
    diagonal, beside = spectrum.tridiagonal
    turned = diagonal.diag() + beside.diag(1) + beside.diag(-1)
    torch.testing.assert_close(spectrum.axes.T @ scatter @ spectrum.axes, turned)
    torch.testing.assert_close(spectrum.values, torch.linalg.eigvalsh(scatter))


def test_solving_and_lengths_there_are_those_of_the_whole_matrix(tridiagonal):
    scatter, spectrum = tridiagonal
    vectors = torch.randn(2, 3, 300, generator=torch.Generator().manual_seed(1)).double()
    ridges, turned = [1e-4, 0.1, 30.0], vectors @ spectrum.axes
    lengths = spectrum.squared_lengths(turned[0], ridges)
    for ridge, its in zip(ridges, lengths, strict=True):
        inverse = torch.linalg.inv(scatter + ridge * torch.eye(300))
        solved = spectrum.solve(turned, ridge) @ spectrum.axes.T
        torch.testing.assert_close(solved, vectors @ inverse)
        torch.testing.assert_close(its, ((vectors[0] @ inverse) * vectors[0]).sum(1))
    wanted = ((vectors[1] @ scatter) * vectors[1]).sum(1).mean()
    assert spectrum.scatter_along(turned[1]) == pytest.approx(float(wanted))


@pytest.mark.parametrize("shrinkages", [(0.1, 0.6), (0.3, 1.0), (1.0,)])
def test_lengths_of_some_vectors_at_a_time_are_those_of_all(shrinkages, tridiagonal, monkeypatch):
    _, spectrum = tridiagonal
    geometries = [spectrum.geometry(one) for one in shrinkages]
    vectors = torch.randn(23, spectrum.n_features, dtype=torch.float64)
    whole = whitening.squared_lengths(geometries, vectors)
    monkeypatch.setattr(whitening, "_AT_ONCE", 5 * spectrum.n_features)
    torch.testing.assert_close(whitening.squared_lengths(geometries, vectors), whole)
    none = whitening.squared_lengths(geometries, vectors[:0])
    assert none.shape == (len(shrinkages), 0)


def test_many_classes_of_little_width_get_eigenvectors(all_axes):
    all_axes()
    few = gather(*draw({str(i): 3 for i in range(4)}, width=70)).moments()
    many = gather(*draw({str(i): 3 for i in range(5)}, width=70)).moments()
    assert fit_spectrum(few).tridiagonal is not None
    assert fit_spectrum(many).tridiagonal is None


def test_as_many_threads_as_there_are_make_the_same_axes(tridiagonal):
    scatter, _ = tridiagonal
    for n in 1, 2, 3:
        with torch_threads(n), same_bits():
            values, axes, (diagonal, beside) = whitening._tridiagonalised(scatter)
        if n == 1:
            alone = values, axes, diagonal, beside
        for one, wanted in zip((values, axes, diagonal, beside), alone, strict=True):
            assert torch.equal(one, wanted)


def test_scatter_that_few_dimensions_do_not_hold_gets_all_of_them():
    moments, _ = few_images()
    spectrum = fit_spectrum(replace(moments, dof=3.0))  # fewer than the images say
    back = (spectrum.axes * spectrum.values) @ spectrum.axes.T
    assert spectrum.axes.shape == (WIDTH, WIDTH)
    torch.testing.assert_close(back, moments.scatter, rtol=0, atol=1e-13)


def test_one_image_a_class_has_no_scatter_and_any_axes():
    moments, fresh = few_images({"a": 1, "b": 1, "c": 1})
    geometry = fit_spectrum(moments).geometry(0.3)
    fresh = embedded(fresh)
    wanted = (fresh[:, None] - moments.means).square().sum(2) * geometry.scale[0].square()
    found = geometry.distances.mahalanobis(fresh.numpy())
    np.testing.assert_allclose(found, wanted.amin(1) - WIDTH, rtol=1e-9)
    assert math.isclose(geometry.d_eff, WIDTH)
