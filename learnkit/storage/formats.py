"""Strict JSON and strict safetensors: bytes in, plain values out, or an error that names the file.

Python's `json` takes duplicate keys and NaN, safetensors takes duplicate names, NaN weights and
headers of 100 MB. A bundle from a stranger may hold any of them, so each is refused here.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors
import safetensors.numpy

from learnkit.errors import BundleCorruptError, ExportError

if TYPE_CHECKING:
    from torch import Tensor

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
            parse_constant=_refuse_constant,
            parse_float=_finite_float,
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
        twice = next(key for key, n in Counter(key for key, _ in pairs).items() if n > 1)
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return found


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is not a JSON number")


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is too large a number")
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
