"""The evaluated images: what was answered to each of them, kept beside the measures."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL.Image import merge

from learnkit.data.geometry import Planes
from learnkit.data.image import image_size, read_image
from learnkit.data.read_images import file_of, load_ahead
from learnkit.errors import ImageReadError
from learnkit.evaluation.inputs import labels_above
from learnkit.evaluation.measures import LOG_CLIP
from learnkit.storage.filesystem import open_regular

if TYPE_CHECKING:
    from PIL.Image import Image

Array = np.ndarray
_N_WORKERS = 2


@dataclass(frozen=True, eq=False)
class AlikeImages:
    """The learned images that are most alike evaluated ones; K are known, of which k are told each.

    Attributes:
        rows: which learned images, most alike first (n, k); -1 where nothing is known of an image.
        similarity: cosine similarities of features (n, k).
        labels: what each of the K is labelled as.
        sources: their files (K,); None of remembered features, which have no pictures.
        root: the folder that names of these are relative to.
        n_learned: images there are, of which K were looked at.
    """

    rows: Array
    similarity: Array
    labels: Sequence[str]
    sources: Sequence[Any] | None = None
    root: Path | None = None
    n_learned: int = 0


@dataclass(frozen=True, eq=False)
class EvaluatedImages:
    """What a classifier answered to the images of an evaluation, and where they are.

    Known images come first, strange ones (of no class) behind them; M of all of them, N known.

    Attributes:
        probs: probabilities (M, C).
        targets: class numbers (N,), or flags (N, C) where an image may have several labels.
        sources: files, or whatever an image came as, one for each.
        root: the folder that names of files are relative to; strange ones have their own.
        threshold: a label counts above it, where an image may have several.
        ood_scores: out-of-distribution scores (M,); None where none are detected.
        ood_threshold: the score above which an image is flagged.
        learned: which known images the model has learned (N,); None where nobody knows.
        n_learned: images learned by class name, where they are counted.
        unreadable: why images cannot be read, by file.
        facts: the model: name, arch, size, digest.
        seconds: that reading and answering took; None where nobody looked at the clock.
        picture: the picture of an image by its place; default as `read_image` reads its source.
        box: what the network sees of a picture of a size, of which heat is; default all of it.
        heat: Grad-CAM maps (h, w) of places for class numbers; None where there are none.
        decode: the picture of any source, as the model reads it; default as `read_image` does.
        alike: the learned images most alike those at places; None where nothing is known of them.
    """

    probs: Array
    targets: Array
    sources: Sequence[Any]
    root: Path | None = None
    threshold: Any = 0.5
    ood_scores: Array | None = None
    ood_threshold: float | None = None
    learned: Array | None = None
    n_learned: Mapping[str, int] = field(default_factory=dict)
    unreadable: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    seconds: float | None = None
    picture: Callable[[int], Image] | None = None
    box: Callable[[tuple[int, int]], tuple[float, ...]] | None = None
    heat: Callable[[Sequence[int], Sequence[int]], list[Array] | None] | None = None
    decode: Callable[[Any], Any] | None = None
    alike: Callable[[Sequence[int]], AlikeImages | None] | None = None

    def __len__(self) -> int:
        return len(self.probs)

    def __getstate__(self) -> dict[str, Any]:
        # the model stays here: what is pickled, or copied, is the answers and where the images are
        return {**vars(self), **dict.fromkeys(("picture", "box", "heat", "decode", "alike"))}

    @property
    def n_known(self) -> int:
        """Images with a label."""
        return len(self.targets)

    @property
    def multi_label(self) -> bool:
        """Whether an image may have several labels."""
        return self.targets.ndim == 2

    def gone(self, classes: Sequence[str]) -> Array:
        """Which classes (C,) have no learned image and are no answer: merged away, or forgotten."""
        none_learned = np.array([self.n_learned.get(name) == 0 for name in classes], bool)
        return none_learned & ~self.probs.any(0)

    @cached_property
    def predicted(self) -> Array:
        """Class numbers (M,), or flags bool (M, C)."""
        if self.multi_label:
            return labels_above(self.probs, self.threshold)
        return self.probs.argmax(1) if len(self) else np.zeros(0, np.int64)

    @cached_property
    def right(self) -> Array:
        """Which known images are right, bool (N,)."""
        same = self.predicted[: self.n_known] == self.targets
        return same.all(1) if self.multi_label else same

    @cached_property
    def flagged(self) -> Array:
        """Which images are flagged as out of distribution, bool (M,)."""
        if self.ood_scores is None or self.ood_threshold is None:
            return np.zeros(len(self), bool)
        return ~(self.ood_scores <= self.ood_threshold)  # so written that NaN is flagged

    @cached_property
    def actual_probs(self) -> Array:
        """The probability of the truth of the known images (N,); of several labels of the set."""
        probs = self.probs[: self.n_known].astype(np.float64)
        if self.multi_label:
            return np.where(self.targets == 1, probs, 1 - probs).prod(1)
        return np.take_along_axis(probs, self.targets[:, None], 1)[:, 0]

    @cached_property
    def losses(self) -> Array:
        """Minus the logarithm of the truth's probability (N,); of several labels the mean."""
        probs = self.probs[: self.n_known].astype(np.float64)
        truth = self.actual_probs[:, None]
        if self.multi_label:
            truth = np.where(self.targets == 1, probs, 1 - probs)
        return -np.log(np.clip(truth, LOG_CLIP, 1)).mean(1)

    @cached_property
    def names(self) -> list[str]:
        """What each image is called: its path below `root`, never an absolute one."""
        strange = common_folder(self.sources[self.n_known :])
        roots = [self.root] * self.n_known
        roots += [strange and strange.parent] * (len(self) - self.n_known)
        pairs = zip(self.sources, roots, strict=True)
        return [name_of(source, place, root) for place, (source, root) in enumerate(pairs)]

    @cached_property
    def failures(self) -> dict[str, str]:
        """Why images cannot be read, by their names below `root`."""
        found = {}
        for place, (file, why) in enumerate(self.unreadable.items()):
            name = name_of(file, place, self.root)
            reason = why.removeprefix(f"image {file!r} ").removeprefix("cannot be read: ")
            found[name] = reason.replace(file, name)
        return found

    @cached_property
    def sha256(self) -> list[str | None]:
        """The SHA-256 (hex) of each file; None for what is in none, or gone."""
        files = [file_of(source) for source in self.sources]
        found = load_ahead(_digest, files, n_ahead=16, n_workers=_N_WORKERS)
        return [digest for _, digest in found]

    def open(self, place: int) -> Image:
        """The picture of an image, 8-bit.

        Raises:
            ImageReadError: it cannot be read any more.
        """
        if self.picture is not None:
            return _shown(self.picture(place))
        if self.sources[place] is None:
            raise ImageReadError(f"image {place + 1} is in no file, and whoever read it is gone")
        return read_image(self.sources[place])

    def open_learned(self, source: Any) -> Image:
        """The picture of a learned image, read as these are, 8-bit.

        Raises:
            ImageReadError: it cannot be read any more.
        """
        return read_image(source) if self.decode is None else _shown(self.decode(source))

    def maps(self, places: Sequence[int], numbers: Sequence[int]) -> list[Array] | None:
        """The heat (h, w) of each image for a class; None where there are no gradients."""
        return self.heat and self.heat(places, numbers)

    def seen_box(self, place: int) -> tuple[float, ...]:
        """What the network sees of a picture: left, top, right, bottom, in shares of its sides.

        Beyond 0..1 where the picture is filled up.

        Raises:
            ImageReadError: it cannot be read any more.
        """
        if self.box is None:
            return 0.0, 0.0, 1.0, 1.0
        file = file_of(self.sources[place])
        return self.box(image_size(file) if file else self.open(place).size)


def _shown(picture: Any) -> Image:
    """A picture of Pillow's; of two channels the first, of more than three the first three."""
    if not isinstance(picture, Planes):
        return picture
    channels = picture.channels
    return channels[0] if len(channels) < 3 else merge("RGB", channels[:3])


def name_of(source: Any, place: int, root: Path | None) -> str:
    """The name of an image: its path below `root`, its bare name elsewhere, or its number."""
    file = file_of(source)
    if not file:
        return f"image {place + 1}"
    below = root is not None and Path(file).is_relative_to(root)
    name = Path(file).relative_to(root).as_posix() if below else os.path.basename(file)
    # bytes of a name that are no text are surrogates in Python, which UTF-8 cannot write
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _digest(file: str) -> str | None:
    if not file:
        return None
    try:
        with open_regular(file) as opened:
            return hashlib.sha256(opened.read()).hexdigest()
    except OSError:
        return None


def common_folder(sources: Sequence[Any]) -> Path | None:
    """The innermost folder that all files are below; None if none of them is a file."""
    folders = {os.path.dirname(file) for source in sources if (file := file_of(source))}
    try:
        return Path(os.path.commonpath(folders)) if folders else None
    except ValueError:  # on several drives
        return None
