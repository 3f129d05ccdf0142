"""A float ONNX network as quantisation sees it: what is worth 8 bits, and how it is converted.

Heavy layers (convolutions and products with fixed weights) of the body are worth it, and what lies
between them. The way from pixels to the first of them stays in float32, and so do the head,
products of two activations, and sums that do not join convolutions: in transformers both hold a few
huge values, beside which a grid of 256 steps loses the rest. A convolution that cuts the image into
patches belongs to that way.
"""

import logging
import math
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from learnkit.backends.extras import extra
from learnkit.backends.ort_session import CHANGING, EXACT_SUMS
from learnkit.backends.processor import n_threads

Range = tuple[float, float]
HEAVY = ("Conv", "Gemm", "MatMul")
LIGHT = ("Relu", "Clip", "MaxPool", "Add")
_FLOAT = 1  # TensorProto.FLOAT


class FloatNetwork:
    """A float32 network prepared for quantisation: constants folded, types inferred, nodes named.

    Args:
        data: an ONNX file with the input `image` and the output `features`.
    """

    def __init__(self, data: bytes):
        self.model = _prepared(data)
        graph = self.model.graph
        self.weights = {one.name: one for one in graph.initializer if one.data_type == _FLOAT}
        self.producers = {name: node for node in graph.node for name in node.output}
        body = _ancestors("features", self.producers)
        found = [
            node
            for node in graph.node
            if node.name in body and node.op_type in HEAVY and node.input[1] in self.weights
        ]
        # patches are 2 % of a small transformer's work, in 8 bits most of what goes wrong, and
        # OpenVINO computes them wrongly (features off by .27 of their spread instead of .02)
        if found:
            sizes = {one.name: list(one.ints) for one in found[0].attribute}
            kernel = sizes.get("kernel_shape", [1])
            side_by_side = max(kernel) > 1 and kernel == sizes.get("strides")
            if found[0].op_type == "Conv" and side_by_side:
                found = found[1:]
        self.heavy = found
        heavy = {node.name for node in self.heavy}
        #: nodes that are never quantised
        self.fixed = {
            node.name
            for node in graph.node
            if node.name not in heavy and not (node.name in body and self._joins(node))
        }

    @property
    def layers(self) -> list[str]:
        """Names of the heavy layers in the order they run."""
        return [node.name for node in self.heavy]

    @property
    def n_passed(self) -> dict[str, int]:
        """How many numbers go into each heavy layer and come out of it, for one image."""
        graph = self.model.graph
        sizes = {
            # the batch has no number: it counts as one image
            one.name: math.prod(d.dim_value or 1 for d in one.type.tensor_type.shape.dim)
            for one in (*graph.value_info, *graph.input, *graph.output)
        }
        return {n.name: sizes.get(n.input[0], 1) + sizes.get(n.output[0], 1) for n in self.heavy}

    @property
    def activations(self) -> list[str]:
        """Names of the tensors that quantisation may need ranges of."""
        nodes = [node for node in self.model.graph.node if node.name not in self.fixed]
        # an Add joins two activations; of other nodes only the first input is one
        first = (node.input[:1] if node.op_type != "Add" else node.input for node in nodes)
        names = [name for names in first for name in names] + [n.output[0] for n in nodes]
        return list(dict.fromkeys(name for name in names if name not in self.weights))

    def unit(self, layer: str) -> list[str]:
        """A heavy layer and the activation right behind it, which 8 bits come after."""
        names, output = [layer], next(n.output[0] for n in self.heavy if n.name == layer)
        for node in self.model.graph.node:
            if node.op_type in ("Relu", "Clip") and node.input[0] == output:
                names.append(node.name)
                output = node.output[0]
        return names

    def copy(self) -> Any:
        """The network as a ModelProto of its own."""
        model = type(self.model)()
        model.CopyFrom(self.model)
        return model

    def _joins(self, node: Any) -> bool:
        """True if `node` lies between convolutions: everything that goes in comes out of one."""
        if node.op_type not in LIGHT:
            return False
        inputs = node.input if node.op_type == "Add" else node.input[:1]
        sources = [self.producers.get(name) for name in inputs]
        return all(
            source is not None and (source.op_type == "Conv" or self._joins(source))
            for source in sources
        )


def to_int8(
    network: FloatNetwork,
    model: Any,
    ranges: Mapping[str, Range],
    *,
    only: Collection[str] = (),
    keep: Collection[str] = (),
) -> bytes:
    """The network with uint8 activations and int8 weights, one scale per output channel.

    Args:
        network: says what may be quantised.
        model: its graph, perhaps with corrected biases; changed.
        ranges: smallest and largest value to represent of every activation.
        only: quantise only these layers; none for all.
        keep: layers that stay in float32.
    """
    tool = extra("onnxruntime.quantization")
    quantizer = tool.QDQQuantizer(
        model,
        per_channel=True,
        # weights of 7 bits would guard against sums cut off, as `EXACT_SUMS` does without loss
        reduce_range=False,
        weight_qType=tool.QuantType.QInt8,
        activation_qType=tool.QuantType.QUInt8,
        tensors_range=_tensors_data(tool, ranges),
        nodes_to_quantize=[name for layer in only for name in network.unit(layer)],
        nodes_to_exclude=sorted({*network.fixed, *keep}),
        op_types_to_quantize=[*HEAVY, *LIGHT],
        extra_options={},
    )
    with silence():
        quantizer.quantize_model()
    result = quantizer.model.model
    result.producer_name = "learnkit"
    return result.SerializeToString(deterministic=True)


def open_raw(data: bytes, *, optimized_to: str | None = None) -> Any:
    """An onnxruntime session of any file, on all processors; raises what onnxruntime raises.

    Args:
        data: an ONNX file.
        optimized_to: a file to write the network to as basic optimisations leave it.
    """
    ort = extra("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = n_threads(), 1
    options.use_deterministic_compute = True
    options.log_severity_level = 4
    options.add_session_config_entry(*EXACT_SUMS)
    if optimized_to is not None:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = optimized_to
    return ort.InferenceSession(
        data, options, providers=["CPUExecutionProvider"], disabled_optimizers=CHANGING
    )


@contextmanager
def silence() -> Iterator[None]:
    """What quantisation tools log for their developers is not shown."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _prepared(data: bytes) -> Any:
    """The network after onnxruntime's basic optimisations, with types and names of all nodes."""
    # the tool's own `quant_pre_process` does the same by way of symbolic shapes, and fails at some
    onnx = extra("onnx")
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "prepared.onnx")
        open_raw(data, optimized_to=path)
        model = onnx.shape_inference.infer_shapes(onnx.load(path))
    seen: set[str] = set()
    # the quantiser knows nodes by name, which in a file may be empty or there twice
    for index, node in enumerate(model.graph.node):
        if not node.name or node.name in seen:
            node.name = f"{node.name or node.op_type}#{index}"
        seen.add(node.name)
    return model


def _ancestors(output: str, producers: Mapping[str, Any]) -> set[str]:
    """Names of all nodes that `output` depends on."""
    found: set[str] = set()
    todo = [output]
    while todo:
        node = producers.get(todo.pop())
        if node is not None and node.name not in found:
            found.add(node.name)
            todo.extend(node.input)
    return found


def _tensors_data(tool: Any, ranges: Mapping[str, Range]) -> Any:
    calibrate = extra("onnxruntime.quantization.calibrate")
    data = {
        # it refuses Python's floats, and float64
        name: calibrate.TensorData(lowest=np.float32(low), highest=np.float32(high))
        for name, (low, high) in ranges.items()
    }
    return calibrate.TensorsData(tool.CalibrationMethod.MinMax, data)


def outputs_of(
    session: Any, images: np.ndarray, bs: int = 16
) -> tuple[np.ndarray, np.ndarray | None]:
    """Features, and logits or None, that an onnxruntime session gives."""
    names = [output.name for output in session.get_outputs()]
    batches = [
        session.run(names, {"image": images[start : start + bs]})
        for start in range(0, len(images), bs)
    ]
    columns = zip(*batches, strict=True)
    found = {n: np.concatenate(parts) for n, parts in zip(names, columns, strict=True)}
    return found["features"], found.get("logits")
