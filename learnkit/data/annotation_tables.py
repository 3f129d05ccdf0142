"""Tables of images with masks, boxes or anomalies, from folders, COCO and HALCON, and back."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from learnkit.data.annotations.boxes import (
    FIELDS,
    ROTATED,
    UPRIGHT,
    checked_boxes,
    outside,
)
from learnkit.data.annotations.coco import (
    RAW,
    annotations_of_mask,
    coco_dictionary,
    coco_rows,
    drawn_mask,
)
from learnkit.data.annotations.csv_cells import by_image, with_parsed_cells
from learnkit.data.annotations.dl_samples import sample_rows
from learnkit.data.annotations.masks import (
    BACKGROUND,
    IGNORE,
    MaskCodes,
    ids_in,
    instances_of_mask,
    mask_codes,
    mask_pixels,
    masks_of_images,
    new_mask_files,
    read_mask,
    write_mask,
)
from learnkit.data.image import image_files, image_size
from learnkit.data.labels import nfc
from learnkit.data.readers import SPLIT_FOLDERS, df_table
from learnkit.data.table import (
    COLUMNS,
    box_column,
    check_columns,
    check_files_exist,
    clean_paths,
    object_table,
)
from learnkit.errors import DataError, first_few, number_of, warn_user
from learnkit.report.progress import watched

_BINARY = MaskCodes({0: 0, 1: 1}, binary=True)  # of anomalies: 1 is one
_TRUTH = {"ground_truth", "groundtruth", "masks"}  # folders of masks beside "train" and "test"
_MOST_OUTSIDE = 0.5  # of a box: more of it than that outside its image is an error


class Annotated(NamedTuple):
    """What a reader found: arguments of `ImageDataset`, and what else it knows."""

    frame: pd.DataFrame
    root: str | os.PathLike[str]
    classes: Sequence[str] | None
    class_ids: dict[str, int] | None
    traits: dict[str, Any]


class Columns(NamedTuple):
    """What the columns of a table are called and hold: see `ImageDataset.from_df`."""

    path_col: str
    label_col: str | Sequence[str]
    split_col: str | None
    label_delim: str | None
    suffix: str
    box_cols: Sequence[str] | None


def masks_table(
    folder: str | os.PathLike[str],
    images: str,
    masks: str,
    ids: dict[str, int],
    codes: MaskCodes,
) -> Annotated:
    """Images with masks below `folder`: see `ImageDataset.from_masks`.

    Raises:
        DataError: No such folders, an image without a mask, or a mask that breaks a rule.
    """
    root = Path(os.path.abspath(folder))
    rows = _pairs(root, images, masks)
    frame = _with_mask_labels(object_table(rows), root, codes, ids)
    return Annotated(frame, root, list(ids), ids, {"_codes": codes})


def instances_table(
    folder: str | os.PathLike[str],
    name: str,
    *,
    images: str = "images",
    masks: str = "masks",
    rotated: bool,
) -> Annotated:
    """Images with boxes out of masks that number objects: see `ImageDataset.from_instances`.

    Raises:
        DataError: As in `masks_table`.
    """
    root = Path(os.path.abspath(folder))
    rows = _pairs(root, images, masks)
    for row in watched(rows, len(rows), True, "read masks"):
        pixels = mask_pixels(root / row.pop("mask"), image_size(root / row["path"]))
        found = instances_of_mask(pixels, rotated=rotated)
        row[ROTATED if rotated else UPRIGHT] = [one["box"] for one in found]
        row["box_labels"] = [name] * len(found)
        row[RAW] = [{"segmentation": one["segmentation"], "iscrowd": 0} for one in found]
    return Annotated(object_table(rows), root, [name], {nfc(name): 1}, {})


def anomaly_table(folder: str | os.PathLike[str], good: str, *, splits: bool) -> Annotated:
    """Images labelled by their folder, and masks of the bad ones: see `ImageDataset.from_folder`.

    Raises:
        DataError: No images, none of them good, or a mask of another size than its image.
    """
    root = Path(os.path.abspath(folder))
    files = [path.relative_to(root) for path in image_files(root)[0]]
    images = [path for path in files if path.parts[0].lower() not in _TRUTH]
    if loose := [path for path in images if len(path.parts) < 2]:
        raise DataError(
            f"{number_of(len(loose), 'image')} outside class folders, such as "
            f"{str(root / loose[0])!r}; put each into a folder named {good!r} or after its defect"
        )
    if good not in {path.parent.name for path in images}:
        raise DataError(
            f"`good` is {good!r}, and no folder with images below {str(root)!r} is called so; "
            f"there are {first_few(sorted({repr(path.parent.name) for path in images}))}"
        )
    truth = {
        path.relative_to(path.parts[0]).as_posix(): path for path in files if path not in images
    }
    kinds = [f"{path.parent.name}/{path.name}" for path in images]
    masks = masks_of_images(kinds, truth)
    rows = [
        {
            "path": path.as_posix(),
            "label": path.parent.name,
            "split": SPLIT_FOLDERS.get(path.parts[0].lower(), "") if splits else "",
            "mask": truth[mask].as_posix() if mask and path.parent.name != good else "",
        }
        for path, mask in zip(images, masks, strict=True)
    ]
    frame = object_table(rows)
    deque(_masks(frame, root, _BINARY), maxlen=0)
    return Annotated(frame, root, None, None, {"_good": nfc(good)})


def coco_table(source: Any, folder: Any, *, check_files: bool, rotated: bool) -> Annotated:
    """Images and boxes of COCO's JSON: see `ImageDataset.from_coco`.

    Raises:
        DataError: As in `coco_rows`; or an image is missing, or of another size than is told.
    """
    rows, ids, kept = coco_rows(source, rotated=rotated)
    if folder is None and isinstance(source, Mapping):
        raise DataError("`source` is a dictionary and `folder` is None; say where the images are")
    root = Path(os.path.abspath(Path(source).parent if folder is None else folder))
    frame = _framed(rows)
    if check_files:
        _check_paths(frame, root)
        for row in frame.to_dict("records"):
            size, told = image_size(root / row["path"]), (row.get("width"), row.get("height"))
            if all(type(side) is int for side in told) and told != size:
                raise DataError(
                    f"image {row['image_id']}, {row['path']!r}, is {size[0]} x {size[1]}; "
                    f"'width' and 'height' are {told[0]} and {told[1]}"
                )
            _check_inside(row, size)
    ids = {nfc(name): number for name, number in ids.items()}
    return Annotated(frame, root, list(ids), ids, {"_kept": kept})


def halcon_table(dataset: Any, image_dir: Any, mask_dir: Any, *, check_files: bool) -> Annotated:
    """Images of a DLDataset: see `ImageDataset.from_halcon`.

    Raises:
        DataError: As in `sample_rows`; or a file is missing, or breaks a rule.
    """
    found = sample_rows(dataset, image_dir, mask_dir)
    names = {number: name for number, name in found.names.items() if number not in found.ignored}
    ids, root = {nfc(name): number for number, name in names.items()}, found.root
    frame, traits = _framed(found.rows), {"_kept": found.kept, "_good": found.good}
    if check_files:
        _check_paths(frame, root)
    if found.kind == "segmentation":
        traits["_codes"] = codes = MaskCodes({n: n for n in names}, found.ignored)
        if check_files:
            frame = _with_mask_labels(frame, root, codes, ids)
        else:
            frame = frame.assign(label=[[] for _ in range(len(frame))])
    elif check_files:
        _check_annotations(frame, root)
    return Annotated(frame, root, list(names.values()), ids, traits)


def annotated_df_table(
    frame: pd.DataFrame,
    folder: str | os.PathLike[str],
    columns: Columns,
    *,
    codes: Mapping[str, Any] | None,
    ignore: Any,
    good: str | None,
    check_files: bool,
) -> Annotated:
    """Images of a table, with what it says of them: see `ImageDataset.from_df`.

    Raises:
        DataError: As in `df_table`; or annotations break a rule.
    """
    label_col, box_cols = columns.label_col, columns.box_cols
    if box_cols is not None:
        frame = by_image(frame, columns.path_col, label_col, columns.split_col, box_cols)
    frame = with_parsed_cells(frame)
    options = {k: v for k, v in columns._asdict().items() if k != "box_cols"}
    annotated = "box_labels" in frame or codes is not None
    read = codes is not None and check_files
    derived = annotated and isinstance(label_col, str) and (read or label_col not in frame)
    if derived:
        frame = frame.assign(**{str(label_col): [[] for _ in range(len(frame))]})
        options["label_delim"] = None
    table, classes = df_table(frame, folder, **options, check_files=check_files)
    root, ids, traits = Path(os.path.abspath(folder)), None, {"_good": good}
    if codes is not None:
        ids, traits["_codes"] = mask_codes(None, codes, None, ignore)
        classes = list(ids)
        check_columns(table, ("mask",))
        if read:
            table = _with_mask_labels(table, root, traits["_codes"], ids)
    elif "mask" in table and good is None:
        raise DataError(
            "the table has a column 'mask'; say what its pixels stand for: "
            "`codes={'name': value}`, or `good=`, the class of images without anomaly"
        )
    elif check_files:
        _check_annotations(table, root)
    if "box_labels" in table and derived:
        table = table.drop(columns="label")
    return Annotated(table, root, classes, ids, traits)


def row_mask(
    row: Mapping[str, Any],
    root: Path,
    ids: Mapping[str, int],
    codes: MaskCodes | None,
    good: str | None,
) -> np.ndarray | None:
    """The mask of an image, uint16 (H, W): see `ImageDataset.mask`.

    Raises:
        ImageReadError: Image or mask cannot be read.
        DataError: The mask breaks a rule.
    """
    size = image_size(root / row["path"])
    if row.get("mask"):
        if codes is None and good is None:
            raise DataError(
                "what the masks' pixels stand for is not known to a dataset made of a table; read "
                "it with `from_df(..., codes={'name': value})`, or `good=` of anomalies"
            )
        return read_mask(root / row["mask"], codes or _BINARY, size)
    if "box_labels" in row:
        if row["box_labels"] and not any(one.get("segmentation") for one in row.get(RAW, ())):
            return None
        numbers = [ids[name] for name in row["box_labels"]]
        return drawn_mask(row, numbers, size, background_id(ids))
    if good is not None and row["label"] == good:
        return np.zeros(size[::-1], np.uint16)
    return None


def background_id(ids: Mapping[str, int]) -> int:
    """The id of the class "background", or, of none such, the first that is free."""
    free = next(number for number in range(len(ids) + 1) if number not in set(ids.values()))
    return ids.get(BACKGROUND, free)


def with_written_masks(
    frame: pd.DataFrame,
    folder: str | os.PathLike[str],
    root: Path,
    ids: Mapping[str, int],
    codes: MaskCodes | None,
    good: str | None,
) -> Annotated:
    """The table with the masks that are written: see `ImageDataset.write_masks`.

    Raises:
        DataError: The folder holds something, an image lies outside the root, two images differ
            only in their extension, or an image has no mask to write.
    """
    rows = frame.to_dict("records")
    files = new_mask_files([row["path"] for row in rows], folder)
    if good is None and box_column(frame):
        ids = {**ids, BACKGROUND: background_id(ids)}  # the class of what lies around boxes
    ignored = 255 if max(ids.values(), default=0) < 255 else IGNORE
    labels, of_ids = [], {number: name for name, number in ids.items()}
    for row, file in zip(rows, files, strict=True):
        mask = row_mask(row, root, ids, codes, good)
        if mask is None and good is None:
            raise DataError(f"image {row['path']!r} has no mask, and no segmentations of its boxes")
        labels.append(row["label"] if mask is None or good else [of_ids[n] for n in ids_in(mask)])
        row["mask"] = ""
        if mask is not None and (good is None or mask.any()):
            row["mask"] = str(file)
            write_mask(file, np.where(mask == IGNORE, ignored, mask))
    others = frame.drop(columns=[*FIELDS, "box_labels", RAW], errors="ignore")
    columns = {"label": labels, "mask": [row["mask"] for row in rows]}
    series = {name: pd.Series(v, frame.index, object) for name, v in columns.items()}
    known = MaskCodes({number: number for number in of_ids}, (ignored,)) if good is None else None
    traits = {"_codes": known, "_good": good}
    return Annotated(others.assign(**series), root, list(ids), dict(ids), traits)


def write_instances(frame: pd.DataFrame, folder: str | os.PathLike[str], root: Path) -> None:
    """Write masks that number the objects of each image: see `ImageDataset.write_masks`.

    Raises:
        DataError: As in `with_written_masks`.
    """
    rows = frame.to_dict("records")
    files = new_mask_files([row["path"] for row in rows], folder)
    for row, file in zip(rows, files, strict=True):
        numbers = range(1, len(row.get("box_labels", ())) + 1)
        write_mask(file, drawn_mask(row, numbers, image_size(root / row["path"]), 0))


def coco_of_table(
    rows: Sequence[dict[str, Any]],
    root: Path,
    ids: Mapping[str, int],
    codes: MaskCodes | None,
    kept: Mapping[str, Any],
) -> dict[str, Any]:
    """COCO's dictionary of a dataset: see `ImageDataset.to_coco`.

    Raises:
        DataError: An image lies outside the root or has nothing that COCO can say.
    """
    names = {number: name for name, number in ids.items()}
    for row in rows:
        if Path(row["path"]).is_absolute():
            raise DataError(f"image {row['path']!r} lies outside the root; 'file_name' is below it")
        if not all(type(row.get(side)) is int for side in ("width", "height")):
            row["width"], row["height"] = image_size(root / row["path"])
        if "box_labels" not in row:
            if codes is None:
                raise DataError(
                    "the dataset has neither boxes nor masks of classes; COCO's JSON holds those"
                )
            row |= annotations_of_mask(row_mask(row, root, ids, codes, None), names)
    return coco_dictionary(rows, ids, kept)


def _pairs(root: Path, images: str, masks: str) -> list[dict[str, Any]]:
    """A row for each image and its mask, in folders of splits or without."""
    parts = {"": root}
    if not (root / images).is_dir():
        below = sorted(root.iterdir()) if root.is_dir() else []
        named = [one for one in below if one.name.lower() in SPLIT_FOLDERS]
        parts = {SPLIT_FOLDERS[one.name.lower()]: one for one in named if (one / images).is_dir()}
    if not parts or not all((part / masks).is_dir() for part in parts.values()):
        raise DataError(
            f"{str(root)!r} has no folders {images!r} and {masks!r}, nor have folders train, valid "
            "and test in it; say how they are called: `images=`, `masks=`"
        )
    rows: list[dict[str, Any]] = []
    for split, part in parts.items():
        lists = [
            [path.relative_to(part / name).as_posix() for path in image_files(part / name)[0]]
            for name in (images, masks)
        ]
        for image, mask in zip(lists[0], masks_of_images(*lists), strict=True):
            row = {
                "path": part / images / image,
                "split": split,
                "mask": mask and part / masks / mask,
            }
            rows.append(row)
        used = {os.fspath(row["mask"]) for row in rows if row["mask"]}
        if spare := [one for one in lists[1] if os.fspath(part / masks / one) not in used]:
            warn_user(
                f"{number_of(len(spare), 'mask')} without image, such as {spare[0]!r}: left over?"
            )
    if lacking := [row["path"] for row in rows if not row["mask"]]:
        raise DataError(
            f"{len(lacking)} of {number_of(len(rows), 'image')} have no mask, such as "
            f"{str(lacking[0])!r}; a "
            "mask has its image's name (with any of .png .tif .bmp), perhaps with '_mask' behind it"
        )
    return rows


def _with_mask_labels(
    frame: pd.DataFrame, root: Path, codes: MaskCodes, ids: Mapping[str, int]
) -> pd.DataFrame:
    """The table with the classes in each mask as its label."""
    names = {number: name for name, number in ids.items()}
    labels = [
        [names[number] for number in ids_in(mask)]
        for mask in _masks(frame, root, codes)
        if mask is not None
    ]
    if len(labels) < len(frame):
        raise DataError("some images have no mask; of segmentation every image has one")
    return frame.assign(label=pd.Series(labels, dtype=object, index=frame.index))


def _masks(frame: pd.DataFrame, root: Path, codes: MaskCodes) -> Iterator[np.ndarray | None]:
    """The mask of each row, None where it has none."""
    pairs = list(zip(frame["path"], frame["mask"], strict=True))
    for path, mask in watched(pairs, len(pairs), True, "read masks"):
        yield read_mask(root / mask, codes, image_size(root / path)) if mask else None


def _check_annotations(frame: pd.DataFrame, root: Path) -> None:
    """Return if masks are as large as their images, and boxes lie in them."""
    if "mask" in frame:
        deque(_masks(frame, root, _BINARY), maxlen=0)
    if any(kind in frame for kind in FIELDS):
        for row in frame.to_dict("records"):
            _check_inside(row, image_size(root / row["path"]))


def _check_inside(row: Mapping[str, Any], size: tuple[int, int]) -> None:
    kind = next(kind for kind in FIELDS if kind in row)
    where = f"image {str(row['path'])!r}"
    boxes = checked_boxes(kind, row[kind], where)
    if (wrong := np.flatnonzero(outside(kind, boxes, size) > _MOST_OUTSIDE)).size:
        raise DataError(
            f"{where} has {kind!r}[{wrong[0]}] {boxes[wrong[0]]}, of which more than half lies "
            f"outside the {size[0]} x {size[1]} pixels of the image; remove or mend it"
        )


def _check_paths(frame: pd.DataFrame, root: Path) -> None:
    check_files_exist([root / path for path in clean_paths(frame["path"].tolist(), root)])


def _framed(rows: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=None if rows else list(COLUMNS), dtype=object)
