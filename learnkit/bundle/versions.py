"""Versions of learnkit and of the packages that decide what a network computes."""

from collections.abc import Mapping
from importlib import metadata

from learnkit._version import __version__

_PACKAGES = ("torch", "timm", "torchvision", "pillow", "safetensors")


def versions() -> dict[str, str]:
    """Version by package, learnkit first."""
    return {"learnkit": __version__, **{name: metadata.version(name) for name in _PACKAGES}}


def listed(found: Mapping[str, str]) -> str:
    """The versions that matter most, in one line."""
    return ", ".join(f"{n} {found.get(n, 'unknown')}" for n in ("learnkit", "torch", "timm"))
