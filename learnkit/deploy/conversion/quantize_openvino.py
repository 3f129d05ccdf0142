"""Networks in 8 bits for OpenVINO, by NNCF, calibrated and measured on the same images."""

import io
import logging
import os
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from learnkit.deploy.backends.processor import n_threads
from learnkit.deploy.backends.sessions_openvino import openvino_core
from learnkit.deploy.conversion.limits import Limits
from learnkit.deploy.conversion.quantize import (
    Quantized,
    check_kept,
    outputs_of,
    quantize_onnx,
    used_samples,
)
from learnkit.deploy.conversion.quantize_graph import FloatNetwork, open_raw, silence
from learnkit.deploy.conversion.sensitivity import relative_error
from learnkit.deploy.extras import extra

_STUB = "NNCF_CI"  # while it is set, NNCF imports a telemetry that sends nothing


@dataclass(frozen=True)
class QuantizedOpenvino:
    """A network in 8 bits, as OpenVINO's two files, and what it cost; see `Quantized`."""

    xml: bytes = field(repr=False)
    bin: bytes = field(repr=False)
    kept: tuple[str, ...]
    error: float
    score: float | None
    notes: tuple[str, ...] = ()


def quantize_openvino(
    onnx: bytes,
    samples: np.ndarray,
    limits: Limits | None = None,
    *,
    spared: Callable[[], Quantized] | None = None,
    progress: bool = True,
) -> QuantizedOpenvino:
    """The network with 8-bit activations and weights; layers that suffer too much are spared.

    Which these are is measured as for onnxruntime, if the whole network in 8 bits misses a limit.
    Errors as for `quantize_onnx`.

    Args:
        onnx: float32 network, as for `quantize_onnx`.
        samples: images it will see, as there.
        limits: what is asked of it on the samples.
        spared: gives the network in 8 bits for onnxruntime, whose layers in float32 are then tried
            here; by default that is made anew.
        progress: show bars.

    Raises:
        MissingExtraError: openvino or nncf is not installed.
    """
    limits = Limits() if limits is None else limits
    network = FloatNetwork(onnx)
    images = used_samples(network, samples)
    check_kept(network, limits.keep)
    exact, _ = outputs_of(open_raw(onnx), images)

    def attempt(kept: Sequence[str]) -> QuantizedOpenvino:
        xml, weights = _files(_quantized(network, onnx, images, kept, progress))
        features, logits = _run(xml, weights, images)
        error = relative_error(features, exact)
        return QuantizedOpenvino(xml, weights, tuple(kept), error, limits.score(features, logits))

    first = attempt(limits.keep or ())
    if limits.settle(first):
        return first
    found = quantize_onnx(onnx, samples, limits, progress=progress) if spared is None else spared()
    second = attempt(found.kept) if found.kept else first
    best = second if limits.met_by(second) or second.error < first.error else first
    return replace(best, notes=(limits.note(best, found.n_layers),))


def _quantized(
    network: FloatNetwork, onnx: bytes, images: np.ndarray, kept: Collection[str], progress: bool
) -> Any:
    """NNCF's model with the layers of the body but `kept` in 8 bits."""
    nncf = _nncf()
    model = openvino_core().read_model(onnx)
    names = {operation.get_friendly_name() for operation in model.get_ordered_ops()}
    float32 = {*kept, *_beside(network)}
    ignored = sorted(names & {name + end for name in float32 for end in ("", "/WithoutBiases")})
    with _quiet(), _counted(images, progress) as items:
        return nncf.quantize(
            model,
            nncf.Dataset(items, lambda image: {"image": image[None]}),
            subset_size=len(images),
            ignored_scope=nncf.IgnoredScope(names=ignored, validate=False),
        )


def _beside(network: FloatNetwork) -> set[str]:
    """Names of the products outside the body: the head stays in float32."""
    body, nodes = set(network.layers), network.model.graph.node
    return {n.name for n in nodes if n.op_type in ("Gemm", "MatMul") and n.name not in body}


def _run(xml: bytes, weights: bytes, images: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Features and logits of `images`."""
    core = openvino_core()
    settings = {"INFERENCE_NUM_THREADS": n_threads(), "INFERENCE_PRECISION_HINT": "f32"}
    model = core.compile_model(core.read_model(xml, weights), "CPU", settings)
    rows = [list(model({"image": image[None]}).values()) for image in images]
    features, *logits = (np.concatenate(column) for column in zip(*rows, strict=True))
    return features, logits[0] if logits else None


def _files(model: Any) -> tuple[bytes, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("network.xml", "network.bin")]
        extra("openvino").serialize(model, *map(str, paths))
        return tuple(path.read_bytes() for path in paths)


@contextmanager
def _quiet() -> Iterator[None]:
    """NNCF's messages and bars, on standard output, are its own; ours counts the images."""
    logger = logging.getLogger("nncf")
    disabled, logger.disabled = logger.disabled, True
    try:
        with silence(), redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.disabled = disabled


@contextmanager
def _counted(images: np.ndarray, progress: bool) -> Iterator[Any]:
    """The images, one after the other, under a bar."""
    if not progress:
        yield images
        return
    from tqdm.auto import tqdm

    with tqdm(images, desc="calibrate", unit="img") as bar:
        yield bar


def _nncf() -> ModuleType:
    before = os.environ.get(_STUB)
    os.environ[_STUB] = "1"
    try:
        return extra("nncf")
    finally:
        if before is None:
            del os.environ[_STUB]
        else:
            os.environ[_STUB] = before
