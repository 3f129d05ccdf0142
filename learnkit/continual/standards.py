"""Standards of an OOD score, mean and spread of its parts on held-out images, and its threshold."""

from learnkit.continual.held_out import HeldOut
from learnkit.continual.settings import Settings
from learnkit.errors import OodInternalError
from learnkit.uncertainty.checks import Array
from learnkit.uncertainty.ood import (
    combine,
    energy_score,
    location_scale,
    max_softmax_score,
    standardize,
)
from learnkit.uncertainty.threshold import Threshold, fit_threshold

Standards = tuple[tuple[str, float, float], ...]
_COMBINED = ("mahalanobis", "relative", "knn")  # the parts of the default score


def fit_standards(held_out: HeldOut, temperature: float, score: str) -> Standards:
    """(part, mean, spread) of every part of a score; parts that cannot be had are left out.

    A score of one part is taken as it is: mean 0 and spread 1.
    """
    parts = _parts(held_out, score)
    if parts == (score,):
        return ((score, 0.0, 1.0),)
    standards = []
    for part in parts:
        scores = _raw(part, held_out, temperature)
        loc, spread = location_scale(scores, held_out.weights)
        standards.append((part, loc, spread if _differ(scores) else _guessed_spread(loc)))
    return tuple(standards)


def held_out_scores(held_out: HeldOut, standards: Standards, temperature: float) -> Array:
    """OOD scores (R,) of held-out images."""
    return combine(
        *(
            standardize(_raw(part, held_out, temperature), loc, spread)
            for part, loc, spread in standards
        )
    )


def fit_score_threshold(scores: Array, held_out: HeldOut, settings: Settings) -> Threshold:
    """The threshold of an OOD score, as the settings want it, from scores of held-out images."""
    finite = abs(scores) < float("inf")
    if not finite.all():
        raise OodInternalError(
            f"the {settings.score!r} score of {int((~finite).sum())} known images is "
            "not finite although their features are; choose another `score`"
        )
    known = {"false_alarm_rate": settings.false_alarm_rate, "guarantee": settings.guarantee}
    if held_out.source == "parametric":
        return fit_threshold([], model=location_scale(scores, held_out.weights), **known)
    model = None
    if not _differ(scores):  # one, or two of a pair: a spread is assumed
        loc = float(scores.mean())
        model = loc, max(1.0, _guessed_spread(loc))
    return fit_threshold(
        scores, weights=held_out.weights, source=held_out.source, model=model, **known
    )


def _parts(held_out: HeldOut, score: str) -> tuple[str, ...]:
    """The parts of a score, without those that cannot be had."""
    wanted = _COMBINED if score == "combined" else (score,)
    if "knn" in wanted and held_out.knn.max() == float("inf"):
        wanted = ("mahalanobis",) if score == "knn" else ("mahalanobis", "relative")
    if len(wanted) > 1 and held_out.logits.shape[1] == 1:  # nothing to be relative to
        wanted = tuple(part for part in wanted if part != "relative")
    return wanted


def _raw(part: str, held_out: HeldOut, temperature: float) -> Array:
    if part == "msp":
        return max_softmax_score(held_out.logits / temperature)
    if part == "energy":
        return energy_score(held_out.logits, temperature)
    return getattr(held_out, part)


def _differ(scores: Array) -> bool:
    return float(scores.max() - scores.min()) > 1e-9 * float(abs(scores).max())


def _guessed_spread(loc: float) -> float:
    """A generous spread of scores around this mean; 1 around 0."""
    return 0.3 * abs(loc) or 1.0
