"""Which layers suffer most from 8 bits, measured, and the fewest that must be spared."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

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
    damages = []
    for name in layers:
        damages.append((name, relative_error(features_with(name), exact)))
        if progress is not None:
            progress(1)
    order = {name: index for index, name in enumerate(layers)}
    return sorted(damages, key=lambda damage: (-damage[1], order[damage[0]]))


def by_worth(damages: Sequence[tuple[str, float]], n_passed: Mapping[str, int]) -> list[str]:
    """Names of layers in the order in which to spare them: most brought for what it costs first.

    What sparing a layer brings is its damage squared, since errors of layers add up in squares.
    What it costs grows with the numbers that go in and come out, which must be brought from 8 bits
    to float32 and back; their square root is taken for it. Going by damage alone, the fourth layer
    of a MobileNetV2 takes nearly twice the time of a batch; going so, the first six take a tenth
    more at most, for as small an error.

    Args:
        damages: relative error by layer if it alone is quantised.
        n_passed: numbers that go in and come out of each layer for one image.

    >>> by_worth([("wide", 0.4), ("narrow", 0.3)], {"wide": 1_000_000, "narrow": 10_000})
    ['narrow', 'wide']
    """
    worth = {name: damage**2 / math.sqrt(n_passed[name]) for name, damage in damages}
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


Judge = Callable[[np.ndarray, np.ndarray | None], float]


class Attempt(Protocol):
    """What is known of a network in 8 bits."""

    kept: tuple[str, ...]
    error: float
    score: float | None


@dataclass(frozen=True)
class Limits:
    """What a network in 8 bits must keep to on the samples.

    Args:
        target: what the judge must say.
        max_error: what `relative_error` of the features may be.
        keep: keep just these layers in float32 and search for none.
        judge: how good these features (n, D) and logits (n, C) or None of the samples used are,
            in 0..1, for instance the share of images whose class stays; None goes by the error.
    """

    target: float = 0.99
    max_error: float = 0.12
    keep: Sequence[str] | None = None
    judge: Judge | None = None

    def score(self, features: np.ndarray, logits: np.ndarray | None) -> float | None:
        """What the judge says, if there is one."""
        return None if self.judge is None else float(self.judge(features, logits))

    def settle(self, attempt: Attempt) -> bool:
        """True if no layers need be spared beyond those that `attempt` keeps."""
        return self.keep is not None or self.met_by(attempt)

    def met_by(self, attempt: Attempt) -> bool:
        """True if both limits are met; an error that is not a number meets none.

        >>> from types import SimpleNamespace
        >>> Limits(max_error=0.1).met_by(SimpleNamespace(error=0.09, score=None))
        True
        >>> Limits(max_error=0.1).met_by(SimpleNamespace(error=float("nan"), score=1.0))
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
