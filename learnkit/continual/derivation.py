"""Derivation from the statistics: classifier, scoring, threshold, temperature."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from learnkit.continual.closed_form.lda import fit_lda, fit_prototype
from learnkit.continual.closed_form.linear import LinearClassifier
from learnkit.continual.closed_form.near_copies import MANY_NEAR, CopyRule, look_like_bursts
from learnkit.continual.closed_form.ridge import fit_ridge
from learnkit.continual.closed_form.temperature import temper
from learnkit.continual.held_out import MIXED, HeldOut, Reference, collect_held_out
from learnkit.continual.memory import FeatureMemory
from learnkit.continual.settings import Settings
from learnkit.continual.standards import (
    doubt,
    fit_per_class,
    fit_score_threshold,
    fit_standards,
    flagged_more,
    held_out_scores,
)
from learnkit.continual.statistics import ClassStatistics
from learnkit.continual.validation_images import note_on_copies, note_on_groups
from learnkit.errors import first_few, number_of
from learnkit.uncertainty.calibration import TemperatureFit, before_and_after
from learnkit.uncertainty.checks import Array
from learnkit.uncertainty.conformal import lac_scores
from learnkit.uncertainty.ood import softmax
from learnkit.uncertainty.scoring import Scoring
from learnkit.uncertainty.threshold import Threshold


@dataclass(frozen=True, eq=False)
class Derived:
    """Everything derived from class statistics; made again whenever they change.

    Attributes:
        stats: The statistics it follows from, classes in the order of their names.
        places: Where these classes stand among all, (P,).
        linear: The classifier, classes in the order of their names, before the temperature.
        scoring: Logits and OOD scores of features, classes in their places, the threshold as
            fitted, whatever may be set by hand.
        calibration: The temperature and what it was fitted on.
        n_fresh: How many validation images decide on both.
        notes: For a person to know.
        warning: The one thing a person must know, or "".
    """

    stats: ClassStatistics
    places: Tensor
    linear: LinearClassifier
    scoring: Scoring
    calibration: TemperatureFit
    n_fresh: int
    notes: tuple[str, ...]
    warning: str

    @property
    def weight(self) -> Tensor:
        """Of the classifier divided by the temperature, classes in their places, float64 (C, D)."""
        return torch.from_numpy(self.scoring.weight)

    @property
    def bias(self) -> Tensor:
        """Likewise, (C,); -inf for a class without images."""
        return torch.from_numpy(self.scoring.bias)


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
        settings: Of the classifier.
        before: Derived earlier from the very same statistics with the same kind of classifier; the
            costly part is taken from there.
    """
    places = stats.places()
    if not places:
        return None
    if before is None:
        sorted_stats = stats.canonical()
        linear = _fitted(sorted_stats, settings)
    else:
        sorted_stats, linear = before.stats, before.linear
    reference = Reference.of(sorted_stats.memory)
    kept = validation.named(stats.class_names).picked(places)
    counts = sorted_stats.counts.tolist()
    # what somebody said of groups holds, whether near copies are looked for or not
    apart = kept.fresh_beside(sorted_stats.memory, counts, None)
    fresh = kept.fresh_beside(sorted_stats.memory, counts, settings.fresh_rule)
    held_out = collect_held_out(sorted_stats, fresh, linear, reference, settings.prior)
    calibration = _calibrated(linear, held_out)
    temperature = calibration.temperature
    standards = fit_standards(held_out, temperature, settings.score)
    scores = held_out_scores(held_out, standards, temperature)
    threshold, shifts = _threshold(scores, held_out, settings)
    doubted = doubt(scores, held_out, settings.false_alarm_rate)
    weight, bias = _in_place(linear, places, stats.n_classes, temperature)
    if shifts is not None:
        by_class, shifts = shifts, np.zeros(stats.n_classes)
        shifts[places] = by_class
    scoring = Scoring(
        labels=True,
        root=settings.root,
        temperature=temperature,
        standards=standards,
        threshold=threshold,
        weight=weight.numpy(),
        bias=bias.numpy(),
        nonconformity=_nonconformity(held_out, temperature, places if settings.per_class else ()),
        shifts=shifts,
        distances=linear.geometry.distances,
        neighbors=reference.neighbors,
    )
    return Derived(
        stats=sorted_stats,
        places=torch.tensor(places),
        linear=linear,
        scoring=scoring,
        calibration=calibration,
        n_fresh=len(fresh),
        notes=(
            *note_on_groups(len(kept) - len(apart), len(kept)),
            *note_on_copies(len(apart) - len(fresh), len(kept)),
            *_notes_on(sorted_stats, held_out, scoring, calibration, settings),
            *_uneven(scores, held_out, threshold, settings, sorted_stats.class_names),
            *((doubted,) if doubted else ()),
        ),
        warning=_warning_on(held_out, settings) or doubted,
    )


def _fitted(stats: ClassStatistics, settings: Settings) -> LinearClassifier:
    """The classifier of the settings."""
    moments = replace(stats.moments(settings.copy_rule), rules=settings.rules)
    if settings.classifier == "lda":
        return fit_lda(moments, blend=settings.blend)
    return {"ridge": fit_ridge, "prototype": fit_prototype}[settings.classifier](moments)


def _threshold(
    scores: Array, held_out: HeldOut, settings: Settings
) -> tuple[Threshold, Array | None]:
    """The threshold, and what to add to scores by predicted class, None for nothing."""
    threshold = fit_score_threshold(scores, held_out, settings)
    if not settings.per_class or threshold.source == "parametric":
        return threshold, None
    return fit_per_class(scores, held_out, settings, threshold)


def _uneven(
    scores: Array,
    held_out: HeldOut,
    threshold: Threshold,
    settings: Settings,
    names: Sequence[str],
) -> tuple[str, ...]:
    """A note where images of some classes are flagged clearly more often than promised of all."""
    if settings.per_class or threshold.source == "parametric":
        return ()
    rate = settings.false_alarm_rate
    found = flagged_more(scores, held_out, threshold.value, rate)
    if not found:
        return ()
    each = first_few([f"{share:.0%} of {names[place]!r}" for place, share in found.items()])
    return (
        f"{rate:.0%} false alarms are promised on average over all images, not for each class: "
        f"{each} are flagged of those held out; `per_class=True` keeps the promise for each",
    )


def _in_place(
    linear: LinearClassifier, places: Sequence[int], n_classes: int, temperature: float
) -> tuple[Tensor, Tensor]:
    """(weight (C,D), bias (C,)) for all places, divided by the temperature."""
    weight = linear.weight.new_zeros(n_classes, linear.weight.shape[1])
    bias = torch.full((n_classes,), -math.inf, dtype=torch.float64)
    weight[places] = linear.weight / temperature
    bias[places] = linear.bias / temperature
    return weight, bias


def _nonconformity(
    held_out: HeldOut, temperature: float, places: Sequence[int]
) -> tuple[Array, ...]:
    """Scores and weights (R,) of held-out images, with `places` of the classes their labels too."""
    rows = slice(0 if held_out.source == "parametric" else None)  # of images that were drawn, none
    scores = lac_scores(softmax(held_out.logits / temperature), held_out.labels)
    labels = (np.array(places)[held_out.labels][rows],) if len(places) else ()
    return scores[rows], held_out.weights[rows], *labels


def _calibrated(linear: LinearClassifier, held_out: HeldOut) -> TemperatureFit:
    """The temperature, with what it does to held-out logits."""
    if held_out.source == "parametric":
        return TemperatureFit(
            linear.temperature, reason="no image could be left out: the temperature is a guess"
        )
    logits, labels, weights = held_out.logits, held_out.labels, held_out.weights
    if logits.shape[1] == 1:
        return TemperatureFit(1.0, reason="one class only: its probability is always 1")
    rows = map(torch.from_numpy, (logits, labels, weights))
    # by the same weights as the threshold: the prior may be another than that of the classifier
    temperature = temper(*rows, expected=linear.expected_temperature).temperature
    right = logits.argmax(1) == labels
    reason = ""
    # `temper` counts one imagined mistake, and so has an answer here, too
    if right.all() or not right.any():
        reason = (
            f"all {len(right)} predictions are {'right' if right[0] else 'wrong'}: confidence is "
            "that of one mistake among them"
        )
    return TemperatureFit(
        temperature,
        held_out.source,
        len(held_out),
        *before_and_after(logits, labels, weights, temperature),
        reason=reason,
    )


def _notes_on(
    stats: ClassStatistics,
    held_out: HeldOut,
    scoring: Scoring,
    calibration: TemperatureFit,
    settings: Settings,
) -> tuple[str, ...]:
    """Notes on held-out images, threshold, temperature and score; mostly few."""
    notes, threshold = [], scoring.threshold
    each = zip(stats.class_names, stats.counts.tolist(), stats.memory.cells, strict=True)
    # `groups` are first rows: all of them 0 is one group
    alone = [
        name
        for name, n, cell in each
        if n < 2 or (any(cell.given) and not any(cell.groups(settings.copy_rule)))
    ]
    if alone and held_out.source != "validation":
        group = " or group" if stats.memory.given().any() else ""
        notes.append(
            f"one image{group} each of {first_few(alone)}: threshold and confidence for them are "
            "guessed from the other classes; more images will help"
        )
    if held_out.source == MIXED:
        # what is proven may rest on validation images alone
        what = " for the confidence" if threshold.source == "validation" else ""
        notes.append(
            f"{number_of(held_out.n_fresh, 'validation image')} "
            f"{'is' if held_out.n_fresh == 1 else 'are'} few for "
            f"{number_of(stats.n_classes, 'class')}: remembered images, left out one by one, count "
            f"beside them{what}"
        )
    notes += _near_copies(stats, settings.copy_rule)
    notes += _on_temperature(calibration)
    parts = {part for part, _, _ in scoring.standards}
    if settings.score in ("combined", "knn") and "knn" not in parts:
        notes.append("too few remembered features: Mahalanobis distances alone make the score")
    if threshold.source == "parametric":
        own = ", and none of each class" if settings.per_class else ""
        notes.append(f"the threshold {threshold.statement}{own}")
    return tuple(notes)


def _on_temperature(fit: TemperatureFit) -> tuple[str, ...]:
    """A note where the temperature makes held-out confidences no better than 1 would."""
    # what it was fitted on by log loss may lose by both of the others; of one class both are NaN
    if not (fit.ece_after > fit.ece_before and fit.brier_after > fit.brier_before):
        return ()
    eces = f"ECE {fit.ece_after:.3f} against {fit.ece_before:.3f} on held-out images"
    if fit.reason:  # none of them is wrong, or none right
        return (f"{fit.reason}; at temperature 1 it would be bolder ({eces})",)
    return (
        f"the temperature {fit.temperature:.3g} makes confidences no better than 1 would ({eces}); "
        "more images a class, or validation images, will help",
    )


def _near_copies(stats: ClassStatistics, rule: CopyRule) -> tuple[str, ...]:
    """A note where many remembered features are near copies of others, else none."""
    n = len(stats.memory)
    first = [pair for cell in stats.memory.cells for pair in enumerate(cell.groups(rule))]
    told = stats.memory.given().tolist()
    # those with a code were said to be of a group, which is no finding
    n_copies = sum(row != one and not code for (row, one), code in zip(first, told, strict=True))
    notes = _look_like_bursts(stats)
    if n_copies <= MANY_NEAR * n:
        return notes
    return (
        f"{n_copies} of {n} remembered images are near copies of others (bursts, augmented files, "
        "files saved again): each group counts as one image for threshold and confidence; say by "
        "`group=` what belongs together, and learn images of other things rather than more of "
        "these",
        *notes,
    )


def _look_like_bursts(stats: ClassStatistics) -> tuple[str, ...]:
    """A note on classes of few images that are bursts, as far as so few can tell; else none."""
    each = zip(stats.class_names, stats.memory.cells, strict=True)
    untold = ((name, cell.features.numpy()) for name, cell in each if not any(cell.given))
    found = [name for name, features in untold if look_like_bursts(features)]
    if not found:
        return ()
    return (
        f"the few images of {first_few(map(repr, found))} look like near copies of each other "
        "(bursts, augmented files, files saved again), and each counts for itself: images of other "
        "things may all be flagged; say by `group=` what belongs together, and learn more things",
    )


def _warning_on(held_out: HeldOut, settings: Settings) -> str:
    """The one thing a person must know, or ""."""
    if held_out.source != "parametric":
        return ""
    if settings.memory:
        why, remedy = "no class has two images that differ", " or more images of a class"
    else:
        why, remedy = "no features are remembered (memory=0)", ""
    return (
        f"{why}, and there are no validation images: the threshold and the temperature rest on an "
        f"assumed distribution, not on images; give validation images{remedy}"
    )
