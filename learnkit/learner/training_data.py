"""Training data of a learner: what it was trained on, held against what it is given now."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import learnkit._torchvision  # noqa: F401  # before fastai

import torch
from fastai.data.core import DataLoaders
from torch import Tensor

from learnkit.data.groups import by_index, groups_of
from learnkit.data.labelled_images import (
    Labelled,
    grouped_images,
    image_paths,
    is_dataset,
    labelled_images,
)
from learnkit.data.preprocess import note_on_cut
from learnkit.data.read_images import file_of
from learnkit.errors import DataError, ExportError, first_few, number_of, warn_user
from learnkit.interpret.learner_state import learner_state, names_of
from learnkit.interpret.source import Source
from learnkit.learner.transforms import preprocessing_of

_SEVERAL = "`data` has several labels per image; a class is learned from images that show it alone"


def own_data(learn: Any) -> Labelled | None:
    """The images the learner's loaders train and validate on; None if they do not tell."""
    try:
        return labelled_data(learn.dls, classes=names_of(learn.dls) or ())
    except DataError:
        return None


def check_no_class_lost(known: Sequence[str], labels: Iterable[str]) -> None:
    """Refuse to forget what the learner can tell apart now.

    Raises:
        DataError: Classes of the learner have no image among `labels`.
    """
    given = set(labels)
    if lost := [name for name in known if name not in given]:
        names = first_few(map(repr, lost))
        seen = f"has no images of {names}" if given else "is missing"
        raise DataError(
            f"`data` {seen}: the learner would no longer know {len(lost)} of its {len(known)} "
            f"classes ({names}). Give training images of every class, as in "
            "init_continual(data), or drop them on purpose with reset_class_information=True"
        )


def warn_if_not_training_data(learn: Any, data: Any, found: Labelled) -> None:
    """Warn where `data` differs from the training data: in its files, labels, split or reading."""
    if reason := _other_reading(learn, data):
        warn_user(reason)
    own = own_data(learn)
    if own is None or not (differences := _differences(own, found)):
        return
    warn_user(
        f"`data` is not what the learner was trained on: {'; '.join(differences)}. Leave-one-out "
        "scores of images the network was trained on and of others do not compare; pass the "
        "training data with its split, or ignore this if the network was not trained on them"
    )


def _differences(own: Labelled, found: Labelled) -> list[str]:
    """What is missing, new, labelled otherwise or in another split, in words; empty if nothing."""
    trained, given = _by_file(own), _by_file(found)
    if not trained or not given:
        return []
    validated = _by_file(own.validation) if own.validation else {}
    counts = {
        "training images are missing": len(trained.keys() - given.keys()),
        "images are new": len(given.keys() - trained.keys() - validated.keys()),
        "images are labelled otherwise": sum(given.get(f, n) != n for f, n in trained.items()),
        "validation images are to be learned from": len(given.keys() & validated.keys()),
    }
    return [f"{n} {what}" for what, n in counts.items() if n]


def _by_file(images: Labelled) -> dict[str, str]:
    """Label by absolute file name, of the images that are files."""
    keys = file_keys(images.items)
    return {key: name for key, name in zip(keys, images.labels, strict=True) if key is not None}


def file_keys(items: Any) -> list[str | None]:
    """The absolute file name of each item, None for pictures at hand."""
    if not isinstance(items, Sequence):
        return [None] * len(items.indices or ())
    return [file_of(item) or None for item in items]


def files_among(images: Labelled | None) -> frozenset[str]:
    """Those of the images that are files, by absolute name."""
    return frozenset(file_keys(images.items)) - {None} if images else frozenset()


def files_known(learn: Any) -> frozenset[str]:
    """The files the learner was trained on or has learned from, by absolute name."""
    record, history = learner_state(learn).record, getattr(learn, "training_history", None)
    is_trained = history is not None and not history.frame.empty
    trained = files_among(own_data(learn)) if is_trained else frozenset()
    return trained | (record.learned if record else frozenset())


def without_files(
    images: Labelled, files: Collection[str], *, names: Collection[str] | None = None
) -> Labelled | None:
    """The images that are none of these files (and of these classes), None if none is left."""
    keys = file_keys(images.items)
    keep = [
        i
        for i, (key, label) in enumerate(zip(keys, images.labels, strict=True))
        if (key is None or key not in files) and (names is None or label in names)
    ]
    if len(keep) == len(images.labels):
        return images
    if not keep or not isinstance(images.items, list):
        return None
    groups = None if images.groups is None else [images.groups[i] for i in keep]
    chosen = [images.items[i] for i in keep], [images.labels[i] for i in keep]
    return Labelled(*chosen, groups=groups)


def _other_reading(learn: Any, data: Any) -> str | None:
    """What to say if loaders read their images in another way than the learner's do."""
    if not isinstance(data, DataLoaders) or data is learn.dls:
        return None
    try:
        ours, theirs = preprocessing_of(learn.dls), preprocessing_of(data)
    except ExportError:
        return None
    # loaders that do not normalise get what the network needs
    theirs = theirs.replace(mean=theirs.mean or ours.mean, std=theirs.std or ours.std)
    if ours == theirs:
        return None
    fields = ours.to_dict()
    names = [name for name, value in theirs.to_dict().items() if fields[name] != value]
    return (
        f"`data` reads its images in another way than the learner ({', '.join(names)} differ); "
        "its files are read in the learner's way"
    )


def labelled_data(
    data: Any,
    labels: Any = None,
    *,
    classes: Sequence[str] = (),
    case_sensitive: bool = False,
    group: Any = None,
) -> Labelled:
    """Images with their labels, and those held back for validation, of whatever was given.

    Args:
        data: an ImageDataset or DataLoaders, whose validation images are held back; a DataLoader, a
            DataFrame with the columns path and label, a folder with a folder per class; one image
            or several.
        labels: for images: one name each, or one for all of them.
        classes: what the class numbers of a loader without a vocabulary stand for.
        case_sensitive: classes of a folder or a DataFrame may differ only in case.
        group: what each image belongs to, see `labelled_images`; of loaders of which nobody knows
            the files, one value per image.

    Raises:
        DataError: no images, labels or groups missing or not one per image.
    """
    if labels is None and isinstance(data, DataLoaders):
        return _of_loaders(data, classes, group)
    if labels is None and _is_loader(data):
        return _of_loader(data, classes, group)
    if data is None and labels is None:
        raise DataError(
            "`data` is missing; give an ImageDataset, DataLoaders, a DataLoader, a folder of class "
            "folders, a DataFrame with the columns path and label, or images with `labels`"
        )
    return labelled_images(data, labels, case_sensitive=case_sensitive, group=group)


def note_on_cut_of(learn: Any, items: Any) -> tuple[str, ...]:
    """What `note_on_cut` says of files as the learner's recipe reads them; nothing without one."""
    try:
        recipe = preprocessing_of(learn.dls)
    except ExportError:
        return ()
    return () if isinstance(items, Source) else note_on_cut(items, recipe)


def case_matters(learn: Any, found: Labelled | None) -> bool:
    """Whether classes may differ only in case: so the data say, or those of the training."""
    dataset = getattr(learn.dls, "image_dataset", None)
    return any(getattr(one, "case_sensitive", False) for one in (dataset, found))


def images_only(data: Any) -> list[Any] | Source:
    """All images of whatever was given, labelled or not; of DataLoaders the validation images."""
    if isinstance(data, DataLoaders):
        data = data.valid
    if _is_loader(data):
        source = Source(data)
        return source.items or source
    return image_paths(data)


def data_of_training(learn: Any) -> Any:
    """What the learner was built on: its ImageDataset if it has one, else its loaders."""
    return getattr(learn.dls, "image_dataset", None) or learn.dls


def _is_loader(data: Any) -> bool:
    return hasattr(data, "dataset") and hasattr(data, "__iter__")


def groups_seen(learn: Any, data: Any, items: Any, n: int, group: Any) -> list[Any] | None:
    """The groups of `n` images that were looked at, as `extend` means `group`; None without it.

    Args:
        learn: whose loaders know a dataset, of which `group` may be a column.
        data: what was asked for, which may be a dataset itself.
        items: the files, if they are known.
        n: how many there are.
        group: see `labelled_images`.

    Raises:
        DataError: no group for an image.
    """
    if group is None:
        return None
    group = by_index("group", group)
    data = data if is_dataset(data) else getattr(learn.dls, "image_dataset", None)
    if data is not None and isinstance(group, Mapping):
        group = {data.root / file: one for file, one in group.items()}
    elif data is not None and isinstance(group, str) and group in data.frame:
        group = dict(zip(data.paths, data.groups(group), strict=True))
    return groups_of(group, items or [None] * n)


def _of_loaders(dls: DataLoaders, classes: Sequence[str], group: Any) -> Labelled:
    dataset = getattr(dls, "image_dataset", None)
    if dataset is not None:
        return labelled_images(dataset, group=group)
    train, *rest = (_of_loader(dl, classes) for dl in dls.loaders[:2])
    return grouped_images(train._replace(validation=rest[0] if rest else None), group)


def _of_loader(dl: Any, classes: Sequence[str], group: Any = None) -> Labelled:
    """The images of one loader in dataset order; labels by its own vocabulary if it has one."""
    source = Source(dl)
    names, numbers = names_of(dl) or classes, _numbers(dl, source)
    if not numbers:
        raise DataError("`data` has no images; give a loader over at least one")
    if outside := [n for n in numbers if not 0 <= n < len(names)]:
        raise DataError(
            f"`data` has the class number {outside[0]}, but there are "
            f"{number_of(len(names), 'class name')}; "
            "pass a loader with a vocabulary, or the images with `labels`"
        )
    items, labels = source.items or source, [str(names[n]) for n in numbers]
    if group is not None and items is source:
        items_or_none = [None] * len(labels)
        return Labelled(source, labels, groups=groups_of(group, items_or_none))
    return grouped_images(Labelled(items, labels), group)


def _numbers(dl: Any, source: Source) -> list[int]:
    """Class numbers in dataset order; without reading an image where the dataset allows it."""
    tls = getattr(getattr(dl, "dataset", None), "tls", ())
    if len(tls) == 2 and source.indices is not None:
        targets: Iterable[Any] = [tls[1][i] for i in source.indices]
    else:
        targets = []
        for batch in source.batches():
            if not isinstance(batch, list | tuple) or len(batch) < 2:
                raise DataError("`data` gives images without labels; pass `labels`, one per image")
            targets.extend(batch[-1].as_subclass(Tensor).cpu())
    targets = [torch.as_tensor(y) for y in targets]
    if any(y.numel() != 1 for y in targets):
        raise DataError(_SEVERAL)
    return [int(y) for y in targets]
