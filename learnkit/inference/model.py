"""The model: one frozen record of a network and all that belongs to it; digests tell models apart.

A digest is of what a predictor knows and how it is set at this moment.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from learnkit.errors import PredictionError
from learnkit.evaluation.inputs import LabelThreshold

if TYPE_CHECKING:
    from torch import Tensor

    from learnkit.backends.conversion import Converted
    from learnkit.backends.session import Session
    from learnkit.continual.classifier import ContinualClassifier
    from learnkit.continual.ood_detector import OodDetector
    from learnkit.data.preprocess import Preprocessing
    from learnkit.uncertainty.scoring import Scoring


@dataclass(frozen=True, eq=False)
class Model:
    """A network, what prepares its images and what is concluded from its outputs.

    It is what a bundle stores, what `optimize` takes and gives, and what predictors say their verbs
    over. What a head or a detector has learned lives in these, and is replaced there as a whole.

    Attributes:
        network: the session that runs it.
        preprocessing: from a file to the network's input.
        names: class names of the outputs; a head in the continual state knows its own.
        class_ids: numbers of the first classes elsewhere, in HALCON say; those of later classes
            follow the largest. Empty where the places of the classes are their ids.
        multi_label: an image may have several labels, or none.
        threshold: a label counts above this probability, if `multi_label`; one, or one per class.
        head: keeps class statistics, outside the network; None for a trained head.
        detector: tells images out of distribution beside a trained head.
        stored: what was concluded when the model was written, where nothing here can learn.
        metadata: anything JSON can hold; travels in the bundle.
        probes: preprocessed images uint8 (n, channels, H, W) that travel with it.
        measured: the class statistics that the model card's measures are about.
        variant: backend and precision of a converted network; None for the weights as trained.
        converted: the files of a converted network, if they are at hand.
        report: what the conversion cost, as a plain dictionary.
        siblings: the other files of its bundle, see `bundle.siblings`.
        digest: SHA-256 (hex) of the bundle it was read from.
        knew_more: it knew more than the float32 weights' own head when it was read.
        ood: what tells images out of distribution: the head, or a detector beside a trained one.
    """

    network: Session
    preprocessing: Preprocessing
    names: tuple[str, ...]
    class_ids: tuple[int, ...] = field(default=(), kw_only=True)
    multi_label: bool = False
    threshold: LabelThreshold = 0.5
    head: ContinualClassifier | None = None
    detector: OodDetector | None = None
    stored: Scoring | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    probes: Tensor | None = None
    measured: Any = None
    variant: str | None = None
    converted: Converted | None = field(default=None, repr=False)
    report: Mapping[str, Any] | None = field(default=None, repr=False)
    siblings: Any = field(default=None, repr=False)
    digest: str | None = None
    knew_more: bool = False
    ood: ContinualClassifier | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ood", self.detector if self.head is None else self.head)
        wanted = (*self.preprocessing.size, self.preprocessing.channels)
        if self.network.shape != wanted:
            raise PredictionError(
                f"the {self.network.backend} network takes images (H, W, C) {self.network.shape}; "
                f"its preprocessing makes them {wanted}"
            )

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the probabilities."""
        return self.names if self.head is None else self.head.classes

    @property
    def knows_classes(self) -> bool:
        """Whether there is a class to answer with: not before the first images are learned."""
        return self.head is None or self.head.knowledge.derived is not None

    @property
    def detects_ood(self) -> bool:
        """Whether predictions say how far out of distribution an image is."""
        return self.ood is not None or self.stored is not None

    @property
    def state(self) -> tuple[Any, ...]:
        """What every change replaces: names and thresholds, what is learned, what is set."""
        ood = self.ood
        own = (self.names, self.threshold, self.stored, ood)
        return own if ood is None else (*own, ood.knowledge, getattr(ood, "head_nonconformity", 0))

    @property
    def has_learned(self) -> bool:
        """Whether it knows other things, or other names, than the float32 weights' own head."""
        ood = self.ood
        learned = ood is not None and ood.statistics is not self.measured
        return self.knew_more or learned or self.classes != self.names

    def replace(self, **changes: Any) -> Model:
        """The same model with some fields changed."""
        return replace(self, **changes)

    def frozen(self) -> Model:
        """A model that knows what this one knows now, whoever changes this one meanwhile."""
        import copy

        return replace(self, head=copy.deepcopy(self.head), detector=copy.deepcopy(self.detector))


def model_digest(predictor: Any) -> str:
    """SHA-256 (hex) that tells models apart, whatever they have learned or been set to since.

    That of the bundle while the model is as it was loaded, with the name of the variant behind it
    if it runs one; else that of its weights, what it has learned, class names and thresholds.
    """
    if predictor.digest is None or getattr(predictor, "is_changed", False):
        return _content_digest(predictor)
    variant = getattr(predictor, "variant", None)
    variant = getattr(variant, "name", variant)
    return predictor.digest if variant is None else f"{predictor.digest}:{variant}"


def same_state(predictor: Any, state: Any) -> bool:
    """Whether `predictor` is still as it was when `state_of` gave `state`; costs nothing."""
    now = state_of(predictor)
    # by identity: whatever changes a predictor replaces these as a whole
    return len(now) == len(state) and all(a is b for a, b in zip(now, state, strict=True))


def state_of(predictor: Any) -> tuple[Any, ...]:
    """What a change to a predictor replaces; nothing for predictors that cannot change."""
    return tuple(getattr(predictor, "state", ()))


def _content_digest(predictor: Any) -> str:
    knows = getattr(predictor, "knows_classes", True)  # else it has no threshold either
    threshold = getattr(predictor, "ood_threshold", None) if knows else None
    settings = {
        "bundle": predictor.digest,
        "classes": list(predictor.classes),
        "multi_label": bool(predictor.multi_label),
        "threshold": getattr(predictor, "threshold", None),
        "ood_threshold": threshold,
        "preprocessing": predictor.preprocessing.to_dict(),
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    converted = getattr(getattr(predictor, "record", None), "converted", None)
    for name, data in sorted(() if converted is None else converted.files.items()):
        digest.update(f"\0{name} {len(data)}\0".encode() + data)
    # the network may be elsewhere than what it has learned
    for part in ("model", "continual", "detector"):
        module = getattr(predictor, part, None)
        if module is None:
            continue
        import torch  # only whoever has a model of torch's comes here

        for name, tensor in sorted(module.state_dict().items()):
            values = tensor.detach().cpu().contiguous()
            digest.update(f"\0{part} {name} {values.dtype} {tuple(values.shape)}\0".encode())
            # as bytes: numpy has no bfloat16
            digest.update(values.flatten().view(torch.uint8).numpy() if values.numel() else b"")
    return digest.hexdigest()
