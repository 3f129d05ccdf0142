"""Text of a document: plain lines of 80 columns, or what rich makes of it in a terminal."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from typing import Any

from rich import table as rich_table
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from learnkit.report import document as doc

WIDTH = 80
_INDENT = (0, 0, 0, 2)
_MARK_WIDTH = 9  # tables of verdicts below each other line up
_WHOLE = 24  # columns are not broken up to this width,
_LAST = 10  # if they leave as much for the others
_STYLES = {"strong": "bold", "faint": "dim", "code": "cyan"}
_COLOURS = {True: "green", False: "bold red", None: "dim"}


def as_text(document: doc.Document, width: int = WIDTH) -> str:
    """Plain lines, none longer than `width` columns; nothing in them steers a terminal."""
    # all of it is said: else rich asks the environment, and in a notebook shows it there at once
    console = Console(
        file=io.StringIO(),
        width=width,
        color_system=None,
        legacy_windows=False,
        force_terminal=False,
        force_jupyter=False,
        highlight=False,
    )
    _print(document, console)
    lines = console.file.getvalue().split("\n")
    return "\n".join(line.rstrip() for line in lines).rstrip("\n")


def print_document(document: doc.Document, console: Console) -> None:
    """Print to a terminal in its width and colours; `as_text` where the output is none."""
    if console.is_terminal:
        _print(document, console)
    else:
        # the lines are broken already
        # as Text: in a str rich takes brackets for markup
        console.print(Text(as_text(document)), soft_wrap=True)


def _print(document: doc.Document, console: Console) -> None:
    for i, block in enumerate(doc.filled(document.content)):
        if i:
            console.print()
        for part in _rendered(block, console.width):
            console.print(part, soft_wrap=False)


def _rendered(block: Any, width: int) -> Iterator[RenderableType]:
    match block:
        case doc.Section(title, content):
            yield Text(doc.visible(title, "?"), "bold")
            for one in doc.filled(content):
                yield from (Padding(part, _INDENT) for part in _rendered(one, width - 2))
        case doc.Headline(subject, mark, phrase, reason):
            name, verdict = doc.Span(subject, "strong"), doc.Mark(phrase, mark.good)
            yield _line((name, " ", verdict, ": ", reason))
        case doc.Items(lines, start):
            signs = ["-" if start is None else f"{start + i}." for i in range(len(lines))]
            yield _table(doc.Table([*zip(signs, lines, strict=True)]), width, gap=1)
        case doc.Code(content):
            yield Group(*map(_line, content.split("\n")))
        case doc.Table():
            yield _table(block, width)
        case doc.Bars():
            yield _table(block.as_table(), width)
        case doc.Gallery(pictures):
            for i, one in enumerate(pictures, 1):
                yield from _picture(i, one, width)
        case doc.Paragraph(content):
            yield _line(content)


def _line(piece: doc.Inline) -> Text:
    """One line of text, in colours where the terminal has them."""
    match piece:
        case doc.Span(content, "arrow"):
            return Text(content.replace("→", "->"))
        case doc.Span(content, style):
            line = _line(content)
            line.stylize(_STYLES.get(style, ""))
            return line
        case doc.Mark(word, good):
            line = _line(word)
            line.stylize(_COLOURS[good])
            return line
        case doc.Lines(content):
            return Text("; ").join(map(_line, content))
        case tuple():
            return Text.assemble(*map(_line, piece))
    return Text(doc.visible(doc.value_text(piece), "?"))


def _table(block: doc.Table, width: int, *, gap: int = 2) -> rich_table.Table:
    """A table that keeps short columns whole and breaks the lines of long ones."""
    rows = [[_line(cell) for cell in row] for row in block.content]
    header = [_line(name) for name in block.header] or [Text()] * len(rows[0])
    columns = [*zip(header, *rows, strict=True)]
    widths = [max(cell.cell_len for cell in column) for column in columns]
    short = [size <= _WHOLE for size in widths[:-1]] + [False]
    if sum(size + gap for size, one in zip(widths, short, strict=True) if one) > width - _LAST:
        short = [False] * len(short)
    table = rich_table.Table(
        box=None,
        padding=(0, gap, 0, 0),
        pad_edge=False,
        show_header=bool(block.header),
        header_style="bold",
        caption=_line(block.more) if block.more else None,
        caption_justify="left",
    )
    marks = [isinstance(cell, doc.Mark) and not cell.brief for cell in block.content[0]]
    for name, side, is_short, marked in zip(header, block.alignment, short, marks, strict=True):
        table.add_column(
            name,
            justify="right" if side == "r" else "left",
            no_wrap=is_short,
            min_width=_MARK_WIDTH if marked else None,
            # by default rich cuts a long word off, and writes an ellipsis
            overflow="fold",
        )
    for row in rows:
        table.add_row(*row)
    return table


def _picture(number: int, one: doc.Picture, width: int) -> Iterable[RenderableType]:
    """A line on a picture, or two if it does not fit."""
    name = Text.assemble(f"{number:>2}  ", _line(one.name))
    said = Text(": ").join(_line(part) for part in (one.mark, one.caption) if part is not None)
    if name.cell_len + said.cell_len + 2 <= width:
        return [Text.assemble(name, "  ", said)]
    return [name, Padding(said, (0, 0, 0, 4))]
