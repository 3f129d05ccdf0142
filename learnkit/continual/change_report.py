"""The report of a change to a continual classifier, and the log of all changes.

This module needs no torch: the log is shown where a model is served, too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, overload

from learnkit.errors import first_few, number_of
from learnkit.report.document import Document, Items, Paragraph, Span, Table
from learnkit.report.notebook import Shown

if TYPE_CHECKING:
    from learnkit.continual.memory import Forgotten
    from learnkit.continual.statistics import ClassStatistics

LOGGED = 1000  # changes of which the log tells
_SHOWN = 10


@dataclass(frozen=True)
class AuditEntry:
    """One line of the log: a change, its time and size, and the state it led to.

    Attributes:
        number: of the change, from 1 on; the log keeps the last ones.
        what: the verb: "extend", "subtract", "undo", ...
        when: UTC, in ISO 8601, to the second.
        n_images: images learned, or, below zero, unlearned.
        n_validation: validation images that came, or, below zero, went.
        n_classes: classes with images afterwards.
        digest: SHA-256 (hex) of all that was known afterwards, the same for the same images in
            whichever order they came.
    """

    number: int
    what: str
    when: str
    n_images: int
    n_validation: int
    n_classes: int
    digest: str

    def __str__(self) -> str:
        about = f"{_change(self.n_images, 'image')}, {number_of(self.n_classes, 'class')}"
        if self.n_validation:
            about += f", {_change(self.n_validation, 'validation image')}"
        return f"{self.number}. {self.when} {self.what}: {about}, sha256 {self.digest[:12]}"


def _change(n: int, noun: str) -> str:
    """A number with its sign, and its noun."""
    return f"{'-' if n < 0 else '+'}{number_of(abs(n), noun)}"


@dataclass(frozen=True)
class AuditLog(Shown, Sequence[AuditEntry]):
    """What was changed, when, how many images it concerned and what it led to; the last 1,000.

    Attributes:
        entries: the oldest first.
    """

    entries: tuple[AuditEntry, ...] = ()

    def with_change(self, report: ChangeReport, digest: str) -> AuditLog:
        """The log with one more change, made now."""
        number = self.entries[-1].number + 1 if self.entries else 1
        when = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        n_images = sum((report.images or {}).values())
        numbers = n_images, report.n_validation, report.n_classes
        entry = AuditEntry(number, report.what, when, *numbers, digest)
        return AuditLog((*self.entries, entry)[-LOGGED:])

    @overload
    def __getitem__(self, at: int) -> AuditEntry: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[AuditEntry, ...]: ...
    def __getitem__(self, at: Any) -> Any:
        return self.entries[at]

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[AuditEntry]:
        return iter(self.entries)

    def __str__(self) -> str:
        return "\n".join(map(str, self.entries)) or "no change"

    def document(self) -> Document:
        """A table, the last change first."""
        header = ("", "change", "when (UTC)", "images", "validation", "classes", "sha256")
        rows = []
        for entry in self.entries[::-1][:_SHOWN]:
            moved = (f"{n:+,}" if n else "" for n in (entry.n_images, entry.n_validation))
            when, digest = entry.when[:16].replace("T", " "), Span(entry.digest[:12], "code")
            rows.append((entry.number, entry.what, when, *moved, entry.n_classes, digest))
        earlier = len(self) - len(rows)
        more = number_of(earlier, "earlier change") if earlier else ""
        return Document([Table(rows, header, "rllrrrl", more)])


@dataclass(frozen=True)
class ChangeReport(Shown):
    """One change and its effects.

    Attributes:
        what: The verb: "extend", "subtract", "forget", ...
        classes_added: Names that came with this change, in order.
        images: Images added (or, below zero, taken away) per class by this change.
        n_images: Images per class afterwards.
        n_classes: Classes with images afterwards.
        n_validation: Validation images that came, or, below zero, went.
        threshold: (before, after); None where there is none.
        temperature: (before, after); None where there is none.
        seconds: Time it took, without the network's pass over the images.
        notes: For a person to know about it.
        accuracy: Share of right answers per class, (before, after), when images to measure it on
            were at hand.
        renamed: {former name: present name} of classes that are called otherwise now.
    """

    what: str
    classes_added: tuple[str, ...] = ()
    images: dict[str, int] | None = None
    n_images: dict[str, int] | None = None
    n_classes: int = 0
    n_validation: int = 0
    threshold: tuple[float | None, float | None] = (None, None)
    temperature: tuple[float | None, float | None] = (None, None)
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    accuracy: dict[str, tuple[float | None, float | None]] | None = None
    renamed: dict[str, str] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        values = asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    def __str__(self) -> str:
        return "\n".join([self._headline(), *(f"- {line}" for line in self._lines())])

    def document(self) -> Document:
        """A headline and a list."""
        return Document([Paragraph(Span(self._headline(), "strong")), Items(self._lines())])

    def _headline(self) -> str:
        return f"{self.what}: {number_of(self.n_classes, 'class')}, {self.seconds:.2f} s"

    def _lines(self) -> list[str]:
        lines = []
        if self.classes_added:
            lines.append(f"new classes: {', '.join(self.classes_added)}")
        if self.renamed:
            pairs = (f"{old} -> {new}" for old, new in self.renamed.items())
            lines.append(f"renamed: {', '.join(pairs)}")
        if self.images:
            changes = (f"{name} {n:+d}" for name, n in self.images.items())
            lines.append(f"images: {', '.join(changes)}")
        if self.n_validation:
            lines.append(f"validation images: {self.n_validation:+d}")
        lines += [
            f"{name}: {_number(before)} -> {_number(after)}"
            for name, (before, after) in (
                ("threshold", self.threshold),
                ("temperature", self.temperature),
                *(((f"accuracy of {k}", v) for k, v in (self.accuracy or {}).items())),
            )
            if (before, after) != (None, None)
        ]
        return [*lines, *self.notes]


def with_notes(report: ChangeReport, notes: Sequence[str]) -> ChangeReport:
    """The report with more notes."""
    return replace(report, notes=(*report.notes, *notes))


def renamed_classes(before: ClassStatistics, after: ClassStatistics) -> dict[str, str]:
    """{former name: present name} of classes with the same images in the same places."""
    pairs = zip(before.class_names, after.class_names, strict=False)  # of those in both
    others = [(place, *pair) for place, pair in enumerate(pairs) if pair[0] != pair[1]]
    same = lambda place: bool((before.sums[place] == after.sums[place]).all())
    return {old: new for place, old, new in others if same(place)}


def note_on_origins(was: Sequence[str], now: Sequence[str]) -> tuple[str, ...]:
    """A note if features of another origin came to those there were."""
    if not was or was == now:
        return ()
    return (
        f"features of different origins are together now ({'; '.join(now)}): their sums are exact, "
        "but the same image has other last bits in each; subtract an image where it was read",
    )


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"


def note_on_unseen(n_unseen: int, n: int) -> tuple[str, ...]:
    """A note where an earlier version learned images without noting which."""
    if not n_unseen:
        return ()
    return (
        f"an earlier version learned {n_unseen} of {n} images without noting which: those that "
        "come again count twice",
    )


def note_on_remainder(name: str, left: int, n: int, *, is_noted: bool) -> tuple[str, ...]:
    """A note where `left` of the `n` images of a forgotten class stay in the statistics."""
    if not left:
        return ()
    instead = ("", "") if is_noted else ("undo this and ", " instead")
    return (
        f"{left} of {n} images of {name!r} were no longer remembered: their spread stays in the "
        f"covariance that all classes share; to take it out too, {instead[0]}`subtract` the images "
        f"of the class{instead[1]}",
    )


def note_on_return(forgotten: Sequence[Forgotten], *, merged: bool) -> tuple[str, ...]:
    """Notes on classes with images again of which these stayed when they were forgotten.

    Images that are learned again leave what stayed, if it was noted which they are, and not if
    statistics are `merged`, where there are no features of most.
    """
    left: dict[bool, Counter] = {True: Counter(), False: Counter()}
    for one in forgotten:
        twice = merged or len(one.fingerprints) < one.count
        left[twice][one.name] += one.count
    return tuple(
        "images forgotten earlier stay in the covariance that all classes share "
        f"({first_few([f'{n} of {name!r}' for name, n in counts.items()])})"
        + (
            ": those of them that are learned again count twice in it"
            if twice
            else " until they are learned again, or subtracted"
        )
        for twice, counts in left.items()
        if counts
    )
