"""The out-of-distribution (OOD) detector beside a trained head, which goes on giving the labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from learnkit.continual.change_report import ChangeReport
from learnkit.continual.classifier import ContinualClassifier
from learnkit.continual.knowledge import UNDO_LEVELS
from learnkit.errors import ContinualStateError, PredictionError, StatisticsError
from learnkit.uncertainty.scoring import Scoring

if TYPE_CHECKING:
    from typing_extensions import Self

_SAME = 1e-6  # of two probabilities of one image, read twice
_NONCONFORMITY, _LABELS = "misfits", "misfit_labels"  # the names they have in files


class OodDetector(ContinualClassifier):
    """Class statistics that detect OOD images, for a network whose trained head stays.

    Attributes:
        head_nonconformity: nonconformity scores: one minus the probability the trained head gave to
            the true class of images it was not trained on, float32 (M,).
        head_labels: the numbers of these classes, int64 (M,); none in files of an older learnkit.
    """

    def __init__(self, n_features: int, **settings: Any) -> None:
        super().__init__(n_features, **settings)
        self.head_nonconformity = torch.zeros(0)
        self.head_labels = torch.zeros(0, dtype=torch.int64)
        # validation images that were kept, and the sets there were, before each `extend_sets`
        self._before: tuple[tuple[Any, Tensor, Tensor], ...] = ()

    def undo(self) -> ChangeReport:
        """Go back to before the last change, prediction sets too; not to before it was fitted.

        Raises:
            ContinualStateError: There is nothing to undo.
        """
        states = self.history.states
        if len(states) > 1 and not states[1].statistics.n_images:
            raise ContinualStateError(
                "the detector has not changed since it was fitted; learn.clear_ood() removes it"
            )
        report = super().undo()
        for kept, scores, labels in self._before:
            # by identity: every change of validation images makes another memory of them
            if kept is self.knowledge.validation:
                self.head_nonconformity, self.head_labels = scores, labels
        return report

    def fit_sets(self, probs: Tensor, targets: Tensor) -> None:
        """Calibrate prediction sets by the trained head's probabilities of images it does not know.

        Args:
            probs: its probabilities (N, C).
            targets: the true classes (N,); -1 for those it has no output for.
        """
        self.head_nonconformity, self.head_labels = _misfits(probs, targets)

    def extend_sets(
        self, probs: Tensor, targets: Tensor, gone: tuple[Tensor, Tensor] | None = None
    ) -> None:
        """The same by these images, just validated, beside those there were; see `fit_sets`.

        `gone` are (probabilities, former classes) of images that were there as others.
        """
        scores, labels = self.head_nonconformity, self.head_labels
        # of the state before the change just made, to which `undo` would go
        before = [(one.validation, scores, labels) for one in self.history.states[1:2]]
        self._before = (*before, *self._before)[:UNDO_LEVELS]
        self.fit_sets(probs, targets)
        if gone is not None:
            scores, labels = _without(scores, labels, *_misfits(*gone))
        told = len(labels) == len(scores)  # not in files of an older learnkit
        own = (labels, self.head_labels) if told else (labels[:0],)
        self.head_nonconformity = torch.cat([scores, self.head_nonconformity])
        self.head_labels = torch.cat(own)

    @property
    def nonconformity(self) -> tuple[Tensor, Tensor] | None:
        """`head_nonconformity` and their weights, None without any."""
        found = self.head_nonconformity
        return (found, torch.ones_like(found)) if len(found) else None

    @property
    def scoring(self) -> Scoring:
        """OOD scores of pooled features in numpy; the labels are those of the trained head.

        Raises:
            ContinualPredictionError: No class is known.
        """
        scores = self.head_nonconformity.to(torch.float64).numpy()
        sets = (scores, np.ones_like(scores))
        if self.settings.per_class and len(self.head_labels):
            sets = (*sets, self.head_labels.numpy())
        return replace(super().scoring, labels=False, nonconformity=sets)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        new = super().__deepcopy__(memo)
        new.head_nonconformity = self.head_nonconformity  # never changed in place: shared
        new.head_labels, new._before = self.head_labels, self._before
        return new

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """(configuration for JSON, tensors): everything there is to keep."""
        config, tensors = super().state()
        labels = {_LABELS: self.head_labels} if len(self.head_labels) else {}  # as it was read
        return config, {**tensors, _NONCONFORMITY: self.head_nonconformity, **labels}

    @classmethod
    def from_state(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """The detector `state` was taken from.

        Raises:
            StatisticsError: Something cannot have come from `state`.
        """
        own = (_NONCONFORMITY, _LABELS)
        rest = {name: tensor for name, tensor in tensors.items() if name not in own}
        new = super().from_state(config, rest)
        found = tensors.get(_NONCONFORMITY, torch.zeros(0))
        sound = found.dtype == torch.float32 and found.ndim == 1
        if not sound or not bool(((found >= 0) & (found <= 1)).all()):
            raise StatisticsError(f"`{_NONCONFORMITY}` are no shares in 0..1; the state is damaged")
        labels = tensors.get(_LABELS, torch.zeros(0, dtype=torch.int64))
        fits = labels.dtype == torch.int64 and labels.shape in (found.shape, (0,))
        if not fits or bool((labels < 0).any()):
            raise StatisticsError(
                f"`{_LABELS}` are no classes of `{_NONCONFORMITY}`; the state is damaged"
            )
        new.head_nonconformity, new.head_labels = found, labels
        return new


def _misfits(probs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """(nonconformity scores float32 (M,), classes int64 (M,)) of images whose class is known."""
    known = targets >= 0
    truth = probs[known].gather(1, targets[known, None])[:, 0]
    return (1 - truth).to(torch.float32), targets[known].to(torch.int64)


def _without(
    scores: Tensor, labels: Tensor, gone: Tensor, classes: Tensor
) -> tuple[Tensor, Tensor]:
    """(scores, labels) without those of images that are `gone`, one for each that is there."""
    for score, label in zip(gone, classes, strict=True):
        same = (scores - score).abs() < _SAME
        if len(labels) == len(scores):  # not in files of an older learnkit
            same &= labels == label
        if same.any():
            kept = torch.arange(len(scores)) != int(same.nonzero()[0])
            labels = labels[kept] if len(labels) == len(scores) else labels
            scores = scores[kept]
    return scores, labels


def checked_detector(
    detector: OodDetector | None, head: ContinualClassifier | None, multi_label: bool
) -> OodDetector | None:
    """`detector`, if it may stand beside this head; PredictionError otherwise."""
    if detector is not None and (head is not None or multi_label):
        why = "an image may have several labels" if head is None else "the head detects them itself"
        raise PredictionError(
            f"`detector` detects out-of-distribution images of a trained head; here {why}"
        )
    return detector
