"""The file system: files that are whole or not there, locks, and the calls a folder is written by.

Tests pass a `FileSystem` that fails, or ends the process, at its N-th call.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from learnkit.errors import ServingError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


_TAUGHT = ("is being taught by", "save elsewhere with --out")


def check_path(path: Any, error: type[Exception], name: str = "path") -> None:
    """Raise `error` unless `path` is one: a text, or what stands for a path as `Path` does."""
    if not isinstance(path, str | os.PathLike):
        raise error(
            f"`{name}` is {path!r:.100} ({type(path).__name__}); give a path, as a text or a Path"
        )


class FileSystem:
    """The calls by which a folder reaches the disk, one method each."""

    def mkdir(self, path: Path) -> None:
        """Create a folder; its mode follows the umask."""
        os.mkdir(path)

    def open(self, path: Path) -> int:
        """Descriptor of a new file; its mode follows the umask."""
        # safetensors' own writing makes files of mode 0600, which no other user can serve
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        return os.open(path, flags, 0o666)

    def open_folder(self, path: Path) -> int | None:
        """Descriptor of a folder, None where the system has none (Windows)."""
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY) if hasattr(os, "O_DIRECTORY") else None

    def write(self, descriptor: int, data: memoryview) -> int:
        """Number of bytes written, possibly fewer than given."""
        return os.write(descriptor, data)

    def fsync(self, descriptor: int) -> None:
        """Wait until the disk has it."""
        os.fsync(descriptor)

    def close(self, descriptor: int) -> None:
        """Close a descriptor."""
        os.close(descriptor)

    def free_bytes(self, path: Path) -> int:
        """Bytes this user may still write on the disk that holds `path`."""
        return shutil.disk_usage(path).free

    def rename(self, old: Path, new: Path) -> None:
        """Rename a folder; `new` may be absent or an empty folder, nothing else is replaced."""
        os.rename(old, new)

    def exchange(self, one: Path, other: Path) -> bool:
        """Swap two paths in one step; False where the system or the disk cannot."""
        return _renameat2_exchange(one, other)

    def remove_tree(self, path: Path) -> None:
        """Remove a folder and all in it."""
        shutil.rmtree(path)


def _renameat2_exchange(one: Path, other: Path) -> bool:
    """Linux's `renameat2(RENAME_EXCHANGE)`, which Python does not offer."""
    if not sys.platform.startswith("linux"):
        return False
    # glibc has it from 2.28 on
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    here, flag = -100, ctypes.c_uint(2)  # AT_FDCWD, RENAME_EXCHANGE
    if renameat2(here, os.fsencode(one), here, os.fsencode(other), flag) == 0:
        return True
    code = ctypes.get_errno()
    # ENOSYS: an old kernel; EINVAL: this disk has no exchange
    if code in {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP}:
        return False
    raise OSError(code, os.strerror(code), str(one), None, str(other))


def write_file(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Replace the file at `path` by what `write` puts into the one it is given.

    A temporary sibling is filled and synced, and takes the place of `path` in one rename. Whatever
    `write` or the disk raises comes through, and `path` is as it was.
    """
    # beside it: a rename is one step only within a file system
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            # Python's own buffer first: fsync knows of what the system has
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    # Ctrl-C, too, leaves nothing beside the old file
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    # a new name is on the disk only once its folder is synced
    sync_folder(path.parent, FileSystem())


def open_regular(path: str | os.PathLike[str], *, follow: bool = True) -> BinaryIO:
    """A regular file, open for reading; a link is followed unless `follow` is False.

    Raises:
        OSError: it cannot be opened, or is a pipe, a socket or a device, which might keep a reader
            waiting for ever, or a link that is not followed.
    """
    # without O_NONBLOCK, opening a pipe waits for a writer, and no Ctrl-C ends that
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    flags |= 0 if follow else getattr(os, "O_NOFOLLOW", 0)
    file = open(path, "rb", opener=lambda name, _: os.open(name, flags))  # noqa: SIM115
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise OSError(errno.EINVAL, "it is a pipe or a device, no regular file", os.fspath(path))


def try_lock(descriptor: int) -> bool | None:
    """True if this process has the lock now, None if another has, False where there are none."""
    if fcntl is None:
        return False
    try:
        # not lockf, whose lock goes as any other descriptor of the file is closed
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return None
    except OSError:  # a disk without locks
        return False
    return True


@contextlib.contextmanager
def locked(target: Path, said: tuple[str, str] = _TAUGHT) -> Iterator[None]:
    """Hold the lock NAME.lock beside a bundle; the number of this process is in it.

    A file that a program left behind when it was killed is no lock any more.

    Args:
        target: bundle, or folder.
        said: what another program does with it, and what to do instead of stopping that.

    Raises:
        ServingError: another program has it.
    """
    path = Path(f"{os.path.abspath(target)}.lock")
    descriptor = _held(path, target, said)
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        # while it is held, so that nobody takes a file that is then removed
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(descriptor)


def _held(path: Path, target: Path, said: tuple[str, str]) -> int:
    """Descriptor of the lock's file, which this process has now."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        has = try_lock(descriptor)
        holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
        # where the disk has no locks, the number in the file is all there is
        if has is None or (has is False and _is_alive(holder)):
            os.close(descriptor)
            raise ServingError(
                f"{target} {said[0]} another program"
                + (f" (process {holder})" if holder else "")
                + f"; stop that one first, or {said[1]}"
            )
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(path), os.fstat(descriptor)):
                return descriptor
        os.close(descriptor)  # of a file that its holder has just removed


def _is_alive(holder: str) -> bool:
    """Whether there is another process of this number."""
    if not holder.isdecimal() or int(holder) == os.getpid():
        return False
    try:
        # signal 0 is not sent: it asks whether the process is there
        os.kill(int(holder), 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def sync_folder(folder: Path, fs: FileSystem) -> None:
    """Wait until the disk has the names in `folder`."""
    descriptor = fs.open_folder(folder)
    if descriptor is not None:
        try:
            fs.fsync(descriptor)
        finally:
            fs.close(descriptor)
