"""DLDataset: HALCON's dataset dictionary for classification, segmentation, anomalies and boxes.

HALCON and JSON write the same dictionary in several ways: a tuple of one element as a scalar, an
array as a dictionary with the keys 0, 1, 2, ..., a boolean as 1 or 0. Here each key of the
specification has one form; every other key is kept as it is.
"""

import copy
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from learnkit.data.annotations.boxes import corners_of_rectangles, edges_of_rectangles
from learnkit.errors import BundleCorruptError, DataError, number_of
from learnkit.storage.filesystem import write_file
from learnkit.storage.formats import parse_json, to_json

MAX_CLASS_ID = 65_534  # HALCON's own limit
TYPES = {  # the key of a sample that tells the type, in HALCON's order
    "anomaly_label": "anomaly_detection",
    "image_label_id": "classification",
    "bbox_label_id": "detection",
    "segmentation_file_name": "segmentation",
}
RECTANGLE1 = ("bbox_row1", "bbox_col1", "bbox_row2", "bbox_col2")
RECTANGLE2 = ("bbox_row", "bbox_col", "bbox_phi", "bbox_length1", "bbox_length2")
_SPLITS = ("train", "validation", "test")
_DIRS = ("image_dir", "dlsample_dir", "anomaly_dir", "segmentation_dir")
_FILES = {  # name of a file -> the folder it lies in
    "image_file_name": "image_dir",
    "dlsample_file_name": "dlsample_dir",
    "anomaly_file_name": "anomaly_dir",
    "segmentation_file_name": "segmentation_dir",
}
_TEXTS = {*_DIRS, *_FILES, "split", "anomaly_label"}
_NUMBERS = {"class_ids", "class_weights", "image_label_id", "bbox_label_id"}
_NUMBERS |= {*RECTANGLE1, *RECTANGLE2}
_TUPLES = _NUMBERS | {"class_names", "samples", "coco_raw_annotations"}
_SCALARS = _TEXTS | {"image_id"}


class DLDataset:
    """A DLDataset of any type, checked, in plain JSON types.

    Args:
        dictionary: HALCON's dictionary, in any of its forms; left unchanged. `image_dir` and, of a
            sample, `image_id`, `split` and the annotation may be missing.

    Raises:
        DataError: A key that is needed is missing; a value has another type, is not finite or is
            nothing that JSON holds; ids lie outside 0..65534, or ids or names are there twice; a
            label is not in the classes; a file name leaves its folder; the lists of a sample's
            boxes have several lengths, or mix both kinds of rectangle.
    """

    def __init__(self, dictionary: Mapping[str, Any]) -> None:
        if not isinstance(dictionary, Mapping):
            raise DataError(
                f"`dictionary` is {dictionary!r:.80}; a DLDataset is a dictionary with 'samples'"
            )
        self._entries = _checked(one_form(dictionary))
        kinds = {RECTANGLE1[0]: "rectangle1", RECTANGLE2[0]: "rectangle2"}
        keys = {key for sample in self._entries["samples"] for key in sample}
        self._instance_type = next((kind for key, kind in kinds.items() if key in keys), None)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DLDataset) and self._entries == other._entries

    def __repr__(self) -> str:
        samples, classes = self._entries["samples"], self._entries["class_names"]
        counts = f"{number_of(len(samples), 'sample')}, {number_of(len(classes), 'class')}"
        return f"DLDataset({self.type}, {counts})"

    @property
    def type(self) -> str | None:
        """The type the samples' keys tell: one of `TYPES`' values; None where none tells it."""
        return dl_dataset_type(self._entries["samples"])

    @property
    def instance_type(self) -> str | None:
        """'rectangle1' or 'rectangle2' where a sample has boxes; else None."""
        return self._instance_type

    def boxes(self, number: int) -> np.ndarray:
        """The boxes of a sample in the image: float64, (N, 4) edges or (N, 4, 2) corners.

        Edges are (x0, y0, x1, y1), corners (x, y), clockwise as seen; the image's upper left corner
        is (0, 0). `instance_type` says which; edges where no sample has boxes.

        >>> box = {"bbox_row1": -0.5, "bbox_col1": 4.5, "bbox_row2": 2.5, "bbox_col2": 9.5}
        >>> sample = {"image_file_name": "a.png", "bbox_label_id": 0, **box}
        >>> data = DLDataset({"class_names": "nut", "class_ids": 0, "samples": sample})
        >>> data.boxes(0).tolist()
        [[5.0, 0.0, 10.0, 3.0]]
        """
        sample = self._entries["samples"][number]
        if self._instance_type == "rectangle2":
            rectangles = np.transpose([sample.get(key, []) for key in RECTANGLE2])
            return corners_of_rectangles(rectangles)
        return edges_of_rectangles(np.transpose([sample.get(key, []) for key in RECTANGLE1]))

    def to_dict(self) -> dict[str, Any]:
        """The dictionary: every key that was read, tuples as lists; a copy, ready for JSON.

        >>> data = DLDataset({"class_names": "ok", "class_ids": 0, "samples": {}})
        >>> data.to_dict()
        {'class_names': ['ok'], 'class_ids': [0], 'samples': []}
        """
        return copy.deepcopy(self._entries)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the dictionary as a JSON file, which is there whole or not at all.

        HALCON's read_dict and `read_dl_dataset` read it.

        Raises:
            DataError: The name ends in .hdict, HALCON's binary form; a text cannot be written in
                UTF-8; or the file cannot be written.
        """
        if Path(path).suffix == ".hdict":
            raise DataError(
                f"{Path(path).name!r} would be HALCON's binary form, which is closed; call it .json"
            )
        try:
            text = to_json(self._entries)
            write_file(Path(path), lambda file: file.write(text))
        except (OSError, ValueError) as error:
            raise DataError(f"{os.fspath(path)!r} cannot be written: {error}") from error


def read_dl_dataset(source: Mapping[str, Any] | str | os.PathLike[str]) -> DLDataset:
    """DLDataset of a dictionary, or of a JSON file that holds one.

    Raises:
        DataError: See `DLDataset`; or the file is missing, is no strict JSON, or is HALCON's
            binary form, which is closed.
    """
    if not isinstance(source, (str, os.PathLike)):
        return DLDataset(source)
    path = Path(source)
    if path.suffix == ".hdict":
        raise DataError(
            f"{path.name!r} is HALCON's binary form, which is closed; write it as JSON in "
            f"HDevelop: write_dict (DLDataset, '{path.stem}.json', [], [])"
        )
    if not path.is_file():
        raise DataError(f"there is no file {str(source)!r}; `source` is a dictionary or JSON file")
    try:
        found = parse_json(path.read_bytes(), path.name)
    except BundleCorruptError as error:
        raise DataError(str(error)) from error
    return DLDataset(found)


def dl_dataset_type(samples: Iterable[Mapping[str, Any]]) -> str | None:
    """The type that the keys of the samples tell, in HALCON's order; None if they do not.

    >>> dl_dataset_type([{"image_file_name": "a.png", "bbox_label_id": []}])
    'detection'
    """
    keys = {key for sample in samples for key in sample}
    return next((kind for key, kind in TYPES.items() if key in keys), None)


def one_form(dictionary: Mapping[str, Any]) -> dict[str, Any]:
    """A DLDataset with each key of the specification in one form, tuples as lists; not checked.

    >>> one_form({"class_names": "ok", "class_ids": {"0": 0, "1": 3}, "image_dir": ["a"]})
    {'class_names': ['ok'], 'class_ids': [0, 3], 'image_dir': 'a'}
    """
    entries = {key: _form(key, value) for key, value in dictionary.items()}
    if "samples" in entries:
        entries["samples"] = [
            {key: _form(key, value) for key, value in sample.items()}
            if isinstance(sample, Mapping)
            else sample
            for sample in entries["samples"]
        ]
    return entries


def _form(key: Any, value: Any) -> Any:
    if key in _SCALARS:
        values = _listed(value)
        return values[0] if len(values) == 1 else value
    if key in _NUMBERS:
        return [int(one) if isinstance(one, bool) else one for one in _listed(value)]
    return _listed(value) if key in _TUPLES else value


def _listed(value: Any) -> list[Any]:
    """HALCON's tuple as a list of plain values."""
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, Mapping) and (not value or _is_array(value)):
        value = [value[key] for key in sorted(value, key=int)]
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return [one.item() if isinstance(one, np.generic) else one for one in values]


def _is_array(value: Mapping[Any, Any]) -> bool:
    """Whether the keys are 0, 1, 2, ..., as numbers or, as in JSON, as text."""
    return bool(value) and {str(key) for key in value} == {str(i) for i in range(len(value))}


def _checked(entries: dict[str, Any]) -> dict[str, Any]:
    """A copy of the dictionary in plain JSON types."""
    for key in ("class_names", "class_ids", "samples"):
        if key not in entries:
            raise DataError(f"the dictionary has no {key!r}; it has {sorted(map(str, entries))}")
    if wrong := [i for i, one in enumerate(entries["samples"]) if not isinstance(one, dict)]:
        raise DataError(
            f"sample {wrong[0]} is {entries['samples'][wrong[0]]!r:.80}; a sample is a dictionary"
        )
    top = {key: value for key, value in entries.items() if key != "samples"}
    plain = _plain_entries(top, "the dictionary")
    _check_classes(plain)
    samples = [
        _plain_entries(sample, f"sample {number}")
        for number, sample in enumerate(entries["samples"])
    ]
    known = {key: dict.fromkeys(plain[key]) for key in ("class_names", "class_ids")}
    for number, sample in enumerate(samples):
        _check_sample(sample, f"sample {number}", known["class_names"], known["class_ids"])
    _check_samples_together(samples)
    # keys in the order they came in
    return {key: samples if key == "samples" else plain[key] for key in entries}


def _plain_entries(entries: Mapping[Any, Any], owner: str) -> dict[str, Any]:
    found = {}
    for key, value in entries.items():
        if not isinstance(key, str):
            raise DataError(f"{owner} has the key {key!r}; keys are text")
        found[key] = _plain(value, f"{owner}: {key!r}", arrays=key == "coco_raw_annotations")
        if key in _TEXTS and not isinstance(found[key], str):
            raise DataError(f"{owner} has {key!r} {found[key]!r:.80}; it is one text")
    return found


def _plain(value: Any, where: str, *, arrays: bool = False) -> Any:
    """A copy in JSON types; of `arrays`, dictionaries with the keys "0", "1", ... are lists."""
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, Mapping):
        # JSON has no keys that are numbers: such a dictionary is an array of HALCON's
        if _is_array(value) and (arrays or all(isinstance(key, int) for key in value)):
            value = _listed(value)
        elif wrong := [key for key in value if not isinstance(key, str)]:
            raise DataError(f"{where} has the key {wrong[0]!r}; keys are text, or 0, 1, 2, ...")
        else:
            items = value.items()
            return {key: _plain(one, f"{where}[{key!r}]", arrays=arrays) for key, one in items}
    if isinstance(value, (list, tuple)):
        return [_plain(one, f"{where}[{i}]", arrays=arrays) for i, one in enumerate(value)]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float) and isfinite(value):
        return value
    raise DataError(
        f"{where} is {value!r:.80}; a DLDataset holds what JSON holds: text, finite numbers, "
        "lists and dictionaries"
    )


def _check_classes(entries: Mapping[str, Any]) -> None:
    names, ids = entries["class_names"], entries["class_ids"]
    if wrong := [name for name in names if not isinstance(name, str)]:
        raise DataError(f"'class_names' has {wrong[0]!r}; names are text")
    if wrong := [one for one in ids if not isinstance(one, int) or not 0 <= one <= MAX_CLASS_ID]:
        raise DataError(f"'class_ids' has {wrong[0]!r:.80}; ids are integers in 0..{MAX_CLASS_ID}")
    if len(names) != len(ids):
        raise DataError(
            f"{len(names)} 'class_names' for {len(ids)} 'class_ids'; one each is needed"
        )
    for key in ("class_names", "class_ids"):
        _check_distinct(entries[key], f"{key!r} has", "each class has its own")
    weights = entries.get("class_weights", [])
    if wrong := [one for one in weights if not isinstance(one, (int, float)) or one < 0]:
        raise DataError(f"'class_weights' has {wrong[0]!r:.80}; weights are numbers from 0 up")


def _check_distinct(values: list[Any], what: str, rule: str) -> None:
    if twice := [value for value, n in Counter(values).items() if n > 1]:
        raise DataError(f"{what} {twice[0]!r} more than once; {rule}")


def _check_sample(
    sample: Mapping[str, Any], owner: str, names: Mapping[str, None], ids: Mapping[int, None]
) -> None:
    if "image_file_name" not in sample:
        raise DataError(f"{owner} has no 'image_file_name'; it has {sorted(sample)[:10]}")
    for key in _FILES.keys() & sample.keys():
        if leaves_folder(sample[key].replace("\\", "/")):  # whichever system wrote it
            raise DataError(
                f"{owner} has {key!r} {sample[key]!r}; it must lie below {_FILES[key]!r}: "
                "relative, without '..'"
            )
    if "image_id" in sample and type(sample["image_id"]) is not int:
        raise DataError(f"{owner} has 'image_id' {sample['image_id']!r:.80}; it is one integer")
    if sample.get("split", "train") not in _SPLITS:
        raise DataError(
            f"{owner} has 'split' {sample['split']!r}; splits are 'train', 'validation' and 'test'"
        )
    if "anomaly_label" in sample and sample["anomaly_label"] not in names:
        raise DataError(
            f"{owner} has 'anomaly_label' {sample['anomaly_label']!r}; 'class_names' are "
            f"{list(names)[:10]}"
        )
    for key in ("image_label_id", "bbox_label_id"):
        for one in sample.get(key, []):
            if not isinstance(one, int) or one not in ids:
                raise DataError(
                    f"{owner} has {key!r} {one!r:.80}; 'class_ids' are {list(ids)[:10]}"
                )
    rule = "an image has a class once or not"
    _check_distinct(sample.get("image_label_id", []), f"{owner} has 'image_label_id'", rule)
    for one in sample.get("coco_raw_annotations", []):
        if not isinstance(one, dict):
            raise DataError(f"{owner} has 'coco_raw_annotations' {one!r:.80}; each is a dictionary")
    _check_boxes(sample, owner)


def leaves_folder(path: str) -> bool:
    """Whether a path with "/" is none below a folder: empty, absolute, or with "..".

    >>> leaves_folder("a/b.png"), leaves_folder("a/../b.png"), leaves_folder("C:/b.png")
    (False, True, True)
    """
    # a drive of Windows, too, on whatever system this runs
    absolute = path.startswith("/") or path[1:2] == ":"
    return not path or "\0" in path or absolute or ".." in path.split("/")


def _check_boxes(sample: Mapping[str, Any], owner: str) -> None:
    labels = sample.get("bbox_label_id", [])
    found = [key for key in (*RECTANGLE1, *RECTANGLE2) if key in sample]
    if not labels and not found:
        return
    if found not in (list(RECTANGLE1), list(RECTANGLE2)) or "bbox_label_id" not in sample:
        raise DataError(
            f"{owner} has the keys {[*found, *(['bbox_label_id'] * bool(labels))]}; boxes have "
            f"'bbox_label_id' and all of {', '.join(RECTANGLE1)} or all of {', '.join(RECTANGLE2)}"
        )
    for key in found:
        if len(sample[key]) != len(labels):
            raise DataError(
                f"{owner} has {len(sample[key])} {key!r} for {len(labels)} 'bbox_label_id'; one "
                "each is needed"
            )
        if wrong := [one for one in sample[key] if not isinstance(one, (int, float))]:
            raise DataError(f"{owner} has {key!r} {wrong[0]!r:.80}; coordinates are numbers")
    for low, high in (("bbox_row1", "bbox_row2"), ("bbox_col1", "bbox_col2")):
        for one, other in zip(sample.get(low, []), sample.get(high, []), strict=True):
            if one > other:
                raise DataError(f"{owner} has {low!r} {one!r} beyond {high!r} {other!r}")
    for key in RECTANGLE2[3:]:
        if wrong := [one for one in sample.get(key, []) if one < 0]:
            raise DataError(f"{owner} has {key!r} {wrong[0]!r}; half edges are 0 or more")


def _check_samples_together(samples: list[dict[str, Any]]) -> None:
    owners: dict[int, int] = {}
    for number, sample in enumerate(samples):
        if "image_id" in sample and owners.setdefault(sample["image_id"], number) != number:
            raise DataError(
                f"sample {number} has 'image_id' {sample['image_id']}, as sample "
                f"{owners[sample['image_id']]} has; each image has its own"
            )
    kinds = {
        key: i for i, one in enumerate(samples) for key in ("bbox_row1", "bbox_row") if key in one
    }
    if len(kinds) == 2:
        raise DataError(
            f"sample {kinds['bbox_row1']} has 'bbox_row1' and sample {kinds['bbox_row']} has "
            "'bbox_row'; one dataset has boxes of one kind"
        )
