"""Images with their labels from whatever a caller has: lists, tables, folders, datasets."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from learnkit.data.groups import by_index, groups_of
from learnkit.data.image import find_images, is_tensor
from learnkit.data.read_images import file_of
from learnkit.errors import DataError, first_few, number_of

if TYPE_CHECKING:
    from learnkit.data.dataset import ImageDataset


_DL_DATASET = {"class_names", "class_ids", "samples"}
_NO_KEYS = (
    "give a list of files or images (and `labels`, which may be {file: label}), or HALCON's whole "
    "DLDataset with 'class_names', 'class_ids' and 'samples'"
)


class Labelled(NamedTuple):
    """Images, one label each, and those set apart to decide threshold and confidence.

    `case_sensitive` is what a dataset says: names that differ only in case are of two classes.
    `groups` say what each image belongs to, None if nobody said.
    """

    items: list[Any]
    labels: list[str]
    validation: Labelled | None = None
    case_sensitive: bool = False
    groups: list[Any] | None = None


def labelled_images(
    data: Any, labels: Any = None, *, case_sensitive: bool = False, group: Any = None
) -> Labelled:
    """The images and labels meant by `data` and `labels`.

    Args:
        data: an ImageDataset, of which the training images (all, if it is not split) are learned
            from and the validation images set apart; a folder with one folder per class; a
            DataFrame with the columns path and label; HALCON's DLDataset dictionary; or images of
            any kind `predict` takes.
        labels: one label per image, `{file: label}`, also as a Series by file, or one for all of
            them; also for a folder whose images are all of one class. A dataset has its own.
        case_sensitive: classes of a folder or a DataFrame may differ only in case.
        group: what each image belongs to: a column, a regular expression for its path, `{file:
            group}`, or one value per image, as in `ImageDataset.split`.

    Raises:
        DataError: labels missing, given twice, of another number, without an order (a set) or no
            names; one file under two labels; several labels per image; no images; no group for an
            image.
    """
    group = by_index("group", group, data)
    if isinstance(data, Labelled) and labels is None:
        return grouped_images(data, group)
    if labels is None or isinstance(data, Mapping):
        data = dataset_of(data, case_sensitive=case_sensitive)
    if is_dataset(data):
        return _of_dataset(data, labels, group)
    items = files_or_images(data)
    found = _checked_labels(by_index("labels", labels, data), items)
    _check_one_label(items, found)
    return grouped_images(Labelled(items, found), group)


def grouped_images(images: Labelled, group: Any) -> Labelled:
    """The images with the groups that `group` says, where it says any."""
    if group is None:
        return images
    return images._replace(
        groups=groups_of(group, images.items), validation=grouped_by_path(images.validation, group)
    )


def grouped_by_path(images: Labelled | None, group: Any) -> Labelled | None:
    """With groups, if `group` is an expression or `{file: group}` that says one of every image."""
    if images is None:
        return None
    try:
        group = by_index("group", group)
        by_path = isinstance(group, str | re.Pattern | Mapping)
        return images._replace(groups=groups_of(group, images.items)) if by_path else images
    except DataError:  # it has to say those of the images that are learned, not of others
        return images


def all_labelled(data: Any, labels: Any = None, *, group: Any = None) -> Labelled:
    """The images and labels of all splits of `data`; arguments and errors of `labelled_images`."""
    group = by_index("group", group, data)
    data = dataset_of(data) if labels is None else data
    if not is_dataset(data) or isinstance(data, Labelled):
        return labelled_images(data, labels, group=group)
    whole = labelled_images(data, labels, group=group)  # checked, of the training images
    groups = None if group is None else data.groups(group)
    return Labelled(list(data.paths), list(data.labels), None, whole.case_sensitive, groups)


def parted(found: Labelled, validation: bool) -> tuple[Labelled | None, Labelled | None]:
    """(images learned from, validation images) of `found`.

    With `validation` there are only the latter: those set apart, or all if none are.
    """
    if validation:
        return None, found.validation or found
    return found, found.validation


def with_features(
    images: Labelled | None, read: Callable[..., Any], options: Mapping[str, Any]
) -> tuple[Any, list[str], list[Any] | None] | None:
    """(what `read` makes of the images, their labels, their groups); None of none."""
    return None if images is None else (read(images.items, **options), images.labels, images.groups)


def images_of_split(data: Any, splits: Sequence[str]) -> tuple[list[Any], list[Hashable] | None]:
    """(images, their labels or None) meant by `data`; of a dataset the first of `splits` it has.

    A dataset with none of `splits` is taken whole. A folder is labelled by its class folders,
    unless images lie in it directly; a list of images has no labels.

    Raises:
        DataError: `data` is no kind of images.
    """
    if isinstance(data, Labelled):
        return list(data.items), list(data.labels)
    if _is_folder(data):
        files = find_images(data)
        if any(path.parent == Path(data) for path in files):
            return files, None
    if _is_folder(data) or _is_table(data) or isinstance(data, Mapping):
        data = dataset_of(data)
    if not is_dataset(data):
        return files_or_images(data), None
    name = next((name for name in splits if name in getattr(data, "splits", ())), None)
    data = data if name is None else getattr(data, name)
    return list(data.paths), list(data.labels)


def image_paths(data: Any) -> list[Any]:
    """`files_or_images` of `data`, of which there must be some.

    Raises:
        DataError: there are none.
    """
    items = files_or_images(data)
    if not items:
        raise DataError(f"{str(data)!r} holds no images; choose another folder, or give files")
    return items


def files_or_images(data: Any) -> list[Any]:
    """The images meant by `data`, labels aside; a single image becomes a list of one.

    Args:
        data: a dataset, a table with a column path, HALCON's DLDataset dictionary, a folder, files,
            or images at hand.

    Raises:
        DataError: it is none of these.
    """
    if isinstance(data, Mapping):
        data = dataset_of(data)
    if isinstance(data, Labelled):
        return list(data.items)
    if is_dataset(data):
        return list(data.paths)
    if _is_table(data):
        return list(map(Path, data["path"]))
    if _is_folder(data):
        return find_images(data)
    if is_array_of_items(data):
        return [
            os.fsdecode(one) if isinstance(one, bytes) else one for one in data.ravel().tolist()
        ]
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
    items = list(items)
    if dictionary := next((one for one in items if isinstance(one, Mapping)), None):
        keys = first_few(map(repr, dictionary))
        raise DataError(f"among the images is a dictionary with the keys {keys}; {_NO_KEYS}")
    return items


def is_array_of_items(data: Any) -> bool:
    """Whether `data` is an array of file names or of other objects, and thus no image."""
    return isinstance(data, np.ndarray) and data.dtype.kind in "USO"


def is_dataset(data: Any) -> bool:
    """Whether `data` is an ImageDataset, or behaves like one; pandas is not imported to ask."""
    # fastai's loaders answer for all that their dataset has
    return all(hasattr(data, name) for name in ("paths", "labels")) and not hasattr(data, "dataset")


def has_labels(data: Any) -> bool:
    """Whether `data` brings labels of its own: a dataset, a table, or a folder."""
    kinds = (is_dataset, _is_table, _is_folder)
    return isinstance(data, Labelled | Mapping) or any(is_kind(data) for is_kind in kinds)


def _is_folder(data: Any) -> bool:
    return isinstance(data, str | os.PathLike) and os.path.isdir(data)


def _is_table(data: Any) -> bool:
    """Whether `data` is a DataFrame; pandas is not imported to ask."""
    return isinstance(data, getattr(sys.modules.get("pandas"), "DataFrame", ()))


def dataset_of(data: Any, *, case_sensitive: bool = False) -> Any:
    """The dataset that a folder of class folders, a table or a DLDataset is; others as they are.

    Raises:
        DataError: it is another dictionary.
    """
    is_path, is_mapping = isinstance(data, str | os.PathLike), isinstance(data, Mapping)
    if not is_path and not is_mapping and not _is_table(data):
        return data
    if is_mapping and not set(data) >= _DL_DATASET:
        raise DataError(
            f"the images are a dictionary with the keys {first_few(map(repr, data))}; {_NO_KEYS}"
        )
    # Here, not above: it imports pandas, which those who give lists of images may lack.
    from learnkit.data.dataset import ImageDataset

    if is_mapping:
        return ImageDataset.from_halcon(data, case_sensitive=case_sensitive)
    if is_path:
        return ImageDataset.from_folder(data, case_sensitive=case_sensitive)
    return ImageDataset.from_df(data, Path.cwd(), case_sensitive=case_sensitive)


def labelled_dataset(data: Any, name: str = "dataset") -> Any:
    """The dataset that is meant by `data`: one, a folder of class folders, a table, a DLDataset.

    Args:
        data: what was given.
        name: the argument it was given as.

    Raises:
        DataError: It is none of these.
    """
    found = dataset_of(data)
    if not is_dataset(found):
        raise DataError(
            f"`{name}` is a {type(data).__name__}; give labelled images: an ImageDataset, a folder "
            "with a folder per class, a table with the columns path and label, or HALCON's "
            "DLDataset"
        )
    return found


def _of_dataset(data: ImageDataset, labels: Any, group: Any) -> Labelled:
    if labels is not None:
        raise DataError("`labels` is given and the dataset has labels of its own; leave it out")
    if data.multi_label:
        raise DataError(
            "the dataset has several labels per image; learning continually needs exactly one"
        )
    groups, train, validation = None if group is None else data.groups(group), data, None
    if "train" in data.splits:
        train = data.train
        held_out = None
        if groups is not None:
            own = list(zip(groups, data.frame["split"], strict=True))
            groups = [one for one, split in own if split == "train"]
            held_out = [one for one, split in own if split == "valid"]
        if "valid" in data.splits:
            validation = Labelled(data.valid.paths, data.valid.labels, groups=held_out)
    labels = _checked_labels(train.labels, train.paths)
    case_sensitive = bool(getattr(data, "case_sensitive", False))
    return Labelled(train.paths, labels, validation, case_sensitive, groups)


def _checked_labels(labels: Any, items: Sequence[Any]) -> list[str]:
    if not items:
        raise DataError("`data` holds no images; give at least one to learn from")
    if labels is None:
        n = number_of(len(items), "image")
        raise DataError(f"`labels` is missing for {n}; give one per image, or one for all")
    found = [labels] * len(items) if isinstance(labels, str) else _in_order(labels, items)
    if len(found) != len(items):
        raise DataError(
            f"`labels` has {number_of(len(found), 'name')} for {number_of(len(items), 'image')}; "
            "give one each"
        )
    if wrong := [label for label in found if not isinstance(label, str) or not label]:
        raise DataError(f"`labels` holds {wrong[0]!r}; every label is a name, as text")
    return [str(label) for label in found]


def _in_order(labels: Iterable[Any], items: Sequence[Any]) -> list[Any]:
    """Labels in the order of `items`, from a sequence or from `{file: label}`."""
    if isinstance(labels, Set):
        raise DataError(
            "`labels` is a set, which has no order; give a list with one name per image, or "
            "{file: label}"
        )
    if isinstance(labels, bytes) or not isinstance(labels, Iterable):
        raise DataError(
            f"`labels` is {labels!r:.100} ({type(labels).__name__}); give one name per image, or "
            "one text for all"
        )
    if not isinstance(labels, Mapping):
        return list(labels)
    _check_one_label(list(labels), list(labels.values()))
    files = list(map(file_of, items))
    by_file = {file_of(key): label for key, label in labels.items()}
    if "" in files or "" in by_file:
        raise DataError(
            "`labels` is a mapping, which is read as {file: label}; files or images without a name "
            "need a list with one name per image"
        )
    for what, wrong in (
        ("lacks", [file for file in files if file not in by_file]),
        ("names what is no image of `data`:", sorted(set(by_file).difference(files))),
    ):
        if wrong:
            raise DataError(
                f"`labels` {what} {wrong[0]!r} ({len(wrong)} in all); give one label per file"
            )
    return [by_file[file] for file in files]


def _check_one_label(items: Sequence[Any], labels: Sequence[Any]) -> None:
    """Refuse a file that comes under two labels: it would speak for both classes."""
    seen: dict[str, Any] = {}
    for item, label in zip(items, labels, strict=True):
        file = file_of(item)
        if file and seen.setdefault(file, label) != label:
            raise DataError(
                f"{str(item)!r} has two labels, {seen[file]!r} and {label!r}; an image is of one "
                "class: leave one of them out"
            )
