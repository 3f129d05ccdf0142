"""Transforms that vary training images: what a caller gives, checked, as fastai takes it.

Whatever changes all images alike is refused: validation, `predict` and exported models read images
by the recipe, so that a `Normalize` among the augmentations would normalise training alone.
"""

import copy
from collections.abc import Iterable
from typing import Any

import learnkit._torchvision  # noqa: F401  # before fastai

from fastai.data.core import TfmdDL
from fastai.data.transforms import IntToFloatTensor, Normalize
from fastai.vision.augment import (
    AffineCoordTfm,
    RandomResizedCropGPU,
    RandTransform,
    SpaceTfm,
    aug_transforms,
)
from fasttransform import Pipeline, Transform

from learnkit.errors import DataError, warn_user
from learnkit.learner.transforms import ResizeLikeRecipe

# fastai's augmentations of batches; most say nothing of training by `split_idx`.
_AUGMENTATIONS = (RandTransform, AffineCoordTfm, SpaceTfm, RandomResizedCropGPU)
_FOR_ALL = {
    Normalize: "leave it out: `cnn_learner` normalises all images as the network was trained, or "
    "by its `normalize=(mean, std)`",
    IntToFloatTensor: "leave it out: the loaders do this to all images",
}


def batch_augmentation(augment: Any, size: tuple[int, int]) -> list[Transform]:
    """The transforms of training batches that `augment` stands for.

    Raises:
        DataError: One is no transform, is not for training images alone, or changes their size.
    """
    if augment is None or isinstance(augment, bool):
        transforms = aug_transforms() if augment else []
    else:
        transforms = _transforms("augment", augment)
    for tfm in transforms:
        if tfm.split_idx != 0 and not isinstance(tfm, _AUGMENTATIONS):
            raise DataError(
                f"`augment` has {_name(tfm)}, which does not say that it is for training images "
                "alone: validation images, `predict` and exported models go without it. If that is "
                "meant, set its `split_idx = 0` (of a function: Transform(function, split_idx=0))"
            )
        resized = getattr(tfm, "cp_size", None)
        if resized not in (None, size):
            raise DataError(
                f"`augment` resizes training images to {resized}, but `size` is {size}; leave "
                "`size` out of aug_transforms(), or give both the same"
            )
    return transforms


def item_augmentation(item_tfms: Any) -> list[Transform]:
    """Copies of `item_tfms`, for training images alone.

    Raises:
        DataError: One is no transform, or has to be for all images.
    """
    # copies: the caller's may be used for all images elsewhere
    transforms = [copy.copy(tfm) for tfm in _transforms("item_tfms", item_tfms)]
    for tfm in transforms:
        tfm.split_idx = 0
    return transforms


def augmented_loader(learn: Any, dl: Any, item_tfms: Any = None, batch_tfms: Any = None) -> Any:
    """A loader over the images of `dl` whose training-only transforms are those given.

    Without any they are those of `dl` itself, else those the learner trains with.

    Args:
        learn: the learner.
        dl: a fastai loader over a dataset; any other comes back as it is.
        item_tfms: for single images; their stage alone is replaced.
        batch_tfms: for batches; their stage alone is replaced.
    """
    if not isinstance(dl, TfmdDL):
        return dl
    given = {"after_item": item_tfms, "after_batch": batch_tfms}
    if item_tfms is None and batch_tfms is None:
        train = learn.dls.train
        if any(_varies(tfm) for name in given for tfm in getattr(dl, name).fs):
            return dl
        given = {n: [t for t in getattr(train, n).fs if _varies(t)] for n in given}
        if not any(given.values()):
            warn_user(
                "the training images are not augmented, so that every pass sees the same; give "
                "batch_tfms=aug_transforms() or the like"
            )
            return dl
        first = ResizeLikeRecipe  # what training does to the size of images it augmented before
        given["after_item"] += [t for t in train.after_item.fs if isinstance(t, first)]
    return dl.new(**{name: _with(dl, name, tfms) for name, tfms in given.items()})


def _with(dl: Any, stage: str, tfms: Any) -> Pipeline:
    """A stage of `dl` with other training-only transforms; those of a kind it has replace it."""
    fs = getattr(dl, stage).fs
    if tfms is None:
        return Pipeline([*fs])
    new = [_transform("tfms", tfm) for tfm in ([tfms] if callable(tfms) else tfms)]
    # plain Transforms are functions, of one type whatever they do
    kinds = {type(tfm) for tfm in new} - {Transform}
    return Pipeline([*new, *(t for t in fs if not _varies(t) and type(t) not in kinds)])


def _varies(tfm: Transform) -> bool:
    """Whether a transform is for training images alone, or makes others of them there."""
    return tfm.split_idx == 0 or isinstance(tfm, _AUGMENTATIONS)


def _transforms(name: str, given: Any) -> list[Transform]:
    """What was given, one or many, as transforms."""
    if given is None:
        return []
    single = callable(given) or isinstance(given, str) or not isinstance(given, Iterable)
    transforms = [_transform(name, one) for one in ([given] if single else given)]
    for tfm in transforms:
        for kind, remedy in _FOR_ALL.items():
            if isinstance(tfm, kind):
                raise DataError(f"`{name}` has {_name(tfm)}, which is for all images; {remedy}")
    return transforms


def _transform(name: str, given: Any) -> Transform:
    if not callable(given):
        also = "True for fastai's aug_transforms(), " if name == "augment" else ""
        raise DataError(f"`{name}` is or has {given!r}; give {also}transforms of fastai, or None")
    if not isinstance(given, type):
        return given if isinstance(given, Transform) else Transform(given)
    try:
        made = given()
    except TypeError as error:
        raise DataError(
            f"`{name}` has the class {given.__name__}, which needs arguments ({error}); make it: "
            f"{given.__name__}(...)"
        ) from error
    return _transform(name, made)


def _name(tfm: Transform) -> str:
    # what a user would call it: its function's name, else its class's
    return (tfm.name if type(tfm) is Transform else type(tfm).__name__).rpartition(".")[2]
