"""`ImageDataset`: which images there are, what is on them, and what each is used for.

A thin immutable object over one table; every method returns a new dataset and none touches a file.
The work is done by functions over tables: `readers`, `halcon`, `split`, `checks`, `display`.
"""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from learnkit.data.arguments import check_seed
from learnkit.data.display import counts_document, show_images
from learnkit.data.groups import groups_of
from learnkit.data.halcon import dictionary_table, halcon_dictionary
from learnkit.data.image import extension_counts
from learnkit.data.labels import Label, nfc, weights_of_classes
from learnkit.data.readers import csv_table, df_table, folder_table, names_table
from learnkit.data.split import (
    check_shares,
    check_training_splits,
    in_split,
    rows_drawn,
    split_column,
    split_counts,
    splits_in,
)
from learnkit.data.table import clean_table
from learnkit.errors import DataError, ImageReadError, SplitError, warned_after
from learnkit.report.document import Document
from learnkit.report.notebook import Shown
from learnkit.report.progress import watched
from learnkit.storage.filesystem import open_regular

if TYPE_CHECKING:
    from typing_extensions import Self

    from learnkit.data.store import ImageStore
    from learnkit.learner.dataloaders import DataLoaders


class ImageDataset(Shown):
    """A table of labelled images below one folder.

    Args:
        frame: Columns `path` (relative to `root`, or absolute) and `label` (a name, or a list of
            names for multi-label data); optionally `image_id`, `split` ("train", "valid", "test" or
            empty) and any others.
        root: The folder that paths are relative to.
        classes: Every class name, if more than the labels show.
        class_ids: A number per class name, carried for `to_halcon`.
        case_sensitive: Names that differ only in case are of two classes on purpose, as letters
            are. A model that learns from this dataset keeps to that.

    Raises:
        DataError: The table breaks a rule: no rows, double columns, paths or ids, labels missing or
            spelled in two ways that look the same.
    """

    _store: "ImageStore | None" = None  # what `preprocess` filled
    _unread: tuple[str, ...] = ()  # images below the folder, in formats that are not read

    def __init__(
        self,
        frame: pd.DataFrame,
        root: str | os.PathLike[str],
        *,
        classes: Sequence[str] | None = None,
        class_ids: Mapping[str, int] | None = None,
        case_sensitive: bool = False,
    ) -> None:
        self._root, self._case_sensitive = Path(os.path.abspath(root)), case_sensitive
        self._frame, self._classes, self._multi_label = clean_table(
            frame, self._root, classes, case_sensitive=case_sensitive
        )
        numbered = {name: i for i, name in enumerate(self._classes)}
        self._class_ids = dict(numbered if class_ids is None else class_ids)
        if set(self._class_ids) != set(self._classes):
            raise DataError(
                f"`class_ids` numbers {sorted(self._class_ids)[:10]}; it must number every class: "
                f"{self._classes[:10]}"
            )

    @classmethod
    def from_folder(
        cls,
        folder: str | os.PathLike[str],
        *,
        splits: bool = True,
        allow_empty: bool = False,
        case_sensitive: bool = False,
    ) -> "Self":
        """Dataset of every image below `folder`, labelled with the name of the folder it lies in.

        If every top-level folder is called train, valid, val, validation or test (capitals aside),
        those are the splits and the folders below them the classes; folders with other images
        beside two of them are asked about. Images in formats that are not read are counted. One
        class alone is fine here (new images for a trained classifier, say); `check_split` refuses
        to train on it.

        Args:
            folder: The folder that holds the class folders, at any depth.
            splits: False takes such top-level folders for classes.
            allow_empty: Accept folders without images, as classes without images.
            case_sensitive: See the class.

        Raises:
            DataError: No folder, no images, images outside class folders, an empty class folder, or
                splits beside other folders.
        """
        frame, classes, unread = folder_table(folder, splits=splits, allow_empty=allow_empty)
        data = cls(frame, folder, classes=classes, case_sensitive=case_sensitive)
        data._unread = tuple(map(str, unread))
        return data

    @classmethod
    def from_names(
        cls,
        folder: str | os.PathLike[str],
        pattern: str | re.Pattern[str] | None = None,
        *,
        case_sensitive: bool = False,
    ) -> "Self":
        r"""Dataset of every image below `folder`, labelled by its file name.

        Args:
            folder: Searched at every depth.
            pattern: Regular expression whose group `label`, or only group, is the label. Other
                named groups become columns: `r"(?P<label>\w+?)_(?P<serial>\d+)"` allows
                `split(group="serial")`. None takes the name without digits and separators at its
                end: "rust_017.png" is of "rust".
            case_sensitive: See the class.

        Raises:
            DataError: No images, a pattern without such a group, or file names it does not match.
        """
        frame, unread = names_table(folder, pattern)
        data = cls(frame, folder, case_sensitive=case_sensitive)
        data._unread = tuple(map(str, unread))
        return data

    @classmethod
    def from_csv(
        cls,
        csv: str | os.PathLike[str],
        folder: str | os.PathLike[str] | None = None,
        *,
        path_col: str = "path",
        label_col: str | Sequence[str] = "label",
        split_col: str | None = None,
        label_delim: str | None = None,
        suffix: str = "",
        sep: str = ",",
        encoding: str = "utf-8",
        check_files: bool = True,
        case_sensitive: bool = False,
    ) -> "Self":
        """Dataset of a CSV file with one row per image; see `from_df` for the columns.

        Everything is read as text, so that classes called NA, 007 or None keep their names.

        Args:
            csv: The file; its first line names the columns.
            folder: What paths are relative to; None is the folder of the file.
            path_col: As in `from_df`.
            label_col: As in `from_df`.
            split_col: As in `from_df`.
            label_delim: As in `from_df`.
            suffix: As in `from_df`.
            sep: Between the columns.
            encoding: Of the text: "cp1252" for many files of Windows, "utf-16" for some of Excel.
            check_files: As in `from_df`.
            case_sensitive: See the class.

        Raises:
            DataError: The file is missing or no table, or as in `from_df`.
        """
        return cls.from_df(
            csv_table(csv, sep, encoding),
            Path(csv).parent if folder is None else folder,
            path_col=path_col,
            label_col=label_col,
            split_col=split_col,
            label_delim=label_delim,
            suffix=suffix,
            check_files=check_files,
            case_sensitive=case_sensitive,
        )

    @classmethod
    def from_df(
        cls,
        frame: pd.DataFrame,
        folder: str | os.PathLike[str],
        *,
        path_col: str = "path",
        label_col: str | Sequence[str] = "label",
        split_col: str | None = None,
        label_delim: str | None = None,
        suffix: str = "",
        check_files: bool = True,
        case_sensitive: bool = False,
    ) -> "Self":
        """Dataset of a table with one row per image; further columns are kept.

        Args:
            frame: The table; left unchanged.
            folder: What paths are relative to.
            path_col: Column of paths, below `folder` or absolute.
            label_col: Column of class names (text or integers), or of lists of them; or several
                columns, one per class, of 0 and 1: one label per image where every row has exactly
                one 1, else several.
            split_col: Column of "train", "valid" (or "val", "validation"), "test" or nothing, or of
                booleans: whether a row is for validation; None takes a column called `split` if
                there is one.
            label_delim: What separates several labels in one cell; makes the data multi-label.
            suffix: Added to every path, such as ".jpg" where the table leaves it out.
            check_files: Look whether every file is there.
            case_sensitive: See the class.

        Raises:
            DataError: A column is missing or there twice, a label is missing, a path climbs out
                of `folder`, is listed twice or does not exist.
        """
        table, classes = df_table(
            frame,
            folder,
            path_col=path_col,
            label_col=label_col,
            split_col=split_col,
            label_delim=label_delim,
            suffix=suffix,
            check_files=check_files,
        )
        return cls(table, folder, classes=classes, case_sensitive=case_sensitive)

    @classmethod
    def from_halcon(
        cls,
        dataset: Mapping[str, Any] | str | os.PathLike[str],
        image_dir: str | os.PathLike[str] | None = None,
        *,
        check_files: bool = True,
        case_sensitive: bool = False,
    ) -> "Self":
        """Dataset of a DLDataset dictionary for classification; further keys of samples are kept.

        Class ids need not be contiguous; `class_ids` and `to_halcon` give them back.

        Args:
            dataset: Has `class_names`, `class_ids` and `samples`, each with `image_file_name`,
                `image_label_id` and perhaps `image_id` and `split`; left unchanged. Or the JSON
                file that holds it.
            image_dir: Where the images are now; None takes the dictionary's own `image_dir`.
            check_files: Look whether every file is there.
            case_sensitive: See the class.

        Raises:
            DataError: A key is missing, ids and names do not fit each other, a sample has no label
                or an unknown one, or a file name is absolute, climbs with ".." or does not exist.
        """
        frame, root, names = dictionary_table(dataset, image_dir, check_files=check_files)
        class_ids = {nfc(name): class_id for class_id, name in names.items()}
        named = {"classes": list(names.values()), "class_ids": class_ids}
        return cls(frame, root, **named, case_sensitive=case_sensitive)

    def to_halcon(self) -> dict[str, Any]:
        """DLDataset dictionary of JSON types; `from_halcon` reads it back to an equal dataset.

        Extra columns become keys of the samples where they hold JSON types.

        Raises:
            DataError: The data are multi-label, or an image lies outside the root.
        """
        if self._multi_label:
            raise DataError("a DLDataset has one class per image; these data are multi-label")
        return halcon_dictionary(self._frame, self._root, self._class_ids)

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
        """Class names, sorted (as numbers where all are integers); sub-datasets keep them all."""
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
    def case_sensitive(self) -> bool:
        """Whether names that differ only in case are of two classes on purpose."""
        return self._case_sensitive

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
        if sizes[""]:
            parts.append(f"unassigned {sizes['']}")
        shown = ", ".join(parts) or "empty"
        if self._unread:
            shown += f"; skipped {self._skipped}"
        return f"ImageDataset({len(self)} images, {self.n_classes} classes; {shown}; {self._root})"

    @property
    def _skipped(self) -> str:
        return ", ".join(f"{n} {name}" for name, n in extension_counts(self._unread).items())

    def filter(
        self, keep: Sequence[bool] | np.ndarray | pd.Series | Callable[[pd.DataFrame], Any]
    ) -> "Self":
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
        return self._with(self._frame[mask].reset_index(drop=True), _unread=())

    def sample(
        self,
        n: int | None = None,
        seed: int = 42,
        *,
        fraction: float | None = None,
        stratify: bool = False,
    ) -> "Self":
        """Some images, drawn without replacement, in the order they stand here.

        Args:
            n: How many.
            seed: Of the draw.
            fraction: Share in 0..1, instead of `n`.
            stratify: Draw the same share of every class.

        Raises:
            DataError: Neither or both of `n` and `fraction`, or one out of its range.
        """
        return self.filter(rows_drawn(self._frame, n, fraction, seed=seed, stratify=stratify))

    @property
    def splits(self) -> list[str]:
        """The splits that hold images, in the order train, valid, test."""
        return splits_in(self._frame)

    @property
    def train(self) -> "Self":
        """The training images. SplitError if there are none."""
        return self.filter(in_split(self._frame, "train"))

    @property
    def valid(self) -> "Self":
        """The validation images. SplitError if there are none."""
        return self.filter(in_split(self._frame, "valid"))

    @property
    def test(self) -> "Self":
        """The test images. SplitError if there are none."""
        return self.filter(in_split(self._frame, "test"))

    @warned_after
    def split(
        self,
        train: float = 0.7,
        valid: float = 0.15,
        test: float | None = None,
        *,
        seed: int = 42,
        stratify: bool = True,
        group: Any = None,
        overwrite: bool = False,
    ) -> "Self":
        """The same images, each assigned to train, valid or test.

        The result depends on the set of images, not on the order of rows. Multi-label images are
        stratified by the rarest of their labels.

        Args:
            train: Share in 0..1.
            valid: Share in 0..1.
            test: Share in 0..1; None is the rest.
            seed: Of the shuffle; None for another one every time.
            stratify: Give every class these shares; False gives them to the whole only.
            group: Images of one group stay together (one part seen from several sides, a burst, one
                patient): a column; a regular expression whose only group, or whole match, in the
                path is the group; `{file: group}`; or one value per row.
            overwrite: Replace a split there already is.

        Raises:
            SplitError: A share is wrong, there is a split already, or one asked for stays empty.
        """
        check_seed(seed)
        shares = check_shares(train, valid, test)
        if self.splits and not overwrite:
            raise SplitError(
                f"the dataset is split already ({self!r}); pass `overwrite=True` to split it anew"
            )
        try:
            groups = None if group is None else self.groups(group)
        except DataError as error:
            raise SplitError(str(error)) from error
        column = split_column(self._frame, shares, seed=seed, stratify=stratify, groups=groups)
        return self._with(self._frame.assign(split=column))

    def groups(self, group: Any) -> list[Any]:
        """The group of every row, as `split` and `extend` mean `group`.

        Raises:
            DataError: It does not say one for every row.
        """
        if isinstance(group, Mapping):
            return groups_of({self.root / file: name for file, name in group.items()}, self.paths)
        columns = {name: self._frame[name].tolist() for name in self._frame}
        return groups_of(group, self._frame["path"].tolist(), columns)

    def check_split(self) -> None:
        """Return if a classifier can be trained and evaluated by this split.

        Raises:
            SplitError: There is no train or no valid.
            DataError: Train has one class only, or another split has a label train lacks.
        """
        check_training_splits(self._frame, multi_label=self._multi_label)

    def counts(self) -> pd.DataFrame:
        """Number of images, classes x splits (`unassigned` for none); zeros included."""
        return split_counts(self._frame, self._classes)

    def class_weights(self, balance: bool | str = True) -> dict[str, float]:
        """Weight of every class in a loss, {name: weight}, with a mean of 1 over the images.

        Of the training images, if there are any, else of all. With several labels per image it is
        the weight of the images that show a label (torch's `pos_weight`).

        Args:
            balance: True weighs inversely to the number of images, so that all classes count alike;
                "sqrt" inversely to its root, False all alike.
        """
        rows = self.train if "train" in self.splits else self
        found = weights_of_classes(rows.labels, self._classes, balance)
        return found if balance else dict.fromkeys(found, 1.0)

    def show(
        self, n: int = 9, *, seed: int | None = 42, axes: Any = None, side: float = 2.0
    ) -> np.ndarray:
        """Array of matplotlib axes with `n` images and their labels; unreadable ones say so.

        Args:
            n: Number of images, at most; fewer when the dataset is smaller.
            seed: Of the drawing by lot; None takes the first `n`.
            axes: Axes to draw on, one per image; None makes a figure.
            side: Inches per image in that figure.
        """
        if not isinstance(n, int) or n < 1:
            raise DataError(f"`n` is {n!r}; it must be a positive integer")
        n = min(n, len(self))
        shown = self.filter(np.arange(len(self)) < n) if seed is None else self.sample(n, seed)
        return show_images(shown.paths, shown.labels, axes=axes, side=side)

    def document(self) -> Document:
        """Images per class and split, as notebooks show them."""
        return counts_document(self.counts(), len(self), self._root, self._skipped)

    def check(
        self,
        fast: bool = False,
        *,
        min_images: int = 10,
        limits: Mapping[str, float | None] | None = None,
        progress: bool = True,
    ) -> pd.DataFrame:
        """Findings, worst first: finding, severity, path, class, split, detail, paths.

        `path` is the image to drop, if one is ("" otherwise); `paths` are all that are meant.
        Severity is "error" (training fails or its numbers lie), "warning" or "info".

        Args:
            fast: Read headers and bytes only: damage inside a file, near duplicates and unused bits
                are not looked for, nor are dark, bright, blank and blurred images.
            min_images: Classes with fewer are reported, and counted in train if there is a split.
            limits: Of single images: `dark` (55), `bright` (200) and `blank` (1.0) in grey levels,
                `blurred` (0.12), `shape` (2.5 times the middle aspect), `aspect` (20), `side` (8
                pixels). None for one of them: not looked for.
            progress: Show a bar.
        """
        from learnkit.data.checks import find_problems  # here: it imports scipy

        options = {"fast": fast, "min_images": min_images, "progress": progress}
        options["limits"] = limits or {}
        return find_problems(self._frame, self._root, self._classes, self._unread, **options)

    def drop(self, findings: pd.DataFrame) -> "Self":
        """Without the image in `path` of each finding; select the rows of `check()` you mean."""
        from learnkit.data.checks import not_in_findings

        return self.filter(not_in_findings(self._frame, findings))

    def fingerprint(self, *, content: bool = False, progress: bool = True) -> str:
        """sha256 in hex of classes, paths, labels and splits, whatever the row order and root.

        Args:
            content: Take the bytes of every file in: a changed file changes the fingerprint.
            progress: Show a bar while files are read.
        """
        show = content and progress
        hashed = watched(self.paths, len(self), show, "hash images")
        digests = [_digest(path) if content else "" for path in hashed]
        columns = (self._frame["path"], self.labels, self._frame["split"], digests)
        rows = sorted(zip(*columns, strict=True))
        text = json.dumps([sorted(self._classes), rows], ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def preprocess(
        self,
        folder: str | os.PathLike[str],
        size: Any = 224,
        *,
        n_workers: int | None = None,
        progress: bool = True,
        **recipe: Any,
    ) -> "Self":
        """The same dataset, whose `dataloaders()` read pixels from a store instead of files.

        Every image is decoded and resized once, into one memory-mapped array in `folder`, beside
        the hashes of the files and the recipe. After a kill at any moment the same call goes on;
        files that are new or have changed are read again, there and by `dataloaders()`, and
        processes may share a store. Training sees the pixels it sees without; what is predicted or
        evaluated later is read from its files.

        Args:
            folder: Absent, empty, or a store by the same recipe.
            size: Height and width in pixels; an int means a square.
            n_workers: Decoding threads; None is one per processor.
            progress: Show a bar.
            **recipe: As in `dataloaders`: `method`, `channels`, ..., or all as `preprocessing`.

        Raises:
            UnreadableImagesError: Images cannot be read; all of them are named, the others stored.
            DataError: The folder holds something else, a store by another recipe, or cannot be
                written.
        """
        from learnkit.data.store import ImageStore, recipe_of

        store = ImageStore(folder, recipe_of(size, **recipe))
        files = dict(zip(self._frame["path"], self.paths, strict=True))
        return self._with(
            self._frame, _store=store.fill(files, n_workers=n_workers, progress=progress)
        )

    def dataloaders(
        self, size: Any = None, bs: int = 64, *, augment: Any = None, **kwargs: Any
    ) -> "DataLoaders":
        """Fastai DataLoaders of the splits, see `learner.dataloaders.image_dataloaders`.

        Without `size` 224 x 224 pixels, or what `preprocess` stored.
        """
        from learnkit.learner.dataloaders import image_dataloaders

        if self._store is not None and "store" not in kwargs:
            if size is None and "preprocessing" not in kwargs:
                kwargs = {"preprocessing": self._store.recipe, **kwargs}
            kwargs = {"store": self._store.folder, **kwargs}
        size = 224 if size is None else size
        return image_dataloaders(self, size=size, bs=bs, augment=augment, **kwargs)

    def _with(self, frame: pd.DataFrame, **changes: Any) -> "Self":
        """Another table of the same kind; it was checked when this one was made."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__, _frame=frame, **changes)
        return other


def _digest(path: Path) -> str:
    """sha256 in hex of a file."""
    try:
        with open_regular(path) as file:
            return hashlib.sha256(file.read()).hexdigest()
    except OSError as error:
        raise ImageReadError(f"image {str(path)!r} cannot be read: {error.strerror}") from error
