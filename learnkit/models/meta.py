"""What is known about architectures beforehand: where to cut, where to split, how to normalise.

`model_meta` is fastai's dictionary of that name and may be extended:

    model_meta[my_network] = {"cut": -2, "split": lambda model: (model[0][6], model[1])}

A key is a function that builds a network, or a name. An entry may hold `cut` (int or function),
`split` or, as fastai v1 documents it, `split_on` (any shape `as_splitter` takes), and `stats` (mean
and std per channel). timm networks need no entry: timm itself knows.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torchvision.models as tv
from torch import nn

from learnkit.errors import SplitterError
from learnkit.models.arch import Arch, resolve_arch

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


def _maxvit_cut(model: nn.Module) -> nn.Module:
    """Return stem and blocks in one Sequential; MaxVit keeps its blocks in a list."""
    return nn.Sequential(model.stem, *model.blocks)


def _of_family(name: str, table: dict[tuple[str, ...], Any]) -> Any:
    """Return the entry of the family `name` starts with."""
    found = [value for families, value in table.items() if name.startswith(families)]
    return found[0] if found else None


def _torchvision_meta(name: str) -> dict[str, Any]:
    """Return the entry of one torchvision network."""
    symmetric = name.startswith(("googlenet", "inception"))
    meta: dict[str, Any] = {"stats": SYMMETRIC_STATS if symmetric else IMAGENET_STATS}
    cut = _maxvit_cut if name.startswith("maxvit") else _of_family(name, _CUTS)
    boundary = _of_family(name, _BOUNDARIES)
    meta |= {} if cut is None else {"cut": cut}
    return meta | ({} if boundary is None else {"split": boundary_at(*boundary)})


_DEFAULTS = {tv.get_model_builder(name): _torchvision_meta(name) for name in tv.list_models(tv)}
model_meta: dict[Any, dict[str, Any]] = {key: dict(meta) for key, meta in _DEFAULTS.items()}


def meta_of(arch: Arch) -> dict[str, Any]:
    """Return a copy of the entry for `arch`, `split_on` renamed to `split`; empty if none."""
    keys = [arch.given, arch.label, arch.name, arch.build, type(arch.build)]
    meta = dict(next((model_meta[k] for k in keys if _hashable(k) and k in model_meta), {}))
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


def registered_cut(arch: Arch) -> Any:
    """Return the cut that a user entered into `model_meta` for `arch`, None if there is none."""
    cut = meta_of(arch).get("cut")
    return None if cut == default_meta(arch).get("cut") else cut


def _hashable(key: Any) -> bool:
    """True if `key` may be looked up in a dictionary."""
    return getattr(type(key), "__hash__", None) is not None


Groups = list[list[nn.Parameter]]


def param_groups(model: nn.Sequential) -> Groups:
    """Return the parameters of `Sequential(body, head)` in groups from input to output.

    timm bodies: stem, stages, head. torchvision bodies: fastai v1's boundary, else the middle of
    the body. Anything else: body, head. `model_meta` may say otherwise. Every parameter is in
    exactly one group.

    Raises:
        SplitterError: An entry of `model_meta` misses a parameter or has one twice.
    """
    body, head = model[0], list(model[1:].parameters())
    split = _known_split(body)
    if split is not None:
        return as_splitter(split)(model)
    stem = set(getattr(body, "stem", ()))
    early = [p for name, p in body.named_parameters() if name in stem]
    late = [p for name, p in body.named_parameters() if name not in stem]
    return _check_groups(model, [group for group in (early, late, head) if group])


def as_splitter(split_on: Any) -> Callable[[nn.Module], Groups]:
    """Return a function from a model to its parameter groups, each parameter in exactly one.

    Takes what either generation of fastai takes: a function of the model, or its result, which is
    a module or several at which new groups start (v1), a list of lists of modules (v1), or a list
    of lists of parameters (v2).

    Raises:
        SplitterError: When called: groups miss a parameter, hold one twice, or are of another kind.
    """

    def splitter(model: nn.Module) -> Groups:
        is_function = callable(split_on) and not isinstance(split_on, nn.Module)
        return _check_groups(model, _as_groups(model, split_on(model) if is_function else split_on))

    return splitter


def _known_split(body: nn.Module) -> Any:
    """Return the split for the architecture of `body`: its entry's, or torchvision's default."""
    source, name = getattr(body, "source", None), getattr(body, "arch", None)
    if source in ("timm", "torchvision"):
        split = meta_of(resolve_arch(f"{source}:{name}")).get("split")
    else:
        named = [key for key in model_meta if name and name == getattr(key, "__name__", key)]
        split = meta_of(resolve_arch(named[0])).get("split") if named else None
    if split is None and source == "torchvision":
        return boundary_at(len(unwrap(body)) // 2)
    return split


def _as_groups(model: nn.Module, split: Any) -> Groups:
    """Return parameter groups from any of the accepted shapes."""
    parts = [split] if isinstance(split, nn.Module) else _as_list(split)
    if parts and all(isinstance(part, nn.Module) for part in parts):
        return _between(model, parts)
    return [_group_parameters(part) for part in parts]


def _as_list(split: Any) -> list:
    """Return the items of an iterable, or raise SplitterError."""
    if not isinstance(split, Iterable) or isinstance(split, str | dict):
        raise SplitterError(
            f"`split_on` gives {type(split).__name__}; expected modules at which groups start, or"
            " lists of modules or of parameters"
        )
    return list(split)


def _between(model: nn.Module, boundaries: list[nn.Module]) -> Groups:
    """Return groups of which each but the first starts at one of `boundaries`."""
    order = {id(module): i for i, module in enumerate(model.modules())}
    missing = [type(b).__name__ for b in boundaries if id(b) not in order]
    if missing:
        raise SplitterError(
            f"`split_on` names modules the model does not hold: {', '.join(missing)}"
        )
    starts = sorted(order[id(b)] for b in boundaries)
    groups: Groups = [[] for _ in range(len(starts) + 1)]
    seen: set[int] = set()
    for i, module in enumerate(model.modules()):
        new = [p for p in module.parameters(recurse=False) if id(p) not in seen]
        seen.update(map(id, new))
        groups[sum(i >= start for start in starts)] += new
    return [group for group in groups if group]


def _group_parameters(part: Any) -> list[nn.Parameter]:
    """Return the parameters of one group given as a module, modules or parameters."""
    if isinstance(part, nn.Module):
        return list(part.parameters())
    group: list[nn.Parameter] = []
    for item in _as_list(part):
        if isinstance(item, nn.Parameter):
            group.append(item)
        elif isinstance(item, nn.Module):
            group += item.parameters()
        else:
            raise SplitterError(
                f"a parameter group holds {type(item).__name__}, not modules or parameters"
            )
    return group


def _check_groups(model: nn.Module, groups: Groups) -> Groups:
    """Return `groups`, or raise SplitterError unless they hold every parameter exactly once."""
    names = {id(p): name for name, p in model.named_parameters()}
    held = [id(p) for group in groups for p in group]
    missing = [name for key, name in names.items() if key not in set(held)]
    twice = [names.get(key, "?") for key in dict.fromkeys(held) if held.count(key) > 1]
    foreign = sum(key not in names for key in held)
    if missing or twice or foreign:
        raise SplitterError(
            f"parameter groups must hold every parameter of the model once; missing {len(missing)}"
            f" {missing[:3]}, twice {len(twice)} {twice[:3]}, not of this model {foreign}"
        )
    return groups
