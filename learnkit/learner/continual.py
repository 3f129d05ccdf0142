"""The continual state of a learner: how it begins, grows, shrinks and ends.

The head becomes a `ContinualClassifier`; it alone knows classes and statistics. The learner adds
what only it has: the head that was trained, what the classes were called in training, and which
files were learned. The caller's data and loaders are never changed.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import learnkit._torchvision  # noqa: F401  # before fastai

from fastai.data.core import DataLoaders
from torch import Tensor, nn

from learnkit.callback.after_fit import AfterFit
from learnkit.continual.change_report import ChangeReport, with_notes
from learnkit.continual.classifier import ContinualClassifier, check_continual, continual_head
from learnkit.continual.knowledge import Change, History, Knowledge
from learnkit.continual.statistics import ClassStatistics
from learnkit.continual.validation_images import VALIDATION_SIZE
from learnkit.data.dataset import ImageDataset
from learnkit.data.labelled_images import Labelled, grouped_by_path, parted
from learnkit.data.labels import ids_of_classes, name_problem, sorted_names
from learnkit.errors import (
    ContinualAlreadyInitializedError,
    ContinualStateError,
    ContinualUnsupportedError,
    DataError,
    first_few,
    number_of,
    warn_user,
    warned_after,
)
from learnkit.inference.features import check_same_features, engine_of
from learnkit.interpret.learner_state import (
    ContinualRecord,
    first_class_ids,
    ids_among,
    names_of,
)
from learnkit.learner.change_accuracy import accuracy_of_classes
from learnkit.learner.dataloaders import agreeing_loaders, is_multi_label
from learnkit.learner.export import predictor_of
from learnkit.learner.features import features_of, origin_of, unreadable_by_recipe
from learnkit.learner.trained_head import untrained_head
from learnkit.learner.training_data import (
    case_matters,
    check_no_class_lost,
    data_of_training,
    files_among,
    labelled_data,
    note_on_cut_of,
    own_data,
    warn_if_not_training_data,
    without_files,
)
from learnkit.learner.transforms import preprocessing_of


@warned_after
def init_continual(
    learn: Any,
    data: Any = None,
    *,
    reset_class_information: bool = False,
    group: Any = None,
    engine: str = "torch",
    **settings: Any,
) -> ChangeReport | None:
    """What putting the learner into the continual state did; see `ImageLearner.init_continual`."""
    check_supported(learn)
    if continual_head(learn.model) is not None:
        raise ContinualAlreadyInitializedError(
            "the learner is in the continual state already; `extend` it, or leave that state with "
            "drop_continual() first"
        )
    started, names = time.perf_counter(), names_of(learn.dls) or []
    found = None if data is None else labelled_data(data, classes=names, group=group)
    if not reset_class_information:
        check_no_class_lost(names, found.labels if found else ())
        warn_if_not_training_data(learn, data, found)
    if found is None and engine != "torch":
        raise DataError(
            f"`engine`={engine!r} is kept with what is learned by it; give `data`, or leave it out"
        )
    settings.setdefault("case_sensitive", case_matters(learn, found))
    head, report, validation = empty_head(learn, **settings), None, None
    if found is not None:
        validation = validation_images(learn, found, own=not reset_class_information, group=group)
        first = _first_images(learn, head, found, validation, names, engine)
        report = _reported(first, None, head, started)
    # Last, when nothing can fail any more: after an exception the learner is as it was.
    record = ContinualRecord(
        learn.model[1],
        learned=files_among(found),
        validated=files_among(validation),
        class_ids=ids_among(head.classes, learn, data),
        digest=head.knowledge.digest,
    )
    learn.model[1] = head
    learn.state = replace(learn.state, record=record, ood_detector=None)
    return report


def _first_images(
    learn: Any,
    head: ContinualClassifier,
    found: Labelled,
    validation: Labelled | None,
    names: Sequence[str],
    engine: str,
) -> ChangeReport:
    """Let an empty head learn; the learner's own classes keep their order, others come after."""
    own = [name for name in names if name in set(found.labels)]
    head.history = History((Knowledge.empty(head.settings, own),))  # the names as they are
    report = head.extend(
        features_of(learn, found.items, engine),
        found.labels,
        class_names=[*own, *sorted_names(set(found.labels) - set(own))],
        validation=_features_and_labels(learn, validation, engine),
        origin=origin_of(learn, found.items, engine),
        groups=found.groups,
        what="init_continual",
    )
    head.history = replace(head.history, states=(head.knowledge,))  # there is none to go back to
    return with_notes(report, (*_origin(learn, head), *note_on_cut_of(learn, found.items)))


@warned_after
def extend(
    learn: Any, data: Any, labels: Any = None, *, group: Any = None, **how: bool
) -> ChangeReport:
    """What learning new classes, or more of the known ones, did; see `ImageLearner.extend`."""
    head, record = check_continual(continual_head(learn.model)), _record(learn)
    told = head.settings.case_sensitive
    seen = {"classes": head.classes, "case_sensitive": told, "group": group}
    found = labelled_data(data, labels, **seen)
    files = files_among(found)
    features = features_of(learn, found.items)  # reads every image before anything is changed
    held_out = _features_and_labels(learn, found.validation)
    given = {"origin": origin_of(learn, found.items), "case_sensitive": found.case_sensitive}
    given |= {"groups": found.groups, **how}
    there = set(found.labels)
    # names that no class can be given from outside, of classes that the network was trained on
    own = [name for name in names_of(learn.dls) or () if name in there and name_problem(name)]

    def learned(now: Knowledge) -> Change:
        places = now.statistics.with_classes(own, known=own)
        now = replace(now, statistics=places) if own else now
        return now.extend(features, found.labels, None, held_out, **given)

    report = change(
        learn,
        lambda head: head.change("extend", learned),
        learned=record.learned | files,
        validated=(record.validated | files_among(found.validation)) - files,
    )
    return with_notes(report, note_on_cut_of(learn, found.items))


def subtract(
    learn: Any, data: Any, labels: Any = None, *, validation: bool = False
) -> ChangeReport:
    """What unlearning images did; see `ImageLearner.subtract`."""
    head, record = check_continual(continual_head(learn.model)), _record(learn)
    found, held = parted(labelled_data(data, labels, classes=head.classes), validation)
    features, names, _ = _features_and_labels(learn, found) or (None, None, None)
    held_out = _features_and_labels(learn, held)
    return change(
        learn,
        lambda head: head.subtract(features, names, validation=held_out),
        learned=record.learned - files_among(found),
        validated=record.validated - files_among(held),
    )


@warned_after
def change(
    learn: Any,
    step: Callable[[ContinualClassifier], ChangeReport],
    *,
    renamed: Mapping[str, str] | None = None,
    **noted: Any,
) -> ChangeReport:
    """The report of one change of the head; the learner notes it only if it succeeds.

    Args:
        learn: in the continual state.
        step: makes the change.
        renamed: classes called otherwise by it, `{old: new}`; names before that lead there, too.
        **noted: fields of `ContinualRecord` that are others afterwards.
    """
    started, record = time.perf_counter(), _record(learn)
    head = check_continual(continual_head(learn.model))
    if renamed is not None:
        former = {old: renamed.get(now, now) for old, now in record.former_names.items()}
        noted["former_names"] = dict(renamed) | former
    before = head.knowledge
    report = step(head)
    # none where there is no step to take back
    now = {} if head.knowledge is before else {"earlier": record, "digest": head.knowledge.digest}
    learn.state = replace(learn.state, record=replace(record, **{**now, **noted}))
    return _reported(report, before, head, started)


def merge(learn: Any, other: Any, *, reuse_names: bool = False) -> ChangeReport:
    """What learning all that a copy has learned did; see `ImageLearner.merge`."""
    check_continual(continual_head(learn.model))
    theirs = other
    if not isinstance(other, ClassStatistics):
        copies = [predictor_of(one) if hasattr(one, "dls") else one for one in (learn, other)]
        records = [getattr(one, "record", None) for one in copies]
        if records[1] is None:
            raise DataError(
                f"`other` is a {type(other).__name__}; give a learner or a predictor over the same "
                "network, or class statistics"
            )
        theirs = check_continual(records[1].head).statistics
        check_same_features(*records)
    return change(learn, lambda head: head.merge(theirs, reuse_names=reuse_names))


def undo(learn: Any) -> ChangeReport:
    """What taking back the last change did; see `ImageLearner.undo`."""
    head, record = check_continual(continual_head(learn.model)), _record(learn)
    # a change of the head by itself, as by `learn.ood.threshold = ...`, is none of the record
    earlier = record.earlier if record.digest in ("", head.knowledge.digest) else record
    if earlier is None:
        raise ContinualStateError(
            "there is no change to take back since the continual state began or was loaded; to "
            "leave that state, call drop_continual()"
        )
    # what was kept since the change stays kept
    noted = vars(replace(earlier, snapshots=record.snapshots))
    return change(learn, ContinualClassifier.undo, **noted)


def snapshot(learn: Any, name: str) -> None:
    """Keep all that the head knows, and what the learner noted of it, under a name."""
    record = _record(learn)
    check_continual(continual_head(learn.model)).snapshot(name)
    # without those: each snapshot would hold all that were before it
    kept = replace(record, earlier=None, snapshots={})
    noted = replace(record, snapshots={**record.snapshots, name: kept})
    learn.state = replace(learn.state, record=noted)


def restore(learn: Any, name: str) -> ChangeReport:
    """What going back to a snapshot did; see `ImageLearner.restore`."""
    check_continual(continual_head(learn.model)).history.snapshot(name)  # refuses what is none
    kept = _record(learn).snapshots.get(name, _record(learn))
    noted = {field: getattr(kept, field) for field in ("former_names", "learned", "validated")}
    return change(learn, lambda head: head.restore(name), **noted)


@warned_after
def drop_continual(learn: Any) -> Any:
    """The learner, out of the continual state; see `ImageLearner.drop_continual`."""
    check_continual(continual_head(learn.model))
    head = _record(learn).trained_head
    if head is None:
        head = untrained_head(learn, len(names_of(learn.dls) or ()))
        warn_user(
            "the head that was trained before is not known here (the learner was loaded in the "
            "continual state); the new one has random weights: train it"
        )
    learn.model[1] = head
    learn.state = replace(learn.state, record=None)
    return learn


def _record(learn: Any) -> ContinualRecord:
    """What the learner noted of its continual state; an empty record where it noted nothing."""
    return learn.state.record or ContinualRecord()


def _reported(
    report: ChangeReport, before: Knowledge | None, head: ContinualClassifier, started: float
) -> ChangeReport:
    """The head's report, with accuracies and all the time it took."""
    accuracy = accuracy_of_classes(report, before, head.knowledge)
    return replace(report, accuracy=accuracy or None, seconds=time.perf_counter() - started)


def validation_images(
    learn: Any, found: Labelled, *, own: bool, group: Any = None
) -> Labelled | None:
    """Validation images of the data, else the learner's own, as far as nothing learns from them."""
    images = found.validation
    if images is None and own and (trained := own_data(learn)) is not None:
        images = grouped_by_path(trained.validation, group)
    names = set(found.labels)
    return None if images is None else without_files(images, files_among(found), names=names)


def _features_and_labels(
    learn: Any, images: Labelled | None, engine: str | None = None
) -> tuple[Tensor, Sequence[str], Sequence[Any] | None] | None:
    """What `ContinualClassifier.extend` takes as `validation`."""
    if images is None:
        return None
    return features_of(learn, images.items, engine), images.labels, images.groups


def _origin(learn: Any, head: ContinualClassifier) -> tuple[str, ...]:
    """A note where the network was trained on the very images that its head remembers."""
    history = getattr(learn, "training_history", None)
    if history is None or history.frame.empty:
        return ()
    derived = head.knowledge.derived
    # those that count: near copies of learned ones do not
    if n_fresh := derived.n_fresh:
        of = f"threshold and temperature come from {number_of(n_fresh, 'validation image')}"
        if derived.calibration.n <= n_fresh:
            return (f"{of}: of those the network was trained on they would be optimistic",)
        return (
            f"{of} and {number_of(len(derived.stats.memory), 'image')} the network was trained on: "
            f"they are optimistic; {VALIDATION_SIZE} validation images a class would decide alone",
        )
    return (
        "threshold and temperature are optimistic: without validation images that count they come "
        "from the very images the network was trained on",
    )


_SETTINGS = (
    *("memory", "classifier", "score", "false_alarm_rate"),
    *("guarantee", "prior", "per_class", "case_sensitive", "blend"),
)


@warned_after
def refit(
    learn: Any, data: Any, epochs: int, *, group: Any = None, **training: Any
) -> ChangeReport:
    """What training and a new continual state did; see `ImageLearner.refit`."""
    head = check_continual(continual_head(learn.model))
    dls = _loaders(learn, data)
    found = labelled_data(dls, classes=names_of(dls) or (), group=group)  # before any training
    _check_nothing_lost(head, found.labels)
    settings = {name: getattr(head.settings, name) for name in _SETTINGS}
    settings["engine"] = engine_of(head.statistics.origins)
    with _restored_after_failure(learn):
        _begin(learn, dls)
        learn.fine_tune(epochs, **training)
        done = [cb for cb in learn.cbs if isinstance(cb, AfterFit) and cb.step == "continual"]
        if done and continual_head(learn.model) is not None:
            return done[0].report
        return init_continual(learn, data_of_training(learn), group=group, **settings)


def _loaders(learn: Any, data: Any) -> DataLoaders:
    """Loaders over `data` that read and normalise as the learner's do."""
    if isinstance(data, ImageDataset):
        if (problem := unreadable_by_recipe(learn)) is not None:
            raise DataError(
                "`data` is an ImageDataset, and no recipe reads files as the learner's loaders do; "
                f"give DataLoaders made as those were ({problem})"
            )
        # `agreeing_loaders` below adds what the network needs
        recipe = preprocessing_of(learn.dls).replace(mean=None, std=None)
        options = {"balance": getattr(learn.dls, "balance", False), "bs": learn.dls.bs}
        if (store := getattr(learn.dls, "store", None)) is not None:
            options["store"] = store
        data = data.dataloaders(preprocessing=recipe, **options)
        data.to(learn.dls.device) if learn.dls.device is not None else None
    if not isinstance(data, DataLoaders):
        raise DataError(
            f"`data` is a {type(data).__name__}; refit trains, so give a split ImageDataset, or "
            "DataLoaders"
        )
    return agreeing_loaders(learn.model, data)


def _check_nothing_lost(head: Any, labels: Any) -> None:
    known = {name for name, n in head.n_images.items() if n}
    if lost := sorted(known - set(labels)):
        raise DataError(
            f"`data` has no training images of {first_few(map(repr, lost))}, which the learner "
            "knows; refit needs images of all classes: add some, or forget those classes first"
        )


def _begin(learn: Any, dls: DataLoaders) -> None:
    """Loaders and a trained head for the classes of `dls`, and an optimizer for both."""
    trained, names = _record(learn).trained_head, names_of(dls) or []
    same = names == names_of(learn.dls) and trained is not None
    new = copy.deepcopy(trained) if same else untrained_head(learn, len(names))
    spec = getattr(learn.model, "spec", None)
    if spec is not None:
        learn.model.spec = replace(spec, n_out=len(names))
    ids = learn.state.class_ids
    if kept := first_class_ids(learn):
        names = continual_head(learn.model).classes
        ids = dict(zip(names, ids_of_classes(kept, len(names)), strict=True))
    # without an optimizer `fit` makes one, which knows the new head
    learn.model[1], learn.dls, learn.opt = new, dls, None
    learn.state = replace(learn.state, record=None, class_ids=ids)


@contextmanager
def _restored_after_failure(learn: Any) -> Iterator[None]:
    """Leave the learner as it was if the block raises."""
    # deep: a state dict refers to the weights themselves
    model, body = learn.model, copy.deepcopy(learn.model[0].state_dict())
    head, state, dls, opt = model[1], learn.state, learn.dls, learn.opt
    spec = getattr(model, "spec", None)
    try:
        yield
    except BaseException:  # also Ctrl-C, which is how a long training is given up
        model[1], model.spec = head, spec
        learn.state, learn.dls, learn.opt = state, dls, opt
        model[0].load_state_dict(body)
        raise


def check_supported(learn: Any) -> None:
    """Refuse learners whose features or labels do not lend themselves to class statistics.

    Raises:
        ContinualUnsupportedError: The model is no nn.Sequential(body, head), or an image may have
            several labels.
    """
    if not isinstance(learn.model, nn.Sequential) or len(learn.model) != 2:
        raise ContinualUnsupportedError(
            f"the model is a {type(learn.model).__name__}; class statistics are kept of the "
            "features of a body: build nn.Sequential(body, head), as cnn_learner does"
        )
    if len(getattr(learn.dls.valid.dataset, "tls", ())) == 2 and is_multi_label(learn.dls):
        raise ContinualUnsupportedError(
            "an image may have several labels here; class statistics need exactly one label per "
            "image"
        )


def empty_head(
    learn: Any, kind: type[ContinualClassifier] = ContinualClassifier, **settings: Any
) -> ContinualClassifier:
    """A head for the features of the learner's body that has learned nothing yet."""
    return kind(features_of(learn, []).shape[1], **settings)
