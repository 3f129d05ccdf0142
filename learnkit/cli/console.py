"""What the commands say: steps, tables, paths. Plain lines where the output is no terminal."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    import pandas as pd

    from learnkit.continual.change_report import ChangeReport
    from learnkit.evaluation.evaluate import Evaluation


class Report:
    """Says what a command does, step by step, on standard output.

    Args:
        n_steps: how many steps there will be; None for no numbers.
    """

    def __init__(self, n_steps: int | None = None):
        self.console = Console(highlight=False, soft_wrap=True)
        self.n_steps, self.n_done = n_steps, 0

    def step(self, text: str) -> None:
        """Announce the next step."""
        self.n_done += 1
        number = "" if self.n_steps is None else f"{self.n_done}/{self.n_steps} "
        self.console.print(Text(f"{number}{text}", style="bold cyan"))

    def say(self, text: str = "") -> None:
        """Write an indented line; nothing in it is taken for markup."""
        self.console.print(Text(f"    {text}" if text else ""))

    def table(self, table: Table) -> None:
        """Write a table."""
        self.console.print(table)

    def files(self, title: str, paths: Iterable[tuple[Path, str]]) -> None:
        """Write a list of (path, what it is)."""
        rows = [(str(path), what) for path, what in paths]
        width = max(len(path) for path, _ in rows)
        self.console.print(Text(title, style="bold"))
        for path, what in rows:
            self.say(f"{path:<{width}}   {what}")

    def command(self, title: str, *commands: str) -> None:
        """Write commands to try next."""
        self.console.print(Text(title, style="bold"))
        for line in commands:
            self.console.print(Text(f"    {line}", style="green"))


def evaluation_tables(evaluation: Evaluation, title: str) -> list[Table]:
    """The measures over all images, and those of each class."""
    summary = Table(title=title, title_justify="left", title_style="bold", show_header=False)
    summary.add_column("measure")
    summary.add_column("value", justify="right")
    for name, value in evaluation.summary.items():
        summary.add_row(name.replace("_", " "), _shown(name, value))
    return [summary, frame_table(evaluation.per_class.rename_axis("class").reset_index())]


def change_table(change: ChangeReport) -> Table:
    """Images learned per class, and what followed from them."""
    table = Table(title=f"{change.n_classes} classes", title_justify="left", title_style="bold")
    table.add_column("class", overflow="fold")
    for name in ("added", "images"):
        table.add_column(name, justify="right")
    for name, n in (change.images or {}).items():
        new = " (new)" if name in change.classes_added else ""
        table.add_row(Text(f"{name}{new}"), f"{n:+d}", str(change.n_images[name]))
    return table


def change_lines(change: ChangeReport) -> list[str]:
    """What became of threshold and temperature, and what there is to know about it."""
    pairs = {"threshold": change.threshold, "temperature": change.temperature}
    lines = [
        f"{name} {'none' if before is None else f'{before:.4g}'} -> {after:.4g}"
        for name, (before, after) in pairs.items()
        if after is not None
    ]
    return [*lines, *change.notes]


def frame_table(frame: pd.DataFrame, *, max_rows: int = 60) -> Table:
    """The first rows of a table; numbers to the right."""
    table = Table(caption=_rest(len(frame) - max_rows), caption_justify="left")
    for name in frame.columns:
        numeric = frame[name].dtype.kind in "iuf"
        table.add_column(str(name), justify="right" if numeric else "left", overflow="fold")
    for row in frame.head(max_rows).itertuples(index=False):
        cells = zip(frame.columns, row, strict=True)
        table.add_row(*(Text(_shown(str(name), value)) for name, value in cells))
    return table


def _rest(n: int) -> str | None:
    return f"and {n} more" if n > 0 else None


def _shown(name: str, value: Any) -> str:
    """A number for reading: counts whole, measures to four places.

    >>> _shown("n", 12.0), _shown("train", 8), _shown("recall", 1.0), _shown("f1", float("nan"))
    ('12', '8', '1.0000', '-')
    """
    if isinstance(value, str):
        return value
    if value is None or math.isnan(value):
        return "-"
    return f"{value:.0f}" if name == "n" or isinstance(value, Integral) else f"{value:.4f}"


def fail(message: str) -> None:
    """Write one sentence to standard error."""
    sys.stderr.write(f"learnkit: {message}\n")
