"""The log of changes in a bundle, and what else its history says beside tensors.

This module needs no torch: `learnkit report` and a served model show the log.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from learnkit._version import __version__
from learnkit.continual.change_report import LOGGED, AuditEntry, AuditLog
from learnkit.errors import BundleCorruptError, BundleVersionError
from learnkit.storage.formats import from_plain, parse_arrays, parse_json, read_field

HISTORY = "history.safetensors"
_FORMAT = 1
FACTS = "facts"  # the tensor that holds what is no tensor, as bytes of JSON
_ENTRY = re.compile(r"[a-z_]{1,40} \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ [0-9a-f]{64}")


@dataclass(frozen=True)
class HistoryFacts:
    """What a file of the history says beside its tensors."""

    format: int
    audit: tuple[AuditEntry, ...]
    names: tuple[str, ...]  # of the snapshots, which come first
    states: tuple[KeptState, ...]

    @property
    def log(self) -> AuditLog:
        """The log of changes."""
        return AuditLog(self.audit)


@dataclass(frozen=True)
class KeptState:
    """A state: its configuration, and for each tensor the state, of all there are, that holds it.

    State 0 is the one known now, which has a file of its own.
    """

    config: dict[str, Any]
    at: dict[str, int]


NO_HISTORY = HistoryFacts(_FORMAT, (), (), ())


def history_facts(data: bytes, where: str) -> HistoryFacts:
    """The log of changes and the names of snapshots in `data`, the content of the file `where`.

    Raises:
        BundleCorruptError: it is no file of a history.
        BundleVersionError: it is in a newer format.
    """
    return read_facts(parse_arrays(data, where).get(FACTS), where)


def read_facts(packed: np.ndarray | None, where: str) -> HistoryFacts:
    """The facts in their tensor, of which the log is sound.

    Raises:
        BundleCorruptError: there is none, or it is no log that learnkit has written.
        BundleVersionError: they are in a newer format.
    """
    if packed is None or packed.dtype != np.uint8:
        raise BundleCorruptError(f"{where}: `{FACTS}` is missing, or no text")
    values = parse_json(packed.tobytes(), where)
    # before the other fields: a newer format may have others
    if (number := read_field(values, "format", int, where)) > _FORMAT:
        raise BundleVersionError(
            f"{where} is in format {number}; learnkit {__version__} reads up to {_FORMAT}: upgrade "
            "learnkit"
        )
    facts = from_plain(HistoryFacts, values, where)
    sound = (
        facts.format == _FORMAT
        and len(facts.audit) <= LOGGED
        and all(_ENTRY.fullmatch(f"{e.what} {e.when} {e.digest}") for e in facts.audit)
        and all(a.number < b.number for a, b in pairwise(facts.audit))
    )
    if not sound:
        raise BundleCorruptError(f"{where} is no history that learnkit has written")
    return facts
