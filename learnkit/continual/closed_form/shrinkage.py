"""Selection of shrinkage and temperature by leaving remembered samples out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from learnkit.continual.closed_form.loo_samples import LooSamples, score_left_out
from learnkit.continual.closed_form.temperature import Tempered, temper
from learnkit.continual.closed_form.threads import in_threads
from learnkit.continual.closed_form.whitening import Geometry, Spectrum

# The last one is the nearest class mean.
SHRINKAGES = (0.003, 0.01, 0.03, 0.1, 0.3, 0.6, 0.8, 0.9, 0.97, 0.99, 0.999, 1.0)
# Squared distance that turns the odds by a factor of e, where nothing can be learnt about it, in
# units of the variance within classes: that of images of one part under one lamp is a thirtieth of
# that of photographs, .35 to .41. On these, with one image of each of ten classes, .07 to .09 was
# best. By the first rules it was .1 whatever the variance.
_SOFTNESS = 0.2
_GUESS_IS_WORTH = 20.0  # degrees of freedom
# The temperature guessed from the spread within classes is e**0.5 times the best, on average.
GUESS_IS_TOO_HIGH = 1.65


@dataclass(frozen=True)
class Selection:
    """A shrinkage and a temperature, what decided on them, and both of each candidate."""

    shrinkage: float
    temperature: float
    by: str
    losses: dict[float, float] = field(default_factory=dict)
    temperatures: dict[float, float] = field(default_factory=dict)

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
    samples: LooSamples,
    *,
    debias: float,
    log_prior: Tensor,
    shrinkages: tuple[float, ...] = SHRINKAGES,
) -> Selection:
    """Shrinkage with the least leave-one-out log loss, each at its own best temperature.

    A single class has no log loss: there it is the negative log density of the sample left out.
    Without a sample both numbers are defaults. Where all samples are of one class, beside others,
    the covariance is that class's own, and shrunk as far as may be: how well it fits the others no
    sample can tell, and its own it fits too well.
    """
    if not len(samples):
        return default_selection(spectrum, shrinkages)
    single = len(spectrum.classes) == 1
    if not single and bool((samples.labels == samples.labels[0]).all()):
        shrinkages = (max(shrinkages),)

    def tried(shrinkage: float) -> Tempered:
        # another than was measured by: those keep tables of all classes for as long as they live
        geometry = spectrum.geometry(shrinkage)
        if single:
            return Tempered(1.0, density_loss(geometry, samples))
        logits = score_left_out(samples, geometry, debias).logits
        return temper_samples(logits, samples, geometry, log_prior)

    n_products = len(samples) * len(spectrum.classes) * spectrum.n_features
    # one candidate a thread, and one thread each: the bits are those of a loop
    samples.measure([spectrum.geometry(shrinkage) for shrinkage in shrinkages])
    found = in_threads(tried, shrinkages, n_products)
    results = dict(zip(shrinkages, found, strict=True))
    losses = {shrinkage: result.log_loss for shrinkage, result in results.items()}
    best = weigh_evidence(
        losses,
        default_shrinkage(spectrum),
        samples.weights,
        lambda share: math.log(share / (1.0005 - share)),  # the log-odds, finite up to 1
    )
    by = "leave-one-out density" if single else "leave-one-out log loss"
    temperatures = {shrinkage: result.temperature for shrinkage, result in results.items()}
    return Selection(best, temperatures[best], by, losses, temperatures)


def temper_samples(
    logits: Tensor, samples: LooSamples, geometry: Geometry, log_prior: Tensor
) -> Tempered:
    """Temperature and held-out log loss of the discriminant, from its logits of the samples."""
    about = {"log_prior": log_prior, "expected": expected_temperature(geometry)}
    return temper(logits, samples.labels, samples.weights, **about)


def expected_temperature(geometry: Geometry) -> float:
    """Temperature of the discriminant to expect before any sample is seen."""
    return _default_temperature(geometry) / GUESS_IS_TOO_HIGH


def weigh_evidence(
    losses: dict[float, float],
    expected: float,
    weights: Tensor,
    scale: Callable[[float], float],
) -> float:
    """Candidate with the least loss; where they hardly differ, one near the expected one."""
    # each step of 1 on the scale away from the expected takes half a nat of evidence in all
    toll = 0.5 * float(weights.square().sum())

    def cost(candidate: float) -> float:
        return losses[candidate] + toll * abs(scale(candidate) - scale(expected))

    return min(losses, key=cost)


def default_selection(spectrum: Spectrum, shrinkages: tuple[float, ...]) -> Selection:
    """Shrinkage and temperature where nothing can be left out, from the statistics alone."""
    wanted = default_shrinkage(spectrum)
    shrinkage = min(shrinkages, key=lambda candidate: abs(candidate - wanted))
    temperature = _default_temperature(spectrum.geometry(shrinkage))
    return Selection(shrinkage, temperature, "default: no sample can be left out")


def default_shrinkage(spectrum: Spectrum) -> float:
    """Shrinkage to expect: 1/2 for as many degrees of freedom as twice the axes, 1 for none."""
    # Within .02 of the log loss of what was best on held-out photographs, 2 to 500 images a class.
    axes = 2 * spectrum.n_features
    return axes / (axes + spectrum.dof)


def _default_temperature(geometry: Geometry) -> float:
    """Temperature of the discriminant where no sample can be left out."""
    apart = float(geometry.lengths.mean())
    return default_temperature(geometry.spectrum, apart, geometry.weights, geometry.d_eff)


def default_temperature(spectrum: Spectrum, apart: float, weights: Tensor, debt: float) -> float:
    """Temperature from the spread of the logits within the classes.

    Args:
        spectrum: Of the statistics.
        apart: Mean logit of a class mean for its own class.
        weights: Of a linear classifier (P,K), in the axes of the spectrum.
        debt: By how much noise in the mean of one image drives a class apart from the others.
    """
    # A normal variable of mean m and variance v is a calibrated logit if v = 2 m. Here that is the
    # mean over pairs of classes of the logit between them; seen from the very samples that made it,
    # it is too good, by a factor of 3 on photographs.
    n_classes = len(spectrum.classes)
    if n_classes == 1 or not apart > 0:
        return 1.0
    guess = _SOFTNESS * spectrum.unit_of_distance * apart / spectrum.spread_of_means
    if spectrum.is_flat:
        return guess
    pairs = n_classes / (n_classes - 1)
    within = spectrum.scatter_along(weights - weights.mean(0)) / spectrum.dof
    held_out = pairs * apart - debt * float((1 / spectrum.counts).mean())
    # with few images the spread is seen in few directions only: the guess sets the least
    least = guess * _GUESS_IS_WORTH / (_GUESS_IS_WORTH + spectrum.dof)
    seen = 3 * pairs * within / held_out if held_out > 0 else guess
    return min(max(seen, least), guess)


def density_loss(geometry: Geometry, samples: LooSamples) -> float:
    """Mean negative log density, up to a constant, of samples under a Gaussian without them."""
    # Hoffbeck and Landgrebe, 1996, choose the covariance by it.
    left_out = samples.left_out(geometry, slice(0, samples.n_single))  # a single class has no pairs
    own = left_out.distances.gather(1, samples.labels[:, None])[:, 0]
    log_det = samples.log_det_left_out(geometry)
    return float(samples.weights @ (own + log_det)) / 2
