"""The log of predictions until they are a table: one file that only grows, every line checked.

    {"learnkit predictions": 3, ...}    the job: whose predictions of which files
    0 64 [{"path": ...}, ...]           number of the first row, number of rows; the rows
    64 64 [...]

and after each a tab and its CRC-32. A line that was torn when a process or a disk died, or that was
damaged since, counts as not written; the others stay.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from learnkit.errors import PredictionError, PredictionFileError
from learnkit.inference.prediction_table import Row
from learnkit.storage.filesystem import FileSystem, sync_folder, try_lock

_KIND, _VERSION = "learnkit predictions", 3
_LONGEST_HEADER = 4096
_PARTS_OF_A_JOB = {
    _KIND: "of another version of learnkit",
    "model": "of another model",
    "files": "of other files",
    "probs": "with other columns",
}
_START_ANEW = "`resume=False` starts anew and replaces it, another `out` leaves it"


def refusal(place: str, what: str, found: Any) -> PredictionError:
    """The error about predictions at `place` that are not those of the job at hand."""
    return PredictionError(
        f"{place!r} holds predictions {what} ({found!r:.80}) than is asked for now; {_START_ANEW}"
    )


class PredictionLog:
    """Rows that are predicted so far, by their numbers; the file is open and locked."""

    def __init__(self, path: Path, file: BinaryIO):
        self.path, self._file = path, file
        self._records: dict[int, tuple[int, int]] = {}  # first row: (place in the file, rows)
        self._end = 0

    def begin(self, job: Mapping[str, Any], *, resume: bool) -> None:
        """Take up what is there of `job`, or begin it.

        Raises:
            PredictionError: `resume`, and what is there is of another job.
            PredictionFileError: what is there is no log.
        """
        header = _line(json.dumps({_KIND: _VERSION, **job}).encode())
        # no more than that: what lies there may be another file, of one endless line
        first = self._file.readline(_LONGEST_HEADER)
        # an empty file, just made, passes
        if not header.startswith(first[: len(_KIND)]):
            raise PredictionFileError(
                f"{str(self.path)!r} holds something else than predictions; move it away, or name "
                "another file"
            )
        # a process may die while it writes the first line, before there is anything to go on with
        if not resume or (len(first) < len(header) and header.startswith(first)):
            self._file.truncate(0)
            self._write(header)
            # a new file's content may be on the disk while its name is not
            sync_folder(self.path.parent, FileSystem())
        elif first != header:
            found, wanted = json.loads(_content(first) or "{}"), {_KIND: _VERSION, **job}
            name = next((name for name in wanted if found.get(name) != wanted[name]), _KIND)
            raise refusal(str(self.path), _PARTS_OF_A_JOB[name], found.get(name))
        else:
            self._index(len(header))

    def missing(self, n_rows: int) -> list[range]:
        """Numbers of the rows that are not there yet, as ranges in order."""
        gaps, start = [], 0
        for first in sorted(self._records):
            if start < first:
                gaps.append(range(start, first))
            start = first + self._records[first][1]
        return gaps + ([range(start, n_rows)] if start < n_rows else [])

    def append(self, first: int, rows: Sequence[Row]) -> None:
        """Add rows, the one numbered `first` and those after it; they are on the disk then."""
        end = self._end
        self._write(_line(f"{first} {len(rows)} {json.dumps(rows)}".encode()))
        self._records[first] = (end, len(rows))

    def rows(self) -> Iterator[Row]:
        """All rows in the order of their numbers, those of one record in memory at a time.

        Raises:
            PredictionFileError: the disk gives something else than what was written to it.
        """
        for first in sorted(self._records):
            self._file.seek(self._records[first][0])
            content = _content(self._file.readline())
            if content is None:
                raise PredictionFileError(
                    f"{str(self.path)!r} was damaged while it was in use; call again, which "
                    "predicts what is lost"
                )
            yield from json.loads(content.split(b" ", 2)[2])

    def remove(self) -> None:
        """Drop the file, now that its rows are elsewhere."""
        if os.name == "nt":  # which removes no open file
            self._file.close()
        self.path.unlink()

    def _index(self, end: int) -> None:
        """Look at the records from `end` on, and cut off the last if it is torn."""
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            # a damaged line is predicted again, but keeps its place: what follows it is still read
            if (content := _content(line)) is not None:
                first, n_rows = map(int, content.split(b" ", 2)[:2])
                self._records[first] = (end, n_rows)
            end += len(line)
        self._file.truncate(end)
        self._end = end

    def _write(self, line: bytes) -> None:
        self._file.seek(0, os.SEEK_END)  # reading leaves the file in the middle
        self._file.write(line)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._end += len(line)


@contextmanager
def opened_log(path: Path) -> Iterator[PredictionLog]:
    """The log at `path`, made if need be, while no other process uses it.

    Raises:
        PredictionFileError: another process does, or an earlier version of learnkit left its work
            there.
    """
    if path.is_dir():
        raise PredictionFileError(
            f"{str(path)!r} is a folder, as earlier versions of learnkit kept unfinished "
            "predictions in; go on with the version that made it, or remove it to start anew"
        )
    with _locked(path) as file:
        yield PredictionLog(path, file)


@contextmanager
def _locked(path: Path) -> Iterator[BinaryIO]:
    while True:
        # to append: "w" would empty what another process is writing, before the lock is asked for
        with open(path, "a+b") as file:
            if try_lock(file.fileno()) is None:
                raise PredictionFileError(
                    f"another process is at work in {str(path)!r}; wait for it, or name another "
                    "file"
                )
            # whoever held the lock until now may have finished, and removed what was opened here
            if _is_at(path, file):
                file.seek(0)
                yield file
                return


def _is_at(path: Path, file: BinaryIO) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _line(content: bytes) -> bytes:
    return content + b"\t%08x\n" % zlib.crc32(content)


def _content(line: bytes) -> bytes | None:
    """What `_line` made a line of; None if it is torn or damaged."""
    content = line.rpartition(b"\t")[0]
    return content if line == _line(content) else None
