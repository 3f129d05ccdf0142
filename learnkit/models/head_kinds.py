"""Heads that are not layers of `create_head`: a spec names their kind, a higher floor builds them.

A kind is registered by the module that defines it, so that a network's description can name it
without this floor knowing of it.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from learnkit.errors import ModelSpecError
from learnkit.models.head import create_head

# Number of features and the options of a spec -> a head without any knowledge, to be filled.
HeadBuilder = Callable[..., nn.Module]
_BUILDERS: dict[str, HeadBuilder] = {}


def register_head(kind: str, build: HeadBuilder) -> None:
    """Let specs name heads of this kind; `build(n_features, **options)` makes an empty one."""
    _BUILDERS[kind] = build


def build_head(n_features: int, n_out: int, head: Mapping[str, Any]) -> nn.Module:
    """Return the head that the field `head` of a spec describes.

    Raises:
        ModelSpecError: Its kind is not registered.
    """
    if "kind" not in head:
        return create_head(n_features, n_out=n_out, **head)
    options = dict(head)
    kind = options.pop("kind")
    if kind not in _BUILDERS:
        raise ModelSpecError(
            f"`head['kind']`={kind!r}: registered are {sorted(_BUILDERS)}; import the module that"
            " defines such heads first"
        )
    return _BUILDERS[kind](n_features, **options)
