"""Temperature scaling: one number divides the logits, so that confidences mean what they say.

The temperature with the smallest log loss is found by Newton's method.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from learnkit.errors import UncertaintyError, number_of
from learnkit.evaluation import measures
from learnkit.evaluation.inputs import as_array, check_flags, check_labels, check_same_length
from learnkit.report.document import Document, Paragraph, frame_table
from learnkit.report.notebook import Shown
from learnkit.uncertainty.checks import (
    Array,
    check_choice,
    check_logits,
    check_weights,
    refuse,
)
from learnkit.uncertainty.ood import sigmoid, softmax

if TYPE_CHECKING:
    import pandas as pd

SOURCES = ("validation", "leave-one-out", "validation and leave-one-out", "none")
N_BINS = 15
_CHUNK = 2**15  # logits worked on at once: what lies about fits a processor's cache
_IMPOSSIBLE = -1e30  # for -inf: of probability 0 as well, but 0 times it is 0
_PRECISE = 1e-6  # Newton's last step: the next would be of its square


@dataclass(frozen=True)
class TemperatureFit(Shown):
    """A temperature, what it was fitted on and what it changed.

    Attributes:
        temperature: divides the logits; 1 leaves them as they are.
        source: "validation", "leave-one-out", "validation and leave-one-out", or "none" if nothing
            was fitted.
        n: number of images.
        log_loss_before: mean log loss in nats at temperature 1.
        log_loss_after: the same at `temperature`.
        brier_before: Brier score at temperature 1.
        brier_after: the same at `temperature`.
        ece_before: expected calibration error at temperature 1, 15 bins of equal width, closed on
            the right.
        ece_after: the same at `temperature`.
        reason: why nothing was fitted, or why the temperature is less than it could be; else "".
    """

    temperature: float = 1.0
    source: str = "none"
    n: int = 0
    log_loss_before: float = math.nan
    log_loss_after: float = math.nan
    brier_before: float = math.nan
    brier_after: float = math.nan
    ece_before: float = math.nan
    ece_after: float = math.nan
    reason: str = ""

    @property
    def is_fitted(self) -> bool:
        """Whether the temperature comes from data."""
        return self.source != "none"

    def table(self) -> pd.DataFrame:
        """Log loss, Brier score and calibration error, before and after."""
        import pandas as pd

        names = {"log_loss": "log loss", "brier": "Brier score", "ece": f"ECE ({N_BINS} bins)"}
        rows = {
            text: [getattr(self, f"{name}_{when}") for when in ("before", "after")]
            for name, text in names.items()
        }
        return pd.DataFrame.from_dict(rows, orient="index", columns=["before", "after"])

    def document(self) -> Document:
        """The temperature, where it comes from, and what it changed."""
        origin = (
            f"{self.source}, {number_of(self.n, 'image')}"
            if self.is_fitted
            else f"none: {self.reason}"
        )
        about = Paragraph(f"Temperature {self.temperature:.4g} ({origin})")
        return Document([about, frame_table(self.table())])

    def to_dict(self) -> dict[str, Any]:
        """Plain values, NaN as None; `from_dict` reads it back."""
        values = asdict(self)
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in values.items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TemperatureFit:
        """Return the calibration `to_dict` described.

        Raises:
            UncertaintyError: keys are missing or unknown, or a value breaks a rule.
        """
        names = {f.name for f in fields(cls)}
        if not isinstance(values, dict) or set(values) != names:
            odd = sorted(names ^ set(values)) if isinstance(values, dict) else type(values).__name__
            raise UncertaintyError(f"a calibration needs exactly its own keys; look at {odd}")
        _check_temperature(values["temperature"])
        check_choice(values["source"], SOURCES, name="source")
        for name, value in values.items():
            _check_value(name, value)
        return cls(**{name: math.nan if v is None else v for name, v in values.items()})


def fit_temperature(
    logits: Any,
    targets: Any,
    *,
    weights: Any = None,
    bounds: tuple[float, float] = (0.05, 20.0),
    source: str = "validation",
) -> TemperatureFit:
    """Temperature with the smallest mean log loss on these images, the only minimum there is.

    Where no temperature can be learned nothing is fitted: the result has temperature 1, source
    "none" and a `reason`. So it is without images, with one class only, when every prediction is
    right (any lower temperature would fit better) and when every one is wrong.

    Args:
        logits: (N, C) of images the network has not learned from; -inf for classes without images.
        targets: class numbers (N,), or zeros and ones (N, C) if an image may have several labels:
            then the sigmoid takes the place of the softmax.
        weights: of the images (N,), for log loss, Brier score and calibration error alike.
        bounds: smallest and largest temperature.
        source: "validation", "leave-one-out" or "validation and leave-one-out", for the record.

    Raises:
        UncertaintyError: NaN or +inf among the logits, a truth of logit -inf, weights not above
            0, or bounds out of order.
        EvaluationError: class numbers outside 0..C-1, or lengths that differ.

    Source: Guo et al., "On calibration of modern neural networks", 2017.

    >>> round(fit_temperature([[2.0, 0.0]] * 4, [0, 0, 0, 1]).temperature, 4)  # 2 / log(3)
    1.8205
    """
    check_choice(source, SOURCES[:3], name="source")
    low, high = _check_bounds(bounds)
    logits, targets = _check_pair(logits, targets)
    weights = check_weights(weights, len(logits))
    rows, classes, row_weights = _as_cases(logits, targets, weights)
    reason = _why_not(rows, classes)
    if reason:
        return TemperatureFit(n=len(logits), reason=reason)
    loss = LogLoss(rows, _of_targets(rows, classes), row_weights)
    # in the factor 1 / T, in which the log loss is convex; in T it is not
    temperature = 1 / best_factor(loss, 1 / high, 1 / low)
    # 1e-9: a bound that was turned over twice may be off by rounding
    inside = low * (1 + 1e-9) < temperature < high * (1 - 1e-9)
    return TemperatureFit(
        temperature,
        source,
        len(logits),
        *before_and_after(logits, targets, weights, temperature),
        reason="" if inside else f"the best temperature lies beyond the bound {temperature:.4g}",
    )


def _check_temperature(temperature: float) -> float:
    """Return a finite number above 0 as a float, or raise UncertaintyError."""
    number = isinstance(temperature, (int, float)) and not isinstance(temperature, bool)
    if not number or not 0 < temperature < math.inf:
        raise UncertaintyError(f"`temperature` is {temperature!r}; it divides logits: above 0")
    return float(temperature)


def _check_bounds(bounds: tuple[float, float]) -> tuple[float, float]:
    """Return (smallest, largest) temperature, or raise UncertaintyError."""
    low, high = map(_check_temperature, bounds)
    if low >= high:
        raise UncertaintyError(f"`bounds` are {bounds}; give (smallest, largest) temperature")
    return low, high


def _check_value(name: str, value: Any) -> None:
    """Raise UncertaintyError unless a field read from data is what it can be."""
    if name == "n":
        fits = type(value) is int and value >= 0
    elif name in ("reason", "source"):
        fits = isinstance(value, str)
    else:
        fits = value is None or (type(value) in (int, float) and 0 <= value < math.inf)
    if not fits:
        raise UncertaintyError(f"`{name}` is {value!r}, which no calibration has")


def _check_pair(logits: Any, targets: Any) -> tuple[Array, Array]:
    logits = check_logits(logits)
    multi_label = as_array(targets).ndim == 2
    check = check_flags if multi_label else check_labels
    targets = check(targets, logits.shape[1])
    check_same_length(logits=logits, targets=targets)
    return logits, targets


def _as_cases(logits: Array, targets: Array, weights: Array) -> tuple[Array, Array, Array]:
    """Return (logits, class numbers, weights) with one truth a row; each row's largest logit is 0.

    A label that may be there or not is a case of two classes with the logits (0, l).
    """
    if targets.ndim == 2:
        weights = np.repeat(weights, logits.shape[1])
        logits = np.stack([np.zeros_like(logits), logits], axis=2).reshape(-1, 2)
        targets = targets.astype(np.int64).ravel()
    logits = logits - logits.max(1, keepdims=True) if len(logits) else logits
    truth = _of_targets(logits, targets)
    rule = "a class without images cannot be the truth: leave those images out"
    refuse(truth, np.isneginf(truth), "logits", f"{rule} (the logit of the truth)")
    return logits, targets, weights


def _of_targets(logits: Array, targets: Array) -> Array:
    return np.take_along_axis(logits, targets[:, None], axis=1)[:, 0]


def _why_not(logits: Array, targets: Array) -> str:
    """Return why no temperature can be learned, or ""."""
    if not len(logits):
        return "no images to calibrate on"
    if logits.shape[1] < 2:
        return "one class only: its probability is always 1"
    if not logits.any():
        return "the logits of every image are all alike"
    n_right = int((logits.argmax(1) == targets).sum())
    if n_right in (0, len(logits)):
        word = "right" if n_right else "wrong"
        return f"all {len(logits)} predictions are {word}, which says nothing about confidence"
    return ""


def before_and_after(
    logits: Array, targets: Array, weights: Array, temperature: float
) -> list[float]:
    """Return log loss, Brier score and ECE, each before and after the temperature.

    In the order of the fields of `TemperatureFit`. Targets of two dimensions are flags, as for
    `fit_temperature`.
    """
    as_probs = sigmoid if targets.ndim == 2 else softmax
    both = [as_probs(logits), as_probs(logits / temperature)]
    names = measures.log_loss, measures.brier_score, measures.expected_calibration_error
    return [measure(probs, targets, weights=weights) for measure in names for probs in both]


class LogLoss(NamedTuple):
    """Log loss of `softmax(b * logits + offset)` as a function of b, up to a constant.

    `logits (N,C)`, the largest of each row 0, -inf for classes that cannot be; `truth (N,)` those
    of the right class; `weights (N,)`; `offset (C,)`, which b does not touch.
    """

    logits: Array
    truth: Array
    weights: Array
    offset: Array | float = 0.0

    def slope(self, factor: float) -> tuple[float, float]:
        """First and second derivative at `factor`."""
        slope = curvature = 0.0
        step = max(1, _CHUNK // self.logits.shape[1])
        for start in range(0, len(self.logits), step):
            part = slice(start, start + step)
            l = np.maximum(self.logits[part], _IMPOSSIBLE)
            odds = factor * l
            odds += self.offset
            odds -= odds.max(1, keepdims=True)
            np.exp(odds, out=odds)
            total = odds.sum(1)
            # log sum exp has the mean logit under the softmax for slope, their variance for bend
            odds *= l
            mean, square = odds.sum(1) / total, np.einsum("ij,ij->i", odds, l) / total
            slope += float(self.weights[part] @ (mean - self.truth[part]))
            curvature += float(self.weights[part] @ (square - mean * mean))
        n = float(self.weights.sum())
        return slope / n, curvature / n


class Expected(NamedTuple):
    """The factor before any sample is seen: about `factor`, off by `spread` in its log.

    `n` is how many samples the log loss is the mean of; the more, the less this counts.
    """

    factor: float
    spread: float
    n: float


def best_factor(
    loss: LogLoss,
    low: float,
    high: float,
    *,
    start: float = 1.0,
    expected: Expected | None = None,
) -> float:
    """Return b = 1/T in low..high with the smallest log loss: Newton's method in a bracket.

    The log loss is convex in b, so its slope has one zero, or the best b is one of the ends. Steps
    are taken in log b, in which it bends alike over decades. An `expected` factor adds a penalty:
    half the squared distance from it in log b, in spreads.
    """
    # so that an end comes back as it was given, not as the exponential of its logarithm
    bounds = {math.log(low): low, math.log(high): high}
    ends, tested = sorted(bounds), [False, False]
    place = min(max(math.log(start), ends[0]), ends[1])
    for _ in range(100):
        slope, bend = _in_log(loss, place, expected)
        # a slope above 0 says that the minimum is below: this place is the upper end from now on
        ends[slope > 0], tested[slope > 0] = place, True
        # in log b the loss may bend down far from its minimum: then a step by a factor of e^2
        step = slope / bend if bend > 0 else math.copysign(2.0, slope)
        next_ = min(max(place - step, ends[0]), ends[1])
        # the step leads out of a bracket that is tested at both ends: halve it
        if all(tested) and next_ in ends:
            next_ = sum(ends) / 2
        if abs(next_ - place) <= _PRECISE:
            break
        place = next_
    return bounds.get(next_, math.exp(next_))


def _in_log(loss: LogLoss, place: float, expected: Expected | None) -> tuple[float, float]:
    """First and second derivative with respect to the logarithm of the factor."""
    # with b = e^s the derivatives are b L' and b^2 L'' + b L'
    factor = math.exp(place)
    slope, curvature = (d * factor**k for k, d in enumerate(loss.slope(factor), start=1))
    pull = 1 / (expected.spread**2 * expected.n) if expected else 0.0
    off = place - math.log(expected.factor) if expected else 0.0
    return slope + pull * off, curvature + slope + pull
