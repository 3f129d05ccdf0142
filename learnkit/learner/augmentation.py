"""Transforms that vary training images: what a caller gives, checked, as fastai takes it.

Whatever changes all images alike is refused: validation, `predict` and exported models read images
by the recipe, so that a `Normalize` among the augmentations would normalise training alone.
"""

import copy
from collections.abc import Iterable
from typing import Any

import learnkit._torchvision  # noqa: F401  # before fastai

from fastai.data.transforms import IntToFloatTensor, Normalize
from fastai.vision.augment import (
    AffineCoordTfm,
    RandomResizedCropGPU,
    RandTransform,
    SpaceTfm,
    aug_transforms,
)
from fasttransform import Transform

from learnkit.errors import DataError

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
    transforms = [copy.copy(tfm) for tfm in _transforms("item_tfms", item_tfms)]
    for tfm in transforms:
        tfm.split_idx = 0
    return transforms


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
