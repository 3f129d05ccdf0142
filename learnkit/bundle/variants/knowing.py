"""Which variant of a bundle opens by default, and which know more than the weights beside them.

Variants are made from the float32 weights and what these know of their classes. From then on each
learns for itself, on features of its own, and nobody can tell the others what it has learned. This
module needs no torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from learnkit.bundle.schema import CONFIG, SECTION, default_variant
from learnkit.errors import BundleCorruptError, ExportError, warn_user
from learnkit.storage.formats import parse_json, to_json

_DEFAULT, _SINCE = "default_variant", "learned_since"


def learned_since(section: Mapping[str, Any]) -> tuple[str, ...]:
    """The variants that have learned or been renamed since they were made; the rest have not.

    >>> learned_since({"critical": ["default_variant"], "default_variant": "torch-bfloat16"})
    ('torch-bfloat16',)
    """
    if _SINCE not in section:  # so written before variants travelled
        default = default_variant(section)
        return (default,) if default is not None and _DEFAULT in section["critical"] else ()
    names = section[_SINCE]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise BundleCorruptError(f"{CONFIG}: `{_SINCE}` is {names!r:.100}; it must list variants")
    return tuple(names)


def with_variants(
    config: bytes,
    *,
    learned: Iterable[str],
    default: str | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> bytes:
    """A config.json of a bundle with variants.

    Args:
        config: with others, or none.
        learned: the variants that know what the weights beside them do not. If the default one
            does, readers who know no variants refuse the bundle.
        default: the variant that opens unless another is asked for; None for the weights.
        metadata: takes the place of that in `config`, but for the model card's data.

    Raises:
        ExportError: `metadata` is no JSON.
    """
    whole = parse_json(config, CONFIG)
    section, learned = whole[SECTION], sorted(set(learned))
    section["critical"] = [key for key in section["critical"] if key != _DEFAULT]
    for key in (_DEFAULT, _SINCE):
        section.pop(key, None)
    if default is not None:
        section[_DEFAULT] = default
        section["critical"] += [_DEFAULT] * (default in learned)
    if learned:
        section[_SINCE] = learned
    if metadata is not None:
        section["metadata"] = {**metadata, "card": section["metadata"].get("card", {})}
    try:
        return to_json(whole)
    except (TypeError, ValueError) as error:
        raise ExportError(f"`metadata` is no JSON: {error}") from error


def warn_behind(path: str | os.PathLike, section: Mapping[str, Any], name: str) -> None:
    """Warn if another variant of the bundle at `path` has learned what `name` does not know."""
    since = learned_since(section)
    if since and name not in since:
        have = "has" if len(since) == 1 else "have"
        warn_user(
            f"{name!r} in {os.fspath(path)!r} is the model as it was when variants were made of "
            f"it; {' and '.join(map(repr, since))} beside it {have} learned more, or other names, "
            f"since. variant={since[0]!r} loads that; to bring {name!r} up to date, extend it with "
            "the same images"
        )
