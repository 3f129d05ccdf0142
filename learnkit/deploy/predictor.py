"""A trained network that answers: one image, many, or a folder; from any number of threads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from learnkit.backends.network import Network
from learnkit.continual.ood_detector import OodDetector, checked_detector
from learnkit.data.preprocess import Preprocessing
from learnkit.deploy.examining import Examining
from learnkit.deploy.judging import judged, judged_beside
from learnkit.deploy.learning import Learning
from learnkit.deploy.many import Predicting
from learnkit.deploy.pickling import ByPath
from learnkit.deploy.saving import Saving
from learnkit.errors import PredictionError
from learnkit.inference.batch import Result
from learnkit.inference.class_names import checked_threshold, head_classes, renamed
from learnkit.inference.digest import Identified
from learnkit.inference.prediction import not_finite, prediction_of
from learnkit.optimize.optimizing import Optimizing


class Predictor(Predicting, Examining, Learning, Optimizing, Saving, Identified, ByPath):
    """A network with its preprocessing and class names: images in, predictions out.

    Predicting changes nothing, so threads may share a predictor. A model that belongs to the
    predictor alone (`owns_model`, as after `load_learner`) is put into eval mode once and runs
    without locks. A model shared with a learner may be in training mode: it is put into eval mode
    for each forward pass, one pass at a time, and left as it was found.

    It pickles as the path of the bundle it was loaded from or saved to, see `ByPath`.

    Args:
        model: gives logits (N, C) for normalised float32 images (N, channels, H, W).
        preprocessing: from a file to the network's input.
        classes: the C class names, all different. A head in the continual state knows its own.
        multi_label: an image may have several labels, or none.
        threshold: a label counts above this probability, if `multi_label`.
        device: where the model is moved to and runs; None leaves it where it is.
        metadata: anything JSON can hold; travels in the bundle.
        owns_model: nobody else uses `model`.
        detector: tells unusual images beside a trained head, as `learn.fit_ood` makes it.

    Raises:
        PredictionError: class names that are empty, twice there, no strings or not the head's own;
            `threshold` outside (0, 1); a `detector` beside a head that needs none.
    """

    def __init__(
        self,
        model: nn.Module,
        preprocessing: Preprocessing,
        classes: Sequence[str] | None = None,
        *,
        multi_label: bool = False,
        threshold: float = 0.5,
        device: str | torch.device | None = None,
        metadata: Mapping[str, Any] | None = None,
        owns_model: bool = False,
        detector: OodDetector | None = None,
    ):
        self.model = model if device is None else model.to(device)
        self.preprocessing = preprocessing
        self.multi_label = multi_label
        self.metadata = dict(metadata or {})
        self.probes: Tensor | None = None
        self.measured: Any = None  # the class statistics that the card's measures are about
        self.detector = checked_detector(detector, self.continual, multi_label)
        names = head_classes(self.continual, classes, multi_label)
        self._labelling = (names, checked_threshold(threshold))
        self.network = Network(self.model, preprocessing, owned=owns_model)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the network's outputs."""
        head = self.continual
        return self._labelling[0] if head is None else head.classes

    @property
    def state(self) -> tuple[Any, ...]:
        """What every change replaces, for `is_changed`: names and thresholds, what is learned."""
        tells, beside = self.ood, self.detector
        learned = tells and tells.knowledge
        return (self._labelling, learned, beside, beside and beside.head_nonconformity)

    @property
    def threshold(self) -> float:
        """Probability above which a label counts (multi-label only)."""
        return self._labelling[1]

    @property
    def detects_ood(self) -> bool:
        """Whether predictions say how unusual an image is."""
        return self.ood is not None

    @property
    def device(self) -> torch.device:
        """Where the network runs."""
        return self.network.device

    def logits(self, images: Tensor) -> Tensor:
        """The network's outputs float32 (N, C), before softmax or sigmoid.

        Args:
            images: uint8 (N, channels, H, W), as `preprocessing.load` gives them; N may be 0.

        Raises:
            PredictionError: the network gives no (N, C).
        """
        if self.continual is not None:
            with torch.no_grad():
                return self.continual(self.network.features(images))
        return self.network.outputs(images, len(self.classes))

    def load(self, source: Any) -> Tensor:
        """An image as `try_tensors` takes it, uint8 (channels, H, W).

        Raises:
            ImageReadError: the image cannot be read; the message names it.
        """
        return self.preprocessing.load(source)

    def try_loaded(self, images: Sequence[Tensor]) -> list[Result]:
        """For each image that `load` gave its prediction, or a PredictionError."""
        return self.try_tensors(torch.stack(list(images)))

    def try_tensors(self, images: Tensor) -> list[Result]:
        """For each of `images` uint8 (N, channels, H, W) its prediction, or a PredictionError."""
        if self.continual is not None:
            return judged(self.continual, self.network.features(images))
        classes, threshold = self._labelling
        if self.detector is not None:
            found = self.network.outputs_and_features(images, len(classes))
            return judged_beside(self.detector, *found, classes)
        logits = self.logits(images)
        probs = logits.sigmoid() if self.multi_label else logits.softmax(1)
        finite = logits.isfinite().all(1).tolist()
        return [
            prediction_of(row, classes, multi_label=self.multi_label, threshold=threshold)
            if sound
            else not_finite()
            for row, sound in zip(probs, finite, strict=True)
        ]

    def set(
        self,
        *,
        class_names: Sequence[str] | Mapping[str, str] | None = None,
        threshold: float | None = None,
        ood_threshold: float | None = None,
        false_alarm_rate: float | None = None,
    ) -> Predictor:
        """This predictor, with other class names (all of them, or `{old: new}`) or thresholds.

        Args:
            class_names: the new names.
            threshold: a label of a multi-label model counts above it.
            ood_threshold: an image is flagged if its score is above it; it stays through later
                changes. Only where `detects_ood`, as is the next.
            false_alarm_rate: wanted share of known images flagged; the threshold is fitted to it
                from what the model knows, now and after every change.

        Raises:
            PredictionError: another number of names, an unknown old name, a name twice; a threshold
                outside (0, 1) or for a model that is not multi-label; both of the last two.
            ContinualNotInitializedError: one of these for a model that cannot tell unusual images.
        """
        classes, old_threshold = self.classes, self.threshold
        if threshold is not None and not self.multi_label:
            raise PredictionError(
                "`threshold` decides which labels of a multi-label model count; this model gives "
                "exactly one label"
            )
        names = classes if class_names is None else renamed(classes, class_names)
        threshold = old_threshold if threshold is None else checked_threshold(threshold)
        self._set_ood(ood_threshold, false_alarm_rate)
        if self.continual is None:
            self._labelling = (names, threshold)  # at once: no thread sees one without the other
        elif names != classes:
            self.rename({a: b for a, b in zip(classes, names, strict=True) if a != b})
        return self

    def __repr__(self) -> str:
        spec = getattr(self.model, "spec", None)
        arch = type(self.model).__name__ if spec is None else spec.arch
        return f"Predictor({arch}, {self._about()})"
