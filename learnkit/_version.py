"""The version of learnkit, and of the packages that decide what a network computes."""

from collections.abc import Mapping
from contextlib import suppress

__version__ = "0.1.0"  # set-up reads it here, without importing torch


def versions(*packages: str) -> dict[str, str]:
    """Version by package, learnkit first; those that are not installed are left out."""
    from importlib import metadata  # here: it takes a tenth of the time to load a model

    found = {"learnkit": __version__}
    for name in packages:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def listed(found: Mapping[str, str], *packages: str) -> str:
    """The versions of learnkit and these packages in one line."""
    return ", ".join(f"{name} {found.get(name, 'unknown')}" for name in ("learnkit", *packages))
