"""Whole networks, classifier included, with the weights asked for; `body` cuts them afterwards."""

import copy
import inspect
from dataclasses import dataclass
from typing import Any

import torchvision.models as tv
from torch import nn

from learnkit.errors import WeightsUnavailableError
from learnkit.models.arch import TV_CLASSIFIERS, Arch
from learnkit.models.hub import fetching, require_url, unavailable
from learnkit.models.meta import IMAGENET_STATS, family_meta, meta_of
from learnkit.models.timm_body import is_timm
from learnkit.models.timm_network import timm_config, timm_module
from learnkit.models.torchvision_body import convert_input
from learnkit.models.weights import Wanted, load_file_into

Size = tuple[int, int]
DEFAULT_SIZE: Size = (224, 224)
# torchvision's networks for one input size, and the argument that sets it.
_SIZE_ARGUMENT = {"vit": "image_size", "maxvit": "input_size"}


@dataclass(frozen=True)
class Request:
    """What a caller wants of an architecture: weights, channels, size, arguments, its pooling."""

    wanted: Wanted
    n_in: int
    img_size: Size | None
    options: dict[str, Any]
    pooled: bool = False


@dataclass(frozen=True)
class WholeNetwork:
    """A whole network and what is known about it.

    Attributes:
        module: The network.
        name: Its name in its library.
        options: The extra arguments it was built with.
        size: The (H,W) it is to be tried out with.
        native_size: The (H,W) it was published for.
        fixed_size: Whether it takes images of `size` only.
        n_in: Number of channels it takes.
        mean: Normalisation per channel for pixels in [0, 1], None if unknown.
        std: See `mean`.
        built_for: The (H,W) its structure depends on, None if on no size.
    """

    module: nn.Module
    name: str
    options: dict[str, Any]
    size: Size
    native_size: Size
    fixed_size: bool
    n_in: int
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    built_for: Size | None = None


def whole_network(arch: Arch, request: Request) -> WholeNetwork:
    """Return the network of an architecture as its library builds it."""
    build = {"timm": _timm, "torchvision": _torchvision, "custom": _custom}[arch.source]
    return build(arch, request)


def _timm(arch: Arch, request: Request) -> WholeNetwork:
    """Build a timm network, for the requested size where it is made for one size."""
    config = timm_config(arch.name, request.wanted.tag)
    native, fixed = tuple(config.fields["input_size"][-2:]), config.fields.get("fixed_input_size")
    size, options = request.img_size or native, config.options | request.options
    extra = dict(options)
    if fixed and size != native:
        extra.setdefault("img_size", size)
    if request.n_in != 3:
        extra["in_chans"] = request.n_in
    module = timm_module(config, request.wanted, extra)
    stats = tuple(config.fields["mean"]), tuple(config.fields["std"])
    known = (module, config.name, options, size, native, bool(fixed), request.n_in)
    return WholeNetwork(*known, *stats, built_for=size if fixed else None)


def _torchvision(arch: Arch, request: Request) -> WholeNetwork:
    """Build a torchvision network without its auxiliary classifiers."""
    wanted, extra = request.wanted, dict(request.options)
    native = (299, 299) if arch.name.startswith("inception") else DEFAULT_SIZE
    size = request.img_size or native
    argument = next((a for f, a in _SIZE_ARGUMENT.items() if arch.name.startswith(f)), None)
    if argument and size != native:
        extra.setdefault(argument, size if argument == "input_size" else size[0])
    if arch.name.startswith(("googlenet", "inception")):
        # torchvision's published weights include the auxiliary classifiers; it drops them itself
        extra |= {} if wanted.hub else {"aux_logits": False, "init_weights": True}
    module = _torchvision_module(arch, wanted, extra)
    convert_input(module, request.n_in, pretrained=wanted.pretrained)
    mean, std = meta_of(arch).get("stats", IMAGENET_STATS)
    known = (module, arch.name, request.options, size, native, argument is not None, request.n_in)
    return WholeNetwork(*known, tuple(mean), tuple(std), built_for=size if argument else None)


def _torchvision_module(arch: Arch, wanted: Wanted, extra: dict[str, Any]) -> nn.Module:
    """Build a torchvision network and fill it with the weights wanted."""
    if wanted.hub:
        weights = _torchvision_weights(arch, wanted.tag)
        require_url(arch.label, weights.url)
        with fetching(arch.label):
            return arch.build(weights=weights, **extra)
    module = arch.build(weights=None, **extra)
    if wanted.file is not None:
        load_file_into(module, wanted.file, arch.label, optional=TV_CLASSIFIERS)
    return module


def _torchvision_weights(arch: Arch, tag: Any) -> tv.WeightsEnum:
    """Return torchvision's entry for the weights called `tag`, its default for None."""
    entries = tv.get_model_weights(arch.build)
    if isinstance(tag, entries):
        return tag
    kind, _, name = str("DEFAULT" if tag is None else tag).rpartition(".")
    if isinstance(tag, tv.WeightsEnum) or kind not in ("", entries.__name__):
        # entries of different networks share their last names
        raise WeightsUnavailableError(
            f"`weights`={tag!s}: these are not weights of {arch.label}, whose entries are in "
            f"{entries.__name__}: {', '.join(entries.__members__)}"
        )
    if name not in entries.__members__:
        known = ", ".join(entries.__members__)
        raise WeightsUnavailableError(f"`weights`={tag!r}: {arch.label} has {known}")
    return entries[name]


def _custom(arch: Arch, request: Request) -> WholeNetwork:
    """Take a module as it is, or build one; load a weights file if there is one."""
    wanted = request.wanted
    is_module = isinstance(arch.build, nn.Module)
    module = arch.build if is_module else _call(arch, wanted, request.options)
    if is_module and (request.n_in != 3 or is_timm(module)):
        module = copy.deepcopy(module)  # it will be changed
    if wanted.file is not None:
        load_file_into(module, wanted.file, arch.label)
    if request.n_in != 3:
        convert_input(module, request.n_in, pretrained=is_module or wanted.pretrained)
    first = next((m for m in module.modules() if isinstance(m, nn.Conv2d)), None)
    n_in = request.n_in if first is None else first.in_channels
    native, stats = _known_of(arch, module)
    size = request.img_size or native
    return WholeNetwork(module, arch.name, request.options, size, native, True, n_in, *stats)


def _known_of(arch: Arch, module: nn.Module) -> tuple[Size, tuple]:
    """Return image size and (mean, std) of a network passed in, as far as anyone knows them."""
    cfg = module.pretrained_cfg if is_timm(module) else {}
    native = tuple(cfg["input_size"][-2:]) if cfg else DEFAULT_SIZE
    known = (cfg["mean"], cfg["std"]) if cfg else family_meta(module).get("stats", (None, None))
    stats = meta_of(arch).get("stats", known)
    return native, tuple(None if values is None else tuple(values) for values in stats)


def _call(arch: Arch, wanted: Wanted, options: dict[str, Any]) -> nn.Module:
    """Call a function that builds a network, passing the weights wanted as it names them."""
    names = inspect.signature(arch.build).parameters
    if "weights" in names:
        chosen = {"weights": (wanted.tag or "DEFAULT") if wanted.hub else None}
    elif "pretrained" in names:
        chosen = {"pretrained": wanted.hub}
    elif wanted.hub:
        reason = "it takes neither `pretrained=` nor `weights=`"
        raise unavailable(arch.label, reason)
    else:
        chosen = {}
    with fetching(arch.label):
        return arch.build(**chosen | options)
