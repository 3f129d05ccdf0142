"""Boxes in tables of text: one row per box, or lists in JSON in the row of an image."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pandas as pd

from learnkit.data.annotations.boxes import FIELDS, ROTATED, UPRIGHT, rotated_of_rectangles
from learnkit.data.annotations.coco import RAW
from learnkit.errors import DataError

_CELLS = (*FIELDS, "box_labels", RAW)  # columns whose cells are JSON in CSV files


def with_json_cells(frame: pd.DataFrame, label_delim: str) -> pd.DataFrame:
    """A dataset's table as text for CSV: see `ImageDataset.to_csv`.

    Raises:
        DataError: A class name holds the delimiter of labels.
    """
    table = frame.copy()
    for name in _CELLS:
        if name in table:
            table[name] = [json.dumps(one, ensure_ascii=False) for one in table[name]]
    if "box_labels" in table:
        return table.drop(columns="label")
    if not all(isinstance(one, str) for one in table["label"]):
        if wrong := [name for one in table["label"] for name in one if label_delim in name]:
            raise DataError(
                f"class {wrong[0]!r} holds the `label_delim` {label_delim!r}; say another one"
            )
        table["label"] = [label_delim.join(one) for one in table["label"]]
    return table


def with_parsed_cells(frame: pd.DataFrame) -> pd.DataFrame:
    """The table with lists for what is written as JSON in columns of boxes.

    Raises:
        DataError: A cell is no list in JSON.
    """
    found = {
        name: pd.Series([_parsed(one, name) for one in frame[name]], frame.index, object)
        for name in _CELLS
        if name in frame.columns
    }
    return frame.assign(**found)


def by_image(
    frame: pd.DataFrame,
    path_col: str,
    label_col: str | Sequence[str],
    split_col: str | None,
    box_cols: Sequence[str],
) -> pd.DataFrame:
    """A row for each image of a table with one for each box; an image without has empty cells.

    Further columns hold a list with one value for each box.

    Raises:
        DataError: A column is missing, a coordinate is no number, or the boxes of an image are in
            several splits.
    """
    if isinstance(box_cols, str) or len(box_cols) not in (4, 5) or not isinstance(label_col, str):
        raise DataError(
            f"`box_cols` is {box_cols!r}; it names the columns of x0, y0, x1, y1 in the image, or "
            "of HALCON's row, col, phi, length1, length2, beside one `label_col`"
        )
    for name in (path_col, label_col, *box_cols):
        if list(frame.columns).count(name) != 1:
            raise DataError(
                f"the table has the columns {list(frame.columns)}; of boxes it needs {name!r}, once"
            )
    split_col = split_col or "split"
    kind = UPRIGHT if len(box_cols) == 4 else ROTATED
    others = [name for name in frame if name not in {path_col, label_col, split_col, *box_cols}]
    rows: dict[Any, dict[str, Any]] = {}
    for number, one in enumerate(frame.to_dict("records")):
        lists = {name: [] for name in (kind, "box_labels", *others)}
        row = rows.setdefault(one[path_col], {path_col: one[path_col], **lists})
        if split_col in one and row.setdefault(split_col, one[split_col]) != one[split_col]:
            raise DataError(
                f"image {one[path_col]!r} is in {row[split_col]!r} and in {one[split_col]!r}; all "
                "its boxes are of one split"
            )
        cells = [one[name] for name in (*box_cols, label_col)]
        if all(cell is None or cell == "" or cell != cell for cell in cells):
            continue
        row[kind].append(_numbers(cells[:-1], f"row {number}, of image {one[path_col]!r},"))
        row["box_labels"].append(one[label_col])
        for name in others:
            row[name].append(one[name])
    if kind == ROTATED:
        for row in rows.values():
            row[kind] = rotated_of_rectangles(row[kind]).tolist()
    return pd.DataFrame(list(rows.values()), dtype=object)


def _numbers(cells: Sequence[Any], where: str) -> list[float]:
    try:
        return [float(cell) for cell in cells]
    except (TypeError, ValueError) as error:
        raise DataError(f"{where} has the box {cells!r:.80}; coordinates are numbers") from error


def _parsed(cell: Any, name: str) -> Any:
    if not isinstance(cell, str) or not cell:
        return cell or None
    try:
        found = json.loads(cell)
    except (ValueError, RecursionError) as error:
        raise DataError(f"column {name!r} has {cell!r:.80}; it is a list in JSON") from error
    if not isinstance(found, list):
        raise DataError(f"column {name!r} has {cell!r:.80}; it is a list in JSON")
    return found
