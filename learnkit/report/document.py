"""The document model of reports: blocks of sentences, tables, bars and pictures, in no form yet.

What stands in a sentence or a cell is text, a number, None, a `Span`, a `Mark`, `Lines`, or a tuple
of these. Text is text: each renderer (`text`, `html`, `markdown`) escapes it in its own way.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

Inline = Any  # str | int | float | None | Span | Mark | Lines | tuple of these
DASH = "–"
# Line breaks and escapes steer terminals; format characters turn the reading direction or hide.
_STEERING = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_SHAPING = "\u00ad\u200c\u200d"  # soft hyphen and joiners belong to words and emoji


@dataclass(frozen=True)
class Span:
    """A piece of text that looks different.

    Attributes:
        content: text, or pieces of it.
        style: "strong", "code", "faint", "arrow", "name" (from outside; HTML cuts long ones), or
            "link" (a page beside this one, by its name; text elsewhere).
    """

    content: Inline
    style: str


ARROW = Span(" → ", "arrow")


@dataclass(frozen=True)
class Mark:
    """A verdict in a word, with a colour and a sign that say the same.

    Attributes:
        word: says it.
        good: True, False, or None where nothing was decided.
        brief: the sign is enough where there are signs.
    """

    word: str
    good: bool | None = None
    brief: bool = False


@dataclass(frozen=True)
class Lines:
    """Pieces below each other in HTML, behind each other elsewhere."""

    content: tuple[Inline, ...]


@dataclass(frozen=True)
class Paragraph:
    """A sentence or more."""

    content: Inline


@dataclass(frozen=True)
class Headline:
    """The verdict on a subject and what speaks for it, in one sentence.

    Attributes:
        content: the subject.
        mark: the verdict.
        phrase: the verdict as a sentence says it: "is refused".
        reason: what speaks for it.
    """

    content: str
    mark: Mark
    phrase: str
    reason: str


@dataclass(frozen=True)
class Items:
    """A list; numbered from `start` unless that is None."""

    content: Sequence[Inline]
    start: int | None = None


@dataclass(frozen=True)
class Code:
    """Lines of a program."""

    content: str
    language: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of cells.

    Attributes:
        content: the rows, all of the same length.
        header: a cell per column; empty for none.
        align: "l" or "r" per column; empty aligns columns of numbers to the right.
        more: a last line across all columns, such as what was left out.
    """

    content: Sequence[Sequence[Inline]]
    header: Sequence[Inline] = ()
    align: str = ""
    more: str = ""

    @property
    def alignment(self) -> str:
        """The letters per column, given or found."""
        columns = (
            [v for v in column if v is not None] for column in zip(*self.content, strict=True)
        )
        numeric = (values and all(isinstance(v, int | float) for v in values) for values in columns)
        return self.align or "".join("r" if one else "l" for one in numeric)


@dataclass(frozen=True)
class Bar:
    """A value on a scale that begins at 0, and how it is written."""

    value: float
    text: str


@dataclass(frozen=True)
class BarRow:
    """What has a bar per series: its name, the bars (None for a gap), and cells behind them."""

    name: Inline
    bars: Sequence[Bar | None]
    cells: Sequence[Inline] = ()
    is_chosen: bool = False


@dataclass(frozen=True)
class Bars:
    """Bars in rows; where nothing can be drawn, a table.

    Attributes:
        content: the rows.
        series: the name of each bar of a row.
        header: of the cells behind the bars.
        align: "l" or "r" for each of these.
        top: the end of the scale; None takes the largest value.
        reference: a value to compare with.
    """

    content: Sequence[BarRow]
    series: Sequence[str] = ("",)
    header: Sequence[Inline] = ()
    align: str = ""
    top: float | None = None
    reference: float | None = None

    def length(self, value: float) -> float:
        """Percent of the longest bar, from 1 to 100; 1 for what is no number."""
        values = [bar.value for row in self.content for bar in row.bars if bar is not None]
        top = self.top or max((v for v in values if 0 < v < math.inf), default=1.0)
        return 1.0 if math.isnan(value) else min(max(100 * value / top, 1.0), 100.0)

    def as_table(self) -> Table:
        """The same in words."""
        rows = []
        for row in self.content:
            name = Span(row.name, "strong") if row.is_chosen else row.name
            rows.append([name, *("" if bar is None else bar.text for bar in row.bars), *row.cells])
        header = ("", *self.series, *self.header) if any((*self.series, *self.header)) else ()
        return Table(rows, header, f"l{'r' * len(self.series)}{self.align}")


@dataclass(frozen=True)
class Picture:
    """An image with its caption.

    Attributes:
        name: of the image.
        mark: the verdict on it.
        caption: what else there is to say.
        image: PNG or JPEG bytes, or pixels uint8 (H,W) or (H,W,3); None if it is not at hand.
    """

    name: str
    mark: Mark | None = None
    caption: Lines = Lines(())
    image: bytes | np.ndarray | None = None


@dataclass(frozen=True)
class Gallery:
    """Images side by side."""

    content: Sequence[Picture]


@dataclass(frozen=True)
class Section:
    """Blocks under a title; one that is not open shows its title only, where it can be opened."""

    title: str
    content: Sequence[Any]
    is_open: bool = True


@dataclass(frozen=True)
class Document:
    """Blocks from top to bottom."""

    content: Sequence[Any]


def filled(blocks: Iterable[Any]) -> list[Any]:
    """The blocks that hold something."""
    return [
        one for one in blocks if (filled(one.content) if isinstance(one, Section) else one.content)
    ]


def pairs(values: Mapping[str, Any]) -> Table:
    """A table of names and values, without a header."""
    return Table([*values.items()])


def records(rows: Sequence[Mapping[str, Any]]) -> Table:
    """A table with the first row's keys as columns; a dash for what other rows lack."""
    columns = [*rows[0]] if rows else []
    return Table([[row.get(name) for name in columns] for row in rows], columns)


def frame_table(
    frame: pd.DataFrame, index: str = "", *, max_rows: int = 60, rest: str = "rows"
) -> Table:
    """The first rows of a pandas table behind its index, which is named `index`.

    Args:
        frame: the table; its columns are numbers.
        index: heads the column of names.
        max_rows: those that are shown.
        rest: what the others are called: "and 3 more classes".
    """
    shown = frame.head(max_rows)
    rows = [[str(name), *row] for name, row in zip(shown.index, shown.to_numpy(), strict=True)]
    left_out = len(frame) - len(shown)
    more = f"and {left_out} more {rest}" if left_out else ""
    return Table(rows, (index, *map(str, frame.columns)), f"l{'r' * len(frame.columns)}", more)


def value_text(value: Any) -> str:
    """A value for reading: floats to four digits, a dash for None and NaN.

    >>> value_text(0.98765), value_text(12000.0), value_text(float("nan")), value_text("a")
    ('0.9877', '12000', '–', 'a')
    """
    value = value.item() if hasattr(value, "item") else value
    if value is None or value != value:  # NaN
        return DASH
    if isinstance(value, float) and not (value.is_integer() and abs(value) < 1e15):
        return f"{value:.4g}"
    return f"{value:.0f}" if isinstance(value, float) else str(value)


def interval_ends(low: float, high: float, *, percent: bool = False) -> tuple[str, str]:
    """The bounds of an interval for reading: three digits, four where they are within .01.

    Whatever is written of an interval is written by this, so that no two places differ by what
    rounding does.

    >>> interval_ends(0.6123, 0.94), interval_ends(0.0612, 0.1234, percent=True)
    (('0.612', '0.940'), ('6.1 %', '12.3 %'))
    """
    digits = 3 + (high - low < 0.01)
    if percent:
        return f"{100 * low:.{digits - 2}f} %", f"{100 * high:.{digits - 2}f} %"
    return f"{low:.{digits}f}", f"{high:.{digits}f}"


def share_text(share: float, digits: int = 1) -> str:
    """A share for reading, in percent.

    >>> share_text(0.902), share_text(0.902, 0)
    ('90.2 %', '90 %')
    """
    return f"{100 * share:.{digits}f} %"


def interval_text(low: float, high: float) -> str:
    """An interval for reading; nothing for NaN.

    >>> interval_text(0.6123, 0.94), interval_text(float("nan"), float("nan"))
    ('0.612 - 0.940', '')
    """
    return "" if math.isnan(low) else " - ".join(interval_ends(low, high))


def visible(text: str, instead: str) -> str:
    """`text` with `instead` for every character that steers a terminal or turns a line around."""
    # nearly all are: to Python none of the characters that steer is printable
    if text.isprintable():
        return text
    steers = lambda c: unicodedata.category(c) in _STEERING and c not in _SHAPING
    return "".join(instead if steers(c) else c for c in text)
