"""Samples of HALCON's DLDatasets as rows of a table, and back, in plain JSON types.

Of classification, `image_label_id` has one id for each class of the image. `dl_dataset` checks the
dictionaries of the other types.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from learnkit.data.annotations.boxes import (
    FIELDS,
    ROTATED,
    UPRIGHT,
    edges_of_rectangles,
    rectangles_of_edges,
    rectangles_of_rotated,
    rotated_of_rectangles,
)
from learnkit.data.annotations.dl_dataset import (
    MAX_CLASS_ID,
    RECTANGLE1,
    RECTANGLE2,
    DLDataset,
    dl_dataset_type,
    leaves_folder,
    one_form,
    read_dl_dataset,
)
from learnkit.data.annotations.masks import MaskCodes
from learnkit.errors import DataError, number_of
from learnkit.storage.formats import is_json

GOOD, BAD = "ok", "nok"  # HALCON's classes of anomaly detection
KIND = "anomaly_kind"  # learnkit's own key of a sample: the class where it is none of these
IGNORED = "ignore_class_ids"  # HALCON's name; at the top learnkit's own key
_COLUMNS = {"image_id", "path", "label", "split", "mask", "box_labels", *FIELDS}
_OWN_KEYS = {"image_file_name", "image_id", "split"}
_ANNOTATION = {  # keys of a sample that become columns
    "classification": {"image_label_id"},
    "segmentation": {"segmentation_file_name"},
    "anomaly_detection": {"anomaly_label", "anomaly_file_name", KIND},
    "detection": {"bbox_label_id", *RECTANGLE1, *RECTANGLE2},
}
_MASK_DIRS = {"segmentation": "segmentation_dir", "anomaly_detection": "anomaly_dir"}
_MASK_FILES = {"segmentation": "segmentation_file_name", "anomaly_detection": "anomaly_file_name"}
_TOP = {"image_dir", "class_names", "class_ids", "samples", IGNORED}
_COCO = {"info", "licenses", "categories"}  # of a file that was read as COCO's
_TO_HALCON = {"train": "train", "valid": "validation", "test": "test"}


class Samples(NamedTuple):
    """What a DLDataset says: a row for each sample, and what they have in common."""

    rows: list[dict[str, Any]]
    root: Path  # of images
    names: dict[int, str]  # of classes, by id
    kind: str  # `DLDataset.type`
    good: str | None  # the class of images without anomaly
    ignored: tuple[int, ...]  # ids of no class
    kept: dict[str, Any]  # all other keys at the top


def sample_rows(
    dataset: Mapping[str, Any] | str | os.PathLike[str],
    image_dir: str | os.PathLike[str] | None,
    mask_dir: str | os.PathLike[str] | None,
) -> Samples:
    """The rows of a DLDataset: see `ImageDataset.from_halcon`.

    Raises:
        DataError: A key is missing, ids and names do not fit each other, a sample has no label
            or an unknown one, or a file name is absolute or climbs with "..".
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
    root = Path(os.path.abspath(folder))
    names = _names_of_ids(dataset["class_names"], dataset["class_ids"])
    kind = dl_dataset_type(dataset["samples"]) or "classification"
    if kind != "classification":
        dataset = DLDataset(dataset).to_dict()
    masks = dataset.get(_MASK_DIRS.get(kind, "")) if mask_dir is None else mask_dir
    masks = root if masks is None else Path(os.path.abspath(masks))
    rows = [
        _row(number, sample, names, kind, masks) for number, sample in enumerate(dataset["samples"])
    ]
    if kind == "classification" and all(len(row["label"]) == 1 for row in rows):
        rows = [row | {"label": row["label"][0]} for row in rows]
    if kind == "detection":
        rotated = DLDataset(dataset).instance_type == "rectangle2"
        column, other = (ROTATED, UPRIGHT) if rotated else (UPRIGHT, ROTATED)
        rows = [{key: one for key, one in row.items() if key != other} for row in rows]
        rows = [row | {column: row.get(column, [])} for row in rows]
    good = None
    if kind == "anomaly_detection":
        good = _good(dataset["samples"])
        if any(row["label"] not in names.values() for row in rows):
            names = dict(enumerate(dict.fromkeys(row["label"] for row in rows)))
    ignored = tuple(_integer(one, IGNORED) for one in np.atleast_1d(dataset.get(IGNORED, [])))
    kept = {key: value for key, value in dataset.items() if key not in _TOP}
    return Samples(rows, root, names, kind, good, ignored, kept)


def halcon_dictionary(
    rows: Sequence[Mapping[str, Any]],
    root: Path,
    ids: Mapping[str, int],
    kind: str,
    *,
    good: str | None,
    codes: MaskCodes | None,
    kept: Mapping[str, Any],
) -> dict[str, Any]:
    """DLDataset dictionary of JSON types: see `ImageDataset.to_halcon`.

    Args:
        rows: Of the dataset's table.
        root: What paths are relative to.
        ids: Of the classes.
        kind: The dataset's type.
        good: The class of images without anomaly.
        codes: What the masks' pixels stand for.
        kept: Further keys of the dictionary that was read, if one was.

    Raises:
        DataError: An image lies outside the root, or masks do not hold the ids of classes.
    """
    if outside := [row["path"] for row in rows if Path(row["path"]).is_absolute()]:
        raise DataError(
            f"{number_of(len(outside), 'image')} outside the root, such as {outside[0]!r}; "
            "'image_file_name' is relative to 'image_dir'"
        )
    kept = {key: value for key, value in kept.items() if key not in _TOP | _COCO}
    if kind == "segmentation":
        if codes is None or not codes.are_ids:
            raise DataError(
                "the masks do not hold class ids as HALCON's do; write such masks first: "
                "`dataset.write_masks(folder)`"
            )
        ids = {**ids, **{f"ignore {value}": value for value in codes.ignore}}
        kept |= {IGNORED: list(codes.ignore)} if codes.ignore else {}
    if kind in _MASK_DIRS:
        masks = [_absolute(root, row["mask"]) for row in rows if row.get("mask")]
        kept[_MASK_DIRS[kind]] = _folder_of(masks, kept.get(_MASK_DIRS[kind]), root)
    known = dict(ids)
    if kind == "anomaly_detection" and not {GOOD, BAD} <= known.keys():
        known = {GOOD: 0, BAD: 1}
    ordered = sorted(known, key=lambda name: known[name])
    found = {
        "image_dir": str(root),
        "class_names": ordered,
        "class_ids": [known[name] for name in ordered],
        **kept,
    }
    folder = kept.get(_MASK_DIRS.get(kind, ""))
    samples = [_sample(row, ids, kind, good, root, folder) for row in rows]
    return found | {"samples": samples}


def _good(samples: Sequence[Mapping[str, Any]]) -> str:
    """The class of the images that are 'ok'."""
    if wrong := [
        one["anomaly_label"] for one in samples if one["anomaly_label"] not in (GOOD, BAD)
    ]:
        raise DataError(f"a sample has 'anomaly_label' {wrong[0]!r}; it is {GOOD!r} or {BAD!r}")
    found = {one.get(KIND, GOOD) for one in samples if one["anomaly_label"] == GOOD} or {GOOD}
    if len(found) > 1:
        raise DataError(
            f"samples with 'anomaly_label' {GOOD!r} are of {sorted(map(str, found))[:5]}; they are "
            f"of one {KIND!r}"
        )
    return str(found.pop())


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


def _row(
    number: int, sample: Mapping[str, Any], names: Mapping[int, str], kind: str, masks: Path
) -> dict[str, Any]:
    """Table row of one sample."""
    extra = {
        f"{k}": v for k, v in sample.items() if k not in _OWN_KEYS and k not in _ANNOTATION[kind]
    }
    if clash := set(extra) & _COLUMNS:
        raise DataError(f"sample {number} has a key {clash.pop()!r}, which has no meaning here")
    if "image_file_name" not in sample:
        raise DataError(f"sample {number} has no 'image_file_name'; it has {sorted(sample)[:10]}")
    told = {
        "image_id": _integer(sample.get("image_id", number), f"image_id of sample {number}"),
        "path": _file_name(sample["image_file_name"], number),
        "split": sample.get("split", ""),
    }
    if kind == "classification":
        return extra | told | {"label": _labels(sample, number, names)}
    if kind == "detection":
        return extra | told | _boxes(sample, names)
    key, file = ("anomaly_label" if kind == "anomaly_detection" else _MASK_FILES[kind]), ""
    if key not in sample:
        raise DataError(f"sample {number} has no {key!r}; every sample of {kind} has one")
    if name := sample.get(_MASK_FILES[kind], ""):
        file = str(masks / name.replace("\\", "/"))
    if kind == "anomaly_detection":
        told["label"] = sample.get(KIND, sample["anomaly_label"])
    return extra | told | {"mask": file}


def _labels(sample: Mapping[str, Any], number: int, names: Mapping[int, str]) -> list[str]:
    if "image_label_id" not in sample:
        raise DataError(
            f"sample {number} has no 'image_label_id'; every sample of classification has one"
        )
    values = sample["image_label_id"]
    ids = [_integer(one, f"image_label_id of sample {number}") for one in np.atleast_1d(values)]
    if unknown := [one for one in ids if one not in names]:
        raise DataError(
            f"sample {number} has 'image_label_id' {unknown[0]}; 'class_ids' are {list(names)[:10]}"
        )
    return [names[one] for one in ids]


def _boxes(sample: Mapping[str, Any], names: Mapping[int, str]) -> dict[str, Any]:
    upright = np.transpose([sample.get(key, []) for key in RECTANGLE1])
    rotated = np.transpose([sample.get(key, []) for key in RECTANGLE2])
    return {
        UPRIGHT: edges_of_rectangles(upright).tolist(),
        ROTATED: rotated_of_rectangles(rotated).tolist(),
        "box_labels": [names[one] for one in sample.get("bbox_label_id", [])],
    }


def _file_name(name: Any, number: int) -> str:
    """Relative path with forward slashes, whichever system wrote it."""
    path = name.replace("\\", "/") if isinstance(name, str) else ""
    if leaves_folder(path):
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


def _absolute(root: Path, path: str) -> Path:
    return Path(os.path.abspath(root / path))


def _folder_of(masks: Sequence[Path], told: Any, root: Path) -> str:
    """The folder that masks lie below: the one that was told, the root, or their own."""
    for folder in (told, root):
        if folder is not None and all(one.is_relative_to(os.path.abspath(folder)) for one in masks):
            return str(folder)
    return os.path.commonpath([one.parent for one in masks])


def _sample(
    row: Mapping[str, Any],
    ids: Mapping[str, int],
    kind: str,
    good: str | None,
    root: Path,
    folder: Any,
) -> dict[str, Any]:
    """Sample dictionary of one table row."""
    sample = {"image_file_name": row["path"], "image_id": int(row["image_id"])}
    if kind == "classification":
        labels = [row["label"]] if isinstance(row["label"], str) else row["label"]
        sample["image_label_id"] = [ids[name] for name in labels]
    elif kind == "detection":
        sample["bbox_label_id"] = [ids[name] for name in row["box_labels"]]
        keys, values = RECTANGLE1, rectangles_of_edges(row.get(UPRIGHT, ()))
        if ROTATED in row:
            keys, values = RECTANGLE2, rectangles_of_rotated(row[ROTATED])
        sample |= {key: column.tolist() for key, column in zip(keys, values.T, strict=True)}
    elif kind == "anomaly_detection":
        sample["anomaly_label"] = GOOD if row["label"] == good else BAD
        if row["label"] != sample["anomaly_label"]:
            sample[KIND] = row["label"]
    if kind in _MASK_FILES and row.get("mask"):
        below = _absolute(root, row["mask"]).relative_to(os.path.abspath(folder))
        sample[_MASK_FILES[kind]] = below.as_posix()
    if row["split"]:
        sample["split"] = _TO_HALCON[row["split"]]
    return sample | {k: _listed(v) for k, v in row.items() if k not in _COLUMNS and is_json(v)}


def _listed(value: Any) -> Any:
    """Tuples as lists, as JSON has them."""
    return [_listed(one) for one in value] if isinstance(value, tuple) else value
