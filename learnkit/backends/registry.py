"""The backends a network can run in: what each offers here, and a session in one of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any

from learnkit.backends.ort_session import PROVIDERS, OrtSession, providers_here
from learnkit.backends.processor import has_bfloat16, n_threads, telling_flags
from learnkit.backends.session import Session
from learnkit.errors import BackendUnavailableError, BundleCorruptError, OptimizeError

PRECISIONS = ("float32", "float16", "bfloat16", "int8")
TRAINING_PRECISIONS = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Backend:
    """What a backend can do anywhere, and what it takes.

    Args:
        name: what `optimize(backend=)` calls it.
        packages: what must be installed.
        extra: the extra of learnkit that brings them; None if they are always there.
        precisions: those it knows.
        parameters: what `optimize` passes on to it, with defaults.
        files: kinds of files a session needs, by precision where it is not one ONNX file.
        devices: names of those it can use, wherever they are present.
    """

    name: str
    packages: tuple[str, ...]
    extra: str | None
    precisions: tuple[str, ...]
    parameters: Mapping[str, Any]
    files: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    devices: tuple[str, ...] = ("cpu",)

    def files_of(self, precision: str) -> tuple[str, ...]:
        """Kinds of the files a session of this precision needs."""
        return self.files.get(precision, ("onnx",))

    @property
    def missing(self) -> tuple[str, ...]:
        """Those of its packages that are not installed."""
        return tuple(name for name in self.packages if find_spec(name) is None)


BACKENDS: Mapping[str, Backend] = MappingProxyType(
    {
        backend.name: backend
        for backend in (
            Backend(
                "onnxruntime",
                ("onnxruntime",),
                "onnx",
                ("float32", "float16", "int8"),
                {"spinning": True},
                devices=tuple(PROVIDERS),
            ),
            Backend(
                "openvino",
                ("openvino",),
                "openvino",
                ("float32", "float16", "bfloat16", "int8"),
                {"batch_size": None},
                {"int8": ("xml", "bin")},
            ),
            Backend(
                "torch",
                ("torch",),
                None,
                ("float32", "float16", "bfloat16"),
                {"channels_last": True, "compile": False},
                devices=("cpu", "cuda"),
            ),
        )
    }
)


def open_session(
    backend: str,
    precision: str,
    files: Mapping[str, bytes],
    *,
    threads: int | None = None,
    device: str = "cpu",
    **params: Any,
) -> Session:
    """A network ready to run from its files; torch is not needed.

    Args:
        backend: "onnxruntime" or "openvino".
        precision: "float32", "float16", "bfloat16" or "int8"; what the files were made for.
        files: bytes by kind: `onnx`, or `xml` and `bin`.
        threads: processor threads one run may use; None for all this process has.
        device: "cpu", or another that `devices` lists for the backend.
        **params: the backend's own, see `devices`.

    Raises:
        BackendUnavailableError: no such backend, or it cannot do this here.
        MissingExtraError: its packages are not installed.
        BundleCorruptError: a file is missing, damaged or refused.
        OptimizeError: it knows no such parameter.
    """
    found = check_backend(backend, precision, device, params)
    if absent := set(found.files_of(precision)) - files.keys():
        raise BundleCorruptError(f"a {backend} {precision} network lacks {sorted(absent)}")
    given = {"threads": n_threads(threads), "device": device, **params}
    if backend == "onnxruntime":
        return OrtSession(precision, files, **given)
    if backend == "openvino":
        from learnkit.backends.openvino_session import OpenvinoSession

        return OpenvinoSession(precision, files, **given)
    raise BackendUnavailableError(
        "a torch session is made of a live network, not of files: use TorchSession"
    )


def check_backend(
    backend: str, precision: str, device: str = "cpu", params: Mapping[str, Any] | None = None
) -> Backend:
    """The backend, if it can run this precision on this machine.

    Raises:
        BackendUnavailableError: it cannot; the message names what is possible.
        OptimizeError: it has no parameter of such a name.
    """
    if backend not in BACKENDS:
        raise BackendUnavailableError(
            f"`backend` is {backend!r}; there are {', '.join(BACKENDS)} (and 'auto')"
        )
    found = BACKENDS[backend]
    if (reason := why_not(found, precision, device)) is not None:
        possible = [
            f"{other.name} {name}"
            for other in BACKENDS.values()
            for name in PRECISIONS
            if why_not(other, name, device) is None and not other.missing
        ]
        raise BackendUnavailableError(
            f"{backend} cannot run {precision!r} on {device!r} here: {reason}. Possible on "
            f"{device!r}: {', '.join(possible) or 'nothing'}"
        )
    if unknown := sorted((params or {}).keys() - found.parameters.keys()):
        raise OptimizeError(
            f"{backend} has no parameter {', '.join(unknown)}; it takes "
            f"{dict(found.parameters) or 'none'}"
        )
    return found


def why_not(backend: Backend, precision: str, device: str = "cpu") -> str | None:
    """Why `backend` cannot run `precision` on `device`, its packages aside; None if it can."""
    if precision not in backend.precisions:
        return f"it knows {', '.join(backend.precisions)}"
    if device == "cpu" and precision == "bfloat16" and not has_bfloat16():
        flags = " ".join(telling_flags()) or "none that tell"
        return f"the processor has neither avx512_bf16 nor amx_bf16 (its flags: {flags})"
    if device == "cpu" and precision == "float16" and backend.name == "torch":
        return "on processors torch computes float16 several times slower than float32"
    if device != "cpu" and backend.name == "onnxruntime" and not backend.missing:
        here = providers_here()
        return None if device in here else f"the onnxruntime installed has {', '.join(here)}"
    if device not in backend.devices:
        return f"its devices are {', '.join(backend.devices)}"
    return None


def variant_name(backend: str, precision: str) -> str:
    """The name of a variant.

    >>> variant_name("onnxruntime", "int8")
    'onnxruntime-int8'
    """
    return f"{backend}-{precision}"
