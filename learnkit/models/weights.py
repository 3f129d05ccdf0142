"""Pretrained weights: where they come from, and what is said when they cannot be had."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Wanted:
    """Which weights are asked for: none, the hub's (`tag` says which), or those of a file."""

    hub: bool = False
    tag: Any = None
    file: Path | None = None

    @property
    def any(self) -> bool:
        """True if any pretrained weights are asked for."""
        return self.hub or self.file is not None


def wanted_weights(pretrained: Any, weights: Any = None) -> Wanted:
    """Return what `pretrained` and `weights` ask for together."""
    return Wanted(hub=bool(pretrained))
