"""Losses of single samples, their ranks, and the activation that any loss function implies."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from learnkit.errors import InterpretationError
from learnkit.evaluation.inputs import LabelThreshold, label_threshold

# Losses that say nothing about the activation their inputs still need.
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "BCEWithLogitsLoss": torch.sigmoid,
    "binary_cross_entropy_with_logits": torch.sigmoid,
    "MultiLabelSoftMarginLoss": torch.sigmoid,
    "multilabel_soft_margin_loss": torch.sigmoid,
    "BCELoss": lambda outputs: outputs,
    "binary_cross_entropy": lambda outputs: outputs,
    "NLLLoss": torch.exp,
    "nll_loss": torch.exp,
}


def activation_of(loss_func: Any, *, multi_label: bool = False) -> Callable[[Tensor], Tensor]:
    """What turns the network's outputs (N, C) into probabilities under this loss.

    The loss's own `activation` if it has one, else what torch's losses imply, else softmax (sigmoid
    where a sample may have several labels).
    """
    from fastai.losses import BaseLoss  # here: numbers of a deployed model need no fastai

    own = getattr(loss_func, "activation", None)
    inherited = getattr(type(loss_func), "activation", None) is BaseLoss.activation  # does nothing
    if callable(own) and not inherited:
        return own
    while hasattr(loss_func, "func"):  # fastai's flattened losses and functools.partial
        loss_func = loss_func.func
    name = getattr(loss_func, "__name__", type(loss_func).__name__)
    return _ACTIVATIONS.get(name, torch.sigmoid if multi_label else partial(torch.softmax, dim=-1))


def loss_threshold(loss_func: Any, n_classes: int) -> LabelThreshold:
    """The probability above which a label counts: the loss's `thresh`, one or one per class; 0.5.

    Raises:
        InterpretationError: It is no probability, or there are not as many as classes.
    """
    while not hasattr(loss_func, "thresh") and isinstance(loss_func, partial):
        loss_func = loss_func.func
    thresh = getattr(loss_func, "thresh", 0.5)
    name = "the loss function's `thresh`"
    return label_threshold(thresh, n_classes, name=name, error=InterpretationError)


def item_losses(loss_func: Any, logits: Tensor, targets: Tensor) -> Tensor:
    """Losses of the samples, one each (N,), from a loss function that averages them.

    Asked for by the `reduction` attribute (put back afterwards), else by a `reduction` argument,
    else by calling the loss with one sample at a time. Losses per (sample, class) are averaged over
    the classes. Class weights stay in as far as the loss itself applies them to a single sample.
    """
    for ask in (_by_attribute, _by_argument):
        losses = ask(loss_func, logits, targets)
        # a loss may take `reduction` and give one number all the same
        if losses is not None and losses.numel() and losses.numel() % len(logits) == 0:
            return _flat(losses, len(logits))
    singles = [loss_func(logits[i : i + 1], targets[i : i + 1]).mean() for i in range(len(logits))]
    return _flat(torch.stack(singles), len(logits))


def _by_attribute(loss_func: Any, logits: Tensor, targets: Tensor) -> Tensor | None:
    if not hasattr(loss_func, "reduction"):
        return None
    former = loss_func.reduction
    try:
        loss_func.reduction = "none"
    except AttributeError:  # a read-only property
        return None
    try:
        return loss_func(logits, targets)
    finally:
        loss_func.reduction = former


def _by_argument(loss_func: Any, logits: Tensor, targets: Tensor) -> Tensor | None:
    try:
        parameters = inspect.signature(loss_func).parameters
    except (TypeError, ValueError):  # builtins may have no signature
        return None
    if "reduction" not in parameters:
        return None
    return loss_func(logits, targets, reduction="none")


def _flat(losses: Tensor, n: int) -> Tensor:
    return losses.detach().as_subclass(Tensor).reshape(n, -1).float().mean(1)


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
