"""A learner that goes on where a bundle stopped: network, classes, state and history come along."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import learnkit._torchvision  # noqa: F401  # before fastai

from fastai.data.core import DataLoaders
from fastai.losses import BCEWithLogitsLossFlat, CrossEntropyLossFlat
from torch import nn

from learnkit.bundle.read import read
from learnkit.bundle.variant import FLOAT32
from learnkit.callback.folded_norms import FoldedNorms, folded_norms
from learnkit.callback.history import is_history
from learnkit.continual.classifier import continual_head
from learnkit.continual.knowledge import Knowledge
from learnkit.data.dataset import ImageDataset
from learnkit.data.labels import ids_of_classes
from learnkit.deploy.hub_bundle import located
from learnkit.deploy.predictor import load_learner
from learnkit.errors import DataError
from learnkit.inference.model import Model
from learnkit.interpret.learner_state import ContinualRecord, LearnerState, names_of
from learnkit.learner.dataloaders import empty_dataloaders, is_multi_label
from learnkit.learner.export import HISTORY
from learnkit.models.param_groups import param_groups


def learner_from(
    kind: Any, path: str | os.PathLike | bytes, data: Any, *, sha256: str | None, **given: Any
) -> Any:
    """A learner of `kind` that goes on where a bundle stopped; see `ImageLearner.from_bundle`."""
    if isinstance(path, bytes):
        record = load_learner(path, variant=FLOAT32, sha256=sha256).record
    else:
        record = read(located(path, sha256=sha256), variant=FLOAT32, sha256=sha256)
    dls, model = _loaders_for(record, data), record.network.model
    if continual_head(model) is not None:  # its trained head is gone; another has the usual layout
        model.spec = replace(model.spec, head={})
    loss = BCEWithLogitsLossFlat(thresh=record.threshold) if record.multi_label else None
    arguments = {"loss_func": loss or CrossEntropyLossFlat(), "splitter": param_groups}
    learn = kind(dls, model, **{**arguments, "precision": "auto", **given})
    if folded_norms(model[0]):
        learn.add_cb(FoldedNorms())
    learn.state = LearnerState(
        record=_continual_record(model, record.class_ids),
        ood_detector=record.detector,
        metadata=dict(record.metadata),
        probes=record.probes,
        class_ids=_ids_by_name(record),
    )
    history = record.metadata.get(HISTORY)
    if is_history(history):
        learn.training_history.load_state(history)
    return learn


def _loaders_for(record: Model, data: Any) -> DataLoaders:
    """Loaders over `data` that read images as the bundle's model does, or over none.

    Raises:
        DataError: `data` is of another kind, or has several labels per image and the model one.
    """
    recipe = record.preprocessing
    if data is None:
        return empty_dataloaders(recipe, record.classes, multi_label=record.multi_label)
    dls = data.dataloaders(preprocessing=recipe) if isinstance(data, ImageDataset) else data
    if not isinstance(dls, DataLoaders):
        raise DataError(
            f"`data` is a {type(data).__name__}; give a split ImageDataset, DataLoaders, or "
            "nothing for a learner without images"
        )
    if names_of(dls) is not None and is_multi_label(dls) != record.multi_label:
        kinds = "several labels per image", "one label per image"
        here, there = kinds if is_multi_label(dls) else kinds[::-1]
        raise DataError(f"`data` has {here}, and the model of the bundle gives {there}")
    return dls


def _ids_by_name(record: Model) -> dict[str, int]:
    """The ids of the classes of a bundle's model, where they are not simply their places."""
    if not record.class_ids:
        return {}
    ids = ids_of_classes(record.class_ids, len(record.classes))
    return dict(zip(record.classes, ids, strict=True))


def _continual_record(model: nn.Module, class_ids: tuple[int, ...]) -> ContinualRecord | None:
    """What a learner notes of a continual head that was loaded, with as many steps to undo."""
    head = continual_head(model)
    if head is None:
        return None
    record, history = None, head.history
    for knowledge in reversed(history.states):
        record = replace(_noted(knowledge, class_ids), earlier=record)
    snapshots = {name: _noted(one, class_ids) for name, one in history.snapshots.items()}
    return replace(record, snapshots=snapshots)


def _noted(knowledge: Knowledge, class_ids: tuple[int, ...]) -> ContinualRecord:
    names = dict(knowledge.statistics.former_names)
    return ContinualRecord(former_names=names, class_ids=class_ids)
