"""Train a continual learner on: with images of all classes, and the continual state begun anew."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import learnkit._torchvision  # noqa: F401  # before fastai

from fastai.data.core import DataLoaders

from learnkit.callback.after_fit import AfterFit
from learnkit.continual.change_report import ChangeReport
from learnkit.continual.classifier import check_continual, continual_head
from learnkit.data.dataset import ImageDataset
from learnkit.errors import DataError
from learnkit.interpret.source import names_of
from learnkit.learner.continual import init_continual
from learnkit.learner.dataloaders import is_normalized, with_normalization
from learnkit.learner.extend_data import data_of_training, labelled_data
from learnkit.learner.learner_notes import notes_of
from learnkit.learner.trained_head import untrained_head
from learnkit.learner.training_data import shown
from learnkit.learner.transforms import preprocessing_of

_SETTINGS = ("memory", "classifier", "score", "false_alarm_rate", "guarantee", "prior")


def refit(learn: Any, data: Any, epochs: int, **training: Any) -> ChangeReport:
    """Fine-tune on images of all classes, then `init_continual`; see `ContinualVerbs.refit`."""
    head = check_continual(continual_head(learn.model))
    dls = _loaders(learn, data)
    _check_nothing_lost(head, labelled_data(dls, classes=names_of(dls) or ()).labels)
    settings = {name: getattr(head.settings, name) for name in _SETTINGS}
    kept = _kept(learn)
    try:
        _begin(learn, dls)
        learn.fine_tune(epochs, **training)
        done = [cb for cb in learn.cbs if isinstance(cb, AfterFit) and cb.task == "continual"]
        if done and continual_head(learn.model) is not None:
            return done[0].report
        return init_continual(learn, data_of_training(learn), **settings)
    except BaseException:  # also after Ctrl-C the learner is what it was
        _restore(learn, *kept)
        raise


def _loaders(learn: Any, data: Any) -> DataLoaders:
    """Loaders over `data` that read and normalise as the learner's do."""
    if isinstance(data, ImageDataset):
        recipe = preprocessing_of(learn.dls).replace(mean=None, std=None)
        data = data.dataloaders(preprocessing=recipe, bs=learn.dls.bs)
        data.to(learn.dls.device) if learn.dls.device is not None else None
    if not isinstance(data, DataLoaders):
        raise DataError(
            f"`data` is a {type(data).__name__}; refit trains, so give a split ImageDataset, or "
            "DataLoaders"
        )
    recipe = preprocessing_of(learn.dls)
    if recipe.mean is None or is_normalized(data):
        return data
    return with_normalization(data, recipe.mean, recipe.std)


def _check_nothing_lost(head: Any, labels: Any) -> None:
    known = {name for name, n in head.n_images.items() if n}
    if lost := sorted(known - set(labels)):
        raise DataError(
            f"`data` has no training images of {shown(lost)}, which the learner knows; refit needs "
            "images of all classes: add some, or forget those classes first"
        )


def _begin(learn: Any, dls: DataLoaders) -> None:
    """Loaders and a trained head for the classes of `dls`, and an optimizer for both."""
    notes, names = notes_of(learn), names_of(dls) or []
    same = names == names_of(learn.dls) and notes.trained_head is not None
    new = copy.deepcopy(notes.trained_head) if same else untrained_head(learn, len(names))
    spec = getattr(learn.model, "spec", None)
    if spec is not None:
        learn.model.spec = dataclasses.replace(spec, n_out=len(names))
    learn.model[1], learn.continual_notes = new, None
    learn.dls, learn.opt = dls, None


def _kept(learn: Any) -> tuple[Any, ...]:
    """What `_restore` puts back."""
    state = copy.deepcopy(learn.model[0].state_dict())
    spec = getattr(learn.model, "spec", None)
    return learn.model[1], learn.continual_notes, learn.dls, learn.opt, spec, state


def _restore(learn: Any, head: Any, notes: Any, dls: Any, opt: Any, spec: Any, body: Any) -> None:
    learn.model[1], learn.continual_notes = head, notes
    learn.dls, learn.opt, learn.model.spec = dls, opt, spec
    learn.model[0].load_state_dict(body)
