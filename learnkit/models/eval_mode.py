"""How a network measures: in eval mode for a while, in the memory layout it is fast in.

A pass leaves nothing behind: modes of layers, random states and threads are as they were.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Yield `model` in eval mode; afterwards every module has its own former mode again.

    Also after an exception.

    >>> model = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    >>> with evaluating(model):
    ...     [m.training for m in model]
    [False, False]
    >>> [m.training for m in model]
    [True, False]
    """
    # Per module: a trained network may hold layers in eval mode on purpose (frozen norms).
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield model
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def randomness_kept() -> Iterator[None]:
    """Restore the random states of torch, numpy and `random`: loaders draw from them."""
    plain_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(plain_state)
        np.random.set_state(numpy_state)  # noqa: NPY002  # fastai draws from the global state


@contextmanager
def torch_threads(n: int | None) -> Iterator[None]:
    """Torch computes with `n` threads inside, None for as many as before, which come back after."""
    before = torch.get_num_threads()
    torch.set_num_threads(n or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def gains_by_channels_last(body: nn.Module) -> bool:
    """Whether a processor runs a body faster with the channels of a pixel side by side in memory.

    The rule is by its layers, so that it is the same on every machine: most are convolutions, and
    none normalises over channels. Measured with AVX-512 in float32, such bodies take .75 to .84 of
    the time (ResNet, MobileNet, EfficientNet, RegNet, DenseNet), ConvNeXt and ViT all of it.
    """
    layers = list(body.modules())
    n_convolutions, n_linear = (
        sum(isinstance(layer, kind) for layer in layers) for kind in (nn.Conv2d, nn.Linear)
    )
    return n_convolutions > n_linear and not any(isinstance(one, nn.LayerNorm) for one in layers)


def set_channels_last(body: nn.Module, wanted: bool) -> nn.Module:
    """The body, which from now on measures in that layout on processors, or in torch's own.

    Where gradients are asked for, as in a training step, the layout is that of the images.
    """
    hooks = body._forward_pre_hooks
    # by the hook itself: a copy or a pickle of a body has no handle to remove it by
    for key in [key for key, hook in hooks.items() if hook is laid_out]:
        del hooks[key]
    if wanted:
        body.register_forward_pre_hook(laid_out)
    return body


def is_channels_last(body: nn.Module) -> bool:
    """Whether `set_channels_last` asked for it; copies and pickles of a body keep it."""
    return laid_out in body._forward_pre_hooks.values()


def laid_out(body: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Inputs of a body in its layout, where it measures on a processor; a hook of torch's."""
    images = inputs[0]
    if torch.is_grad_enabled() or images.device.type != "cpu" or images.ndim != 4:
        return None
    return (in_channels_last(images), *inputs[1:])


def in_channels_last(images: Tensor) -> Tensor:
    """The images (N, C, H, W) in the other layout, also those of one channel, or a single one.

    Torch tells the layout by the strides, also where these say nothing, as of one channel or image,
    and its layers give other last bits in each.
    """
    _, n_channels, height, width = images.shape
    line = width * n_channels
    if images.stride() == (height * line, 1, line, n_channels):
        return images
    # `contiguous` changes nothing where the strides fit both layouts
    return torch.empty_like(images, memory_format=torch.channels_last).copy_(images)
