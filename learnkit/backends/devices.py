"""Devices and precisions this machine can run, as a table."""

import importlib.metadata
from typing import Any

from learnkit.backends.ort_session import providers_here
from learnkit.backends.processor import n_threads, processor_name, telling_flags
from learnkit.backends.registry import BACKENDS, PRECISIONS, Backend, why_not
from learnkit.report.document import Document, Items, Mark, Paragraph, Span, Table
from learnkit.report.notebook import Shown

_UNSEEN = "no test of learnkit has run there; `optimize` compares and times it on your images"
_HEADER = ("backend", "device", "version", *PRECISIONS)


class Devices(list, Shown):
    """One dictionary per backend and device; shown as a table."""

    @property
    def processor(self) -> str:
        """The processor, the threads this process has, and the flags that matter for speed."""
        flags = " ".join(telling_flags()) or "flags unknown"
        return f"{processor_name()}, {n_threads()} threads ({flags})"

    def document(self) -> Document:
        """The processor, a table of backends and precisions, and what there is to know of each."""
        yes, no = Mark("yes", True, brief=True), Mark("-", brief=True)
        rows = [
            (
                *(row["backend"], row["device"], row["version"] or "not installed"),
                *(yes if name in row["precisions"] else no for name in PRECISIONS),
            )
            for row in self
        ]
        notes = [(Span(name, "strong"), f": {said}") for row in self for name, said in _notes(row)]
        return Document([Paragraph(self.processor), Table(rows, _HEADER), Items(notes)])

    def __repr__(self) -> str:
        from learnkit.report.text import as_text

        return as_text(self.document())


def devices() -> Devices:
    """What `optimize` can be asked for on this machine, one row per backend and device.

    A row is a dictionary: `backend`, `device`, `version` (None if not installed), `precisions` that
    can be run here, `parameters` of `optimize` with their defaults, and `why_not`, the reason by
    precision for those that cannot.
    """
    rows = [_row(backend, "cpu") for backend in BACKENDS.values()]
    rows += [_row(b, device) for b in BACKENDS.values() if not b.missing for device in _more(b)]
    return Devices(rows)


def _row(backend: Backend, device: str) -> dict[str, Any]:
    reasons = {precision: why_not(backend, precision, device) for precision in PRECISIONS}
    if backend.missing:
        absent = ", ".join(backend.missing)
        package = "learnkit" if backend.extra is None else f'"learnkit[{backend.extra}]"'
        remedy = f"{absent} not installed: pip install {package}"
        reasons = {precision: reason or remedy for precision, reason in reasons.items()}
    return {
        "backend": backend.name,
        "device": device,
        "version": None if backend.missing else importlib.metadata.version(backend.packages[0]),
        "precisions": tuple(name for name, reason in reasons.items() if reason is None),
        "parameters": dict(backend.parameters),
        "why_not": {name: reason for name, reason in reasons.items() if reason is not None},
    }


def _more(backend: Backend) -> tuple[str, ...]:
    """The devices present beside the processor."""
    if backend.name == "torch":
        import torch

        return ("cuda",) if torch.cuda.is_available() else ()
    if backend.name == "onnxruntime":
        return tuple(device for device in providers_here() if device != "cpu")
    return ()


def _notes(row: dict[str, Any]) -> list[tuple[str, str]]:
    """(what it is about, what there is to say): parameters, and why something cannot be run."""
    given = ", ".join(f"{name}={value}" for name, value in row["parameters"].items())
    found = [(row["backend"], f"takes {given}")] if given and row["device"] == "cpu" else []
    if row["backend"] == "onnxruntime" and row["device"] != "cpu":
        found.append((row["device"], _UNSEEN))
    reasons: dict[str, list[str]] = {}
    for precision, reason in row["why_not"].items():
        if precision in BACKENDS[row["backend"]].precisions:  # it has none elsewhere either
            reasons.setdefault(reason, []).append(precision)
    where = f"{row['backend']} on {row['device']}"
    return found + [(f"{where}, {', '.join(names)}", why) for why, names in reasons.items()]
