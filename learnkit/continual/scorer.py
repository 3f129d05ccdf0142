"""The score that says how unusual an image is, and the threshold fitted to it."""

from dataclasses import dataclass

from torch import Tensor

from learnkit.continual.closed_form.linear import LinearClassifier
from learnkit.continual.held_out import Honest
from learnkit.continual.score_parts import Judged, Reference, judge
from learnkit.continual.settings import Settings
from learnkit.errors import OodInternalError
from learnkit.uncertainty.ood import (
    combine,
    energy_score,
    location_scale,
    max_softmax_score,
    standardize,
)
from learnkit.uncertainty.threshold import Threshold, fit_threshold

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


def fit_scorer(
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


def fit_scorer_threshold(scorer: Scorer, honest: Honest, settings: Settings) -> Threshold:
    """The threshold of a score, as the settings want it, on honest judgements."""
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
