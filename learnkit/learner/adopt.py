"""Adoption of a learner that fastai's own factory made: its arguments, its network as data."""

import copy
from contextlib import suppress
from typing import Any

import learnkit._torchvision  # noqa: F401  # before fastai

import torch
from fastai.learner import Learner
from torch import nn

from learnkit.backends.torch_session import default_probes, tolerance_of
from learnkit.data.preprocess import Preprocessing
from learnkit.errors import ExportError, LearnkitError, ModelSpecError
from learnkit.interpret.learner_state import learner_state
from learnkit.models.eval_mode import evaluating
from learnkit.models.head import head_options, layers_of
from learnkit.models.rebuild import build_model
from learnkit.models.spec import ModelSpec


def adopted_arguments(learn: Learner) -> dict[str, Any]:
    """Return the arguments that make an ImageLearner of a fastai Learner, callbacks copied."""
    # what fastai gives every learner: the new one gets its own
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
    # fastai's True is every kind of norm, ImageLearner's the batch norms
    train_bn = "all" if learn.train_bn is True else learn.train_bn
    return {
        "dls": learn.dls,
        "model": learn.model,
        # copies: a callback knows one learner, which adding it sets
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


def travelling(learn: Learner, recipe: Preprocessing) -> nn.Module:
    """The learner's network as one that can be rebuilt without any code of the user's.

    Networks of `cnn_learner` are that. For those of fastai's `vision_learner` it is a copy: built
    from the architecture's name and the head's layers, given the weights, and proved, since it must
    give the same logits. What fastai keeps without using it (a norm after the pool, say) is left
    out of the copy.

    Args:
        learn: the learner.
        recipe: of its images; noise in its size and channels is the proof.

    Raises:
        ExportError: The network cannot be rebuilt from data; the message says why.
    """
    model = learn.model
    if getattr(model, "spec", None) is not None:
        return model
    problem = getattr(model, "spec_problem", None)
    if problem is None:
        try:
            return _rebuilt(learn, recipe)
        except (LearnkitError, AttributeError, TypeError, IndexError, RuntimeError) as error:
            problem = f"it was not made by cnn_learner ({error})"
    raise ExportError(
        f"the network cannot travel as data: {problem}; build it with "
        "cnn_learner(dls, 'name of an architecture') and load the weights into that"
    )


def _rebuilt(learn: Learner, recipe: Preprocessing) -> nn.Module:
    """A proved copy of a network of `vision_learner`, below the head that it has now."""
    body, head = learn.model[0], learn.model[1]
    record = learner_state(learn).record
    if record is not None:  # the continual head has taken the place of the trained one
        head = record.trained_head
    network = _first_that_fits(learn.arch, body, head, recipe)
    original = nn.Sequential(body, head)
    with evaluating(original), torch.inference_mode():
        images = recipe.normalize(default_probes(recipe))
        found = network(images)
        expected = original(images.to(next(body.parameters()).device)).cpu()
    if not torch.allclose(found, expected, rtol=0, atol=tolerance_of(expected)):
        raise ExportError(f"a network rebuilt from {network.spec.arch!r} gives other logits")
    if record is None:
        return network
    spec, network = network.spec, nn.Sequential(network[0], learn.model[1])
    network.spec = spec
    return network


def _first_that_fits(arch: Any, body: nn.Module, head: nn.Module, recipe: Any) -> nn.Module:
    """The first network, of those fastai may have built, that takes the weights.

    Raises:
        ModelSpecError: None does; the message is about the plain one.
    """
    options, named = head_options(head), isinstance(arch, str)
    pooled = not options["pool"]
    plain = {
        "source": "timm" if named else "torchvision",
        "arch": arch if named else arch.__name__,
        "n_in": recipe.channels,
        "n_out": [m for m in head.modules() if isinstance(m, nn.Linear)][-1].out_features,
        "head": options | {"pool": True},
        "pooled": pooled,
    }
    rarer = {"img_size": recipe.size} if named else {"cut": len(body)}
    try:
        return _fitted(plain, body, head)
    except (LearnkitError, RuntimeError) as problem:
        with suppress(LearnkitError, RuntimeError, TypeError):
            return _fitted(plain | rarer, body, head)
        raise ModelSpecError(f"{plain['arch']!r} does not take its weights: {problem}") from problem


def _fitted(described: dict[str, Any], body: nn.Module, head: nn.Module) -> nn.Module:
    """A network built from its description, with the weights of another."""
    network = build_model(ModelSpec(**described))
    network.load_state_dict(_renamed(network, body, head))
    return network.eval()


def _renamed(network: nn.Module, body: nn.Module, head: nn.Module) -> dict[str, torch.Tensor]:
    """The weights under the names of `network`; zeros for the biases that fastai's head lacks."""
    wanted = network.state_dict()
    found = {f"0.{name}": value for name, value in body.state_dict().items()}
    found = {name: value for name, value in found.items() if name in wanted}
    given = [layer for layer in layers_of(head).values() if layer.state_dict()]
    taking = {name: layer for name, layer in layers_of(network[1]).items() if layer.state_dict()}
    for (name, layer), other in zip(taking.items(), given, strict=True):
        values = other.state_dict()
        if isinstance(layer, nn.Linear) and layer.bias is not None and other.bias is None:
            values["bias"] = torch.zeros_like(layer.bias)
        found |= {f"1.{name}.{own}": value for own, value in values.items()}
    return found
