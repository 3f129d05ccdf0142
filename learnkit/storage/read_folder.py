"""A folder of files, read only if it is what was written.

`manifest.json` lists size and SHA-256 of every file. Each is read once into memory, from a regular
file that is no link, and compared with the manifest before anyone parses it. `write_folder` writes
such folders. This module knows nothing of models.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Collection
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from learnkit.errors import BundleCorruptError, BundleError, BundleNotFoundError
from learnkit.storage.formats import parse_arrays, parse_json, parse_tensors

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

MANIFEST = "manifest.json"
VARIANTS = "variants"
MAX_MANIFEST_BYTES = 1_000_000

_NAME = re.compile(rf"(?:{VARIANTS}/)?[A-Za-z0-9_][A-Za-z0-9_.-]{{0,99}}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Folder:
    """Files whose bytes are those written; `digest` is the SHA-256 (hex) of the manifest.

    The methods raise BundleCorruptError, naming the file, at what is missing or not sound.
    """

    files: dict[str, bytes]
    manifest: dict[str, Any]
    digest: str

    def json(self, name: str) -> dict[str, Any]:
        """The object in a JSON file; see `parse_json`."""
        return parse_json(self.bytes(name), name)

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """The numpy arrays in a safetensors file, by name; torch is not imported."""
        return parse_arrays(self.bytes(name), name)

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The torch tensors in a safetensors file, by name."""
        return parse_tensors(self.bytes(name), name)

    def bytes(self, name: str) -> bytes:
        """The content of a file."""
        if name not in self.files:
            raise BundleCorruptError(f"{MANIFEST} does not list {name}")
        return self.files[name]


def is_plain_name(name: str) -> bool:
    """True for names that stay inside the folder on every system.

    >>> [is_plain_name(n) for n in ("config.json", "variants/model.onnx", "../x", "/etc/x", "a/b")]
    [True, True, False, False, False]
    """
    return _NAME.fullmatch(name) is not None


def leftovers(target: Path, kind: str) -> list[Path]:
    """Folders a writer of `target` left beside it (`kind` "new" or "old")."""
    pattern = re.compile(rf"{re.escape(f'.{target.name}.{kind}-')}[0-9a-f]{{12}}")
    if not target.parent.is_dir():
        return []
    found = [p for p in target.parent.iterdir() if pattern.fullmatch(p.name) and p.is_dir()]
    return sorted(p for p in found if not p.is_symlink())


def set_aside(target: Path) -> Path | None:
    """The folder a killed writer had moved away from `target` without a successor, if any."""
    return None if os.path.lexists(target) else next(iter(leftovers(target, "old")), None)


_LOOKED_AT = 1000  # entries of a folder that is no bundle


def read_folder(
    path: str | os.PathLike, *, sha256: str | None = None, wanted: Collection[str] | None = None
) -> Folder:
    """The files at `path`, each compared with the manifest.

    Args:
        path: a folder written by `write_folder`.
        sha256: the manifest's digest as `write_folder` returned it; any other manifest is refused.
        wanted: names to read, if the manifest lists them; default all but those in `variants/`.

    Raises:
        BundleNotFoundError: no folder, or no manifest in it.
        BundleCorruptError: a file is missing, a link, no regular file, of another size or hash, or
            the manifest is not `sha256`'s or breaks a rule.
    """
    if sha256 is not None and not _SHA256.fullmatch(sha256):
        raise BundleError(f"sha256={sha256!r} is not 64 hexadecimal digits in lower case")
    while True:
        folder = Path(path)
        folder = set_aside(folder) or folder
        before = _identity(folder)
        try:
            return _read_once(folder, sha256, wanted)
        except BundleError:
            if before == _identity(folder):
                raise  # otherwise a writer replaced the folder under our eyes: read the new one


def _identity(folder: Path) -> tuple[int, int] | None:
    try:
        found = folder.stat()
    except OSError:
        return None
    return found.st_ino, found.st_ctime_ns


def _read_once(folder: Path, sha256: str | None, wanted: Collection[str] | None) -> Folder:
    if not folder.exists():
        raise BundleNotFoundError(f"there is no bundle at {folder}: no such folder")
    if not folder.is_dir():
        raise BundleError(f"{folder} is a file; a bundle is a folder")
    manifest, digest = read_manifest(folder, sha256)
    files = {
        name: _read_listed(folder, name, entry)
        for name, entry in manifest["files"].items()
        if (not name.startswith(f"{VARIANTS}/") if wanted is None else name in wanted)
    }
    return Folder(files, manifest, digest)


def read_manifest(folder: Path, sha256: str | None) -> tuple[dict[str, Any], str]:
    """The manifest, its entries checked, and its digest."""
    if not os.path.lexists(folder / MANIFEST):
        inside = [one for one in islice(folder.iterdir(), _LOOKED_AT) if (one / MANIFEST).is_file()]
        there = f"; there is one in it: {min(inside)}" if inside else ""
        raise BundleNotFoundError(f"{folder} is not a bundle: it has no {MANIFEST}{there}")
    data = _read_regular(folder / MANIFEST, MAX_MANIFEST_BYTES)
    digest = hashlib.sha256(data).hexdigest()
    if sha256 not in {None, digest}:
        raise BundleCorruptError(
            f"{folder} is not the pinned bundle: its manifest's sha256 is {digest}, not {sha256}"
        )
    manifest = parse_json(data, MANIFEST)
    entries = manifest.get("files")
    if not isinstance(entries, dict):
        raise BundleCorruptError(f"{MANIFEST} has no object `files`")
    for name, entry in entries.items():
        _check_entry(name, entry)
    return manifest, digest


def _check_entry(name: str, entry: Any) -> None:
    if not is_plain_name(name) or name == MANIFEST:
        raise BundleCorruptError(
            f"{MANIFEST} lists {name!r}, which is not a plain name inside the bundle"
        )
    entry = entry if isinstance(entry, dict) else {}
    size, sha256 = entry.get("size"), entry.get("sha256")
    if type(size) is not int or size < 0 or not _SHA256.fullmatch(str(sha256)):
        raise BundleCorruptError(f"{MANIFEST} gives no sound size and sha256 for {name!r}")


def _read_listed(folder: Path, name: str, entry: dict[str, Any]) -> bytes:
    if "/" in name and (folder / VARIANTS).is_symlink():
        raise BundleCorruptError(f"{folder / VARIANTS} is a link; a bundle holds none")
    data = _read_regular(folder / name, entry["size"], exact=True)
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise BundleCorruptError(
            f"{folder / name} is damaged: its sha256 is not the one in {MANIFEST}"
        )
    return data


def _read_regular(path: Path, size: int, *, exact: bool = False) -> bytes:
    """Content of a regular file of at most (or exactly) `size` bytes; no link is followed."""
    # without O_NONBLOCK, opening a FIFO in the place of a file waits for a writer for ever
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    flags |= getattr(os, "O_BINARY", 0)
    try:
        with open(path, "rb", opener=lambda p, _: os.open(p, flags)) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise BundleCorruptError(f"{path} is not a regular file")
            if found.st_size > size or (exact and found.st_size != size):
                rule = f"{size} are in {MANIFEST}" if exact else f"at most {size} are read"
                raise BundleCorruptError(f"{path} is {found.st_size} bytes long; {rule}")
            data = file.read(size + 1)
    except OSError as error:
        reason = "it is a link; a bundle holds none" if path.is_symlink() else error.strerror
        raise BundleCorruptError(f"{path} cannot be read: {reason}") from error
    if len(data) != found.st_size:
        raise BundleCorruptError(f"{path} changed while it was read")
    return data
