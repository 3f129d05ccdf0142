"""Parameter groups for discriminative learning rates."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from learnkit.errors import SplitterError
from learnkit.models.arch import resolve_arch
from learnkit.models.meta import Groups, boundary_at, meta_of, model_meta, unwrap


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
        # modules can be called, too
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
        # a tied parameter is in the group of the first module that holds it
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
