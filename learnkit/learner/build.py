"""The parts `cnn_learner` puts together: a network that fits the data, and the other way round."""

from collections.abc import Sequence
from typing import Any

import learnkit._torchvision  # noqa: F401  # before fastai

from fastai.data.core import DataLoaders
from fastai.data.transforms import get_c
from torch import nn

from learnkit.data.preprocess import Preprocessing
from learnkit.errors import DataError, InputSizeError
from learnkit.interpret.learner_state import names_of
from learnkit.learner.dataloaders import (
    check_class_labels,
    empty_dataloaders,
    is_normalized,
    with_normalization,
)
from learnkit.models.create import create_cnn_model


def assemble(
    dls: DataLoaders,
    arch: Any,
    *,
    pretrained: Any,
    normalize: bool | tuple[Sequence[float], Sequence[float]],
    n_in: int | None,
    n_out: int | None,
    **model_args: Any,
) -> tuple[nn.Module, DataLoaders]:
    """Return a network for the classes, size and channels of `dls`, and `dls` normalised for it.

    Raises:
        TypeError: `dls` or `arch` is missing.
        DataError: The number of classes cannot be told.
        InputSizeError: `n_in` is not the number of channels of the images.
    """
    if dls is None or arch is None:
        raise TypeError("cnn_learner needs `dls` and `arch`, as in cnn_learner(dls, 'resnet18')")
    check_class_labels(dls)
    channels, *size = _image_shape(dls)
    if n_in not in (None, channels):
        raise InputSizeError(
            f"`n_in` is {n_in}, but the images have {channels} channels; leave `n_in` out, or make "
            f"the loaders with dataloaders(channels={n_in})"
        )
    mean, std = (None, None) if isinstance(normalize, bool) else normalize
    n_out = n_out or get_c(dls) or len(names_of(dls) or ())
    if not n_out:
        raise DataError("`dls` does not tell its number of classes; pass `n_out` or set `dls.c`")
    model = create_cnn_model(
        arch,
        n_out,
        pretrained=pretrained,
        n_in=channels,
        img_size=tuple(size),
        mean=mean,
        std=std,
        **model_args,
    )
    return model, dls if normalize is False else _normalized(dls, model[0], channels)


def loaders_without_data(size: Any, channels: int | None) -> DataLoaders:
    """Return loaders without an image and without a class, for images of this size.

    Raises:
        TypeError: There is no size.
        DataError: It is none.
    """
    if size is None:
        raise TypeError(
            "cnn_learner has no `dls`; pass them, as in cnn_learner(dls, 'resnet18'), or the "
            "`size` of the images of a learner that starts without data, as in "
            "cnn_learner(arch='resnet18', size=224)"
        )
    recipe = Preprocessing(size=size, channels=3 if channels is None else channels)
    return empty_dataloaders(recipe, [])


def _image_shape(dls: DataLoaders) -> tuple[int, int, int]:
    """Return (channels, height, width) of the images."""
    # A batch is read only where the loaders do not tell: it may cost seconds.
    recipe = getattr(dls, "preprocessing", None)
    if recipe is not None:
        return (recipe.channels, *recipe.size)
    valid = dls.valid
    batch = valid.one_batch() if hasattr(valid, "one_batch") else next(iter(valid))
    channels, height, width = batch[0].shape[1:]
    return channels, height, width


def _normalized(dls: DataLoaders, body: nn.Module, channels: int) -> DataLoaders:
    """Return `dls` normalised for the body, never twice; the given loaders stay as they are."""
    if body.mean is None or not all(hasattr(dl, "after_batch") for dl in dls.loaders):
        return dls  # torch's loaders give pixels as they are meant
    if is_normalized(dls):
        return dls
    mean, std = list(body.mean), list(body.std)
    if channels == 1 and len(mean) == len(std) == 3:  # a colour network that was given grey images
        mean, std = [sum(mean) / 3], [sum(std) / 3]
    if len(mean) != channels or len(std) != channels:
        raise InputSizeError(
            f"`normalize` has {len(mean)} means and {len(std)} standard deviations, but the images "
            f"have {channels} channels; pass normalize=(mean, std) with one of each per channel"
        )
    return with_normalization(dls, mean, std)
