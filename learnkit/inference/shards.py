"""A piece of work on many files in shards, on disk: each is there whole, or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from learnkit.errors import PredictionFileError
from learnkit.storage.filesystem import FileSystem, sync_folder, write_file

try:
    import fcntl
except ImportError:  # Windows: folders have no locks
    fcntl = None  # type: ignore[assignment]

_JOB = "job.json"


class Shards:
    """The folder of unfinished work: `job.json` says what it is, `000000.jsonl`, ... have its rows.

    Args:
        folder: exists while there is unfinished work.
    """

    def __init__(self, folder: Path):
        self.folder, self._fs = folder, FileSystem()

    def job(self) -> dict[str, Any] | None:
        """What the work is; None if none was begun."""
        try:
            found = json.loads((self.folder / _JOB).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError:
            return {}  # like no work that could be asked for
        return found if isinstance(found, dict) else {}

    def begin(self, job: Mapping[str, Any]) -> None:
        """Drop whatever work there was, and begin `job`."""
        for path in self.folder.iterdir():
            path.unlink()
        self._write(_JOB, json.dumps(job))

    def add(self, number: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the rows of one shard."""
        self._write(_name(number), "".join(json.dumps(row) + "\n" for row in rows))

    def rows(self, number: int) -> list[dict[str, Any]] | None:
        """The rows of one shard; None if it is not there, or damaged."""
        try:
            text = (self.folder / _name(number)).read_text(encoding="utf-8")
            return [json.loads(line) for line in text.splitlines()]
        except (FileNotFoundError, ValueError):
            return None

    def finish(self, made: Path, target: Path) -> None:
        """Put the file `made` inside the folder at `target`, and drop the folder."""
        with made.open("rb+") as file:
            self._fs.fsync(file.fileno())
        os.replace(made, target)
        sync_folder(target.parent, self._fs)
        shutil.rmtree(self.folder)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """While no other process works in the folder, which is made if need be.

        Raises:
            PredictionFileError: another process does.
        """
        self.folder.mkdir(exist_ok=True)
        if fcntl is None:
            yield
            return
        descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            _lock(descriptor, self.folder)
            yield
        finally:
            os.close(descriptor)  # gives the lock back; so does the death of the process

    def _write(self, name: str, text: str) -> None:
        write_file(self.folder / name, lambda file: file.write(text.encode("ascii")))


def _name(number: int) -> str:
    return f"{number:06d}.jsonl"


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise PredictionFileError(
            f"another process is at work in {str(folder)!r}; wait for it, or name another file"
        ) from error
    except OSError:
        return  # a disk without locks
