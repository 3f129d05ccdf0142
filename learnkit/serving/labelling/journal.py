"""The journal of labelling: an append-only log of JSON lines, on the disk before anything is done.

A line that a crash cut off is taken out when the file is opened; every other line must be whole.
What has become of all that was asked for is the lines read again, one after the other: `replay`.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from learnkit.errors import ServingError

Line = dict[str, Any]
NAMED = "label"  # what an image is of; the other verbs put it aside or change classes
ASIDE = ("skip", "unusable", "ask", "sure")
CLASSES = ("rename", "merge", "forget")
_OUTCOMES = ("learned", "refused", "moved")
_OF_IMAGE = ("id", "sha", "name", "said", "p", "ood", "flagged", "blind")


class Journal:
    """The lines in a file, and one more at a time, each on the disk before `append` returns.

    Args:
        path: of the file, which is made.
        clock: gives seconds since 1970.

    Raises:
        ServingError: a line other than the last is damaged.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time):
        self.path, self._clock, self._lock = path, clock, threading.Lock()
        # O_BINARY: Windows writes two bytes for each line's end otherwise, and `_size` counts one
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o600)
        self.lines, self._size = _whole_lines(path)
        os.ftruncate(self._file, self._size)

    def append(self, line: Mapping[str, Any]) -> Line:
        """The line as it was written, with the time `t` in front.

        Raises:
            OSError: it could not be written; the file is as before.
        """
        whole = {"t": stamp(self._clock()), **line}
        data = json.dumps(whole, allow_nan=False).encode("ascii") + b"\n"
        with self._lock:
            os.ftruncate(self._file, self._size)  # what an earlier failure may have left
            os.lseek(self._file, self._size, os.SEEK_SET)
            try:
                # `write` may take a part only, as on a disk that becomes full
                left = memoryview(data)
                while left:
                    left = left[os.write(self._file, left) :]
                os.fsync(self._file)
            except OSError:
                os.ftruncate(self._file, self._size)
                raise
            self._size += len(data)
            self.lines.append(whole)
        return whole

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def stamp(seconds: float) -> str:
    """A moment in ISO 8601, in UTC, to the millisecond.

    >>> stamp(0.1234)
    '1970-01-01T00:00:00.123Z'
    """
    # milliseconds are cut off, not rounded, which could give 1000 of them
    when = datetime.fromtimestamp(int(seconds), timezone.utc)
    return f"{when:%Y-%m-%dT%H:%M:%S}.{int(seconds % 1 * 1000):03d}Z"


def seconds_of(t: str) -> float:
    """Seconds since 1970 of a `stamp`.

    >>> seconds_of(stamp(1e9 + 0.25))
    1000000000.25
    """
    return datetime.strptime(t, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=timezone.utc).timestamp()


def _whole_lines(path: Path) -> tuple[list[Line], int]:
    """The lines of a journal, and how many bytes they are; a torn last line is left out."""
    data = path.read_bytes()
    found, size = [], 0
    pieces = data.split(b"\n")[:-1]  # what stands behind the last line's end was cut off
    for number, piece in enumerate(pieces, 1):
        try:
            line = json.loads(piece)
            if not isinstance(line, dict) or not isinstance(line.get("do"), str):
                raise ValueError("no object with `do`")
        except ValueError as error:
            if number == len(pieces):
                break  # a disk may write the end of a line before its middle
            raise ServingError(
                f"line {number} of {path} is damaged ({error}); put the file aside, or take the "
                "line out: labels before and behind it are whole"
            ) from None
        found.append(line)
        size += len(piece) + 1
    return found, size


@dataclass
class Change:
    """One thing a person did, and what became of it.

    Attributes:
        key: what it is known by.
        do: "label", "skip", "unusable", "ask", "sure", "rename", "merge" or "forget".
        images: of it, each with `id`, `sha`, `name`, and what the model said of it.
        line: number of its line in the journal, from 1.
        state: "queued", "learned", "refused", "moved" or "undone".
        sealed: whether the model that all starts from has learned it.
        about: the rest of its line.
    """

    key: str
    do: str
    images: list[Line]
    line: int
    state: str = "queued"
    sealed: bool = False
    about: Line = field(default_factory=dict)

    @property
    def label(self) -> str | None:
        """The class it names."""
        return self.about.get("label")

    @property
    def counts(self) -> bool:
        """Whether it is in force: neither taken back nor refused."""
        return self.state not in ("undone", "refused")


class Changes:
    """All changes in their order, and which of them speaks last for each image."""

    def __init__(self) -> None:
        self.by_key: dict[str, Change] = {}
        self._of_image: dict[str, list[Change]] = {}
        self.of_classes: list[Change] = []
        self.base: str | None = None
        self.digests: set[str] = set()  # of all that the model has been by these lines
        self.n_lines = 0

    def __iter__(self) -> Any:
        return iter(self.by_key.values())

    def apply(self, line: Line) -> Change | None:
        """Take one line into account; the change that it makes or is about."""
        self.n_lines += 1
        do = line["do"]
        self.digests |= {line[name] for name in ("before", "after") if line.get(name)}
        if do == "base":
            return self._sealed(line)
        if do in (*_OUTCOMES, "undone"):
            change = self.by_key.get(line.get("of", ""))
            if change is not None:
                change.state = do
                kept = ("reason", "before", "after", "ms", "n", "failed")
                change.about.update({name: line[name] for name in kept if name in line})
            return change
        if do == NAMED or do in ASIDE or do in CLASSES:
            change = Change(line["key"], do, images_in(line), self.n_lines, about=dict(line))
            self.by_key.pop(change.key, None)  # tried again, after it failed: it is the last now
            self.by_key[change.key] = change
            if do in CLASSES:
                self.of_classes.append(change)
            for image in change.images:
                self._of_image.setdefault(image["id"], []).append(change)
            return change
        for key in line.get("of", ()) if do == "undo" else ():
            self.by_key[key].about["undoing"] = True  # "undone" says that it is done
        return None

    def _sealed(self, line: Line) -> None:
        # only what follows from this base is our own from here on
        self.base, self.digests = line["digest"], {line["digest"]}
        for key in line.get("sealed", ()):
            if key in self.by_key:
                self.by_key[key].sealed = True

    def last_of(self, image: str) -> Change | None:
        """The last change in force that an image was in; refused labels speak, too."""
        for change in reversed(self._of_image.get(image, ())):
            if change.state != "undone":
                return change
        return None

    def teaching(self, change: Change, without: Collection[str] = ()) -> list[Line]:
        """The images whose last label in force, but those `without`, is what this change says."""
        return [one for one in change.images if self._label_of(one["id"], without) is change]

    def _label_of(self, image: str, without: Collection[str]) -> Change | None:
        for change in reversed(self._of_image.get(image, ())):
            if change.do == NAMED and change.counts and change.key not in without:
                return change
        return None


def images_in(line: Mapping[str, Any]) -> list[Line]:
    """The images of a line: the one in it, and those under `more`."""
    if "id" not in line:
        return []
    images = [line, *line.get("more", ())]
    return [{name: one[name] for name in _OF_IMAGE if name in one} for one in images]


def with_images(images: Sequence[Line], **line: Any) -> Line:
    """A line about images, of which the first stands in the line itself."""
    first, *more = images
    return {**line, **first, **({"more": more} if more else {})}


def replay(lines: Iterable[Line]) -> Changes:
    """All changes that lines tell of, as they stand at their end."""
    changes = Changes()
    for line in lines:
        changes.apply(line)
    return changes
