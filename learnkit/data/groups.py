"""Groups of images that belong together: a burst, views of one part, photographs of one patient."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

from learnkit.data.read_images import file_of
from learnkit.errors import DataError, first_few, number_of

_ONE = {"labels": "label", "group": "group"}  # what an argument says of one image


def groups_of(
    group: Any, items: Sequence[Any], columns: Mapping[str, Iterable[Any]] | None = None
) -> list[Any]:
    r"""The group of every image, as `split(group=)` and `extend(group=)` mean it.

    Args:
        group: A column; else a regular expression, searched for in each path, whose only group, or
            all of the match, is the group; `{file: group}`, also as a Series by file; or one value
            per image.
        items: The images, for a regular expression and `{file: group}` their files.
        columns: Of the table the images come from, if there is one.

    Raises:
        DataError: No such column and no expression that finds a group in every path, or not one
            value for every image.

    >>> groups_of(r"part(\d+)", ["a/part7_1.png", "a/part7_2.png", "a/part8_1.png"])
    ['7', '7', '8']
    """
    group = by_index("group", group)
    if isinstance(group, str) and columns is not None and group in columns:
        values = list(columns[group])
    elif isinstance(group, str | re.Pattern):
        return _found_in(group, items, columns)
    elif isinstance(group, Mapping):
        values = _by_file(group, items)
    elif isinstance(group, Set) or not isinstance(group, Iterable):
        raise DataError(
            f"`group` is {group!r:.100} ({type(group).__name__}); give a column, a regular "
            "expression, {file: group}, or a list with one value per image"
        )
    else:
        values = list(group)
    if len(values) != len(items) or any(map(is_missing, values)):
        raise DataError(
            f"`group` has {number_of(len(values), 'value')} for {number_of(len(items), 'image')}, "
            "or some are missing; "
            "give one per image"
        )
    return values


def by_index(name: str, values: Any, data: Any = None) -> Any:
    """A Series as `{file: value}` or as a list, as its index says; anything else as it is.

    Args:
        name: Of the argument, "labels" or "group".
        values: What was given.
        data: The images it was given for.

    Raises:
        DataError: Its index is neither that of `data`, files, nor places from 0 on; or a file has
            two values.
    """
    pandas = sys.modules.get("pandas")
    if not isinstance(values, getattr(pandas, "Series", ())):
        return values
    index, found = values.index.tolist(), values.tolist()
    same = isinstance(data, (pandas.Series, pandas.DataFrame)) and index == data.index.tolist()
    if same or index == list(range(len(index))):
        return found
    if all(map(file_of, index)):
        return _by_name(name, index, found)
    raise DataError(
        f"`{name}` is a Series with the index {first_few(map(repr, index))}: neither files "
        f"nor places from 0 on. Give {name}.tolist() if they are in the order of the images, or "
        f"{{file: {_ONE[name]}}}"
    )


def _by_name(name: str, files: Sequence[Any], values: Sequence[Any]) -> dict[Any, Any]:
    """`{file: value}`; an error if a file has two values."""
    seen: dict[str, Any] = {}
    for file, value in zip(files, values, strict=True):
        first = seen.setdefault(file_of(file), value)
        if first is not value and first != value:
            raise DataError(
                f"{str(file)!r} has two {_ONE[name]}s, {first!r} and {value!r}; leave one of them "
                "out"
            )
    return dict(zip(files, values, strict=True))


def note_on_split_groups(
    groups: Sequence[Any], labels: Sequence[Any], splits: Sequence[str | None]
) -> str:
    """A note if groups of a class stand in several splits, "" if none does.

    Args:
        groups: The group of every image, as `groups_of` gives them.
        labels: Its label.
        splits: What it is used for.
    """
    uses: dict[Any, dict[Any, None]] = {}
    for group, label, split in zip(groups, map(str, labels), splits, strict=True):
        uses.setdefault((str(group), label), {})[split] = None
    if not (across := [(key, found) for key, found in uses.items() if len(found) > 1]):
        return ""
    (name, label), found = across[0]
    return (
        f"{len(across)} of {number_of(len(uses), 'group')} stand in several splits, such as "
        f"{name!r} of "
        f"{label!r} in {' and '.join(map(str, found))}: images of what was learned are evaluated, "
        "and the numbers will be optimistic; put all images of a group into one split"
    )


def _found_in(
    pattern: str | re.Pattern[str],
    items: Sequence[Any],
    columns: Mapping[str, Iterable[Any]] | None,
) -> list[str]:
    """What the expression finds in the path of every image."""
    where = f"`group` is {getattr(pattern, 'pattern', pattern)!r}; "
    where += "" if columns is None else f"columns are {list(columns)}, and "
    try:
        regex = re.compile(pattern)
    except re.error as error:
        raise DataError(f"{where}it is no regular expression: {error}") from error
    if regex.groups > 1:
        raise DataError(f"{where}the expression has {regex.groups} groups; give it one, or none")
    paths = [str(item).replace("\\", "/") if file_of(item) else "" for item in items]
    found = [regex.search(path) if path else None for path in paths]
    if None in found:
        n, first = found.count(None), items[found.index(None)]
        raise DataError(
            f"{where}the expression finds nothing in {n} of {number_of(len(items), 'path')}, such "
            "as "
            f"{str(first)[-80:]!r}"
        )
    return [match.group(regex.groups) for match in found]


def _by_file(group: Mapping[Any, Any], items: Sequence[Any]) -> list[Any]:
    """The values of `{file: group}`, in the order of the images; other files may be in it."""
    by_file = {file_of(key) or key: value for key, value in group.items()}
    files = list(map(file_of, items))
    if lacking := [item for item, file in zip(items, files, strict=True) if file not in by_file]:
        raise DataError(
            f"`group` lacks {str(lacking[0])[-80:]!r} ({len(lacking)} of "
            f"{number_of(len(items), 'image')}); "
            "give one group per file, or a list with one value per image"
        )
    return [by_file[file] for file in files]


def is_missing(value: Any) -> bool:
    """Whether a value is None, pandas' NA, or NaN, which equals nothing, itself included."""
    return value is None or type(value).__name__ == "NAType" or bool(value != value)
