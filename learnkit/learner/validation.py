"""Validation passes of fastai over a learner, made to agree with learnkit's own answers.

fastai takes a class number of a loader for a column of the network's outputs. In the continual
state classes come in any order, and another loader has a vocabulary of its own. Of several labels
per image it compares with one threshold; the loss function may have one for each class.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import learnkit._torchvision  # noqa: F401  # before fastai

import fastai.vision.learner  # noqa: F401  # has the drawing of images with their classes
import numpy as np
import torch
from fastai.data import core
from fastai.data.transforms import Category
from fastai.learner import AvgMetric
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy_multi
from fastcore.foundation import L
from torch import Tensor, from_numpy

from learnkit.callback.base import TrainingCallback
from learnkit.callback.stop_on_non_finite import no_batches
from learnkit.continual.classifier import continual_head
from learnkit.data.preprocess import Preprocessing
from learnkit.errors import ExportError, InterpretationError, LearnkitError, first_few, warn_user
from learnkit.evaluation.inputs import LabelThreshold, labels_above
from learnkit.inference.batch import BATCH
from learnkit.inference.prediction import Prediction, conclude
from learnkit.inference.suggestion import Suggestions, suggest
from learnkit.interpret.learner_state import class_names, detector_of, renumbering
from learnkit.interpret.losses import loss_threshold
from learnkit.interpret.normalization import renormalization
from learnkit.interpret.outputs import collect_outputs
from learnkit.interpret.source import file_of_item, no_samples, numbered_loader
from learnkit.learner.dataloaders import is_multi_label
from learnkit.learner.export import predictor_of
from learnkit.learner.features import loader_over, read_by_loader

_SHOWN = 224  # pixels of pictures to show


class _Batches(list):
    """Batches of the loader `source`, whose pixels are those of its own batches."""

    source: Any = None


def network_batch(
    learn: Any, inputs: Sequence[Any], targets: Sequence[Any]
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """(inputs with pixels as the network takes them, targets as it numbers its outputs) of a batch.

    Raises:
        InterpretationError: A target is of a class the learner does not know.
    """
    dl = getattr(learn, "dl", None)
    pixels = renormalization(learn, dl)
    numbers = renumbering(learn, dl) if len(targets) == 1 else None
    return (
        tuple(inputs if pixels is None else map(pixels, inputs)),
        tuple(targets if numbers is None else map(numbers, targets)),
    )


def comparable_loss(loss_func: Any) -> Any:
    """The loss function; a copy of one whose `thresh` is a list, which fastai cannot compare with.

    Raises:
        InterpretationError: One of the thresholds is no probability.
    """
    thresh = getattr(loss_func, "thresh", None)
    if not isinstance(thresh, list | tuple | np.ndarray):
        return loss_func
    loss_func = copy.copy(loss_func)
    thresholds = loss_threshold(loss_func, len(thresh))
    loss_func.thresh = torch.tensor(thresholds, dtype=torch.float64)
    return loss_func


def metrics_of_loss(metrics: Any, loss_func: Any, n_classes: int | None) -> list[Any]:
    """The metrics; `accuracy_multi` counts a label above the threshold of the loss function.

    A metric with another threshold of its own stays as it is, and a warning says so.
    """
    if not hasattr(loss_func, "thresh") or n_classes is None:
        return list(metrics)
    return [_of_loss(metric, loss_threshold(loss_func, n_classes)) for metric in metrics]


def _of_loss(metric: Any, threshold: LabelThreshold) -> Any:
    if getattr(metric, "func", None) is accuracy_multi:
        return metric if threshold == 0.5 else AvgMetric(partial(_label_accuracy, threshold))
    named = getattr(getattr(metric, "func", None), "keywords", None) or vars(metric)
    own = named.get("thresh")
    if own is not None and own != threshold:
        warn_user(
            f"the metric {metric.name} counts labels above {own}, the loss function, `evaluate` "
            f"and `predict` above {threshold}; give both the same `thresh`"
        )
    return metric


def _label_accuracy(threshold: LabelThreshold, logits: Tensor, targets: Tensor) -> Tensor:
    predicted = labels_above(logits.detach().sigmoid().cpu().as_subclass(Tensor), threshold)
    right = predicted == targets.cpu().as_subclass(Tensor).bool().numpy()
    return torch.tensor(right.mean())


_label_accuracy.__name__ = accuracy_multi.__name__  # the column of the history


def predictions_of(learn: Any, items: Any, bs: int | None = None) -> list[Prediction]:
    """One Prediction per item, read as the learner's validation reads; rows of its table, too.

    Where no recipe says how files are read, fastai's loaders or torchvision's dataset read them.
    Without `bs`, `items` is a list of one.

    Raises:
        PredictionError: Nothing tells how an item is read, or an answer is not finite.
    """
    if isinstance(items, list | tuple):
        items = [file_of_item(learn.dls.valid_ds, item) for item in items]
    try:
        predictor = predictor_of(learn)
    except ExportError as error:
        items = list(items)
        return _predictions_by_loader(learn, items, bs or BATCH, error) if items else []
    return [predictor.predict(*items)] if bs is None else predictor.predict_batch(items, bs=bs)


def suggestions_of(learn: Any, images: Any, n: int, **reading: Any) -> Suggestions:
    """Images to label next, read as the learner's validation reads; see `ImageLearner.suggest`."""
    try:
        predictor = predictor_of(learn)
    except ExportError as problem:
        predictor = predictor_of(learn, recipe=Preprocessing(_SHOWN))  # for pictures alone
        reading["read"] = partial(read_by_loader, learn, problem=problem)
    return suggest(predictor.record, images, n, **reading)


def _predictions_by_loader(
    learn: Any, items: list[Any], bs: int, problem: ExportError
) -> list[Prediction]:
    detector = detector_of(learn)
    dl = loader_over(learn, items, bs, problem)
    outputs = collect_outputs(learn, dl, with_features=detector is not None, progress=False)
    multi_label = is_multi_label(learn.dls)
    results = conclude(
        None if detector is None else detector.scoring,
        None if outputs.features is None else outputs.features.numpy(),
        outputs.logits.numpy(),
        tuple(outputs.classes),
        multi_label=multi_label,
        threshold=loss_threshold(learn.loss_func, len(outputs.classes)) if multi_label else 0.5,
        wrap=from_numpy,
    )
    for result in results:
        if isinstance(result, LearnkitError):
            raise result
    return results


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


def told_of_forgotten(learn: Any, values: Sequence[float]) -> Sequence[float]:
    """The loss and metrics of a pass; warns where images of a forgotten class make it infinite."""
    head = continual_head(learn.model)
    if head is None or not len(values) or not np.isinf(values[0]):
        return values
    former = head.statistics.former_names  # of a class merged away, images are the other's
    gone = [name for name, n in head.n_images.items() if not n and name not in former]
    if not gone:
        return values
    warn_user(
        f"the loss is infinite: images are of classes that the learner has forgotten "
        f"({first_few(map(repr, gone))}), which it takes for impossible; leave them out of the "
        "data, or `extend` it with such images"
    )
    return values


def loader_of(learn: Any, dl: Any, ds_idx: int, **changes: Any) -> Any:
    """The loader `dl`, else that of the learner by number, with `changes` where it can have some.

    Raises:
        InterpretationError: There is none of this number, or it gives no batch.
    """
    if dl is None:
        dl = numbered_loader(learn, ds_idx)
        dl = dl.new(**changes) if changes and hasattr(dl, "new") else dl
    if hasattr(dl, "__len__") and not len(dl):
        dropped = getattr(dl, "n", None)
        raise InterpretationError(no_batches(dl, "loader") if dropped else no_samples(learn))
    return dl


def whole_loader(learn: Any, dl: Any, ds_idx: int) -> Any:
    """The loader of `loader_of` with all its samples: one for training may drop some."""
    whole = {"shuffle": False, "drop_last": False}
    dl = dl.new(**whole) if getattr(dl, "drop_last", False) and hasattr(dl, "new") else dl
    return loader_of(learn, dl, ds_idx, **whole)


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
    # all that `get_preds` wants of a loader is a length; so what is drawn was predicted
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
