"""The command line's table: as wide as its terminal, with numbers and the ends of paths whole."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Table
from rich.text import Text

from learnkit.report.document import visible

# Characters below which a column does not shrink, in the order in which columns give room away: a
# path says least, and a number that is folded or cut is wrong.
_LEAST = {"path": 16, "text": 12}
_GAP = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True)
class FittedTable:
    """Rows of text for a terminal of any width; a pipe gets them at their own width.

    Attributes:
        header: names of the columns; those named "path" are cut in their middle.
        rows: one cell per column each.
        numeric: the names of columns of numbers, which stand to the right.
        show_header: write the names above the rows.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: frozenset[str] = frozenset()
    show_header: bool = True

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """The rows as a grid, or one below the other where a grid has no room."""
        ellipsis = "..." if options.ascii_only else "…"
        rows = [[printable(cell) for cell in row] for row in self.rows]
        widths = self._widths(rows, options.max_width)
        if widths is None:
            yield from self._blocks(rows, options.max_width, ellipsis)
        else:
            yield self._grid(rows, widths, ellipsis)

    def _kind(self, name: str) -> str:
        return "number" if name in self.numeric else "path" if name == "path" else "text"

    def _widths(self, rows: Sequence[Sequence[str]], width: int) -> list[int] | None:
        """Characters of each column, or None if they do not fit between the lines of a grid."""
        heads = self.header if self.show_header else [""] * len(self.header)
        widths = [max(map(cell_len, column)) for column in zip(heads, *rows, strict=True)]
        room = width - 3 * len(widths) - 1
        for kind, least in _LEAST.items():
            own = [i for i, name in enumerate(self.header) if self._kind(name) == kind]
            while sum(widths) > room and own:
                widest = max(own, key=widths.__getitem__)
                if widths[widest] <= least:
                    break
                widths[widest] -= 1
        return widths if sum(widths) <= room else None

    def _grid(self, rows: Sequence[Sequence[str]], widths: Sequence[int], ellipsis: str) -> Table:
        table = Table(show_header=self.show_header)
        for name, width in zip(self.header, widths, strict=True):
            justify = "right" if name in self.numeric else "left"
            table.add_column(Text(printable(name)), justify=justify, width=width, overflow="fold")
        for row in rows:
            cells = zip(self.header, row, widths, strict=True)
            table.add_row(*(Text(self._cut(*cell, ellipsis)) for cell in cells))
        return table

    def _blocks(
        self, rows: Sequence[Sequence[str]], width: int, ellipsis: str
    ) -> Iterator[RenderableType]:
        """Each row as its first cell with the others below, by name."""
        for first, *others in rows:
            yield Text(self._cut(self.header[0], first, width, ellipsis), style="bold")
            named = zip(map(printable, self.header[1:]), others, strict=True)
            said = [f"{name}{_GAP}{cell}".strip() for name, cell in named if cell]
            for line in textwrap.wrap(", ".join(said), max(width - 4, 1)):
                yield Text(f"    {line.replace(_GAP, ' ')}")

    def _cut(self, name: str, cell: str, width: int, ellipsis: str) -> str:
        return cut_middle(cell, width, ellipsis) if self._kind(name) == "path" else cell


def cut_middle(text: str, width: int, ellipsis: str = "…") -> str:
    """`text` in at most `width` columns of a terminal; more is left of its end than of its start.

    >>> cut_middle("/data/parts/2024/good/000.png", 20)
    '/data/…/good/000.png'
    """
    if cell_len(text) <= width:
        return text
    room = max(width - len(ellipsis), 0)
    start = set_cell_size(text, room // 3)
    end = set_cell_size(text[::-1], room - room // 3)[::-1]
    return f"{start}{ellipsis}{end}"


def printable(text: str) -> str:
    """`text` in one line without control characters: a file's name must not steer a terminal."""
    return visible(text, "?")
