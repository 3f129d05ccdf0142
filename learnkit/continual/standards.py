"""Standards of an OOD score, mean and spread of its parts on held-out images, and its threshold.

Where validation images and remembered ones left out disagree about the threshold, it is doubted.
"""

from dataclasses import replace

import numpy as np
from scipy.special import bdtrc, betaln, gammaln

from learnkit.continual.held_out import MIXED, HeldOut, mixed_alike
from learnkit.continual.settings import Settings
from learnkit.errors import OodInternalError
from learnkit.uncertainty.checks import Array
from learnkit.uncertainty.conformal import first_with_little_above, sorted_together
from learnkit.uncertainty.ood import (
    combine,
    energy_score,
    location_scale,
    max_softmax_score,
    standardize,
)
from learnkit.uncertainty.threshold import Threshold, fit_threshold, joined_by_class

Standards = tuple[tuple[str, float, float], ...]
_COMBINED = ("mahalanobis", "relative", "knn")  # the parts of the default score
# Two shares are looked at; of healthy changes about one in a hundred is then doubted.
_SIGNIFICANCE = 0.005
_CLEARLY = 0.001


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


def fit_per_class(
    scores: Array, held_out: HeldOut, settings: Settings, threshold: Threshold
) -> tuple[Threshold, Array]:
    """A threshold for the images predicted as each class, beside `threshold` for all.

    It is told by shifts (P,) to add to the scores of the images predicted as each class, which move
    its threshold to the one for all; the threshold that comes back is that one, its calibration
    scores shifted. A class as which fewer than two held-out images are predicted has no shift.

    Source: Vovk, Gammerman and Shafer, "Algorithmic learning in a random world", 2005, section 4.5,
    with the predicted class as the category.
    """
    predicted = held_out.logits.argmax(1)
    shifts, fitted, ranked = np.zeros(held_out.logits.shape[1]), [], []
    for place in range(len(shifts)):
        rows = np.flatnonzero(predicted == place)
        if len(rows) >= 2 and _differ(scores[rows]):
            own = fit_score_threshold(scores[rows], held_out.picked(rows), settings)
            shifts[place] = _shift(own.value, threshold.value)
            fitted.append(own)
            ranked += [rows] if own.source != "parametric" else []
    ordered = sorted_together(scores + shifts[predicted], held_out.weights)
    names = "n", "calibration_scores", "calibration_weights"
    new = dict(zip(names, (len(scores), *ordered), strict=True))
    # an image may be a row of two classes
    some = held_out.picked(np.sort(np.concatenate(ranked))) if ranked else held_out
    n_images = [_n_images(one, settings) for one in (held_out, some)]
    joined = joined_by_class(replace(threshold, **new), n_images, fitted, len(shifts))
    if settings.rules == 1:  # p-values follow from these
        kept = {name: getattr(threshold, name) for name in ("source", "guarantee", "delta")}
        joined = replace(joined, **kept)
    return joined, shifts


def _shift(value: float, to: float) -> float:
    """What moves `value` to `to`, and by rounding no further: it is not flagged itself."""
    found = to - value
    while value + found > to:
        found = np.nextafter(found, -np.inf)
    return found


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
    if settings.guarantee != "loo" and held_out.source == MIXED:
        # what is proven is proven of fresh images alone
        proven = _of_validation(scores, held_out, known)
        if proven is not None:
            return proven
    model = None
    if not _differ(scores):  # one, or two of a pair: a spread is assumed
        loc = float(scores.mean())
        model = loc, max(1.0, _guessed_spread(loc))
    n = _n_images(held_out, settings)
    known |= {"source": held_out.source, "model": model, "n_images": n}
    known["n_independent"] = _n_independent(n, held_out.n_fresh) if settings.rules > 1 else None
    return fit_threshold(scores, weights=held_out.weights, **known)


def _n_images(held_out: HeldOut, settings: Settings) -> int:
    """How many images the rows are of; by the first three rules each row counted as one."""
    return len(held_out.first_rows) if settings.rules > 3 else len(held_out)


def _n_independent(n_images: int, n_fresh: int) -> int:
    """How many independent images say as much about the spread of scores.

    Images left out one by one are judged by each other: of two of a class both scores are one
    distance, and of more they go together, too.
    """
    return max(2, n_fresh + -(-(n_images - n_fresh) // 2))


def _of_validation(scores: Array, held_out: HeldOut, known: dict) -> Threshold | None:
    """The threshold of validation images alone; None if a class has none, or they are too few."""
    mass = np.bincount(held_out.labels, held_out.weights)
    labels = held_out.labels[: held_out.n_fresh]
    n = np.bincount(labels, minlength=len(mass))
    if (n[mass > 0] == 0).any():
        return None
    found = fit_threshold(
        scores[: held_out.n_fresh],
        weights=(mass / np.maximum(n, 1))[labels],
        source="validation",
        model=(0.0, 1.0),  # of no consequence
        **known,
    )
    return None if found.source == "parametric" else found


def doubt(scores: Array, held_out: HeldOut, rate: float) -> str:
    """A sentence if one kind of held-out images is flagged by the other's threshold, else "".

    What the threshold of one kind flags of the other is at most by chance more than `rate`, if
    both are drawn alike: its probability follows a beta-binomial distribution. Of classes that
    both have, weighing alike: an easy class of which there is no validation image says nothing.

    Args:
        scores: OOD scores of the held-out images (R,).
        held_out: the images.
        rate: wanted share of false alarms.

    Source: Wilks, "Determination of sample sizes for setting tolerance limits", 1941.
    """
    n = held_out.n_fresh
    if not 0 < n < len(scores):
        return ""
    kinds = np.split(np.arange(len(scores)), [n])
    *alike, rows = mixed_alike(*(held_out.picked(kind) for kind in kinds))
    each = zip(kinds, rows, alike, strict=True)
    fresh, left = (
        (scores[kind[some]], found.weights, len(found.first_rows)) for kind, some, found in each
    )
    if not fresh[2]:
        return ""
    share, chance = _flagged(fresh, left, rate)
    if chance < _SIGNIFICANCE:
        return (
            f"{share:.0%} of the validation images are more unusual than {1 - rate:.0%} of the "
            "learned ones: the learned images are of another day, place or camera, or near copies "
            "of each other; learn images like the validation images too, and one of each burst"
        )
    share, chance = _flagged(left, fresh, rate)
    if chance < _SIGNIFICANCE:
        return (
            f"{share:.0%} of the learned images, left out, are more unusual than {1 - rate:.0%} of "
            "the validation images: these show less than what the classes look like; give others, "
            "drawn like the images to come"
        )
    return ""


def flagged_more(scores: Array, held_out: HeldOut, limit: float, rate: float) -> dict[int, float]:
    """{place: share of its held-out images above `limit`} of classes clearly above `rate`.

    By a binomial test of each class, of all of which one in a thousand finds a class by chance.
    """
    n_classes, each = held_out.logits.shape[1], held_out.first_rows
    labels = held_out.labels[each]
    n = np.bincount(labels, minlength=n_classes)
    above = np.bincount(labels, scores[each] > limit, n_classes)
    chance = bdtrc(above - 1, n, rate)  # of as many or more
    found = np.flatnonzero((above > 0) & (chance < _CLEARLY / n_classes))
    return {int(place): float(above[place] / n[place]) for place in found}


def _flagged(
    sample: tuple[Array, Array, int], by: tuple[Array, Array, int], rate: float
) -> tuple[float, float]:
    """Share of a sample above the limit of another, and its chance if alike.

    Both are (scores, weights, number of images).
    """
    values, weights = sorted_together(*by[:2])
    limit = first_with_little_above(values, weights, rate * weights.sum())
    above = sample[0] > limit
    n, n_by = (min(_effective(one[1]), one[2]) for one in (sample, by))
    share = float(sample[1] @ above / sample[1].sum())
    # the share beyond the k-th largest of n is distributed as Beta(k, n + 1 - k)
    exceeding = max(1.0, rate * n_by)
    return share, _beta_binomial_tail(round(share * n), n, exceeding, n_by + 1 - exceeding)


def _effective(weights: Array) -> int:
    """How many images of equal weight say as much."""
    # Kish's effective sample size
    return max(1, round(float(weights.sum() ** 2 / (weights**2).sum())))


def _beta_binomial_tail(k: int, n: int, a: float, b: float) -> float:
    """Probability of k or more of n under a beta-binomial distribution."""
    i = np.arange(k, n + 1)
    # in logarithms: numbers of ways overflow
    ways = gammaln(n + 1) - gammaln(i + 1) - gammaln(n - i + 1)
    return float(np.exp(ways + betaln(i + a, n - i + b) - betaln(a, b)).sum())


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
        return energy_score(held_out.logits, temperature) - held_out.shift
    return getattr(held_out, part)


def _differ(scores: Array) -> bool:
    return float(scores.max() - scores.min()) > 1e-9 * float(abs(scores).max())


def _guessed_spread(loc: float) -> float:
    """A generous spread of scores around this mean; 1 around 0."""
    return 0.3 * abs(loc) or 1.0
