"""Where a body ends: cutting a network's children, and refusing a cut that leaves no feature map."""

import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from learnkit.errors import CutError
from learnkit.models.probe import Probe, probe

MIN_STRIDE = 8
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
    pools = [i for i, child in enumerate(children) if has_pool_type(child)]
    if not pools:
        raise CutError(
            f"{type(model).__name__} has no pooling layer to cut at; pass `cut=` (how many children to"
            f" keep, or a function of the network); {describe_children(model)}"
        )
    return pools[-1]


def has_pool_type(module: nn.Module) -> bool:
    """True if the module is a pooling layer or holds one."""
    return any(re.search(r"Pool[123]d$", type(m).__name__) for m in module.modules())


def require_map(model: nn.Module, trunk: nn.Module, cut: Any, shape: tuple[int, ...]) -> Probe:
    """Return a dry run of `trunk`, the part of `model` that `cut` leaves.

    Raises:
        CutError: The trunk fails, or does not return a feature map of four dimensions.
    """
    try:
        seen = probe(trunk, lambda net, x: net(x), shape)
    except Exception as error:  # whatever a wrongly cut network raises
        raise CutError(
            f"what `cut`={_name(cut)} leaves of {type(model).__name__} fails on an input of"
            f" {shape}: {error}; {describe_children(model)}"
        ) from error
    if not isinstance(seen.output, Tensor) or seen.output.ndim != 4:
        got = tuple(seen.output.shape) if isinstance(seen.output, Tensor) else type(seen.output)
        raise CutError(
            f"`cut`={_name(cut)} of {type(model).__name__} gives {got}, not a feature map"
            f" (N,D,H,W); cut earlier; {describe_children(model)}"
        )
    return seen


def require_untruncated(
    model: nn.Module, trunk: nn.Module, cut: Any, stride: float, *, automatic: bool
) -> None:
    """Raise CutError if the cut throws away most of the network.

    A cut chosen by the caller is only refused when it ends before stride 8; one found automatically
    also when it drops more than half of the convolutional weights. Functions are trusted.
    """
    kept, total = _n_map_weights(trunk), _n_map_weights(model)
    if stride < MIN_STRIDE or (automatic and kept < MIN_SHARE * total):
        raise CutError(
            f"`cut`={_name(cut)} truncates {type(model).__name__}: it ends at stride {stride:g} with"
            f" {kept:,} of {total:,} convolutional weights; pass a later `cut=`, or a function of the"
            f" network if this is meant; {describe_children(model)}"
        )


def describe_children(model: nn.Module) -> str:
    """Return the children with the int that `cut=` needs to keep everything up to each."""
    lines = [f"{i}: {n} ({type(c).__name__})" for i, (n, c) in enumerate(model.named_children(), 1)]
    return "cut=N keeps the first N children: " + ", ".join(lines)


def _n_map_weights(model: nn.Module) -> int:
    """Count the weights outside linear layers: a classifier may outweigh the body (VGG, AlexNet)."""
    linear = sum(
        p.numel() for m in model.modules() if isinstance(m, nn.Linear) for p in m.parameters()
    )
    return sum(p.numel() for p in model.parameters()) - linear


def _name(cut: Any) -> str:
    return getattr(cut, "__name__", repr(cut))
