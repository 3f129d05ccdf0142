"""Images to learn from, with their labels, from whatever a caller has: lists, folders, datasets."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from learnkit.data.image import find_images, is_tensor
from learnkit.errors import DataError

if TYPE_CHECKING:
    from learnkit.data.dataset import ImageDataset


class Labelled(NamedTuple):
    """Images, one label each, and those set apart to decide threshold and confidence."""

    items: list[Any]
    labels: list[str]
    validation: Labelled | None = None


def labelled_images(data: Any, labels: Any = None) -> Labelled:
    """The images and labels meant by `data` and `labels`.

    Args:
        data: an ImageDataset, of which the training images (all, if it is not split) are learned
            from and the validation images set apart; a folder with one folder per class; or images
            of any kind `predict` takes.
        labels: one label per image, or one for all of them; also for a folder whose images are all
            of one class. A dataset has its own.

    Raises:
        DataError: labels missing, given twice, of another number or no names; several labels per
            image; no images.
    """
    if is_dataset(data):
        return _of_dataset(data, labels)
    if isinstance(data, str | os.PathLike) and labels is None:
        from learnkit.data.dataset import ImageDataset

        return _of_dataset(ImageDataset.from_folder(data), None)
    items = files_or_images(data)
    return Labelled(items, _checked_labels(labels, items))


def is_dataset(data: Any) -> bool:
    """Whether `data` is an ImageDataset, or behaves like one; pandas is not imported to ask."""
    return hasattr(data, "paths") and hasattr(data, "labels")


def image_paths(data: Any) -> list[Any]:
    """The images meant by `data` without labels: a dataset's, those below a folder, or a list.

    Raises:
        DataError: there are none.
    """
    items = list(data.paths) if is_dataset(data) else files_or_images(data)
    if not items:
        raise DataError(f"{str(data)!r} holds no images; choose another folder, or give files")
    return items


def files_or_images(data: Any) -> list[Any]:
    """The files below a folder, or a list of images; a single image becomes a list of one.

    Raises:
        DataError: it is none of these.
    """
    if isinstance(data, str | os.PathLike) and os.path.isdir(data):
        return find_images(data)
    if isinstance(data, np.ndarray) or is_tensor(data):
        return [data] if data.ndim < 4 else list(data)
    single = isinstance(data, str | os.PathLike | bytes | Image.Image) or hasattr(data, "read")
    try:
        items = iter([data] if single else data)
    except TypeError:
        raise DataError(
            f"{data!r:.100} is of type {type(data).__name__}; give a dataset, a folder, files or "
            "images"
        ) from None
    return list(items)


def _of_dataset(data: ImageDataset, labels: Any) -> Labelled:
    if labels is not None:
        raise DataError("`labels` is given and the dataset has labels of its own; leave it out")
    if data.multi_label:
        raise DataError(
            "the dataset has several labels per image; learning continually needs exactly one"
        )
    if "train" not in data.splits:
        return Labelled(data.paths, _checked_labels(data.labels, data.paths))
    validation = None
    if "valid" in data.splits:
        validation = Labelled(data.valid.paths, data.valid.labels)
    train = data.train
    return Labelled(train.paths, _checked_labels(train.labels, train.paths), validation)


def _checked_labels(labels: Any, items: Sequence[Any]) -> list[str]:
    if not items:
        raise DataError("`data` holds no images; give at least one to learn from")
    if labels is None:
        raise DataError(f"`labels` is missing for {len(items)} images; give one per image, or one")
    found = [labels] * len(items) if isinstance(labels, str) else list(labels)
    if len(found) != len(items):
        raise DataError(f"`labels` has {len(found)} names for {len(items)} images; give one each")
    if wrong := [label for label in found if not isinstance(label, str) or not label]:
        raise DataError(f"`labels` holds {wrong[0]!r}; every label is a name, as text")
    return [str(label) for label in found]
