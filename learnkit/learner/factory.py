"""The factory of learners: `cnn_learner` cuts a backbone and puts a head on it."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastai.data.core import DataLoaders
from fastai.losses import CrossEntropyLossFlat
from torch import nn

from learnkit.callback.class_weights import ClassWeights, check_weighable
from learnkit.callback.folded_norms import FoldedNorms, folded_norms
from learnkit.errors import warn_user, warned_after
from learnkit.interpret.learner_state import names_of
from learnkit.learner.arguments import check_order, explained_arguments, shared_out
from learnkit.learner.build import assemble, loaders_without_data
from learnkit.learner.dataloaders import BalancedLoader
from learnkit.learner.learner import ImageLearner
from learnkit.learner.transforms import warn_if_code
from learnkit.models.param_groups import as_splitter, param_groups


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
