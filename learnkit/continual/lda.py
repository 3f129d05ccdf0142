"""Classifiers in closed form from class statistics: shrunk discriminant and nearest mean.

The discriminant is linear discriminant analysis with three repairs: the covariance is shrunk as far
as leave-one-out log loss says, each class is relieved of the length its mean has from noise alone
(few images make long means, and long means lose), and the temperature comes with it. With full
shrinkage it is the nearest class mean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from learnkit.continual.geometry import Geometry, Spectrum, fit_spectrum
from learnkit.continual.leave_one_out import LeftOut, MemoryRows, memory_rows
from learnkit.continual.selection import (
    SHRINKAGES,
    Prior,
    Selection,
    Trials,
    class_logits,
    class_masses,
    make_trials,
    select,
)
from learnkit.continual.statistics import ClassStatistics

# Bounds on what one refit may cost: numbers in a matrix of trials, and, for the search among
# shrinkages, in a smaller one, and multiplications.
_MAX_ENTRIES = 8_000_000
_MAX_SEARCHED = 4_000_000
_MAX_PRODUCTS = 2_000_000_000


@dataclass(frozen=True, eq=False, repr=False)
class LeaveOneOut:
    """What a classifier would have said of remembered samples, had it not seen them.

    `logits (M,C)` before the temperature, `labels (M,)` places of the classes, `weights (M,)`
    summing to 1, each class weighing as much as the prior says. `rows (M,)` says which row of
    `memory` each is; from `n_single` on, a row plays a class of one image, known by its partner
    `memory.partners` alone. `mahalanobis (M,)` and `relative (M,)` are honest scores of the
    geometry.
    """

    logits: Tensor
    labels: Tensor
    weights: Tensor
    mahalanobis: Tensor
    relative: Tensor
    rows: Tensor
    n_single: int
    memory: MemoryRows


@dataclass(frozen=True, eq=False, repr=False)
class LinearClassifier:
    """A linear classifier on embedded features: `logits = features @ weight.T + bias`.

    `weight (C,D)` and `bias (C,)` are float64 by class; a class without images has weight 0 and
    bias -inf. `softmax(logits / temperature)` are the probabilities. `geometry` is the whitened
    space of the shrinkage the data ask for, whatever the method.
    """

    weight: Tensor
    bias: Tensor
    method: str
    shrinkage: float
    temperature: float
    geometry: Geometry
    loo: LeaveOneOut
    diagnostics: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        n_classes, n_features = self.weight.shape
        return (
            f"LinearClassifier({self.method!r}, {n_classes} classes, {n_features} features, "
            f"shrinkage={self.shrinkage:g}, temperature={self.temperature:.4g})"
        )

    @property
    def loo_logits(self) -> Tensor:
        """Logits (M,C) of remembered samples by the classifier without them."""
        return self.loo.logits

    @property
    def loo_labels(self) -> Tensor:
        """Their classes, (M,)."""
        return self.loo.labels

    @property
    def loo_weights(self) -> Tensor:
        """Their weights (M,), summing to 1."""
        return self.loo.weights

    def logits(self, features: Tensor) -> Tensor:
        """Logits float64 (N,C) of embedded features (N,D), before the temperature."""
        return features.to(torch.float64) @ self.weight.T + self.bias


def fit_lda(
    stats: ClassStatistics,
    *,
    prior: Prior = "uniform",
    debias: float = 1.0,
    shrinkage: float | None = None,
) -> LinearClassifier:
    """Shrunk linear discriminant; shrinkage and temperature by leave-one-out log loss.

    Without a sample to leave out (no memory, or one image a class) both are defaults that depend on
    the statistics alone; `diagnostics["chosen_by"]` says so.

    Args:
        stats: What is known of the classes.
        prior: Whether classes count alike, or as often as they came ("empirical").
        debias: How much of the penalty for few images to take back, in 0..1. With 0 this is
            textbook linear discriminant analysis.
        shrinkage: Weight of the round covariance, above 0 and at most 1; default: chosen.

    Raises:
        ContinualNotInitializedError: No class has an image.
    """
    basis = Basis.of(stats, prior)
    selection = basis.select(debias, SHRINKAGES if shrinkage is None else (shrinkage,))
    geometry = basis.spectrum.geometry(selection.shrinkage)
    return basis.classifier("lda", geometry, geometry, selection, debias)


def fit_prototype(
    stats: ClassStatistics, *, prior: Prior = "uniform", debias: float = 1.0
) -> LinearClassifier:
    """Nearest class mean in Euclidean distance, its temperature by leave-one-out log loss.

    With `debias=0` the plain nearest mean, which fails classes of few images beside classes of
    many. Arguments and errors as for `fit_lda`.
    """
    basis = Basis.of(stats, prior)
    geometry = basis.spectrum.geometry(basis.select(1.0).shrinkage)
    flat = basis.spectrum.geometry(1.0)
    return basis.classifier("prototype", flat, geometry, basis.select(debias, (1.0,)), debias)


@dataclass(frozen=True, eq=False, repr=False)
class Basis:
    """What every classifier is made from: the spectrum and the samples to leave out."""

    stats: ClassStatistics
    prior: Prior
    spectrum: Spectrum
    memory: MemoryRows
    trials: Trials
    log_prior: Tensor

    @classmethod
    def of(cls, stats: ClassStatistics, prior: Prior) -> Basis:
        """Return the basis of these statistics; the one eigendecomposition happens here."""
        spectrum = fit_spectrum(stats)
        wide = max(len(spectrum.classes), stats.n_features)
        memory = memory_rows(stats, _MAX_ENTRIES // wide)
        masses = class_masses(spectrum.counts, prior)
        return cls(
            stats,
            prior,
            spectrum,
            memory,
            make_trials(stats, spectrum, memory, prior),
            masses.log(),
        )

    def select(self, debias: float, shrinkages: tuple[float, ...] = SHRINKAGES) -> Selection:
        """Shrinkage and temperature; of many samples, a part decides on the shrinkage."""
        n_classes, n_features = len(self.spectrum.classes), self.stats.n_features
        limit = min(_MAX_PRODUCTS // n_features // n_classes, _MAX_SEARCHED // n_features)
        trials = self.trials
        if len(self.memory) > limit:
            few = memory_rows(self.stats, max(limit, 2))
            trials = make_trials(self.stats, self.spectrum, few, self.prior)
        chosen = select(
            self.spectrum, trials, debias=debias, log_prior=self.log_prior, shrinkages=shrinkages
        )
        if trials is self.trials:
            return chosen
        final = select(
            self.spectrum,
            self.trials,
            debias=debias,
            log_prior=self.log_prior,
            shrinkages=(chosen.shrinkage,),
        )
        return Selection(final.shrinkage, final.temperature, final.by, chosen.losses)

    def classifier(
        self,
        method: Literal["lda", "prototype"],
        geometry: Geometry,
        scores: Geometry,
        selection: Selection,
        debias: float,
    ) -> LinearClassifier:
        """Linear classifier of one whitened space, with the scores of another beside it."""
        covectors = geometry.unwhiten_covector(geometry.means)
        constant = debias * geometry.d_eff / geometry.counts - geometry.means.square().sum(1)
        prior = selection.temperature * self.log_prior
        left_out = self.trials.left_out(geometry)
        logits = class_logits(left_out, geometry.d_eff, debias) + prior
        return LinearClassifier(
            weight=self.by_place(covectors, 0.0, dim=0),
            bias=self.by_place(
                constant / 2 - covectors @ self.spectrum.center + prior, -math.inf, dim=0
            ),
            method=method,
            shrinkage=geometry.shrinkage,
            temperature=selection.temperature,
            geometry=scores,
            loo=self.leave_one_out(
                self.by_place(logits, -math.inf, dim=1),
                scores,
                left_out if scores is geometry else self.trials.left_out(scores),
            ),
            diagnostics=selection.to_dict(),
        )

    def leave_one_out(self, logits: Tensor, scores: Geometry, left_out: LeftOut) -> LeaveOneOut:
        """Honest logits with the honest scores beside them."""
        trials = self.trials
        return LeaveOneOut(
            logits=logits,
            labels=self.spectrum.classes[trials.labels],
            weights=trials.weights,
            mahalanobis=left_out.mahalanobis_scores(scores.d_eff),
            relative=left_out.relative_scores(scores.d_eff),
            rows=trials.rows,
            n_single=trials.n_single,
            memory=self.memory,
        )

    def by_place(self, values: Tensor, fill: float, *, dim: int) -> Tensor:
        """Values by class name spread to the classes' places; the others get `fill`."""
        shape = list(values.shape)
        shape[dim] = self.stats.n_classes
        return values.new_full(shape, fill).index_copy_(dim, self.spectrum.classes, values)
