"""What tells unusual images beside a trained head, which goes on telling the classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from learnkit.continual.classifier import ContinualClassifier
from learnkit.errors import PredictionError, StatisticsError

if TYPE_CHECKING:
    from typing_extensions import Self

_MISFITS = "misfits"
Misfits = tuple[Tensor, Tensor]


class Detector(ContinualClassifier):
    """Class statistics that say what is usual, for a network whose trained head stays.

    Attributes:
        head_misfits: one minus the probability the trained head gave to the true class of images
            it was not trained on, float32 (M,); prediction sets are calibrated by them.
    """

    def __init__(self, n_features: int, **settings: Any) -> None:
        super().__init__(n_features, **settings)
        self.head_misfits = torch.zeros(0)

    def fit_sets(self, probs: Tensor, targets: Tensor) -> None:
        """Calibrate prediction sets by what the trained head said of images it does not know.

        Args:
            probs: its probabilities (N, C).
            targets: the true classes (N,); -1 for those it has no output for.
        """
        known = targets >= 0
        truth = probs[known].gather(1, targets[known, None])[:, 0]
        self.head_misfits = (1 - truth).to(torch.float32)

    @property
    def misfits(self) -> Misfits | None:
        """`head_misfits` and their weights, None without any."""
        found = self.head_misfits
        return (found, torch.ones_like(found)) if len(found) else None

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        new = super().__deepcopy__(memo)
        new.head_misfits = self.head_misfits  # replaced as a whole, never changed: shared
        return new

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """(configuration for JSON, tensors): everything there is to keep."""
        config, tensors = super().state()
        return config, {**tensors, _MISFITS: self.head_misfits}

    @classmethod
    def from_state(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """The detector `state` was taken from.

        Raises:
            StatisticsError: Something cannot have come from `state`.
        """
        rest = {name: tensor for name, tensor in tensors.items() if name != _MISFITS}
        new = super().from_state(config, rest)
        found = tensors.get(_MISFITS, torch.zeros(0))
        sound = found.dtype == torch.float32 and found.ndim == 1
        if not sound or not bool(((found >= 0) & (found <= 1)).all()):
            raise StatisticsError(f"`{_MISFITS}` are no shares in 0..1; the state is damaged")
        new.head_misfits = found
        return new


def checked_detector(
    detector: Detector | None, head: ContinualClassifier | None, multi_label: bool
) -> Detector | None:
    """`detector`, if it may stand beside this head; PredictionError otherwise."""
    if detector is not None and (head is not None or multi_label):
        why = "an image may have several labels" if head is None else "the head tells them itself"
        raise PredictionError(f"`detector` tells unusual images of a trained head; here {why}")
    return detector
