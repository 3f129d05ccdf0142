"""The inbox: image files as they come, whole or not yet, and where they go once they are named."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import hmac
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from learnkit.data.image import IMAGE_EXTENSIONS
from learnkit.errors import ServingError
from learnkit.storage.filesystem import FileSystem, open_regular, sync_folder, write_file

OWN = ".learnkit"  # hidden: readers of image folders skip it
UNUSABLE = "_unusable"  # passed over by readers of image folders, too
_STILL = 1.0  # seconds that a file's size must have stood still


@dataclass
class InboxImage:
    """An image that came, as the page and the journal know it.

    Attributes:
        id: 32 hexadecimal digits that nobody guesses; the same after a restart.
        sha: SHA-256 (hex) of the file's bytes.
        name: of the file, below the inbox.
        place: where the file is now.
        w: width as it is shown, in pixels.
        h: height.
        state: "waiting", "skipped", "ask", "sure", "unusable", "queued", "learned", "refused" or
            "gone".
        label: the class it was given.
    """

    id: str
    sha: str
    name: str
    place: Path
    w: int = 0
    h: int = 0
    state: str = "waiting"
    label: str | None = None

    @property
    def waits(self) -> bool:
        """Whether it is among those that may be asked for."""
        return self.state in ("waiting", "skipped")


class Inbox:
    """A folder that images come into, and the folder beside it with a folder for each class.

    Args:
        folder: of the images; sub-folders are read, links are not followed.
        labelled: of those that have a name.
        secret: by which ids are made.
        clock: gives seconds, for how long a file stood still.

    Raises:
        ServingError: there is no such folder, or one of the two is in the other.
    """

    def __init__(
        self,
        folder: Path,
        labelled: Path,
        secret: bytes,
        clock: Callable[[], float] = time.monotonic,
    ):
        check_folders(folder, labelled)
        self.folder, self.labelled = folder.resolve(), labelled.resolve()
        self._secret, self.clock = secret, clock
        self._seen: dict[str, tuple[tuple[int, int], float]] = {}

    def image(self, noted: Mapping[str, Any]) -> InboxImage:
        """An image where it came, of what is noted of its file: `sha`, `name`, `w` and `h`."""
        sha, name = noted["sha"], noted["name"]
        # a name on Linux need not be UTF-8; bytes that are not come as lone surrogates
        about = f"{sha}\0{name}".encode(errors="surrogateescape")
        own = hmac.digest(self._secret, about, "sha256").hex()[:32]
        return InboxImage(own, sha, name, self.folder / name, noted["w"], noted["h"])

    def files(self) -> dict[str, os.stat_result]:
        """All files with an image's extension, by their names below the inbox."""
        return dict(_walk(str(self.folder), ""))

    def settled(self, files: dict[str, os.stat_result]) -> list[str]:
        """Names of files whose size and time have stood still for a second, by name."""
        now, found = self.clock(), []
        for name, stat in files.items():
            kept = (stat.st_size, stat.st_mtime_ns)
            before = self._seen.get(name)
            if before is None or before[0] != kept:
                self._seen[name] = (kept, now)
            elif now - before[1] >= _STILL:
                found.append(name)
        for name in self._seen.keys() - files.keys():
            del self._seen[name]
        return sorted(found)

    def read(self, name: str) -> tuple[bytes, os.stat_result]:
        """The bytes of a file, and what is known of it; a link is none.

        Raises:
            OSError: it cannot be read.
        """
        with open_regular(self.folder / name, follow=False) as file:
            return file.read(), os.fstat(file.fileno())

    def target(self, picture: InboxImage, label: str | None) -> Path:
        """Where the file of a picture goes under a label, None for an image that is unusable.

        Its own name, or one with eight digits of its hash if another file has that.
        """
        folder = self.labelled / (UNUSABLE if label is None else label)
        own = PurePosixPath(picture.name).name
        plain = folder / own
        if plain == picture.place or not os.path.lexists(plain):
            return plain
        return folder / f"{Path(own).stem}_{picture.sha[:8]}{Path(own).suffix}"

    def targets(self, pictures: Sequence[InboxImage], label: str | None) -> dict[str, str]:
        """Where the files of pictures go, by id, below the folder of labelled ones."""
        found: dict[str, str] = {}
        for one in pictures:
            file = self.target(one, label).relative_to(self.labelled)
            if file.as_posix() in found.values():  # of one name, from two sub-folders
                file = file.with_name(f"{file.stem}_{one.id[:8]}{file.suffix}")
            found[one.id] = file.as_posix()
        return found

    def source(self, picture: InboxImage) -> Path:
        """Where it came from."""
        return self.folder / picture.name


def check_folders(folder: Path, labelled: Path) -> None:
    """Raise ServingError unless the inbox is there, and neither folder is in the other."""
    if not folder.is_dir():
        raise ServingError(f"INBOX is {str(folder)!r}, which is no folder; make it, or check it")
    inbox, target = folder.resolve(), labelled.resolve()
    if inbox == target or inbox in target.parents or target in inbox.parents:
        raise ServingError(
            f"the folder of labelled images {str(labelled)!r} and the inbox {str(folder)!r} lie in "
            "each other: what was labelled would come in again; name another with --labelled"
        )


def move_file(source: Path, target: Path) -> None:
    """Move a file for good: by name on one disk, else by a copy that is on the disk first.

    Nothing happens if that was done before. Other files are not written over.

    Raises:
        OSError: it cannot be moved; the file is where it was.
    """
    if source == target:
        return
    if not os.path.lexists(source) and target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    # looked for, as `os.rename` writes over a file without a word, except on Windows
    if os.path.lexists(target):
        if not _same_bytes(source, target):
            raise FileExistsError(errno.EEXIST, "another file has that name", str(target))
        source.unlink()  # a copy that a crash kept from being the only one
    else:
        _rename_or_copy(source, target)
    for folder in {source.parent, target.parent}:
        with contextlib.suppress(OSError):  # some disks cannot; the journal moves it again
            sync_folder(folder, FileSystem())


def _rename_or_copy(source: Path, target: Path) -> None:
    try:
        os.rename(source, target)
        return
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
    # another disk: the copy is synced before the original goes
    with open_regular(source, follow=False) as old:
        write_file(target, lambda new: shutil.copyfileobj(old, new))
    source.unlink()


def _same_bytes(one: Path, other: Path) -> bool:
    digests = []
    for path in (one, other):
        with open_regular(path, follow=False) as file:
            digests.append(hashlib.sha256(file.read()).digest())
    return digests[0] == digests[1]


def _walk(folder: str, below: str) -> Iterator[tuple[str, os.stat_result]]:
    """Files with an image's extension, but hidden ones and links, by their names below it."""
    # Without paths and contexts: of 50,000 files they would take longer than the disk does.
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith("."):
                continue
            try:
                if entry.is_file(follow_symlinks=False):
                    if name[name.rfind(".") :].lower() in IMAGE_EXTENSIONS:
                        yield below + name, entry.stat(follow_symlinks=False)
                elif entry.is_dir(follow_symlinks=False):
                    yield from _walk(entry.path, f"{below}{name}/")
            except OSError:  # it may be gone by now
                continue
