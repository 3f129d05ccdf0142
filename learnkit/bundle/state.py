"""The head that keeps class statistics: how to find one, describe it, write it and read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from learnkit.continual.classifier import ContinualClassifier
from learnkit.continual.ood_detector import OodDetector
from learnkit.errors import (
    BundleCorruptError,
    ExportError,
    LearnkitError,
)
from learnkit.inference.prediction import finite_or_none
from learnkit.models.head import build_head, register_head
from learnkit.models.spec import ModelSpec, describe_body

STATE = "state.safetensors"
KIND = "continual"

register_head(KIND, ContinualClassifier)


def described(model: nn.Module, head: ContinualClassifier | None, n_in: int) -> ModelSpec:
    """The description of `model`; that of its head is of `head`, if it is continual.

    Raises:
        ExportError: the model has none, or knows no class yet.
    """
    spec, problem = getattr(model, "spec", None), getattr(model, "spec_problem", None)
    if head is not None:
        if not head.classes:
            raise ExportError("the model knows no class yet; extend it before it is exported")
        own = {"n_out": len(head.classes), "head": {"kind": KIND, "root": head.settings.root}}
        if spec is not None:
            return replace(spec, **own)
        spec, problem = describe_body(model[0], n_in, **own)
    if spec is None:
        raise ExportError(
            f"the network cannot travel as data: {problem or 'it was not built by learnkit'}. "
            "Build it with cnn_learner from an architecture's name, or keep its weights with "
            "learn.save"
        )
    return spec


def read_head(
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    spec: ModelSpec,
    width: int,
    classes: tuple[str, ...],
) -> ContinualClassifier:
    """The head of `spec`, written as `config` and `tensors`, on a body that gives `width` features.

    Raises:
        BundleCorruptError: they are not a head's, or not of these classes and this network.
    """
    try:
        empty = build_head(width, len(classes), spec.head)
        head = ContinualClassifier.from_state(config, tensors)
    except (LearnkitError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        # numbers that no images give can make the solvers raise whatever they have
        raise BundleCorruptError(
            f"{STATE} and its description are no sound state: {error}"
        ) from error
    if head.classes != classes:
        raise BundleCorruptError(
            f"the state's classes {list(head.classes)[:5]} are not `classes`, {list(classes)[:5]}"
        )
    for name in ("n_features", "root"):
        found, expected = (getattr(one.settings, name) for one in (head, empty))
        if found != expected:
            raise BundleCorruptError(
                f"the state's `{name}` is {found}; the network's is {expected}"
            )
    return head.eval()


def head_facts(head: ContinualClassifier) -> dict[str, Any]:
    """What the model card says of a head: images, threshold, temperature, and how they came."""
    threshold, calibration = head.threshold, head.calibration
    return {
        "images learned": sum(head.n_images.values()),
        "classes known": sum(n > 0 for n in head.n_images.values()),
        "features remembered": len(head.statistics.memory),
        "flagged above a score of": threshold.value,
        "threshold fitted on": threshold.source,
        "what that promises": threshold.statement,
        "temperature": head.temperature,
        "expected calibration error": finite_or_none(calibration.ece_after),
    }


OOD = "ood.safetensors"


def detector_facts(detector: OodDetector) -> dict[str, Any]:
    """What the model card says of a detector: images, threshold, and how it came."""
    facts = head_facts(detector)
    told = [name for name in facts if name.startswith(("flagged", "threshold", "what that"))]
    return {
        "images it takes for usual": sum(detector.n_images.values()),
        **{name: facts[name] for name in told},
        "images behind prediction sets": len(detector.head_nonconformity),
    }


def read_detector(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], width: int
) -> OodDetector:
    """The detector written as `config` and `tensors`, for a body that gives `width` features.

    Raises:
        BundleCorruptError: they are not a detector's, or not of this network.
    """
    try:
        detector = OodDetector.from_state(config, tensors)
    except (LearnkitError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        # numbers that no images give can make the solvers raise whatever they have
        raise BundleCorruptError(
            f"{OOD} and its description are no sound state: {error}"
        ) from error
    if detector.n_features != width or detector.knowledge.derived is None:
        raise BundleCorruptError(
            f"{OOD} is of {detector.n_features} features and {len(detector.classes)} classes; the "
            f"network has {width} features"
        )
    return detector.eval()
