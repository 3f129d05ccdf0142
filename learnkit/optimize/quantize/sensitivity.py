"""Sensitivity of layers to 8 bits, measured, and the search for the fewest to keep in float32."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

import numpy as np

from learnkit.optimize.quantize.bias import correct_biases, with_biases
from learnkit.optimize.quantize.graph import open_raw, outputs_of, to_int8
from learnkit.optimize.quantize.ranges import ActivationRanges, spread
from learnkit.report.progress import counted

Candidate = TypeVar("Candidate")


def relative_error(features: np.ndarray, exact: np.ndarray) -> float:
    """How far `features` are from `exact`, in units of the spread of `exact` over the images.

    Root mean square of both, over images and features (N, D): 0 is no change, 1 as far as images
    are from each other.
    """
    exact = exact.astype(np.float64)
    spread = np.square(exact - exact.mean(0)).sum()
    moved = np.square(features - exact).sum()
    return float(np.sqrt(moved / spread)) if spread else float(np.inf if moved else 0.0)


def sensitive_layers(
    layers: Sequence[str],
    features_with: Callable[[str], np.ndarray],
    exact: np.ndarray,
    progress: Callable[[int], object] | None = None,
) -> list[tuple[str, float]]:
    """Layers with the relative error of the features if that layer alone is quantised, worst first.

    Args:
        layers: names.
        features_with: features (N, D) of the sample images with one layer quantised.
        exact: features of the same images with none quantised.
        progress: called with 1 after each layer.
    """
    sensitivities = []
    for name in layers:
        sensitivities.append((name, relative_error(features_with(name), exact)))
        if progress is not None:
            progress(1)
    order = {name: index for index, name in enumerate(layers)}
    return sorted(sensitivities, key=lambda sensitivity: (-sensitivity[1], order[sensitivity[0]]))


def by_worth(sensitivities: Sequence[tuple[str, float]], n_passed: Mapping[str, int]) -> list[str]:
    """Layers in the order in which to keep them in float32: the most for what it costs first.

    Args:
        sensitivities: relative error by layer if it alone is quantised.
        n_passed: numbers that go in and come out of each layer for one image.

    >>> by_worth([("wide", 0.4), ("narrow", 0.3)], {"wide": 1_000_000, "narrow": 10_000})
    ['narrow', 'wide']
    """
    # Errors of layers add up in squares. The cost grows with the numbers that go in and come out,
    # which must be brought from 8 bits to float32 and back; their square root is taken for it. By
    # sensitivity alone, the fourth layer of a MobileNetV2 takes nearly twice the time of a batch;
    # going so, the first six take a tenth more at most, for as small an error.
    worth = {
        name: sensitivity**2 / math.sqrt(n_passed[name]) for name, sensitivity in sensitivities
    }
    return sorted(worth, key=worth.__getitem__, reverse=True)


def fewest(
    n: int, attempt: Callable[[int], Candidate], passes: Callable[[Candidate], bool]
) -> Candidate | None:
    """`attempt(k)` of the smallest k in 1..n that passes, if more never hurts; None if `n` fails.

    Doubles k until one passes, then halves the gap: about 2 log2(k) attempts.

    >>> fewest(26, attempt=lambda k: k, passes=lambda k: k >= 11)
    11
    >>> fewest(10, attempt=lambda k: k, passes=lambda k: k >= 11)
    """
    failed, k, best = 0, 1, None
    while best is None and failed < n:
        k = min(k, n)
        candidate = attempt(k)
        if passes(candidate):
            best = candidate
        else:
            failed, k = k, 2 * k
    while best is not None and k - failed > 1:
        middle = (failed + k) // 2
        candidate = attempt(middle)
        if passes(candidate):
            best, k = candidate, middle
        else:
            failed = middle
    return best


Criterion = Callable[[np.ndarray, np.ndarray | None], float]


class Attempt(Protocol):
    """What is known of a network in 8 bits."""

    kept: tuple[str, ...]
    error: float
    score: float | None


@dataclass(frozen=True)
class Tolerance:
    """What a network in 8 bits must keep to on the samples.

    Args:
        target: the least the criterion may give.
        max_error: what `relative_error` of the features may be.
        keep: keep just these layers in float32 and search for none.
        criterion: how good these features (n, D) and logits (n, C) or None of the samples used are,
            in 0..1, for instance the share of images whose class stays; None goes by the error.
    """

    target: float = 0.99
    max_error: float = 0.12
    keep: Sequence[str] | None = None
    criterion: Criterion | None = None

    def score(self, features: np.ndarray, logits: np.ndarray | None) -> float | None:
        """What the criterion gives, if there is one."""
        return None if self.criterion is None else float(self.criterion(features, logits))

    def met_by(self, attempt: Attempt) -> bool:
        """True if both limits are met; an error that is not a number meets none.

        >>> from types import SimpleNamespace
        >>> Tolerance(max_error=0.1).met_by(SimpleNamespace(error=0.09, score=None))
        True
        >>> Tolerance(max_error=0.1).met_by(SimpleNamespace(error=float("nan"), score=1.0))
        False
        """
        return not self._short_of(attempt)

    def note(self, attempt: Attempt, n_layers: int) -> str:
        """What a report should say of layers that were searched for."""
        said = f"kept {len(attempt.kept)} of {n_layers} layers in float32"
        if not (short := self._short_of(attempt)):
            return f"{said}, chosen by measurement"
        return (
            f"{said}, chosen by measurement; {' and '.join(short)}, and more would not help: the "
            "network is fragile in 8 bits, let the gates decide"
        )

    def _short_of(self, attempt: Attempt) -> list[str]:
        """Which limits are missed, and by what."""
        found = []
        if not attempt.error <= self.max_error:
            found.append(
                f"features are off by {attempt.error:.2g} of their spread, not {self.max_error:.2g}"
            )
        if attempt.score is not None and not attempt.score >= self.target:
            found.append(f"{attempt.score:.1%} of the samples keep their label")
        return found


_N_RANKING = 8  # images on which layers are ranked


LABEL = "int8"


@dataclass(frozen=True)
class Quantized:
    """A network in 8 bits and what it cost.

    Args:
        onnx: the file.
        kept: names of the layers that stay in float32.
        n_layers: number of layers that could have been quantised.
        error: of the features on the samples, relative to their spread (see `relative_error`).
        score: the criterion's, if there was one.
        sensitivities: relative error by layer if it alone is quantised, worst first; empty if no
            layer had to stay in float32.
        notes: what a report should say about it.
    """

    onnx: bytes = field(repr=False)
    kept: tuple[str, ...]
    n_layers: int
    error: float
    score: float | None
    sensitivities: tuple[tuple[str, float], ...] = field(default=(), repr=False)
    notes: tuple[str, ...] = ()


class Search:
    """Attempts at one network, with what they share measured once."""

    def __init__(self, network, images, seen: ActivationRanges, limits: Tolerance):
        self.network, self.images, self.limits = network, images, limits
        self.seen = seen
        plain = to_int8(network, network.copy(), seen.ranges)
        self.shifts = correct_biases(network, plain, seen.means)

    def attempt(self, keep: Sequence[str]) -> Quantized:
        """The network with all layers but `keep` in 8 bits, measured on the samples."""
        shifts = {name: shift for name, shift in self.shifts.items() if name not in keep}
        model = with_biases(self.network, shifts)
        data = to_int8(self.network, model, self.seen.ranges, keep=keep)
        features, logits = outputs_of(open_raw(data), self.images)
        error = relative_error(features, self.seen.features)
        score = self.limits.score(features, logits)
        return Quantized(data, tuple(keep), len(self.network.heavy), error, score)

    def with_one(self, name: str, images: np.ndarray) -> np.ndarray:
        """Features of `images` with one layer in 8 bits."""
        shifts = {name: self.shifts[name]} if name in self.shifts else {}
        model = with_biases(self.network, shifts)
        data = to_int8(self.network, model, self.seen.ranges, only=[name])
        return outputs_of(open_raw(data), images)[0]


def search_layers(search: Search, first: Quantized, progress: bool) -> Quantized:
    """The first attempt that passes as more layers are kept in float32, the best bargains first."""
    network, limits = search.network, search.limits
    layers = network.layers
    chosen = spread(len(search.images), _N_RANKING)
    images, exact = search.images[chosen], search.seen.features[chosen]
    with counted(f"{LABEL}: try each layer", len(layers), progress, "layers") as update:
        sensitivities = sensitive_layers(
            layers, lambda name: search.with_one(name, images), exact, update
        )
    order, tried = by_worth(sensitivities, network.n_passed), [first]

    def attempt(n: int) -> Quantized:
        kept = set(order[:n])
        tried.append(search.attempt([name for name in layers if name in kept]))
        update(1)
        return tried[-1]

    # More than half would help little: what is left comes from all the others alike. Of ten
    # classes told apart with an accuracy of .71, 4 % of the labels changed (accuracy .70 to .71) at
    # an error of .11 with four layers in float32, and 3 % at .10 with half of them.
    with counted(f"{LABEL}: keep layers in float32", None, progress, "tries") as update:
        best = fewest(len(layers) // 2, attempt, limits.met_by)
    if best is None:
        best = min(tried, key=lambda one: (-(one.score or 0.0), one.error))
    return replace(
        best, sensitivities=tuple(sensitivities), notes=(limits.note(best, len(layers)),)
    )
