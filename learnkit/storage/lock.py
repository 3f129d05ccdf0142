"""The lock of a bundle or folder that is being written to: one program at a time, until it ends."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from learnkit.errors import ServingError
from learnkit.storage.filesystem import try_lock

_TAUGHT = ("is being taught by", "save elsewhere with --out")


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
        os.kill(int(holder), 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
