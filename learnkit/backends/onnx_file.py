"""Contents allowed in an ONNX file, read from its bytes: no ONNX package is needed to refuse one.

The file is a protobuf message: a sequence of fields, each a number and a value. Here the few fields
are looked at that could make a runtime open other files, run foreign code or loop for ever.
Source: onnx.proto of the ONNX standard, whose field numbers never change.
"""

import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from learnkit.errors import BundleCorruptError

MAX_NODES = 100_000
# Operators beside ONNX's own: quantised ones, in types that older ONNX lacks.
_MICROSOFT = {"QuantizeLinear", "DequantizeLinear"}
_STANDARD = {b"", b"ai.onnx"}
_MODEL = {"graph": 7, "training": 20, "functions": 25}
_GRAPH = {"node": 1, "initializer": 5, "sparse": 15}
_NODE = {"op_type": 4, "attribute": 5, "domain": 7}
_ATTRIBUTE = {"tensor": 5, "graph": 6, "tensors": 10, "graphs": 11, "sparse": 22, "sparses": 23}
_TENSOR = {"dims": 1, "external": 13, "location": 14}

Message = dict[str, list[Any]]


def check_onnx(data: bytes) -> None:
    """Raise BundleCorruptError unless `data` is an ONNX model that stands alone.

    Refused are weights in other files, functions, operators of other makers, graphs inside
    operators (loops and branches), and tensors that claim more values than the file can hold.
    """
    model = _message(memoryview(data), _MODEL)
    if len(model["graph"]) != 1:
        raise _refused("it has no graph")
    if model["functions"] or model["training"]:
        raise _refused("it defines functions of its own or is for training")
    graph = _message(model["graph"][0], _GRAPH)
    if not 1 <= len(graph["node"]) <= MAX_NODES:
        raise _refused(f"it has {len(graph['node'])} operators; 1 to {MAX_NODES} are read")
    if graph["sparse"]:
        raise _refused("it has sparse weights")
    for tensor in graph["initializer"]:
        _check_tensor(tensor, len(data))
    for node in graph["node"]:
        _check_node(_message(node, _NODE), len(data))


def _check_node(node: Message, n_bytes: int) -> None:
    operator, domain = _text(node["op_type"], "replace"), bytes(*node["domain"][-1:])
    known = domain in _STANDARD or (domain == b"com.microsoft" and operator in _MICROSOFT)
    if not known:
        raise _refused(f"it uses {operator} of {domain.decode('utf-8', 'replace')!r:.80}")
    for attribute in node["attribute"]:
        found = _message(attribute, _ATTRIBUTE)
        if found["graph"] or found["graphs"]:
            raise _refused(f"it has a graph inside an operator {operator}")
        if found["sparse"] or found["sparses"]:
            raise _refused("it has sparse weights")
        for tensor in (*found["tensor"], *found["tensors"]):
            _check_tensor(tensor, n_bytes)


def _check_tensor(tensor: memoryview, n_bytes: int) -> None:
    found = _message(tensor, _TENSOR)
    if found["external"] or any(found["location"]):
        raise _refused("it keeps weights in another file")
    dims = [dim for item in found["dims"] for dim in _numbers(item)]
    if math.prod(dims) > 8 * n_bytes:
        raise _refused(f"a tensor of shape {dims} does not fit into {n_bytes:,} bytes")


def _refused(reason: str) -> BundleCorruptError:
    return BundleCorruptError(f"the ONNX file is refused: {reason}; export the model again")


def _text(values: list[Any], errors: str = "strict") -> str:
    return bytes(*values[-1:]).decode("utf-8", errors)


def _message(data: Any, wanted: dict[str, int]) -> Message:
    """The values of the `wanted` fields, in order; others are skipped."""
    names, found = {number: name for name, number in wanted.items()}, defaultdict(list)
    if not isinstance(data, memoryview):
        raise _refused("a message is a number")
    for number, value in _fields(data):
        if number in names:
            found[names[number]].append(value)
    return found


def _fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    """Number and value of every field: an int, or the bytes of text, messages and arrays."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(data, at)
        else:
            n, at = _varint(data, at) if kind == 2 else ({1: 8, 5: 4}.get(kind, -1), at)
            if n < 0 or at + n > len(data):
                raise _refused("it is damaged or cut off")
            value, at = data[at : at + n], at + n
        yield key >> 3, value


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """A number of up to ten bytes, seven bits each, and where it ends."""
    value = 0
    for shift, byte in enumerate(data[at : at + 10]):
        value |= (byte & 127) << (7 * shift)
        if byte < 128:
            return value, at + shift + 1
    raise _refused("it is damaged or cut off")


def _numbers(item: Any) -> Iterator[int]:
    """One number, or those of a packed array."""
    if isinstance(item, int):
        yield item
        return
    at = 0
    while at < len(item):
        value, at = _varint(item, at)
        yield value
