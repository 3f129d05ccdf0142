"""Names of classes: one spelling each, and no two that a person would take for the same."""

import difflib
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from learnkit.errors import DataError


def clean_name(name: Any) -> str:
    r"""`name` in Unicode's composed form.

    Raises:
        DataError: It is no text, or empty.

    >>> clean_name("cafe\u0301") == "caf\u00e9"
    True
    """
    if not isinstance(name, str) or not name.strip():
        raise DataError(
            f"{name!r} ({type(name).__name__}) is no class name; a name is a text that is not empty"
        )
    if any(0xD800 <= ord(char) <= 0xDFFF for char in name):
        raise DataError(f"class name {name!a} is not valid Unicode; rename the class")
    return unicodedata.normalize("NFC", str(name))


def label_names(labels: Iterable[Any], class_names: Sequence[str] | None) -> list[str]:
    """One clean name per image; whole numbers are places in `class_names` when that is given.

    Raises:
        DataError: A label is no name, or a number without a place in `class_names`.
    """
    labels = labels.tolist() if hasattr(labels, "tolist") else list(labels)
    spellings: dict[Any, str] = {}
    for label in labels:
        try:
            known = label in spellings
        except TypeError as error:
            raise DataError(f"label {label!r} is no class name: one name per image") from error
        if not known:
            spellings[label] = _clean_label(label, class_names)
    return [spellings[label] for label in labels]


def _clean_label(label: Any, class_names: Sequence[str] | None) -> str:
    if class_names is None or isinstance(label, str | bool) or not hasattr(label, "__index__"):
        return clean_name(label)
    index = label.__index__()
    if not 0 <= index < len(class_names):
        raise DataError(
            f"label {index} has no place among {len(class_names)} class names; "
            f"numbers run from 0 to {len(class_names) - 1}"
        )
    return clean_name(class_names[index])


def check_distinct(names: Sequence[str]) -> None:
    """Refuse names given twice, and names that differ only in case, spaces or Unicode form.

    Raises:
        DataError: With both spellings and what to do.
    """
    seen: dict[str, str] = {}
    for name in names:
        # what is left of a name when case, spaces and Unicode form are ignored
        key = "".join(unicodedata.normalize("NFKC", name).casefold().split())
        if key in seen:
            raise DataError(_clash(seen[key], name))
        seen[key] = name


def check_known(name: Any, names: Sequence[str]) -> str:
    """The clean form of `name`, which must be one of `names`.

    Raises:
        DataError: With the most similar names known.
    """
    clean = clean_name(name)
    if clean in names:
        return clean
    near = difflib.get_close_matches(clean, names, n=3) or list(names[:10])
    raise DataError(f"there is no class {clean!r}; did you mean one of {near}?")


def _clash(one: str, other: str) -> str:
    if one == other:
        return f"class {one!r} is named twice; name every class once"
    return (
        f"class names {one!r} and {other!r} ({one!a} and {other!a}) differ only in case, "
        "spaces or Unicode form; give the same class one spelling, or rename one of two classes"
    )


def index_tensor(names: Sequence[str], labels: Sequence[str]) -> torch.Tensor:
    """Places of `labels` in `names`, int64 (N,)."""
    places = {name: i for i, name in enumerate(names)}
    return torch.tensor([places[label] for label in labels], dtype=torch.int64)
