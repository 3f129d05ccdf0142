"""Validation passes of fastai over a learner that numbers its classes otherwise than its loaders.

fastai takes a class number of a loader for a column of the network's outputs. In the continual
state classes come in any order, and another loader has a vocabulary of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import learnkit._torchvision  # noqa: F401  # before fastai

import fastai.vision.learner  # noqa: F401  # has the drawing of images with their classes
from fastai.data import core
from fastai.data.transforms import Category
from fastai.losses import CrossEntropyLossFlat
from fastcore.foundation import L
from torch import Tensor

from learnkit.callback.base import TrainingCallback
from learnkit.continual.classifier import continual_head
from learnkit.errors import InterpretationError
from learnkit.interpret.learner_state import class_names, renumbering
from learnkit.interpret.normalization import renormalization


def targets_of_outputs(learn: Any, targets: Sequence[Any]) -> tuple[Any, ...]:
    """Targets of a batch of the running pass, in the class numbers of the learner's outputs.

    Raises:
        InterpretationError: One is of a class the learner does not know.
    """
    numbers = renumbering(learn, getattr(learn, "dl", None)) if len(targets) == 1 else None
    return tuple(targets) if numbers is None else (numbers(targets[0]),)


class _Batches(list):
    """Batches of the loader `source`, whose pixels are those of its own batches."""

    source: Any = None


def inputs_of_network(learn: Any, inputs: Sequence[Any]) -> tuple[Any, ...]:
    """Inputs of a batch of the running pass, with pixels as the network takes them."""
    pixels = renormalization(learn, getattr(learn, "dl", None))
    return tuple(inputs) if pixels is None else tuple(map(pixels, inputs))


@contextmanager
def loss_of_outputs(learn: Any) -> Iterator[None]:
    """In the continual state cross-entropy in place of the loss the trained head was made for.

    That loss may weigh as many classes as there were, or have no value for a forgotten one.
    """
    own = learn.loss_func
    if continual_head(learn.model) is not None:
        learn.loss_func = CrossEntropyLossFlat()
    try:
        yield
    finally:
        learn.loss_func = own


@contextmanager
def no_training_events(learn: Any) -> Iterator[None]:
    """Keep callbacks of real fits out of `tta`, which tells all callbacks that a fit has ended."""
    running = [cb for cb in learn.cbs if isinstance(cb, TrainingCallback) and cb.run]
    for cb in running:
        cb.run = False
    try:
        yield
    finally:
        for cb in running:
            cb.run = True


def show_results(learn: Any, dl: Any, *, max_n: int, **kwargs: Any) -> None:
    """Draw images of a batch of `dl` with the names of their classes and of the predicted ones.

    Raises:
        InterpretationError: One is of a class the learner does not know.
    """
    batch = dl.one_batch()
    continual = continual_head(learn.model) is not None
    if continual and len(batch) == dl.n_inp:
        raise InterpretationError(
            "The samples have no labels to show beside the predicted ones; pass a loader with "
            "labels, or ask `learn.predict_batch(files)`"
        )
    batches = _Batches([batch[: dl.n_inp]])
    batches.source = dl
    predicted = learn.get_preds(dl=batches, with_decoded=True)[2]
    numbers = renumbering(learn, dl)
    if (numbers is None and not continual) or len(batch) != 2 or predicted.ndim != 1:
        dl.show_results(batch, predicted, max_n=max_n, **kwargs)
        return
    x, y, samples = dl.show_batch(batch, max_n=max_n, show=False)
    truth = batch[1] if numbers is None else numbers(batch[1])
    names = class_names(learn)
    images = samples.itemgot(0)
    samples = L(zip(images, _named(truth, names), strict=False))
    outs = L(zip(_named(predicted, names)[: len(images)], strict=True))
    core.show_results(x, y, samples, outs, ctxs=kwargs.pop("ctxs", None), max_n=max_n, **kwargs)


def _named(numbers: Tensor, names: Sequence[str]) -> list[Category]:
    return [Category(names[number]) for number in numbers.tolist()]
