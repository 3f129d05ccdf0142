"""The trained head of a learner: a new one for other classes, calibration, leave to train."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import learnkit._torchvision  # noqa: F401  # before fastai

import torch
from fastai.callback.training import BnFreeze
from fastai.torch_core import to_device
from torch import Tensor, nn

from learnkit.callback.after_fit import AfterFit
from learnkit.callback.class_weights import weighted_loss
from learnkit.callback.folded_norms import FoldedNorms
from learnkit.callback.frozen_features import checksums_of
from learnkit.callback.training_precision import autocast_model, precision_of
from learnkit.continual.classifier import continual_head
from learnkit.data.labelled_images import files_or_images
from learnkit.errors import (
    ContinualStateError,
    ContinualUnsupportedError,
    DataError,
    ExportError,
    NonFiniteLossError,
    OodLockedError,
    UncertaintyError,
    first_few,
    number_of,
)
from learnkit.interpret.learner_state import LearnerState, class_names
from learnkit.learner.dataloaders import is_multi_label
from learnkit.learner.features import loader_over
from learnkit.learner.transforms import preprocessing_of
from learnkit.models.eval_mode import evaluating
from learnkit.models.head import create_head, init_head

_SCALES = [2.0**16, 2.0**12, 2.0**8, 2.0**4, 1.0]
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
    found = {name: vars(learn)[name] for name in ("loss_func", "logger") if name in vars(learn)}
    try:
        yield
    except BaseException:
        # what callbacks put in its place and, interrupted, could not put back
        vars(learn).update(found)
        raise
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


def train_batch(learn: Any, images: Any, labels: Any = None) -> dict[str, float]:
    """One training step outside of a fit; see `ImageLearner.train_batch`."""
    check_trainable(learn)
    model, (x, y) = learn.model, _as_batch(learn, images, labels)
    if learn.opt is None:
        learn.create_opt()
    # as fastai's `fit` does before its first step
    if learn.wd is not None:
        learn.opt.set_hypers(wd=learn.wd)
    modes = [(module, module.training) for module in model.modules()]
    # running statistics move before anybody knows the loss
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    try:
        model.train()
        for cb in learn.cbs:
            # they set modes of layers, which a step needs; no other callback is told
            if isinstance(cb, BnFreeze | FoldedNorms):
                cb.before_train()
        loss = _propagated(learn, x, y)
    except BaseException:
        with torch.no_grad():
            for name, value in model.named_buffers():
                value.copy_(buffers[name])
        raise
    else:
        learn.opt.step()
    finally:
        learn.opt.zero_grad()
        for module, mode in modes:
            module.training = mode
    return {"total_loss": loss}


def _propagated(learn: Any, x: Tensor, y: Any) -> float:
    """The loss of a batch, whose gradients are then in the network."""
    try:
        with autocast_model(learn):
            outputs = learn.model(x)
        with weighted_loss(learn):
            loss = learn.loss_func(outputs, y)
    except ValueError as error:
        if "Expected more than 1 value per channel" not in str(error):
            raise
        raise DataError(
            "the batch holds one image, and a batch norm needs two to normalise by: give two or "
            "more images"
        ) from error
    _backward(learn, loss)
    gradients = [p.grad for p in learn.model.parameters() if p.grad is not None]
    # a number for each gradient: no sum with NaN or infinity in it is finite
    if not torch.isfinite(torch.stack([loss.detach(), *map(torch.sum, gradients)])).all():
        raise NonFiniteLossError(
            f"the loss of the batch is {float(loss.detach())}, or its gradients are not finite; no "
            "step was made: look at the images, or lower the rate by learn.opt.set_hypers(lr=...)"
        )
    return loss.detach().item()


def _backward(learn: Any, loss: Tensor) -> None:
    """Add the gradients of a loss to those in the network.

    In float16 they are computed as many times larger as they can be: small ones would be rounded to
    zero, large ones overflow. A single step has no earlier ones to find that scale by.
    """
    if precision_of(learn) != "float16":
        loss.backward()
        return
    trained = [p for p in learn.model.parameters() if p.requires_grad]
    loss = loss.as_subclass(Tensor)  # of fastai's kinds, gradients would be views
    for scale in _SCALES:
        found = torch.autograd.grad(loss * scale, trained, retain_graph=True, allow_unused=True)
        if all(g is None or g.isfinite().all() for g in found):
            break
    for parameter, gradient in zip(trained, found, strict=True):
        if gradient is not None:
            own = gradient / scale
            parameter.grad = own if parameter.grad is None else parameter.grad + own


def _as_batch(learn: Any, images: Any, labels: Any) -> tuple[Tensor, Any]:
    """Input and target of the network, where the network is."""
    if labels is None:
        pair = isinstance(images, tuple | list) and len(images) == 2
        if not pair or not all(isinstance(one, Tensor) for one in images):
            raise DataError(
                "`labels` is missing; give one for each image, or a batch of a loader: (images, "
                "targets) as tensors"
            )
        x, y = images
    else:
        items = files_or_images(images)
        x = _pixels(learn, items) if items else torch.empty(0)
        y = _targets(learn, labels, len(items))
    device = next(learn.model.parameters()).device
    return to_device(x, device), to_device(y, device)


def _pixels(learn: Any, items: list[Any]) -> Tensor:
    """Input of the network, read as validation images are."""
    try:
        recipe = preprocessing_of(learn.dls)
    except ExportError as problem:
        (batch,) = loader_over(learn, items, len(items), problem)
        return batch[0]
    return torch.stack([recipe(item) for item in items])


def _targets(learn: Any, labels: Any, n: int) -> Tensor:
    """Class numbers (n,), or flags (n, C) of several labels per image."""
    labels = [labels] * n if isinstance(labels, str) else list(labels)
    if not n or len(labels) != n:
        raise DataError(
            f"{len(labels)} `labels` for {number_of(n, 'image')}; give one for each image"
        )
    several, number = is_multi_label(learn.dls), {}
    for i, name in enumerate(class_names(learn) or ()):
        number |= {name: i, i: i}
    names = [label if several else [label] for label in labels]
    if unknown := sorted({name for row in names for name in row} - number.keys(), key=str):
        known = first_few(name for name in number if isinstance(name, str))
        raise DataError(f"`labels` has {unknown[:5]}, which are no classes here ({known})")
    if not several:
        return torch.tensor([number[name] for (name,) in names])
    # each class is in there twice, by its name and by its number
    flags = torch.zeros(n, len(number) // 2)
    for row, of_image in zip(flags, names, strict=True):
        row[[number[name] for name in of_image]] = 1
    return flags


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
