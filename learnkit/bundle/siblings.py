"""The float32 files that stay beside an optimised model: at hand, or where it was loaded from."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from learnkit.bundle.schema import CONFIG, read_section
from learnkit.bundle.state import OOD, STATE
from learnkit.bundle.variant import files_of, learned_since, variant_names
from learnkit.continual.serialization import in_this_format
from learnkit.data.preprocess import Preprocessing
from learnkit.errors import BundleCorruptError, BundleError, ExportError, warn_user
from learnkit.storage.read_folder import VARIANTS, Folder, read_folder


@dataclass(frozen=True)
class BaseFiles:
    """Files by name, at hand or to be read again, each exactly as it was.

    Attributes:
        files: those at hand.
        hashes: SHA-256 (hex) of every file, also of those not at hand.
        folder: where the others are.
        problem: why there are none, if so.
        stale: variants that do not go along: they are of the model as it was.
        learned: the variants that know more than the float32 model, also of the stale ones.
    """

    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    hashes: Mapping[str, str] = field(default_factory=dict, repr=False)
    folder: Path | None = None
    problem: str = ""
    stale: tuple[str, ...] = ()
    learned: tuple[str, ...] = ()

    @classmethod
    def left_at(cls, path: str | os.PathLike, found: Folder, without: Iterable[str]) -> BaseFiles:
        """Those of the bundle at `path` that `found` lists, but for `without`."""
        hashes = {name: entry["sha256"] for name, entry in found.manifest["files"].items()}
        for name in without:
            hashes.pop(name, None)
        files = {name: data for name, data in found.files.items() if name in hashes}
        learned = learned_since(read_section(found.files[CONFIG]))
        # absolute: when they are read, on saving, the process may work in another folder
        return cls(files, hashes, Path(os.path.abspath(path)), learned=learned)

    @property
    def weights(self) -> str:
        """SHA-256 (hex) over the float32 weights; empty if they cannot travel."""
        return "" if self.problem else weights_digest(self.files, self.hashes)

    @property
    def n_weight_bytes(self) -> int:
        """What the float32 weights take on disk, as far as they are at hand."""
        names = read_section(self.files[CONFIG])["layout"] if CONFIG in self.files else ()
        return sum(len(self.files.get(name, b"")) for name in names)

    def read(self, *, variants: bool = True, replaced: Collection[str] = ()) -> dict[str, bytes]:
        """All files; a warning names the variants that ought to be among them and are left out.

        Args:
            variants: also those of variants.
            replaced: variants that others of this name take the place of.

        Raises:
            ExportError: the network cannot travel as data.
            BundleError: the folder they were in is gone, or holds another model by now.
        """
        if self.problem:
            raise ExportError(self.problem)
        beside = {name for name in self.hashes if name.startswith(f"{VARIANTS}/")}
        try:
            found = self._read(self.hashes.keys() - self.files.keys() - beside)
        except BundleError as error:
            raise BundleError(f"{self._remedy()}: {error}") from error
        at_hand = {name: data for name, data in self.files.items() if name not in beside}
        found = {**at_hand, **found}
        if not variants:
            return found
        if stale := [name for name in self.stale if name not in replaced]:
            warn_user(
                f"variants of the model as it was are left out: {', '.join(stale)}. It has changed "
                f"since they were made of it; make them again with `optimize`{self._learned(stale)}"
            )
        return {
            **found,
            **self._variants(beside - {f for n in replaced for f in files_of(n, beside)}),
        }

    def _variants(self, names: set[str]) -> dict[str, bytes]:
        """The files of variants, or a warning that they are gone."""
        try:
            return self._read(names)
        # a warning: without variants the model is whole, without float32 weights it is none
        except BundleError as error:
            lost = variant_names(names)
            warn_user(
                f"variants are left out: {', '.join(lost)}. They are not where the model was "
                f"loaded from any more ({error}); put that bundle back and save again, or make "
                f"them again with `optimize`{self._learned(lost)}"
            )
            return {}

    def _learned(self, names: Collection[str]) -> str:
        """The loss that making `names` again does not mend."""
        more = [name for name in names if name in self.learned]
        return f", which does not bring back what {', '.join(more)} had learned" if more else ""

    def _read(self, names: set[str]) -> dict[str, bytes]:
        """These files, at hand or from the folder; BundleError unless they are what they were."""
        at_hand = {name: self.files[name] for name in names & self.files.keys()}
        if not (names := names - at_hand.keys()):
            return at_hand
        # held against hashes of files, not of the bundle: that may have been saved again since
        found = read_folder(self.folder, wanted=names).files
        if changed := sorted(n for n in names if _sha256(found.get(n, b"")) != self.hashes[n]):
            raise BundleError(f"{changed[0]} is another one, or gone")
        return at_hand | found

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


_RESTS_ON = (
    "preprocessing",
    "classes",
    "multi_label",
    "threshold",
    "continual",
    "ood",
)


@dataclass(frozen=True)
class Siblings:
    """Variants beside a float32 model in a bundle.

    Attributes:
        folder: the bundle; None if their files are at hand.
        hashes: SHA-256 (hex) of their files, by name.
        rests_on: digest of the weights and the knowledge they were made from.
        learned: the variants that know more by now.
        files: those at hand, by name.
    """

    folder: Path | None
    hashes: Mapping[str, str]
    rests_on: str
    learned: tuple[str, ...]
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    @property
    def names(self) -> list[str]:
        """The variants."""
        return variant_names(self.hashes)


def siblings_at(path: str | os.PathLike, found: Folder) -> Siblings | None:
    """The variants in the bundle at `path`, of which `found` has the manifest and config.json."""
    hashes = {name: entry["sha256"] for name, entry in found.manifest["files"].items()}
    names = variant_names(hashes)
    if not names:
        return None
    own = {file: hashes[file] for name in names for file in files_of(name, hashes)}
    section = read_section(found.files[CONFIG])
    folder = Path(os.path.abspath(path))
    return Siblings(folder, own, _rests_on(found.files, hashes), learned_since(section))


def siblings_in(path: str | os.PathLike, files: Mapping[str, bytes]) -> Siblings | None:
    """The variants among `files`, which were written to `path`."""
    entries = {name: {"sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
    return siblings_at(path, Folder({CONFIG: files[CONFIG]}, {"files": entries}, ""))


def with_siblings(files: Mapping[str, bytes], siblings: Siblings | None) -> BaseFiles:
    """A float32 model's `files`, and the variants that go along with it if they still fit."""
    base = BaseFiles(files, {name: _sha256(data) for name, data in files.items()})
    if siblings is None:
        return base
    if siblings.rests_on != _rests_on(files, base.hashes):
        return replace(base, stale=tuple(siblings.names), learned=siblings.learned)
    hashes = {**base.hashes, **siblings.hashes}
    at_hand = {**files, **siblings.files}
    return BaseFiles(at_hand, hashes, siblings.folder, learned=siblings.learned)


def at_hand(beside: BaseFiles | Siblings | None) -> BaseFiles | Siblings | None:
    """The same with all its files in memory, so that the folder they came from may go."""
    if beside is None:
        return None
    if isinstance(beside, BaseFiles):
        return replace(beside, files=beside.read(), folder=None)
    found = read_folder(beside.folder, wanted=beside.hashes.keys())
    return replace(beside, files=found.files, folder=None)


def _rests_on(files: Mapping[str, bytes], hashes: Mapping[str, Any]) -> str:
    """Digest of all in a float32 model that variants are made from."""
    section = read_section(files[CONFIG])
    # a newer learnkit writes a state in its own format, which makes no variant stale
    said = {key: in_this_format(section.get(key)) for key in _RESTS_ON}
    # fields that came later: as if not set
    if isinstance(recipe := said["preprocessing"], Mapping):
        said["preprocessing"] = {**Preprocessing(1).to_dict(), **recipe}
    state = {name: hashes[name] for name in (STATE, OOD) if name in hashes}
    text = json.dumps([weights_digest(files, hashes), state, said], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
