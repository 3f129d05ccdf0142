"""The parts `cnn_learner` puts together: a network that fits the data, and the other way round."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import learnkit._torchvision  # noqa: F401  # before fastai

from fastai.data.core import DataLoaders
from fastai.data.transforms import get_c
from torch import Tensor, nn

from learnkit.data.preprocess import Preprocessing
from learnkit.errors import DataError, InputSizeError, WeightsError, warn_user
from learnkit.inference.weights_check import (
    InputRecipe,
    WeightsCheck,
    assumption_of,
    channel_stats,
    compare_recipes,
    likely_recipes,
    stratified_draw,
)
from learnkit.interpret.contexts import randomness_kept
from learnkit.interpret.learner_state import names_of
from learnkit.interpret.normalization import Normalization, normalization_of, plain_pixels
from learnkit.interpret.source import Source
from learnkit.learner.dataloaders import (
    check_class_labels,
    empty_dataloaders,
    is_normalized,
    with_normalization,
)
from learnkit.learner.training_data import labelled_data
from learnkit.models.body import create_body
from learnkit.models.create import create_cnn_model
from learnkit.models.eval_mode import gains_by_channels_last, set_channels_last

_BATCH = 32  # images that are read and compared at a time


def assemble(
    dls: DataLoaders,
    arch: Any,
    *,
    pretrained: Any,
    normalize: bool | tuple[Sequence[float], Sequence[float]],
    n_in: int | None,
    n_out: int | None,
    check_weights: bool = False,
    arch_kwargs: dict[str, Any],
    **model_args: Any,
) -> tuple[nn.Module, DataLoaders, WeightsCheck | None]:
    """Return a network for the classes, size and channels of `dls`, and `dls` normalised for it.

    Third comes what `check_weights` found, None without it.

    Raises:
        TypeError: `dls` or `arch` is missing.
        DataError: The number of classes cannot be told, or `dls` give no batches of images.
        InputSizeError: `n_in` is not the number of channels of the images.
        WeightsError: `check_weights` without trained weights.
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
    n_out = n_out or get_c(dls) or len(names_of(dls) or ())
    if not n_out:
        raise DataError("`dls` does not tell its number of classes; pass `n_out` or set `dls.c`")
    known = {"pretrained": pretrained, "n_in": channels, "img_size": tuple(size)}
    check = None
    if check_weights:
        body_args = known | {name: model_args[name] for name in ("cut", "weights")}
        check = _check_weights(dls, arch, normalize, arch_kwargs, body_args)
        if check.chosen is not check.recipes[0]:
            normalize = check.chosen.mean, check.chosen.std
            arch_kwargs = arch_kwargs | dict(check.chosen.options)
    mean, std = (None, None) if isinstance(normalize, bool) else normalize
    stats = {"mean": mean, "std": std}
    model = create_cnn_model(arch, n_out, arch_kwargs=arch_kwargs, **known, **stats, **model_args)
    if gains_by_channels_last(model[0]):
        set_channels_last(model[0], True)
        model.spec = model.spec and replace(model.spec, channels_last=True)
    assumed = assumption_of(model[0])
    if assumed and check is None and normalize is True and not is_normalized(dls):
        ways = "`check_weights=True` compares the likely ones, `normalize=(mean, std)` says it"
        warn_user(f"{assumed}. {ways}")
    if normalize is False:
        return model, dls, check
    return model, _normalized(dls, model[0], channels, given=normalize is not True), check


def _check_weights(
    dls: DataLoaders, arch: Any, normalize: Any, arch_kwargs: dict[str, Any], body_args: dict
) -> WeightsCheck:
    """Return how the likely ways of making the network's input compare on training images.

    The first is that of the caller or the file, if one says it, else what is assumed of the
    architecture. Random states are left as found.
    """
    found = normalization_of(dls.valid)
    if found is None or not hasattr(dls.train, "dataset"):
        raise DataError(
            "`check_weights=True` needs loaders that tell how their pixels are normalised, as "
            "those of ImageDataset.dataloaders and of fastai's factories do"
        )
    if not body_args["pretrained"] and body_args["weights"] is None:
        raise WeightsError(
            "`check_weights=True` with `pretrained=False`: random weights have no recipe that they "
            "were trained with; leave one of the two out"
        )
    with randomness_kept():
        source, labels = Source(dls.train, template=dls.valid), labelled_data(dls.train).labels
        drawn = stratified_draw(labels)
        make = partial(create_body, arch, **body_args)
        body = make(**arch_kwargs)
        first, said_by = _first_recipe(body, normalize, found, body_args["n_in"])
        paddings = [first.options, *_other_paddings(make, body, arch_kwargs)]

        def batches() -> Iterator[Tensor]:
            for start in range(0, len(drawn), _BATCH):
                yield plain_pixels(source.read(drawn[start : start + _BATCH])[0], found)

        body_of = lambda options: (
            body if options == first.options else make(**arch_kwargs, **options)
        )
        return compare_recipes(
            likely_recipes(first, paddings), body_of, batches, [labels[i] for i in drawn], said_by
        )


def _first_recipe(
    body: nn.Module, normalize: Any, found: Normalization, n_in: int
) -> tuple[InputRecipe, str]:
    """Return the recipe in force without a check, and who says it; "" where it is assumed."""
    if found.mean is not None:
        stats, said_by = found, "Normalize in `dls`"
    elif normalize is not True:
        stats, said_by = normalize or (None, None), "`normalize`"
    else:
        stats, said_by = (body.mean, body.std), body.recipe_source
        said_by = said_by or ("" if body.weights_file else "the published configuration")
    mean, std = stats if stats[0] is not None else ((0.0,), (1.0,))
    return InputRecipe("as before", channel_stats(mean, n_in), channel_stats(std, n_in)), said_by


def _other_paddings(
    make: Any, body: nn.Module, arch_kwargs: Mapping[str, Any]
) -> list[dict[str, str]]:
    """Return the option of the padding that a network of timm's may also have been trained with.

    Many were ported from TensorFlow, which pads "same"; their weights fit both kinds.
    """
    if body.source != "timm" or "pad_type" in body.arch_kwargs:
        return []
    pads_same = any(type(module).__name__ == "Conv2dSame" for module in body.modules())
    other = {"pad_type": "" if pads_same else "same"}
    try:
        changed = make(**arch_kwargs, **other)
    except TypeError:  # an architecture that has no such argument
        return []
    kinds = [[type(module) for module in net.modules()] for net in (body, changed)]
    return [other] if kinds[0] != kinds[1] else []


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
    recipe = Preprocessing(size=size, channels=3 if channels is None else channels, draft=True)
    return empty_dataloaders(recipe, [])


def _image_shape(dls: DataLoaders) -> tuple[int, int, int]:
    """Return (channels, height, width) of the images."""
    # A batch is read only where the loaders do not tell: it may cost seconds.
    recipe = getattr(dls, "preprocessing", None)
    if recipe is not None:
        return (recipe.channels, *recipe.size)
    valid = dls.valid
    batch = valid.one_batch() if hasattr(valid, "one_batch") else next(iter(valid))
    images = batch[0] if isinstance(batch, tuple | list) and len(batch) else None
    if not isinstance(images, Tensor) or images.ndim != 4:
        raise DataError(
            f"a batch of `dls` is a {type(batch).__name__} that does not begin with images; it "
            "must be (images, labels), the images a tensor (N, C, H, W)"
        )
    channels, height, width = images.shape[1:]
    return channels, height, width


def _normalized(dls: DataLoaders, body: nn.Module, channels: int, *, given: bool) -> DataLoaders:
    """Return `dls` normalised for the body, never twice; the given loaders stay as they are."""
    if body.mean is None or not all(hasattr(dl, "after_batch") for dl in dls.loaders):
        return dls  # torch's loaders give pixels as they are meant
    if is_normalized(dls):
        return dls
    mean, std = list(body.mean), list(body.std)
    # a colour network that was given images of other channels
    if channels != 3 and (channels == 1 or not given) and len(mean) == len(std) == 3:
        mean, std = channel_stats(mean, channels), channel_stats(std, channels)
    if len(mean) != channels or len(std) != channels:
        raise InputSizeError(
            f"`normalize` has {len(mean)} means and {len(std)} standard deviations, but the images "
            f"have {channels} channels; pass normalize=(mean, std) with one of each per channel"
        )
    return with_normalization(dls, mean, std)
