"""Facts about architectures: where to cut, where to split, how to normalise.

`model_meta` is fastai's dictionary of that name and may be extended:

    model_meta[my_network] = {"cut": -2, "split": lambda model: (model[0][6], model[1])}

A key is a function that builds a network, or a name. An entry may hold `cut` (int or function),
`split` or, as fastai v1 documents it, `split_on` (any shape `as_splitter` takes), and `stats` (mean
and std per channel). timm networks need no entry: timm itself knows.
"""

from collections.abc import Callable, Hashable
from typing import Any

import torchvision.models as tv
from torch import nn

from learnkit.models.arch import Arch

IMAGENET_STATS = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
# Inception's and GoogLeNet's pretrained weights expect [-1, 1]; torchvision rescales in a `forward`
# that a cut network no longer has.
SYMMETRIC_STATS = ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5])

_CUTS = {
    ("resnet", "resnext", "wide_resnet", "regnet", "efficientnet", "convnext", "mobilenet_v3"): -2,
    ("alexnet", "vgg"): -2,
    ("squeezenet", "densenet", "mobilenet_v2", "mnasnet", "shufflenet"): -1,
    ("googlenet", "inception", "swin"): -3,
}
# Where groups start among the children of the unwrapped body: fastai v1's numbers.
_BOUNDARIES = {
    ("resnet", "resnext", "wide_resnet"): (6,),
    ("squeezenet",): (5, 8),
    ("densenet",): (7,),
    ("vgg",): (22,),
    ("alexnet",): (6,),
    ("mobilenet_v2",): (10,),
}


def boundary_at(*indices: int) -> Callable[[nn.Module], tuple[nn.Module, ...]]:
    """Return a v1 `split_on`: children `indices` of the body, and the head, start new groups.

    A body with fewer children (cut shorter, or a smaller variant) is split in the middle instead.
    """

    def split(model: nn.Module) -> tuple[nn.Module, ...]:
        children = unwrap(model[0])
        fitting = indices if max(indices) < len(children) else (len(children) // 2,)
        return (*(children[i] for i in fitting if i > 0), model[1])

    return split


def unwrap(body: nn.Module) -> list[nn.Module]:
    """Return the children of `body`, looking through modules with a single child."""
    children = list(body.children())
    while len(children) == 1 and list(children[0].children()):
        children = list(children[0].children())
    return children


def _of_family(name: str, table: dict[tuple[str, ...], Any]) -> Any:
    """Return the entry of the family `name` starts with."""
    found = [value for families, value in table.items() if name.startswith(families)]
    return found[0] if found else None


def _torchvision_meta(name: str) -> dict[str, Any]:
    """Return the entry of one torchvision network."""
    symmetric = name.startswith(("googlenet", "inception"))
    meta: dict[str, Any] = {"stats": SYMMETRIC_STATS if symmetric else IMAGENET_STATS}
    cut = _of_family(name, _CUTS)
    if name.startswith("maxvit"):  # which keeps its blocks in a list
        cut = lambda model: nn.Sequential(model.stem, *model.blocks)
    boundary = _of_family(name, _BOUNDARIES)
    meta |= {} if cut is None else {"cut": cut}
    return meta | ({} if boundary is None else {"split": boundary_at(*boundary)})


_DEFAULTS = {tv.get_model_builder(name): _torchvision_meta(name) for name in tv.list_models(tv)}
# copies: specs are rebuilt by `_DEFAULTS`, whatever a process enters here
model_meta: dict[Any, dict[str, Any]] = {key: dict(meta) for key, meta in _DEFAULTS.items()}


def meta_of(arch: Arch) -> dict[str, Any]:
    """Return a copy of the entry for `arch`, `split_on` renamed to `split`; empty if none."""
    given = [arch.given, arch.label, arch.name, arch.build, type(arch.build)]
    keys = [key for key in given if isinstance(key, Hashable)]
    meta = dict(next((model_meta[key] for key in keys if key in model_meta), {}))
    if "split_on" in meta:
        meta.setdefault("split", meta.pop("split_on"))
    return meta


def default_meta(arch: Arch) -> dict[str, Any]:
    """Return the entry learnkit itself has for `arch`, empty if none."""
    return _DEFAULTS.get(arch.build, {}) if arch.source == "torchvision" else {}


def family_meta(module: nn.Module) -> dict[str, Any]:
    """Return the entry of torchvision's networks of the same kind as `module`, empty if none."""
    kind = type(module).__module__
    return next((meta for build, meta in _DEFAULTS.items() if build.__module__ == kind), {})


Groups = list[list[nn.Parameter]]
