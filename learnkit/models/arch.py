"""Architectures: the network meant by a name, a function or a module."""

import contextlib
import difflib
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import timm
import torch
import torchvision.models as tv
from timm.models import get_pretrained_cfg, is_model, list_pretrained, model_entrypoint
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from learnkit.errors import UnknownArchitectureError

LOCATED = ("hf-hub:", "hf_hub:", "local-dir:")


@dataclass(frozen=True)
class Arch:
    """An architecture found: its library, its name there, and what builds it.

    Attributes:
        source: "timm", "torchvision" or "custom".
        name: Name in that library (timm: possibly with a weights tag); for custom networks the
            function's or class's own name, which cannot be looked up again.
        build: The function that builds it, or the module itself.
        given: What the caller passed.
    """

    source: str
    name: str
    build: Callable[..., nn.Module] | nn.Module
    given: Any

    @property
    def label(self) -> str:
        """The name as `create_body` accepts it."""
        return f"{self.source}:{self.name}" if self.source != "custom" else self.name


def resolve_arch(arch: Any) -> Arch:
    """Return the architecture meant by a name, a function or a module.

    A plain name is looked up in timm first, then in torchvision; where both have it (resnet18),
    timm's is taken. "timm:resnet18" and "torchvision:resnet18" say which. A function of either
    library is recognised as such, so that the result can be rebuilt by name.

    Raises:
        UnknownArchitectureError: No library has this name; the nearest names are suggested.

    Example:
        >>> resolve_arch("resnet18").label, resolve_arch("torchvision:resnet18").label
        ('timm:resnet18', 'torchvision:resnet18')
    """
    if isinstance(arch, nn.Module):
        return Arch("custom", type(arch).__name__, arch, arch)
    if isinstance(arch, str):
        return _by_name(arch)
    if callable(arch):
        return _by_function(arch)
    raise UnknownArchitectureError(
        f"`arch`={arch!r} of type {type(arch).__name__}: expected a timm or torchvision name, a"
        " function that builds a network, or a torch.nn.Module"
    )


def _by_name(given: str) -> Arch:
    """Look a name up: timm first, then torchvision, unless a prefix says which."""
    if given.startswith(LOCATED):
        return Arch("timm", given, timm.create_model, given)
    prefix, colon, name = given.partition(":")
    if not colon:
        prefix, name = "", given
    base, dot, _ = name.partition(".")
    in_timm = is_model(base) and (not dot or name in list_pretrained(f"{base}.*"))
    if prefix in ("", "timm") and in_timm:
        return Arch("timm", name, model_entrypoint(base), given)
    if prefix in ("", "torchvision") and name in torchvision_names():
        return Arch("torchvision", name, tv.get_model_builder(name), given)
    raise UnknownArchitectureError(_unknown(given, prefix, name))


def _by_function(function: Callable[..., nn.Module]) -> Arch:
    """Recognise timm's and torchvision's own functions; anything else is custom."""
    name = getattr(function, "__name__", type(function).__name__)
    # by identity: a function of anybody's may have such a name
    if is_model(name) and model_entrypoint(name) is function:
        return Arch("timm", name, function, function)
    if name in torchvision_names() and tv.get_model_builder(name) is function:
        return Arch("torchvision", name, function, function)
    return Arch("custom", name, function, function)


def torchvision_names() -> list[str]:
    """Return the names of torchvision's classification networks."""
    return tv.list_models(module=tv)


def _unknown(given: str, prefix: str, name: str) -> str:
    """Return the sentence that suggests the nearest names."""
    if prefix not in ("", "timm", "torchvision"):
        return f"`arch`={given!r}: unknown library {prefix!r}, expected 'timm:' or 'torchvision:'"
    base, dot, _ = name.partition(".")
    if dot and is_model(base) and prefix != "torchvision":
        known = list_pretrained(f"{base}.*") or [base]
        return f"`arch`={given!r}: timm has no such weights for {base}; it has {', '.join(known)}"
    pool = timm.list_models() if prefix in ("", "timm") else []
    pool = [*pool, *(torchvision_names() if prefix in ("", "torchvision") else [])]
    near = list(dict.fromkeys(difflib.get_close_matches(name, pool, n=8, cutoff=0.5)))[:5]
    where = {"": "timm and torchvision have", "timm": "timm has"}.get(prefix, "torchvision has")
    hint = f"nearest: {', '.join(near)}" if near else "see timm.list_models()"
    return f"`arch`={given!r}: {where} no architecture of this name; {hint}"


Shapes = Mapping[str, tuple[int, ...]]
# Parameters of no given shape from which on a network is another one. Some are made in passing, for
# a layer that is replaced; a classifier has as many outputs as there are classes.
_MOST_STRANGE = 6
_MOST_NAMED = 4
_FEWEST = 10  # tensors; no network of the libraries has so few


class _AnotherNetwork(Exception):
    """The network being built is not the one that is looked for."""


def architectures_of(given: Shapes, hint: str = "") -> list[str]:
    """Return the architectures whose weights have these names and shapes, classifiers left out.

    All of timm's and torchvision's are tried, without memory for their weights, and each is given
    up at the first layers that do not fit: seconds for all of them. Those that `hint`, the name of
    a file, names are tried before: if one of them fits, no other is looked for.

    Example:
        >>> import torchvision.models as tv
        >>> net = tv.squeezenet1_1()
        >>> shapes = {name: tuple(v.shape) for name, v in net.state_dict().items()}
        >>> architectures_of(shapes, "squeezenet1_1-b8a52dc0.pth")
        ['torchvision:squeezenet1_1']
    """
    if len(given) < _FEWEST:
        return []
    made = {name: name for name in timm.list_models()}
    made |= {f"torchvision:{name}": name for name in torchvision_names()}
    likely = [label for label in made if made[label] in hint]
    # the longest: shorter ones are parts of it, as resnet50 is of wide_resnet50_2
    for labels in ([max(likely, key=len)] if likely else [], made):
        if found := [label for label in labels if _fits(label, made[label], given)]:
            return sorted(found, key=lambda label: (len(label), label))[:_MOST_NAMED]
    return []


def _fits(label: str, name: str, given: Shapes) -> bool:
    """True if an architecture has the given weights, its classifier left out."""
    try:
        with _giving_up_on_others(set(given.values())):
            if label == name:
                module = timm.create_model(name, num_classes=0)
                # a text, or several: distilled networks of timm have two classifiers
                names = get_pretrained_cfg(name).to_dict().get("classifier") or ()
                names = (names,) if isinstance(names, str) else names
                heads = tuple(f"{one}." for one in names)
            else:
                module, heads = tv.get_model_builder(name)(weights=None), TV_CLASSIFIERS
    except Exception:  # noqa: BLE001  # of a network nobody asked for
        return False
    own = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    counts = lambda name: not name.startswith(heads) and not name.endswith("num_batches_tracked")
    return {k: v for k, v in own.items() if counts(k)} == {
        k: v for k, v in given.items() if counts(k)
    }


@contextlib.contextmanager
def _giving_up_on_others(shapes: set[tuple[int, ...]]) -> Iterator[None]:
    """Build without memory, and raise once too many parameters have none of the shapes."""
    builder, strange = threading.get_ident(), 0

    def look(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal strange
        # the hook is of the whole process, in which other threads may build networks, too
        if parameter is None or threading.get_ident() != builder:
            return
        strange += tuple(parameter.shape) not in shapes
        if strange > _MOST_STRANGE:
            raise _AnotherNetwork

    hook = register_module_parameter_registration_hook(look)
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        hook.remove()


# What may differ in a weights file: classifiers, which the body drops.
TV_CLASSIFIERS = ("fc.", "classifier.", "head.", "heads.", "aux1.", "aux2.", "AuxLogits.")
