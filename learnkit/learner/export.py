"""Export of a learner, and the way back: predictor over its model, bundle, faster predictor.

`learner_from` makes a learner that goes on where a bundle stopped: network, classes, state and
history come along.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import learnkit._torchvision  # noqa: F401  # before fastai

import numpy as np
import torch
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.losses import BCEWithLogitsLossFlat, CrossEntropyLossFlat
from torch import nn

from learnkit.bundle.audit import HISTORY as AUDIT
from learnkit.bundle.read import read
from learnkit.bundle.schema import CONFIG
from learnkit.bundle.state import OOD, STATE
from learnkit.bundle.variant import FLOAT32
from learnkit.bundle.write import write
from learnkit.callback.folded_norms import FoldedNorms, folded_norms
from learnkit.callback.history import is_history
from learnkit.continual.classifier import continual_head
from learnkit.continual.knowledge import Knowledge
from learnkit.data.dataset import ImageDataset
from learnkit.data.image import image_kind
from learnkit.data.labelled_images import Labelled
from learnkit.data.labels import ids_of_classes
from learnkit.data.preprocess import Preprocessing
from learnkit.deploy.home import place_of
from learnkit.deploy.hub_bundle import located
from learnkit.deploy.predictor import Predictor, load_learner
from learnkit.errors import BundleError, BundleWriteError, DataError, ExportError
from learnkit.inference.model import Model
from learnkit.interpret.learner_state import (
    ContinualRecord,
    LearnerState,
    class_names,
    first_class_ids,
    learner_state,
    names_of,
)
from learnkit.interpret.losses import loss_threshold
from learnkit.interpret.outputs import collect_outputs
from learnkit.interpret.source import Source
from learnkit.learner.adopt import travelling
from learnkit.learner.dataloaders import empty_dataloaders, is_multi_label
from learnkit.learner.training_data import own_data
from learnkit.learner.transforms import preprocessing_of
from learnkit.models.eval_mode import randomness_kept
from learnkit.models.param_groups import param_groups
from learnkit.optimize.samples import PER_CLASS, evenly
from learnkit.storage.filesystem import check_path
from learnkit.storage.formats import finite_or_none, parse_json
from learnkit.storage.read_folder import read_manifest

if TYPE_CHECKING:
    from learnkit.optimize.conversion_report import ConversionReport


N_PROBES = 4
_N_HEADERS = 200  # files looked at for kinds of images
_ROUNDING = 2 / 255  # batch transforms leave pixels between two of 8 bits
HISTORY = "training_history"  # where a bundle's metadata keeps the epochs


def predictor_of(
    learn: Learner, *, travels: bool = False, recipe: Preprocessing | None = None
) -> Predictor:
    """Return a Predictor that shares the learner's model and reads images as its validation does.

    One that `travels` has a network that can be rebuilt from data, see `travelling`; one with a
    `recipe` reads by that.

    Raises:
        ExportError: A validation transform is code; the message names it.
    """
    classes = class_names(learn)
    recipe = preprocessing_of(learn.dls) if recipe is None else recipe
    continual = continual_head(learn.model) is not None
    multi_label = is_multi_label(learn.dls)
    return Predictor(
        travelling(learn, recipe) if travels else learn.model,
        recipe,
        classes,
        multi_label=multi_label,
        threshold=loss_threshold(learn.loss_func, len(classes)) if multi_label else 0.5,
        metadata=learner_state(learn).metadata,
        detector=None if continual else learner_state(learn).ood_detector,
        class_ids=first_class_ids(learn),
    )


def own_predictor_of(learn: Learner) -> Predictor:
    """Return the same with a head, or detector, of its own over the network they share.

    What the predictor learns or sets is then its own, and the learner's is not its.

    Raises:
        ExportError: A validation transform is code; the message names it.
    """
    predictor, model = predictor_of(learn), learn.model
    if predictor.ood is None:
        return predictor
    if predictor.continual is None:
        predictor.detector = copy.deepcopy(predictor.detector)
        return predictor
    model = copy.copy(model)
    model._modules = dict(learn.model._modules)  # a copy shares them
    model[1] = copy.deepcopy(learn.model[1])
    kept = {"metadata": predictor.metadata, "class_ids": predictor.record.class_ids}
    return Predictor(model, predictor.preprocessing, **kept)


def export_learner(learn: Learner, path: str | Path, *, evaluate: bool = True) -> Path:
    """Return the folder of the bundle written; the learner goes on as before.

    Raises:
        ExportError: Something about the learner cannot travel as data; the message names it.
        BundleWriteError: The folder could not be written, or something else has changed what was
            learned in the bundle that this learner was made from or exported to; what stood there
            still does.
    """
    check_path(path, BundleWriteError)  # before what takes long
    check_as_seen(learn, path)
    predictor = predictor_of(learn, travels=True)
    if learn.training_history.rows:
        predictor.metadata[HISTORY] = _history(learn)
    probes = probe_images(learn, predictor.preprocessing)
    write(path, predictor.record, card=_card(learn, evaluate=evaluate), probes=probes)
    seen = dict(learner_state(learn).seen) | {place_of(path): changes_in(path)}
    learn.state = replace(learn.state, seen=(*seen.items(),))
    return Path(path)


def check_as_seen(learn: Any, path: str | Path) -> None:
    """Raise BundleWriteError if what others have changed in the bundle at `path` would be lost.

    Conversions to other backends are no loss: they are of the weights that go.
    """
    known = dict(learner_state(learn).seen).get(place_of(path))
    if known and changes_in(path) not in ("", known):
        raise BundleWriteError(
            f"the bundle {path} has changed since this learner was made from it or exported to it: "
            "something else changed it, and that would be lost. Go on from it by "
            "`ImageLearner.from_bundle`, export to another path, or move that bundle away first"
        )


def changes_in(path: str | Path) -> str:
    """What the changes of a bundle are known by; "" where there is none.

    Statistics, audit, and all that a person set: everything but conversions and which one is taken.
    """
    try:
        files = read_manifest(place_of(path), None)[0]["files"]
        config = parse_json((place_of(path) / CONFIG).read_bytes(), CONFIG)
        config["learnkit"].pop("default_variant", None)
    except (BundleError, OSError, LookupError):
        return ""
    taught = {name: files[name]["sha256"] for name in (STATE, OOD, AUDIT) if name in files}
    return hashlib.sha256(json.dumps([taught, config], sort_keys=True).encode()).hexdigest()


def probe_images(learn: Learner, recipe: Preprocessing) -> torch.Tensor | None:
    """Return a few validation images uint8 (n, C, H, W); None if they are not files.

    A learner of a bundle has those of the bundle where it has no images of its own.
    """
    with randomness_kept():
        source = Source(learn.dls.valid)
    files = source.items
    if not files:
        probes = learner_state(learn).probes
        fitting = probes is not None and probes.shape[1:] == (recipe.channels, *recipe.size)
        return probes if fitting else None
    chosen = _evenly(files, N_PROBES)
    # one of each kind too, as far as headers of some of them tell
    # reversed: of each kind the first stays
    kinds = {image_kind(files[i]): i for i in reversed(_evenly(files, _N_HEADERS))}
    _check_reading(source, recipe, [*chosen, *sorted(kinds.values())])
    return torch.stack([recipe.load(files[i]) for i in chosen])


def _evenly(files: Sequence[Path], n: int) -> list[int]:
    return np.linspace(0, len(files) - 1, min(n, len(files))).astype(int).tolist()


def _check_reading(source: Source, recipe: Preprocessing, places: Sequence[int]) -> None:
    """Compare what the network saw of files in training with what it will see of them.

    Raises:
        ExportError: A file is read otherwise; the message names it.
    """
    inputs, _ = source.read(places)
    std = torch.tensor(recipe.std or [1.0]).view(-1, 1, 1)
    for place, seen in zip(places, inputs.cpu(), strict=True):
        path = source.items[place]
        found = recipe(path)
        same = found.shape == seen.shape
        # times std: differences of pixels in 0..1 again, which `_ROUNDING` is of
        if same and float(((found - seen) * std).abs().max()) <= _ROUNDING:
            continue
        raise ExportError(
            f"{str(path)!r} is another picture to the loaders than to the recipe that would travel "
            f"({recipe}); make them with ImageDataset.dataloaders(), whose files are read by one "
            "recipe everywhere"
        )


def _card(learn: Learner, *, evaluate: bool) -> dict[str, Any]:
    """Return what the model card says of data, training and measures."""
    card = {"data": _data_facts(learn), "training": _training_facts(learn)}
    if good := good_of_learner(learn):
        card["good"] = list(good)
    if not any(len(dl.dataset) for dl in learn.dls.loaders):  # made from a bundle, without images
        earlier = dict(learner_state(learn).metadata.get("card", {}))
        of_training = {"training", "measures", "intervals", "per_class"}
        told = {k: v for k, v in earlier.items() if k not in of_training}
        return card | told
    if evaluate and len(learn.dls.valid_ds):  # fastai's own export comes back without images
        evaluation = collect_outputs(learn).evaluate()
        card["measures"] = evaluation.summary.to_dict()
        card["intervals"] = {
            name: [low, high] for name, low, high in evaluation.intervals.itertuples()
        }
        table = evaluation.per_class.rename_axis("class").reset_index()
        card["per_class"] = table.to_dict("records")
    return card


def note_good(learn: Learner, good: Sequence[str]) -> None:
    """Note the classes that mean a part is good; they travel in the model's card."""
    card = {**(learn.state.metadata.get("card") or {}), "good": list(good)}
    if good:
        learn.state = replace(learn.state, metadata={**learn.state.metadata, "card": card})


def good_of_learner(learn: Learner) -> tuple[str, ...]:
    """The classes that mean a part is good, as far as anybody said so and it knows them."""
    card = learner_state(learn).metadata.get("card") or {}
    return tuple(name for name in card.get("good") or () if name in (class_names(learn) or ()))


def _data_facts(learn: Learner) -> dict[str, Any]:
    """Return the number of images per split and the dataset's fingerprint, where known."""
    names = ("training images", "validation images", "test images")
    sizes = [len(dl.dataset) for dl in learn.dls.loaders]
    facts = {name: size for name, size in zip(names, sizes, strict=False) if size}
    dataset = getattr(learn.dls, "image_dataset", None)
    return facts if dataset is None else facts | {"fingerprint": dataset.fingerprint()}


def _history(learn: Learner) -> dict[str, Any]:
    """Return the epochs of the history as JSON values; what is no number or text stays here."""
    state = learn.training_history.state()
    rows = [
        {k: v for k, v in row.items() if isinstance(v, str | int | float)} for row in state["rows"]
    ]
    finite = [
        {k: finite_or_none(v) if isinstance(v, float) else v for k, v in row.items()}
        for row in rows
    ]
    return {**state, "rows": finite}


def _training_facts(learn: Learner) -> dict[str, Any]:
    """Return what the history knows of the training: epochs and the last row's numbers."""
    history = learn.training_history.frame
    if history.empty:
        return {"epochs": 0}
    last = history.iloc[-1]
    return {"epochs": len(history), **{f"last {k}": last[k] for k in ("train_loss", "valid_loss")}}


def optimize_learner(
    learn: Any,
    precision: str = "float32",
    samples: Any = None,
    *,
    test: Any = None,
    learned: Any = None,
    **settings: Any,
) -> tuple[Predictor, ConversionReport]:
    """Return (faster predictor, report); see `ImageLearner.optimize`."""
    predictor = predictor_of(learn, travels=True)
    predictor.probes = probe_images(learn, predictor.preprocessing)
    if predictor.multi_label:
        train, valid = _multi_label(learn)
    else:
        train, valid = _of_training(learn)
    samples = _drawn(train) if samples is None and precision == "int8" else samples
    test = valid if test is None else test
    learned = train._replace(validation=valid) if learned is None and train else learned
    return predictor.optimize(precision, samples, test=test, learned=learned, **settings)


def _of_training(learn: Any) -> tuple[Labelled | None, Labelled | None]:
    """(training images, validation images) by the names the learner has for their classes now."""
    own = own_data(learn)
    if own is None or not isinstance(own.items, list):
        return None, None
    record = learner_state(learn).record
    former = {} if record is None else record.former_names
    train, valid = own._replace(validation=None), own.validation
    if valid is None or not isinstance(valid.items, list):
        return _renamed(train, former), None
    return _renamed(train, former), _renamed(valid, former)


def _multi_label(learn: Any) -> tuple[Labelled | None, Labelled | None]:
    """The same where an image has several labels, as far as the dataset tells."""
    data = getattr(learn.dls, "image_dataset", None)
    if data is None or "train" not in data.splits:
        return None, None
    pairs = [data.train, data.valid if "valid" in data.splits else None]
    train, valid = (part and Labelled(part.paths, part.labels) for part in pairs)
    return train, valid


def _renamed(images: Labelled, names: Mapping[str, str]) -> Labelled:
    return images._replace(labels=[names.get(label, label) for label in images.labels])


def _drawn(images: Labelled | None) -> Labelled | None:
    """The same few images of each class every time."""
    if images is None:
        return None
    places = evenly(images.labels, PER_CLASS)
    return Labelled([images.items[i] for i in places], [images.labels[i] for i in places])


def learner_from(
    kind: Any, path: str | os.PathLike | bytes, data: Any, *, sha256: str | None, **given: Any
) -> Any:
    """A learner of `kind` that goes on where a bundle stopped; see `ImageLearner.from_bundle`."""
    if isinstance(path, bytes):
        record, seen = load_learner(path, variant=FLOAT32, sha256=sha256).record, ()
    else:
        record = read(path := located(path, sha256=sha256), variant=FLOAT32, sha256=sha256)
        seen = ((place_of(path), changes_in(path)),)
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
        seen=seen,
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
    # the oldest first, as each record holds the one before it
    for knowledge in reversed(history.states):
        record = replace(_noted(knowledge, class_ids), earlier=record)
    snapshots = {name: _noted(one, class_ids) for name, one in history.snapshots.items()}
    return replace(record, snapshots=snapshots)


def _noted(knowledge: Knowledge, class_ids: tuple[int, ...]) -> ContinualRecord:
    names = dict(knowledge.statistics.former_names)
    return ContinualRecord(former_names=names, class_ids=class_ids)
