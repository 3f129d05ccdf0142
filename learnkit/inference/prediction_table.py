"""Predictions of any number of files as CSV, JSON lines or Parquet, a few rows in memory at a time.

A row has a value for every column: what the model says of a file, or why it says nothing. Numbers
come back as they went in.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from learnkit.errors import LearnkitError, MissingExtraError, PredictionError
from learnkit.inference.prediction import finite_or_none

OWN_COLUMNS = ("path", "label", "confidence", "error", "is_ood", "ood_score", "p_value", "model")
_MEASURES = ("confidence", "ood_score", "p_value")
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
    row |= {name: getattr(result, name) for name in ("is_ood", "ood_score", "p_value")}
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


def write_table(path: Path, kind: str, layout: Layout, groups: Iterable[Sequence[Row]]) -> None:
    """Write `groups` of rows one after the other into a new file at `path`."""
    _WRITERS[kind](path, layout, groups)


def read_marks(path: Path, kind: str) -> Iterator[tuple[str, str, bool]]:
    """Path, model, and whether it has an error, of every row that `write_table` wrote, in order.

    Raises:
        PredictionError: the file is something else, or damaged.
    """
    try:
        yield from _READERS[kind](path)
    except (KeyError, ValueError, TypeError, csv.Error) as error:  # pyarrow's are ValueErrors, too
        raise PredictionError(
            f"{str(path)!r} is no table of predictions that could be gone on with ({error}); "
            "choose another name, or replace it with `resume=False`"
        ) from error


def _text(value: Any) -> Any:
    """Text as UTF-8 can hold it: what else is in file names is written as an escape."""
    if isinstance(value, list):
        return [_text(v) for v in value]
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    return value


def _write_jsonl(path: Path, layout: Layout, groups: Iterable[Sequence[Row]]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in (row for rows in groups for row in rows):
            line = {k: _text(row[k]) for k in OWN_COLUMNS[:-1]} | {"model": layout.model}
            line |= {k: finite_or_none(row[k]) for k in _MEASURES}
            if layout.classes:
                values = row["probs"]
                line["probs"] = values and dict(zip(layout.classes, values, strict=True))
            file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")


def _write_csv(path: Path, layout: Layout, groups: Iterable[Sequence[Row]]) -> None:
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*OWN_COLUMNS, *(f"p({name})" for name in layout.classes)])
        for row in (row for rows in groups for row in rows):
            label = row["label"]
            if isinstance(label, list):
                label = json.dumps(label, ensure_ascii=False)
            own = [*({**row, "label": label}[k] for k in OWN_COLUMNS[:-1]), layout.model]
            writer.writerow(own + (row["probs"] or [None] * len(layout.classes)))


def _write_parquet(path: Path, layout: Layout, groups: Iterable[Sequence[Row]]) -> None:
    pa, parquet = _pyarrow()
    text = pa.string()
    kinds = {"path": text, "label": pa.list_(text) if layout.multi_label else text}
    kinds |= {"confidence": pa.float64(), "error": text, "is_ood": pa.bool_()}
    kinds |= {"ood_score": pa.float64(), "p_value": pa.float64(), "model": text}
    names = [f"p({name})" for name in layout.classes]
    schema = pa.schema([*kinds.items(), *((name, pa.float32()) for name in names)])
    with parquet.ParquetWriter(path, schema) as writer:
        for rows in groups:
            columns = [[_text(row[k]) for row in rows] for k in OWN_COLUMNS[:-1]]
            columns.append([layout.model] * len(rows))
            blank = [None] * len(names)
            columns += zip(*(row["probs"] or blank for row in rows), strict=True)
            arrays = [
                pa.array(values, type=field.type)
                for values, field in zip(columns, schema, strict=True)
            ]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


def _read_jsonl(path: Path) -> Iterator[tuple[str, str, bool]]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            yield row["path"], row["model"], row["error"] is not None


def _read_csv(path: Path) -> Iterator[tuple[str, str, bool]]:
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            yield row["path"], row["model"], bool(row["error"])


def _read_parquet(path: Path) -> Iterator[tuple[str, str, bool]]:
    _, parquet = _pyarrow()
    with parquet.ParquetFile(path) as file:
        names = ["path", "model", "error"]
        for batch in file.iter_batches(columns=names):
            paths, models, errors = (batch.column(name).to_pylist() for name in names)
            failed = (error is not None for error in errors)
            yield from zip(paths, models, failed, strict=True)


def as_written(path: str) -> str:
    """How a file's path stands in a table; see `_text`."""
    return _text(path)


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


_WRITERS: dict[str, Callable[[Path, Layout, Iterable[Sequence[Row]]], None]] = {
    "csv": _write_csv,
    "jsonl": _write_jsonl,
    "parquet": _write_parquet,
}
_READERS: dict[str, Callable[[Path], Iterator[tuple[str, str]]]] = {
    "csv": _read_csv,
    "jsonl": _read_jsonl,
    "parquet": _read_parquet,
}
