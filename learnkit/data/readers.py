"""From folders, file names and tables to an `ImageDataset`.

`Readers` is a base of `ImageDataset`.
"""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from learnkit.data.image import IMAGE_EXTENSIONS, find_images, is_hidden
from learnkit.data.labels import nfc
from learnkit.data.table import (
    COLUMNS,
    as_written,
    check_columns,
    check_files_exist,
    clean_paths,
)
from learnkit.errors import DataError

if TYPE_CHECKING:
    from typing_extensions import Self


class Readers:
    """The constructors of `ImageDataset` that read; each ends in `__init__`, which checks."""

    @classmethod
    def from_folder(
        cls,
        folder: str | os.PathLike[str],
        *,
        splits: bool = True,
        allow_empty: bool = False,
    ) -> "Self":
        """Dataset of every image below `folder`, labelled with the name of the folder it lies in.

        If every top-level folder is called train, valid, val, validation or test, those are the
        splits and the folders below them the classes. One class alone is fine here (new images for
        a trained classifier, say); `check_split` refuses to train on it.

        Args:
            folder: The folder that holds the class folders, at any depth.
            splits: False takes such top-level folders for classes.
            allow_empty: Accept folders without images, as classes without images.

        Raises:
            DataError: No folder, no images, images outside class folders, or an empty class folder.
        """
        root = Path(os.path.abspath(folder))
        relative = [path.relative_to(root) for path in images_below(root)]
        named = splits and are_all_splits(root)
        depth = 2 if named else 1
        if loose := [path for path in relative if len(path.parts) <= depth]:
            raise DataError(
                f"{len(loose)} images lie outside class folders, such as {str(root / loose[0])!r}; "
                f"put each into a folder named after its class{' (or: `splits=False`)' * named}"
            )
        labels = [path.parent.name for path in relative]
        empty = empty_class_folders(root, relative, {nfc(label) for label in labels}, depth)
        if empty and not allow_empty:
            raise DataError(
                f"{len(empty)} class folders hold no images: {empty[:10]}; fill or remove them, or "
                "pass `allow_empty=True` to keep them as classes without images"
            )
        frame = as_written({"path": [path.as_posix() for path in relative], "label": labels})
        if named:
            frame["split"] = [SPLIT_FOLDERS[path.parts[0].lower()] for path in relative]
        return cls(frame, root, classes=sorted({*labels, *map(os.path.basename, empty)}))

    @classmethod
    def from_names(cls, folder: str | os.PathLike[str], pattern: str | re.Pattern[str]) -> "Self":
        r"""Dataset of every image below `folder`, labelled by a pattern found in its file name.

        Args:
            folder: Searched at every depth.
            pattern: Regular expression whose group `label`, or only group, is the label. Other
                named groups become columns: `r"(?P<label>\w+?)_(?P<serial>\d+)"` allows
                `split(group="serial")`.

        Raises:
            DataError: No images, a pattern without such a group, or file names it does not match.
        """
        regex = _compiled(pattern)
        paths = images_below(Path(folder))
        found = [regex.search(path.name) for path in paths]
        if unmatched := [path.name for path, match in zip(paths, found, strict=True) if not match]:
            raise DataError(
                f"`pattern` {regex.pattern!r} does not match {len(unmatched)} of {len(paths)} file "
                f"names, such as {unmatched[0]!r}; widen it, or move those files away"
            )
        label = "label" if "label" in regex.groupindex else 1
        columns = {
            name: [m.group(name) for m in found] for name in regex.groupindex if name != "label"
        }
        if clash := sorted(set(columns) & set(COLUMNS)):
            raise DataError(
                f"`pattern` names a group {clash[0]!r}, which is a column of its own; rename it"
            )
        frame = as_written({"path": paths, "label": [m.group(label) for m in found], **columns})
        return cls(frame, folder)

    @classmethod
    def from_csv(
        cls,
        csv: str | os.PathLike[str],
        folder: str | os.PathLike[str] | None = None,
        *,
        path_col: str = "path",
        label_col: str = "label",
        split_col: str | None = None,
        label_delim: str | None = None,
        sep: str = ",",
        check_files: bool = True,
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
            sep: Between the columns.
            check_files: As in `from_df`.

        Raises:
            DataError: The file is missing or no table, or as in `from_df`.
        """
        try:
            lines = pd.read_csv(csv, sep=sep, dtype=str, header=None, keep_default_na=False)
        except (OSError, ValueError) as error:  # pandas' parser errors are ValueErrors
            raise DataError(f"CSV file {os.fspath(csv)!r} cannot be read: {error}") from error
        frame = lines.iloc[1:].set_axis(lines.iloc[0].tolist(), axis=1).reset_index(drop=True)
        return cls.from_df(
            frame,
            Path(csv).parent if folder is None else folder,
            path_col=path_col,
            label_col=label_col,
            split_col=split_col,
            label_delim=label_delim,
            check_files=check_files,
        )

    @classmethod
    def from_df(
        cls,
        frame: pd.DataFrame,
        folder: str | os.PathLike[str],
        *,
        path_col: str = "path",
        label_col: str = "label",
        split_col: str | None = None,
        label_delim: str | None = None,
        check_files: bool = True,
    ) -> "Self":
        """Dataset of a table with one row per image; further columns are kept.

        Args:
            frame: The table; left unchanged.
            folder: What paths are relative to.
            path_col: Column of paths, below `folder` or absolute.
            label_col: Column of class names (text or integers), or of lists of them.
            split_col: Column of "train", "valid" (or "val", "validation"), "test" or nothing; None
                takes a column called `split` if there is one.
            label_delim: What separates several labels in one cell; makes the data multi-label.
            check_files: Look whether every file is there.

        Raises:
            DataError: A column is missing or there twice, a label is missing, a path climbs out
                of `folder`, is listed twice or does not exist.
        """
        check_columns(frame, [path_col, label_col, *([split_col] if split_col else [])])
        names = {path_col: "path", label_col: "label"} | ({split_col: "split"} if split_col else {})
        if clash := [new for old, new in names.items() if old != new and new in frame.columns]:
            raise DataError(
                f"the table has a column {clash[0]!r} besides the one used for it; rename it"
            )
        table = frame.rename(columns=names).reset_index(drop=True)
        if label_delim is not None:
            table["label"] = [_parts(label, label_delim) for label in table["label"]]
        if check_files:
            root = Path(os.path.abspath(folder))
            check_files_exist([root / path for path in clean_paths(table["path"].tolist(), root)])
        return cls(table, folder)


def _compiled(pattern: str | re.Pattern[str]) -> re.Pattern[str]:
    try:
        regex = re.compile(pattern)
    except re.error as error:
        raise DataError(f"`pattern` {pattern!r} is no regular expression: {error}") from error
    if "label" not in regex.groupindex and regex.groups != 1:
        raise DataError(
            f"`pattern` {regex.pattern!r} has {regex.groups} groups; it must have one, or one "
            "named 'label': (?P<label>...)"
        )
    return regex


def _parts(label: Any, delim: str) -> list[str]:
    """The labels in one cell; an empty cell has none."""
    if not isinstance(label, str):
        raise DataError(f"label {label!r} is no text; `label_delim` splits text")
    return [part.strip() for part in label.split(delim) if part.strip()]


SPLIT_FOLDERS = {
    "train": "train",
    "valid": "valid",
    "val": "valid",
    "validation": "valid",
    "test": "test",
}


def images_below(root: Path) -> list[Path]:
    """Every image below `root`, sorted by path; a DataError if there is none."""
    images = find_images(root)
    if not images:
        raise DataError(
            f"no images found under {str(root)!r}; looked at every depth for "
            f"{', '.join(sorted(IMAGE_EXTENSIONS))}"
        )
    return images


def are_all_splits(root: Path) -> bool:
    """Whether every folder directly in `root` is named like a split, in whatever case."""
    folders = _folders(root)
    return bool(folders) and all(path.name.lower() in SPLIT_FOLDERS for path in folders)


def empty_class_folders(root: Path, images: list[Path], labels: set[str], depth: int) -> list[str]:
    """Topmost folders without an image at any depth, unless another of that name has some.

    Args:
        root: Where to look.
        images: Every image below it, as paths relative to it.
        labels: Names of the classes that have images, NFC-normalised.
        depth: How deep class folders lie: 1 directly in `root`, 2 in its splits.
    """
    filled = {parent for path in images for parent in path.parents}
    empty, todo = [], _folders(root)
    while todo:
        folder = todo.pop(0)
        relative = folder.relative_to(root)
        if relative in filled:
            todo += _folders(folder)
        elif len(relative.parts) >= depth and nfc(folder.name) not in labels:
            empty.append(relative.as_posix())
    return empty


def _folders(folder: Path) -> list[Path]:
    """Visible folders directly in `folder`, without links back to one above it."""
    here = folder.resolve()
    found = [p for p in folder.iterdir() if p.is_dir() and not is_hidden(p.name)]
    return sorted(p for p in found if not (p.is_symlink() and here.is_relative_to(p.resolve())))
