"""Classifiers in closed form from class statistics: shrunk discriminant and nearest mean.

The discriminant is linear discriminant analysis with five repairs: the covariance is shrunk as far
as leave-one-out log loss says; each class is relieved of the length its mean has from noise alone
(few images make long means, and long means lose); its logits count less, the noisier its mean is
(`mean_noise.py`); those of a class of few images beside many are blended with those of the nearest
mean; and the temperature comes with it. With full shrinkage it is the nearest class mean.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from learnkit.continual.closed_form.linear import Basis, LinearClassifier
from learnkit.continual.closed_form.loo_samples import (
    LooSamples,
    LooScores,
    Prior,
    mean_noise,
    score_left_out,
)
from learnkit.continual.closed_form.shrinkage import (
    SHRINKAGES,
    Selection,
    default_selection,
    expected_temperature,
    temper_samples,
)
from learnkit.continual.closed_form.whitening import Geometry, Moments

# A class of five images beside classes of 40 or more is told by both about alike, one of 40 by the
# discriminant alone.
_HALF, _MANY = 5.0, 40.0
_LEAST_SHARE = 0.01  # less is not worth a second pass


def fit_lda(
    moments: Moments,
    *,
    prior: Prior = "uniform",
    debias: float = 1.0,
    shrinkage: float | None = None,
    blend: bool = True,
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
        blend: Whether logits of classes of few images beside many are blended with those of the
            nearest mean, see `share_of_mean`.

    Raises:
        ContinualNotInitializedError: No class has an image.
    """
    basis = Basis.of(moments, prior)
    selection = basis.select(debias, SHRINKAGES if shrinkage is None else (shrinkage,))
    own = _Discriminant.of(basis, selection.shrinkage, debias)
    blended = _blended(basis, own, selection, debias) if blend and selection.shrinkage < 1 else None
    if blended is None:
        covectors = own.covectors
        selection = basis.tempered(selection, own.left_out.logits, own.geometry)
    else:
        own, covectors, selection = blended
    return own.assemble("lda", basis, selection, covectors, selection.shrinkage)


def fit_prototype(
    moments: Moments, *, prior: Prior = "uniform", debias: float = 1.0
) -> LinearClassifier:
    """Nearest class mean in Euclidean distance, its temperature by leave-one-out log loss.

    With `debias=0` the plain nearest mean, which fails classes of few images beside classes of
    many. Arguments and errors as for `fit_lda`.
    """
    basis = Basis.of(moments, prior)
    selection = basis.select(debias, (1.0,))
    mean = _Discriminant.of(basis, selection.shrinkage, debias)
    selection = basis.tempered(selection, mean.left_out.logits, mean.geometry)
    # labels by the nearest mean, OOD scores still in the space of the discriminant
    shrinkage = basis.select(1.0).shrinkage
    return mean.assemble("prototype", basis, selection, mean.covectors, shrinkage)


def share_of_mean(n: Tensor, among: Tensor) -> Tensor:
    """Share, in 0..1, of the nearest mean in the logits of classes of n images (...).

    `k / (n + k)` with `k = 5 (1 - n / m)`, where m is the mean of the images of all classes
    `among (P,)`, 40 at most. So classes of as many images as others, or of 40, are told by the
    discriminant alone. That of the others is bold: the covariance is that of classes of many.
    """
    missing = _HALF * (1 - n / among.mean().clamp(max=_MANY)).clamp_min(0)
    return missing / (n + missing)


class _Discriminant(NamedTuple):
    """Logits `covectors (P,D) @ (features - center) + offset (P,)`, also of samples left out.

    The covectors are those of the geometry, each times its factor (P,).
    """

    geometry: Geometry
    factors: Tensor
    offset: Tensor
    left_out: LooScores

    @classmethod
    def of(cls, basis: Basis, shrinkage: float, debias: float) -> _Discriminant:
        """The discriminant of a shrinkage."""
        geometry = basis.spectrum.geometry(shrinkage)
        left_out = score_left_out(basis.samples, geometry, debias)
        lengths = geometry.lengths
        noise = mean_noise(basis.samples, geometry)
        debts = noise.debts(lengths, geometry.counts, debias)
        factors = noise.reliabilities(geometry.counts, debias)
        return cls(geometry, factors, (debts - lengths) / 2 * factors, left_out)

    @property
    def covectors(self) -> Tensor:
        """One of each class, float64 (P,D), made at each call."""
        return self.geometry.covectors * self.factors[:, None]

    def assemble(
        self,
        method: str,
        basis: Basis,
        selection: Selection,
        covectors: Tensor,
        shrinkage: float,
    ) -> LinearClassifier:
        """The classifier, with the OOD scores of a shrinkage, this one's or another."""
        return basis.assemble(
            method,
            selection,
            covectors,
            self.offset,
            self.left_out.logits,
            basis.scored(self.geometry, self.left_out, shrinkage)._replace(
                shift=self.left_out.shift
            ),
            expected_temperature(self.geometry),
        )


def _blended(
    basis: Basis, own: _Discriminant, selection: Selection, debias: float
) -> tuple[_Discriminant, Tensor, Selection] | None:
    """Logits of few images blended with those of the nearest mean, tempered anew; None if none.

    Its factors stay those of before; the covectors come with it.
    """
    counts, samples = own.geometry.counts, basis.samples
    shares = debias * share_of_mean(counts, counts)
    if not bool((shares >= _LEAST_SHARE).any()):
        return None
    mean = _Discriminant.of(basis, 1.0, debias)
    its = selection.temperatures.get(1.0)  # of the search, where it was a candidate
    if its is None:
        its = _tempered(basis, mean, default_selection(basis.spectrum, (1.0,)).temperature)
    # each divided by its own temperature, then all as large as the discriminant's
    scale = selection.temperature / its
    held = _held_out_shares(samples, counts, debias)
    logits = mixed(own.left_out.logits, mean.left_out.logits, scale, held, dim=1)
    blended = own._replace(
        offset=mixed(own.offset, mean.offset, scale, shares, dim=0),
        left_out=own.left_out._replace(logits=logits),
    )
    temperature = _tempered(basis, blended, selection.temperature)
    covectors = _mixed_covectors(own, mean, scale, shares)
    return blended, covectors, replace(selection, temperature=temperature)


def mixed(ours: Tensor, theirs: Tensor, scale: float, share: Tensor, *, dim: int) -> Tensor:
    """`ours` by 1 - share and `scale * theirs` by the share, the classes along `dim`.

    Differences alone tell classes: of both, what lies above the mean of all classes, the centred
    log-ratio (Aitchison, "The statistical analysis of compositional data", 1982). So of two classes
    half the share is blended. What lies above the mean of the other classes would blend all of it:
    ants and bees of two images gained twice as much then, and the many lost three times as much.
    """
    apart = (theirs - theirs.mean(dim, keepdim=True)).mul_(scale)
    return _towards(apart, ours, ours.mean(dim, keepdim=True), share)


def _towards(apart: Tensor, ours: Tensor, middle: Tensor, share: Tensor) -> Tensor:
    """`ours`, by the share as far from their middle as `apart` says, which is written over."""
    return apart.sub_(ours).add_(middle).mul_(share).add_(ours)


def _mixed_covectors(
    own: _Discriminant, mean: _Discriminant, scale: float, shares: Tensor
) -> Tensor:
    """The covectors (P,D) mixed as the logits are."""
    covectors, few = own.covectors, shares.nonzero()[:, 0]
    theirs = mean.geometry.weights * mean.factors[:, None]
    # of classes without a share none are needed, and to turn all back took a twentieth of a refit
    apart = ((theirs[few] - theirs.mean(0)) @ mean.geometry.spectrum.axes.T).mul_(scale)
    covectors[few] = _towards(apart, covectors[few], covectors.mean(0), shares[few, None])
    return covectors


def _held_out_shares(samples: LooSamples, counts: Tensor, debias: float) -> Tensor:
    """Shares (R,P) of the nearest mean in the logits of samples left out."""
    shares = (debias * share_of_mean(counts, counts)).expand(len(samples), -1)
    if samples.n_single == len(samples):
        return shares
    shares, rows = shares.clone(), slice(samples.n_single, None)
    one = debias * float(share_of_mean(torch.ones_like(counts[:1]), counts))
    shares[rows].scatter_(1, samples.labels[rows, None], one)  # they play a class of one image
    return shares


def _tempered(basis: Basis, fitted: _Discriminant, default: float) -> float:
    """The temperature that all samples tell; the default without any."""
    if not len(basis.samples):
        return default
    logits = fitted.left_out.logits
    return temper_samples(logits, basis.samples, fitted.geometry, basis.log_prior).temperature
