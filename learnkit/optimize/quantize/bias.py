"""Biases that make up for rounded weights.

Rounding shifts the mean of a layer's output: inputs after a ReLU are all positive, so that errors
of the weights add up instead of cancelling. The shift is known, because layers are linear: it is
the layer with the rounding errors for weights, applied to the mean input; the bias takes it back.
In networks of depthwise convolutions that is most of what rounding costs.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from learnkit.backends.extras import extra
from learnkit.optimize.quantize.graph import FloatNetwork, open_raw


def correct_biases(
    network: FloatNetwork, quantized: bytes, means: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Float32 values to add to the output channels of each layer, by the layer's name.

    Args:
        network: the float network.
        quantized: the same network with all layers quantised; its weights are what is corrected.
        means: the mean input of each layer over the samples (1, ...).
    """
    # Nagel et al., Data-free quantization through weight equalization and bias correction, 2019
    tools = extra("onnx.numpy_helper")
    rounded = _dequantized(quantized)
    shifts = {}
    for node in network.heavy:
        if node.name not in rounded:
            continue
        exact = tools.to_array(network.weights[node.input[1]])
        missing = exact - rounded[node.name].reshape(exact.shape)
        out = _apply(network, node, missing.astype(np.float32), means[node.input[0]])
        channel = 1 if node.op_type == "Conv" else out.ndim - 1
        others = tuple(axis for axis in range(out.ndim) if axis != channel)
        shifts[node.name] = out.mean(others, dtype=np.float64).astype(np.float32)
    return shifts


def with_biases(network: FloatNetwork, shifts: Mapping[str, np.ndarray]) -> Any:
    """The float network as a ModelProto whose biases are moved by `shifts`.

    A product whose bias is no constant of its own is left as it is.
    """
    model = network.copy()
    readers: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    for node in model.graph.node:
        if node.name not in shifts:
            continue
        place = _bias_place(network, node, readers, len(shifts[node.name]))
        if place is not None:
            _move(network, model, *place, shifts[node.name])
    return model


def _bias_place(network: FloatNetwork, node: Any, readers: Mapping[str, list[Any]], width: int):
    """The node that adds the layer's bias and which of its inputs that is; None if none does."""
    if node.op_type in ("Conv", "Gemm"):
        if len(node.input) < 3:
            return node, 2
        return (node, 2) if _is_bias(network, node.input[2], width) else None
    # a MatMul has no bias: that is in the Add behind it, if nobody else reads the product
    after = readers.get(node.output[0], [])
    if len(after) != 1 or after[0].op_type != "Add":
        return None
    found = [i for i, name in enumerate(after[0].input) if _is_bias(network, name, width)]
    return (after[0], found[0]) if len(found) == 1 else None


def _is_bias(network: FloatNetwork, name: str, width: int) -> bool:
    return name in network.weights and list(network.weights[name].dims) == [width]


def _move(network: FloatNetwork, model: Any, node: Any, index: int, shift: np.ndarray) -> None:
    """Give `node` a bias of its own: that of its input, or none, plus `shift`."""
    tools = extra("onnx.numpy_helper")
    # a constant of its own: other layers may read the one there is
    name = f"{node.name}/bias"
    if index < len(node.input):
        shift = tools.to_array(network.weights[node.input[index]]) + shift
        node.input[index] = name
    else:
        node.input.append(name)
    model.graph.initializer.append(tools.from_array(shift, name))


def _dequantized(data: bytes) -> dict[str, np.ndarray]:
    """The weights that a quantised network computes with, by the name of the layer."""
    onnx = extra("onnx")
    graph = onnx.load_model_from_string(data).graph
    constants = {one.name: one for one in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}
    found = {}
    for node in graph.node:
        source = producers.get(node.input[1]) if len(node.input) > 1 else None
        if source is None or source.op_type != "DequantizeLinear":
            continue
        if source.input[0] not in constants:
            continue
        steps, scale = (onnx.numpy_helper.to_array(constants[n]) for n in source.input[:2])
        # without the attribute it is 1, by ONNX's definition of DequantizeLinear
        axis = next((a.i for a in source.attribute if a.name == "axis"), 1)
        shape = [-1 if i == axis % steps.ndim else 1 for i in range(steps.ndim)]
        scale = scale.reshape(shape) if scale.size > 1 else scale
        found[node.name] = steps.astype(np.float32) * scale
    return found


def _apply(network: FloatNetwork, node: Any, weights: np.ndarray, x: np.ndarray) -> np.ndarray:
    """What a layer gives for `x` with these weights and no bias."""
    onnx = extra("onnx")
    helper = onnx.helper
    layer = onnx.NodeProto()
    layer.CopyFrom(node)
    del layer.input[:], layer.output[:]
    layer.input.extend(["x", "w"])
    layer.output.append("y")
    graph = helper.make_graph(
        [layer],
        "layer",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=network.model.opset_import)
    # that of onnx itself may be newer than onnxruntime reads
    model.ir_version = network.model.ir_version
    return open_raw(model.SerializeToString()).run(["y"], {"x": x})[0]
