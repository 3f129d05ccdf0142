"""fastai transforms on one side, the `Preprocessing` they stand for on the other.

The transforms here read files by a recipe. `preprocessing_of` goes the other way: it reads the
validation transforms of any fastai image DataLoaders as data, so that training, validation and
deployment share one `Preprocessing`; a transform that is code is refused by name.
"""

import dataclasses
import math
import os
import weakref
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import learnkit._torchvision  # noqa: F401  # before fastai

import numpy as np
import torch
from fastai.data.core import DataLoaders
from fastai.data.transforms import IntToFloatTensor, Normalize, ToTensor
from fastai.torch_core import TensorImage, show_image
from fastai.vision.augment import (
    AffineCoordTfm,
    CropPad,
    RandomCrop,
    RandomResizedCrop,
    RandomResizedCropGPU,
    Resize,
)
from fastai.vision.core import PILBase, PILImage, PILImageBW
from fasttransform import Transform
from PIL import Image
from torch import Tensor

from learnkit.data.geometry import Planes, Resizing
from learnkit.data.image import source_name
from learnkit.data.preprocess import Preprocessing, to_tensor
from learnkit.data.store import ImageStore
from learnkit.errors import DataError, ExportError, warn_user
from learnkit.models.eval_mode import randomness_kept

# Fields that other transforms tell: statistics, and geometry.
_OTHERS = {"mean", "std", "before", *(field.name for field in dataclasses.fields(Resizing))}


class TensorPlanes(TensorImage):
    """An image of another number of channels than 1 or 3; its first three, or one, are shown."""

    def show(self, ctx: Any = None, **kwargs: Any) -> Any:
        """Draw it, as fastai's images are."""
        shown = self[:3] if len(self) >= 3 else self[:1]
        return show_image(shown.as_subclass(Tensor), ctx=ctx, **kwargs)


class ReadImage(Transform):
    """File -> PIL image by the dataset's one recipe; with `resize=False` in its original size.

    Files that are in `store`, if there is one, are taken from it, and look the same.
    """

    def __init__(
        self, preprocessing: Preprocessing, store: ImageStore | None = None, *, resize: bool = True
    ):
        self.preprocessing, self.store, self.resize = preprocessing, store, resize

    def encodes(self, path):  # noqa: D102  # fastai's name for a transform's body
        p = self.preprocessing
        image = None if self.store is None else self.store.image(path)
        if image is None:
            image = p.read(path) if self.resize else p.decode(path)
        if isinstance(image, Planes):
            return TensorPlanes(to_tensor(image))
        return (PILImage if p.channels == 3 else PILImageBW)(image)


class ResizeLikeRecipe(Transform):
    """The recipe's own resize, after item-level augmentation: validation never differs."""

    order = 3  # after item-level augmentation (1), before ToTensor (5)

    def __init__(self, preprocessing: Preprocessing):
        self.preprocessing = preprocessing

    def encodes(self, image: PILBase):  # noqa: D102
        # fastai's ToTensor goes by fastai's own kinds of images
        return type(image)(self.preprocessing.resize(image))


class ReusedMemory:
    """Memory of batches that are gone, for the next ones: new memory costs more than what is done.

    An array is free again once nothing refers to its memory, tensors and views included. Two are
    kept: a training loop holds one batch while it makes the next.
    """

    def __init__(self) -> None:
        self._free: deque[np.ndarray] = deque(maxlen=2)

    def __reduce__(self) -> tuple:
        return ReusedMemory, ()  # of a copy, or a file, there is nothing to keep

    def tensor(self, shape: Sequence[int]) -> Tensor:
        """float32 tensor of a shape, its values arbitrary."""
        n_values = math.prod(shape)
        whole = self._free.pop() if self._free else np.empty(0, np.float32)
        if len(whole) < n_values:
            whole = np.empty(n_values, np.float32)  # in large pages, which torch's own are not
        lent = whole[:n_values].reshape(shape)
        # not at exit, where finalizers are called by default
        weakref.finalize(lent, self._free.append, whole).atexit = False
        return torch.from_numpy(lent)


class BytesToFloat(IntToFloatTensor):
    """fastai's division by 255 to the bit; on processors several times faster, in memory it had."""

    def __init__(self, div: float = 255.0, div_mask: int = 1):
        super().__init__(div, div_mask)
        self._memory = ReusedMemory()

    def encodes(self, o: TensorImage):  # noqa: D102
        plain = o.as_subclass(Tensor)
        if o.device.type != "cpu" or o.dtype != torch.uint8:
            return o.float().div_(self.div)
        return type(o)(self._memory.tensor(o.shape).copy_(plain).div_(self.div))


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
        # fasttransform would hand on the items of a tuple one by one
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
        ExportError: A validation transform is code, or has no counterpart in `Preprocessing`; or
            nothing tells the size of the images.
    """
    valid, fields, steps = dls.valid, {}, []
    for stage, tfm in _validation_transforms(valid):
        fields |= _fields_of(tfm, stage)
        steps += _steps_of(tfm, stage, steps)
    if not steps:
        if getattr(valid, "n", None) == 0:  # as after fastai's own export
            raise ExportError(
                "nothing says to what size images are brought: the loaders resize none, and there "
                "are no images to see it on. In fastai, give the loaders `item_tfms=Resize(224)`, "
                "and export the learner again"
            )
        with randomness_kept():
            steps = [Resizing(tuple(valid.one_batch()[0].shape[-2:]), "squish")]
    last = {field.name: getattr(steps[-1], field.name) for field in dataclasses.fields(Resizing)}
    return Preprocessing(**fields, **last, before=tuple(steps[:-1]))


def warn_if_code(dls: DataLoaders) -> None:
    """Warn, before anything is trained, where a learner over these loaders cannot be exported."""
    try:
        preprocessing_of(dls)
    except ExportError as error:
        warn_user(
            f"this learner trains and predicts, but `export`, `optimize` and `predictor` will "
            f"refuse it: {error}"
        )


def _validation_transforms(valid: Any) -> Iterator[tuple[str, Transform]]:
    """Yield (stage, transform) of validation images, from the one that opens files on."""
    first = next(iter(getattr(valid.dataset, "tls", ())), None)
    fs = [] if first is None else list(first.tfms.fs)
    while fs and not isinstance(fs[0], ReadImage) and _image_class(fs[0]) is None:
        fs.pop(0)  # what leads from an item to its file, such as a column of a table
    if not fs:
        raise ExportError(
            "`dls` does not open its images with PILImage.create or an ImageDataset; learnkit "
            "cannot tell how a file becomes a tensor. Make them with ImageDataset.dataloaders()"
        )
    yield from (("type_tfms", tfm) for tfm in fs)
    for stage in ("after_item", "before_batch", "after_batch"):
        for tfm in getattr(valid, stage).fs:
            if tfm.split_idx != 0:
                yield stage, tfm


def _image_class(tfm: Transform) -> type | None:
    """Return the fastai image class whose `create` this transform is, or None."""
    methods = getattr(getattr(tfm, "encodes", None), "methods", [])
    owners = (getattr(method.implementation, "__self__", None) for method in methods)
    return next((o for o in owners if isinstance(o, type) and issubclass(o, PILBase)), None)


def _fields_of(tfm: Transform, stage: str) -> dict[str, Any]:
    """Return the fields of `Preprocessing`, geometry aside, that one transform stands for."""
    if isinstance(tfm, ReadImage | ResizeLikeRecipe):
        return {k: v for k, v in vars(tfm.preprocessing).items() if k not in _OTHERS}
    if image_class := _image_class(tfm):
        return _fields_of_opener(image_class)
    if type(tfm) is Normalize:
        return {
            "mean": tuple(tfm.mean.flatten().tolist()),
            "std": tuple(tfm.std.flatten().tolist()),
        }
    return {}


def _fields_of_opener(image_class: Any) -> dict[str, Any]:
    modes, told = {"RGB": 3, "L": 1}, image_class._open_args
    own = image_class.create.__func__ is not PILBase.create.__func__
    if own or told.get("mode") not in modes or len(told) > 1:
        raise ExportError(
            f"`{image_class.__name__}` opens images in a way of its own, which cannot travel as "
            "data; use PILImage or PILImageBW, or ImageDataset.dataloaders()"
        )
    # fastai's `create` ignores EXIF orientation and converts as Pillow does, and so did training.
    return {"exif_transpose": False, "channels": modes[told["mode"]], "plain_convert": True}


def _steps_of(tfm: Transform, stage: str, before: Sequence[Resizing]) -> list[Resizing]:
    """Return what one transform does to the size of validation images, after the steps `before`."""
    reads = isinstance(tfm, ReadImage)
    if (reads and tfm.resize) or isinstance(tfm, ResizeLikeRecipe):
        return list(tfm.preprocessing.steps)
    if reads or _image_class(tfm) is not None or type(tfm) in (ToTensor, Normalize):
        return []
    if type(tfm) in (IntToFloatTensor, BytesToFloat) and tfm.div == 255:
        return []
    if isinstance(tfm, AffineCoordTfm | RandomResizedCropGPU):
        steps = _steps_of_batch(tfm, before)
    else:
        # by type: an heir of one of these may do anything
        steps = _STEPS.get(type(tfm), lambda _: None)(tfm)
    if steps is not None:
        return steps
    # what a user would call it: its function's name, else its class's
    name = (tfm.name if type(tfm) is Transform else type(tfm).__name__).rpartition(".")[2]
    raise ExportError(
        f"the validation transform `{name}` ({stage}) is code and cannot travel as data; use "
        "Resize, RandomResizedCrop, CropPad, ToTensor, IntToFloatTensor and Normalize, or "
        "ImageDataset.dataloaders(), or mark it as training-only with `split_idx = 0`"
    )


def _resize(tfm: Resize) -> list[Resizing]:
    # fastai keeps (height, width) turned around, as Pillow has it
    size, mode = tuple(tfm.size[::-1]), _filter(tfm)
    return [Resizing(size, tfm.method, interpolation=mode, pad_mode=tfm.pad_mode)]


def _random_resized_crop(tfm: RandomResizedCrop) -> list[Resizing]:
    """The whole image, a bit larger than `size`, and the middle of that."""
    height, width = size = tuple(tfm.size[::-1])
    # the same sum as in fastai's RandomResizedCrop
    more = math.ceil(max(size) * tfm.val_xtra / 8) * 8
    first = Resizing((height + more, width + more), "squish", interpolation=_filter(tfm))
    return [first, Resizing(size, "keep")] if more else [first]


def _filter(tfm: Any) -> str:
    return Image.Resampling(tfm.mode).name.lower()


_STEPS: dict[type, Callable[[Any], list[Resizing]]] = {
    Resize: _resize,
    CropPad: lambda tfm: [Resizing(tuple(tfm.size[::-1]), "keep", pad_mode=tfm.pad_mode)],
    RandomCrop: lambda tfm: [Resizing(tuple(tfm.size[::-1]), "keep")],
    RandomResizedCrop: _random_resized_crop,
}


def _steps_of_batch(tfm: Any, before: Sequence[Resizing]) -> list[Resizing] | None:
    """The steps of a transform of batches; None if no recipe has them."""
    if isinstance(tfm, AffineCoordTfm):
        if tfm.cp_size is None:
            return []  # on validation images the identity, up to rounding
        plain = tfm.mode == "bilinear" and tfm.align_corners is True
        return [Resizing(tfm.cp_size, "grid")] if plain else None
    if tfm.mode != "bilinear" or not before:
        return None
    height, width = size = before[-1].size
    low, high = tfm.ratio
    if width / height < low:
        size = (int(width / low), width)
    elif width / height > high:
        size = (height, int(height * high))
    size = tuple(int(side * tfm.valid_scale) for side in size)
    middle = [Resizing(size, "keep")] if size != (height, width) else []
    return [*middle, Resizing(tuple(tfm.size), "grid")]
