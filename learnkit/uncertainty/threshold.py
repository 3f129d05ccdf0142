"""The threshold above which an image counts as out of distribution: fitted, or set by hand.

It is fitted as a conformal quantile or, where scores are too few, as a prediction limit of normally
distributed ones.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from learnkit.errors import UncertaintyError, number_of
from learnkit.uncertainty.checks import (
    Array,
    as_floats,
    check_choice,
    check_rate,
    check_score,
    check_scores,
    check_weights,
)
from learnkit.uncertainty.conformal import allowed_above, first_with_little_above, sorted_together
from learnkit.uncertainty.ood import BLANK_SCORE, location_scale

_ALIKE = 1e-9  # relative difference that rounding may make
# of the continued fraction: what stands for 0, when it is exact, and when it is left
_TINY, _PRECISION, _MAX_TERMS = 1e-300, 1e-16, 10_000


def fit_threshold(
    scores: Any,
    *,
    false_alarm_rate: float = 0.05,
    guarantee: str = "loo",
    weights: Any = None,
    delta: float = 0.05,
    source: str = "leave-one-out",
    model: tuple[float, float] | None = None,
    n_images: int | None = None,
    n_independent: int | None = None,
) -> Threshold:
    """Threshold that flags at most `false_alarm_rate` of images like those the scores are of.

    The scores must be of images the detector has not learned from: validation images, or
    leave-one-out scores. In-sample scores flag nearly every fresh image.

    Args:
        scores: finite scores (n,), higher = further out of distribution.
        false_alarm_rate: wanted share of known images flagged.
        guarantee: "split": at most that share on average over draws of the scores, exact for
            images drawn alike; "loo": the same quantile of leave-one-out scores, close to it but
            without a proof; "pac": at most that share with probability `1 - delta` for these very
            scores.
        weights: of the scores, for instance (share of the class) / (scores of the class); all
            alike if None.
        delta: see `guarantee`.
        source: "leave-one-out", "validation" or "validation and leave-one-out", for the record.
        model: (mean, standard deviation) of the scores known beforehand, for want of two scores
            that differ.
        n_images: how many images the scores are of, which decides whether they are too few; all if
            None.
        n_independent: how many independent scores say as much about their spread; all if None.

    Returns:
        The quantile with the new image counted in. If the scores are too few for the rate (n below
        `1 / false_alarm_rate - 1`), the source is "parametric": the upper prediction limit of a
        normal distribution, and not below the largest score.

    Raises:
        UncertaintyError: scores that are not finite, rates outside 0..1, fewer than two scores
            without `model`, or so many blank images that the quantile would be one.

    Source: Vovk et al., "Algorithmic learning in a random world", 2005 (quantile); Tibshirani et
    al., "Conformal prediction under covariate shift", 2019 (weights); Vovk, "Conditional validity
    of inductive conformal predictors", 2012 (pac).

    >>> fit_threshold(range(19), source="validation", guarantee="split").value
    18.0
    """
    scores = check_scores(scores)
    rate = check_rate(false_alarm_rate, name="false_alarm_rate")
    delta = check_rate(delta, name="delta")
    check_choice(guarantee, GUARANTEES[:3], name="guarantee")
    check_choice(source, SOURCES[:3], name="source")
    # sorted before any sum: the order of the images must not show in the last bit
    scores, weights = sorted_together(scores, check_weights(weights, len(scores)))
    n_images = len(scores) if n_images is None else n_images
    wanted = rate, guarantee, delta
    allowed = allowed_above(weights, *wanted)
    if allowed is None or allowed_above(np.ones(n_images), *wanted) is None:
        return _parametric(scores, weights, rate, model, (n_images, n_independent))
    value = first_with_little_above(scores, weights, allowed)
    # blank images do no harm unless the quantile would be the mark that they bear
    if value >= BLANK_SCORE:
        raise UncertaintyError(
            f"`scores` has {int((scores >= BLANK_SCORE).sum())} blank images among {len(scores)},"
            f" more than the false alarms allowed ({rate:g}); take them out of the data"
        )
    return Threshold(
        value=value,
        source=source,
        n=len(scores),
        false_alarm_rate=rate,
        guarantee=guarantee,
        delta=delta if guarantee == "pac" else None,
        statement=_statement(guarantee, source, rate, delta, n_images),
        calibration_scores=scores,
        calibration_weights=weights,
    )


def manual_threshold(value: float, before: Threshold | None = None) -> Threshold:
    """Threshold at a value of your choice; p-values stay ranks among the scores of `before`.

    Raises:
        UncertaintyError: the value is no finite number.
    """
    value = check_score(value, name="ood_threshold")  # as it is called where it is set
    kept = ("n", "calibration_scores", "calibration_weights") if before is not None else ()
    known = {name: getattr(before, name) for name in kept}
    return Threshold(value=value, source="manual", statement="set by hand", **known)


def _parametric(
    scores: Array,
    weights: Array,
    rate: float,
    model: tuple[float, float] | None,
    images: tuple[int, int | None],
) -> Threshold:
    """Return the threshold of a normal distribution of the sorted scores that are not blank.

    `images` is how many the scores are of, and how many independent ones say as much.
    """
    n_images, n_independent = images
    n_images -= len(scores) - int((scores < BLANK_SCORE).sum())
    # marks of 1e30 would make up all of the mean and the spread
    shown = scores < BLANK_SCORE
    scores, weights = scores[shown], weights[shown]
    loc, scale, n_fitted = _normal(scores, weights, model)
    value, spread = prediction_limit(loc, scale, n_fitted, rate)
    if n_independent is not None and 2 <= n_independent < n_fitted and rate < 0.5:
        further, _ = prediction_limit(loc, scale, n_independent, rate)
        # p-values, of as many degrees of freedom as there are scores, are the rate at the limit
        value, spread = further, spread * (further - loc) / (value - loc)
    return Threshold(
        value=max([value, *scores[-1:].tolist()]),
        source="parametric",
        n=len(scores),
        false_alarm_rate=rate,
        statement=(
            f"assumes normally distributed scores: {n_images} are too few to promise a"
            f" false-alarm rate of {rate:g} without assuming a distribution"
        ),
        calibration_scores=scores,
        calibration_weights=weights,
        loc=loc,
        scale=spread,
    )


def _normal(
    scores: Array, weights: Array, model: tuple[float, float] | None
) -> tuple[float, float, int]:
    """Return mean, standard deviation, and of how many sorted scores: 0 if it is the model."""
    if len(scores) < 2:
        if model is None:
            raise UncertaintyError(
                f"`scores` has {number_of(len(scores), 'value')}; a threshold needs two: give "
                "more images of"
                " known classes, or set the threshold by hand"
            )
        return *model, 0
    loc, scale = location_scale(scores, weights)
    # what rounding leaves between equal scores is no spread
    alike = scores[-1] - scores[0] <= _ALIKE * np.abs(scores).max()
    if alike and model is not None:
        scale = model[1]
    return loc, scale, len(scores)


def prediction_limit(loc: float, scale: float, n: int, rate: float) -> tuple[float, float]:
    """Value the next of a normal sample exceeds with probability `rate`, and its spread.

    Args:
        loc: mean of the sample, or of the distribution if `n` is 0.
        scale: standard deviation, of the sample with n in the denominator.
        n: size of the sample; 0 if the distribution is known.
        rate: in 0..1.

    Returns:
        The limit, and the scale for which `(value - loc) / scale` has Student's distribution with
        n - 1 degrees of freedom (the normal one if `n` is 0).
    """
    from scipy.special import ndtri, stdtrit  # where a threshold is fitted; not to predict

    if n == 0:
        return loc - scale * float(ndtri(rate)), scale
    # s sqrt(1 + 1/n), where scale^2 = s^2 (n - 1) / n
    spread = scale * math.sqrt((n + 1) / (n - 1))
    return loc - spread * float(stdtrit(n - 1, rate)), spread


def _statement(guarantee: str, source: str, rate: float, delta: float, n: int) -> str:
    """Return the promise in words; nothing is proven of scores that are not of fresh images."""
    if guarantee == "loo":
        return f"about {rate:.3g} of the images like these {n} are flagged (no proof)"
    split = guarantee == "split"
    how = "on average over such calibration sets" if split else f"with probability {1 - delta:.3g}"
    doubt = "" if source == "validation" else ", as far as leaving one out is like a fresh image"
    return f"at most {rate:.3g} of the images like these {n} are flagged, {how}{doubt}"


def joined_by_class(
    threshold: Threshold, n_images: Sequence[int], fitted: Sequence[Threshold], n_classes: int
) -> Threshold:
    """A threshold for all classes that promises no more than those `fitted` for each of some.

    Args:
        threshold: for all, its calibration scores shifted class by class.
        n_images: how many images these are of, and those of `fitted` that are ranks.
        fitted: those of the classes with held-out images enough.
        n_classes: all of them; what the others have is guessed.
    """
    proven = [one for one in fitted if one.source != "parametric"]
    n, rate = n_images[1], threshold.false_alarm_rate
    if not proven:
        said = (
            f"assumes normally distributed scores: {n_images[0]} are too few to promise a "
            f"false-alarm rate of {rate:g} in every class without assuming a distribution"
        )
        said = f"class by class, {said}"
        return replace(threshold, guarantee="none", delta=None, statement=said)
    # of two kinds of images together nothing is proven, nor of a class left out one by one
    sources = {one.source for one in proven}
    source = sources.pop() if len(sources) == 1 else SOURCES[2]
    said = _statement(threshold.guarantee, source, rate, threshold.delta or 0.0, n)
    if n_guessed := n_classes - len(proven):
        said += f" ({n_guessed} of {n_classes} classes: as far as scores are normally distributed)"
    return replace(threshold, source=source, statement=f"class by class, {said}")


SOURCES = ("validation", "leave-one-out", "validation and leave-one-out", "parametric", "manual")


GUARANTEES = ("loo", "split", "pac", "none")


@dataclass(frozen=True)
class Threshold:
    """The score above which an image is flagged as out of distribution (OOD).

    Attributes:
        value: an image is flagged if its score is above this.
        source: where it comes from: "validation", "leave-one-out", "validation and leave-one-out",
            "parametric" (a distribution was assumed, because the scores were too few) or "manual".
        n: number of calibration scores.
        false_alarm_rate: wanted share of known images flagged; None if manual.
        guarantee: what holds of it, "loo", "split" or "pac"; "none" if parametric or manual.
        delta: with "pac", the probability that the promise fails.
        statement: the promise in words.
        calibration_scores: sorted, float64 (n,); p-values are ranks among them.
        calibration_weights: their weights, float64 (n,).
        loc: mean of the assumed normal distribution, for p-values of a parametric threshold.
        scale: its standard deviation.
    """

    value: float
    source: str
    n: int = 0
    false_alarm_rate: float | None = None
    guarantee: str = "none"
    delta: float | None = None
    statement: str = ""
    # not compared: `==` of arrays has no single truth value and would raise
    calibration_scores: Array = field(
        default_factory=lambda: np.zeros(0), repr=False, compare=False
    )
    calibration_weights: Array = field(
        default_factory=lambda: np.zeros(0), repr=False, compare=False
    )
    loc: float | None = None
    scale: float | None = None

    def __float__(self) -> float:
        return self.value

    def is_ood(self, scores: Any) -> Array:
        """Whether each score is above the threshold, bool of the same shape."""
        return as_floats(scores) > self.value

    def p_values(self, scores: Any) -> Array:
        """Probability, float64 in 0..1, that a known image scores at least this; small = OOD.

        The rank among the calibration scores, the new image counted with them. A parametric
        threshold adds the tail of its distribution beyond them; a manual one without calibration
        scores knows nothing: NaN.
        """
        scores = as_floats(scores)
        if self.source != "parametric":
            return self._rank(scores) if self.n else np.full_like(scores, math.nan)
        # Student's distribution of a fitted spread; the normal one of a spread known beforehand
        tails = [
            student_tail(z, self.n - 1) if self.n > 1 else math.erfc(z / math.sqrt(2)) / 2
            for z in np.ravel((scores - self.loc) / self.scale).tolist()
        ]
        tail = np.reshape(np.array(tails, np.float64), scores.shape)
        if not self.n:
            return tail
        # beyond the largest score the rank falls no further, and the tail alone goes on
        seen = scores <= self.calibration_scores[-1]
        return np.where(seen, np.maximum(tail, self._rank(scores)), tail)

    def p_value(self, scores: Any) -> Array:
        """The former name of `p_values`."""
        warnings.warn("`p_value` is now called `p_values`", DeprecationWarning, stacklevel=2)
        return self.p_values(scores)

    def _rank(self, scores: Array) -> Array:
        """Return the share of weight at or above each score, the new image's own counted in."""
        weights = self.calibration_weights
        below = np.concatenate([[0.0], weights.cumsum()])
        own = weights.max() if self.guarantee == "split" else weights.mean()  # as `allowed_above`
        rank = np.searchsorted(self.calibration_scores, scores)
        return (below[-1] - below[rank] + own) / (below[-1] + own)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain Python values; `from_dict` reads it back."""
        names = [name for name in self.__dataclass_fields__ if not name.startswith("calibration_")]
        arrays = {
            "calibration_scores": self.calibration_scores.tolist(),
            "calibration_weights": self.calibration_weights.tolist(),
        }
        return {name: getattr(self, name) for name in names} | arrays

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Threshold:
        """Return the threshold `to_dict` described.

        Raises:
            UncertaintyError: keys are missing or unknown, or a value breaks a rule.
        """
        names = set(cls.__dataclass_fields__)
        if not isinstance(values, dict) or set(values) != names:
            odd = sorted(names ^ set(values)) if isinstance(values, dict) else type(values).__name__
            raise UncertaintyError(f"a threshold needs exactly its own keys; look at {odd}")
        return _checked(cls(**values))


def _checked(threshold: Threshold) -> Threshold:
    """Return a threshold read from data, or raise UncertaintyError at what none can have."""
    check_choice(threshold.source, SOURCES, name="source")
    check_choice(threshold.guarantee, GUARANTEES, name="guarantee")
    check_score(threshold.value, name="threshold")
    if threshold.false_alarm_rate is not None:
        check_rate(threshold.false_alarm_rate, name="false_alarm_rate")
    scores = check_scores(threshold.calibration_scores, name="calibration_scores")
    weights = check_weights(threshold.calibration_weights, len(scores))
    if threshold.n != len(scores) or (np.diff(scores) < 0).any():
        raise UncertaintyError(
            f"`calibration_scores` must be the {threshold.n!r} sorted scores the threshold counts"
        )
    if threshold.source == "parametric":
        scale = check_scores([threshold.loc, threshold.scale], name="loc, scale")[1]
        if scale <= 0:
            raise UncertaintyError(f"`scale` is {scale:g}; a spread is above 0")
    return replace(threshold, calibration_scores=scores, calibration_weights=weights)


def student_tail(value: float, dof: int) -> float:
    """Probability that Student's t with `dof` degrees of freedom exceeds `value`.

    >>> round(student_tail(0.5, 1), 12) == round(0.5 - math.atan(0.5) / math.pi, 12)
    True
    """
    # not scipy's: p-values belong to predictions, and predicting imports no scipy
    squared = value * value
    # above 1.3e154 the square is infinite; by a square of 0 the next line would divide
    if squared == 0 or math.isinf(squared):
        return 0.5 if squared == 0 else float(value < 0)
    x, rest = dof / (dof + squared), 1 / (1 + dof / squared)
    half = _incomplete_beta(dof / 2, 0.5, x, rest) / 2
    return half if value > 0 else 1 - half


def _incomplete_beta(a: float, b: float, x: float, rest: float) -> float:
    """Regularised incomplete beta function at `x`; `rest` is 1 - x without its rounding."""
    if x <= 0 or rest <= 0:
        return float(rest <= 0)
    # in logarithms: the gamma function overflows from 172 on
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    front = math.exp(log_front + a * math.log(x) + b * math.log(rest))
    # the fraction converges fast on this side alone; else I_x(a, b) = 1 - I_(1-x)(b, a)
    if x < (a + 1) / (a + b + 2):
        return front * _fraction(a, b, x) / a
    return 1 - front * _fraction(b, a, rest) / b


def _fraction(a: float, b: float, x: float) -> float:
    """Continued fraction of the incomplete beta function, by Lentz's method.

    Source: Press et al., "Numerical recipes", 3rd edition, 2007, section 6.4.
    """
    c, d = 1.0, 1 / _away(1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, _MAX_TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d, c = 1 / _away(1 + term * d), _away(1 + term / c)
            value *= c * d
        if abs(c * d - 1) < _PRECISION * 4:
            break
    return value


def _away(value: float) -> float:
    """`value`, never 0."""
    return value if abs(value) > _TINY else _TINY
