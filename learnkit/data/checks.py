"""Checks of a dataset's files, classes and splits: one table of findings.

Every image is read once; the rest is arithmetic on what was seen. Near duplicates are images of one
structure, by a perceptual hash, and small ones with the same pixels a little apart. Dark, bright,
blank and blurred images, and those of an odd shape, are beyond limits that each finding states.
"""

import functools
import hashlib
import io
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image
from scipy.ndimage import laplace

from learnkit.data.annotations.findings import annotation_findings
from learnkit.data.display import displayed_image
from learnkit.data.image import naming_errors, open_picture, read_image, unread_text
from learnkit.data.near_duplicates import near_duplicate_groups, structure_and_spectrum
from learnkit.data.read_images import load_ahead
from learnkit.data.split import split_counts
from learnkit.errors import DataError, ImageReadError, first_few, number_of
from learnkit.report.progress import watched
from learnkit.storage.array_files import array_shape
from learnkit.storage.filesystem import open_regular

COLUMNS = ("finding", "severity", "path", "class", "split", "detail", "paths")
_N_WORKERS = min(32, (os.cpu_count() or 1) + 4)  # the standard library's own choice
# Of photographs (ants and bees, CIFAR-10), circuit boards and crops of these nothing healthy is
# beyond them; blurred by two pixels (Gaussian) 19 of 20 are. A limit of None is not looked at.
LIMITS: Mapping[str, float] = MappingProxyType(
    {
        "dark": 55,  # grey level that 99 of 100 pixels stay below
        "bright": 200,  # grey level that 99 of 100 pixels are above
        "blank": 1.0,  # standard deviation of all grey levels
        "blurred": 0.12,  # deviation of the Laplacian in parts of that of the grey levels
        "shape": 2.5,  # times as wide or as narrow as the middle image
        "aspect": 20,  # times as long as wide
        "side": 8,  # pixels
    }
)
_LOOKED = 512  # pixels of the longer side to which larger pictures are reduced before
_FEW_SHAPES = 10  # images that do not tell what is odd
# Of copies the one in the test or validation images stays: dropping one from train costs least.
_KEEP_FIRST = {"test": 0, "valid": 1, "train": 2, "": 3}


class Tones(NamedTuple):
    """How light and how sharp a picture is.

    The grey levels, 0..255, that 1 and 99 of 100 pixels are at or below, the standard deviation of
    all, and that of the Laplacian, which answers to edges, in parts of it: 0 where there is none.
    """

    low: int
    high: int
    contrast: float
    sharpness: float


def tones_of(image: Image.Image) -> Tones:
    """The tones of a picture; of a large one, reduced to 512 pixels or a few more."""
    grey = image.convert("L")
    if (factor := max(grey.size) // _LOOKED) > 1:
        grey = grey.reduce(factor)
    below = np.cumsum(grey.histogram()) / (grey.width * grey.height)
    low, high = (int(np.searchsorted(below, share)) for share in (0.01, 0.99))
    values = np.asarray(grey, dtype=np.float32)
    contrast = float(values.std())
    edges = float(laplace(values, mode="nearest").std())
    return Tones(low, high, contrast, edges / contrast if contrast > 0 else 0.0)


@dataclass(frozen=True)
class _Seen:
    """What one look at a file showed."""

    n_bytes: int = 0
    error: str = ""
    digest: str = ""
    size: tuple[int, int] | None = None
    mode: str = ""
    highest: int | None = None
    structure: np.ndarray | None = None
    spectrum: np.ndarray | None = None
    tones: Tones | None = None


def find_problems(
    frame: pd.DataFrame,
    root: Path,
    classes: Sequence[str],
    unread: Sequence[str] = (),
    *,
    fast: bool,
    min_images: int,
    progress: bool,
    limits: Mapping[str, float | None] = LIMITS,
    mask_of: Callable[[int], Any] | None = None,
    good: str | None = None,
) -> pd.DataFrame:
    """Findings about the images of a dataset's table, worst first: see `ImageDataset.check`."""
    limits = _checked_limits(limits)
    paths = [root / path for path in frame["path"]]
    look = functools.partial(_look_at, fast=fast)
    looks = load_ahead(look, paths, n_ahead=4 * _N_WORKERS, n_workers=_N_WORKERS)
    seen = [found for _, found in watched(looks, len(paths), progress, "check images")]
    table = _Table(frame, root, seen, progress, limits)
    checks = (_unreadable, _copies, _near_copies, _deep, _shape, _odd_shape, _tones)
    checks += (_mixed("size"), _mixed("mode"))
    findings = [row for check in checks for row in check(table)]
    sizes, read = [one.size for one in seen], None if fast else mask_of
    rows = frame.to_dict("records")
    findings += [table.row(*one) for one in annotation_findings(rows, sizes, read, good)]
    # of anomaly detection only what is good is learned
    counts = split_counts(frame, classes)
    counts = counts if good is None else counts[counts.index == good]
    findings += [*_few(counts, min_images), *_absent(counts)]
    if unread:
        findings.append(_about_all("skipped files", "warning", unread_text(unread), unread))
    order = {"error": 0, "warning": 1, "info": 2}
    findings.sort(key=lambda row: (order[row["severity"]], row["finding"], row["path"]))
    return pd.DataFrame(findings, columns=list(COLUMNS), dtype=object)


def not_in_findings(frame: pd.DataFrame, findings: pd.DataFrame) -> np.ndarray:
    """Whether each row of `frame` is the image in `path` of no finding, bool (N,).

    Raises:
        DataError: A finding is about a file that is not in `frame`.
    """
    unwanted = set(findings["path"]) - {""}
    if unknown := sorted(unwanted - set(frame["path"])):
        raise DataError(f"`findings` name files that are not in the dataset: {unknown[:3]}")
    return ~frame["path"].isin(unwanted).to_numpy(dtype=bool)


class _Table:
    """The rows of a dataset beside what was seen of each file."""

    def __init__(
        self,
        frame: pd.DataFrame,
        root: Path,
        seen: list[_Seen],
        progress: bool,
        limits: Mapping[str, float] = LIMITS,
    ) -> None:
        self.root = root
        self.paths, self.splits = frame["path"].tolist(), frame["split"].tolist()
        self.labels = [x if isinstance(x, str) else ", ".join(x) for x in frame["label"]]
        self.seen, self.progress, self.limits = seen, progress, limits

    def row(self, finding: str, severity: str, i: int, detail: str, group: Any = ()) -> dict:
        """Finding about image `i`, to be dropped for it."""
        place = {"path": self.paths[i], "class": self.labels[i], "split": self.splits[i]}
        paths = tuple(self.paths[j] for j in group) or (self.paths[i],)
        return {"finding": finding, "severity": severity, "detail": detail, "paths": paths} | place


def _about_all(finding: str, severity: str, detail: str, paths: Any = (), name: str = "") -> dict:
    """Finding about no image in particular."""
    return dict(zip(COLUMNS, (finding, severity, "", name, "", detail, tuple(paths)), strict=True))


def _look_at(path: Path, fast: bool) -> _Seen:
    try:
        with open_regular(path) as file:
            data = file.read()
    except OSError as error:
        return _Seen(error=f"cannot be opened: {error.strerror or error}")
    seen = {"n_bytes": len(data), "digest": hashlib.sha256(data).hexdigest()}
    try:
        with naming_errors("", data):
            shape = array_shape(io.BytesIO(data))
        if shape is not None:
            picture = displayed_image(data)  # reads all of it
            seen |= {"size": picture.size, "mode": f"{(*shape, 1)[2]} channels"}
            looks = structure_and_spectrum(picture) | {"tones": tones_of(picture)}
            return _Seen(**seen, **({} if fast else looks))
        with naming_errors("", data), open_picture(io.BytesIO(data)) as image:
            seen |= {"size": image.size, "mode": image.mode}
            if not fast:
                seen |= _decoded(data, image)
    except ImageReadError as error:
        seen["error"] = str(error).partition("cannot be read: ")[2] or str(error)
    return _Seen(**seen)


def _decoded(data: bytes, image: Image.Image) -> dict[str, Any]:
    """What an image is compared and judged by, and the highest value of a 16-bit one."""
    picture, highest = _picture(data, image)
    compared = structure_and_spectrum(picture)
    return compared | {"tones": tones_of(picture), "highest": highest}


def _picture(data: bytes, image: Image.Image) -> tuple[Image.Image, int | None]:
    """An image with 8 bits, and the highest value if it has 16."""
    if not image.mode.startswith("I"):
        return displayed_image(data), None
    highest = int(np.asarray(image).max())
    # By the bits in use, or 12-bit images in 16 bits would all be dark and look the same.
    return read_image(image, bit_depth=max(8, highest.bit_length())), highest


def _grey(path: Path) -> np.ndarray:
    """Grey pixels float32 (H, W) of an image that could be read; of one that is gone since none."""
    try:
        with open_regular(path) as file:
            data = file.read()
        with naming_errors("", data):
            if array_shape(io.BytesIO(data)) is not None:
                return np.asarray(displayed_image(data).convert("L"), np.float32)
        with naming_errors("", data), open_picture(io.BytesIO(data)) as image:
            return np.asarray(_picture(data, image)[0].convert("L"), np.float32)
    except (OSError, ImageReadError):
        return np.empty((0, 0), np.float32)


def _unreadable(table: _Table) -> Iterator[dict]:
    for i, seen in enumerate(table.seen):
        if seen.digest and not seen.n_bytes:
            yield table.row("empty file", "error", i, "0 bytes")
        elif seen.error:
            yield table.row("unreadable", "error", i, seen.error)


def _copies(table: _Table) -> Iterator[dict]:
    """Files with the same bytes."""
    groups = defaultdict(list)
    for i, seen in enumerate(table.seen):
        if seen.n_bytes:
            groups[seen.digest].append(i)
    for group in groups.values():
        if len(group) > 1 and len({table.labels[i] for i in group}) > 1:
            labels = " and ".join(sorted({table.labels[i] for i in group}))
            # Nobody knows which label is right: all of them are to be looked at.
            for i in group:
                yield table.row("conflicting labels", "error", i, f"same file as {labels}", group)
        elif len(group) > 1:
            yield from _redundant(table, group, "duplicate", ("warning", "error"))


def _near_copies(table: _Table) -> Iterator[dict]:
    """Images that look the same without being the same file; other labels are only mentioned."""
    first = {}  # of the same bytes one: the others are copies, found already
    for i, seen in enumerate(table.seen):
        if seen.structure is not None:
            first.setdefault(seen.digest, i)
    rows = list(first.values())
    if len(rows) < 2:
        return
    structures = np.stack([table.seen[i].structure for i in rows])
    spectra = np.stack([table.seen[i].spectrum for i in rows])

    def read(row: int) -> np.ndarray:
        return _grey(table.root / table.paths[rows[row]])

    for members in near_duplicate_groups(structures, spectra, read, progress=table.progress):
        by_label = defaultdict(list)
        for j in members:
            by_label[table.labels[rows[j]]].append(rows[j])
        for group in by_label.values():
            yield from _redundant(table, group, "near duplicate", ("info", "warning"))
        if len(by_label) > 1:
            detail = f"look the same but are labelled {' and '.join(sorted(by_label))}"
            paths = [table.paths[rows[j]] for j in members]
            yield _about_all("look-alikes", "info", detail, paths)


def _redundant(
    table: _Table, group: list[int], finding: str, severities: tuple[str, str]
) -> Iterator[dict]:
    """One finding for each image of a group but the one to keep; graver across splits."""
    keep, *others = sorted(group, key=lambda i: (_KEEP_FIRST[table.splits[i]], table.paths[i]))
    for i in others:
        across = table.splits[i] != table.splits[keep]
        name = f"{finding} across splits" if across else finding
        where = f" in {table.splits[keep] or 'no split'}" if across else ""
        yield table.row(name, severities[across], i, f"of {table.paths[keep]!r}{where}", (keep, i))


def _deep(table: _Table) -> Iterator[dict]:
    """16-bit images that never use their upper bits and so come out dark."""
    deep = [i for i, seen in enumerate(table.seen) if seen.highest is not None]
    highest = max((table.seen[i].highest for i in deep), default=0)
    if deep and highest < 2**15:
        bits = next(usual for usual in (8, 10, 12, 14, 15) if highest < 2**usual)
        yield _about_all(
            "unused bits",
            "warning",
            f"{number_of(len(deep), '16-bit image')} with values up to {highest} only, read as "
            f"dark as that; set `bit_depth={bits}`",
            [table.paths[i] for i in deep],
        )


def _shape(table: _Table) -> Iterator[dict]:
    aspect, side = table.limits["aspect"], table.limits["side"]
    for i, seen in enumerate(table.seen):
        if seen.size is None:
            continue
        detail = f"{seen.size[0]} x {seen.size[1]} pixels"
        if max(seen.size) > aspect * min(seen.size):
            yield table.row("extreme aspect", "warning", i, detail)
        if min(seen.size) < side:
            yield table.row("tiny image", "warning", i, detail)


def _odd_shape(table: _Table) -> Iterator[dict]:
    """Images much wider or narrower than the others; cropped or squished they show other things."""
    sizes = {i: seen.size for i, seen in enumerate(table.seen) if seen.size is not None}
    if len(sizes) < _FEW_SHAPES:
        return
    aspects = {i: width / height for i, (width, height) in sizes.items()}
    middle, limit = float(np.median(list(aspects.values()))), table.limits["shape"]
    for i, aspect in aspects.items():
        if (times := max(aspect / middle, middle / aspect)) > limit:
            how = "wide" if aspect > middle else "narrow"
            detail = f"{sizes[i][0]} x {sizes[i][1]} pixels, {times:.1f} times as {how}"
            detail += f" as the middle image (over {limit:g})"
            yield table.row("odd shape", "info", i, detail)


def _tones(table: _Table) -> Iterator[dict]:
    """Images that show little: blank, dark, bright or blurred ones, the limit in the detail."""
    limits = table.limits
    for i, seen in enumerate(table.seen):
        if (tones := seen.tones) is None:
            continue
        if tones.contrast < limits["blank"]:
            what = f"grey levels deviate by {tones.contrast:.2g} (under {limits['blank']:g})"
            yield table.row("blank image", "info", i, what)
        elif tones.sharpness < limits["blurred"]:
            what = f"sharpness {tones.sharpness:.3f} (under {limits['blurred']:g})"
            yield table.row("blurred image", "info", i, what)
        if tones.high < limits["dark"]:
            what = f"99 of 100 pixels are at most {tones.high} of 255 (under {limits['dark']:g})"
            yield table.row("dark image", "info", i, what)
        if tones.low > limits["bright"]:
            what = f"99 of 100 pixels are above {tones.low} of 255 (over {limits['bright']:g})"
            yield table.row("bright image", "info", i, what)


def _checked_limits(limits: Mapping[str, float | None]) -> dict[str, float]:
    """All limits, those that are not given as they are by default, None as one nothing is beyond.

    Raises:
        DataError: An unknown name, or no number of 0 or more.
    """
    never = {"bright": np.inf, "shape": np.inf, "aspect": np.inf}
    for name, value in limits.items():
        number = isinstance(value, int | float) and not isinstance(value, bool) and value >= 0
        if name not in LIMITS or not (value is None or number):
            raise DataError(
                f"`limits` has {name!r}: {value!r}; give numbers of 0 or more, or None, for "
                f"{', '.join(LIMITS)}"
            )
    found = dict(LIMITS) | dict(limits)
    return {name: never.get(name, 0.0) if v is None else float(v) for name, v in found.items()}


def _mixed(what: str) -> Callable[[_Table], Iterator[dict]]:
    """Check that reports a header field with several values, and how often each occurs."""

    def check(table: _Table) -> Iterator[dict]:
        groups = defaultdict(list)
        for i, seen in enumerate(table.seen):
            if value := getattr(seen, what):
                groups[value if what == "mode" else f"{value[0]} x {value[1]}"].append(i)
        if len(groups) > 1:
            common = sorted(groups, key=lambda value: (-len(groups[value]), value))
            shown = first_few(
                f"{value} ({number_of(len(groups[value]), 'image')})" for value in common
            )
            examples = [table.paths[groups[value][0]] for value in common[:5]]
            severity = "warning" if what == "mode" else "info"
            yield _about_all(f"mixed {what}s", severity, shown, examples)

    return check


def _few(counts: pd.DataFrame, min_images: int) -> Iterator[dict]:
    """Classes with fewer than `min_images` to learn from."""
    where = "train" if "train" in counts else "all"
    column = counts["train"] if "train" in counts else counts.sum(axis=1)
    for name, n in column.items():
        if n < min_images:
            severity = "error" if n == 0 else "warning"
            detail = f"{number_of(n, 'image')} in {where}, fewer than {min_images}"
            yield _about_all("few images", severity, detail, name=name)


def _absent(counts: pd.DataFrame) -> Iterator[dict]:
    """Classes without images in a split that has some: its figures say nothing of them."""
    splits = [name for name in counts if name != "unassigned"]
    for name, row in counts[splits].iterrows():
        absent = [split for split in splits if split != "train" and not row[split]]
        if row.sum() and absent:
            there = ", ".join(f"{row[split]} in {split}" for split in splits if row[split])
            yield _about_all(
                "absent from split",
                "warning",
                f"its images are {there}, none in {' and '.join(absent)}, whose figures for it are "
                "empty; move some there, or split again with `split(..., overwrite=True)`",
                name=name,
            )
