"""fastai transforms on one side, the `Preprocessing` they stand for on the other.

The transforms here read files by a recipe. `preprocessing_of` goes the other way: it reads the
validation transforms of any fastai image DataLoaders as data, so that training, validation and
deployment share one `Preprocessing`; a transform that is code is refused by name.
"""

import os
from collections.abc import Hashable
from functools import cached_property
from pathlib import Path
from typing import Any

import learnkit._torchvision  # noqa: F401  # before fastai

from fastai.data.core import DataLoaders
from fastai.data.transforms import IntToFloatTensor, Normalize, ToTensor
from fastai.vision.augment import AffineCoordTfm, Resize
from fastai.vision.core import PILBase, PILImage, PILImageBW
from fasttransform import Transform

from learnkit.data.image import source_name
from learnkit.data.preprocess import Preprocessing
from learnkit.errors import DataError, ExportError


class ReadImage(Transform):
    """File -> PIL image by the dataset's one recipe; with `resize=False` in its original size."""

    def __init__(self, preprocessing: Preprocessing, *, resize: bool = True):
        self.preprocessing, self.resize = preprocessing, resize

    def encodes(self, path):  # noqa: D102  # fastai's name for a transform's body
        p = self.preprocessing
        image = p.read(path) if self.resize else p.decode(path)
        return (PILImage if p.channels == 3 else PILImageBW)(image)


class ResizeLikeRecipe(Transform):
    """The recipe's own resize, after item-level augmentation: validation never differs."""

    order = 3  # after item-level augmentation (1), before ToTensor (5)

    def __init__(self, preprocessing: Preprocessing):
        self.preprocessing = preprocessing

    def encodes(self, image: PILBase):  # noqa: D102
        return type(image)(self.preprocessing.resize(image))


class LabelOf(Transform):
    """Path -> label by look-up: labels come from the table, a path is not parsed again.

    A file that is not in the table is labelled by its folder where all those in it are.

    Raises:
        DataError: Nothing tells the label of a file.
    """

    def __init__(self, labels: dict):
        self.labels = labels

    def encodes(self, path):  # noqa: D102
        label = self._label(path)
        return list(label) if isinstance(label, tuple) else label

    def _label(self, item: Any) -> Any:
        if isinstance(item, str | os.PathLike):
            item = Path(item)
        if isinstance(item, Hashable) and item in self.labels:
            return self.labels[item]
        folder = item.parent.name if isinstance(item, Path) else None
        if folder in self.labels.values() and self._by_folder:
            return folder
        raise DataError(
            f"the label of {source_name(item)} is not known: it is no file of the dataset the "
            "loaders were made of. Give labelled files as data=ImageDataset.from_folder(...), or "
            "leave out with_labels=True"
        )

    @cached_property
    def _by_folder(self) -> bool:
        return all(isinstance(p, Path) and p.parent.name == n for p, n in self.labels.items())


def preprocessing_of(dls: DataLoaders) -> Preprocessing:
    """Return the recipe of the validation images, read off the transforms of any image DataLoaders.

    Training-only transforms are left out: they are no part of what a deployed model does.

    Raises:
        ExportError: A validation transform is code, or has no counterpart in `Preprocessing`.
    """
    valid = dls.valid
    fields: dict[str, Any] = {}
    opened = False
    for tfm in valid.dataset.tls[0].tfms.fs:
        opened = opened or isinstance(tfm, ReadImage) or _image_class(tfm) is not None
        if opened:
            fields |= _fields_of(tfm, "type_tfms")
    if not opened:
        raise ExportError(
            "`dls` does not open its images with PILImage.create or an ImageDataset; learnkit "
            "cannot tell how a file becomes a tensor. Make them with ImageDataset.dataloaders()"
        )
    for stage in ("after_item", "before_batch", "after_batch"):
        for tfm in getattr(valid, stage).fs:
            if tfm.split_idx != 0:
                fields |= _fields_of(tfm, stage)
    if "size" not in fields:
        fields |= {"size": tuple(valid.one_batch()[0].shape[-2:]), "method": "squish"}
    return Preprocessing(**fields)


def _image_class(tfm: Transform) -> type | None:
    """Return the fastai image class whose `create` this transform is, or None."""
    methods = getattr(getattr(tfm, "encodes", None), "methods", [])
    owners = (getattr(method.implementation, "__self__", None) for method in methods)
    return next((o for o in owners if isinstance(o, type) and issubclass(o, PILBase)), None)


def _fields_of(tfm: Transform, stage: str) -> dict[str, Any]:
    """Return the fields of `Preprocessing` that one validation transform stands for."""
    if isinstance(tfm, ReadImage | ResizeLikeRecipe):
        return {k: v for k, v in vars(tfm.preprocessing).items() if k not in ("mean", "std")}
    if image_class := _image_class(tfm):
        # fastai's `PILImage.create` ignores EXIF orientation and converts as Pillow does, and so
        # did the network's training.
        modes = {"RGB": 3, "L": 1}
        mode = image_class._open_args.get("mode")
        own = image_class.create.__func__ is not PILBase.create.__func__
        if own or mode not in modes or len(image_class._open_args) > 1:
            raise ExportError(
                f"`{image_class.__name__}` opens images in a way of its own, which cannot travel "
                "as data; use PILImage or PILImageBW, or ImageDataset.dataloaders()"
            )
        return {"exif_transpose": False, "channels": modes[mode], "plain_convert": True}
    if type(tfm) is ToTensor or (type(tfm) is IntToFloatTensor and tfm.div == 255):
        return {}
    if isinstance(tfm, AffineCoordTfm) and tfm.cp_size is None:
        return {}  # on validation images the identity, up to rounding
    if type(tfm) is Normalize:
        return {
            "mean": tuple(tfm.mean.flatten().tolist()),
            "std": tuple(tfm.std.flatten().tolist()),
        }
    if type(tfm) is Resize:
        width, height = tfm.size
        fields = {"size": (height, width), "method": tfm.method, "pad_mode": tfm.pad_mode}
        return {**fields, "interpolation": tfm.mode.name.lower()}
    # what a user would call it: its function's name, else its class's
    name = (tfm.name if type(tfm) is Transform else type(tfm).__name__).rpartition(".")[2]
    raise ExportError(
        f"the validation transform `{name}` ({stage}) is code and cannot travel as data; use "
        "Resize, ToTensor, IntToFloatTensor and Normalize, or ImageDataset.dataloaders(), or mark "
        "it as training-only with `split_idx = 0`"
    )
