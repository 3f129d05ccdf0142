"""A store of equal rows of bytes: one memory-mapped file that only grows, and a log of its rows.

Row and log line of it are written in this order, the row synced before the line, so that whatever
the log tells is there, whenever the process dies. What a killed writer left behind the last line
is written over by the next one. Nothing that was told is ever changed: readers in other processes
go on while a writer appends.
"""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from learnkit.errors import DataError, warn_user
from learnkit.storage.filesystem import try_lock, write_file

ABOUT, ROWS, LOG = "store.json", "rows.u8", "rows.log"
_KIND, _VERSION = "learnkit rows", 1


@dataclass(frozen=True)
class StoredRow:
    """Where the row of a file is, and which content of the file it was made of.

    Attributes:
        row: its number.
        size: of the file, in bytes.
        mtime_ns: when the file was changed last, in nanoseconds.
        sha256: of its content, in hex.
    """

    row: int
    size: int
    mtime_ns: int
    sha256: str


class RowStore:
    """Rows of one shape by the names of the files that they were made of.

    Args:
        folder: Absent, empty, or of a store. It is made by the first writer.
        shape: Of a row of uint8.
        recipe: JSON types: how a file becomes a row.

    Raises:
        DataError: The folder holds something else, or rows by another recipe or shape.
    """

    def __init__(
        self, folder: str | os.PathLike[str], shape: tuple[int, ...], recipe: Mapping[str, Any]
    ) -> None:
        self.folder, self.shape = Path(os.path.abspath(folder)), tuple(shape)
        self.recipe = dict(recipe)
        self.n_bytes = int(np.prod(self.shape))
        self._check()
        self.entries = self._read_log()[0]

    def refresh(self) -> None:
        """Take in what other processes wrote since."""
        self.entries = self._read_log()[0]

    def rows(self) -> np.ndarray:
        """Read-only memory-mapped uint8 (n_rows, *shape); the log may not tell of them all."""
        n_rows = 1 + max((entry.row for entry in self.entries.values()), default=-1)
        if not n_rows:
            return np.empty((0, *self.shape), np.uint8)
        return np.memmap(self.folder / ROWS, np.uint8, "r", shape=(n_rows, *self.shape))

    @contextlib.contextmanager
    def writing(self) -> Iterator[Callable[[list[tuple[str, StoredRow, bytes | None]]], None]]:
        """What appends [(name, entry, bytes of the row)], while no other process does.

        The row number of an entry is chosen here; without bytes it is kept: the line alone is new.
        Another writer is waited for.

        Raises:
            DataError: The disk refused; what the log tells is there.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with contextlib.ExitStack() as files:
                rows = files.enter_context(_opened(self.folder / ROWS))
                _wait_for_lock(rows, self.folder)
                # again, as nobody else writes now: another may have made the store meanwhile
                self._check()
                if not (self.folder / ABOUT).exists():
                    text = json.dumps(self._about(), indent=1).encode()
                    write_file(self.folder / ABOUT, lambda file: file.write(text))
                log = files.enter_context(_opened(self.folder / LOG))
                self.entries, told = self._read_log()
                os.ftruncate(log, told)  # the half of a line is no beginning for another
                yield lambda rows_: self._append(rows, log, rows_)
        except OSError as error:
            raise DataError(
                f"the store {str(self.folder)!r} could not be written: {error.strerror or error}; "
                "free space or choose a folder you may write to. What is stored stays, and is gone "
                "on from"
            ) from error

    def _append(
        self, rows: int, log: int, added: list[tuple[str, StoredRow, bytes | None]]
    ) -> None:
        # by the log: rows that a killed writer left without a line are written over
        n_rows = 1 + max((entry.row for entry in self.entries.values()), default=-1)
        entries = {}
        for name, entry, pixels in added:
            if pixels is not None:
                if len(pixels) != self.n_bytes:
                    raise ValueError(f"a row of {len(pixels)} bytes; they have {self.n_bytes}")
                entry = StoredRow(n_rows, *astuple(entry)[1:])
                _write_at(rows, pixels, n_rows * self.n_bytes)
                n_rows += 1
            entries[name] = entry
        # before the lines are written: what the log tells of must be on the disk
        os.fsync(rows)
        lines = [json.dumps([name, *astuple(entry)]) for name, entry in entries.items()]
        _write_at(log, "".join(f"{line}\n" for line in lines).encode(), os.fstat(log).st_size)
        os.fsync(log)
        self.entries |= entries

    def _about(self) -> dict[str, Any]:
        return {"kind": _KIND, "version": _VERSION, "shape": self.shape, "recipe": self.recipe}

    def _check(self) -> None:
        """Raise DataError unless the folder is absent, empty or a store of this recipe."""
        try:
            about = json.loads((self.folder / ABOUT).read_text(encoding="utf-8"))
        except FileNotFoundError:
            others = set(os.listdir(self.folder)) if self.folder.is_dir() else set()
            if ABOUT in others:  # a first writer has written it since it was asked for
                self._check()
                return
            if others - {ROWS, LOG, f".{ABOUT}.tmp"}:  # those of a first writer that was killed
                raise DataError(
                    f"{str(self.folder)!r} is no store and holds other files, such as "
                    f"{min(others)!r}; choose a new or empty folder"
                ) from None
            return
        except (OSError, ValueError) as error:
            raise DataError(
                f"{str(self.folder / ABOUT)!r} cannot be read ({error}); choose another folder"
            ) from error
        # as it is read back: tuples become lists
        wanted = json.loads(json.dumps(self._about()))
        if about == wanted:
            return
        found = about.get("recipe") if isinstance(about, dict) else None
        found, recipe = found if isinstance(found, dict) else {}, wanted["recipe"]
        names = {*found, *recipe}
        differ = [
            f"{name} {found.get(name)!r} there, {recipe.get(name)!r} here"
            for name in sorted(names)
            if found.get(name) != recipe.get(name)
        ]
        raise DataError(
            f"the store {str(self.folder)!r} was made by another recipe "
            f"({'; '.join(differ[:3]) or 'or another version'}); use that one, or another folder"
        )

    def _read_log(self) -> tuple[dict[str, StoredRow], int]:
        """(rows by name, bytes of the log that tell of them); the last line of a name counts."""
        try:
            # the log before the size of the rows: what it tells of by then is in them
            text = (self.folder / LOG).read_bytes()
            n_there = os.stat(self.folder / ROWS).st_size // self.n_bytes
        except FileNotFoundError:
            return {}, 0
        # a last line without its end was cut off by a kill
        told = text.rfind(b"\n") + 1
        entries = {}
        for line in text[:told].splitlines():
            with contextlib.suppress(ValueError, TypeError):  # damaged: its row is made again
                name, *fields = json.loads(line)
                entry = StoredRow(*fields)
                if 0 <= entry.row < n_there:
                    entries[name] = entry
        return entries, told


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    """Descriptor of a file to read and write, made if it is not there."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags, 0o666)
    try:
        yield descriptor
    finally:
        os.close(descriptor)  # gives the lock back; so does the death of the process


def _write_at(descriptor: int, data: bytes, offset: int) -> None:
    os.lseek(descriptor, offset, os.SEEK_SET)
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _wait_for_lock(descriptor: int, folder: Path) -> None:
    """Return once this process alone writes, or where the disk has no locks."""
    told = False
    while try_lock(descriptor) is None:
        if not told:
            warn_user(f"another process is filling the store {str(folder)!r}; waiting for it")
        told = True
        time.sleep(0.1)
