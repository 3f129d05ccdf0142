"""ONNX files: what is allowed in one, and changes that leave what it computes as it is.

What is allowed is read from its bytes: no ONNX package is needed to refuse a file. It is a protobuf
message: a sequence of fields, each a number and a value. Here the few fields are looked at that
could make a runtime open other files, run foreign code or loop for ever.
Source: onnx.proto of the ONNX standard, whose field numbers never change.

Changed are names, metadata, and the type of the weights.
"""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from learnkit.backends.extras import extra
from learnkit.errors import BundleCorruptError, ExportError
from learnkit.storage.formats import parse_literal

MAX_NODES = 100_000
# Operators beside ONNX's own: quantised ones, in types that older ONNX lacks.
_MICROSOFT = {"QuantizeLinear", "DequantizeLinear"}
_STANDARD = {b"", b"ai.onnx"}
_MODEL = {"graph": 7, "training": 20, "functions": 25}
_GRAPH = {"node": 1, "initializer": 5, "sparse": 15}
_NODE = {"op_type": 4, "attribute": 5, "domain": 7}
_ATTRIBUTE = {"tensor": 5, "graph": 6, "tensors": 10, "graphs": 11, "sparse": 22, "sparses": 23}
_TENSOR = {"dims": 1, "external": 13, "location": 14}
_SCOPES = "pkg.torch.onnx.name_scopes"
_FLOAT16_MAX = 65504.0

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
            # protobuf's wire types: 2 says its length, 1 has 8 bytes, 5 has 4; the rest is refused
            n, at = _varint(data, at) if kind == 2 else ({1: 8, 5: 4}.get(kind, -1), at)
            if n < 0 or at + n > len(data):
                raise _refused("it is damaged or cut off")
            value, at = data[at : at + n], at + n
        yield key >> 3, value


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """A number of up to ten bytes, seven bits each, and where it ends."""
    value = 0
    # ten bytes of seven bits hold the 64 of protobuf's longest integers
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


def tidied(data: bytes) -> bytes:
    """The file with nodes called by the module they come from, and without traces of the exporter.

    Exporters write source lines of the machine they ran on beside every node.

    Raises:
        ExportError: the file is no valid ONNX model.
    """
    onnx = extra("onnx")
    model = onnx.load_model_from_string(data)
    _name_nodes(model.graph)
    for item in (model, model.graph, *model.graph.node, *model.graph.initializer):
        del item.metadata_props[:]
        item.ClearField("doc_string")
    values = (*model.graph.input, *model.graph.output, *model.graph.value_info)
    for value in values:
        del value.metadata_props[:]
    model.producer_name = "learnkit"
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the exporter wrote a file that is no valid ONNX: {error}") from error
    return model.SerializeToString(deterministic=True)


def write_metadata(data: bytes, values: Mapping[str, Any]) -> bytes:
    """The ONNX file with `values` as its metadata, as JSON if they are no strings; others stay.

    Raises:
        TypeError: a value is nothing JSON can hold.
    """
    onnx = extra("onnx")
    model = onnx.load_model_from_string(data)
    found = {entry.key: entry.value for entry in model.metadata_props}
    for key, value in values.items():
        found[key] = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    del model.metadata_props[:]
    for key in sorted(found):
        model.metadata_props.add(key=key, value=found[key])
    return model.SerializeToString(deterministic=True)


def _name_nodes(graph: Any) -> None:
    """Call every node `module.path/Operator`, numbered from the second of a name on."""
    seen: Counter[str] = Counter()
    weights = {tensor.name for tensor in graph.initializer if tensor.name.endswith(".weight")}
    for node in graph.node:
        # what a norm was folded into bears the norm's name, but still its own weight
        own = [name.removesuffix(".weight") for name in node.input if name in weights]
        scopes = next((entry.value for entry in node.metadata_props if entry.key == _SCOPES), "[]")
        modules = [scope for scope in parse_literal(scopes)[:-1] if not scope.startswith("_")]
        name = "/".join([*(own or modules[-1:])[:1], node.op_type]).lstrip("/")
        seen[name] += 1
        node.name = name if seen[name] == 1 else f"{name}_{seen[name]}"


def stored_float16(data: bytes) -> bytes:
    """The ONNX file with its weights in float16, at half the size; it computes in float32.

    Runtimes turn the weights back once, when they load. A weight float16 cannot hold stays as it
    is, and so do vectors, which weigh nothing.
    """
    onnx = extra("onnx")
    model = onnx.load_model_from_string(data)
    graph, casts = model.graph, []
    for tensor in graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or len(tensor.dims) < 2:
            continue
        values = onnx.numpy_helper.to_array(tensor)
        # so written that weights with NaN stay in float32, too
        if not abs(values).max(initial=0) <= _FLOAT16_MAX:
            continue
        half = f"{tensor.name}.float16"
        casts.append(
            onnx.helper.make_node(
                "Cast", [half], [tensor.name], name=f"{half}/Cast", to=onnx.TensorProto.FLOAT
            )
        )
        tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype("float16"), half))
    # casts first: in ONNX a node stands behind all whose values it takes
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.checker.check_model(model)
    return model.SerializeToString(deterministic=True)
