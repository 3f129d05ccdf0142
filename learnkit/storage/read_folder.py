"""A folder of files, read only if it is what was written.

`manifest.json` lists size and SHA-256 of every file. Each is read once into memory, from a regular
file, and compared with the manifest before anyone parses it. Of links only those are followed by
which a Hugging Face cache keeps its files. `write_folder` writes such folders. This module knows
nothing of models.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from learnkit.errors import BundleCorruptError, BundleError, BundleNotFoundError, number_of
from learnkit.storage.filesystem import open_regular
from learnkit.storage.formats import (
    HEADER_START,
    MAX_HEADER_BYTES,
    empty_tensors,
    parse_arrays,
    parse_json,
    parse_tensors,
)

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

MANIFEST = "manifest.json"
VARIANTS = "variants"
ON_HUB = "hf-hub:"  # begins the name of a bundle on the Hugging Face hub
MAX_MANIFEST_BYTES = 1_000_000
# What a stranger lists is not read before it is looked at. An ONNX file cannot be larger; of the
# networks that timm knows the largest takes 19 GB in float32.
MAX_BYTES = {".json": 16_000_000, ".md": 16_000_000, ".xml": 64_000_000, ".onnx": 2**31 - 1}
MAX_OTHER_BYTES = 32_000_000_000

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
    path: Path | None = None

    def json(self, name: str) -> dict[str, Any]:
        """The object in a JSON file; see `parse_json`."""
        return parse_json(self.bytes(name), name)

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """The numpy arrays in a safetensors file, by name; torch is not imported."""
        return parse_arrays(self.bytes(name), name)

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The torch tensors in a safetensors file, by name."""
        return parse_tensors(self.bytes(name), name)

    def empty_tensors(self, name: str) -> dict[str, Tensor]:
        """The torch tensors that the header of a safetensors file lists, without their values.

        The file itself need not have been read, nor is it now.
        """
        if name not in (listed := self.manifest["files"]):
            raise BundleCorruptError(f"{MANIFEST} does not list {name}")
        size = listed[name]["size"]
        head = _read_regular(self.path, name, size, only=HEADER_START)
        # a stranger says how long the header is: no more is read than one may have
        n_bytes = min(int.from_bytes(head, "little"), MAX_HEADER_BYTES) + HEADER_START
        head = _read_regular(self.path, name, size, only=n_bytes)
        return empty_tensors(head, size, name)

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
    # 12 digits, as `token_hex(6)` gives them to the writer
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
            larger than any of its kind; or the manifest is not `sha256`'s or breaks a rule.
        BundleError: the files have more bytes than there is memory.
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
    # the time, too: a new folder may get the number of one that was removed
    return found.st_ino, found.st_ctime_ns


def _read_once(folder: Path, sha256: str | None, wanted: Collection[str] | None) -> Folder:
    if not folder.exists():
        raise BundleNotFoundError(f"there is no bundle at {folder}: no such folder")
    if not folder.is_dir():
        raise BundleError(f"{folder} is a file; a bundle is a folder")
    manifest, digest = read_manifest(folder, sha256)
    listed = {
        name: entry
        for name, entry in manifest["files"].items()
        if (not name.startswith(f"{VARIANTS}/") if wanted is None else name in wanted)
    }
    # before anything is read: a few bytes of a manifest may list more than there is memory
    check_sizes(folder, {name: entry["size"] for name, entry in listed.items()})
    files = {name: _read_listed(folder, name, entry) for name, entry in listed.items()}
    return Folder(files, manifest, digest, folder)


def read_manifest(folder: Path, sha256: str | None) -> tuple[dict[str, Any], str]:
    """The manifest, its entries checked, and its digest."""
    if not os.path.lexists(folder / MANIFEST):
        inside = [one for one in islice(folder.iterdir(), _LOOKED_AT) if (one / MANIFEST).is_file()]
        there = f"; there is one in it: {min(inside)}" if inside else ""
        raise BundleNotFoundError(f"{folder} is not a bundle: it has no {MANIFEST}{there}")
    data = _read_regular(folder, MANIFEST, MAX_MANIFEST_BYTES, exact=False)
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
    # not isinstance: True is an int, too
    if type(size) is not int or size < 0 or not _SHA256.fullmatch(str(sha256)):
        raise BundleCorruptError(f"{MANIFEST} gives no sound size and sha256 for {name!r}")


def check_sizes(folder: Path, sizes: dict[str, int]) -> None:
    """Raise unless files of these sizes can be of their kinds, and all of them have room."""
    for name, size in sizes.items():
        most = MAX_BYTES.get(Path(name).suffix, MAX_OTHER_BYTES)
        if size > most:
            raise BundleCorruptError(
                f"{MANIFEST} lists {name} with {size} bytes; at most {most} are read"
            )
    total, free = sum(sizes.values()), _free_memory()
    if free is not None and total > free:
        raise BundleError(
            f"the bundle at {folder} has files of {total / 1e9:.1f} GB, and {free / 1e9:.1f} GB of "
            "memory are free; close other programs, or open it on a larger machine"
        )


def _free_memory() -> int | None:
    """Bytes that this process can still have; None where the system does not say."""
    found = []
    for path, pattern in _MEMORY:
        try:
            match = re.search(pattern, Path(path).read_text(encoding="ascii"), re.MULTILINE)
        except OSError:
            continue
        if match:
            # /proc/meminfo says kB for 1,024 bytes
            found.append(int(match[1]) * (1024 if match[0].endswith("kB") else 1))
    return min(found, default=None)


# Linux's, of the machine and of the container
_MEMORY = (
    ("/proc/meminfo", r"^MemAvailable:\s+(\d+) kB"),
    # "max" stands there where there is no limit, and does not match
    ("/sys/fs/cgroup/memory.max", r"^(\d+)$"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", r"^(\d+)$"),
)


def _read_listed(folder: Path, name: str, entry: dict[str, Any]) -> bytes:
    data = _read_regular(folder, name, entry["size"])
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise BundleCorruptError(
            f"{folder / name} is damaged: its sha256 is not the one in {MANIFEST}"
        )
    return data


def _read_regular(
    folder: Path, name: str, size: int, *, exact: bool = True, only: int | None = None
) -> bytes:
    """Content of a regular file of exactly (or at most) `size` bytes, or `only` its first bytes."""
    path = folder / name
    # O_NOFOLLOW looks at the last part of a path alone
    if "/" in name and (folder / VARIANTS).is_symlink():
        raise BundleCorruptError(f"{folder / VARIANTS} is a link; a bundle holds none")
    try:
        with _opened(folder, path) as file:
            # of the file that is open: by now its path may lead to another one
            found = os.fstat(file.fileno())
            if found.st_size > size or (exact and found.st_size != size):
                rule = f"{size:,} are in {MANIFEST}" if exact else f"at most {size:,} are read"
                raise BundleCorruptError(
                    f"{path} is {number_of(found.st_size, 'byte')} long; {rule}"
                )
            # one byte more shows a file that grows meanwhile
            data = file.read(size + 1 if only is None else only)
    except OSError as error:
        raise BundleCorruptError(f"{path} cannot be read: {error.strerror}") from error
    if only is None and len(data) != found.st_size:
        raise BundleCorruptError(f"{path} changed while it was read")
    return data


def _opened(folder: Path, path: Path) -> BinaryIO:
    """The file at `path`, or that behind it where `folder` is a snapshot of the hub."""
    if not path.is_symlink():
        return open_regular(path, follow=False)
    # one step of the link and no further: what it leads to must be a file itself
    target = Path(os.path.normpath(os.path.join(os.path.realpath(path.parent), os.readlink(path))))
    if target.parent != snapshot_blobs(folder):
        raise BundleCorruptError(
            f"{path} cannot be read: it is a link, and a bundle holds none but those of a Hugging "
            "Face cache; copy the bundle with its files, as `cp -rL` does, and open the copy"
        )
    return open_regular(target, follow=False)


def snapshot_blobs(folder: Path) -> Path | None:
    """Where the files of a snapshot in a Hugging Face cache are; None for any other folder.

    Such a cache has `models--OWNER--NAME/snapshots/COMMIT`, in which links lead to `blobs` beside
    `snapshots`.
    """
    snapshot = Path(os.path.realpath(folder))
    if snapshot.parent.name != "snapshots":
        return None
    blobs = snapshot.parent.parent / "blobs"
    return blobs if blobs.is_dir() and not blobs.is_symlink() else None
