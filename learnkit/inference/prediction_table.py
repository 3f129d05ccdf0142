"""Predictions of any number of files as CSV, JSON lines or Parquet, a few rows in memory at a time.

A row has a value for every column: what the model says of a file, or why it says nothing. Numbers
come back as they went in.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from learnkit.data.read_images import chunks
from learnkit.errors import LearnkitError, MissingExtraError, PredictionError
from learnkit.storage.formats import finite_or_none

OWN_COLUMNS = (
    *("path", "verdict", "label", "confidence", "error"),
    *("is_ood", "ood_score", "p_value", "model"),
)
_MEASURES = ("confidence", "ood_score", "p_value")
_MARKS = ["path", "model", "verdict", "error"]
_ROW_GROUP = 512  # rows of Parquet in memory at a time
Row = dict[str, Any]


@dataclass(frozen=True)
class Layout:
    """What the rows of one table have in common.

    Attributes:
        classes: names of the probabilities; none if they are left out.
        model: the digest every row ends in.
        multi_label: labels are lists of names.
    """

    classes: tuple[str, ...]
    model: str
    multi_label: bool = False


def row_of(path: str, result: Any, *, probs: bool) -> Row:
    """The row for `path`, without its model: fields of a prediction, or the error in its place."""
    row: Row = dict.fromkeys(OWN_COLUMNS[:-1])
    if isinstance(result, LearnkitError):
        return row | {"path": path, "error": str(result), "probs": None}
    label = list(result.label) if isinstance(result.label, tuple) else result.label
    row |= {"path": path, "label": label, "confidence": result.confidence}
    row |= {name: getattr(result, name) for name in ("verdict", "is_ood", "ood_score", "p_value")}
    return row | {"probs": result.probs.tolist() if probs else None}


def table_kind(path: Path) -> str:
    """Which table `path` names: "csv", "jsonl" or "parquet".

    Raises:
        PredictionError: none of them.
        MissingExtraError: Parquet, without the package that writes it.
    """
    kind = path.suffix.lower().removeprefix(".")
    if kind not in _WRITERS:
        raise PredictionError(
            f"`out` is {str(path)!r}; name a file that ends in .parquet, .csv or .jsonl"
        )
    if kind == "parquet":
        _pyarrow()
    return kind


def write_table(file: BinaryIO, kind: str, layout: Layout, rows: Iterable[Row]) -> None:
    """Write `rows` as a table into an empty file."""
    _WRITERS[kind](file, layout, rows)


def read_marks(path: Path, kind: str) -> Iterator[tuple[str, str, str | None]]:
    """Path, model and verdict (None of an error) of every row that `write_table` wrote, in order.

    Raises:
        PredictionError: the file is something else, or damaged.
    """
    try:
        with path.open("rb") as file:
            for row in _READERS[kind](file):
                found, model, verdict, error = (row[name] for name in _MARKS)
                yield found, model, verdict if error in (None, "") else None
    except (KeyError, ValueError, TypeError, csv.Error) as error:  # pyarrow's are ValueErrors, too
        raise PredictionError(
            f"{str(path)!r} is no table of predictions that could be gone on with ({error}); "
            "choose another name, or replace it with `resume=False`"
        ) from error


def as_written(path: str) -> str:
    """How a file's path stands in a table: what UTF-8 cannot hold is written as an escape."""
    return path.encode("utf-8", "backslashreplace").decode("utf-8")


def _text(value: Any) -> Any:
    """`as_written` of text and lists of text, anything else unchanged."""
    if isinstance(value, list):
        return [_text(v) for v in value]
    return as_written(value) if isinstance(value, str) else value


def _write_jsonl(file: BinaryIO, layout: Layout, rows: Iterable[Row]) -> None:
    for row in rows:
        line = {k: _text(row[k]) for k in OWN_COLUMNS[:-1]} | {"model": layout.model}
        line |= {k: finite_or_none(row[k]) for k in _MEASURES}
        if layout.classes:
            values = row["probs"]
            line["probs"] = values and dict(zip(layout.classes, values, strict=True))
        file.write((json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n").encode())


def _write_csv(file: BinaryIO, layout: Layout, rows: Iterable[Row]) -> None:
    with _as_text(file, errors="backslashreplace") as text:
        writer = csv.writer(_Lines(text), lineterminator="\r\n")
        writer.writerow([*OWN_COLUMNS, *(f"p({name})" for name in layout.classes)])
        for row in rows:
            label = row["label"]
            if isinstance(label, list):
                label = json.dumps(label, ensure_ascii=False)
            own = [*({**row, "label": label}[k] for k in OWN_COLUMNS[:-1]), layout.model]
            writer.writerow(own + (row["probs"] or [None] * len(layout.classes)))


class _Lines:
    """A file whose lines end in LF, for a writer that ends them in CR and LF.

    With LF alone `csv.writer` does not quote a CR, and readers take it for the end of the row.
    """

    def __init__(self, text: TextIO):
        self._text = text

    def write(self, line: str) -> None:
        """Write a row, as `csv.writer` gives it."""
        self._text.write(line.removesuffix("\r\n") + "\n")


def _write_parquet(file: BinaryIO, layout: Layout, rows: Iterable[Row]) -> None:
    pa, parquet = _pyarrow()
    text = pa.string()
    kinds = {"path": text, "verdict": text}
    kinds |= {"label": pa.list_(text) if layout.multi_label else text}
    kinds |= {"confidence": pa.float64(), "error": text, "is_ood": pa.bool_()}
    kinds |= {"ood_score": pa.float64(), "p_value": pa.float64(), "model": text}
    names = [f"p({name})" for name in layout.classes]
    schema = pa.schema([*kinds.items(), *((name, pa.float32()) for name in names)])
    blank = [None] * len(names)
    with parquet.ParquetWriter(file, schema) as writer:
        for group in chunks(rows, _ROW_GROUP):
            columns = [[_text(row[k]) for row in group] for k in OWN_COLUMNS[:-1]]
            columns.append([layout.model] * len(group))
            columns += zip(*(row["probs"] or blank for row in group), strict=True)
            arrays = [
                pa.array(values, type=field.type)
                for values, field in zip(columns, schema, strict=True)
            ]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


def _read_csv(file: BinaryIO) -> Iterator[Row]:
    with _as_text(file) as text:
        yield from csv.DictReader(text)


@contextmanager
def _as_text(file: BinaryIO, errors: str = "strict") -> Iterator[TextIO]:
    # without translation, as `csv` asks: line ends inside of cells stay what they are
    text = TextIOWrapper(file, "utf-8", errors, newline="")
    try:
        yield text
    finally:
        text.detach()  # else the file would be closed with it


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError(
            "Parquet files are written by pyarrow, which is not installed: `pip install pyarrow`, "
            "or name a file that ends in .csv or .jsonl"
        ) from error
    return pyarrow, pyarrow.parquet


_WRITERS: dict[str, Callable[[BinaryIO, Layout, Iterable[Row]], None]] = {
    "csv": _write_csv,
    "jsonl": _write_jsonl,
    "parquet": _write_parquet,
}
_READERS: dict[str, Callable[[BinaryIO], Iterator[Row]]] = {
    "csv": _read_csv,
    "jsonl": lambda file: map(json.loads, file),
    "parquet": lambda file: (
        row
        for batch in _pyarrow()[1].ParquetFile(file).iter_batches(columns=_MARKS)
        for row in batch.to_pylist()
    ),
}
