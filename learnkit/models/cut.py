"""Cuts: where a body ends, and refusing what leaves no feature map of the network."""

import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from learnkit.errors import CutError
from learnkit.models.dry_run import DryRun, dry_run

# fastai's rule, the last pool layer, cuts networks that end in a mean near their start: ShuffleNet
# keeps its first convolution. Such cuts end at a small stride or lack most of the weights.
MIN_STRIDE, MAX_STRIDE = 8, 128
MIN_SHARE = 0.5


def cut_network(model: nn.Module, cut: int | Callable) -> nn.Module:
    """Return `cut(model)`, or the first children for an int, as a Sequential under their own names.

    Raises:
        CutError: `cut` is neither an int nor a callable, or leaves nothing.
    """
    if callable(cut):
        return cut(model)
    check_cut(cut)
    children = list(model.named_children())[:cut]
    if not children:
        raise CutError(f"`cut`={cut} leaves nothing of the network; {describe_children(model)}")
    return nn.Sequential(OrderedDict(children))


def check_cut(cut: Any) -> None:
    """Raise CutError unless `cut` is None, an int or a callable."""
    if (
        cut is not None
        and not callable(cut)
        and (isinstance(cut, bool) or not isinstance(cut, int))
    ):
        raise CutError(
            f"`cut`={cut!r} of type {type(cut).__name__}: cut must be an int (how many children to"
            " keep, negative from the end) or a function of the network"
        )


def automatic_cut(model: nn.Module) -> int:
    """Return the index of the last child that is, or holds, a pooling layer (fastai's rule).

    Raises:
        CutError: No child pools.
    """
    children = list(model.children())
    pools = [
        i
        for i, child in enumerate(children)
        # by the name of their class, as fastai does, so that home-made pools count
        if any(re.search(r"Pool[123]d$", type(m).__name__) for m in child.modules())
    ]
    if not pools:
        raise CutError(
            f"{type(model).__name__} has no pooling layer to cut at; pass `cut=` (how many children"
            f" to keep, or a function of the network); {describe_children(model)}"
        )
    return pools[-1]


def require_map(model: nn.Module, trunk: nn.Module, cut: Any, shape: tuple[int, ...]) -> DryRun:
    """Return a dry run of `trunk`, the part of `model` that `cut` leaves.

    A function as cut is trusted: what it returns may also give features (N,D), for a head that does
    not pool.

    Raises:
        CutError: The trunk fails, or returns anything but a feature map.
    """
    try:
        seen = dry_run(trunk, lambda net, x: net(x), shape)
    except Exception as error:  # whatever a wrongly cut network raises
        raise CutError(
            f"what `cut`={_name(cut)} leaves of {type(model).__name__} fails on an input of"
            f" {shape}: {error}; {describe_children(model)}"
        ) from error
    dimensions = (2, 4) if callable(cut) else (4,)
    if not isinstance(seen.output, Tensor) or seen.output.ndim not in dimensions:
        got = tuple(seen.output.shape) if isinstance(seen.output, Tensor) else type(seen.output)
        raise CutError(
            f"`cut`={_name(cut)} of {type(model).__name__} gives {got}, not a feature map"
            f" (N,D,H,W); cut earlier; {describe_children(model)}"
        )
    return seen


def require_untruncated(
    model: nn.Module, trunk: nn.Module, cut: Any, sizes: tuple[int, int] | None, *, automatic: bool
) -> None:
    """Raise CutError if the cut throws away most of the network, or keeps its global pooling.

    A cut chosen by the caller is refused when it ends before stride 8 or after the pool; one found
    automatically also when it drops more than half of the convolutional weights.

    Args:
        model: The whole network.
        trunk: What the cut leaves of it.
        cut: The cut, for the message.
        sizes: Height of the images and of the map, None not to look at strides.
        automatic: Whether the cut was found rather than chosen.
    """
    kept, total = _n_map_weights(trunk), _n_map_weights(model)
    stride = None if sizes is None else sizes[0] / sizes[1]
    if stride is not None and stride > MAX_STRIDE:
        fault = "keeps the global pooling, which leaves no map; cut earlier"
    # a map of one row says nothing about the stride
    elif stride is not None and stride < MIN_STRIDE and sizes[1] > 1:
        fault = f"truncates it: it ends at stride {stride:g}; cut later"
    elif automatic and kept < MIN_SHARE * total:
        fault = f"truncates it: it keeps {kept:,} of {total:,} convolutional weights; pass `cut=`"
    else:
        return
    raise CutError(
        f"`cut`={_name(cut)} of {type(model).__name__} {fault}, or pass a function of the network;"
        f" {describe_children(model)}"
    )


def describe_children(model: nn.Module) -> str:
    """Return the children with the int that `cut=` needs to keep everything up to each."""
    lines = [f"{i}: {n} ({type(c).__name__})" for i, (n, c) in enumerate(model.named_children(), 1)]
    return "cut=N keeps the first N children: " + ", ".join(lines)


def _n_map_weights(model: nn.Module) -> int:
    """Count the weights outside linear layers."""
    # VGG's classifier outweighs its body
    linear = sum(
        p.numel() for m in model.modules() if isinstance(m, nn.Linear) for p in m.parameters()
    )
    return sum(p.numel() for p in model.parameters()) - linear


def _name(cut: Any) -> str:
    return getattr(cut, "__name__", repr(cut))
