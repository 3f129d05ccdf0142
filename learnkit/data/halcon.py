"""DLDataset dictionaries, as HALCON's deep learning tools read and write them, in plain JSON types.

`HalconDictionaries` is a base of `ImageDataset`. Only classification has a meaning here: one class
per image, in `image_label_id`.
"""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from learnkit.data.labels import nfc
from learnkit.data.table import COLUMNS, check_files_exist, clean_paths
from learnkit.errors import DataError

if TYPE_CHECKING:
    from typing_extensions import Self

_MAX_CLASS_ID = 65_534
_OWN_KEYS = {"image_file_name", "image_id", "image_label_id", "split"}
_TO_HALCON = {"train": "train", "valid": "validation", "test": "test"}


class HalconDictionaries:
    """`from_halcon` and `to_halcon` of `ImageDataset`."""

    @classmethod
    def from_halcon(
        cls,
        dataset: Mapping[str, Any],
        image_dir: str | os.PathLike[str] | None = None,
        *,
        check_files: bool = True,
    ) -> "Self":
        """Dataset of a DLDataset dictionary for classification; further keys of samples are kept.

        Class ids need not be contiguous; `class_ids` and `to_halcon` give them back.

        Args:
            dataset: Has `class_names`, `class_ids` and `samples`, each with `image_file_name`,
                `image_label_id` and perhaps `image_id` and `split`; left unchanged.
            image_dir: Where the images are now; None takes the dictionary's own `image_dir`.
            check_files: Look whether every file is there.

        Raises:
            DataError: A key is missing, ids and names do not fit each other, a sample has no label
                or an unknown one, or a file name is absolute, climbs with ".." or does not exist.
        """
        for key in ("class_names", "class_ids", "samples"):
            if key not in dataset:
                raise DataError(
                    f"the dictionary has no {key!r}; it has {sorted(map(str, dataset))}"
                )
        folder = dataset.get("image_dir") if image_dir is None else image_dir
        if folder is None:
            raise DataError("the dictionary has no 'image_dir'; pass `image_dir=`")
        names = _names_of_ids(dataset["class_names"], dataset["class_ids"])
        rows = [_row(number, sample, names) for number, sample in enumerate(dataset["samples"])]
        frame = pd.DataFrame(rows, columns=None if rows else list(COLUMNS), dtype=object)
        root = Path(os.path.abspath(folder))
        if check_files:
            check_files_exist([root / path for path in clean_paths(frame["path"].tolist(), root)])
        class_ids = {nfc(name): class_id for class_id, name in names.items()}
        return cls(frame, root, classes=list(names.values()), class_ids=class_ids)

    def to_halcon(self) -> dict[str, Any]:
        """DLDataset dictionary of JSON types; `from_halcon` reads it back to an equal dataset.

        Extra columns become keys of the samples where they hold JSON types.

        Raises:
            DataError: The data are multi-label, or an image lies outside the root.
        """
        if self.multi_label:
            raise DataError("a DLDataset has one class per image; these data are multi-label")
        if outside := [path for path in self.frame["path"] if Path(path).is_absolute()]:
            raise DataError(
                f"{len(outside)} images lie outside the root, such as {outside[0]!r}; "
                "'image_file_name' is relative to 'image_dir'"
            )
        ids = dict(zip(self.classes, self.class_ids, strict=True))
        ordered = sorted(ids, key=ids.get)
        return {
            "image_dir": str(self.root),
            "class_names": ordered,
            "class_ids": [ids[name] for name in ordered],
            "samples": [_sample(row, ids) for row in self.frame.to_dict("records")],
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
    if wrong := [value for value in ids if not 0 <= value <= _MAX_CLASS_ID]:
        raise DataError(f"'class_ids' has {wrong[0]}; ids lie in 0..{_MAX_CLASS_ID}")
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
