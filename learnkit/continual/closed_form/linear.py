"""Linear classifiers in closed form, and the basis that all fits share.

A fit begins with a `Basis`, shared by all classifiers of the same statistics, and ends in a
`LinearClassifier`: weights, and their scores of remembered samples they have not seen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from learnkit.continual.closed_form.loo_samples import (
    LooSamples,
    LooScores,
    MemoryRows,
    Prior,
    class_masses,
    make_loo_samples,
    memory_rows,
    score_left_out,
)
from learnkit.continual.closed_form.shrinkage import SHRINKAGES, Selection, select, temper_samples
from learnkit.continual.closed_form.whitening import Geometry, Moments, Spectrum, fit_spectrum

# Bounds on what one refit may cost: numbers in the features and in the logits of all samples, then
# of those that take part in the search, and multiplications in it.
_MAX_FEATURES, _MAX_LOGITS = 8_000_000, 4_000_000
_MAX_SEARCHED, _MAX_SEARCHED_LOGITS = 4_000_000, 1_000_000
_MAX_PRODUCTS = 1_000_000_000
# Samples are compared with remembered features, of so many numbers at most; at least so many
# samples, and multiplications of one refit, about half a second.
MAX_REFERENCE = 2**23
_MIN_SAMPLES, _MAX_COMPARED = 256, 6_000_000_000


@dataclass(frozen=True, eq=False, repr=False)
class LeaveOneOut:
    """Logits and scores of remembered samples by a classifier that has not seen them.

    `logits (M,C)` before the temperature, `labels (M,)` places of the classes, `weights (M,)`
    summing to 1, each class weighing as much as the prior says. `rows (M,)` says which row of
    `memory` each is; from `n_single` on, a row plays a class of one image, known by its partner
    `memory.partners` alone. `mahalanobis (M,)` and `relative (M,)` are held-out scores of the
    geometry. `shift (M,)` is added to all logits of a row for its energy, see `LooScores`.
    """

    logits: Tensor
    labels: Tensor
    weights: Tensor
    mahalanobis: Tensor
    relative: Tensor
    shift: Tensor
    rows: Tensor
    n_single: int
    memory: MemoryRows


@dataclass(frozen=True, eq=False, repr=False)
class LinearClassifier:
    """A linear classifier on embedded features: `logits = features @ weight.T + bias`.

    `weight (C,D)` and `bias (C,)` are float64 by class; a class without images has weight 0 and
    bias -inf. `softmax(logits / temperature)` are the probabilities, of classes that come as the
    prior says; `expected_temperature` is what to expect before any image is left out. `shrinkage`
    is what was chosen for it (of a ridge regression the penalty). `geometry` is the whitened space
    for scores: that of the discriminant, whatever the method.
    """

    weight: Tensor
    bias: Tensor
    method: str
    shrinkage: float
    temperature: float
    expected_temperature: float
    geometry: Geometry
    loo: LeaveOneOut
    diagnostics: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        n_classes, n_features = self.weight.shape
        return (
            f"LinearClassifier({self.method!r}, {n_classes} classes, {n_features} features, "
            f"shrinkage={self.shrinkage:g}, temperature={self.temperature:.4g})"
        )

    def logits(self, features: Tensor) -> Tensor:
        """Logits float64 (N,C) of embedded features (N,D), before the temperature."""
        return features.to(torch.float64) @ self.weight.T + self.bias


class Scored(NamedTuple):
    """A geometry with held-out scores of the samples, each (R,); `shift` is of their logits."""

    geometry: Geometry
    mahalanobis: Tensor
    relative: Tensor
    shift: Tensor | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Basis:
    """Spectrum and samples to leave out, shared by all classifiers of the same statistics.

    `searched` are the samples that decide among candidates: all, or a part if there are many.
    """

    n_classes: int
    spectrum: Spectrum
    log_prior: Tensor
    samples: LooSamples
    searched: LooSamples

    @classmethod
    def of(cls, moments: Moments, prior: Prior) -> Basis:
        """Return the basis of these statistics; the one costly decomposition happens here."""
        spectrum = fit_spectrum(moments)
        n_classes, n_features = len(spectrum.classes), moments.n_features
        memory = memory_rows(moments, min(_MAX_FEATURES // n_features, _MAX_LOGITS // n_classes))
        compared = min(sum(map(len, moments.samples)) * n_features, MAX_REFERENCE)
        most = max(_MIN_SAMPLES, _MAX_COMPARED // max(compared, 1))
        samples = make_loo_samples(moments, spectrum, memory, prior, most)
        limit = min(
            _MAX_SEARCHED // n_features,
            _MAX_SEARCHED_LOGITS // n_classes,
            _MAX_PRODUCTS // n_features // n_classes,
        )
        few = memory_rows(moments, max(limit, 2)) if len(samples.memory) > limit else None
        searched = make_loo_samples(moments, spectrum, few, prior) if few else samples
        log_prior = class_masses(spectrum.counts, prior).log()
        return cls(moments.n_classes, spectrum, log_prior, samples, searched)

    def select(self, debias: float, shrinkages: tuple[float, ...] = SHRINKAGES) -> Selection:
        """Shrinkage and temperature of the discriminant, by the samples that are searched."""
        asked = {"debias": debias, "log_prior": self.log_prior}
        return select(self.spectrum, self.searched, shrinkages=shrinkages, **asked)

    def tempered(self, selection: Selection, logits: Tensor, geometry: Geometry) -> Selection:
        """The selection with the temperature that all samples tell, from their logits (R,P)."""
        if self.searched is self.samples or logits.shape[1] == 1:
            return selection
        best = temper_samples(logits, self.samples, geometry, self.log_prior)
        return replace(selection, temperature=best.temperature)

    def scored(self, geometry: Geometry, scores: LooScores, shrinkage: float) -> Scored:
        """The scores of another shrinkage, or the same: then `scores` are of it."""
        other = self.spectrum.geometry(shrinkage)
        if other.shrinkage != geometry.shrinkage:
            geometry, scores = other, score_left_out(self.samples, other, 1.0)
        return Scored(geometry, scores.mahalanobis, scores.relative)

    def assemble(
        self,
        method: str,
        selection: Selection,
        covectors: Tensor,
        offset: Tensor | float,
        logits: Tensor,
        scores: Scored,
        expected_temperature: float,
    ) -> LinearClassifier:
        """Return the classifier `covectors @ (features - center) + offset`, with its prior.

        Args:
            method: Its name.
            selection: What it was chosen by.
            covectors: (P,D), for embedded features.
            offset: (P,).
            logits: Held-out ones of the samples (R,P), without the prior, which is added in place.
            scores: The geometry for scores, and those of the samples.
            expected_temperature: Before any sample is seen.
        """
        # times the temperature, by which all logits are divided in the end
        prior = selection.temperature * self.log_prior
        bias = offset - covectors @ self.spectrum.center + prior
        loo = LeaveOneOut(
            logits=self._by_place(logits.add_(prior), -math.inf, dim=1),
            labels=self.spectrum.classes[self.samples.labels],
            weights=self.samples.weights,
            mahalanobis=scores.mahalanobis,
            relative=scores.relative,
            shift=torch.zeros_like(scores.relative) if scores.shift is None else scores.shift,
            rows=self.samples.rows,
            n_single=self.samples.n_single,
            memory=self.samples.memory,
        )
        return LinearClassifier(
            weight=self._by_place(covectors, 0.0, dim=0),
            bias=self._by_place(bias, -math.inf, dim=0),
            method=method,
            shrinkage=selection.shrinkage,
            temperature=selection.temperature,
            expected_temperature=expected_temperature,
            geometry=scores.geometry,
            loo=loo,
            diagnostics=selection.to_dict(),
        )

    def _by_place(self, values: Tensor, fill: float, *, dim: int) -> Tensor:
        """Values by class name spread to the classes' places; the others get `fill`."""
        if torch.equal(self.spectrum.classes, torch.arange(self.n_classes)):
            return values
        shape = list(values.shape)
        shape[dim] = self.n_classes
        return values.new_full(shape, fill).index_copy_(dim, self.spectrum.classes, values)
