"""Adoption of a learner that fastai's own factory made: its arguments, its network as data."""

import copy
from typing import Any

import learnkit._torchvision  # noqa: F401  # before fastai

import torch
from fastai.layers import AdaptiveConcatPool2d
from fastai.learner import Learner
from torch import nn

from learnkit.errors import ExportError, LearnkitError
from learnkit.interpret.learner_state import learner_state
from learnkit.models.eval_mode import evaluating
from learnkit.models.rebuild import build_model
from learnkit.models.spec import ModelSpec


def adopted_arguments(learn: Learner) -> dict[str, Any]:
    """Return the arguments that make an ImageLearner of a fastai Learner, callbacks copied."""
    defaults = {type(cb) for cb in Learner(learn.dls, nn.Identity(), learn.loss_func).cbs}
    names = [
        "loss_func",
        "opt_func",
        "lr",
        "splitter",
        "metrics",
        "path",
        "model_dir",
        "wd",
        "wd_bn_bias",
        "moms",
    ]
    train_bn = "all" if learn.train_bn is True else learn.train_bn
    return {
        "dls": learn.dls,
        "model": learn.model,
        "cbs": [copy.copy(cb) for cb in learn.cbs if type(cb) not in defaults],
        "train_bn": train_bn,
        **{name: getattr(learn, name) for name in names},
    }


def go_on_from(learn: Learner, new: Learner) -> Learner:
    """Return `new`, with the optimizer of `learn` and the architecture its factory noted."""
    new.opt = learn.opt
    if "arch" in vars(learn):
        new.arch = learn.arch
    return new


def spec_of(learn: Learner) -> ModelSpec:
    """Return the recipe that rebuilds the learner's network without any code of the user's.

    Networks of `cnn_learner` carry theirs. For those of fastai's `vision_learner` it is read off
    the architecture's name and the head's layers, then proved: the rebuilt network must take the
    weights and give the same logits.

    Raises:
        ExportError: The network cannot be rebuilt from data; the message says why.
    """
    spec = getattr(learn.model, "spec", None)
    if spec is not None:
        return spec
    problem = getattr(learn.model, "spec_problem", None)
    if problem is None:
        try:
            trained, record = learn.model, learner_state(learn).record
            if record is not None:  # the continual head has taken the place of the trained one
                trained = nn.Sequential(trained[0], record.trained_head)
            return _proved(_guessed_spec(learn, trained[1]), learn, trained)
        except (LearnkitError, AttributeError, TypeError, IndexError) as error:
            problem = f"it was not made by cnn_learner ({error})"
    raise ExportError(
        f"the network cannot travel as data: {problem}; build it with "
        "cnn_learner(dls, 'name of an architecture') and load the weights into that"
    )


def _guessed_spec(learn: Learner, head: nn.Module) -> ModelSpec:
    """Return the spec `vision_learner` would have used, from `learn.arch` and the head's layers."""
    linears = [m for m in head.modules() if isinstance(m, nn.Linear)]
    arch = learn.arch if isinstance(learn.arch, str) else learn.arch.__name__
    return ModelSpec(
        source="timm" if isinstance(learn.arch, str) else "torchvision",
        arch=arch,
        n_out=linears[-1].out_features,
        n_in=learn.dls.one_batch()[0].shape[1],
        head={
            "lin_ftrs": [m.out_features for m in linears[:-1]],
            "ps": [m.p for m in head.modules() if isinstance(m, nn.Dropout)],
            "concat_pool": isinstance(head[0], AdaptiveConcatPool2d),
            "lin_bias": linears[-1].bias is not None,
        },
    )


def _proved(spec: ModelSpec, learn: Learner, model: nn.Module) -> ModelSpec:
    """Return `spec` if its network takes the weights of `model` and gives the same logits."""
    rebuilt = build_model(spec)
    rebuilt.load_state_dict(model.state_dict())
    images = learn.dls.valid.one_batch()[0][:2].as_subclass(torch.Tensor).cpu()
    original = copy.deepcopy(model).cpu()
    with evaluating(original), evaluating(rebuilt), torch.inference_mode():
        if not torch.equal(original(images), rebuilt(images)):
            raise ExportError(f"a network rebuilt from {spec.arch!r} gives other logits")
    return spec
