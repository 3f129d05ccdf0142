"""A deployed model that goes on learning: new images only, no training, no fastai."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from learnkit.backends.network import default_probes, tolerance_of
from learnkit.continual.change_report import ChangeReport
from learnkit.continual.classifier import (
    ContinualClassifier,
    check_continual,
    check_detects_ood,
    continual_head,
)
from learnkit.continual.ood_detector import OodDetector
from learnkit.data.labelled_images import labelled_images
from learnkit.errors import PredictionError


class Learning:
    """What `Predictor` learns and unlearns in the continual state.

    Every change is whole or not at all: after an exception, whichever, the model is as before.
    While one is made, other threads go on predicting with what was known before it; several threads
    may make changes, one takes place after the other.
    """

    detector: OodDetector | None = None

    @property
    def continual(self) -> ContinualClassifier | None:
        """The head that keeps class statistics; None if the model is not in the continual state."""
        return continual_head(self.model)

    @property
    def ood(self) -> ContinualClassifier | None:
        """What tells unusual images: the continual head, or a detector beside a trained one."""
        head = self.continual
        return self.detector if head is None else head

    def extend(self, data: Any, labels: Any = None, **reading: Any) -> ChangeReport:
        """Learn new classes, or more of known ones, from new images alone; return what changed.

        Args:
            data: an ImageDataset, of which the training images (all, if it is not split) are
                learned and the validation images decide threshold and confidence; a folder with
                one folder per class; or images of any kind `predict` takes.
            labels: one name per image, or one for all; datasets have their own.
            **reading: `bs`, `n_workers` and `progress`, see `features`.

        Raises:
            ContinualNotInitializedError: the model is not in the continual state.
            DataError: no images; labels missing, of another number, or several per image.
            UnreadableImagesError: images cannot be read; all of them are named.
        """
        head, found = check_continual(self.continual), labelled_images(data, labels)
        features, validation = self.features(found.items, **reading), None
        if found.validation is not None:
            items, names, _ = found.validation
            validation = (self.features(items, **reading), names)
        return head.extend(features, found.labels, validation=validation)

    def subtract(self, data: Any, labels: Any = None, **reading: Any) -> ChangeReport:
        """Unlearn images as if they had never been learned; return what changed.

        Exact if they are read as they were then: on the same machine, with the same `bs`.

        Args:
            data: see `extend`; of a split dataset the training images.
            labels: see `extend`.
            **reading: see `extend`.
        """
        head, found = check_continual(self.continual), labelled_images(data, labels)
        return head.subtract(self.features(found.items, **reading), found.labels)

    def forget(self, name: str) -> ChangeReport:
        """Drop a class, which keeps its number and can never win; return what changed."""
        return check_continual(self.continual).forget(name)

    def rename(self, names: Mapping[str, str]) -> ChangeReport:
        """Give classes other names, `{old: new}`; return what changed."""
        return check_continual(self.continual).rename(names)

    def merge_classes(self, names: Sequence[str], into: str) -> ChangeReport:
        """Make one class of several; return what changed."""
        return check_continual(self.continual).merge_classes(names, into)

    def merge(self, other: Any) -> ChangeReport:
        """Learn all that another copy of this model has learned elsewhere; return what changed.

        Args:
            other: a predictor over the same network in the same variant, or its class statistics.
                What both have learned counts twice.

        Raises:
            ContinualNotInitializedError: either is not in the continual state.
            PredictionError: `other` is of another network, whose features do not compare.
            StatisticsError: statistics of another network, or collected with other settings.
        """
        head = check_continual(self.continual)
        if not isinstance(other, Learning):
            return head.merge(other)
        theirs = check_continual(other.continual)
        check_same_features(self, other)
        return head.merge(theirs.statistics)

    def undo(self) -> ChangeReport:
        """Take back the last change; return what changed."""
        return check_continual(self.continual).undo()

    def _set_ood(self, threshold: float | None, false_alarm_rate: float | None) -> None:
        if threshold is not None and false_alarm_rate is not None:
            raise PredictionError(
                f"`ood_threshold`={threshold} and `false_alarm_rate`={false_alarm_rate} both say "
                "when an image is flagged; give one of them"
            )
        if threshold is not None:
            check_detects_ood(self.ood).set_threshold(threshold)
        if false_alarm_rate is not None:
            check_detects_ood(self.ood).set_threshold(false_alarm_rate=false_alarm_rate)


def check_same_features(one: Any, other: Any) -> None:
    """Raise PredictionError unless two predictors make the same features of the same pixels."""
    recipe = one.preprocessing
    variants = [getattr(predictor, "variant", None) for predictor in (one, other)]
    same = recipe == other.preprocessing and variants[0] == variants[1]
    if same:
        images = default_probes(recipe)
        found = [network.features(images) for network in (one.network, other.network)]
        same = found[0].shape == found[1].shape
        same = same and bool((found[0] - found[1]).abs().max() <= tolerance_of(found[0]))
    if not same:
        raise PredictionError(
            "`other` is over another network, precision or preprocessing: its features do not "
            "compare with these; merge copies of one exported model, in the same variant"
        )
