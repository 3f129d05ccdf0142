"""Standard output of the commands: steps, tables, paths. Plain lines where it is no terminal.

A table is as wide as its terminal, with numbers and the ends of paths whole.
"""

from __future__ import annotations

import math
import shlex
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Table
from rich.text import Text

from learnkit.cli.remedies import remedy
from learnkit.errors import number_of
from learnkit.report.document import visible
from learnkit.report.progress import clear_line

if TYPE_CHECKING:
    import pandas as pd

    from learnkit.continual.change_report import ChangeReport
    from learnkit.evaluation.evaluate import Evaluation


_FINDINGS = 5  # shown of each kind
_PIPE = 10_000  # columns of what is no terminal: nothing is folded or cut for `grep`
# Characters below which a column does not shrink, in the order in which columns give room away: a
# path says least, and a number that is folded or cut is wrong.
_LEAST = {"path": 16, "text": 12}
# between a name and its cell: textwrap breaks lines at plain spaces alone
_GAP = "\N{NO-BREAK SPACE}"


class Report:
    """Says what a command does, step by step, on standard output.

    Args:
        n_steps: how many steps there will be; None for no numbers.
    """

    def __init__(self, n_steps: int | None = None):
        # rich would colour numbers within names, and break lines within paths
        self.console = Console(highlight=False, soft_wrap=True)
        if not self.console.is_terminal:
            self.console.width = _PIPE
        self.n_steps, self.n_done = n_steps, 0

    def step(self, text: str) -> None:
        """Announce the next step."""
        self.n_done += 1
        number = "" if self.n_steps is None else f"{self.n_done}/{self.n_steps} "
        clear_line()
        self.console.print(Text(printable(f"{number}{text}"), style="bold cyan"))

    def say(self, text: str = "") -> None:
        """Write an indented line; nothing in it is taken for markup."""
        clear_line()
        lines = "\n".join(map(printable, text.split("\n")))
        self.console.print(Text(f"    {lines}" if text else ""))

    def table(self, table: FittedTable, title: str = "", *, n_left_out: int = 0) -> None:
        """Write a table, below its title, and say how many rows are left out of it."""
        if title:
            self.console.print(Text(printable(title), style="bold"))
        self.console.print(table)
        if n_left_out > 0:
            self.console.print(Text(f"and {n_left_out} more", style="dim italic"))

    def frame(self, frame: pd.DataFrame, *, max_rows: int = 60) -> None:
        """Write the first rows of a data frame; numbers to the right."""
        numeric = [str(name) for name in frame.columns if frame[name].dtype.kind in "iuf"]
        rows = [*frame.itertuples(index=False)]
        self.rows([str(name) for name in frame.columns], rows, max_rows, numeric)

    def rows(
        self,
        header: Sequence[str],
        rows: Sequence[Sequence[Any]],
        max_rows: int,
        numeric: Sequence[str] = ("confidence", "ood_score"),
    ) -> None:
        """Write the first rows of values; columns of numbers, by name, to the right."""
        cells = [
            [_shown(name, value) for name, value in zip(header, row, strict=True)]
            for row in rows[:max_rows]
        ]
        table = FittedTable(header, cells, frozenset(numeric))
        self.table(table, n_left_out=len(rows) - max_rows)

    def evaluation(self, evaluation: Evaluation, title: str) -> None:
        """Write the verdict, the measures over all images, and those of each class."""
        from learnkit.evaluation.verdict import COLUMNS, meaning

        self.verdict(evaluation, title)
        rows = [
            [name.replace("_", " "), _shown(name, value), interval, meaning(name)]
            for name, value, interval in evaluation.with_intervals()
        ]
        header = ["measure", "value", "95 % interval", "meaning"]
        self.table(FittedTable(header, rows, frozenset({"value"})))
        self.frame(evaluation.per_class_shown().rename_axis("class").reset_index())
        self.say(COLUMNS)

    def verdict(self, evaluation: Evaluation, title: str) -> None:
        """Write the verdict and the notes on it, a sentence a line."""
        self.console.print(Text(printable(title), style="bold"))
        for sentence in (*evaluation.verdict, *evaluation.notes):
            self.say(sentence + remedy(sentence))

    def change(self, change: ChangeReport) -> None:
        """Write what was learned, class by class, and what follows from it."""
        rows = [
            [
                f"{name} (new)" if name in change.classes_added else name,
                f"{n:+d}",
                str(change.n_images.get(name, 0)),
            ]
            for name, n in (change.images or {}).items()
        ]
        known = number_of(change.n_classes, "class")
        if rows:
            header = ["class", "added", "images"]
            self.table(FittedTable(header, rows, frozenset({"added", "images"})), known)
        else:
            self.console.print(Text(known, style="bold"))
        self.consequences(change)

    def consequences(self, change: ChangeReport) -> None:
        """Write what became of threshold and temperature, and what there is to know about it."""
        for old, new in (change.renamed or {}).items():
            self.say(f"renamed {old} -> {new}")
        if change.n_validation:
            self.say(f"validation images {change.n_validation:+d}")
        pairs = {"threshold": change.threshold, "temperature": change.temperature}
        for name, (before, after) in pairs.items():
            if after is not None:
                former = "none" if before is None else f"{before:.4g}"
                self.say(f"{name} {former} -> {after:.4g}")
        for note in change.notes:
            self.say(note + remedy(note))

    def some(self, texts: Sequence[str], most: int) -> None:
        """Write the first texts, a line each, and how many more there are."""
        for text in texts[:most]:
            self.say(text + remedy(text))
        if len(texts) > most:
            self.say(f"and {len(texts) - most} more")

    def findings(self, found: pd.DataFrame) -> None:
        """Write what `ImageDataset.check` found: each kind, how often, and the first of them."""
        if found.empty:
            self.say("nothing to object to")
        for (severity, finding), rows in found.groupby(["severity", "finding"], sort=False):
            self.console.print(Text(f"{severity}: {finding} ({len(rows)})", style="bold"))
            for row in rows.head(_FINDINGS).to_dict("records"):
                about = ", ".join(filter(None, (row["path"], row["class"], row["split"])))
                detail = row["detail"] + remedy(row["detail"])
                self.say(": ".join(filter(None, (about, detail))))
            if len(rows) > _FINDINGS:
                self.say(f"and {len(rows) - _FINDINGS} more")

    def files(self, title: str, paths: Iterable[tuple[Path, str]]) -> None:
        """Write a list of (path, what it is)."""
        rows = [(str(path), what) for path, what in paths]
        width = max(len(path) for path, _ in rows)
        # 7: the indent of 4, and 3 blanks between the two
        fits = width + max(len(what) for _, what in rows) + 7 <= self.console.width
        self.console.print(Text(printable(title), style="bold"))
        for path, what in rows:
            self.say(f"{path:<{width}}   {what}" if fits else f"{path}\n        {what}")

    def command(self, title: str, *commands: Sequence[str | Path], say: str = "") -> None:
        """Write commands to try next, given by their words, as a shell takes them.

        What there is to `say` of the last one follows it.
        """
        self.console.print(Text(title, style="bold"))
        lines = [shlex.join(["learnkit", *map(str, words)]) for words in commands]
        for line in [*lines[:-1], lines[-1] + say]:
            self.console.print(Text(printable(f"    {line}"), style="green"))


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
        # a grid adds a line and two blanks to each column, and a line at its end
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
    # turned around, as it cuts ends alone; by columns, of which wide letters take two
    end = set_cell_size(text[::-1], room - room // 3)[::-1]
    return f"{start}{ellipsis}{end}"


def printable(text: str) -> str:
    """`text` in one line without control characters: a file's name must not steer a terminal."""
    return visible(text, "?")


def _shown(name: str, value: Any) -> str:
    """A number for reading: counts whole, measures to four places.

    >>> _shown("n", 12.0), _shown("train", 8), _shown("recall", 1.0), _shown("f1", float("nan"))
    ('12', '8', '1.0000', '-')
    """
    if isinstance(value, str):
        return value
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    if value is None or math.isnan(value):
        return "-"
    # numpy's integers are Integral, and no int
    return f"{value:.0f}" if name == "n" or isinstance(value, Integral) else f"{value:.4f}"


def fail(message: str) -> None:
    """Write one sentence to standard error."""
    clear_line()
    sys.stderr.write(f"learnkit: {printable(message)}\n")
