"""A conversion report for a terminal of 80 columns."""

from __future__ import annotations

import math
import textwrap
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

from learnkit.optimize import report_rows as rows
from learnkit.optimize.report_speeds import EAGER, Speed, speeds_of

if TYPE_CHECKING:
    from learnkit.optimize.conversion_report import ConversionReport
    from learnkit.optimize.quality import ChangedImage

WIDTH = 80
_OUTCOME = {
    "passed": "passes its gates",
    "refused": "is refused",
    "forced": "fails a gate and was made all the same",
}
_HEADER = ("", "before", "after", "")


def as_text(report: ConversionReport) -> str:
    """The report as plain text, no line longer than 80 columns unless a single word is."""
    lines = _wrapped(headline(report), "", "  ")
    lines += _titled("Gates", _gates(report))
    found = report.quality
    tested = f"{found.n} test images, {found.n_labelled} labelled"
    lines += _titled(f"Before and after ({tested})", _table([_HEADER, *rows.changes(report)]))
    if report.candidates:
        lines += _titled("Tried: ms per call (times as fast as eager torch)", _tried(report))
    if found.worst_images:
        lines += _titled("Images that changed most", _images(found.worst_images))
    lines += _titled("Largest changes of the network's numbers", _table(rows.moves(report)))
    lines += _titled("What it rests on", _table(rows.basis(report)))
    notes = [line for note in report.notes for line in _wrapped(_printable(note), "- ", "  ")]
    return "\n".join([*lines, *_titled("Notes", notes)])


def headline(report: ConversionReport) -> str:
    """The report in one sentence."""
    return f"{report.variant} {_OUTCOME[rows.word(report)]}: {rows.why(report)}"


def _gates(report: ConversionReport) -> list[str]:
    lines = []
    for verdict in rows.by_weight(report.verdicts):
        said = f"{verdict.found} (asked: {verdict.rule})" + f"; {verdict.note}" * bool(verdict.note)
        lines += _wrapped(said, f"  {verdict.word:<10} {verdict.gate:<9}  ", " " * 24)
    return lines


def _tried(report: ConversionReport) -> list[str]:
    """A row per variant, and below it why it was not taken, where that takes a sentence."""
    speeds = speeds_of(report)
    batches = [one.batch for one in report.latency]
    header = ("", *(f"batch {batch}" for batch in batches), "kept", "")
    cells = [
        (one.name, *(_time(one, batch) for batch in batches), _kept(one), one.outcome.split(",")[0])
        for one in speeds
    ]
    first, *blocks = _blocks([header, *cells])
    found = first
    for one, block in zip(speeds, blocks, strict=True):
        found += [*block, *(_wrapped(_printable(one.why), " " * 6, " " * 6) if one.why else [])]
    return found


def _time(one: Speed, batch: int) -> str:
    if batch not in one.medians:
        return ""
    ratio = f" ({one.ratios[batch]:.2f}x)" if one.name != EAGER else ""
    return f"{one.medians[batch]:.2f}{ratio}"


def _kept(one: Speed) -> str:
    return "" if math.isnan(one.agreement) else rows.percent(one.agreement)


def _images(images: Sequence[ChangedImage]) -> list[str]:
    """A line per image, or two if they do not fit: its name, and what became of it."""
    lines = []
    for i, one in enumerate(images, 1):
        fate = rows.fate(one)
        truth = f"; it is {one.truth}" if fate == rows.STILL_WRONG else ""
        after = "" if one.before == one.after else f"{one.after} "
        answers = f"{one.before} {one.confidence_before:.2f} -> {after}{one.confidence_after:.2f}"
        said = f"{fate}: {answers}{truth}"
        name, said = (_printable(text) for text in (f"  {i:>2}  {one.name}", said))
        fits = len(name) + len(said) + 2 <= WIDTH
        lines += [f"{name}  {said}"] if fits else [name, *_wrapped(said, " " * 6, " " * 6)]
    return lines


def _table(cells: Sequence[Sequence[str]]) -> list[str]:
    """Lines of all rows."""
    return [line for block in _blocks(cells) for line in block]


def _blocks(cells: Sequence[Sequence[str]]) -> list[list[str]]:
    """Lines per row: the first cell to the left, numbers to the right, the last one wrapped."""
    cells = [[_printable(cell) for cell in row] for row in cells]
    if not cells:
        return []
    *widths, _ = (max(len(row[i]) for row in cells) for i in range(len(cells[0])))
    blocks = []
    for row in cells:
        start = "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=False))
        )
        blocks.append(_wrapped(row[-1], f"  {start}  ", " " * (len(start) + 4)))
    return blocks


def _wrapped(text: str, start: str, after: str) -> list[str]:
    """Lines of at most 80 columns; the first begins with `start`, the others with `after`."""
    found = textwrap.wrap(
        text, WIDTH, initial_indent=start, subsequent_indent=after, break_long_words=False
    )
    return found or [start.rstrip()]


def _titled(title: str, lines: list[str]) -> list[str]:
    return ["", title, *lines] if lines else []


def _printable(text: str) -> str:
    """`text` without control characters: a file's name must not steer a terminal."""
    return "".join("?" if unicodedata.category(c) in {"Cc", "Zl", "Zp"} else c for c in text)
