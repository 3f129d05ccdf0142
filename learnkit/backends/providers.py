"""Execution providers of onnxruntime: the devices it can run networks on, and those it has here."""

from types import MappingProxyType

from learnkit.backends.extras import extra

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


def providers_here() -> tuple[str, ...]:
    """The devices that the installed onnxruntime was built for.

    Raises:
        MissingExtraError: onnxruntime is not installed.
    """
    found = extra("onnxruntime").get_available_providers()
    return tuple(device for device, provider in PROVIDERS.items() if provider in found)
