"""DLDataset dictionaries, as HALCON's deep learning tools read and write them, in plain JSON types.

Only classification has a meaning here: one class per image, in `image_label_id`.
`annotations.dl_dataset` reads and writes all types.
"""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from learnkit.data.annotations.dl_dataset import MAX_CLASS_ID, one_form, read_dl_dataset
from learnkit.data.table import COLUMNS, check_files_exist, clean_paths
from learnkit.errors import DataError

_OWN_KEYS = {"image_file_name", "image_id", "image_label_id", "split"}
_TO_HALCON = {"train": "train", "valid": "validation", "test": "test"}


def dictionary_table(
    dataset: Mapping[str, Any] | str | os.PathLike[str],
    image_dir: str | os.PathLike[str] | None,
    *,
    check_files: bool,
) -> tuple[pd.DataFrame, Path, dict[int, str]]:
    """(table, absolute root, class name of each id): see `ImageDataset.from_halcon`.

    Raises:
        DataError: A key is missing, ids and names do not fit each other, a sample has no label
            or an unknown one, or a file name is absolute, climbs with ".." or does not exist.
    """
    if isinstance(dataset, Mapping):
        dataset = one_form(dataset)
    else:
        dataset = read_dl_dataset(dataset).to_dict()
    for key in ("class_names", "class_ids", "samples"):
        if key not in dataset:
            raise DataError(f"the dictionary has no {key!r}; it has {sorted(map(str, dataset))}")
    folder = dataset.get("image_dir") if image_dir is None else image_dir
    if folder is None:
        raise DataError("the dictionary has no 'image_dir'; pass `image_dir=`")
    names = _names_of_ids(dataset["class_names"], dataset["class_ids"])
    rows = [_row(number, sample, names) for number, sample in enumerate(dataset["samples"])]
    frame = pd.DataFrame(rows, columns=None if rows else list(COLUMNS), dtype=object)
    root = Path(os.path.abspath(folder))
    if check_files:
        check_files_exist([root / path for path in clean_paths(frame["path"].tolist(), root)])
    return frame, root, names


def halcon_dictionary(frame: pd.DataFrame, root: Path, ids: Mapping[str, int]) -> dict[str, Any]:
    """DLDataset dictionary of JSON types: see `ImageDataset.to_halcon`.

    Raises:
        DataError: An image lies outside the root.
    """
    if outside := [path for path in frame["path"] if Path(path).is_absolute()]:
        raise DataError(
            f"{len(outside)} images lie outside the root, such as {outside[0]!r}; "
            "'image_file_name' is relative to 'image_dir'"
        )
    ordered = sorted(ids, key=ids.get)
    return {
        "image_dir": str(root),
        "class_names": ordered,
        "class_ids": [ids[name] for name in ordered],
        "samples": [_sample(row, ids) for row in frame.to_dict("records")],
    }


def _names_of_ids(names: Sequence[Any], ids: Sequence[Any]) -> dict[int, str]:
    """Class name of each id."""
    names, ids = list(names), [_integer(value, "class_ids") for value in ids]
    if len(names) != len(ids):
        raise DataError(
            f"{len(names)} 'class_names' for {len(ids)} 'class_ids'; one each is needed"
        )
    if doubled := [value for value, n in Counter(ids).items() if n > 1]:
        raise DataError(f"'class_ids' has {doubled} more than once; ids must be distinct")
    if wrong := [value for value in ids if not 0 <= value <= MAX_CLASS_ID]:
        raise DataError(f"'class_ids' has {wrong[0]}; ids lie in 0..{MAX_CLASS_ID}")
    if wrong := [name for name in names if not isinstance(name, str)]:
        raise DataError(f"'class_names' has {wrong[0]!r}; names are text")
    return dict(zip(ids, names, strict=True))


def _row(number: int, sample: Mapping[str, Any], names: Mapping[int, str]) -> dict[str, Any]:
    """Table row of one sample."""
    for key in ("image_file_name", "image_label_id"):
        if key not in sample:
            raise DataError(
                f"sample {number} has no {key!r}; only datasets for classification can be read"
            )
    class_id = _integer(sample["image_label_id"], f"image_label_id of sample {number}")
    if class_id not in names:
        raise DataError(
            f"sample {number} has 'image_label_id' {class_id}; 'class_ids' are {list(names)[:10]}"
        )
    extra = {f"{k}": v for k, v in sample.items() if k not in _OWN_KEYS}
    if clash := set(extra) & set(COLUMNS):
        raise DataError(f"sample {number} has a key {clash.pop()!r}, which has no meaning here")
    return extra | {
        "image_id": _integer(sample.get("image_id", number), f"image_id of sample {number}"),
        "path": _file_name(sample["image_file_name"], number),
        "label": names[class_id],
        "split": sample.get("split", ""),
    }


def _file_name(name: Any, number: int) -> str:
    """Relative path with forward slashes, whichever system wrote it."""
    path = name.replace("\\", "/") if isinstance(name, str) else ""
    if not path or path.startswith("/") or path[1:2] == ":" or ".." in path.split("/"):
        raise DataError(
            f"sample {number} has 'image_file_name' {name!r}; it must lie below 'image_dir': "
            "relative, without '..'"
        )
    return path


def _integer(value: Any, what: str) -> int:
    """A plain integer, also out of a tuple of one (HALCON's tuples have any length)."""
    values = np.asarray(value).reshape(-1)
    if len(values) != 1 or values.dtype.kind not in "iu":
        raise DataError(f"{what} is {value!r}; it must be one integer")
    return int(values[0])


def _sample(row: Mapping[str, Any], ids: Mapping[str, int]) -> dict[str, Any]:
    """Sample dictionary of one table row."""
    sample = {
        "image_file_name": row["path"],
        "image_id": int(row["image_id"]),
        "image_label_id": [ids[row["label"]]],
    }
    if row["split"]:
        sample["split"] = _TO_HALCON[row["split"]]
    return sample | {k: v for k, v in row.items() if k not in COLUMNS and _is_json(v)}


def _is_json(value: Any) -> bool:
    """Whether `value` is of JSON types and not missing."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return value is not None
