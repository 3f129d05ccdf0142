"""The report of a change to a continual classifier, for people and for files."""

from dataclasses import asdict, dataclass
from typing import Any

from learnkit.report.document import Document, Items, Paragraph, Span
from learnkit.report.notebook import Shown


@dataclass(frozen=True)
class ChangeReport(Shown):
    """One change and its effects.

    Attributes:
        what: The verb: "extend", "subtract", "forget", ...
        classes_added: Names that came with this change, in order.
        images: Images added (or, below zero, taken away) per class by this change.
        n_images: Images per class afterwards.
        n_classes: Classes with images afterwards.
        threshold: (before, after); None where there is none.
        temperature: (before, after); None where there is none.
        seconds: Time it took, without the network's pass over the images.
        notes: For a person to know about it.
        accuracy: Share of right answers per class, (before, after), when images to measure it on
            were at hand.
    """

    what: str
    classes_added: tuple[str, ...] = ()
    images: dict[str, int] | None = None
    n_images: dict[str, int] | None = None
    n_classes: int = 0
    threshold: tuple[float | None, float | None] = (None, None)
    temperature: tuple[float | None, float | None] = (None, None)
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    accuracy: dict[str, tuple[float | None, float | None]] | None = None

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
        return f"{self.what}: {self.n_classes} classes, {self.seconds:.2f} s"

    def _lines(self) -> list[str]:
        lines = []
        if self.classes_added:
            lines.append(f"new classes: {', '.join(self.classes_added)}")
        if self.images:
            changes = (f"{name} {n:+d}" for name, n in self.images.items())
            lines.append(f"images: {', '.join(changes)}")
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


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"
