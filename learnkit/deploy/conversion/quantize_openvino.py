"""Networks in 8 bits for OpenVINO, by NNCF, calibrated and measured on the same images."""

import io
import logging
import os
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from learnkit.deploy.backends.processor import n_threads
from learnkit.deploy.backends.sessions_openvino import openvino_core
from learnkit.deploy.conversion.quantize import (
    Judge,
    outputs_of,
    passes,
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
    *,
    judge: Judge | None = None,
    target: float = 0.99,
    max_error: float = 0.095,
    keep: Sequence[str] | None = None,
    progress: bool = True,
) -> QuantizedOpenvino:
    """The network with 8-bit activations and weights; layers that suffer too much are spared.

    Which these are is measured as for onnxruntime, if the whole network in 8 bits misses a limit.
    Arguments and errors as for `quantize_onnx`.

    Raises:
        MissingExtraError: openvino or nncf is not installed.
    """
    network = FloatNetwork(onnx)
    images = used_samples(network, samples)
    exact, _ = outputs_of(open_raw(onnx), images)

    def attempt(kept: Sequence[str]) -> QuantizedOpenvino:
        xml, weights = _files(_quantized(network, onnx, images, kept, progress))
        features, logits = _run(xml, weights, images)
        score = None if judge is None else float(judge(features, logits))
        error = relative_error(features, exact)
        return QuantizedOpenvino(xml, weights, tuple(kept), error, score)

    first = attempt(keep or ())
    if keep is not None or passes(first, target, max_error):
        return first
    limits = {"judge": judge, "target": target, "max_error": max_error}
    found = quantize_onnx(onnx, samples, **limits, progress=progress)
    second = attempt(found.kept) if found.kept else first
    best = second if passes(second, target, max_error) or second.error < first.error else first
    note = f"kept {len(best.kept)} of {found.n_layers} layers in float32, the most sensitive"
    if not passes(best, target, max_error):
        note += (
            f"; features are off by {best.error:.2g} of their spread and more would not bring them "
            f"within {max_error:.2g}: the network is fragile in 8 bits, let the gates decide"
        )
    return replace(best, notes=(note,))


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
