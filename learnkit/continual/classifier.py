"""The head of a network that goes on learning: an `nn.Module` over class statistics."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from learnkit.continual.change_report import ChangeReport
from learnkit.continual.head import KnowingHead
from learnkit.continual.kept import KeptHead
from learnkit.continual.knowledge import Knowledge, Validation
from learnkit.continual.settings import Settings
from learnkit.continual.statistics import ClassStatistics
from learnkit.errors import ContinualNotInitializedError, ContinualStateError, warn_user

_UNDO_LEVELS = 3


class ContinualClassifier(KeptHead):
    """Turns feature maps or pooled features into logits, and learns in one step without gradients.

    What it knows are `statistics`; all else follows from them. A change builds the new state
    beside the old one and puts it in place in one step: after an exception, an interrupt included,
    everything is as before, and whoever predicts meanwhile sees the old state or the new one.

    Threshold and temperature take images for independent of each other. Statistics do not know
    which images are of one burst or of one part, so that such groups cannot be left out as a whole:
    learn one image of each, or give `validation` images of other parts.

    Args:
        n_features: Width D of the pooled features.
        root: Whether to take square roots of the features first: for those never below zero.
        memory: Features remembered of each class; 0 for none.
        classifier: "lda", "ridge" or "prototype".
        score: What makes an image unusual: "combined", "mahalanobis", "relative", "knn", "msp" or
            "energy".
        false_alarm_rate: Wanted share of images of known classes flagged as unusual.
        guarantee: What the threshold promises: "loo", "split" or "pac".
        prior: How classes weigh for the threshold: by their images in "training", or "uniform".

    Raises:
        StatisticsError: A setting is none of those allowed.
        OodInsufficientDataError: `score="knn"` without a memory.
    """

    def __init__(
        self,
        n_features: int,
        *,
        root: bool = False,
        memory: int = 64,
        classifier: str = "lda",
        score: str = "combined",
        false_alarm_rate: float = 0.05,
        guarantee: str = "loo",
        prior: str = "training",
    ) -> None:
        super().__init__(
            Settings(
                n_features, root, memory, classifier, score, false_alarm_rate, guarantee, prior
            )
        )

    def extend(
        self,
        features: Tensor,
        labels: Sequence[Any],
        *,
        class_names: Sequence[str] | None = None,
        validation: Validation | None = None,
    ) -> ChangeReport:
        """Learn images of new classes, of known ones, or of both.

        Args:
            features: Pooled features (N, D), as the network gives them.
            labels: A class name per image, or places in `class_names`.
            class_names: In which order classes not yet known are appended; those without images
                get a place too. Default: as they first appear.
            validation: (features, labels) of images of known or new classes that are not learned:
                threshold and temperature are fitted on them. They are kept, up to 64 a class.

        Returns:
            What changed.

        Raises:
            DataError: Features or labels break a rule; see `ClassStatistics.update`.
            InsufficientDiversityError: All images of a new class are blank.
            StatisticsError: More images than can be added up exactly.
        """
        return self._change(
            "extend", lambda now: now.extend(features, labels, class_names, validation)
        )

    def validate(self, features: Tensor, labels: Sequence[Any]) -> ChangeReport:
        """Fit threshold and temperature on images that are not learned; they are kept.

        Raises:
            DataError: Features or labels break a rule, or a class is not known.
        """
        return self._change("validate", lambda now: now.validate((features, labels)))

    def subtract(self, features: Tensor, labels: Sequence[Any]) -> ChangeReport:
        """Unlearn images: statistics are to the bit as if these had never been learned.

        Raises:
            DataError: Features or labels break a rule, or a class is not known.
            StatisticsError: These images were not learned.
        """
        return self._change("subtract", lambda now: now.subtract(features, labels))

    def forget(self, name: str) -> ChangeReport:
        """Forget a class without its images: it can never win, and keeps its place.

        Raises:
            DataError: There is no such class, or it has no images.
        """
        return self._change("forget", lambda now: now.forget(name))

    def rename(self, names: Mapping[str, str]) -> ChangeReport:
        """Call classes otherwise, `{old: new}`.

        Raises:
            DataError: There is no such class, or a new name looks like another class's.
        """
        return self._change("rename", lambda now: now.rename(names))

    def merge_classes(self, names: Sequence[str], into: str) -> ChangeReport:
        """Count all images of `names` to class `into`, as if they had been labelled so.

        Raises:
            DataError: There is no such class, or fewer than two are joined.
        """
        return self._change("merge_classes", lambda now: now.merge_classes(names, into))

    def merge(self, other: ClassStatistics) -> ChangeReport:
        """Learn everything another set of statistics of the same network holds.

        Raises:
            StatisticsError: They are of another network or collected with other settings.
            DataError: Two class names look alike.
        """
        return self._change("merge", lambda now: now.merge(other))

    @KnowingHead.threshold.setter
    def threshold(self, value: float | None) -> None:
        """See `set_threshold`."""
        self.set_threshold(value)

    def set_threshold(
        self,
        value: float | None = None,
        *,
        false_alarm_rate: float | None = None,
        guarantee: str | None = None,
    ) -> ChangeReport:
        """Set the threshold by hand, or, without `value`, fit it again with other settings.

        A threshold set by hand stays through later changes until it is fitted again.

        Raises:
            UncertaintyError: The value is no finite number.
            StatisticsError: A setting is none of those allowed.
        """
        return self._change(
            "set_threshold",
            lambda now: now.with_threshold(value, false_alarm_rate, guarantee),
        )

    def undo(self) -> ChangeReport:
        """Go back to the state before the last change; three changes back at most.

        Raises:
            ContinualStateError: There is nothing to undo.
        """
        with self._lock:
            started = time.perf_counter()
            if len(self._states) < 2:
                raise ContinualStateError(
                    f"there is no change to undo: the last {_UNDO_LEVELS} changes are kept, and "
                    "none after loading"
                )
            now, former, *older = self._states
            former = former.derive(now) if former.derived is None else former
            report = former.report("undo", now, (), started)
            self._states = (former, *older)
            return report

    def _change(self, what: str, make: Any) -> ChangeReport:
        """Build the next state beside this one and put it in place, or raise and leave all be."""
        with self._lock:
            started = time.perf_counter()
            now = self._states[0]
            new, notes = make(now)
            new = new.derive(now)
            report = new.report(what, now, notes, started)
            self._states = (new, now.lightened(), *self._states[1:_UNDO_LEVELS])
        _warn(new, now)
        return report


def _warn(new: Knowledge, before: Knowledge) -> None:
    """Say once, not at every change, that threshold and temperature rest on an assumption."""
    warning = new.derived.warning if new.derived else ""
    if warning and not (before.derived and before.derived.warning):
        warn_user(warning)


def continual_head(model: nn.Module) -> ContinualClassifier | None:
    """The head of `Sequential(body, ContinualClassifier)`, None for any other model."""
    is_pair = isinstance(model, nn.Sequential) and len(model) == 2
    return model[1] if is_pair and isinstance(model[1], ContinualClassifier) else None


def check_continual(head: ContinualClassifier | None) -> ContinualClassifier:
    """`head`, unless it is None: then the error says how to get one."""
    return _not_none(
        head,
        "this model is not in the continual state: it keeps no class statistics that could grow, "
        "and cannot tell unusual images. Call learn.init_continual(data)",
    )


def check_detects_ood(head: ContinualClassifier | None) -> ContinualClassifier:
    """`head`, unless it is None: then the error says how unusual images can be told."""
    return _not_none(
        head,
        "this model is not in the continual state, and has no detector beside its trained head: "
        "it cannot tell unusual images. Call learn.fit_ood() or learn.init_continual(data)",
    )


def _not_none(head: ContinualClassifier | None, what_to_do: str) -> ContinualClassifier:
    if head is None:
        raise ContinualNotInitializedError(f"{what_to_do} before learn.export(...), and load that")
    return head


def frozen_head(model: nn.Module) -> ContinualClassifier | None:
    """A copy of the model's head as it is now, whoever changes the model's meanwhile."""
    head = continual_head(model)
    return None if head is None else copy.deepcopy(head).eval()
