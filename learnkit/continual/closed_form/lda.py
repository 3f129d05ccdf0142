"""Classifiers in closed form from class statistics: shrunk discriminant and nearest mean.

The discriminant is linear discriminant analysis with four repairs: the covariance is shrunk as far
as leave-one-out log loss says; each class is relieved of the length its mean has from noise alone
(few images make long means, and long means lose); its logits count less, the noisier its mean is
(`mean_noise.py`); and the temperature comes with it. With full shrinkage it is the nearest class
mean.
"""

from __future__ import annotations

from learnkit.continual.closed_form.linear import Basis, LinearClassifier
from learnkit.continual.closed_form.loo_samples import Prior, mean_noise, score_left_out
from learnkit.continual.closed_form.shrinkage import (
    SHRINKAGES,
    Selection,
    expected_temperature,
)
from learnkit.continual.closed_form.whitening import Moments


def fit_lda(
    moments: Moments,
    *,
    prior: Prior = "uniform",
    debias: float = 1.0,
    shrinkage: float | None = None,
) -> LinearClassifier:
    """Shrunk linear discriminant; shrinkage and temperature by leave-one-out log loss.

    Without a sample to leave out (no memory, or one image a class) both are defaults that depend on
    the moments alone; `diagnostics["chosen_by"]` says so.

    Args:
        moments: Of the classes.
        prior: Whether classes count alike, or as often as they came ("training").
        debias: How much of the penalty for few images to take back, in 0..1. With 0 this is
            textbook linear discriminant analysis.
        shrinkage: Weight of the round covariance, above 0 and at most 1; default: chosen.

    Raises:
        ContinualNotInitializedError: No class has an image.
    """
    basis = Basis.of(moments, prior)
    selection = basis.select(debias, SHRINKAGES if shrinkage is None else (shrinkage,))
    return _discriminant("lda", basis, selection, debias)


def fit_prototype(
    moments: Moments, *, prior: Prior = "uniform", debias: float = 1.0
) -> LinearClassifier:
    """Nearest class mean in Euclidean distance, its temperature by leave-one-out log loss.

    With `debias=0` the plain nearest mean, which fails classes of few images beside classes of
    many. Arguments and errors as for `fit_lda`.
    """
    basis = Basis.of(moments, prior)
    # labels by the nearest mean, OOD scores still in the space of the discriminant
    scores = basis.select(1.0).shrinkage
    return _discriminant("prototype", basis, basis.select(debias, (1.0,)), debias, scores)


def _discriminant(
    method: str, basis: Basis, selection: Selection, debias: float, scores: float | None = None
) -> LinearClassifier:
    """Discriminant of the selected shrinkage, with the scores of another beside it."""
    geometry = basis.spectrum.geometry(selection.shrinkage)
    left_out = score_left_out(basis.samples, geometry, debias)
    lengths = geometry.lengths
    noise = mean_noise(basis.samples, geometry)
    debts = noise.debts(lengths, geometry.counts, debias)
    factors = noise.reliabilities(geometry.counts, debias)
    return basis.assemble(
        method,
        basis.tempered(selection, left_out.logits, geometry),
        geometry.covectors * factors[:, None],
        (debts - lengths) / 2 * factors,
        left_out.logits,
        basis.scored(geometry, left_out, selection.shrinkage if scores is None else scores),
        expected_temperature(geometry),
    )
