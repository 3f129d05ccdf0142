"""Everything that follows from the statistics: classifier, score, threshold, temperature."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from learnkit.continual.closed_form.lda import fit_lda, fit_prototype
from learnkit.continual.closed_form.linear import LinearClassifier
from learnkit.continual.closed_form.ridge import fit_ridge
from learnkit.continual.closed_form.temperature import temper
from learnkit.continual.held_out import Honest, collect_honest
from learnkit.continual.memory import FeatureMemory
from learnkit.continual.score_parts import Reference
from learnkit.continual.scorer import Scorer, fit_scorer, fit_scorer_threshold
from learnkit.continual.settings import Settings
from learnkit.continual.statistics import ClassStatistics
from learnkit.uncertainty.calibration import Calibration, before_and_after
from learnkit.uncertainty.conformal import lac_scores
from learnkit.uncertainty.threshold import Threshold


@dataclass(frozen=True, eq=False)
class Derived:
    """What follows from statistics; made anew whenever they change.

    Attributes:
        stats: The statistics it follows from, classes in the order of their names.
        places: Where these classes stand among all, (P,).
        linear: The classifier, classes in the order of their names.
        weight: The same divided by the temperature, classes in their places, float64 (C, D).
        bias: Likewise, (C,); -inf for a class without images.
        scorer: The score of unusual images.
        threshold: As fitted, whatever may be set by hand.
        calibration: The temperature and what it was fitted on.
        nonconformity: One minus the probability of the truth, of the images it was fitted on, (R,).
        nonconformity_weights: Their weights, (R,).
        notes: What a person should know.
        warning: The one thing a person must know, or "".
    """

    stats: ClassStatistics
    places: Tensor
    linear: LinearClassifier
    weight: Tensor
    bias: Tensor
    scorer: Scorer
    threshold: Threshold
    calibration: Calibration
    nonconformity: Tensor
    nonconformity_weights: Tensor
    notes: tuple[str, ...]
    warning: str


def derive(
    stats: ClassStatistics,
    validation: FeatureMemory,
    settings: Settings,
    before: Derived | None = None,
) -> Derived | None:
    """Everything that follows from these statistics; None when no class has images.

    Only the classes with images enter, in the order of their names: the result is the same to the
    bit whatever the order in which classes and images came.

    Args:
        stats: The statistics.
        validation: Features of validation images, by the same class names.
        settings: What the classifier is set to.
        before: What followed from the very same statistics with the same kind of classifier; the
            costly part is taken from there.
    """
    places = stats.places()
    if not places:
        return None
    if before is None:
        sorted_stats = stats.canonical()
        linear = fit_classifier(sorted_stats, settings.classifier)
    else:
        sorted_stats, linear = before.stats, before.linear
    reference = Reference.of(sorted_stats.memory)
    fresh = validation.named(stats.class_names).picked(places)
    honest = collect_honest(sorted_stats, fresh, linear, reference, settings.prior)
    calibration = _calibrated(linear, honest)
    scorer = fit_scorer(linear, honest, reference, calibration.temperature, settings.score)
    threshold = fit_scorer_threshold(scorer, honest, settings)
    weight, bias = _in_place(linear, places, stats.n_classes, calibration.temperature)
    nonconformity, nonconformity_weights = _nonconformity(honest, calibration.temperature)
    return Derived(
        stats=sorted_stats,
        places=torch.tensor(places),
        linear=linear,
        weight=weight,
        bias=bias,
        scorer=scorer,
        threshold=threshold,
        calibration=calibration,
        nonconformity=nonconformity,
        nonconformity_weights=nonconformity_weights,
        notes=notes_on(sorted_stats, honest, threshold, scorer, settings),
        warning=warning_on(honest, settings),
    )


def fit_classifier(stats: ClassStatistics, method: str) -> LinearClassifier:
    """The classifier of this kind in closed form."""
    return {"lda": fit_lda, "ridge": fit_ridge, "prototype": fit_prototype}[method](stats)


def _in_place(
    linear: LinearClassifier, places: Sequence[int], n_classes: int, temperature: float
) -> tuple[Tensor, Tensor]:
    """(weight (C,D), bias (C,)) for all places, divided by the temperature."""
    weight = linear.weight.new_zeros(n_classes, linear.weight.shape[1])
    bias = torch.full((n_classes,), -math.inf, dtype=torch.float64)
    weight[places] = linear.weight / temperature
    bias[places] = linear.bias / temperature
    return weight, bias


def _nonconformity(honest: Honest, temperature: float) -> tuple[Tensor, Tensor]:
    """(nonconformity, weights) of the images judged, (R,) each; of images that were drawn, none."""
    if honest.source == "parametric":
        return honest.weights[:0], honest.weights[:0]
    probs = (honest.logits / temperature).softmax(1)
    return lac_scores(probs, honest.labels), honest.weights


def _calibrated(linear: LinearClassifier, honest: Honest) -> Calibration:
    """The temperature, with what it does to the honest judgements."""
    if honest.source == "parametric":
        return Calibration(
            linear.temperature, reason="no image could be left out: the temperature is a guess"
        )
    if honest.logits.shape[1] == 1:
        return Calibration(1.0, reason="one class only: its probability is always 1")
    if honest.n_validated:
        temperature = temper(honest.logits, honest.labels, honest.weights).temperature
    else:
        temperature = linear.temperature
    right = honest.logits.argmax(1) == honest.labels
    reason = ""
    if bool(right.all()) or not bool(right.any()):
        reason = (
            f"all {len(right)} predictions are {'right' if right[0] else 'wrong'}: confidence is "
            "that of one mistake among them"
        )
    return Calibration(
        temperature,
        honest.source,
        len(honest),
        *before_and_after(honest.logits, honest.labels, honest.weights, temperature),
        reason=reason,
    )


def notes_on(
    stats: ClassStatistics,
    honest: Honest,
    threshold: Threshold,
    scorer: Scorer,
    settings: Settings,
) -> tuple[str, ...]:
    """Notes on judgements, threshold and score; mostly few."""
    notes = []
    alone = [
        n for n, count in zip(stats.class_names, stats.counts.tolist(), strict=True) if count < 2
    ]
    if alone and honest.source != "validation":
        notes.append(
            f"one image each of {_some(alone)}: threshold and confidence for them are guessed "
            "from the other classes; more images will help"
        )
    if 0 < honest.n_validated < stats.n_classes:
        notes.append(
            f"{honest.n_validated} of {stats.n_classes} classes have validation images; for the "
            "others, remembered images were left out one by one"
        )
    parts = {part for part, _, _ in scorer.standards}
    if settings.score in ("combined", "knn") and "knn" not in parts:
        notes.append("too few remembered features: Mahalanobis distances alone make the score")
    if threshold.source == "parametric":
        notes.append(f"the threshold {threshold.statement}")
    return tuple(notes)


def warning_on(honest: Honest, settings: Settings) -> str:
    """The one thing a person must know, or ""."""
    if honest.source != "parametric":
        return ""
    if settings.memory:
        why, remedy = "no class has two images that differ", " or more images of a class"
    else:
        why, remedy = "no features are remembered (memory=0)", ""
    return (
        f"{why}, and there are no validation images: the threshold and the temperature rest on an "
        f"assumed distribution, not on images; give validation images{remedy}"
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
