"""What this machine can run, as a table."""

import importlib.metadata
from html import escape
from typing import Any

from learnkit.deploy.backends.processor import n_threads, processor_name, telling_flags
from learnkit.deploy.backends.registry import BACKENDS, PRECISIONS, Backend, why_not

_COLUMNS = ("backend", "device", "version", "precisions", "parameters", "why_not")


class Devices(list):
    """One dictionary per backend and device; shown as a table."""

    @property
    def processor(self) -> str:
        """The processor, the threads this process has, and the flags that matter for speed."""
        flags = " ".join(telling_flags()) or "flags unknown"
        return f"{processor_name()}, {n_threads()} threads ({flags})"

    def __repr__(self) -> str:
        cells = [_COLUMNS, *([_shown(row[name]) for name in _COLUMNS] for row in self)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(_COLUMNS))]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]
        return "\n".join([self.processor, *lines])

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{name}</th>" for name in _COLUMNS)
        rows = "".join(
            "<tr>" + "".join(f"<td>{escape(_shown(row[name]))}</td>" for name in _COLUMNS) + "</tr>"
            for row in self
        )
        return (
            f"<p>{escape(self.processor)}</p>"
            f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        )


def devices() -> Devices:
    """What `optimize` can be asked for on this machine, one row per backend and device.

    A row is a dictionary: `backend`, `device`, `version` (None if not installed), `precisions` that
    can be run here, `parameters` of `optimize` with their defaults, and `why_not`, the reason by
    precision for those that cannot.
    """
    rows = [_row(backend, "cpu") for backend in BACKENDS.values()]
    rows += [_row(b, "cuda") for b in BACKENDS.values() if not b.missing and _has_cuda(b)]
    return Devices(rows)


def _row(backend: Backend, device: str) -> dict[str, Any]:
    reasons = {precision: why_not(backend, precision, device) for precision in PRECISIONS}
    if backend.missing:
        absent = ", ".join(backend.missing)
        remedy = f'{absent} not installed: pip install "learnkit[{backend.extra}]"'
        reasons = {precision: reason or remedy for precision, reason in reasons.items()}
    return {
        "backend": backend.name,
        "device": device,
        "version": None if backend.missing else importlib.metadata.version(backend.packages[0]),
        "precisions": tuple(name for name, reason in reasons.items() if reason is None),
        "parameters": dict(backend.parameters),
        "why_not": {name: reason for name, reason in reasons.items() if reason is not None},
    }


def _has_cuda(backend: Backend) -> bool:
    if backend.name == "torch":
        import torch

        return torch.cuda.is_available()
    if backend.name == "onnxruntime":
        import onnxruntime

        return "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    return False


def _shown(value: Any) -> str:
    """A cell's text: dictionaries and tuples as people write them."""
    if isinstance(value, dict):
        return "; ".join(f"{name}: {_shown(item)}" for name, item in value.items())
    return ", ".join(value) if isinstance(value, tuple) else "-" if value is None else str(value)
