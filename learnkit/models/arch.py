"""Architectures: the network meant by a name, a function or a module."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import timm
import torchvision.models as tv
from timm.models import is_model, list_pretrained, model_entrypoint
from torch import nn

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
