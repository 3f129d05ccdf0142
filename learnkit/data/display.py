"""Pictures of a dataset: a grid of its images, and a table of its counts."""

import math
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, ImageChops

from learnkit.data.annotations.overlay import Overlay
from learnkit.data.geometry import image_of_pixels
from learnkit.data.image import extension_counts, read_image
from learnkit.data.labels import Label
from learnkit.data.split import SPLITS
from learnkit.errors import ImageReadError, number_of
from learnkit.report.document import (
    Document,
    Gallery,
    Items,
    Lines,
    Paragraph,
    Picture,
    Section,
    Span,
    frame_table,
)
from learnkit.report.figure_text import figure_names
from learnkit.report.notebook import AxesArray
from learnkit.storage.array_files import MAX_CHANNELS

_MAX_ROWS = 30
_MAX_PICTURES, _PICTURE = 12, 480  # of a kind of finding; pixels of the longer side


def show_images(
    paths: Sequence[Path],
    labels: Sequence[Label],
    *,
    axes: Any = None,
    side: float = 2.0,
    overlay: Overlay | None = None,
) -> np.ndarray:
    """Array of matplotlib axes with the images and their labels; unreadable ones say so.

    Args:
        paths: The files.
        labels: One per file.
        axes: Axes to draw on, one per image; None makes a figure.
        side: Inches per image in that figure.
        overlay: Draws what is annotated over the images; such a figure names the classes.
    """
    own = axes is None
    axes = _grid(max(len(paths), 1), side) if own else np.atleast_1d(axes)
    if own and overlay is not None:
        overlay.add_legend(axes.flat[0].figure)
    for axis in axes.flat:
        axis.axis("off")
    titles = [label if isinstance(label, str) else ", ".join(label) for label in labels]
    lines, style = figure_names(
        [line for title in titles for line in title.split("\n")],
        round(16 * side),  # characters that fit above an image
    )
    cut = iter(lines)
    for i, (axis, path, title) in enumerate(zip(axes.flat, paths, titles, strict=False)):
        try:
            axis.imshow(displayed_image(path))
            if overlay is not None:
                overlay.draw(i, axis)
        except ImageReadError:
            axis.text(0.5, 0.5, "unreadable", ha="center", va="center", transform=axis.transAxes)
        shown = "\n".join(next(cut) for _ in title.split("\n"))
        axis.set_title(shown, fontsize="small", **style)
    return axes


def difference_picture(one: Image.Image, other: Image.Image, side: int = 160) -> Image.Image:
    """Where two pictures differ, RGB, `side` pixels wide: black where they are the same.

    The second is brought to the size of the first; the difference is drawn four times as strong, so
    that a copy saved again is nearly black and a speck in it is not.
    """
    size = (side, min(max(1, round(side * one.height / one.width)), 2 * side))
    pair = [image.convert("RGB").resize(size, Image.Resampling.LANCZOS) for image in (one, other)]
    return ImageChops.difference(*pair).point([min(4 * i, 255) for i in range(256)] * 3)


def _side_by_side(one: Image.Image, other: Image.Image) -> Image.Image:
    """Two pictures and where they differ."""
    difference = difference_picture(one, other)
    whole = Image.new("RGB", (3 * difference.width, difference.height))
    for place, picture in enumerate((one, other, difference)):
        shown = picture.convert("RGB").resize(difference.size, Image.Resampling.LANCZOS)
        whole.paste(shown, (place * difference.width, 0))
    return whole


def findings_document(found: pd.DataFrame, root: Path) -> Document:
    """What `ImageDataset.check` found, kind by kind, with pictures of the first images.

    Of copies the two and their difference are shown side by side.
    """
    if found.empty:
        return Document([Paragraph(Span("nothing to object to", "strong"))])
    sections = []
    for (severity, finding), rows in found.groupby(["severity", "finding"], sort=False):
        shown = rows.head(_MAX_ROWS).to_dict("records")
        items = [_sentence(row) for row in shown]
        if len(rows) > len(items):
            items.append(f"and {len(rows) - len(items)} more")
        pictures = [one for row in shown[:_MAX_PICTURES] if (one := _picture(row, root))]
        title = f"{severity}: {finding} ({len(rows)})"
        sections.append(Section(title, [Items(items), Gallery(pictures)], severity != "info"))
    return Document(sections)


def _sentence(row: dict[str, Any]) -> str:
    about = ", ".join(filter(None, (row["path"], row["class"], row["split"])))
    return ": ".join(filter(None, (about, row["detail"])))


def _picture(row: dict[str, Any], root: Path) -> Picture | None:
    """The image of a finding, or the pair; None of what cannot be read."""
    paths = [row["path"]] if row["path"] else []
    paths = list(row["paths"][:2]) if len(row["paths"]) > 1 else paths
    try:
        images = [displayed_image(root / path) for path in paths]
    except ImageReadError:
        return None
    if not images:
        return None
    shown = _side_by_side(*images) if len(images) > 1 else images[0].convert("RGB")
    shown.thumbnail((_PICTURE, _PICTURE))
    return Picture(" | ".join(paths), None, Lines(()), np.asarray(shown))


def displayed_image(source: Any) -> Image.Image:
    """An image to look at: of files with more channels the first three, of two the first one.

    Raises:
        ImageReadError: The file is missing or damaged.
    """
    try:
        return read_image(source)
    except ImageReadError:
        for channels in (*range(4, MAX_CHANNELS + 1), 2, 1):
            with suppress(ImageReadError):
                pixels = np.asarray(read_image(source, channels=channels))
                return image_of_pixels(pixels[..., : 3 if channels > 3 else 1]).convert("RGB")
        raise


def summary(splits: Sequence[str], unread: Sequence[str] = ()) -> str:
    """How many images are in which split, and how many images were not read.

    >>> summary(["train", "", "train"], ["a.dcm", "b.dcm"])
    'train 2, unassigned 1; skipped 2 .dcm'
    """
    sizes = Counter(splits)
    parts = [f"{name} {sizes[name]}" for name in SPLITS if sizes[name]]
    parts += [f"unassigned {sizes['']}"] * bool(sizes[""])
    return (", ".join(parts) or "empty") + _skipped(unread)


def _skipped(unread: Sequence[str]) -> str:
    shown = ", ".join(f"{n} {name}" for name, n in extension_counts(unread).items())
    return f"; skipped {shown}" if shown else ""


def counts_document(
    counts: pd.DataFrame, n_images: int, root: Path, unread: Sequence[str] = ()
) -> Document:
    """Images per class and split, and how many images were not read."""
    head = Span(f"{number_of(n_images, 'image')}, {number_of(len(counts), 'class')}", "strong")
    table = frame_table(counts, "class", max_rows=_MAX_ROWS, rest="classes")
    more = _skipped(unread)
    return Document([Paragraph((head, " in ", Span(str(root), "code"), more)), table])


def _grid(n: int, side: float) -> np.ndarray:
    import matplotlib.pyplot as plt

    n_cols = math.ceil(math.sqrt(n))
    n_rows = math.ceil(n / n_cols)
    size = (side * n_cols, (side + 0.25) * n_rows)
    options = {"figsize": size, "squeeze": False, "layout": "constrained"}
    return plt.subplots(n_rows, n_cols, **options)[1].view(AxesArray)
