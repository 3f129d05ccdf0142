"""What is asked of a network in 8 bits on the samples, and what is said where it falls short."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

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
