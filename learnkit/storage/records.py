"""Records from JSON and back: frozen dataclasses, read strictly, for files come from strangers.

A field with `metadata=NOT_STORED` stays at home: it is not written, and read as its default. One
with `metadata={"formerly": name}` is read under that name, too; one with `metadata=OPTIONAL` is
written where it is not its default, and may be missing.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from learnkit.errors import BundleCorruptError

Record = TypeVar("Record")
NOT_STORED = {"stored": False}
OPTIONAL = {"optional": True}


def to_plain(value: Any) -> Any:
    """`value` as JSON knows it: records become objects, tuples lists, NaN and infinities null."""
    if dataclasses.is_dataclass(value):
        plain = {name: to_plain(getattr(value, name)) for name in _stored(type(value))}
        optional = _optional(type(value)).items()
        left_out = {name for name, default in optional if getattr(value, name) == default}
        return {name: one for name, one in plain.items() if name not in left_out}
    if isinstance(value, dict):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def from_plain(kind: type[Record], values: Any, where: str) -> Record:
    """The record that `to_plain` wrote; null stands for NaN where a number is asked for.

    Args:
        kind: a dataclass of plain values, of tuples of one kind, of dictionaries with text as keys,
            of records, and of such or None.
        values: what JSON gave.
        where: the file, for the message.

    Raises:
        BundleCorruptError: a field is missing, unknown or of another type.
    """
    types_of = typing.get_type_hints(kind)
    hints = {name: types_of[name] for name in _stored(kind)}
    values = _renamed(kind, values)
    if isinstance(values, dict):  # as if it had been written whole
        lacking = _optional(kind).keys() - values.keys()
        hints = {name: hint for name, hint in hints.items() if name not in lacking}
    if not isinstance(values, dict) or values.keys() != hints.keys():
        found = sorted(values) if isinstance(values, dict) else type(values).__name__
        raise BundleCorruptError(
            f"{where}: a {kind.__name__} has the fields {sorted(hints)}, not {found!s:.200}"
        )
    return kind(**{name: read_field(values, name, hint, where) for name, hint in hints.items()})


def read_field(
    values: Mapping[str, Any],
    name: str,
    kind: Any,
    where: str,
    *,
    shown: Callable[[Any], str] = "{!r:.100}".format,
) -> Any:
    """The value of one field of a JSON object, if it is of this type.

    Args:
        values: the object.
        name: of the field.
        kind: its type: `int`, `str`, `bool`, `float` (also of a whole number; null is NaN), `list`,
            `dict`, `tuple[str, ...]`, `dict[str, int]`, a dataclass, any of these `| None`, such a
            value or a tuple of them, or Any.
        where: the file, for the message.
        shown: what the message says of another value.

    Raises:
        BundleCorruptError: it is missing, or of another type.
    """
    if name not in values:
        raise BundleCorruptError(f"{where}: `{name}` is missing; it must be a {_name(kind)}")
    return _read(kind, values[name], f"{where}: `{name}`", shown)


def _stored(kind: type) -> list[str]:
    """The names of the fields that are written."""
    return [f.name for f in dataclasses.fields(kind) if f.metadata.get("stored", True)]


def _renamed(kind: type, values: Any) -> Any:
    """What was written, under the names that its fields have now."""
    former = {f.metadata.get("formerly", f.name): f.name for f in dataclasses.fields(kind)}
    if not isinstance(values, dict) or not former.keys() >= values.keys():
        return values
    return {former[name]: value for name, value in values.items()}


def _optional(kind: type) -> dict[str, Any]:
    """The defaults of the fields that may be missing."""
    return {f.name: f.default for f in dataclasses.fields(kind) if f.metadata.get("optional")}


def _name(kind: Any) -> str:
    return getattr(kind, "__name__", str(kind))


def _read(hint: Any, value: Any, where: str, shown: Callable[[Any], str]) -> Any:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None and types.NoneType in inner:
            return None
        kinds = [kind for kind in inner if kind is not types.NoneType]
        several = (kind for kind in kinds if typing.get_origin(kind) is tuple)
        hint = next(several, kinds[0]) if isinstance(value, list) else kinds[0]
        return _read(hint, value, where, shown)
    if dataclasses.is_dataclass(hint):
        return from_plain(hint, value, where)
    if origin is tuple and isinstance(value, list):
        return tuple(_read(inner[0], one, where, shown) for one in value)
    if origin is dict and isinstance(value, dict):
        return {k: _read(inner[1], one, where, shown) for k, one in value.items()}
    if hint is float:
        value = math.nan if value is None else value
        value = float(value) if type(value) is int else value
    if type(value) is not hint:
        raise BundleCorruptError(f"{where} is {shown(value)}; it must be a {_name(hint)}")
    return value
