"""Variants that travel with the float32 model they were made from, as long as it is that model.

They stay on disk until the model is saved again, and go along byte for byte if its weights and all
it knows are as they were. If not, they are left out, and that is said.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from learnkit.bundle.schema import CONFIG, read_section
from learnkit.bundle.siblings import BaseFiles, weights_digest
from learnkit.bundle.state import OOD, STATE
from learnkit.bundle.variant import files_of, variant_names
from learnkit.bundle.variants.knowing import learned_since
from learnkit.storage.read_folder import Folder

_RESTS_ON = (
    "preprocessing",
    "classes",
    "multi_label",
    "threshold",
    "continual",
    "ood",
)


@dataclass(frozen=True)
class Companions:
    """Variants beside a float32 model in a bundle.

    Attributes:
        folder: the bundle.
        hashes: SHA-256 (hex) of their files, by name.
        rests_on: digest of the weights and the knowledge they were made from.
        learned: the variants that know more by now.
    """

    folder: Path
    hashes: Mapping[str, str]
    rests_on: str
    learned: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """The variants."""
        return variant_names(self.hashes)


def companions_at(path: str | os.PathLike, found: Folder) -> Companions | None:
    """The variants in the bundle at `path`, of which `found` has the manifest and config.json."""
    hashes = {name: entry["sha256"] for name, entry in found.manifest["files"].items()}
    names = variant_names(hashes)
    if not names:
        return None
    own = {file: hashes[file] for name in names for file in files_of(name, hashes)}
    section = read_section(found.files[CONFIG])
    folder = Path(os.path.abspath(path))
    return Companions(folder, own, _rests_on(found.files, hashes), learned_since(section))


def companions_in(path: str | os.PathLike, files: Mapping[str, bytes]) -> Companions | None:
    """The variants among `files`, which were written to `path`."""
    entries = {name: {"sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
    return companions_at(path, Folder({CONFIG: files[CONFIG]}, {"files": entries}, ""))


def with_companions(files: Mapping[str, bytes], companions: Companions | None) -> BaseFiles:
    """A float32 model's `files`, and the variants that go along with it if they still fit."""
    base = BaseFiles.at_hand(files)
    if companions is None:
        return base
    if companions.rests_on != _rests_on(files, base.hashes):
        return replace(base, stale=tuple(companions.names), learned=companions.learned)
    hashes = {**base.hashes, **companions.hashes}
    return BaseFiles(files, hashes, companions.folder, learned=companions.learned)


def _rests_on(files: Mapping[str, bytes], hashes: Mapping[str, Any]) -> str:
    """Digest of all in a float32 model that variants are made from."""
    section = read_section(files[CONFIG])
    said = {key: section.get(key) for key in _RESTS_ON}
    state = {name: hashes[name] for name in (STATE, OOD) if name in hashes}
    text = json.dumps([weights_digest(files, hashes), state, said], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
