"""Whole networks, classifier included, with the weights asked for; `body` cuts them afterwards."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import timm
from timm.models import get_pretrained_cfg
from torch import nn

from learnkit.models.arch import Arch
from learnkit.models.meta import meta_of
from learnkit.models.torchvision_body import convert_input
from learnkit.models.weights import Wanted

Size = tuple[int, int]
DEFAULT_SIZE: Size = (224, 224)
# torchvision's networks for one input size, and the argument that sets it.
_SIZE_ARGUMENT = {"vit": "image_size", "maxvit": "input_size"}


@dataclass(frozen=True)
class Request:
    """What a caller wants of an architecture: weights, channels, image size, extra arguments."""

    wanted: Wanted
    n_in: int
    img_size: Size | None
    options: dict[str, Any]

    def at_native_size(self) -> "Request":
        """Return the same request with random weights at the size the network is made for."""
        return dataclasses.replace(self, img_size=None, wanted=Wanted())


@dataclass(frozen=True)
class Network:
    """A whole network and what is known about it.

    Attributes:
        module: The network.
        name: Its name in its library.
        options: The extra arguments it was built with.
        size: The (H,W) it is to be tried out with.
        native_size: The (H,W) it was published for.
        fixed_size: Whether it takes images of `size` only.
        mean: Normalisation per channel for pixels in [0, 1], None if unknown.
        std: See `mean`.
    """

    module: nn.Module
    name: str
    options: dict[str, Any]
    size: Size
    native_size: Size
    fixed_size: bool
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None


def whole_network(arch: Arch, request: Request) -> Network:
    """Return the network of an architecture as its library builds it."""
    return {"timm": _timm, "torchvision": _torchvision, "custom": _custom}[arch.source](
        arch, request
    )


def _timm(arch: Arch, request: Request) -> Network:
    """Build a timm network, for the requested size where it is made for one size."""
    cfg = get_pretrained_cfg(arch.name).to_dict()
    native, fixed = tuple(cfg["input_size"][-2:]), bool(cfg.get("fixed_input_size"))
    size, extra = request.img_size or native, dict(request.options)
    if fixed and size != native:
        extra.setdefault("img_size", size)
    if request.n_in != 3:
        extra["in_chans"] = request.n_in
    module = timm.create_model(arch.name, num_classes=0, **extra)
    stats = tuple(cfg["mean"]), tuple(cfg["std"])
    return Network(module, arch.name, request.options, size, native, fixed, *stats)


def _torchvision(arch: Arch, request: Request) -> Network:
    """Build a torchvision network without its auxiliary classifiers."""
    size, extra = request.img_size or DEFAULT_SIZE, dict(request.options)
    argument = next((a for f, a in _SIZE_ARGUMENT.items() if arch.name.startswith(f)), None)
    if argument and size != DEFAULT_SIZE:
        extra.setdefault(argument, size if argument == "input_size" else size[0])
    if arch.name.startswith(("googlenet", "inception")):
        extra = {"aux_logits": False, "init_weights": True} | extra
    module = arch.build(weights=None, **extra)
    convert_input(module, request.n_in, pretrained=request.wanted.any)
    mean, std = meta_of(arch)["stats"]
    stats = tuple(mean), tuple(std)
    return Network(module, arch.name, request.options, size, DEFAULT_SIZE, bool(argument), *stats)


def _custom(arch: Arch, request: Request) -> Network:
    """Take a module as it is, or build one."""
    module = arch.build if isinstance(arch.build, nn.Module) else arch.build(**request.options)
    size = request.img_size or DEFAULT_SIZE
    mean, std = meta_of(arch).get("stats", (None, None))
    stats = mean and tuple(mean), std and tuple(std)
    return Network(module, arch.name, request.options, size, DEFAULT_SIZE, True, *stats)
