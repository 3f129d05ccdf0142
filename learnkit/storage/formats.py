"""Strict JSON and strict safetensors: bytes in, plain values out, or an error that names the file.

Python's `json` takes duplicate keys and NaN, safetensors takes duplicate names, NaN weights and
headers of 100 MB. A bundle from a stranger may hold any of them, so each is refused here.

Records are frozen dataclasses, written as JSON and read as strictly. A field with
`metadata=NOT_STORED` stays at home: it is not written, and read as its default. One with
`metadata={"formerly": name}` is read under that name, too; one with `metadata=OPTIONAL` is written
where it is not its default, and may be missing.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import math
import re
import threading
import types
import typing
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import safetensors
import safetensors.numpy

from learnkit.errors import BundleCorruptError, ExportError

if TYPE_CHECKING:
    from torch import Tensor

Record = TypeVar("Record")
NOT_STORED = {"stored": False}
OPTIONAL = {"optional": True}

_PARSER = threading.Lock()
HEADER_START = 8  # bytes that say how long a safetensors header is
MAX_HEADER_BYTES = 4_000_000
MAX_TENSORS = 100_000
MAX_DEPTH = 64
_MAX_DIMS = 8
_TYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_TYPES |= {"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8"}
_TYPES |= {"BOOL": "bool"}

# A text without an end matches, too: else each of its quotes is tried, in quadratic time.
_BRACKETS = re.compile(rb'"(?:[^"\\]|\\.)*"?|[\[{]|[\]}]', re.DOTALL)
_MANY_DIGITS = re.compile(rb"[0-9]{309}")


def parse_literal(text: str) -> Any:
    """The value of a Python literal, one thread at a time; nothing in it is run.

    Raises:
        ValueError, SyntaxError: it is none.
    """
    # of two threads Python 3.11's parser now and then says that it lost count of the depth
    # (SystemError), and a sound file would pass for a damaged one
    with _PARSER:
        return ast.literal_eval(text)


def to_json(value: Any) -> bytes:
    """UTF-8 JSON of `value`; NaN and infinities raise ValueError."""
    text = json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False)
    return (text + "\n").encode()


def finite_or_none(value: float | None) -> float | None:
    """`value` as JSON knows it: infinities and NaN become None."""
    return value if value is not None and math.isfinite(value) else None


def parse_json(data: bytes, name: str) -> dict[str, Any]:
    """The object in `data`, the content of the file `name`.

    Raises:
        BundleCorruptError: not UTF-8, not JSON, not an object, a key twice, NaN or an infinity, or
            nested deeper than `MAX_DEPTH`.
    """
    _check_depth(data, name)  # json's parser recurses, and ends in RecursionError
    try:
        value = json.loads(
            data.decode(),
            object_pairs_hook=_refuse_duplicates,
            parse_constant=_finite_float,
            parse_float=_finite_float,
            # only where there may be one: it is called for each of millions
            parse_int=_finite_int if _MANY_DIGITS.search(data) else None,
        )
        json.dumps(value, ensure_ascii=False).encode()  # lone surrogates cannot be printed
    except ValueError as error:  # UnicodeError and JSONDecodeError are ValueErrors
        raise BundleCorruptError(f"{name} is not strict JSON: {error}") from error
    if not isinstance(value, dict):
        raise BundleCorruptError(f"{name} holds a JSON {type(value).__name__}, not an object")
    return value


def _check_depth(data: bytes, name: str) -> None:
    depth = 0
    for match in _BRACKETS.finditer(data):
        first = match.group()[:1]
        depth += (first in b"[{") - (first in b"]}")
        if depth > MAX_DEPTH:
            raise BundleCorruptError(f"{name} is nested deeper than {MAX_DEPTH} levels")


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        # counted in one pass: each key looked up among all others took minutes
        twice = next(key for key, n in Counter(key for key, _ in pairs).items() if n > 1)
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return found


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        # Python's parser also takes NaN, Infinity and -Infinity for numbers
        reason = "too large a number" if text[-1].isdigit() else "not a JSON number"
        raise ValueError(f"{text:.40} is {reason}")
    return value


def _finite_int(text: str) -> int:
    _finite_float(text)  # a number that no float holds ends in OverflowError far from here
    return int(text)


def is_json(value: Any) -> bool:
    """Whether a value can be written as JSON and is not missing.

    >>> is_json([1, "a"]), is_json({1, 2}), is_json(float("nan")), is_json(None)
    (True, False, False, False)
    """
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return value is not None


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
    # a name that is no former one: these are the present names already
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
    # not isinstance: True is an int, too
    if type(value) is not hint:
        raise BundleCorruptError(f"{where} is {shown(value)}; it must be a {_name(hint)}")
    return value


def tensors_to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """A safetensors file of `tensors`, whatever their device, layout, or sharing of memory.

    Raises:
        ExportError: a tensor holds NaN or an infinity; its name is in the message.
    """
    if bad := first_non_finite(tensors):
        raise ExportError(
            f"the tensor {bad!r} holds NaN or infinite values; a model with broken weights is not "
            "exported: load the last good weights, or train again with a lower learning rate"
        )
    from safetensors.torch import save

    return save(_own_memory(tensors))


def first_non_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Name of the first tensor with NaN or an infinity, None if all are finite."""
    import torch

    return next((name for name, t in tensors.items() if not torch.isfinite(t).all()), None)


def _own_memory(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, contiguous, on the CPU, and copied where they share memory."""
    from torch import Tensor

    seen: set[int] = set()  # safetensors refuses two tensors in one storage
    own = {}
    for name, tensor in tensors.items():
        # away from subclasses such as fastai's
        plain = tensor.detach().as_subclass(Tensor).cpu().contiguous()
        if plain.untyped_storage().data_ptr() in seen:
            plain = plain.clone()
        seen.add(plain.untyped_storage().data_ptr())
        own[name] = plain
    return own


def parse_tensors(data: bytes, name: str) -> dict[str, Tensor]:
    """The tensors in `data`, the content of the safetensors file `name`.

    Raises:
        BundleCorruptError: header too large, not strict JSON or of too many tensors; ranges that
            overlap or leave gaps; NaN or an infinity.
    """
    from safetensors.torch import load

    tensors = _parsed(data, name, load)
    if bad := first_non_finite(tensors):
        raise _not_finite(name, bad)
    return tensors


def parse_arrays(data: bytes, name: str) -> dict[str, np.ndarray]:
    """The same as numpy arrays; torch is not imported. Raises like `parse_tensors`."""
    arrays = _parsed(data, name, safetensors.numpy.load)
    if bad := next((n for n, a in arrays.items() if not np.isfinite(a).all()), None):
        raise _not_finite(name, bad)
    return arrays


def empty_tensors(head: bytes, n_bytes: int, name: str) -> dict[str, Tensor]:
    """Tensors on torch's meta device, which have a type and a shape and no values.

    Args:
        head: the safetensors file `name` up to the end of its header, or more of it.
        n_bytes: of the whole file.
        name: for messages.

    Raises:
        BundleCorruptError: the header is none, or does not account for every byte of the file.
    """
    import torch

    header = _check_header(head, name, n_bytes)
    header.pop("__metadata__", None)
    found, n_used = {}, 0
    for tensor, entry in header.items():
        entry = entry if isinstance(entry, dict) else {}
        kind, shape = _TYPES.get(str(entry.get("dtype")), ""), entry.get("shape")
        sound = isinstance(shape, list) and all(type(n) is int and 0 <= n <= n_bytes for n in shape)
        if not (kind and sound and len(shape) <= _MAX_DIMS):
            raise BundleCorruptError(
                f"{name}: the tensor {tensor!r:.100} is {entry.get('dtype')!r:.20} of shape "
                f"{shape!r:.100}, which no weight is"
            )
        one = torch.empty(shape, dtype=getattr(torch, kind), device="meta")
        found[tensor], n_used = one, n_used + one.numel() * one.element_size()
    if n_used != n_bytes - HEADER_START - int.from_bytes(head[:HEADER_START], "little"):
        raise BundleCorruptError(f"{name} holds other bytes than those of its tensors")
    return found


def _parsed(data: bytes, name: str, load: Callable[[bytes], dict[str, Any]]) -> dict[str, Any]:
    _check_header(data, name)
    try:
        return load(data)
    # KeyError: of types that numpy has not, such as BF16
    except (safetensors.SafetensorError, KeyError, ValueError, RuntimeError, TypeError) as error:
        raise BundleCorruptError(f"{name} is not a sound safetensors file: {error}") from error


def _not_finite(name: str, tensor: str) -> BundleCorruptError:
    return BundleCorruptError(f"{name}: the tensor {tensor!r} holds NaN or infinite values")


def _check_header(data: bytes, name: str, n_bytes: int | None = None) -> dict[str, Any]:
    """The header, looked at before the library allocates anything for it; see `empty_tensors`."""
    size, n_bytes = int.from_bytes(data[:HEADER_START], "little"), n_bytes or len(data)
    if n_bytes < HEADER_START or size > min(n_bytes - HEADER_START, MAX_HEADER_BYTES):
        raise BundleCorruptError(
            f"{name} announces a header of {size} bytes in a file of {n_bytes}; "
            f"at most {MAX_HEADER_BYTES} are read"
        )
    header = parse_json(data[HEADER_START : HEADER_START + size], f"the header of {name}")
    if len(header) > MAX_TENSORS:
        raise BundleCorruptError(
            f"{name} lists {len(header)} tensors; at most {MAX_TENSORS} are read"
        )
    return header
