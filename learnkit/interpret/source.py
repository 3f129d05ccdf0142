"""The samples of one pass: which, in which order, and how to read a few of them again.

A pass over the training images must not depend on how training shuffles, drops or augments them.
`Source` therefore never runs the given loader itself: it makes a plain one over the same dataset,
in dataset order, that treats every item as validation does. The given loader is not changed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from learnkit.data.labelled_images import dataset_of, is_dataset, labelled_dataset
from learnkit.errors import InterpretationError, number_of
from learnkit.interpret.learner_state import class_names, class_numbers, names_of
from learnkit.models.eval_mode import randomness_kept

_LOADERS = ("train", "valid", "test")


class ValidationView:
    """Some items of a dataset, in a given order, passed through the validation transforms."""

    split_idx = 1  # what fastai's loaders look at to leave training-only transforms out

    def __init__(self, dataset: Any, indices: Sequence[int]):
        self.dataset, self.indices = dataset, list(indices)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> Any:
        index = self.indices[position]
        if not hasattr(self.dataset, "set_split_idx"):
            return self.dataset[index]
        with self.dataset.set_split_idx(1):
            return self.dataset[index]


class Source:
    """Batches in a fixed order, and single samples again later by their position.

    Args:
        dl: a fastai or torch loader, or any iterable of batches; only gives dataset and transforms.
        template: loader whose transforms are used instead of those of `dl`.
        targets: class numbers (N,) or flags (N, C) of samples whose loader gives none; numbers
            of the learner's classes, where those of a loader are of its own (`names`).
    """

    def __init__(self, dl: Any, *, template: Any = None, targets: Tensor | None = None):
        self.dl, self.template, self.targets = dl, dl if template is None else template, targets
        self.dataset = getattr(dl, "dataset", None)
        self.indices = _dataset_order(dl)
        self.items = _paths_of(self.dataset, self.indices)
        self.names = names_of(dl)

    @classmethod
    @randomness_kept()  # making a loader draws a seed for it
    def of(cls, learn: Any, dl: Any = None, *, ds_idx: int = 1, data: Any = None) -> Source:
        """The samples of `dl`, else of the dataset `data`, else of `learn.dls[ds_idx]`.

        A dataset may stand for `dl` too: whatever brings its own labels, see `labelled_dataset`.

        Raises:
            InterpretationError: both are given, or `dl` gives no batches; `ds_idx` is of none.
            DataError: `data` is no labelled images.
        """
        if dl is not None and data is not None:
            raise InterpretationError("`dl` and `data` both name the samples; give one of them")
        if data is not None or is_dataset(dl := dataset_of(dl)):
            data = dl if data is None else labelled_dataset(data, "data")
            return cls(_unlabelled_dl(learn, data), targets=_targets_of(learn, data))
        if dl is not None:
            _check_loader(dl)
            return cls(dl)
        loaders = learn.dls.loaders
        alike = len(loaders) > 1 and _is_fastai(loaders[1])
        return cls(numbered_loader(learn, ds_idx), template=loaders[1] if alike else None)

    def batches(self) -> Any:
        """All samples as a loader of batches, in the order of `items`."""
        return self.dl if self.indices is None else self._loader(self.indices)

    def read(self, positions: Sequence[int]) -> tuple[Tensor, list[np.ndarray]]:
        """Samples by position: network inputs (n, C, H, W), and pictures (H, W[, 3]) in 0..1.

        Raises:
            InterpretationError: the samples came as bare batches and cannot be read again.
        """
        if self.indices is None:
            raise InterpretationError(
                "The images cannot be read again: the pass ran over bare batches. Run it over a"
                " loader with a dataset, such as `dl=learn.dls.test_dl(items, with_labels=True)`"
            )
        inputs, pictures = [], []
        with randomness_kept():
            loader = self._loader([self.indices[i] for i in positions], num_workers=0)
            for batch in loader:
                shown = loader.decode(batch) if hasattr(loader, "decode") else batch
                inputs.append(detached(batch[0]))
                pictures += [to_picture(detached(image)) for image in shown[0]]
        return torch.cat(inputs), pictures

    def check_length(self, n: int) -> None:
        """Raise InterpretationError unless there are `n` samples, as far as that is known."""
        if self.indices is not None and len(self.indices) != n:
            raise InterpretationError(
                f"`dl` has {number_of(len(self.indices), 'sample')} for "
                f"{number_of(n, 'prediction')}; pass the loader the"
                " predictions were made on as `dl`"
            )

    def _loader(self, indices: Sequence[int], **options: Any) -> Any:
        view = ValidationView(self.dataset, indices)
        if _is_fastai(self.template):
            order = partial(list, range(len(view)))
            options |= {"shuffle": False, "drop_last": False, "n": len(view), "get_idxs": order}
            return self.template.new(dataset=view, **options)
        options = {"num_workers": self.dl.num_workers, "collate_fn": self.dl.collate_fn} | options
        return torch.utils.data.DataLoader(view, self.dl.batch_size, **options)


def numbered_loader(learn: Any, ds_idx: int) -> Any:
    """The learner's loader of this number; InterpretationError if it has none."""
    loaders = learn.dls.loaders
    if not -len(loaders) <= ds_idx < len(loaders):
        raise InterpretationError(
            f"`ds_idx` is {ds_idx}; the learner has {number_of(len(loaders), 'loader')}: 0 is "
            "train, 1 valid"
        )
    return loaders[ds_idx]


def no_samples(learn: Any) -> str:
    """What to say of a loader without samples: where there are some."""
    train = getattr(learn.dls, "train", ())
    known = (
        ", or ds_idx=0 for the training images" if getattr(train, "n", None) or len(train) else ""
    )
    return f"There are no samples in the loader; give another one as `dl`{known}"


def loader_number(ds_type: Any) -> int:
    """The number of a loader by the name of fastai v1's `DatasetType`.

    Raises:
        InterpretationError: another name.
    """
    name = str(ds_type).rpartition(".")[2].lower()
    if name not in _LOADERS:
        raise InterpretationError(f"`ds_type` is {ds_type!r}; it is one of {', '.join(_LOADERS)}")
    return _LOADERS.index(name)


def split_batch(learn: Any, batch: Any) -> tuple[tuple, Tensor | None]:
    """Return the inputs of a batch and its one target, None if it has none."""
    batch = tuple(batch) if isinstance(batch, list | tuple) else (batch,)
    n_inputs = getattr(learn.dls, "n_inp", max(1, len(batch) - 1))
    xb, yb = batch[:n_inputs], batch[n_inputs:]
    if other := next((x for x in xb if not isinstance(x, Tensor)), None):
        raise InterpretationError(
            f"`dl` gives a {type(other).__name__} where a batch of images as tensors is expected; "
            "give a loader, or images with labels as `data`: an ImageDataset, or a folder"
        )
    if len(yb) > 1:
        raise InterpretationError(
            f"A batch has {len(yb)} targets; interpretation of classifiers needs one"
        )
    return xb, yb[0] if yb else None


def detached(tensor: Tensor) -> Tensor:
    """Return a tensor as plain `torch.Tensor`, without a graph."""
    return tensor.detach().as_subclass(Tensor)


def to_picture(image: Tensor) -> np.ndarray:
    """Return an image (C, H, W) as an array (H, W) or (H, W, 3) in 0..1.

    Whole numbers count as 0..255. Others are shown as they are if they lie in 0..1, else stretched
    to it. Of two channels the first is shown, of more than three the first three.
    """
    image = image.cpu()
    whole = not image.is_floating_point()
    image = image.float() / 255 if whole else image.float()
    if not whole and (image.min() < -1e-3 or image.max() > 1 + 1e-3):
        image = (image - image.min()) / (image.max() - image.min())
    channels = image.clamp(0, 1)
    return (channels[0] if len(channels) < 3 else channels[:3].permute(1, 2, 0)).numpy()


def _check_loader(dl: Any) -> None:
    """Raise InterpretationError where no batches can come of `dl`."""
    if hasattr(dl, "loaders"):
        raise InterpretationError(
            f"`dl` is a {type(dl).__name__} of {len(dl.loaders)} loaders; give one of them, such "
            "as `dl=dls.valid`, or all labelled images as an ImageDataset"
        )
    if not hasattr(dl, "__iter__"):
        raise InterpretationError(
            f"`dl` is a {type(dl).__name__}; give a loader, an ImageDataset, or a folder with a "
            "folder per class"
        )


def _is_fastai(dl: Any) -> bool:
    """Whether a loader is one of fastai's; if there is one, fastai is loaded."""
    fastai = sys.modules.get("fastai.data.load")
    return fastai is not None and isinstance(dl, fastai.DataLoader)


def _dataset_order(dl: Any) -> list[int] | None:
    """Return the dataset indices a loader runs over, unshuffled; None if it has no indices."""
    dataset = getattr(dl, "dataset", None)
    if dataset is None or not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        return None
    if _is_fastai(dl):
        if not dl.indexed or dl.bs is None:
            return None
        # `get_idxs` draws where a loader shuffles; else it may have an order of its own
        return list(range(dl.n)) if dl.shuffle else list(dl.get_idxs())
    return None if getattr(dl, "batch_size", None) is None else list(range(len(dataset)))


def _paths_of(dataset: Any, indices: list[int] | None) -> list[Path] | None:
    """Return the files of the samples, None where the dataset does not tell."""
    items = getattr(dataset, "items", None)
    if indices is None or items is None or not indices:
        return None
    rows = items.iloc if hasattr(items, "iloc") else items
    steps = _steps_to_file(dataset, rows[indices[0]])
    return None if steps is None else [Path(_after(steps, rows[i])) for i in indices]


def file_of_item(dataset: Any, item: Any) -> Any:
    """The file of an item of the kind the dataset has, such as a row of a table; else `item`."""
    items = getattr(dataset, "items", None)
    if items is None or not len(items):
        return item
    first = (items.iloc if hasattr(items, "iloc") else items)[0]
    if not isinstance(item, type(first)) or isinstance(first, str | Path):
        return item
    steps = _steps_to_file(dataset, item)
    return _after(steps, item) if steps else item


def n_steps_to_file(dataset: Any) -> int | None:
    """How many steps lead from an item of a dataset to its file; None if none do."""
    items = getattr(dataset, "items", None)
    if items is None:
        return None
    if not len(items):
        return 0
    steps = _steps_to_file(dataset, (items.iloc if hasattr(items, "iloc") else items)[0])
    return None if steps is None else len(steps)


def _steps_to_file(dataset: Any, item: Any) -> list[Any] | None:
    """Return the first steps of reading, which lead from an item to its file; None if none do."""
    tls = getattr(dataset, "tls", ())
    steps, value = [], item
    for step in tls[0].tfms.fs if len(tls) else ():
        before, told = value, isinstance(value, str | Path)
        methods = getattr(getattr(step, "encodes", None), "methods", ())
        calls = {getattr(method.implementation, "__name__", "") for method in methods}
        if told and (type(step).__name__ == "ReadImage" or "create" in calls):
            break  # it is known to open a file, and need not be tried
        value = step(value)
        if told and not isinstance(value, str | Path):  # it has opened the file
            value = before
            break
        steps.append(step)
    return steps if isinstance(value, str | Path) else None


def _after(steps: Sequence[Any], item: Any) -> Any:
    for step in steps:
        item = step(item)
    return item


def _unlabelled_dl(learn: Any, data: Any) -> Any:
    """Return a loader over the files of an ImageDataset that reads them as validation does."""
    n_steps = n_steps_to_file(learn.dls.valid_ds)
    if n_steps is None:
        raise InterpretationError(
            "`data` cannot be read: the learner's loaders do not take files as items. Pass"
            " `dl=learn.dls.test_dl(items, with_labels=True)` with items of their own kind"
        )
    return learn.dls.test_dl(list(data.paths), rm_type_tfms=n_steps)


def _targets_of(learn: Any, data: Any) -> Tensor:
    """Return the labels of an ImageDataset as the learner's class numbers (N,) or flags (N, C)."""
    classes = class_names(learn) or []
    number = class_numbers(learn, classes)
    sets = [set(label) if data.multi_label else {label} for label in data.labels]
    unknown = sorted({str(name) for names in sets for name in names} - set(number))
    if unknown:
        known = ", ".join(classes[:10]) or "no class yet"
        raise InterpretationError(
            f"`data` has labels the learner does not know: {', '.join(unknown[:5])}; it knows"
            f" {known}. Filter `data`, or train on those classes too"
        )
    if not data.multi_label:
        return torch.tensor([number[label] for label in data.labels], dtype=torch.int64)
    return torch.tensor([[float(name in names) for name in classes] for names in sets])
