"""Corrections of a folder of images: labels changed and files put aside, written as a new folder.

The folder itself is never changed. What a correction is about is told by its path and the sha256 of
its file: a file that is another one since it was marked is left as it is, and so is every row that
does not say clearly what to do.
"""

from __future__ import annotations

import csv
import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from learnkit.data.image import image_files, is_hidden
from learnkit.data.labels import name_problem, nfc
from learnkit.errors import DataError, UsageError, number_of
from learnkit.report.document import Document, Items, Paragraph, Span
from learnkit.report.notebook import Shown
from learnkit.storage.filesystem import FileSystem, open_regular, sync_folder
from learnkit.storage.write_folder import check_outside

COLUMNS = ("path", "sha256", "old", "new", "action", "marked_at")
REMOVED = "_removed"
FORMULA = ("=", "+", "-", "@", "\t", "\r")
_LARGEST = 200_000_000  # bytes of a table
# what Windows takes for no name of a folder, and its names of devices
_FORBIDDEN = re.compile(r'[/\\:*?"<>|\0]|[. ]$|^(con|prn|aux|nul|com\d|lpt\d)(\..*)?$', re.I)


@dataclass(frozen=True)
class Correction:
    """A row of a table of corrections.

    Attributes:
        row: its number in the table, the first below the header being 2.
        path: of the file, relative to the folder, with "/" between its parts.
        sha256: of the file as it was when it was marked, in hex.
        old: the class it was of.
        new: the class it is of; empty where it is dropped.
        action: "relabel", "drop", or empty for neither.
    """

    row: int
    path: str
    sha256: str
    old: str
    new: str
    action: str


@dataclass(frozen=True)
class Applied(Shown):
    """What became of corrections.

    Attributes:
        out: the folder written.
        n_kept: images whose label stayed.
        n_relabelled: images that are in another class now.
        n_dropped: images in `_removed` now.
        n_before: corrections that had been made before.
        refused: why the others were not made, by row and path.
        was_there: `out` held exactly this already.
    """

    out: Path
    n_kept: int
    n_relabelled: int
    n_dropped: int
    n_before: int
    refused: Mapping[str, str]
    was_there: bool

    def __str__(self) -> str:
        said = f"{self.n_relabelled} relabelled, {self.n_dropped} dropped into {REMOVED}/, "
        said += f"{self.n_kept} as they were"
        said += f", {self.n_before} corrected before" if self.n_before else ""
        said += f", {number_of(len(self.refused), 'row')} refused" if self.refused else ""
        return said + ("; the folder was there already" if self.was_there else "")

    def document(self) -> Document:
        """The counts, and every row that was refused with the reason."""
        rows = [f"{where}: {why}" for where, why in self.refused.items()]
        refused = [Items(rows)] if rows else []
        return Document([Paragraph(Span(str(self), "strong")), *refused])


def read_corrections(path: str | os.PathLike) -> list[Correction]:
    """The corrections in a CSV file, in order.

    Columns may be in any order and there may be others. A cell that was quoted (') against
    spreadsheets that would compute it stays quoted here.

    Raises:
        DataError: it cannot be read, is no table, or lacks a column.
    """
    path = Path(path)
    try:
        if path.stat().st_size > _LARGEST:
            raise DataError(f"{str(path)!r} has over {_LARGEST // 1_000_000} MB; split it")
        # Excel puts a byte order mark first, which would be part of the first column's name
        with path.open(encoding="utf-8-sig", newline="") as file:
            # strict: else a quote that does not end takes all lines below into its cell
            lines = csv.DictReader(file, restval="", strict=True)
            missing = [name for name in COLUMNS[:5] if name not in (lines.fieldnames or ())]
            if missing:
                raise DataError(
                    f"{str(path)!r} lacks the columns {', '.join(missing)}; it has "
                    f"{', '.join(map(repr, lines.fieldnames or ['none']))}"
                )
            return [
                Correction(number, *(one[name] for name in COLUMNS[:5]))
                for number, one in enumerate(lines, start=2)
            ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{str(path)!r} is no table of corrections: {error}") from error


def apply_corrections(
    folder: str | os.PathLike, corrections: Iterable[Correction], out: str | os.PathLike
) -> Applied:
    """Write the images below `folder` to a new folder `out`, corrected.

    Files are hard links where the disk has them, else copies; what is dropped is in `_removed` of
    the new folder, which readers pass over. The same corrections once more change nothing.

    Args:
        folder: images in a folder per class, splits above them or not.
        corrections: what to change; rows without an action are passed over.
        out: the new folder; one that is there must be empty, or hold exactly this.

    Raises:
        DataError: `folder` is no folder.
        UsageError: `out` holds other files, or is inside `folder`, or around it.
    """
    folder, out = Path(os.path.abspath(folder)), Path(os.path.abspath(out))
    images, unread = image_files(folder)
    _check_apart(folder, out)
    check_outside(out)
    files = {path.relative_to(folder).as_posix(): path for path in [*images, *unread]}
    plan = _Plan(folder, files)
    plan.take(one for one in corrections if one.action)
    targets = plan.targets()
    was_there = out.exists() and any(out.iterdir())
    if was_there and not _holds(out, targets):
        raise UsageError(f"{str(out)!r} holds other files; name a folder that is not there yet")
    if not was_there:
        _write(out, targets)
    n_moved, n_dropped = len(plan.new_labels), len(plan.dropped)
    n_kept = len(files) - n_moved - n_dropped
    return Applied(out, n_kept, n_moved, n_dropped, plan.n_before, plan.refused, was_there)


class _Plan:
    """What is to become of each file: `new_labels` by path, paths `dropped`, rows `refused`."""

    def __init__(self, folder: Path, files: Mapping[str, Path]):
        self.folder, self.files = folder, files
        self.classes = {PurePosixPath(path).parent.name for path in files}
        self.new_labels: dict[str, str] = {}
        self.dropped: set[str] = set()
        self.refused: dict[str, str] = {}
        self.n_before = 0
        self._digests: dict[str, str] = {}

    def take(self, corrections: Iterable[Correction]) -> None:
        """Decide on every row; rows that contradict each other are all refused."""
        said: dict[str, list[Correction]] = {}
        for one in corrections:
            path = _unquoted(one.path, self.files)
            said.setdefault(path, []).append(one)
        for path, rows in said.items():
            if len({(one.action, one.new) for one in rows}) > 1:
                numbers = " and ".join(str(one.row) for one in rows)
                problem = f"rows {numbers} say different things about it"
            else:
                problem = self._decide(path, rows[0])
            for one in rows if problem else ():
                self.refused[f"row {one.row}, {one.path!r:.200}"] = problem

    def _decide(self, path: str, one: Correction) -> str:
        """Why the row is refused; "" if it is taken, or was before."""
        old, new = (_unquoted(name, self.classes) for name in (one.old, one.new))
        if one.action not in ("relabel", "drop"):
            return f"the action is {one.action!r:.40}: relabel or drop"
        if not re.fullmatch(r"[0-9a-fA-F]{64}", one.sha256):
            return f"{one.sha256!r:.80} is no sha256 of 64 hex digits"
        # before any look at the disk: a dropped one is looked for below `_removed` by this path
        parts = re.split(r"[/\\]", path)
        if not path or path[0] in "/\\" or ".." in parts or "\0" in path or ":" in parts[0]:
            return "the path leaves the folder"
        if path not in self.files:
            self.n_before += (done := self._done_before(path, one, new))
            return "" if done else "there is no such image"
        if self._digest(path) != one.sha256.lower():
            return "the file has changed since it was marked (another sha256); mark it again"
        # the same name may be spelt in other code points on disk: macOS takes accents apart
        if nfc(own := PurePosixPath(path).parent.name) != nfc(old):
            return f"it is of the class {own!r}, not {old!r}"
        if one.action == "drop":
            self.dropped.add(path)
            return ""
        if problem := self._label_problem(old, new):
            return problem
        self.new_labels[path] = new
        return ""

    def _label_problem(self, old: str, new: str) -> str:
        if new == old:
            return f"it is of the class {old!r} already"
        if new in self.classes:
            return ""
        if not new or _FORBIDDEN.search(new) or is_hidden(new):
            return f"{new!r:.100} cannot be the name of a class and its folder"
        if problem := name_problem(new):
            return problem
        alike = [name for name in self.classes if nfc(name).casefold() == nfc(new).casefold()]
        return f"{new!r} looks like the class {alike[0]!r}; write it like that" if alike else ""

    def _done_before(self, path: str, one: Correction, new: str) -> bool:
        """Whether a file that is not there any more is where the correction would put it."""
        if one.action == "drop":
            file = self.folder / REMOVED / path
            return file.is_file() and _sha256(file) == one.sha256.lower()
        moved = (_moved(path, new), _moved(path, new, one.sha256))
        return any(
            name in self.files and self._digest(name) == one.sha256.lower() for name in moved
        )

    def _digest(self, path: str) -> str:
        if path not in self._digests:
            self._digests[path] = _sha256(self.files[path])
        return self._digests[path]

    def targets(self) -> dict[str, Path]:
        """Each path of the new folder, and the file it is."""
        stay = self.files.keys() - self.new_labels.keys() - self.dropped
        found = {path: self.files[path] for path in sorted(stay)}
        # disks of Windows and macOS take A.png and a.png for one file
        taken = {path.casefold() for path in found}
        found |= {f"{REMOVED}/{path}": self.files[path] for path in sorted(self.dropped)}
        # sorted: of two files of one name the same one gets the digest, whatever the rows' order
        for path, label in sorted(self.new_labels.items()):
            target = _moved(path, label)
            if target.casefold() in taken:  # another file of that name is of this class
                target = _moved(path, label, self._digest(path))
            taken.add(target.casefold())
            found[target] = self.files[path]
        return found


def _moved(path: str, label: str, digest: str = "") -> str:
    """The path in the folder of another class, with the beginning of a digest in its name."""
    whole = PurePosixPath(path)
    name = f"{whole.stem}_{digest[:8].lower()}{whole.suffix}" if digest else whole.name
    return (whole.parent.parent / label / name).as_posix()


def _unquoted(text: str, known: Iterable[str]) -> str:
    """A cell without the quote that kept spreadsheets from computing it."""
    quoted = text[:1] == "'" and text[1:2] in FORMULA and text not in known
    return text[1:] if quoted else text


def _check_apart(folder: Path, out: Path) -> None:
    inside, around = out.is_relative_to(folder), folder.is_relative_to(out)
    # links may lead from one into the other
    real = Path(os.path.realpath(out)), Path(os.path.realpath(folder))
    if inside or around or real[0].is_relative_to(real[1]) or real[1].is_relative_to(real[0]):
        raise UsageError(
            f"{str(out)!r} is {str(folder)!r} itself, inside it or around it; name a folder beside"
        )
    if not out.parent.is_dir():
        raise UsageError(
            f"{str(out)!r} is in a non-existent folder; make {str(out.parent)!r} first"
        )


def _holds(out: Path, targets: Mapping[str, Path]) -> bool:
    """Whether a folder holds exactly these files."""
    there = {
        (Path(root) / name).relative_to(out).as_posix()
        for root, _, names in os.walk(out)
        for name in names
    }
    return there == targets.keys() and all(
        # hard links are the same file, and need not be read
        os.path.samefile(out / target, source) or _sha256(out / target) == _sha256(source)
        for target, source in targets.items()
    )


def _sha256(path: Path) -> str:
    with open_regular(path) as file:
        return hashlib.sha256(file.read()).hexdigest()


def _write(out: Path, targets: Mapping[str, Path]) -> None:
    """Fill a sibling of `out`, which takes its place when all is there."""
    # beside `out`, as only within a disk a rename happens at once
    partial = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    partial.mkdir()
    try:
        for target, source in targets.items():
            place = partial / target
            place.parent.mkdir(parents=True, exist_ok=True)
            _link(source, place)
        # on POSIX an empty folder gives way, and one that others filled meanwhile makes it fail
        os.rename(partial, out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    sync_folder(out.parent, FileSystem())


def _link(source: Path, place: Path) -> None:
    """A hard link; a copy where the disk has none, or the source is a link itself."""
    try:
        if not source.is_symlink():
            os.link(source, place)
            return
    except OSError:
        pass  # another disk, or one without links: copied below
    shutil.copy2(source, place)
