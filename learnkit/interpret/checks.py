"""Checks of outputs and labels: what is no classification is refused in a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from learnkit.errors import InterpretationError

_ONE_ANSWER = "interpretation of classifiers needs logits (N, C), one row per image"
_NO_MASKS = "Segmentation, with one answer per pixel, is not interpreted here"


def detached(tensor: Tensor) -> Tensor:
    """Return a tensor as plain `torch.Tensor`, without a graph."""
    return tensor.detach().as_subclass(Tensor)


def check_class_logits(logits: Any) -> None:
    """Raise InterpretationError unless a network's output is one row of logits per image."""
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        is_tensor = isinstance(logits, Tensor)
        found = f"shape {tuple(logits.shape)}" if is_tensor else f"type {type(logits).__name__}"
        raise InterpretationError(f"The network's outputs have {found}; {_ONE_ANSWER}. {_NO_MASKS}")


def check_answers(
    probs: Tensor, targets: Tensor | None, classes: Sequence[str], *, multi_label: bool
) -> None:
    """Raise InterpretationError unless probabilities, labels and class names fit together."""
    check_class_logits(probs)
    if classes and probs.shape[1] != len(classes):
        raise InterpretationError(
            f"The network has {probs.shape[1]} outputs for {len(classes)} classes; {_ONE_ANSWER}"
            " and one column per class"
        )
    if targets is None:
        return
    shape = probs.shape if multi_label else probs.shape[:1]
    if targets.shape != shape or (targets.is_floating_point() and not multi_label):
        raise InterpretationError(
            f"`targets` are {targets.dtype} of shape {tuple(targets.shape)} with {probs.shape[1]}"
            " classes; class numbers (N,) or, with a sigmoid loss, flags (N, C) are needed."
            " Regression and segmentation are not interpreted here"
        )


def sum_to_one(probs: Tensor) -> bool:
    """Whether the classes compete for each sample; rows that are not finite have no say."""
    sums = _finite_sums(probs)
    return bool(((sums - 1).abs() < 1e-3).all())


def check_activation(probs: Tensor, competing: bool, *, flags: bool, loss: Any) -> None:
    """Raise InterpretationError unless the loss's activation suits the kind of labels.

    Args:
        probs: what the activation made of the logits (N, C).
        competing: what `sum_to_one` says of them.
        flags: whether the targets are flags (N, C) instead of class numbers (N,).
        loss: the learner's loss function, to be named.
    """
    if flags and competing and probs.shape[1] > 1:
        raise InterpretationError(
            "The targets are flags (N, C), but the loss makes the classes compete (softmax); train"
            " with a sigmoid loss such as BCEWithLogitsLossFlat, or with class numbers (N,)"
        )
    if not flags and not competing:
        raise InterpretationError(
            f"Probabilities of a sample sum to {_finite_sums(probs)[0].item():.4g} instead of 1;"
            f" give the loss ({type(loss).__name__}) an `activation` method that turns the"
            " network's outputs into probabilities"
        )


def _finite_sums(probs: Tensor) -> Tensor:
    return probs[probs.isfinite().all(1)].sum(1)
