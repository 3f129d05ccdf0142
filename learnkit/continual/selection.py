"""Shrinkage and temperature, chosen by what leaving remembered samples out tells."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from learnkit.continual.geometry import Geometry, Spectrum
from learnkit.continual.leave_one_out import (
    LeftOut,
    MemoryRows,
    is_alone,
    leave_one_out,
    leave_pair_out,
    log_det_left_out,
)
from learnkit.continual.statistics import ClassStatistics
from learnkit.continual.temperature import Tempered, temper

Prior = Literal["uniform", "empirical"]
# The last one is the nearest class mean.
SHRINKAGES = (0.003, 0.01, 0.03, 0.1, 0.3, 0.6, 0.8, 0.9, 0.97, 0.99, 0.999, 1.0)
# Squared distance of unit vectors that turns the odds by a factor of e, where nothing can be learnt
# about it; on photographs with one image of each of ten classes .07 to .09 was best.
_SOFTNESS = 0.1
_GUESS_IS_WORTH = 20.0  # degrees of freedom
# Share of the differences between the lengths of class means that is kept with many images; of one
# image a class two thirds of it. On photographs and digits, 1 to 500 images a class, this was best
# or near it: with 1 the accuracy is .3 to .5 points less, with 1 image a class 1 point.
_TRUST = 0.75
# The temperature guessed from the spread within classes is e**0.5 times the best, on average.
GUESS_IS_TOO_HIGH = 1.65


@dataclass(frozen=True, eq=False, repr=False)
class Trials:
    """Remembered samples as honest test samples: each left out, some as the second of two ever.

    `points (R,D)` are the samples turned into the axes of the spectrum, `labels (R,)` positions
    among its classes, `copies (R,)` as in `MemoryRows`, `weights (R,)` sum to 1. `rows (R,)` says
    which memory row each one is. The rows from `n_single` on leave together with the memory row
    `partners (R - n_single,)`, which then is all that is known of the class.
    """

    points: Tensor
    labels: Tensor
    copies: Tensor
    weights: Tensor
    rows: Tensor
    partners: Tensor
    n_single: int

    def __len__(self) -> int:
        return len(self.labels)

    def left_out(self, geometry: Geometry) -> LeftOut:
        """Honest distances of every trial in the whitened space of one shrinkage."""
        n = self.n_single
        single = leave_one_out(geometry, self.points[:n], self.labels[:n], self.copies[:n])
        if n == len(self):
            return single
        paired = leave_pair_out(
            geometry,
            self.points[n:],
            self.labels[n:],
            self.points[self.partners],
            (self.copies[n:], self.copies[self.partners]),
        )
        return single.followed_by(paired)


def class_masses(counts: Tensor, prior: Prior) -> Tensor:
    """Share of each class among the images to come, float64 (P,), summing to 1."""
    masses = torch.ones_like(counts) if prior == "uniform" else counts
    return masses / masses.sum()


def make_trials(
    stats: ClassStatistics, spectrum: Spectrum, memory: MemoryRows, prior: Prior
) -> Trials:
    """Every memory row once and, while classes of one image exist, once more beside a partner.

    A class weighs as much as its prior, whatever the number of its rows. Classes of one image
    cannot be left out; rows that play their part (`leave_pair_out`) get their weight.
    """
    masses = class_masses(spectrum.counts, prior)
    alone = torch.tensor([is_alone(stats, place) for place in spectrum.classes.tolist()])
    lonely = float(masses[alone].sum())
    position = torch.full((stats.n_classes,), -1, dtype=torch.int64)
    position[spectrum.classes] = torch.arange(len(spectrum.classes))
    labels = position[memory.labels]
    pairs = pairable(memory, spectrum.counts[labels]) if lonely > 0 else labels[:0]
    share = lonely if len(pairs) else 0.0
    rows = torch.cat([torch.arange(len(labels)), pairs])
    weights = [
        (1 - share) * row_weights(labels, masses),
        share * row_weights(labels[pairs], masses),
    ]
    return Trials(
        points=spectrum.turn(memory.features)[rows],
        labels=labels[rows],
        copies=memory.copies[rows].to(torch.float64),
        weights=torch.cat(weights),
        rows=rows,
        partners=memory.partners[pairs],
        n_single=len(labels),
    )


def pairable(memory: MemoryRows, counts: Tensor) -> Tensor:
    """Which rows have a partner and leave images of the class behind together with it, (K,)."""
    together = memory.copies + memory.copies[memory.partners]
    return ((memory.partners >= 0) & (counts > together)).nonzero()[:, 0]


def row_weights(labels: Tensor, masses: Tensor) -> Tensor:
    """Weights (R,) summing to 1, those of a class in proportion to its mass."""
    if len(labels) == 0:
        return masses[:0]
    weights = (masses / torch.bincount(labels, minlength=len(masses)).clamp_min(1))[labels]
    return weights / weights.sum()


def class_logits(left_out: LeftOut, d_eff: float, debias: float) -> Tensor:
    """Logits (R,P) of the discriminant, as the classifier without the sample would give them."""
    debts = mean_debts(left_out.lengths, left_out.counts, d_eff, debias)
    return 0.5 * (left_out.background[:, None] - left_out.distances + debts)


def mean_debts(lengths: Tensor, counts: Tensor, d_eff: float, debias: float) -> Tensor:
    """What to take off the squared lengths (..., P) of the class means before they count.

    First the length that a mean of so many images has from noise alone, `d_eff / n`. What is left
    still differs between classes mostly by chance, while the directions of the means can be
    trusted: it is drawn towards its mean over the classes, the more, the fewer images there are.

    Source: James and Stein, "Estimation with quadratic loss", 1961, for shrinking what is noisy
    towards its mean; how far is measured.
    """
    noise = d_eff / counts
    free = lengths - noise
    trust = _TRUST * counts / (counts + 0.5)
    common = (trust * free).sum(-1, keepdim=True) / trust.sum(-1, keepdim=True)
    return debias * (noise + (1 - trust) * (free - common))


@dataclass(frozen=True)
class Selection:
    """A shrinkage and a temperature, what decided on them, and the loss of each candidate."""

    shrinkage: float
    temperature: float
    by: str
    losses: dict[float, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a report."""
        return {
            "chosen_by": self.by,
            "shrinkage": self.shrinkage,
            "temperature": self.temperature,
            "losses": self.losses,
        }


def select(
    spectrum: Spectrum,
    trials: Trials,
    *,
    debias: float,
    log_prior: Tensor,
    shrinkages: tuple[float, ...] = SHRINKAGES,
) -> Selection:
    """Shrinkage with the least leave-one-out log loss, each at its own best temperature.

    A single class has no log loss: there it is the negative log density of the sample left out.
    Without a sample both numbers are defaults.
    """
    if not len(trials):
        return default_selection(spectrum, shrinkages)
    single, results = len(spectrum.classes) == 1, {}
    for shrinkage in shrinkages:
        geometry = spectrum.geometry(shrinkage)
        if single:
            results[shrinkage] = Tempered(1.0, density_loss(geometry, trials))
        else:
            logits = class_logits(trials.left_out(geometry), geometry.d_eff, debias)
            guess = default_temperature(spectrum, geometry.means * geometry.scale, geometry.d_eff)
            about = {"log_prior": log_prior, "expected": guess / GUESS_IS_TOO_HIGH}
            results[shrinkage] = temper(logits, trials.labels, trials.weights, **about)
    losses = {shrinkage: result.log_loss for shrinkage, result in results.items()}
    best = weigh_evidence(losses, default_shrinkage(spectrum), trials.weights, _log_odds)
    by = "leave-one-out density" if single else "leave-one-out log loss"
    return Selection(best, results[best].temperature, by, losses)


def weigh_evidence(
    losses: dict[float, float],
    expected: float,
    weights: Tensor,
    scale: Callable[[float], float],
) -> float:
    """Candidate with the least loss; where they hardly differ, one near the expected one.

    Each step of 1 on the scale away from it takes half a nat of evidence, over all samples.
    """
    toll = 0.5 * float(weights.square().sum())

    def cost(candidate: float) -> float:
        return losses[candidate] + toll * abs(scale(candidate) - scale(expected))

    return min(losses, key=cost)


def _log_odds(share: float) -> float:
    """Logarithm of share / (1 - share), finite up to 1."""
    return math.log(share / (1.0005 - share))


def default_selection(spectrum: Spectrum, shrinkages: tuple[float, ...]) -> Selection:
    """Shrinkage and temperature where nothing can be left out, from the statistics alone."""
    wanted = default_shrinkage(spectrum)
    shrinkage = min(shrinkages, key=lambda candidate: abs(candidate - wanted))
    geometry = spectrum.geometry(shrinkage)
    weight = geometry.means * geometry.scale
    temperature = default_temperature(spectrum, weight, geometry.d_eff)
    return Selection(shrinkage, temperature, "default: no sample can be left out")


def default_shrinkage(spectrum: Spectrum) -> float:
    """Shrinkage to expect: 1/2 for as many degrees of freedom as twice the axes, 1 for none.

    Follows what was best on held-out photographs, 2 to 500 images a class, within .02 of log loss.
    """
    axes = 2 * len(spectrum.values)
    return axes / (axes + spectrum.dof)


def default_temperature(spectrum: Spectrum, weight: Tensor, debt: float) -> float:
    """Temperature from the spread of the logits within the classes.

    A normal variable of mean m and variance v is a calibrated logit if v = 2 m. Here that is the
    mean over pairs of classes of the logit between them; seen from the very samples that made it,
    it is too good, by a factor of 3 on photographs. With one image a class nothing tells, and with
    few the spread is seen in few directions only, so that a guess sets the least temperature.

    Args:
        spectrum: Of the statistics.
        weight: Of a linear classifier (P,D) in the axes of the spectrum.
        debt: By how much noise in the mean of one image drives a class apart from the others.
    """
    n_classes = len(spectrum.classes)
    apart = (weight * spectrum.means).sum(1).mean()
    if n_classes == 1 or not apart > 0:
        return 1.0
    guess = _SOFTNESS * float(apart / spectrum.means.square().sum(1).mean())
    if spectrum.is_flat:
        return guess
    pairs = n_classes / (n_classes - 1)
    within = (weight - weight.mean(0)).square() @ (spectrum.values / spectrum.dof)
    honest = pairs * float(apart) - debt * float((1 / spectrum.counts).mean())
    least = guess * _GUESS_IS_WORTH / (_GUESS_IS_WORTH + spectrum.dof)
    seen = 3 * pairs * float(within.mean()) / honest if honest > 0 else guess
    return min(max(seen, least), guess)


def density_loss(geometry: Geometry, trials: Trials) -> float:
    """Mean negative log density, up to a constant, of samples under a Gaussian without them.

    Source: Hoffbeck and Landgrebe, 1996, who choose the covariance by it.
    """
    own = trials.left_out(geometry).distances.gather(1, trials.labels[:, None])[:, 0]
    log_det = log_det_left_out(geometry, trials.points, trials.labels, trials.copies)
    return float(trials.weights @ (own + log_det)) / 2
