"""Class-balanced ridge regression on class indicators, in closed form from class statistics.

Every class weighs alike, whatever its number of images: the targets of class c are divided by its
share. Logits count from the mean of the class means. The penalty comes from leave-one-out log loss,
or, where nothing can be left out, from generalised cross-validation, within bounds: with fewer
images than features and a penalty near nothing every sample explains itself, and neither means
anything. On photographs the discriminant (`lda.py`) is as good or better throughout, most of all in
its confidences.
"""

from __future__ import annotations

import math

from learnkit.continual.closed_form.linear import Basis, LinearClassifier, Scored
from learnkit.continual.closed_form.loo_samples import Prior, Trials
from learnkit.continual.closed_form.shrinkage import (
    GUESS_IS_TOO_HIGH,
    Selection,
    default_temperature,
    weigh_evidence,
)
from learnkit.continual.closed_form.temperature import Tempered, temper
from learnkit.continual.discriminant import judge_trials
from learnkit.continual.regression import Ridge
from learnkit.continual.statistics import ClassStatistics

# Penalties, in units of the mean eigenvalue that is not zero.
PENALTIES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


def fit_ridge(
    stats: ClassStatistics, *, prior: Prior = "uniform", penalty: float | None = None
) -> LinearClassifier:
    """Class-balanced ridge classifier; penalty and temperature by leave-one-out log loss.

    Args:
        stats: What is known of the classes.
        prior: Whether classes count alike, or as often as they came ("training").
        penalty: In units of the mean non-zero eigenvalue of the total scatter, above 0; default:
            chosen.

    Raises:
        ContinualNotInitializedError: No class has an image.
    """
    basis = Basis.of(stats, prior)
    selection = _select(basis, PENALTIES if penalty is None else (penalty,))
    ridge = Ridge.fit(basis.spectrum, selection.shrinkage)
    scores = basis.spectrum.geometry(basis.select(1.0).shrinkage)
    _, mahalanobis, relative = judge_trials(basis.trials, scores, 1.0)
    return basis.assemble(
        "ridge",
        selection,
        ridge.weight @ basis.spectrum.axes.T,
        0.0,
        ridge.leave_out(basis.trials),
        Scored(scores, mahalanobis, relative),
    )


def _select(basis: Basis, penalties: tuple[float, ...]) -> Selection:
    """Penalty (in the place of the shrinkage) and temperature."""
    trials = basis.searched
    alone = not len(trials) or len(basis.spectrum.classes) == 1
    errors, losses = {}, {}
    for penalty in penalties:
        ridge = Ridge.fit(basis.spectrum, penalty)
        errors[penalty] = ridge.generalised_cross_validation()
        if not alone:
            losses[penalty] = _temper(basis, ridge, trials).log_loss
    expected = min(errors, key=errors.__getitem__)
    if alone:
        temperature = _default_temperature(Ridge.fit(basis.spectrum, expected))
        return Selection(expected, temperature, "generalised cross-validation", errors)
    best = weigh_evidence(losses, expected, trials.weights, math.log)
    temperature = _temper(basis, Ridge.fit(basis.spectrum, best), basis.trials).temperature
    return Selection(best, temperature, "leave-one-out log loss", losses)


def _temper(basis: Basis, ridge: Ridge, trials: Trials) -> Tempered:
    """Temperature and honest log loss of one regression."""
    logits = ridge.leave_out(trials)
    expected = _default_temperature(ridge) / GUESS_IS_TOO_HIGH
    about = {"log_prior": basis.log_prior, "expected": expected}
    return temper(logits, trials.labels, trials.weights, **about)


def _default_temperature(ridge: Ridge) -> float:
    """Temperature where no sample can be left out."""
    spectrum, per_class = ridge.spectrum, ridge.n_images / len(ridge.offsets)
    debt = (spectrum.values / (spectrum.values + ridge.penalty)).sum() / max(spectrum.dof, 1)
    return default_temperature(spectrum, ridge.weight, per_class * float(debt))
