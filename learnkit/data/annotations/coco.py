"""COCO's JSON of boxes and segmentations, checked and as rows of a table, and back."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from sys import float_info
from typing import Any

import numpy as np

from learnkit.data.annotations.boxes import (
    FIELDS,
    ROTATED,
    UPRIGHT,
    corners_of_rotated,
    enclosing,
    rectangles_of_corners,
    rotated_of_rectangles,
    written,
)
from learnkit.data.annotations.dl_dataset import leaves_folder
from learnkit.data.annotations.masks import BACKGROUND, IGNORE
from learnkit.data.annotations.rle import (
    check_segmentation,
    mask_of_segmentation,
    segmentation_of_mask,
)
from learnkit.errors import BundleCorruptError, DataError, number_of
from learnkit.storage.formats import is_json, parse_json

RAW = "coco_raw_annotations"  # HALCON's key, and the column of whole annotations
_OWN = {"id", "file_name", "split"}
_SPLITS = {"train", "valid", "val", "validation", "test"}
_COLUMNS = {"image_id", "path", "label", "split", "mask", "box_labels", RAW, *FIELDS}
_LISTS = ("images", "annotations", "categories")


def coco_rows(
    source: Mapping[str, Any] | str | os.PathLike[str], *, rotated: bool = False
) -> tuple[list[dict[str, Any]], dict[str, int], dict[str, Any]]:
    """(a row for each image, category id of each name, all else at the top of the file).

    A row has image_id, path, boxes (or, `rotated`, rotated_boxes), box_labels, whole annotations
    in `coco_raw_annotations`, split where the image has one, and every other key of the image that
    is no column of a dataset.

    Args:
        source: A JSON file, or the dictionary that it holds; left unchanged.
        rotated: Take boxes from segmentations that are one polygon of four right angles.

    Raises:
        DataError: The file is missing or no strict JSON; a key is missing or mistyped; an id is
            there twice or unknown; a file name leaves its folder; a box has no area. The message
            names image, annotation and key.
    """
    told = _entries(source)
    names = _categories(told["categories"])
    rows: dict[int, dict[str, Any]] = {}
    for number, image in enumerate(told["images"]):
        row = _image_row(image, f"image {number}")
        if row["image_id"] in rows:
            raise DataError(f"image {number} has 'id' {row['image_id']}, as another one has")
        rows[row["image_id"]] = row | {"boxes": [], "box_labels": [], RAW: []}
    ids: set[int] = set()
    for number, one in enumerate(told["annotations"]):
        _check_annotation(one, number, rows, names, ids)
        row = rows[one["image_id"]]
        x, y, width, height = one["bbox"]
        row["boxes"].append(tuple(written((x, y, x + width, y + height))))
        row["box_labels"].append(names[one["category_id"]])
        row[RAW].append(dict(one))
    found = list(rows.values())
    for row in found if rotated else ():
        del row["boxes"]
        row[ROTATED] = [_rotated(one, _named(one)) for one in row[RAW]]
    kept = {key: value for key, value in told.items() if key not in _LISTS[:2]}
    return found, {name: number for number, name in names.items()}, kept


def coco_dictionary(
    rows: Iterable[Mapping[str, Any]],
    ids: Mapping[str, int],
    kept: Mapping[str, Any],
) -> dict[str, Any]:
    """COCO's dictionary, of JSON types, of the rows of a dataset.

    Rows are as `coco_rows` gives them, with width and height. Rotated boxes are written as polygons
    of their four corners, and the upright boxes around them.
    """
    rows = list(rows)
    categories = {one["name"]: dict(one) for one in kept.get("categories", ())}
    raw_ids = [one.get("id") for row in rows for one in row.get(RAW) or ()]
    known = Counter(one for one in raw_ids if type(one) is int)
    new_ids = count(max(known, default=0) + 1)
    annotations = []
    for row in rows:
        for one in _annotations(row, ids):
            # an id that several have is nobody's: each of them gets a new one
            own = type(one.get("id")) is int and known[one["id"]] == 1
            annotations.append(one | {"id": one["id"] if own else next(new_ids)})
    return {
        **{key: value for key, value in kept.items() if key not in _LISTS},
        "images": [_image(row) for row in rows],
        "annotations": annotations,
        "categories": [
            categories.get(name, {}) | {"id": ids[name], "name": name}
            for name in sorted(ids, key=lambda name: ids[name])
        ],
    }


def annotations_of_mask(mask: np.ndarray, names: Mapping[int, str]) -> dict[str, list[Any]]:
    """Boxes, labels and raw annotations, for a row, of a mask of class ids: one a class.

    The background gets none.

    Raises:
        DataError: There are pixels of no class.
    """
    if (mask == IGNORE).any():
        raise DataError(
            f"a mask has {number_of(int((mask == IGNORE).sum()), 'pixel')} of no class, which "
            "COCO cannot say; read the masks with a class for them"
        )
    found: dict[str, list[Any]] = {UPRIGHT: [], "box_labels": [], RAW: []}
    for number in np.unique(mask).tolist():
        if names[number] == BACKGROUND:
            continue
        pixels = mask == number
        rows, columns = (np.flatnonzero(pixels.any(axis)) for axis in (1, 0))
        found[UPRIGHT].append((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
        found["box_labels"].append(names[number])
        found[RAW].append(
            {"segmentation": segmentation_of_mask(pixels), "area": int(pixels.sum()), "iscrowd": 0}
        )
    return found


def drawn_mask(
    row: Mapping[str, Any], numbers: Sequence[int], size: tuple[int, int], background: int
) -> np.ndarray:
    """The segmentations of a row's annotations as one mask, uint16 (H, W); smaller ones on top.

    Args:
        row: Its `coco_raw_annotations` have 'segmentation' each.
        numbers: What is drawn for each of them.
        size: (width, height).
        background: What is drawn where none is.

    Raises:
        DataError: An annotation has no segmentation, or one that does not fit the image.
    """
    found = np.full(size[::-1], background, np.uint16)
    where = f"image {row['path']!r}: 'segmentation'"
    told = [one.get("segmentation") for one in row.get(RAW) or ()]
    if len(told) != len(numbers) or not all(told):
        raise DataError(f"{where} is missing in some of its annotations; masks need it in all")
    # drawn twice: the masks of a thousand objects would not fit at once
    areas = [int(mask_of_segmentation(one, size[::-1], where).sum()) for one in told]
    for i in sorted(range(len(told)), key=lambda i: -areas[i]):
        found[mask_of_segmentation(told[i], size[::-1], where)] = numbers[i]
    return found


def _entries(source: Mapping[str, Any] | str | os.PathLike[str]) -> Mapping[str, Any]:
    if isinstance(source, Mapping):
        told = source
    else:
        path = Path(source)
        if not path.is_file():
            raise DataError(f"there is no file {str(source)!r}; `source` is COCO's JSON")
        try:
            told = parse_json(path.read_bytes(), path.name)
        except BundleCorruptError as error:
            raise DataError(str(error)) from error
    for key in _LISTS:
        if not isinstance(told.get(key), list):
            raise DataError(
                f"the file has {key!r} {told.get(key)!r:.60}; COCO's JSON has lists "
                "'images', 'annotations' and 'categories'"
            )
    return told


def _categories(categories: Sequence[Any]) -> dict[int, str]:
    names: dict[int, str] = {}
    seen: set[str] = set()
    for number, one in enumerate(categories):
        where = f"category {number}"
        _check_key(one, "id", where, _is_id, "a whole number from 0 on")
        _check_key(one, "name", where, _is_text, "a text")
        if one["id"] in names or one["name"] in seen:
            raise DataError(
                f"{where} has 'id' {one['id']} and 'name' {one['name']!r}, of which another "
                "category has one; each has its own"
            )
        names[one["id"]] = one["name"]
        seen.add(one["name"])
    return names


def _image_row(image: Any, where: str) -> dict[str, Any]:
    _check_key(image, "id", where, _is_id, "a whole number from 0 on")
    where = f"image {image['id']}"
    _check_key(image, "file_name", where, _is_text, "a text")
    path = image["file_name"].replace("\\", "/")
    if leaves_folder(path):
        raise DataError(
            f"{where} has 'file_name' {image['file_name']!r:.200}; it must lie below the folder of "
            "images: relative, without '..'"
        )
    for key in {"width", "height"} & image.keys():
        rule = "a whole number of pixels"
        _check_key(image, key, where, lambda value: _is_id(value) and value > 0, rule)
    row = {key: one for key, one in image.items() if key not in _OWN | _COLUMNS}
    if image.get("split") in _SPLITS:
        row["split"] = image["split"]
    return row | {"image_id": image["id"], "path": path}


def _check_annotation(
    one: Any,
    number: int,
    rows: Mapping[int, Mapping[str, Any]],
    names: Mapping[int, str],
    ids: set[int],
) -> None:
    _check_key(one, "image_id", f"annotation {number}", rows.__contains__, "the 'id' of an image")
    where = f"annotation {number} of image {one['image_id']}"
    _check_key(one, "category_id", where, names.__contains__, "the 'id' of a category")
    _check_key(one, "bbox", where, _is_box, "[x, y, width, height] in pixels, with an area")
    if one.get("iscrowd", 0) not in (0, 1):
        raise DataError(f"{where} has 'iscrowd' {one['iscrowd']!r:.80}; it is 0 or 1")
    if "id" in one:
        _check_key(one, "id", where, _is_id, "a whole number from 0 on")
        if one["id"] in ids:
            raise DataError(f"{where} has 'id' {one['id']}, as another one has; each has its own")
        ids.add(one["id"])
    if one.get("segmentation"):
        image = rows[one["image_id"]]
        size = (image["height"], image["width"]) if {"height", "width"} <= image.keys() else None
        check_segmentation(one["segmentation"], size, f"{where}: 'segmentation'")


def _check_key(entry: Any, key: str, where: str, test: Any, rule: str) -> None:
    if not isinstance(entry, Mapping):
        raise DataError(f"{where} is {entry!r:.80}; it is a dictionary")
    if key not in entry:
        raise DataError(f"{where} has no {key!r}; it has {sorted(map(str, entry))[:10]}")
    try:
        fits = test(entry[key])
    except TypeError:  # a list is no key
        fits = False
    if not fits or isinstance(entry[key], bool):
        raise DataError(f"{where} has {key!r} {entry[key]!r:.80}; it is {rule}")


def _is_id(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_box(value: Any) -> bool:
    return (
        isinstance(value, Sequence)
        and len(value) == 4
        and all(type(one) in (int, float) and abs(one) <= float_info.max for one in value)
        and value[2] > 0
        and value[3] > 0
    )


def _named(annotation: Mapping[str, Any]) -> str:
    told = f" {annotation['id']}" if "id" in annotation else ""
    return f"annotation{told} of image {annotation['image_id']}"


def _rotated(annotation: Mapping[str, Any], where: str) -> tuple[float, ...]:
    polygons = annotation.get("segmentation")
    if not (isinstance(polygons, list) and len(polygons) == 1 and len(polygons[0]) == 8):
        raise DataError(
            f"{where} has 'segmentation' {polygons!r:.80}; `rotated=True` needs one polygon of "
            "four corners in each"
        )
    corners = np.reshape(polygons[0], (1, 4, 2))
    try:
        rectangle = rectangles_of_corners(corners)
    except DataError as error:
        raise DataError(f"{where}: 'segmentation': {error}") from error
    *places, phi = rotated_of_rectangles(rectangle)[0]
    return (*written(places), float(phi))


def _image(row: Mapping[str, Any]) -> dict[str, Any]:
    image = {"id": int(row["image_id"]), "file_name": row["path"]}
    image |= {key: one for key, one in row.items() if key not in _COLUMNS and is_json(one)}
    return image | ({"split": row["split"]} if row.get("split") else {})


def _annotations(row: Mapping[str, Any], ids: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    kind = ROTATED if ROTATED in row else UPRIGHT
    raw = row.get(RAW) or [{}] * len(row["box_labels"])
    edges = enclosing(kind, row[kind])
    boxes = written(np.concatenate([edges[:, :2], edges[:, 2:] - edges[:, :2]], 1))
    for i, (name, one) in enumerate(zip(row["box_labels"], raw, strict=True)):
        found = {"iscrowd": 0, "area": boxes[i][2] * boxes[i][3]}
        if kind == ROTATED:
            corners = corners_of_rotated([row[kind][i]])
            found["segmentation"] = [written(corners.reshape(1, 8))[0]]
            found["area"] = 4 * row[kind][i][2] * row[kind][i][3]
        own = {"image_id": int(row["image_id"]), "category_id": ids[name], "bbox": boxes[i]}
        # what was read goes before what is computed, and what may have changed since before both
        yield found | dict(one) | own
