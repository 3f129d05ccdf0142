"""Changes to an ONNX file that leave what it computes as it is: names, metadata, weights' type."""

import ast
import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from learnkit.backends.extras import extra
from learnkit.errors import ExportError

_SCOPES = "pkg.torch.onnx.name_scopes"
_FLOAT16_MAX = 65504.0


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
        modules = [scope for scope in ast.literal_eval(scopes)[:-1] if not scope.startswith("_")]
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
        if not abs(values).max(initial=0) <= _FLOAT16_MAX:
            continue
        half = f"{tensor.name}.float16"
        casts.append(
            onnx.helper.make_node(
                "Cast", [half], [tensor.name], name=f"{half}/Cast", to=onnx.TensorProto.FLOAT
            )
        )
        tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype("float16"), half))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.checker.check_model(model)
    return model.SerializeToString(deterministic=True)
