"""The float32 files that stay beside an optimised model: at hand, or where it was loaded from."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from learnkit.deploy.files import Folder, read_folder
from learnkit.deploy.schema import CONFIG, read_section
from learnkit.errors import BundleCorruptError, BundleError, ExportError


@dataclass(frozen=True)
class BaseFiles:
    """Files by name, at hand or to be read again, each exactly as it was.

    Attributes:
        files: those at hand.
        hashes: SHA-256 (hex) of every file, also of those not at hand.
        folder: where the others are.
        problem: why there are none, if so.
    """

    files: Mapping[str, bytes] = field(default_factory=dict)
    hashes: Mapping[str, str] = field(default_factory=dict)
    folder: Path | None = None
    problem: str = ""

    @classmethod
    def at_hand(cls, files: Mapping[str, bytes]) -> BaseFiles:
        """All of them."""
        return cls(files, {name: _sha256(data) for name, data in files.items()})

    @classmethod
    def left_at(cls, path: str | os.PathLike, found: Folder, without: Iterable[str]) -> BaseFiles:
        """Those of the bundle at `path` that `found` lists, but for `without`."""
        hashes = {name: entry["sha256"] for name, entry in found.manifest["files"].items()}
        for name in without:
            hashes.pop(name, None)
        files = {name: data for name, data in found.files.items() if name in hashes}
        return cls(files, hashes, Path(os.path.abspath(path)))

    @property
    def weights(self) -> str:
        """SHA-256 (hex) over the float32 weights; empty if they cannot travel."""
        return "" if self.problem else weights_digest(self.files, self.hashes)

    @property
    def n_weight_bytes(self) -> int:
        """What the float32 weights take on disk, as far as they are at hand."""
        names = read_section(self.files[CONFIG])["layout"] if CONFIG in self.files else ()
        return sum(len(self.files.get(name, b"")) for name in names)

    def read(self) -> dict[str, bytes]:
        """All files.

        Raises:
            ExportError: the network cannot travel as data.
            BundleError: the folder they were in is gone, or holds another model by now.
        """
        if self.problem:
            raise ExportError(self.problem)
        missing = self.hashes.keys() - self.files.keys()
        if not missing:
            return dict(self.files)
        try:
            found = read_folder(self.folder, wanted=missing).files
        except BundleError as error:
            raise BundleError(f"{self._remedy()}: {error}") from error
        if changed := sorted(n for n in missing if _sha256(found.get(n, b"")) != self.hashes[n]):
            raise BundleError(f"{self._remedy()}: {changed[0]} is another one, or gone")
        return {**self.files, **found}

    def _remedy(self) -> str:
        return (
            f"the float32 weights are saved beside an optimised model, and {self.folder}, where it "
            "was loaded from, does not hold them any more; put that bundle back, then save again"
        )


def weights_digest(files: Mapping[str, bytes], hashes: Mapping[str, Any]) -> str:
    """SHA-256 (hex) over the weights that the config.json among `files` lists.

    Raises:
        BundleCorruptError: one of them is not there.
    """
    names = sorted(read_section(files[CONFIG]).get("layout", {}))
    if missing := [name for name in names if name not in hashes]:
        raise BundleCorruptError(f"the bundle has no {missing[0]}")
    return _sha256("\n".join(f"{name} {hashes[name]}" for name in names).encode())


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
