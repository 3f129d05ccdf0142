"""Networks in OpenVINO, and the files it has for them; needs no torch."""

import functools
import re
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from learnkit.backends.extras import extra
from learnkit.backends.onnx_file import check_onnx
from learnkit.backends.session import Outputs, Session, brief, signature
from learnkit.errors import BundleCorruptError, OptimizeError, PredictionError

_HINTS = {"bfloat16": "bf16"}  # all else is computed in float32, unless the file says int8
_OPERATORS = re.compile(r"opset\d+")


class OpenvinoSession(Session):
    """A network in OpenVINO.

    Args:
        precision: "bfloat16" computes in it; for others the file decides.
        files: `{"onnx": bytes}`, or `{"xml": bytes, "bin": bytes}`.
        threads: processor threads one run may use.
        device: "cpu".
        batch_size: compile the network a second time for exactly so many images, which then take up
            to a tenth less time than through the one for any number.

    Raises:
        BundleCorruptError: the files are no such network.
        OptimizeError: `batch_size` is less than 1.
        MissingExtraError: openvino is not installed.
    """

    def __init__(
        self,
        precision: str,
        files: Mapping[str, bytes],
        *,
        threads: int,
        device: str = "cpu",
        batch_size: int | None = None,
    ):
        if batch_size is not None and (type(batch_size) is not int or batch_size < 1):
            raise OptimizeError(f"`batch_size` is {batch_size!r}; a batch has at least one image")
        model = _read(files)
        sizes = signature(
            [_value(port, "uint8") for port in model.inputs],
            [_value(port, "float") for port in model.outputs],
        )
        super().__init__("openvino", precision, **sizes, threads=threads, device=device)
        hint = _HINTS.get(precision, "f32")
        self._any_number = Requests(_compiled(model, threads, hint))
        self._fixed = {}
        if batch_size is not None:
            model.reshape([batch_size, *self.shape])
            self._fixed[batch_size] = Requests(_compiled(model, threads, hint))

    def _run(self, images: np.ndarray) -> Outputs:
        try:
            features, *logits = self._fixed.get(len(images), self._any_number).run(images)
        except RuntimeError as error:
            raise PredictionError(f"openvino cannot run the network: {brief(error)}") from error
        return features, logits[0] if logits else None


class Requests:
    """A compiled network for any number of threads: each run has a request of its own."""

    def __init__(self, compiled: Any):
        self._compiled = compiled
        self._idle: list[Any] = []
        self._guard = threading.Lock()

    def run(self, images: np.ndarray) -> list[np.ndarray]:
        """The network's outputs, each its own memory."""
        request = self._request()
        found = request.infer({0: images}, share_inputs=True, share_outputs=False)
        outputs = [found[port] for port in self._compiled.outputs]
        with self._guard:
            self._idle.append(request)
        return outputs

    def _request(self) -> Any:
        """A request no other thread uses: it holds the memory of one run."""
        with self._guard:
            if self._idle:
                return self._idle.pop()
        return self._compiled.create_infer_request()


def check_ir(xml: bytes, n_weights: int) -> None:
    """Raise BundleCorruptError unless `xml` describes a network over `n_weights` bytes of weights.

    Refused are document types (entities), operators that are not OpenVINO's own, and weights that
    lie outside the file.
    """
    # before it is parsed: entities made of entities grow to gigabytes while they are read
    if b"<!DOCTYPE" in xml or b"<!ENTITY" in xml:
        raise _refused("it declares entities")
    try:
        root = ElementTree.fromstring(xml)
        layers, found = list(root.iter("layer")), (data.attrib for data in root.iter("data"))
        spans = [(int(span["offset"]), int(span["size"])) for span in found if "offset" in span]
    except (ElementTree.ParseError, KeyError, ValueError) as error:
        raise _refused(str(error)) from error
    if root.tag != "net" or not layers:
        raise _refused("it describes no network")
    for layer in layers:
        if not _OPERATORS.fullmatch(layer.get("version", "")):
            raise _refused(f"it uses {layer.get('type')!r:.80} of {layer.get('version')!r:.80}")
    if any(offset < 0 or size < 0 or offset + size > n_weights for offset, size in spans):
        raise _refused(f"it looks for weights beyond the {n_weights:,} bytes there are")


def _refused(reason: str) -> BundleCorruptError:
    return BundleCorruptError(f"the OpenVINO network is refused: {reason}; optimise it again")


@functools.cache
def openvino_core() -> Any:
    """The one core of this process; its networks must not outlive it, so it lives for ever."""
    return extra("openvino").Core()


def _read(files: Mapping[str, bytes]) -> Any:
    if "onnx" in files:
        check_onnx(files["onnx"])
    else:
        check_ir(files["xml"], len(files["bin"]))
    openvino = extra("openvino")
    try:
        if "onnx" in files:
            return openvino_core().read_model(files["onnx"])
        weights = openvino.Tensor(np.frombuffer(files["bin"], np.uint8).copy())
        return openvino_core().read_model(files["xml"], weights)
    except RuntimeError as error:
        raise BundleCorruptError(f"openvino cannot read the network: {brief(error)}") from error


def _compiled(model: Any, threads: int, hint: str) -> Any:
    settings = {
        "INFERENCE_PRECISION_HINT": hint,
        "INFERENCE_NUM_THREADS": str(threads),
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": "NO",  # pinned threads stay where others of this process work
    }
    try:
        return openvino_core().compile_model(model, "CPU", settings)
    except RuntimeError as error:
        raise BundleCorruptError(f"openvino cannot compile the network: {brief(error)}") from error


def _value(port: Any, kind: str) -> tuple[str, bool, list[Any]]:
    """Name, rightness of type, and shape (None where it is open) of an input or output."""
    name = next(iter(sorted(port.get_names() & {"image", "features", "logits"})), "")
    shape = [n.get_length() if n.is_static else None for n in port.get_partial_shape()]
    right = port.get_element_type().get_type_name() == {"uint8": "u8", "float": "f32"}[kind]
    return name, right, shape


def openvino_files(onnx: bytes) -> dict[str, bytes]:
    """A network for onnxruntime as OpenVINO's files, by ending; the numbers in it stay as they are.

    OpenVINO computes such a network in 8 bits, layers left in float32 apart. Its own tool for the
    purpose, as it comes, moved the features of a MobileNetV2 with real weights by .17 of their
    spread where these move them by .10, and by .20 instead of .08 with the two worst layers in
    float32.

    Args:
        onnx: the network, its weights in 8 bits or not.

    Raises:
        MissingExtraError: openvino is not installed.
    """
    endings = "xml", "bin"
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"network.{ending}" for ending in endings]
        extra("openvino").serialize(openvino_core().read_model(onnx), *map(str, paths))
        return {e: path.read_bytes() for e, path in zip(endings, paths, strict=True)}
