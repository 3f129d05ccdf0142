"""Conditions under which the output of a body may be stored and used again.

Every function returns None for yes, or the reason for no as a phrase that completes "idle because".
First come the signs that can be read off model, callbacks and transforms; `order_reason` and
`body_reason` then try one batch, which finds what no list of known transforms and layers would.
"""

import random
from typing import Any

import numpy as np
import torch
from fastai.callback.schedule import ParamScheduler
from fastai.data.load import DataLoader
from fastai.learner import CastToTensor
from fastai.torch_core import to_device
from fastai.vision.augment import RandTransform, Resize, ResizeMethod
from torch import Tensor, nn

from learnkit.models.eval_mode import evaluating, laid_out, randomness_kept

# These have code for `before_batch`, but leave the values of the images alone.
_HARMLESS = (ParamScheduler, CastToTensor)
_STAGES = ("after_item", "before_batch", "after_batch")
_ORDER_METHODS = ("__iter__", "create_batches", "sample", "chunkify")
_N_TRIED = 8


def model_reason(model: nn.Module) -> str | None:
    """Ask for `nn.Sequential(body, head)` whose body, in the modes of now, always does the same."""
    if reason := structure_reason(model):
        return reason
    for name, module in model[0].named_modules():
        if reason := _moves(module):
            return f"`{name}` ({type(module).__name__}) of the body {reason}"
    return None


def structure_reason(model: nn.Module) -> str | None:
    """Ask for `nn.Sequential(body, head)` of which no weight of the body moves."""
    if not isinstance(model, nn.Sequential) or len(model) != 2:
        return f"the model is a {type(model).__name__}, not nn.Sequential(body, head)"
    if "forward" in vars(model):
        return "the `forward` of the model was replaced"
    body = model[0]
    for name, parameter in body.named_parameters():
        if parameter.requires_grad:
            return (
                f"the body trains (`{name}`): freeze it, and pass train_bn=False to the learner if "
                "only its norm layers still train"
            )
        if parameter.grad is not None:
            return (
                f"`{name}` of the frozen body keeps a gradient of earlier training, so that weight "
                "decay and momentum still move it: call `learn.model.zero_grad(set_to_none=True)`"
            )
    return None


def callback_reason(callbacks: list[Any]) -> str | None:
    """Ask that no callback works on the images of a batch."""
    for cb in callbacks:
        known = isinstance(cb, _HARMLESS) or type(cb).__module__.startswith("learnkit.")
        # code of its own for the event, by its class or given to it as an argument
        owners = (cb, *type(cb).__mro__)
        if any("before_batch" in vars(owner) for owner in owners) and not known:
            return f"the callback {type(cb).__name__} works on the batches (before_batch)"
    return None


def order_reason(dl: Any) -> str | None:
    """Ask for fastai's order of items, and no transform known to be random; reads no image."""
    if not isinstance(dl, DataLoader) or dl.bs is None or dl.n is None or not dl.indexed:
        return f"a loader ({type(dl).__name__}) is not fastai's over an indexed dataset"
    for name in _ORDER_METHODS:
        # fastai's loaders take methods as arguments, too, and keep those in themselves
        if getattr(type(dl), name) is not getattr(DataLoader, name) or name in vars(dl):
            return f"a loader ({type(dl).__name__}) has its own `{name}`"
    if dl.n == 0:
        return "a loader is empty"
    # fastai switches random transforms off on every loader but the one of training.
    for transform in [] if getattr(dl.dataset, "split_idx", 0) else transforms_of(dl):
        # The one random transform of fastai that may draw nothing:
        squishes = isinstance(transform, Resize) and transform.method == ResizeMethod.Squish
        if isinstance(transform, RandTransform) and not squishes:
            return f"the transform {type(transform).__name__} is random on the training images"
    return None


def body_reason(body: nn.Module, images: Tensor) -> str | None:
    """Ask that the body, in the modes of now, gives what it gives in eval mode and keeps still."""
    before = {name: value.clone() for name, value in body.state_dict().items()}
    try:
        with randomness_kept(), torch.no_grad():
            # copies: the first layer may work in place
            as_trained = body(images.clone())
            with evaluating(body):
                as_evaluated = body(images.clone())
        if not torch.allclose(as_trained, as_evaluated, rtol=1e-4, atol=1e-5, equal_nan=True):
            return "the body computes something else in training mode than in eval mode"
        if any(not torch.equal(v, before[k]) for k, v in body.state_dict().items()):
            return "the body changes its buffers in training mode"
    finally:
        body.load_state_dict(before)
    return None


def transforms_of(dl: Any) -> list[Any]:
    """Every transform the items of `dl` may go through, those of its dataset included.

    Which of them act on this loader cannot be told: some change their `split_idx` when called.
    """
    pipelines = [tl.tfms for tl in getattr(dl.dataset, "tls", [])]
    pipelines += [getattr(dl, stage) for stage in _STAGES]
    return [tfm for pipeline in pipelines for tfm in getattr(pipeline, "fs", [])]


def _moves(module: nn.Module) -> str | None:
    """What makes one layer of a frozen body give another output next time."""
    # `laid_out` is learnkit's own, and runs where features are stored, too
    if module._forward_hooks or {*module._forward_pre_hooks.values()} - {laid_out}:
        return "has a forward hook, which stored features would not reach"
    if not module.training:
        return None
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return "normalises by batch statistics: pass train_bn=False to the learner"
    if "drop" in type(module).__name__.lower() or "Stochastic" in type(module).__name__:
        # timm's DropPath has `drop_prob`, torch's dropouts and torchvision's StochasticDepth `p`
        chance = getattr(module, "drop_prob", getattr(module, "p", 0))
        return f"drops at random (p={chance})" if chance else None
    return None


def trial_reason(dl: DataLoader) -> str | None:
    """Ask some items for their tensors twice, in batches of different sizes."""
    chosen = list(range(min(_N_TRIED, dl.n)))
    with randomness_kept():
        # by `split_idx` it tells the transforms of batches whose images these are
        dl.before_iter()
        before = _random_state()
        whole = _batch(dl, chosen)
        halves = [_batch(dl, part) for part in (chosen[:1], chosen[1:]) if part]
        drew = _random_state() != before
    if drew:
        return "a training transform draws random numbers"
    if not all(isinstance(t, Tensor) and len(t) == len(chosen) for t in whole):
        return "batches are more than one tensor per input and target, one row per item"
    for i, tensor in enumerate(whole):
        again = torch.cat([half[i] for half in halves])
        if again.shape != tensor.shape or not torch.allclose(
            again, tensor, rtol=1e-4, atol=1e-6, equal_nan=True
        ):
            return "a training transform gives an image differently each time, or by its batch"
    return None


def _batch(dl: DataLoader, indices: list[int]) -> tuple[Any, ...]:
    """The batch of these items, made in this process."""
    # None is an item that raised fastai's SkipItemException
    batch = dl.do_batch([item for i in indices if (item := dl.do_item(i)) is not None])
    return tuple(dl.after_batch(to_device(batch, dl.device) if dl.device is not None else batch))


def _random_state() -> tuple[Any, ...]:
    """The state of the generators that transforms draw from, comparable by `==`."""
    numpys = np.random.get_state()  # noqa: NPY002  # fastai and its users draw from it
    return (
        random.getstate(),
        numpys[1].tobytes(),
        numpys[2:],
        torch.get_rng_state().numpy().tobytes(),
    )
