"""`ImageDataset`: which images there are, what is on them, and what each is used for.

A thin immutable object over one table; every method returns a new dataset and none touches a file.
What it can read lives in `readers.py` and `halcon.py`, how it is divided in `splitting.py`.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from learnkit.data.display import Display
from learnkit.data.halcon import HalconDictionaries
from learnkit.data.labels import Label
from learnkit.data.readers import Readers
from learnkit.data.splitting import Splitting
from learnkit.data.table import clean_table
from learnkit.errors import DataError, ImageReadError


class ImageDataset(Readers, HalconDictionaries, Splitting, Display):
    """A table of labelled images below one folder.

    Args:
        frame: Columns `path` (relative to `root`, or absolute) and `label` (a name, or a list of
            names for multi-label data); optionally `image_id`, `split` ("train", "valid", "test" or
            empty) and any others.
        root: The folder that paths are relative to.
        classes: Every class name, if more than the labels show.
        class_ids: A number per class name, carried for `to_halcon`.

    Raises:
        DataError: The table breaks a rule: no rows, double columns, paths or ids, labels missing or
            spelled in two ways that look the same.
    """

    def __init__(
        self,
        frame: pd.DataFrame,
        root: str | os.PathLike[str],
        *,
        classes: Sequence[str] | None = None,
        class_ids: Mapping[str, int] | None = None,
    ) -> None:
        self._root = Path(os.path.abspath(root))
        self._frame, self._classes, self._multi_label = clean_table(frame, self._root, classes)
        numbered = {name: i for i, name in enumerate(self._classes)}
        self._class_ids = dict(numbered if class_ids is None else class_ids)
        if set(self._class_ids) != set(self._classes):
            raise DataError(
                f"`class_ids` numbers {sorted(self._class_ids)[:10]}; it must number every class: "
                f"{self._classes[:10]}"
            )

    @property
    def frame(self) -> pd.DataFrame:
        """A copy of the table: image_id int64, path, label, split ("" if none), extra columns."""
        return self._frame.copy()

    @property
    def root(self) -> Path:
        """The folder relative paths start from, absolute."""
        return self._root

    @property
    def classes(self) -> list[str]:
        """Class names, sorted; sub-datasets keep them all."""
        return list(self._classes)

    @property
    def class_ids(self) -> list[int]:
        """The number of each class in the dictionary this was read from; 0, 1, 2, ... otherwise."""
        return [self._class_ids[name] for name in self._classes]

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self._classes)

    @property
    def multi_label(self) -> bool:
        """Whether an image has a tuple of names for a label."""
        return self._multi_label

    @property
    def labels(self) -> list[Label]:
        """One name, or tuple of names, per image."""
        return self._frame["label"].tolist()

    @property
    def targets(self) -> np.ndarray:
        """Index of each label in `classes`, int64 (N,); of multi-labels 0 or 1, int64 (N, C)."""
        index = {name: i for i, name in enumerate(self._classes)}
        if not self._multi_label:
            return np.array([index[label] for label in self.labels], dtype=np.int64)
        targets = np.zeros((len(self), self.n_classes), dtype=np.int64)
        for row, label in zip(targets, self.labels, strict=True):
            row[[index[name] for name in label]] = 1
        return targets

    @property
    def paths(self) -> list[Path]:
        """Absolute path of each image."""
        return [self._root / path for path in self._frame["path"]]

    def __len__(self) -> int:
        return len(self._frame)

    def __repr__(self) -> str:
        sizes = Counter(self._frame["split"])
        parts = [f"{name} {sizes[name]}" for name in self.splits]
        shown = ", ".join(parts + [f"unassigned {sizes['']}"] * bool(sizes[""])) or "empty"
        return f"ImageDataset({len(self)} images, {self.n_classes} classes; {shown}; {self._root})"

    def filter(
        self, keep: Sequence[bool] | np.ndarray | pd.Series | Callable[[pd.DataFrame], Any]
    ) -> "ImageDataset":
        """The rows for which `keep` is true; a callable gets the table. Classes stay as they are.

        Raises:
            DataError: `keep` is not one boolean per row.
        """
        mask = np.asarray(keep(self.frame) if callable(keep) else keep)
        if mask.dtype != bool or mask.shape != (len(self),):
            raise DataError(
                f"`keep` is {mask.dtype} of shape {mask.shape}; it must be one bool for each of "
                f"the {len(self)} rows"
            )
        return self._with(self._frame[mask].reset_index(drop=True))

    def sample(self, n: int, seed: int = 42) -> "ImageDataset":
        """`n` images drawn without replacement, in the order they stand here."""
        if isinstance(n, bool) or not isinstance(n, int) or not 0 <= n <= len(self):
            raise DataError(f"`n` is {n!r}; it must be an integer from 0 to {len(self)}")
        rows = np.random.default_rng(seed).permutation(len(self))[:n]
        return self.filter(np.isin(np.arange(len(self)), rows))

    def check(
        self, fast: bool = False, *, min_images: int = 10, progress: bool = True
    ) -> pd.DataFrame:
        """Findings about files, duplicates, classes and splits: see `checks.check_images`."""
        from learnkit.data.checks import check_images

        return check_images(self, fast, min_images=min_images, progress=progress)

    def drop(self, findings: pd.DataFrame) -> "ImageDataset":
        """Without the image in `path` of each finding; select the rows of `check()` you mean."""
        unwanted = set(findings["path"]) - {""}
        if unknown := sorted(unwanted - set(self._frame["path"])):
            raise DataError(f"`findings` name files that are not in the dataset: {unknown[:3]}")
        return self.filter(~self._frame["path"].isin(unwanted).to_numpy(dtype=bool))

    def fingerprint(self, *, content: bool = False, progress: bool = True) -> str:
        """sha256 in hex of classes, paths, labels and splits, whatever the row order and root.

        Args:
            content: Take the bytes of every file in: a changed file changes the fingerprint.
            progress: Show a bar while files are read.
        """
        bar = tqdm(self.paths, desc="hashing images", disable=not (content and progress))
        digests = [_digest(path) if content else "" for path in bar]
        columns = (self._frame["path"], self.labels, self._frame["split"], digests)
        rows = sorted(zip(*columns, strict=True))
        text = json.dumps([self._classes, rows], ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def dataloaders(self, size: Any = 224, bs: int = 64, *, augment: Any = None, **kwargs) -> Any:
        """Fastai DataLoaders of the splits, see `learner.dataloaders.image_dataloaders`."""
        from learnkit.learner.dataloaders import image_dataloaders

        return image_dataloaders(self, size=size, bs=bs, augment=augment, **kwargs)

    def _with(self, frame: pd.DataFrame) -> "ImageDataset":
        """Another table of the same kind; it was checked when this one was made."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__, _frame=frame)
        return other


def _digest(path: Path) -> str:
    """sha256 in hex of a file."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ImageReadError(f"image {str(path)!r} cannot be read: {error.strerror}") from error
