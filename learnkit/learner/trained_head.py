"""The trained head of a learner: a new one for other classes, calibration, leave to train."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import learnkit._torchvision  # noqa: F401  # before fastai

import torch
from torch import Tensor, nn

from learnkit.callback.after_fit import AfterFit
from learnkit.callback.stored_features import checksums_of
from learnkit.continual.classifier import continual_head
from learnkit.errors import (
    ContinualStateError,
    ContinualUnsupportedError,
    OodLockedError,
    UncertaintyError,
)
from learnkit.interpret.learner_state import LearnerState
from learnkit.models.eval_mode import evaluating
from learnkit.models.head import create_head, init_head

_IDENTITIES = (nn.Identity, nn.Dropout, nn.Flatten)


def untrained_head(learn: Any, n_out: int) -> nn.Module:
    """A head as `cnn_learner` gave this network, for `n_out` classes, with random weights.

    Raises:
        ContinualUnsupportedError: The network does not say what its head looked like.
    """
    spec = getattr(learn.model, "spec", None)
    if spec is None or "kind" in spec.head:
        raise ContinualUnsupportedError(
            "the network does not say what its trained head looked like (it was not built by "
            "cnn_learner from an architecture's name); build a new learner and load its body"
        )
    head = create_head(learn.model[0].n_features, n_out=n_out, **spec.head)
    init_head(head, nn.init.kaiming_normal_)
    return head.to(next((p.device for p in learn.model[0].parameters()), torch.device("cpu")))


def divide_logits(model: nn.Module, temperature: float, images: Tensor) -> None:
    """Divide the logits of `nn.Sequential(body, head)` by a temperature, for good, in its weights.

    Raises:
        UncertaintyError: The head does not end in a layer that could take it up; nothing changed.
    """
    layer = _last_layer(model[1])
    parameters = [] if layer is None else [layer.weight, layer.bias]
    parameters = [p for p in parameters if p is not None]
    kept = [p.detach().clone() for p in parameters]
    wanted = _logits(model, images) / temperature
    with torch.no_grad():
        for parameter in parameters:
            parameter.div_(temperature)
    if layer is None or not torch.allclose(_logits(model, images), wanted, rtol=1e-3, atol=1e-4):
        with torch.no_grad():
            for parameter, value in zip(parameters, kept, strict=True):
                parameter.copy_(value)
        raise UncertaintyError(
            f"the temperature {temperature:.4g} cannot be put into this head: it must end in a "
            "linear or batch-norm layer, as the heads of cnn_learner without `y_range` do"
        )


def _last_layer(head: nn.Module) -> nn.Module | None:
    """The layer whose weights scale the logits, None if the last one does not."""
    leaves = [m for m in head.modules() if not list(m.children())]
    leaves = [m for m in leaves if not isinstance(m, _IDENTITIES)]
    scales = leaves and isinstance(leaves[-1], nn.Linear | nn.modules.batchnorm._BatchNorm)
    return leaves[-1] if scales and leaves[-1].weight is not None else None


def _logits(model: nn.Module, images: Tensor) -> Tensor:
    with evaluating(model), torch.no_grad():
        return model(images)


@contextmanager
def training(learn: Any, *, n_fits: int = 0) -> Iterator[None]:
    """Let a fit run, or a verb of `n_fits` fits whose last one ends the training.

    What a callback derived from the network after an earlier fit is put aside and, if the network
    is the same afterwards (as after `lr_find`), put back.

    Raises:
        ContinualStateError: Statistics that no callback would renew would become void.
        OodLockedError: The same of a detector from `fit_ood`.
    """
    check_trainable(learn)
    aside = _put_aside(learn)
    # A fit inside such a verb counts down from `n_fits`; `AfterFit` works when none is left.
    left = max(learn.state.fits_to_come - 1, 0) or n_fits
    learn.state = replace(learn.state, fits_to_come=left)
    try:
        yield
    finally:
        if n_fits:
            learn.state = replace(learn.state, fits_to_come=0)
        _put_back(learn, aside)


def check_trainable(learn: Any) -> None:
    """Raise ContinualStateError or OodLockedError unless the network may be trained."""
    head, detector = continual_head(learn.model), learn.state.ood_detector
    renewed = [cb.made for cb in learn.cbs if isinstance(cb, AfterFit) and cb.made is not None]
    if head is not None and not any(made is head.statistics for made in renewed):
        raise ContinualStateError(
            f"training would change the features that the statistics of {len(head.classes)} "
            "classes are made of. Either call learn.refit(data) with images of all classes, which "
            "trains and begins a new continual state; or go back to the trained head with "
            "learn.drop_continual(), and train that"
        )
    if detector is not None and not any(made is detector.statistics for made in renewed):
        raise OodLockedError(
            "training would change the features that the out-of-distribution detector is made of; "
            "remove it with learn.clear_ood(), and call fit_ood again after the training"
        )


class _Aside(NamedTuple):
    """A learner's continual head, its state, and checksums of the body both were made with."""

    head: nn.Module | None
    state: LearnerState
    checksums: list[int]


def _put_aside(learn: Any) -> _Aside | None:
    """Take the learner back to its trained head without a detector; None if that is what it has."""
    head, state = continual_head(learn.model), learn.state
    if head is None and state.ood_detector is None:
        return None
    if head is not None:
        learn.model[1] = state.record.trained_head
    learn.state = replace(state, record=None, ood_detector=None)
    return _Aside(head, state, checksums_of(learn.model[0]))


def _put_back(learn: Any, aside: _Aside | None) -> None:
    """Undo `_put_aside` where the body is the same and nothing new was derived from it."""
    renewed = continual_head(learn.model) is not None or learn.state.ood_detector is not None
    if aside is None or renewed or checksums_of(learn.model[0]) != aside.checksums:
        return
    if aside.head is not None:
        learn.model[1] = aside.head
    record, detector = aside.state.record, aside.state.ood_detector
    learn.state = replace(learn.state, record=record, ood_detector=detector)
