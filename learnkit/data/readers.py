"""Readers of an `ImageDataset`: tables from folders, file names, CSV files and DataFrames."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from learnkit.data.image import IMAGE_EXTENSIONS, image_files, is_hidden, unread_text
from learnkit.data.labels import nfc
from learnkit.data.table import (
    COLUMNS,
    check_columns,
    check_files_exist,
    clean_paths,
    object_table,
)
from learnkit.errors import DataError, first_few, number_of
from learnkit.storage.read_folder import MANIFEST

SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "valid": "valid",
    "val": "valid",
    "validation": "valid",
    "test": "test",
    "testing": "test",
}


_WEIGHTS = {".pth", ".pkl", ".ckpt", ".safetensors"}


def folder_table(
    folder: str | os.PathLike[str], *, splits: bool, allow_empty: bool
) -> tuple[pd.DataFrame, list[str], list[Path]]:
    """(table, class names, images not read) below `folder`: see `ImageDataset.from_folder`.

    Raises:
        DataError: No folder, no images, images outside class folders, an empty class folder, or
            folders of splits beside others with images.
    """
    root = Path(os.path.abspath(folder))
    images, others = _images_below(root)
    relative = [path.relative_to(root) for path in images]
    named = splits and _are_splits(root, relative)
    depth = 2 if named else 1
    if loose := [path for path in relative if len(path.parts) <= depth]:
        remedy = "put each into a folder named after its class"
        raise DataError(
            f"{number_of(len(loose), 'image')} outside class folders, such as "
            f"{str(root / loose[0])!r}; " + (f"{remedy} (or: `splits=False`)" if named else remedy)
        )
    labels = [path.parent.name for path in relative]
    empty = _empty_class_folders(root, relative, {nfc(label) for label in labels}, depth)
    if empty and not allow_empty:
        raise DataError(
            f"{number_of(len(empty), 'class folder')} without images: {empty[:10]}; fill or "
            "remove them, or pass `allow_empty=True` to keep them as classes without images"
        )
    frame = object_table({"path": [path.as_posix() for path in relative], "label": labels})
    if named:
        frame["split"] = [SPLIT_FOLDERS[path.parts[0].lower()] for path in relative]
    return frame, sorted({*labels, *map(os.path.basename, empty)}), others


def _are_splits(root: Path, images: list[Path]) -> bool:
    """Whether the top-level folders are splits; two of them may lie beside folders without images.

    Args:
        root: Where they lie.
        images: Every image below it, as paths relative to it.

    Raises:
        DataError: A training split and another lie beside folders with other images.
    """
    top = [path.name for path in _folders(root)]
    own = [name for name in top if name.lower() in SPLIT_FOLDERS]
    filled = {path.parts[0] for path in images}
    loose = [name for name in top if name not in own and name in filled]
    kinds = {SPLIT_FOLDERS[name.lower()] for name in own}
    if loose and "train" in kinds and len(kinds) > 1:
        raise DataError(
            f"{str(root)!r} has the splits {own} beside {first_few(map(repr, loose))} with images "
            f"of their own; move those away or read one folder by itself, such as "
            f"{str(root / own[0])!r}, or say `splits=False` if every folder is a class"
        )
    return bool(own) and not loose and (len(own) == len(top) or len(kinds) > 1)


def class_in_name(stem: str) -> str:
    """The class that the name of a file tells: all but digits and separators at its end.

    >>> class_in_name("Crack_017"), class_in_name("good-3 (2)"), class_in_name("042")
    ('Crack', 'good', '042')
    """
    return re.sub(r"[\W\d_]+$", "", stem) or stem


def names_table(
    folder: str | os.PathLike[str], pattern: str | re.Pattern[str] | None
) -> tuple[pd.DataFrame, list[Path]]:
    """(table, images not read) below `folder` by file name: see `ImageDataset.from_names`.

    Raises:
        DataError: No images, a pattern without a label, or file names it does not match.
    """
    paths, others = _images_below(Path(folder))
    if pattern is None:
        labels = [class_in_name(path.stem) for path in paths]
        return object_table({"path": paths, "label": labels}), others
    regex = _compiled(pattern)
    found = [regex.search(path.name) for path in paths]
    if unmatched := [path.name for path, match in zip(paths, found, strict=True) if not match]:
        raise DataError(
            f"`pattern` {regex.pattern!r} does not match {len(unmatched)} of {len(paths)} file "
            f"names, such as {unmatched[0]!r}; widen it, or move those files away"
        )
    label = "label" if "label" in regex.groupindex else 1
    columns = {name: [m.group(name) for m in found] for name in regex.groupindex if name != "label"}
    if clash := sorted(set(columns) & set(COLUMNS)):
        raise DataError(
            f"`pattern` names a group {clash[0]!r}, which is a column of its own; rename it"
        )
    table = object_table({"path": paths, "label": [m.group(label) for m in found], **columns})
    return table, others


def csv_table(csv: str | os.PathLike[str], sep: str, encoding: str) -> pd.DataFrame:
    """Table of a CSV file, every cell as text; its first line names the columns.

    Raises:
        DataError: The file is missing, no table, or in another encoding.
    """
    # As text, so that classes called NA, 007 or None keep their names; without a header, because
    # pandas renames a column that is there twice, which `check_columns` is to refuse.
    try:
        lines = pd.read_csv(
            csv, sep=sep, dtype=str, header=None, keep_default_na=False, encoding=encoding
        )
    except LookupError as error:
        raise DataError(
            f"`encoding` is {encoding!r}, which Python does not know; such are 'utf-8', 'cp1252'"
        ) from error
    except UnicodeError as error:
        raise DataError(
            f"CSV file {os.fspath(csv)!r} is no text in {encoding!r} ({error}); say its "
            "`encoding=`, such as 'cp1252' (Windows, Western Europe) or 'utf-16'"
        ) from error
    except (OSError, ValueError) as error:  # pandas' parser errors are ValueErrors
        raise DataError(f"CSV file {os.fspath(csv)!r} cannot be read: {error}") from error
    return lines.iloc[1:].set_axis(lines.iloc[0].tolist(), axis=1).reset_index(drop=True)


def df_table(
    frame: pd.DataFrame,
    folder: str | os.PathLike[str],
    *,
    path_col: str,
    label_col: str | Sequence[str],
    split_col: str | None,
    label_delim: str | None,
    suffix: str,
    check_files: bool,
) -> tuple[pd.DataFrame, list[str] | None]:
    """(`frame` with the columns of a dataset, further ones kept; classes, if columns name them).

    See `ImageDataset.from_df`.

    Raises:
        DataError: A column is missing or there twice, labels are no text to be split at
            `label_delim` or no 0 and 1, a path climbs out of `folder`, is listed twice or does not
            exist.
    """
    split_cols, classes = [split_col] if split_col else [], None
    if not isinstance(label_col, str) and isinstance(label_col, Sequence):
        classes = list(label_col)
        check_columns(frame, [path_col, *classes, *split_cols])
        frame, label_col = _with_named_labels(frame, classes, label_delim), "label"
    check_columns(frame, [path_col, label_col, *split_cols])
    names = {path_col: "path", label_col: "label"} | dict.fromkeys(split_cols, "split")
    if clash := [new for old, new in names.items() if old != new and new in frame.columns]:
        raise DataError(
            f"the table has a column {clash[0]!r} besides the one used for it; rename it"
        )
    table = frame.rename(columns=names).reset_index(drop=True)
    if label_delim is not None:
        if not isinstance(label_delim, str) or not label_delim:
            raise DataError(
                f"`label_delim` is {label_delim!r}; give the text between two labels, such as ';', "
                "or None where every cell holds one"
            )
        table["label"] = [_parts(label, label_delim) for label in table["label"]]
    if suffix:
        # what is no path is left for `clean_paths` to refuse
        table["path"] = [
            f"{os.fspath(path)}{suffix}" if isinstance(path, str | os.PathLike) and path else path
            for path in table["path"]
        ]
    if "split" in table:
        table["split"] = _splits_of(table["split"])
    if check_files:
        root = Path(os.path.abspath(folder))
        check_files_exist([root / path for path in clean_paths(table["path"].tolist(), root)])
    return table, classes


def _with_named_labels(
    frame: pd.DataFrame, classes: list[str], label_delim: str | None
) -> pd.DataFrame:
    """`frame` with a column "label" in place of columns of 0 and 1, one per class."""
    if not classes or label_delim is not None or "label" in set(frame) - set(classes):
        raise DataError(
            f"`label_col` is {classes!r}: columns of 0 and 1, one per class; it needs at least one "
            "of them, no `label_delim`, and no other column called 'label'"
        )
    flags = [[_flag(value, name) for value in frame[name]] for name in classes]
    found = [
        [name for name, flag in zip(classes, row, strict=True) if flag]
        for row in zip(*flags, strict=True)
    ]
    single = all(len(names) == 1 for names in found)
    labels = pd.Series([names[0] if single else names for names in found], dtype=object)
    rest = frame.drop(columns=classes)
    return rest.assign(label=labels.set_axis(rest.index))


_FLAGS = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}


def _flag(value: Any, column: str) -> bool:
    text = str(value).strip().lower()
    if text not in _FLAGS:
        raise DataError(
            f"label column {column!r} has {value!r}; of several label columns each is a class, and "
            "holds 0 or 1 in every row"
        )
    return _FLAGS[text]


def _splits_of(values: pd.Series) -> list[Any]:
    """What a split column says; "valid" and "train" for the booleans of an `is_valid`."""
    texts = [str(value).strip().lower() for value in values]
    if not set(texts) <= _FLAGS.keys():
        return values.tolist()
    return ["valid" if _FLAGS[text] else "train" for text in texts]


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
        raise DataError(
            f"label {label!r} is no text; `label_delim` splits text: write an empty text '' where "
            "an image has no label"
        )
    return [part.strip() for part in label.split(delim) if part.strip()]


def _images_below(root: Path) -> tuple[list[Path], list[Path]]:
    """(images below `root`, images not read), sorted by path; a DataError if nothing is read."""
    images, others = image_files(root)
    if not images:
        raise DataError(
            f"no images found under {str(root)!r}; looked at every depth for "
            f"{', '.join(sorted(IMAGE_EXTENSIONS))}"
            + (f"; {unread_text(others)}" if others else "")
        )
    return images, others


def _empty_class_folders(root: Path, images: list[Path], labels: set[str], depth: int) -> list[str]:
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
            empty += [] if _is_written_by_training(folder) else [relative.as_posix()]
    return empty


def _is_written_by_training(folder: Path) -> bool:
    """Whether a folder is a bundle, or of saved weights: a learner may write beside its images."""
    if (folder / MANIFEST).is_file():
        return True
    files = [path for path in folder.iterdir() if not is_hidden(path.name)]
    return bool(files) and all(path.suffix in _WEIGHTS for path in files)


def _folders(folder: Path) -> list[Path]:
    """Visible folders directly in `folder`, without links back to one above it."""
    here = folder.resolve()
    found = [p for p in folder.iterdir() if p.is_dir() and not is_hidden(p.name)]
    return sorted(p for p in found if not (p.is_symlink() and here.is_relative_to(p.resolve())))
