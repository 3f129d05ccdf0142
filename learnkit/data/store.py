"""The preprocessed store of a dataset: every image decoded and resized once, then read as pixels.

It holds what `Preprocessing.read` gives of a file, (C, H, W) of uint8, beside the hash of the file.
A file that changed is read again; another recipe is refused.
"""

import dataclasses
import hashlib
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from learnkit.data.geometry import image_of_pixels
from learnkit.data.image import naming_errors, source_name
from learnkit.data.preprocess import Preprocessing, note_on_cut
from learnkit.data.read_images import load_ahead, unreadable_images
from learnkit.errors import DataError, ImageReadError, warn_user
from learnkit.report.progress import watched
from learnkit.storage.filesystem import open_regular
from learnkit.storage.row_store import RowStore, StoredRow

_TOGETHER = 32  # images a kill may cost


def recipe_of(
    files: Sequence[Path],
    size: Any = None,
    *,
    preprocessing: Preprocessing | None = None,
    **fields: Any,
) -> Preprocessing:
    """The recipe that loaders and stores make of their arguments; a whole one as it is.

    Warns where the usual method, which nobody asked for, cuts off much of the `files`.

    Raises:
        TypeError: A whole one comes with parts of one.
        DataError: It is none, or a part breaks its rule.
    """
    given = _given({"size": size, **fields})
    if preprocessing is not None:
        _check_whole(preprocessing, given)
        return preprocessing
    recipe = Preprocessing(**{"size": 224, "draft": True, **given})
    if not {"method", "before"} & set(given):
        _warn_of_cut(files, recipe)
    return recipe


def _check_whole(preprocessing: Any, given: Mapping[str, Any]) -> None:
    """Refuse what is no recipe, or parts of one beside it."""
    if not isinstance(preprocessing, Preprocessing):
        raise DataError(
            f"`preprocessing` is {preprocessing!r:.100}; it must be a whole recipe, as in "
            "Preprocessing(224, method='squish')"
        )
    if given:
        changes = ", ".join(f"{name}={value!r:.80}" for name, value in given.items())
        names = ", ".join(f"`{name}`" for name in given)
        raise TypeError(
            f"`preprocessing` is a whole recipe, and {names} {'is' if len(given) == 1 else 'are'} "
            f"given beside it; leave one of the two out, or change the recipe: "
            f"preprocessing.replace({changes})"
        )


def _given(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a recipe that somebody gave: of some None means the usual value."""
    usual = ("size", "channels", "method")
    return {k: value for k, value in fields.items() if value is not None or k not in usual}


def _warn_of_cut(files: Sequence[Path], recipe: Preprocessing) -> None:
    ways = '`method="squish"` and `method="pad"` keep all of it'
    if recipe.crop < 1:  # which "pad" refuses
        ways = '`method="squish"` cuts off no more than `crop` says'
    ways += ', `method="crop"` goes on as now without this warning'
    for note in note_on_cut(files, recipe, ways):
        warn_user(note)


class ImageStore:
    """The pixels of images by one recipe, in a folder; processes may share it.

    Args:
        folder: Absent, empty, or of a store by the same recipe.
        recipe: How a file becomes pixels; its mean and std are no part of that.

    Raises:
        DataError: The folder holds something else, or pixels by another recipe.
    """

    def __init__(self, folder: str | os.PathLike[str], recipe: Preprocessing) -> None:
        self.recipe = recipe.replace(mean=None, std=None)
        shape = (recipe.channels, *recipe.size)
        self._store = RowStore(folder, shape, self.recipe.to_dict())
        self._numbers: dict[Path, int] = {}
        self._rows = self._store.rows()

    def __reduce__(self) -> tuple:
        # in another process it has a memory map of its own
        return ImageStore, (self.folder, self.recipe), {"_numbers": self._numbers}

    @property
    def folder(self) -> Path:
        """Where it is, absolute."""
        return self._store.folder

    def fill(
        self, files: Mapping[str, Path], *, n_workers: int | None = None, progress: bool = True
    ) -> "ImageStore":
        """This store with the pixels of all `files`, those read that are new or have changed.

        Args:
            files: Path of every file by the name it is known under, wherever the files lie.
            n_workers: Decoding threads; None is one per processor.
            progress: Show a bar.

        Raises:
            UnreadableImagesError: Images cannot be read; all of them are named, the others stored.
            DataError: The disk refused, or `n_workers` is no whole number from 0 on.
        """
        failures: dict[str, str] = {}
        if self._missing(files):
            with self._store.writing() as append:  # which reads what others wrote meanwhile
                todo = self._missing(files)
                loaded = load_ahead(
                    partial(self._load, files),
                    todo,
                    n_ahead=2 * _TOGETHER,
                    n_workers=(os.cpu_count() or 1) if n_workers is None else n_workers,
                )
                waiting = []
                for name, found in watched(loaded, len(todo), progress, "preprocess"):
                    if isinstance(found, ImageReadError):
                        failures[str(files[name])] = str(found)
                        continue
                    waiting.append((name, *found))
                    if len(waiting) == _TOGETHER:
                        append(waiting)
                        waiting = []
                append(waiting)
        entries = self._store.entries
        self._numbers |= {files[name]: entries[name].row for name in files if name in entries}
        self._rows = self._store.rows()
        if failures:
            raise unreadable_images(failures, len(files), "the others are stored")
        return self

    def row_numbers(self, files: Sequence[Path]) -> np.ndarray:
        """int64 (N,): the rows of files that were filled in."""
        return np.array([self._numbers[file] for file in files], dtype=np.int64)

    def pixels(self, rows: np.ndarray) -> np.ndarray:
        """uint8 (N, C, H, W), a copy, of rows by their numbers."""
        return np.asarray(self._rows[rows])

    def image(self, file: object) -> Image.Image | None:
        """PIL image of a file that was filled in, as `recipe.read` gives it; None of any other."""
        number = self._numbers.get(file) if isinstance(file, Path) else None
        if number is None:
            return None
        pixels = np.asarray(self._rows[number])
        return image_of_pixels(pixels.transpose(1, 2, 0))

    def options(self, size: Any, given: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of `image_dataloaders` that read this store, unless `given` name another."""
        if "store" in given or "preprocessing" in given or size is not None:
            return {"store": self.folder, **given}
        fields = {field.name for field in dataclasses.fields(Preprocessing)}
        parts = _given({name: value for name, value in given.items() if name in fields})
        others = {name: value for name, value in given.items() if name not in fields}
        return {"store": self.folder, "preprocessing": self.recipe.replace(**parts), **others}

    def _missing(self, files: Mapping[str, Path]) -> list[str]:
        """Names of files that are not stored, or are not what they were when they were."""
        entries = self._store.entries
        return [
            name
            for name, file in files.items()
            if name not in entries or not _is_as_then(file, entries[name])
        ]

    def _load(self, files: Mapping[str, Path], name: str) -> tuple[StoredRow, bytes | None]:
        """Entry and pixels of one file; no pixels where its content is what it was."""
        file, known = files[name], self._store.entries.get(name)
        # Size and time before the content: a change in between is seen next time.
        with naming_errors(source_name(file), file), open_regular(file) as opened:
            about = os.fstat(opened.fileno())
            digest = hashlib.sha256(opened.read()).hexdigest()
        found = StoredRow(-1, about.st_size, about.st_mtime_ns, digest)
        if known is not None and known.sha256 == digest:
            return dataclasses.replace(found, row=known.row), None
        pixels = np.asarray(self.recipe.read(file))
        channels_first = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        return found, channels_first.tobytes()


def _is_as_then(file: Path, entry: StoredRow) -> bool:
    try:
        now = os.stat(file)
        return (entry.size, entry.mtime_ns) == (now.st_size, now.st_mtime_ns)
    except OSError:  # reading it says why
        return False
