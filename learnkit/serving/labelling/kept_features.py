"""Kept features: a row per image, exact, on the disk and mapped into memory; one pass each.

They are what a label teaches and what the queue is judged by. The file is a cache beside the
images: a row whose checksum does not hold, or that is of another network, is read anew.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import threading
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

_ROWS, _INDEX = "features.f32", "features.jsonl"


class KeptFeatures:
    """Features float32 (N, D) by the SHA-256 of their image's bytes.

    Args:
        folder: where they are kept.
        width: D.
        body: what tells the network that gives them from others; rows of another are let go.
    """

    def __init__(self, folder: Path, width: int, body: str):
        self.width, self._lock = width, threading.Lock()
        self._places: dict[str, tuple[int, int]] = {}  # place of the row, its checksum
        self.files: dict[str, dict[str, Any]] = {}  # what was known of a file, by its name
        self._mapped = np.zeros((0, width), np.float32)
        header = {"body": body, "width": width}
        index, rows = folder / _INDEX, folder / _ROWS
        found = _read_index(index, header)
        if found is None:
            rows.unlink(missing_ok=True)
            index.write_text(json.dumps(header) + "\n", encoding="ascii")
        self._rows = os.open(rows, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o600)
        self._index = open(index, "a", encoding="ascii")  # noqa: SIM115  # open as long as this
        # a row that a crash cut off is not counted, and cut away
        self._n = os.fstat(self._rows).st_size // (4 * width)
        os.ftruncate(self._rows, self._n * 4 * width)
        for one in found or ():
            if 0 <= one["row"] < self._n:
                self._places[one["sha"]] = (one["row"], one["crc"])
                self.files[one["name"]] = one

    def __contains__(self, sha: str) -> bool:
        return sha in self._places

    def __len__(self) -> int:
        return len(self._places)

    def add(self, images: Sequence[dict[str, Any]], features: np.ndarray) -> None:
        """Keep the rows of images, of which `sha`, `name`, `size`, `mtime`, `w` and `h` are known.

        Raises:
            OSError: they cannot be written; what was kept still is.
        """
        rows = np.ascontiguousarray(features, np.float32)
        with self._lock:
            start = self._n
            # in one piece at its place, so that what a failure left is written over
            os.lseek(self._rows, 4 * self.width * start, os.SEEK_SET)
            left = memoryview(rows.tobytes())
            while left:
                left = left[os.write(self._rows, left) :]
            self._n += len(rows)
            for number, (image, row) in enumerate(zip(images, rows, strict=True), start):
                # nothing is synced here: by this a row is known that a crash kept from the disk
                crc = zlib.crc32(row.tobytes())
                self._index.write(json.dumps({**image, "row": number, "crc": crc}) + "\n")
                self._places[image["sha"]] = (number, crc)
                self.files[image["name"]] = {**image, "row": number, "crc": crc}
            self._index.flush()

    def note(self, image: dict[str, Any]) -> None:
        """Note one more file of an image whose row is kept already."""
        with self._lock:
            row, crc = self._places[image["sha"]]
            line = {**image, "row": row, "crc": crc}
            self.files[image["name"]] = line
            self._index.write(json.dumps(line) + "\n")
            self._index.flush()

    def places(self, shas: Sequence[str]) -> np.ndarray:
        """Places of rows, for `block`; all of these images are kept."""
        return np.array([self._places[sha][0] for sha in shas], np.intp)

    def block(self, places: np.ndarray) -> np.ndarray:
        """Rows at their places, float32 (K, D)."""
        return self._all()[places]

    def exact(self, shas: Sequence[str]) -> np.ndarray | None:
        """Rows float32 (K, D) to learn from; None if one is not kept, or not as it was."""
        if any(sha not in self._places for sha in shas):
            return None
        rows = self.block(self.places(shas))
        for sha, row in zip(shas, rows, strict=True):
            if zlib.crc32(row.tobytes()) != self._places[sha][1]:
                with self._lock:
                    del self._places[sha]
                return None
        return rows

    def _all(self) -> np.ndarray:
        with self._lock:
            if len(self._mapped) < self._n:
                n_bytes = self._n * self.width * 4
                # a map has a fixed length; the former one lives as long as arrays over it do
                whole = mmap.mmap(self._rows, n_bytes, access=mmap.ACCESS_READ)
                self._mapped = np.frombuffer(whole, np.float32).reshape(self._n, self.width)
            return self._mapped

    def close(self) -> None:
        """Close the files."""
        self._index.close()
        os.close(self._rows)


def _read_index(path: Path, header: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The lines of an index; None if there is none of this network."""
    try:
        first, *lines = path.read_text(encoding="ascii").splitlines()
        if json.loads(first) != header:
            return None
    except (OSError, ValueError):
        return None
    found = []
    for one in _read_lines(lines):
        with contextlib.suppress(KeyError, TypeError):
            # a sum of two raises where one is missing or of another type
            _ = one["sha"] + one["name"], one["size"] + one["mtime"], one["crc"] + one["row"]
            found.append(one)
    return found


def _read_lines(lines: Sequence[str]) -> list[Any]:
    """What lines of JSON say; a torn one is left out."""
    with contextlib.suppress(ValueError):
        found = json.loads(f"[{','.join(lines)}]")  # several times faster than line by line
        if len(found) == len(lines):
            return found
    found = []
    for line in lines:
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found
