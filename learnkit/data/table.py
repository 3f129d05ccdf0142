"""The table of an `ImageDataset`: which columns it has and what is true of them."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd

from learnkit.data.labels import canonical_classes, canonical_labels
from learnkit.data.split import SPLITS
from learnkit.errors import DataError

COLUMNS = ("image_id", "path", "label", "split")
_SPLIT_NAMES = {name: name for name in (*SPLITS, "")} | {"val": "valid", "validation": "valid"}


def object_table(
    columns: Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]],
) -> pd.DataFrame:
    """Table of Python objects as they are: pandas' own text refuses undecodable file names."""
    return pd.DataFrame(columns, dtype=object)


def clean_table(
    frame: pd.DataFrame,
    root: Path,
    classes: Sequence[str] | None,
    *,
    case_sensitive: bool = False,
) -> tuple[pd.DataFrame, list[str], bool]:
    """(table in canonical form, sorted classes, whether labels are tuples) of a reader's table.

    Raises:
        DataError: The table breaks a rule; the message names the column and the rows.
    """
    check_columns(frame, ("path", "label"))
    if not len(frame):
        raise DataError(f"the table has no rows: no images found for {str(root)!r}")
    paths = clean_paths(frame["path"].tolist(), root)
    labels, multi_label = canonical_labels(frame["label"].tolist(), paths)
    flat = [name for label in labels for name in label] if multi_label else labels
    given = dict.fromkeys(flat) if classes is None else classes
    names = canonical_classes(given, flat, case_sensitive=case_sensitive)
    ids = frame["image_id"].tolist() if "image_id" in frame else range(len(frame))
    table = {
        "image_id": clean_ids(ids),
        "path": paths,
        "label": labels,
        "split": clean_splits(frame["split"].tolist() if "split" in frame else [""] * len(frame)),
    }
    extra = frame.drop(columns=[name for name in COLUMNS if name in frame]).reset_index(drop=True)
    columns = {name: pd.Series(v, dtype=object) for name, v in table.items() if name != "image_id"}
    core = pd.DataFrame({"image_id": table["image_id"], **columns})
    return pd.concat([core, extra], axis=1), names, multi_label


def check_columns(frame: pd.DataFrame, needed: Sequence[str]) -> None:
    """Raise DataError unless the columns are there, each once."""
    if doubled := [str(name) for name, n in Counter(frame.columns).items() if n > 1]:
        raise DataError(f"the table has columns {doubled} more than once; rename or remove some")
    if missing := [name for name in needed if name not in frame.columns]:
        raise DataError(f"the table has no column {missing[0]!r}; it has {list(frame.columns)}")


def clean_paths(paths: Sequence[Any], root: Path) -> list[str]:
    """Paths with forward slashes, relative to `root` where they lie below it.

    Raises:
        DataError: One is missing, climbs with "..", or is listed twice.
    """
    cleaned = [_clean_path(path, root) for path in paths]
    if doubled := [path for path, n in Counter(cleaned).items() if n > 1]:
        raise DataError(
            f"{len(doubled)} images are listed more than once, such as {doubled[0]!r}; keep one "
            "row each (several labels of one image are a list in one row)"
        )
    return cleaned


def check_files_exist(paths: Sequence[Path]) -> None:
    """Raise DataError naming the first of the files that do not exist."""
    if missing := [path for path in paths if not os.path.isfile(path)]:
        shown = ", ".join(repr(str(path)) for path in missing[:3])
        raise DataError(
            f"{len(missing)} of {len(paths)} images do not exist, such as {shown}; check the "
            "folder paths are relative to, or remove the rows"
        )


def clean_splits(values: Sequence[Any]) -> list[str]:
    """One of "train", "valid", "test" or "" (missing) for each value, val being valid."""
    values = ["" if pd.isna(value) else value for value in values]
    if unknown := sorted({str(v) for v in values if v not in _SPLIT_NAMES}):
        raise DataError(
            f"split {unknown[:5]} is not known; use 'train', 'valid' ('val', 'validation'), 'test'"
        )
    return [_SPLIT_NAMES[value] for value in values]


def clean_ids(values: Sequence[Any]) -> np.ndarray:
    """int64 (N,) of distinct integers; digits out of a text file count as such."""
    values = [int(v) if isinstance(v, str) and v.isascii() and v.isdigit() else v for v in values]
    wrong = [v for v in values if isinstance(v, bool) or not isinstance(v, int | np.integer)]
    if wrong:
        raise DataError(f"`image_id` has {wrong[0]!r}; it must be an integer in every row")
    if doubled := [value for value, n in Counter(values).items() if n > 1]:
        raise DataError(f"`image_id` {doubled[:5]} is given to several images; it must be unique")
    return np.array(list(values), dtype=np.int64)


def _clean_path(path: Any, root: Path) -> str:
    if not isinstance(path, str | os.PathLike) or not str(path):
        raise DataError(f"path {path!r} is no file name; every row needs one")
    pure = PurePosixPath(Path(path).as_posix())
    if ".." in pure.parts:
        raise DataError(
            f"path {str(path)!r} climbs with '..'; paths must lie below the root, or be absolute"
        )
    return str(pure.relative_to(root) if pure.is_relative_to(root) else pure)
