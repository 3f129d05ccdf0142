"""A folder of files takes another's place as a whole or not at all.

A temporary sibling is filled and synced, `manifest.json` last, and then takes the target's place in
one rename. Whatever call fails, and whenever the process dies, the target is the old folder or the
new one. What dead writers left behind is swept by the next.
"""

import contextlib
import errno
import hashlib
import os
import secrets
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from learnkit.errors import BundleError, BundleWriteError
from learnkit.storage.filesystem import FileSystem, check_path, sync_folder, try_lock
from learnkit.storage.formats import to_json
from learnkit.storage.read_folder import (
    MANIFEST,
    ON_HUB,
    VARIANTS,
    is_plain_name,
    leftovers,
    read_manifest,
    set_aside,
    snapshot_blobs,
)

LOCK_SECONDS = 60
_DEAD_SECONDS = 86_400  # where there are no locks, nobody writes one bundle for a day
_SLACK_BYTES = 1 << 16  # folders, and rounding to blocks


def write_folder(
    path: str | os.PathLike,
    files: Mapping[str, bytes],
    *,
    about: Mapping[str, Any] | None = None,
    replaces: str | None = None,
    fs: FileSystem | None = None,
) -> str:
    """SHA-256 (hex) of the manifest of the folder now at `path`.

    Args:
        path: absent, an empty folder, or a folder written by this function to which nothing was
            added. Missing parents are created.
        files: content of every file by its name; names are plain, or plain ones under `variants/`.
        about: further entries of the manifest.
        replaces: SHA-256 (hex) of the manifest of the only folder whose place it may take.
        fs: the calls to the system.

    Raises:
        BundleWriteError: the target is something else, or the disk refused. The old folder still
            stands, unless the message says that the new one does.
    """
    check_local(path)
    # not resolved: `check_target` must see a link as a link
    fs, target = fs or FileSystem(), Path(os.path.abspath(path))
    manifest = to_json({**(about or {}), "files": _entries(files)})
    # before parents are made, which would be foreign files in a bundle around them
    check_outside(target)
    try:
        _make_parents(target.parent, fs)
        with _only_writer(target.parent) as alone:
            # first: what a dead writer set aside is the target again, and leftovers take no room
            _clean_up(target, alone, fs)
            check_target(target)
            _check_replaced(target, replaces)
            _check_space(target, sum(map(len, files.values())) + len(manifest), fs)
            _replace(target, {**files, MANIFEST: manifest}, fs)
    # it is an OSError, too, and says already what happened
    except BundleWriteError:
        raise
    except OSError as error:
        raise BundleWriteError(
            f"the bundle could not be written to {target}: {error.strerror or error}. What stood "
            "there is unchanged; free space or choose a folder you may write to, then save again"
        ) from error
    # outside of the `try`, whose message says that nothing has changed: now the new bundle stands
    _sync_parent(target, fs)
    return hashlib.sha256(manifest).hexdigest()


def _entries(files: Mapping[str, bytes]) -> dict[str, dict[str, Any]]:
    """Size and hash of every file; refuses names the reader would refuse."""
    for name in files:
        if not is_plain_name(name) or name == MANIFEST:
            raise BundleWriteError(
                f"{name!r} cannot name a file in a bundle: use letters, digits, _ . -"
            )
    return {
        name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in sorted(files.items())
    }


def _check_replaced(target: Path, sha256: str | None) -> None:
    """Raise if another bundle than this one is at `target`: its changes would be lost."""
    if sha256 is None or not os.path.lexists(target / MANIFEST):
        return
    if (found := read_manifest(target, None)[1]) != sha256:
        raise BundleWriteError(
            f"the bundle {target} is another one by now: something else wrote it (sha256 "
            f"{found[:12]}) after it was read or saved here (sha256 {sha256[:12]}), and its "
            "changes would be lost. Load it again and repeat the change, save to another path, or "
            "move that bundle away first"
        )


def _make_parents(folder: Path, fs: FileSystem) -> None:
    for parent in reversed([folder, *folder.parents]):
        if not parent.exists():
            with contextlib.suppress(FileExistsError):  # another writer was faster
                fs.mkdir(parent)


def _check_space(target: Path, n_bytes: int, fs: FileSystem) -> None:
    free = fs.free_bytes(target.parent)
    if free < n_bytes + _SLACK_BYTES:
        raise BundleWriteError(
            f"no space left for the bundle: {target} needs {n_bytes / 1e6:.1f} MB, "
            f"{free / 1e6:.1f} MB are free. What stood there is unchanged; free space or choose "
            "another disk"
        )


def _fill(folder: Path, files: Mapping[str, bytes], fs: FileSystem) -> None:
    """Write and sync `files` in their order (the manifest comes last)."""
    variants = folder / VARIANTS
    if any(name.startswith(f"{VARIANTS}/") for name in files):
        fs.mkdir(variants)
    for name, data in files.items():
        _write_new(folder / name, data, fs)
    if variants.exists():
        sync_folder(variants, fs)
    sync_folder(folder, fs)


def _write_new(path: Path, data: bytes, fs: FileSystem) -> None:
    """Write a file that is not there yet, and wait until the disk has it."""
    descriptor = fs.open(path)
    try:
        rest = memoryview(data)
        while rest:
            # the system may write less than it is given
            rest = rest[fs.write(descriptor, rest) :]
        fs.fsync(descriptor)
    finally:
        fs.close(descriptor)


def _sync_parent(target: Path, fs: FileSystem) -> None:
    try:
        sync_folder(target.parent, fs)
    except OSError as error:
        raise BundleWriteError(
            f"the new bundle stands at {target} and is complete, but the disk did not confirm it "
            f"({error.strerror}): save again before you rely on it after a power failure"
        ) from error


@contextlib.contextmanager
def _only_writer(parent: Path) -> Iterator[bool]:
    """True while no other process writes bundles in `parent`; False where folders have no locks."""
    descriptor = FileSystem().open_folder(parent)
    if descriptor is None:
        yield False
        return
    try:
        yield _wait_for_lock(descriptor, parent)
    finally:
        os.close(descriptor)  # gives the lock back; so does the death of the process


def _wait_for_lock(descriptor: int, parent: Path) -> bool:
    """True once this process holds the lock, False where there are none."""
    deadline = time.monotonic() + LOCK_SECONDS
    while (held := try_lock(descriptor)) is None:
        if time.monotonic() > deadline:
            raise BundleWriteError(
                f"another process has been writing a bundle in {parent} for {LOCK_SECONDS} s; "
                "wait for it, or choose another folder"
            )
        time.sleep(0.01)
    return held


def _replace(target: Path, files: Mapping[str, bytes], fs: FileSystem) -> None:
    """Fill a temporary sibling, swap it in, and remove what stood at `target`."""
    folder = target.with_name(f".{target.name}.new-{secrets.token_hex(6)}")
    fs.mkdir(folder)
    try:
        _fill(folder, files, fs)
        _swap(folder, target, fs)
    finally:
        with contextlib.suppress(OSError):  # what cannot be removed now is swept by the next writer
            fs.remove_tree(folder)


def _swap(folder: Path, target: Path, fs: FileSystem) -> None:
    """Put `folder` at `target`; afterwards `folder` is gone, or holds what stood at `target`."""
    try:
        fs.rename(folder, target)
    except OSError as error:
        # POSIX allows either for a folder that is not empty
        if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
            raise
        if not fs.exchange(folder, target):
            _swap_by_renames(folder, target, fs)


def _swap_by_renames(folder: Path, target: Path, fs: FileSystem) -> None:
    """Between the two renames nothing stands at `target`; readers then use what was set aside."""
    aside = target.with_name(f".{target.name}.old-{secrets.token_hex(6)}")
    fs.rename(target, aside)
    try:
        fs.rename(folder, target)
    except OSError:
        os.rename(aside, target)
        raise
    with contextlib.suppress(OSError):
        fs.remove_tree(aside)


def _clean_up(target: Path, alone: bool, fs: FileSystem) -> None:
    """Undo and remove what dead writers left beside `target`."""
    # back first: the sweep below would take the only copy for a leftover
    if aside := set_aside(target):
        fs.rename(aside, target)
    left = leftovers(target, "old") + leftovers(target, "new")
    for folder in left:
        with contextlib.suppress(OSError):
            if alone or time.time() - folder.stat().st_mtime > _DEAD_SECONDS:
                fs.remove_tree(folder)


# what macOS and Windows put into folders that somebody looks at
_DESKTOP_LITTER = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})


def check_target(target: Path) -> None:
    """Raise unless `target` is absent, an empty folder, or a bundle without foreign files."""
    check_local(target)
    check_outside(target)
    if snapshot_blobs(target) is not None:
        raise BundleWriteError(
            f"{target} is a snapshot in a Hugging Face cache, which holds what the hub does and "
            "nothing else: choose another path"
        )
    if not os.path.lexists(target):
        return
    mode = target.lstat().st_mode
    if not stat.S_ISDIR(mode):
        kind = "a link" if stat.S_ISLNK(mode) else "a file" if stat.S_ISREG(mode) else "a device"
        raise BundleWriteError(
            f"{target} is {kind}; a bundle replaces nothing but a bundle: choose another path"
        )
    if foreign := _foreign_files(target):
        shown = ", ".join(foreign[:3]) + (", ..." if len(foreign) > 3 else "")
        raise BundleWriteError(
            f"{target} is a folder with files that no bundle put there ({shown}); a bundle "
            "replaces nothing but a bundle: choose another path, or move them away first"
        )


def check_local(target: str | os.PathLike) -> None:
    """Raise if `target` is no path, or a place on the hub, for which no folder is to be taken."""
    check_path(target, BundleWriteError)
    if Path(target).as_posix().startswith(ON_HUB):
        raise BundleWriteError(
            f"{os.fspath(target)} is no folder: a bundle is written to one, and gets to the hub by "
            "Predictor.push_to_hub; choose a folder"
        )


def check_outside(target: Path) -> None:
    """Raise if `target` is inside a bundle, which would not be one any more."""
    if around := next(filter(_is_bundle, Path(os.path.abspath(target)).parents), None):
        raise BundleWriteError(
            f"{target} is inside the bundle {around}; a bundle holds nothing but what it lists: "
            "choose another path"
        )


def _is_bundle(folder: Path) -> bool:
    """Whether there is a bundle's manifest; others may have files of that name, too."""
    if not os.path.isfile(folder / MANIFEST):
        return False
    try:
        return "schema" in read_manifest(folder, None)[0]
    except BundleError:
        return False


def _foreign_files(folder: Path) -> list[str]:
    """What is in `folder` and not in its manifest; everything, if it has no sound manifest."""
    found = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*")}
    try:
        known = {MANIFEST, VARIANTS, *read_manifest(folder, None)[0]["files"]}
    except BundleError:
        known = set()
    return sorted(
        name for name, p in found.items() if name not in known and p.name not in _DESKTOP_LITTER
    )
