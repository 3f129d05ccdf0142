"""Everything that follows from the statistics: classifier, score, threshold, temperature."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from learnkit.continual.honest import Honest, Judged, Reference, collect_honest, judge
from learnkit.continual.lda import fit_lda, fit_prototype
from learnkit.continual.linear import LinearClassifier
from learnkit.continual.memory import FeatureMemory
from learnkit.continual.ridge import fit_ridge
from learnkit.continual.settings import Settings
from learnkit.continual.statistics import ClassStatistics
from learnkit.continual.temperature import temper
from learnkit.errors import OodInternalError
from learnkit.evaluation import measures
from learnkit.uncertainty.calibration import Calibration
from learnkit.uncertainty.conformal import lac_scores
from learnkit.uncertainty.ood import (
    combine,
    energy_score,
    location_scale,
    max_softmax_score,
    standardize,
)
from learnkit.uncertainty.threshold import Threshold, fit_threshold

_ALIKE = "no class has two images that differ"
_COMBINED = ("mahalanobis", "relative", "knn")  # what counts as unusual by default


@dataclass(frozen=True, eq=False)
class Scorer:
    """The score that says how unusual an image is; higher = more unusual.

    `standards` holds (part, mean, spread) of every part of a combined score; a score of one part
    is taken as it is.
    """

    linear: LinearClassifier
    reference: Reference
    temperature: float
    standards: tuple[tuple[str, float, float], ...]

    def __call__(self, embedded: Tensor) -> Tensor:
        """Scores float64 (N,) of embedded features (N, D)."""
        parts = {part for part, _, _ in self.standards}
        if parts & {"msp", "energy"}:
            parts.add("logits")
        return self.of(judge(self.linear, embedded, self.reference, parts))

    def of(self, judged: Judged | Honest) -> Tensor:
        """Scores (N,) of what has been judged already."""
        return combine(
            *(
                standardize(_raw(part, judged, self.temperature), loc, scale)
                for part, loc, scale in self.standards
            )
        )


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
        misfits: One minus the probability of the truth, of the images it was fitted on, (R,).
        misfit_weights: Their weights, (R,).
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
    misfits: Tensor
    misfit_weights: Tensor
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
    scorer = _scorer(linear, honest, reference, calibration.temperature, settings.score)
    threshold = _fit_threshold(scorer, honest, settings)
    weight, bias = _in_place(linear, places, stats.n_classes, calibration.temperature)
    is_real = honest.source != "parametric"
    probs = (honest.logits / calibration.temperature).softmax(1)
    return Derived(
        stats=sorted_stats,
        places=torch.tensor(places),
        linear=linear,
        weight=weight,
        bias=bias,
        scorer=scorer,
        threshold=threshold,
        calibration=calibration,
        misfits=lac_scores(probs, honest.labels) if is_real else probs[:0, 0],
        misfit_weights=honest.weights if is_real else probs[:0, 0],
        notes=_notes(sorted_stats, honest, threshold, scorer, settings),
        warning=_warning(sorted_stats, honest, settings),
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
        *_before_and_after(honest, temperature),
        reason=reason,
    )


def _before_and_after(honest: Honest, temperature: float) -> list[float]:
    """Log loss, squared error and calibration error, each before and after the temperature."""
    of = measures.log_loss, measures.brier_score, measures.expected_calibration_error
    found = []
    for t in (1.0, temperature):
        probs = (honest.logits / t).softmax(1)
        found.append([measure(probs, honest.labels, weights=honest.weights) for measure in of])
    return [value for pair in zip(*found, strict=True) for value in pair]


def _scorer(
    linear: LinearClassifier, honest: Honest, reference: Reference, temperature: float, score: str
) -> Scorer:
    """The score with its parts standardised; parts that cannot be had are left out."""
    wanted = _wanted(honest, score)
    as_it_is = wanted == (score,)
    standards = [
        (part, 0.0, 1.0) if as_it_is else (part, *_standard(part, honest, temperature))
        for part in wanted
    ]
    return Scorer(linear, reference, temperature, tuple(standards))


def _wanted(honest: Honest, score: str) -> tuple[str, ...]:
    """The parts of a score, without those that cannot be had."""
    wanted = _COMBINED if score == "combined" else (score,)
    if "knn" in wanted and bool(honest.knn.isinf().any()):
        wanted = ("mahalanobis",) if score == "knn" else ("mahalanobis", "relative")
    if len(wanted) > 1 and honest.logits.shape[1] == 1:  # nothing to be relative to
        wanted = tuple(part for part in wanted if part != "relative")
    return wanted


def _standard(part: str, honest: Honest, temperature: float) -> tuple[float, float]:
    """Mean and spread of one part of several."""
    scores = _raw(part, honest, temperature)
    loc, spread = location_scale(scores, honest.weights)
    return loc, spread if _differ(scores) else _guessed_spread(loc)


def _raw(part: str, judged: Judged | Honest, temperature: float) -> Tensor:
    if part == "msp":
        return max_softmax_score(judged.logits / temperature)
    if part == "energy":
        return energy_score(judged.logits, temperature)
    return getattr(judged, part)


def _fit_threshold(scorer: Scorer, honest: Honest, settings: Settings) -> Threshold:
    scores = scorer.of(honest)
    if not bool(scores.isfinite().all()):
        raise OodInternalError(
            f"the {settings.score!r} score of {int((~scores.isfinite()).sum())} known images is "
            "not finite although their features are; choose another `score`"
        )
    known = {"false_alarm_rate": settings.false_alarm_rate, "guarantee": settings.guarantee}
    if honest.source == "parametric":
        return fit_threshold([], model=location_scale(scores, honest.weights), **known)
    return fit_threshold(
        scores, weights=honest.weights, source=honest.source, model=_lone_model(scores), **known
    )


def _lone_model(scores: Tensor) -> tuple[float, float] | None:
    """Mean and a spread to assume of scores that show none themselves: one, or two of a pair."""
    loc = float(scores.mean())
    return None if _differ(scores) else (loc, max(1.0, _guessed_spread(loc)))


def _differ(scores: Tensor) -> bool:
    return float(scores.amax() - scores.amin()) > 1e-9 * float(scores.abs().amax())


def _guessed_spread(loc: float) -> float:
    """A generous spread of scores around this mean; 1 around 0."""
    return 0.3 * abs(loc) or 1.0


def _notes(
    stats: ClassStatistics,
    honest: Honest,
    threshold: Threshold,
    scorer: Scorer,
    settings: Settings,
) -> tuple[str, ...]:
    """What a person should know about how threshold and temperature came about."""
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


def _warning(stats: ClassStatistics, honest: Honest, settings: Settings) -> str:
    if honest.source != "parametric":
        return ""
    forgetful = not settings.memory
    why = "no features are remembered (memory=0)" if forgetful else _ALIKE
    return (
        f"{why}, and there are no validation images: the threshold and the temperature rest on an "
        "assumed distribution, not on images; give validation images"
        + ("" if forgetful else " or more images of a class")
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
