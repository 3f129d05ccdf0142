"""The factory of learners: `cnn_learner` cuts a backbone and puts a head on it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import learnkit._torchvision  # noqa: F401  # before fastai

from fastai.data.core import DataLoaders
from fastai.data.transforms import get_c
from fastai.losses import CrossEntropyLossFlat
from torch import Tensor, nn

from learnkit.callback.class_weights import ClassWeights, check_weighable
from learnkit.callback.folded_norms import FoldedNorms, folded_norms
from learnkit.data.preprocess import Preprocessing
from learnkit.errors import (
    DataError,
    InputSizeError,
    WeightsError,
    number_of,
    warn_user,
    warned_after,
)
from learnkit.inference.weights_check import (
    InputRecipe,
    WeightsCheck,
    assumption_of,
    channel_stats,
    compare_recipes,
    likely_recipes,
    stratified_draw,
)
from learnkit.interpret.learner_state import names_of
from learnkit.interpret.normalization import Normalization, normalization_of, plain_pixels
from learnkit.interpret.source import Source
from learnkit.learner.arguments import check_order, explained_arguments, shared_out
from learnkit.learner.dataloaders import (
    BalancedLoader,
    check_class_labels,
    empty_dataloaders,
    is_normalized,
    with_normalization,
)
from learnkit.learner.learner import ImageLearner
from learnkit.learner.training_data import labelled_data
from learnkit.learner.transforms import warn_if_code
from learnkit.models.body import create_body
from learnkit.models.create import create_cnn_model
from learnkit.models.eval_mode import gains_by_channels_last, randomness_kept, set_channels_last
from learnkit.models.param_groups import as_splitter, param_groups

_BATCH = 32  # images that are read and compared at a time


@warned_after
def cnn_learner(
    dls: DataLoaders | None = None,
    arch: str | Callable | nn.Module | None = None,
    pretrained: bool | str | Path = True,
    cut: int | Callable | None = None,
    split_on: Any = None,
    *,
    splitter: Callable | None = None,
    custom_head: nn.Module | Callable | None = None,
    lin_ftrs: Sequence[int] | None = None,
    ps: float | Sequence[float] = 0.5,
    concat_pool: bool = True,
    bn_final: bool = False,
    first_bn: bool = True,
    lin_first: bool = False,
    lin_bias: bool = True,
    y_range: tuple[float, float] | None = None,
    init: Callable | None = nn.init.kaiming_normal_,
    n_in: int | None = None,
    n_out: int | None = None,
    normalize: bool | tuple[Sequence[float], Sequence[float]] = True,
    train_bn: bool | str = True,
    precision: str = "auto",
    size: int | tuple[int, int] | None = None,
    weights: Any = None,
    check_weights: bool = False,
    class_weights: bool | str | Mapping[str, float] = False,
    arch_kwargs: dict[str, Any] | None = None,
    data: DataLoaders | None = None,
    base_arch: Any = None,
    **learner_kwargs: Any,
) -> ImageLearner:
    """An ImageLearner: the body of `arch`, cut before its classifier, under a new head.

    With pretrained weights the body starts frozen. fastai v1's names (`data`, `base_arch`,
    `split_on`) work too. The given DataLoaders are not changed.

    Without `dls` it starts with nothing: `cnn_learner(arch="resnet18", size=224)` is in the
    continual state, knows no class yet, and learns any by `extend` alone, here or where it is
    deployed.

    Args:
        dls: Image DataLoaders; classes, image size and channels are read off them. None for a
            learner without data.
        arch: A timm or torchvision name, a constructor, or a module.
        pretrained: True for the hub's weights, False for random ones, or a weights file
            (safetensors, or a state dict that loads with `weights_only=True`).
        cut: Where to cut the body: children()[:cut], or a function of the network.
        split_on: Parameter groups in any of the shapes of fastai v1 and v2; see `as_splitter`.
        splitter: fastai v2's name for `split_on`.
        custom_head: A module, or a function of (n_features, n_out) that makes one.
        lin_ftrs: Widths of the head's hidden layers; default one of 512.
        ps: Dropout of the head: one probability, or one per layer.
        concat_pool: Pool by mean and maximum together rather than by mean alone.
        bn_final: A last batch norm after the last linear layer.
        first_bn: A batch norm before the first linear layer.
        lin_first: Linear layers before their batch norm and dropout.
        lin_bias: Biases in the linear layers; fastai v2's heads have none.
        y_range: Squash the outputs into this interval.
        init: Initialises the head's weights; None keeps torch's.
        n_in: Input channels; default those of `dls`.
        n_out: Outputs; default the number of classes of `dls`.
        normalize: True normalises with the statistics the weights were trained with, False not at
            all, a pair (mean, std) with these.
        train_bn: See `ImageLearner`.
        precision: Of training steps. "auto" takes bfloat16 where the processor (AVX512_BF16, AMX)
            or GPU multiplies it itself, and float32 elsewhere; "float32" trains as fastai does to
            the bit; "float16" is for GPUs. Weights, norm layers' weights and statistics, losses and
            files stay float32, as do all passes that measure: validation, predictions, statistics.
        size: Of the images of a learner without `dls`: height and width, or one number for both.
        weights: torchvision's weights enum or name, when not the default ones.
        check_weights: Compare the likely ways to normalise and pad for these weights, by exact
            leave-one-out accuracy on up to 200 training images; `learn.weights_check` has the
            numbers. The best takes the place of what is assumed of the architecture; what
            `normalize`, `pad_type` or the weights file say is only doubted.
        class_weights: Weights of the classes in training losses: True inversely to their numbers
            of images, "sqrt" to the root of these, or {name: weight}, as
            `ImageDataset.class_weights` gives them. They are nowhere else: `valid_loss`, top
            losses, thresholds and predictions know none, `train_loss` is the weighted one.
        arch_kwargs: Further arguments of the constructor, such as `{"pad_type": "same"}`.
        data: fastai v1's name for `dls`.
        base_arch: fastai v1's name for `arch`.
        **learner_kwargs: For fastai's Learner: `metrics`, `loss_func`, `cbs`, `path`, ...; others
            go to the constructor of a timm network, such as `drop_path_rate`.

    Raises:
        TypeError: An argument is unknown, or given in the order of fastai v2.
        UnknownArchitectureError: No such name; the nearest are suggested.
        CutError: `cut` truncates the network or leaves no feature map.
        WeightsUnavailableError: The hub cannot be reached; raised before any training.
        InputSizeError: The images do not fit the network.
        DataError: There is no such `precision`.
        BackendUnavailableError: `precision` is "float16" on a processor.
    """
    check_order(pretrained, cut, split_on)
    dls, arch = dls if dls is not None else data, arch if arch is not None else base_arch
    learner_kwargs, options = shared_out(learner_kwargs, arch, cnn_learner)
    starts_empty = dls is None and arch is not None
    if starts_empty:
        if check_weights:
            raise TypeError("`check_weights` compares by training images, and there is no `dls`")
        # one output, for there is no head without; `init_continual` takes its place
        dls, n_out = loaders_without_data(size, n_in), 1
    elif size is not None and dls is not None:
        raise TypeError(f"`size` is {size!r}, but `dls` have one: dataloaders(size={size!r})")
    build = explained_arguments(cnn_learner, arch, options)(assemble)
    model, dls, check = build(
        dls,
        arch,
        pretrained=pretrained,
        normalize=normalize,
        n_in=n_in,
        n_out=n_out,
        cut=cut,
        custom_head=custom_head,
        lin_ftrs=lin_ftrs,
        ps=ps,
        concat_pool=concat_pool,
        bn_final=bn_final,
        first_bn=first_bn,
        lin_first=lin_first,
        lin_bias=lin_bias,
        y_range=y_range,
        init=init,
        weights=weights,
        check_weights=check_weights,
        arch_kwargs=options | (arch_kwargs or {}),
    )
    if names_of(dls) is not None and getattr(dls.train_ds, "loss_func", None) is None:
        # fastai asks the dataset for it, where torch's have none
        learner_kwargs.setdefault("loss_func", CrossEntropyLossFlat())
    warn_if_code(dls)
    groups = split_on if split_on is not None else splitter
    splitter = param_groups if groups is None else as_splitter(groups)
    learn = ImageLearner(
        dls, model, splitter=splitter, train_bn=train_bn, precision=precision, **learner_kwargs
    )
    if class_weights is not False:
        learn.add_cb(ClassWeights(class_weights))
        check_weighable(learn)
        if isinstance(dls.train, BalancedLoader):
            warn_user(
                "`class_weights` and `dataloaders(balance=)` both even out the classes, so that "
                "rare ones count twice; leave one of the two out"
            )
    if check is not None:
        learn.weights_check = check
        warn_user(f"`check_weights`: {check}")
    if pretrained:
        # Batch norms of a new network are the identity, too: only trained weights tell.
        if folded_norms(model[0]):
            learn.add_cb(FoldedNorms())
        learn.freeze()
    if starts_empty:
        learn.init_continual(reset_class_information=True)
    return learn


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
            f"`n_in` is {n_in}, but the images have {number_of(channels, 'channel')}; leave "
            "`n_in` out, or make "
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
    # an architecture may take the option and do nothing with it
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
            f"have {number_of(channels, 'channel')}; pass normalize=(mean, std) with one of each "
            "per channel"
        )
    return with_normalization(dls, mean, std)
