"""What `extend` and its kin accept, brought into one form: images, their labels, what validates.

Nothing is read here and nothing of the caller's is changed. Images that are files are later read by
the recipe of the learner, whatever the given loaders would do with them, so that all features are
comparable; only loaders over something else give their own batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import learnkit._torchvision  # noqa: F401  # before fastai

import pandas as pd
import torch
from fastai.data.core import DataLoaders
from torch import Tensor

from learnkit.data.dataset import ImageDataset
from learnkit.data.labelled_images import Labelled, image_paths, labelled_images
from learnkit.errors import DataError
from learnkit.interpret.source import Source, names_of

_SEVERAL = "`data` has several labels per image; a class is learnt from images that show it alone"


def labelled_data(data: Any, labels: Any = None, *, classes: Sequence[str] = ()) -> Labelled:
    """Images with their labels, and those held back for validation, of whatever was given.

    Args:
        data: an ImageDataset or DataLoaders, whose validation images are held back; a DataLoader, a
            DataFrame with the columns path and label, a folder with a folder per class; one image
            or several.
        labels: for images: one name each, or one for all of them.
        classes: what the class numbers of a loader without a vocabulary stand for.

    Raises:
        DataError: no images, labels missing or not one per image.
    """
    if labels is not None:
        return labelled_images(_files_of(data), labels)
    if isinstance(data, DataLoaders):
        return _of_loaders(data, classes)
    if isinstance(data, pd.DataFrame):
        data = ImageDataset.from_df(data, Path.cwd())
    if _is_loader(data):
        return _of_loader(data, classes)
    if data is None:
        raise DataError(
            "`data` is missing; give an ImageDataset, DataLoaders, a DataLoader, a folder of class "
            "folders, a DataFrame with the columns path and label, or images with `labels`"
        )
    return labelled_images(data)


def images_only(data: Any) -> list[Any] | Source:
    """All images of whatever was given, labelled or not; of DataLoaders the validation images."""
    if isinstance(data, DataLoaders):
        data = data.valid
    if _is_loader(data):
        source = Source(data)
        return source.items or source
    return image_paths(_files_of(data))


def data_of_training(learn: Any) -> Any:
    """What the learner was built on: its ImageDataset if it has one, else its loaders."""
    return getattr(learn.dls, "image_dataset", None) or learn.dls


def _files_of(data: Any) -> Any:
    """The files a table lists; anything else as it is."""
    return list(map(Path, data["path"])) if isinstance(data, pd.DataFrame) else data


def _is_loader(data: Any) -> bool:
    return hasattr(data, "dataset") and hasattr(data, "__iter__")


def _of_loaders(dls: DataLoaders, classes: Sequence[str]) -> Labelled:
    dataset = getattr(dls, "image_dataset", None)
    if dataset is not None:
        return labelled_images(dataset)
    train, *rest = (_of_loader(dl, classes) for dl in dls.loaders[:2])
    return train._replace(validation=rest[0] if rest else None)


def _of_loader(dl: Any, classes: Sequence[str]) -> Labelled:
    """The images of one loader in dataset order; labels by its own vocabulary if it has one."""
    source = Source(dl)
    names, numbers = names_of(dl) or classes, _numbers(dl, source)
    if not numbers:
        raise DataError("`data` has no images; give a loader over at least one")
    if outside := [n for n in numbers if not 0 <= n < len(names)]:
        raise DataError(
            f"`data` has the class number {outside[0]}, but there are {len(names)} class names; "
            "pass a loader with a vocabulary, or the images with `labels`"
        )
    return Labelled(source.items or source, [str(names[n]) for n in numbers])


def _numbers(dl: Any, source: Source) -> list[int]:
    """Class numbers in dataset order; without reading an image where the dataset allows it."""
    tls = getattr(getattr(dl, "dataset", None), "tls", ())
    if len(tls) == 2 and source.indices is not None:
        targets: Iterable[Any] = [tls[1][i] for i in source.indices]
    else:
        targets = [y for batch in source.batches() for y in _targets_of(batch)]
    targets = [torch.as_tensor(y) for y in targets]
    if any(y.numel() != 1 for y in targets):
        raise DataError(_SEVERAL)
    return [int(y) for y in targets]


def _targets_of(batch: Any) -> Tensor:
    if not isinstance(batch, list | tuple) or len(batch) < 2:
        raise DataError("`data` gives images without labels; pass `labels`, one per image")
    return batch[-1].as_subclass(Tensor).cpu()
