"""The table of an `ImageDataset`: which columns it has and what is true of them."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd

from learnkit.data.annotations.boxes import FIELDS, checked_boxes
from learnkit.data.annotations.coco import RAW
from learnkit.data.labels import canonical_classes, canonical_labels
from learnkit.data.split import SPLITS, rows_drawn
from learnkit.errors import DataError, ImageReadError, number_of
from learnkit.report.progress import watched
from learnkit.storage.filesystem import open_regular

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
    frame = _with_annotations(frame, root)
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


def box_column(frame: pd.DataFrame) -> str | None:
    """The column of boxes, "boxes" or "rotated_boxes"; None if there is none.

    Raises:
        DataError: There are both, or boxes without their classes, or these without boxes.
    """
    kinds = [name for name in FIELDS if name in frame]
    if len(kinds) > 1:
        raise DataError(f"the table has columns {kinds}; a dataset has boxes of one kind")
    if bool(kinds) != ("box_labels" in frame):
        raise DataError(
            f"the table has the columns {list(frame.columns)}; boxes are 'box_labels' and one of "
            f"{list(FIELDS)}"
        )
    return kinds[0] if kinds else None


def task_of(frame: pd.DataFrame, good: str | None) -> str:
    """What can be learned of a table: see `ImageDataset.task`."""
    if good is not None:
        return "anomaly_detection"
    if box_column(frame):
        return "detection"
    return "segmentation" if "mask" in frame else "classification"


def _with_annotations(frame: pd.DataFrame, root: Path) -> pd.DataFrame:
    """The table with boxes and masks in canonical form; the classes of its boxes are its label.

    Raises:
        DataError: A box breaks its rule, or boxes and classes of an image are not as many.
    """
    if "mask" in frame:
        masks = ["" if _is_none(m) or m == "" else _clean_path(m, root) for m in frame["mask"]]
        frame = frame.assign(mask=pd.Series(masks, dtype=object, index=frame.index))
    kind = box_column(frame)
    if kind is None:
        return frame
    owners = [f"image {str(path)!r}" for path in frame["path"]]
    boxes = [checked_boxes(kind, *one) for one in zip(frame[kind], owners, strict=True)]
    labels = [list(one) if not _is_none(one) else [] for one in frame["box_labels"]]
    columns = {kind: boxes, "box_labels": _clean_box_labels(labels, owners)}
    if RAW in frame:
        columns[RAW] = [() if _is_none(one) else tuple(one) for one in frame[RAW]]
    for name, values in columns.items():
        for owner, one, some in zip(owners, boxes, values, strict=True):
            if len(one) != len(some):
                raise DataError(f"{owner} has {len(one)} {kind!r} and {len(some)} {name!r}")
    found = [tuple(sorted(set(one))) for one in columns["box_labels"]]
    if "label" in frame and [tuple(sorted(set(one))) for one in frame["label"]] != found:
        raise DataError(
            "the table has a 'label' that is not the classes of the boxes; leave that column out"
        )
    columns = {"label": found} | columns
    series = {k: pd.Series(v, dtype=object, index=frame.index) for k, v in columns.items()}
    return frame.assign(**series)


def _clean_box_labels(labels: list[list[Any]], owners: list[str]) -> list[tuple[str, ...]]:
    flat = [(name, owner) for one, owner in zip(labels, owners, strict=True) for name in one]
    clean, _ = canonical_labels([name for name, _ in flat], [owner for _, owner in flat])
    names = iter(clean)
    return [tuple(str(next(names)) for _ in one) for one in labels]


def _is_none(value: Any) -> bool:
    return value is None or (isinstance(value, float) and value != value) or value is pd.NA


def rows_kept(keep: Any, frame: pd.DataFrame) -> np.ndarray:
    """Whether each row is kept, bool (N,): see `ImageDataset.filter`.

    Raises:
        DataError: `keep` is not one boolean per row.
    """
    mask = np.asarray(keep(frame.copy()) if callable(keep) else keep)
    if mask.dtype != bool or mask.shape != (len(frame),):
        raise DataError(
            f"`keep` is {mask.dtype} of shape {mask.shape}; it must be one bool for each of the "
            f"{number_of(len(frame), 'row')}"
        )
    return mask


def rows_shown(frame: pd.DataFrame, n: int, seed: int | None) -> np.ndarray:
    """Whether each row is shown, bool (N,): the first `n`, or by lot; all of fewer rows."""
    if not isinstance(n, int) or n < 1:
        raise DataError(f"`n` is {n!r}; it must be a positive integer")
    n = min(n, len(frame))
    if seed is None:
        return np.arange(len(frame)) < n
    return rows_drawn(frame, n, None, seed=seed, stratify=False)


def fingerprint_of(
    frame: pd.DataFrame, root: Path, classes: Sequence[str], content: bool, progress: bool
) -> str:
    """sha256 in hex of a table, whatever the order of its rows: see `ImageDataset.fingerprint`.

    Raises:
        ImageReadError: A file cannot be read.
    """
    masks = frame["mask"] if "mask" in frame else [""] * len(frame)
    pairs = list(zip(frame["path"], masks, strict=True))
    hashed = watched(pairs, len(pairs), content and progress, "hash images")
    digests = [
        "".join(_digest(root / path) for path in pair if path) if content else "" for pair in hashed
    ]
    columns = [frame["path"], frame["label"], frame["split"], digests]
    columns += [frame[name] for name in ("mask", *FIELDS, "box_labels") if name in frame]
    rows = sorted(zip(*columns, strict=True))
    text = json.dumps([sorted(classes), rows], ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _digest(path: Path) -> str:
    """sha256 in hex of a file."""
    try:
        with open_regular(path) as file:
            return hashlib.sha256(file.read()).hexdigest()
    except OSError as error:
        raise ImageReadError(f"image {str(path)!r} cannot be read: {error.strerror}") from error


def numbers_of_classes(
    class_ids: Mapping[str, int] | None, classes: Sequence[str]
) -> dict[str, int]:
    """The id of each class, 0, 1, 2, ... where none are given; a DataError unless all have one."""
    if class_ids is None:
        return {name: i for i, name in enumerate(classes)}
    if set(class_ids) != set(classes):
        raise DataError(
            f"`class_ids` numbers {sorted(class_ids)[:10]}; it must number every class: "
            f"{list(classes)[:10]}"
        )
    return dict(class_ids)


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
            f"{number_of(len(doubled), 'image')} listed more than once, such as {doubled[0]!r}; "
            "keep one row each (several labels of one image are a list in one row)"
        )
    return cleaned


def check_files_exist(paths: Sequence[Path]) -> None:
    """Raise DataError naming the first of the files that do not exist."""
    if missing := [path for path in paths if not os.path.isfile(path)]:
        shown = ", ".join(repr(str(path)) for path in missing[:3])
        raise DataError(
            f"{len(missing)} of {number_of(len(paths), 'image')} do not exist, such as {shown}; "
            "check the "
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
