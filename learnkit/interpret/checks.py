"""Checks of outputs and labels: what is no classification is refused in a sentence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from learnkit.errors import InterpretationError

_ONE_ANSWER = "interpretation of classifiers needs logits (N, C), one row per image"
_LOADERS = ("train", "valid", "test")
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


def check_activation(probs: Tensor, competing: bool, *, flags: bool, loss: Any) -> None:
    """Raise InterpretationError unless the loss's activation suits the kind of labels.

    Args:
        probs: what the activation made of the logits (N, C).
        competing: whether they sum to 1 for each sample, so that the classes compete.
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
            f"Probabilities of a sample sum to {finite_sums(probs)[0].item():.4g} instead of 1;"
            f" give the loss ({type(loss).__name__}) an `activation` method that turns the"
            " network's outputs into probabilities"
        )


def finite_sums(probs: Tensor) -> Tensor:
    """Sums (N,) over the classes; of rows that are not finite none, for they have no say."""
    return probs[probs.isfinite().all(1)].sum(1)


def check_count(k: Any, other: str) -> None:
    """Raise InterpretationError unless `k` is a whole number from 1 on; `other` may be given."""
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise InterpretationError(f"`k` is {k!r}; ask for at least one loss, or {other}")


def ranks_among(k: Any, n: int) -> list[int]:
    """Ranks among `n` losses, 0 the first, meant by how many or by a list of them.

    Raises:
        InterpretationError: there is no such rank.
    """
    if isinstance(k, str | bytes) or not isinstance(k, Iterable):
        check_count(k, "a list of ranks")
        return list(range(min(k, n)))
    ranks = list(k)
    whole = all(isinstance(i, int | np.integer) and not isinstance(i, bool) for i in ranks)
    if not ranks or not whole or not all(-n <= i < n for i in ranks):
        raise InterpretationError(
            f"`k` is {ranks!r:.100}; give ranks from 0, the first, to {n - 1}, or how many to draw"
        )
    return ranks


def loader_number(ds_type: Any) -> int:
    """The number of a loader by the name of fastai v1's `DatasetType`.

    Raises:
        InterpretationError: another name.
    """
    name = str(ds_type).rpartition(".")[2].lower()
    if name not in _LOADERS:
        raise InterpretationError(f"`ds_type` is {ds_type!r}; it is one of {', '.join(_LOADERS)}")
    return _LOADERS.index(name)
