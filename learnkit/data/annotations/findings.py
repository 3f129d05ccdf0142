"""Findings about masks and boxes: what cannot be learned from them as they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from learnkit.data.annotations.boxes import FIELDS, ROTATED, enclosing, outside
from learnkit.data.annotations.masks import IGNORE
from learnkit.errors import DataError, ImageReadError, number_of

_TINY = 3  # pixels of the shorter side of a box
_SLIGHT = 0.01  # of a box, that may lie outside its image

Finding = tuple[str, str, int, str]  # its name, its severity, the row, the detail


def annotation_findings(
    rows: Sequence[Mapping[str, Any]],
    sizes: Sequence[tuple[int, int] | None],
    mask_of: Callable[[int], np.ndarray | None] | None,
    good: str | None,
) -> Iterator[Finding]:
    """Findings about the annotations of images, row by row.

    Args:
        rows: Of a dataset's table.
        sizes: (width, height) of each image; None where it cannot be read.
        mask_of: The mask of a row; None to look at no mask.
        good: The class of images without anomaly.
    """
    for i, (row, size) in enumerate(zip(rows, sizes, strict=True)):
        if good is not None and row["label"] != good and row["split"] == "train":
            yield "anomaly in train", "error", i, f"only {good!r} is learned from"
        kind = next((kind for kind in FIELDS if row.get(kind)), None)
        if kind is not None:
            yield from _of_boxes(i, row, kind, size)
        if mask_of is not None and row.get("mask") and size is not None:
            yield from _of_mask(i, row, mask_of, good)


def _of_boxes(
    i: int, row: Mapping[str, Any], kind: str, size: tuple[int, int] | None
) -> Iterator[Finding]:
    boxes = np.array(row[kind])
    twice = Counter(zip(row[kind], row["box_labels"], strict=True))
    if n := sum(count - 1 for count in twice.values()):
        yield "duplicate boxes", "warning", i, f"{n} of {len(boxes)} are there already"
    sides = 2 * boxes[:, 2:4] if kind == ROTATED else boxes[:, 2:] - boxes[:, :2]
    if n := int((sides.min(1) < _TINY).sum()):
        yield "tiny boxes", "info", i, f"{n} of {len(boxes)} are under {_TINY} pixels wide or high"
    if size is None:
        return
    share = outside(kind, boxes, size)
    if (n := int((share > _SLIGHT).sum())) and kind != ROTATED:
        severity = "error" if share.max() > 0.5 else "warning"
        detail = f"{n} of {len(boxes)} reach outside, by up to {share.max():.0%} of their area"
        yield "boxes outside the image", severity, i, detail
    elif kind == ROTATED:
        middle = enclosing(kind, boxes).reshape(-1, 2, 2).mean(1)
        if n := int(((middle < 0) | (middle > size)).any(1).sum()):
            yield "boxes outside the image", "error", i, f"{n} of {len(boxes)} lie outside"


def _of_mask(
    i: int,
    row: Mapping[str, Any],
    mask_of: Callable[[int], np.ndarray | None],
    good: str | None,
) -> Iterator[Finding]:
    try:
        mask = mask_of(i)
    except (DataError, ImageReadError) as error:
        yield "wrong mask", "error", i, str(error)
        return
    if mask is None:
        return
    if good is None:
        if (mask == IGNORE).all():
            yield "blank mask", "warning", i, "every pixel is of no class"
    elif row["label"] == good:
        if mask.any():
            yield (
                "mask of a good image",
                "error",
                i,
                f"{number_of(int((mask > 0).sum()), 'pixel')} marked",
            )
    elif not mask.any():
        yield "blank mask", "warning", i, f"{row['label']!r} is marked nowhere"
