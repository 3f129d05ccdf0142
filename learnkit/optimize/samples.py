"""Samples and test images of a conversion: read once, told apart by what they show."""

from __future__ import annotations

import hashlib
import io
import os
from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from learnkit.data.labelled_images import files_or_images, images_of_split
from learnkit.data.preprocess import Preprocessing, to_tensor
from learnkit.data.read_images import file_of, read_images
from learnkit.errors import OptimizeError, number_of, warn_user
from learnkit.optimize.quality import Images

MAX_SAMPLES = 1000
MAX_TEST = 2000
_THUMB = 64  # pixels of a thumbnail's longer side
_SPLITS = {"samples": ("train",), "test": ("test", "valid")}


@dataclass(frozen=True, eq=False)
class Pictures:
    """Images as the network sees them, each with the digest of what it shows.

    Attributes:
        names: what to call each.
        labels: one per image, or None where they are not known.
        pixels: uint8 (N, C, H, W).
        digests: SHA-256 (hex) of each.
        files: where each was read from; "" for one that was in no file, none if nobody noted it.
    """

    names: tuple[str, ...]
    labels: tuple[Hashable, ...] | None
    pixels: Tensor
    digests: tuple[str, ...]
    files: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    def picked(self, places: Iterable[int]) -> Pictures:
        """Those at these places, in order."""
        places = list(places)
        return Pictures(
            tuple(self.names[i] for i in places),
            None if self.labels is None else tuple(self.labels[i] for i in places),
            self.pixels[places],
            tuple(self.digests[i] for i in places),
            tuple(self.files[i] for i in places) if self.files else (),
        )

    def without(self, digests: Collection[str]) -> Pictures:
        """Those that show nothing with one of these digests."""
        return self.picked(i for i, one in enumerate(self.digests) if one not in digests)

    def thumbnail(self, i: int) -> bytes:
        """A JPEG of at most 64 x 64 pixels of image `i`."""
        # Pillow takes grey images without an axis of channels
        pixels = self.pixels[i].permute(1, 2, 0).squeeze(2).numpy()
        image, file = Image.fromarray(pixels), io.BytesIO()
        image.thumbnail((_THUMB, _THUMB))
        image.save(file, "JPEG", quality=80)
        return file.getvalue()

    def described(self, what: str) -> Images:
        """What a report says of them."""
        labels = [] if self.labels is None else self.labels
        counts = Counter(
            name for label in labels for name in (label if isinstance(label, tuple) else (label,))
        )
        together = hashlib.sha256("".join(sorted(self.digests)).encode()).hexdigest()
        return Images(what, len(self), dict(sorted(counts.items())), self.names, together)


def read_pictures(
    data: Any,
    recipe: Preprocessing,
    classes: Sequence[str],
    *,
    what: str,
    limit: int,
    multi_label: bool = False,
    progress: bool = False,
) -> Pictures:
    """The images meant by `data`, evenly drawn from its classes if there are more than `limit`.

    Args:
        data: a dataset, of which `what` says the split; a folder with one folder per class, or with
            images and no folders; or images of any kind `predict` takes.
        recipe: how they are read.
        classes: names the model knows.
        what: "samples", "test" or "ood" (whose labels are no matter), the name of the argument.
        limit: how many to read at most.
        multi_label: an image may have several labels, or none: each is a tuple then.
        progress: show a progress bar.

    Raises:
        OptimizeError: no images, labels that the model does not know, or several for an image of a
            model that gives one.
        UnreadableImagesError: images cannot be read; all of them are named.
    """
    items, labels = (
        (files_or_images(data), None) if what == "ood" else images_of_split(data, _SPLITS[what])
    )
    if not items:
        raise OptimizeError(f"`{what}` holds no images; give files, a folder or a dataset")
    if labels is not None:
        labels = [_checked_label(label, what, multi_label) for label in labels]
        _check_known(labels, classes, what)
    chosen = _drawn(labels or [None] * len(items), limit)
    items = [items[i] for i in chosen]
    labels = None if labels is None else tuple(labels[i] for i in chosen)
    pixels = _pixels(items, recipe, what, progress)
    # of the pixels: the same picture in another file or format is the same sample
    digests = tuple(hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in pixels)
    # the last folder and name of a file; of a picture the start of its digest
    names = tuple(
        "/".join(Path(os.fsdecode(item)).parts[-2:])
        if isinstance(item, str | os.PathLike)
        else digest[:12]
        for item, digest in zip(items, digests, strict=True)
    )
    return Pictures(names, labels, pixels, digests, tuple(map(file_of, items)))


def evenly(labels: Sequence[Hashable], n: int) -> list[int]:
    """Places of at most `n` of each label, spread over those there are, in order."""
    by_class: dict[Hashable, list[int]] = defaultdict(list)
    for i, label in enumerate(labels):
        by_class[label].append(i)
    spread = (np.linspace(0, len(all_) - 1, min(n, len(all_))) for all_ in by_class.values())
    return sorted(
        all_[round(k)] for all_, where in zip(by_class.values(), spread, strict=True) for k in where
    )


def _drawn(labels: Sequence[Hashable], limit: int) -> list[int]:
    if len(labels) <= limit:
        return list(range(len(labels)))
    # of more classes than `limit` even one each are too many
    return evenly(labels, max(1, limit // len(set(labels))))[:limit]


def _checked_label(label: Any, what: str, multi_label: bool) -> str | tuple[str, ...]:
    """A name, or, if `multi_label`, a tuple of names."""
    names = (label,) if isinstance(label, str) else label
    if not isinstance(names, tuple | list) or not all(isinstance(name, str) for name in names):
        raise OptimizeError(f"`{what}` has the label {label!r:.100}; a label is a name, as text")
    if multi_label:
        return tuple(names)
    if len(names) != 1:
        raise OptimizeError(
            f"`{what}` has an image with {len(names)} labels, {list(names)[:5]}, and this model "
            "gives each exactly one; give such images, or the files as a list, without labels"
        )
    return names[0]


def _check_known(labels: Sequence[Hashable], classes: Sequence[str], what: str) -> None:
    found = {name for one in labels for name in (one if isinstance(one, tuple) else (one,))}
    if unknown := sorted(found - set(classes), key=str):
        raise OptimizeError(
            f"`{what}` has images of {unknown[:5]}, which this model does not know; its classes "
            f"are {list(classes)[:10]}: leave them out, or give the files as a list, without labels"
        )


def _pixels(items: Sequence[Any], recipe: Preprocessing, what: str, progress: bool) -> Tensor:
    """uint8 (N, C, H, W); warns of some so small that enlarged they say little of the others."""

    def load(item: Any) -> tuple[Tensor, int]:
        image = recipe.decode(item)
        return to_tensor(recipe.resize(image)), min(image.size)

    loaded = read_images(load, items, n_ahead=32, progress=progress, what=f"read {what}")
    images, sides = zip(*loaded, strict=True)
    height, width = recipe.size
    small = sum(side < min(height, width) / 2 for side in sides)
    if 0 < small < len(items):  # where all are small, that is how they come
        warn_user(
            f"{small} of {len(items)} images of `{what}` are less than half the network's "
            f"{height} x {width} pixels; give them as they come in use"
        )
    return torch.stack(images)


FEW = 10  # images of a class below which ranges are a guess


PER_CLASS = 20  # images of a class that are enough


def check_samples(samples: Pictures, classes: Sequence[str]) -> Pictures:
    """`samples`, each picture once; warn where they are few, refuse them where they tell nothing.

    Raises:
        OptimizeError: all of them show the same.
    """
    # backwards, so that the first of equal ones stays
    first = {one: i for i, one in reversed(list(enumerate(samples.digests)))}
    found = samples.picked(sorted(first.values()))  # each picture once
    if len(found) == 1 and len(samples) > 1:
        raise OptimizeError(
            f"the {len(samples)} images of `samples` all show the same; ranges come from images "
            f"that differ: give {FEW} to {PER_CLASS} of each class, as they come in use"
        )
    if repeated := len(samples) - len(found):
        warn_user(f"`samples` has {number_of(repeated, 'image')} twice; each counts once")
    if found.labels is None:
        if len(found) < FEW * len(classes):
            warn_user(
                f"`samples` has {number_of(len(found), 'image')} for "
                f"{number_of(len(classes), 'class')}; {FEW} to "
                f"{PER_CLASS} of each make the ranges of an int8 model sound"
            )
        return found
    counts = Counter(n for one in found.labels for n in (one if isinstance(one, tuple) else (one,)))
    if few := [f"{counts[name]} of {name!r}" for name in classes if counts[name] < FEW]:
        more = f" and of {len(few) - 5} more classes" if len(few) > 5 else ""
        warn_user(
            f"`samples` has only {', '.join(few[:5])}{more}; {FEW} to {PER_CLASS} images of each "
            "class make the ranges of an int8 model sound"
        )
    return found


def kept_apart(samples: Pictures, test: Pictures) -> tuple[Pictures, Pictures, str]:
    """(samples, test, what was done) so that no image is both converted and compared by.

    What is in both is taken out of the larger one. If nothing is left of it, a third of the samples
    is set apart as in `set_apart`.
    """
    both = set(samples.digests) & set(test.digests)
    if not both:
        return samples, test, ""
    said = f"{number_of(len(both), 'image')} both in `samples` and in `test`"
    if len(samples) > len(test):
        return samples.without(both), test, f"{said}; the samples go without them"
    if rest := test.without(both):
        return samples, rest, f"{said}; the test goes without them"
    samples, test = set_apart(samples)
    return samples, test, f"{said}: {len(test)} of them are set apart for the test"


def set_apart(samples: Pictures) -> tuple[Pictures, Pictures]:
    """(two thirds, one third) of the images, of every class; digests choose, so always the same.

    Raises:
        OptimizeError: fewer than three images.
    """
    if len(samples) < 3:
        raise OptimizeError(
            f"`samples` has {len(samples)} of the 3 images that are the least: two to convert by "
            f"and another to compare by; {FEW} to {PER_CLASS} of each class are sound"
        )
    by_class: dict[Hashable, list[int]] = defaultdict(list)
    for i in sorted(range(len(samples)), key=samples.digests.__getitem__):
        by_class[None if samples.labels is None else samples.labels[i]].append(i)
    test = [i for places in by_class.values() for i in places[2::3]]
    # where no class has three images, one all the same
    test = sorted(test) or [min(range(len(samples)), key=samples.digests.__getitem__)]
    return samples.picked(i for i in range(len(samples)) if i not in set(test)), samples.picked(
        test
    )
