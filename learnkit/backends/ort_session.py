"""Networks in onnxruntime, and the devices it can run them on; needs no torch."""

from collections.abc import Mapping
from contextlib import nullcontext
from threading import Lock
from types import MappingProxyType, ModuleType
from typing import Any

import numpy as np

from learnkit.backends.extras import extra
from learnkit.backends.onnx_file import check_onnx
from learnkit.backends.session import Outputs, Session, brief, signature
from learnkit.errors import BackendUnavailableError, BundleCorruptError, PredictionError

#: devices by onnxruntime's names for what drives them; of these the tests have seen "cpu" alone,
#: the others by lists and sessions that pretend
PROVIDERS = MappingProxyType(
    {
        "cpu": "CPUExecutionProvider",
        "cuda": "CUDAExecutionProvider",
        "tensorrt": "TensorrtExecutionProvider",
        "coreml": "CoreMLExecutionProvider",
        "directml": "DmlExecutionProvider",
    }
)
ONNX_DEVICES = frozenset(PROVIDERS) - {"cpu", "cuda"}  # those torch does not know
#: optimisations of onnxruntime that change what a network says: this one takes weights left in
#: float32 among layers in 8 bits to 8 bits as well, with one scale for all channels
CHANGING = ["WeightBiasQuantization"]
#: without it processors that have AVX2 and no VNNI cut off sums of products of 8 bits at 16 bits:
#: measured there, features of MobileNetV2 were off by .64 of their spread instead of .13
EXACT_SUMS = "session.x64quantprecision", "1"
# where TensorRT has no operator for a layer CUDA has one; the processor comes last by itself
_BEHIND = {"tensorrt": [PROVIDERS["cuda"]]}


class OrtSession(Session):
    """An ONNX file in onnxruntime.

    Args:
        precision: what the file's weights are.
        files: `{"onnx": bytes}`.
        threads: processor threads one run may use.
        device: "cpu", or "cuda", "tensorrt", "coreml" or "directml" where it has them.
        spinning: within a run, threads wait for the next piece of work in a loop: faster, and in
            the way of whatever else the processor has to do.

    Raises:
        BundleCorruptError: the file is no such network.
        BackendUnavailableError: this onnxruntime has nothing for `device`.
        MissingExtraError: onnxruntime is not installed.
    """

    def __init__(
        self,
        precision: str,
        files: Mapping[str, bytes],
        *,
        threads: int,
        device: str = "cpu",
        spinning: bool = True,
    ):
        ort = extra("onnxruntime")
        check_onnx(files["onnx"])
        check_provider(ort, device)
        # DirectML runs one batch at a time; all others any number
        self._turn = Lock() if device == "directml" else nullcontext()
        self._session = _opened(ort, files["onnx"], threads, device, spinning)
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        sizes = signature(
            [(one.name, one.type == "tensor(uint8)", one.shape) for one in inputs],
            [(one.name, one.type == "tensor(float)", one.shape) for one in outputs],
        )
        super().__init__("onnxruntime", precision, **sizes, threads=threads, device=device)

    def _run(self, images: np.ndarray) -> Outputs:
        try:
            with self._turn:
                features, *logits = self._session.run(None, {"image": images})
        except _errors() as error:
            raise PredictionError(f"onnxruntime cannot run the network: {brief(error)}") from error
        return features, logits[0] if logits else None


def providers_here() -> tuple[str, ...]:
    """The devices that the installed onnxruntime was built for.

    Raises:
        MissingExtraError: onnxruntime is not installed.
    """
    found = extra("onnxruntime").get_available_providers()
    return tuple(device for device, provider in PROVIDERS.items() if provider in found)


def check_provider(ort: ModuleType, device: str) -> None:
    """Raise BackendUnavailableError if this onnxruntime cannot run on `device`."""
    possible = list(providers_here())
    if device not in possible:
        raise BackendUnavailableError(
            f"`device`={device!r}; this onnxruntime {ort.__version__} runs on {possible}"
        )


def _opened(ort: ModuleType, data: bytes, threads: int, device: str, spinning: bool) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.use_deterministic_compute = True
    options.log_severity_level = 4  # what goes wrong is raised
    options.add_session_config_entry(*EXACT_SUMS)
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    options.add_session_config_entry("session.force_spinning_stop", "1")  # between runs: be idle
    if device == "directml":  # it refuses to plan memory ahead
        options.enable_mem_pattern = False
    try:
        providers = [PROVIDERS[device], *_BEHIND.get(device, ())]
        session = ort.InferenceSession(
            data, options, providers=providers, disabled_optimizers=CHANGING
        )
    except _errors() as error:
        raise BundleCorruptError(f"onnxruntime cannot read the network: {brief(error)}") from error
    if PROVIDERS[device] not in session.get_providers():  # it takes the processor instead
        raise BackendUnavailableError(f"`device`={device!r}; onnxruntime cannot start it here")
    return session


def _errors() -> tuple[type[Exception], ...]:
    """Every exception of onnxruntime: they have no base of their own."""
    state = extra("onnxruntime.capi.onnxruntime_pybind11_state")
    found = (value for value in vars(state).values() if isinstance(value, type))
    return (RuntimeError, *(value for value in found if issubclass(value, Exception)))
