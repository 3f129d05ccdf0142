"""Class names: made comparable, checked for twins, never used as paths."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from learnkit.errors import DataError, number_of, warn_user

Label = str | tuple[str, ...]
LONGEST_NAME = 200  # characters of a class name that comes from outside
_FORMULA = ("=", "+", "-", "@")
_ANSWERS = {"UNKNOWN", "ERROR"}  # what predictions call images of no class, and unreadable ones
_SEVERAL = (list, tuple, set, frozenset, np.ndarray)  # what holds the names of one image


def canonical_labels(raw: Sequence[Any], names: Sequence[str]) -> tuple[list[Label], bool]:
    """(labels in NFC form, whether they are multi-label tuples) of what a reader found.

    A list, tuple or set of names is a multi-label, kept sorted and without repetition.

    Args:
        raw: One label per image.
        names: One file name per image, for messages.

    Raises:
        DataError: A label is missing, empty or no name; single and multi-labels are mixed; or two
            spellings look the same.
    """
    kinds = {isinstance(label, _SEVERAL) for label in raw}
    if len(kinds) > 1:
        raise DataError(
            "labels mix single names and lists of names; make every label a list, or none"
        )
    multi_label = kinds == {True}
    flat = [name for label in raw for name in (label if multi_label else [label])]
    spellings = {name: _clean(name, raw, names, multi_label) for name in _unique(flat)}
    check_twins(spellings)
    if multi_label:
        return [tuple(sorted({spellings[n] for n in label})) for label in raw], True
    return [spellings[label] for label in raw], False


def canonical_classes(
    names: Iterable[Any], labels: Iterable[str], *, case_sensitive: bool = False
) -> list[str]:
    """Class names in NFC form and order: the given ones, which must cover every label.

    Raises:
        DataError: A name is given twice or looks like another, or a label is none of them.
    """
    if isinstance(names, str):  # letter by letter it would be a list of names
        raise DataError(f"`classes` is the text {names!r}; give a list of class names")
    names = list(names)
    if doubled := sorted(str(name) for name, n in Counter(names).items() if n > 1):
        raise DataError(f"`classes` lists {doubled} more than once; list every class once")
    spellings = {name: _clean(name, names, names, False) for name in names}
    check_twins(spellings)
    classes = sorted_names(spellings.values())
    if unknown := set(labels) - set(classes):
        raise DataError(
            f"labels {sorted(unknown)[:10]} are not in `classes` {classes[:10]}; add or relabel"
        )
    warn_similar(classes, case_sensitive=case_sensitive)
    warn_refused(classes)
    return classes


def sorted_names(names: Iterable[str]) -> list[str]:
    """Class names in their order: by value where all of them are integers, otherwise as text.

    >>> sorted_names(["10", "9", "-1", "007"]), sorted_names(["10", "9", "none"])
    (['-1', '007', '9', '10'], ['10', '9', 'none'])
    """
    names = sorted(names)
    if all(map(_is_whole, names)):
        # stable: names of one value, as 007 and 7, stay as text sorts them
        names.sort(key=int)
    return names


def _is_whole(name: str) -> bool:
    return re.fullmatch(r"-?[0-9]{1,99}", name) is not None


def names_in(labels: Iterable[Label]) -> list[str]:
    """Every class name in `labels`, multi-labels unrolled."""
    return [name for label in labels for name in ((label,) if isinstance(label, str) else label)]


def targets_of(labels: Sequence[Label], classes: Sequence[str], *, multi_label: bool) -> np.ndarray:
    """Index of each label in `classes`, int64 (N,); of multi-labels 0 or 1, int64 (N, C)."""
    index = {name: i for i, name in enumerate(classes)}
    if not multi_label:
        return np.array([index[label] for label in labels], dtype=np.int64)
    targets = np.zeros((len(labels), len(classes)), dtype=np.int64)
    for row, label in zip(targets, labels, strict=True):
        row[[index[name] for name in label]] = 1
    return targets


def weights_of_classes(
    labels: Sequence[Label], classes: Sequence[str], balance: bool | str = True
) -> dict[str, float]:
    """Class weights that even out how often classes occur: {name: weight}, in order of `classes`.

    One label per image: inverse to the number of its images (scikit-learn's "balanced"), or to the
    root of it for "sqrt", with a mean of 1 over the images. Several labels per image: the images
    without a label over those with it (torch's `pos_weight`), or the root of that. A class without
    images weighs 0: no loss has a term of it.

    >>> weights_of_classes(["a", "a", "a", "b"], ["a", "b"])
    {'a': 0.6666666666666666, 'b': 2.0}
    """
    check_balance(balance)
    counts = Counter(names_in(labels))
    power = 0.5 if balance == "sqrt" else 1.0
    if any(not isinstance(label, str) for label in labels):
        n = len(labels)
        return {c: ((n - counts[c]) / counts[c]) ** power if counts[c] else 0.0 for c in classes}
    shares = {c: counts[c] ** -power if counts[c] else 0.0 for c in classes}
    total = sum(counts[c] * share for c, share in shares.items())
    return {c: share * len(labels) / total for c, share in shares.items()}


def check_balance(balance: Any) -> None:
    """Raise DataError unless `balance` is False, True or "sqrt"."""
    if not (isinstance(balance, bool) or balance == "sqrt"):
        raise DataError(
            f"`balance` is {balance!r}; it must be True (classes count alike), 'sqrt' (half-way "
            "there) or False"
        )


def nfc(name: str) -> str:
    """`name` in Unicode's composed form: one spelling of what looks the same."""
    # macOS decomposes file names and others compose them: one folder, copied, would be two classes.
    return unicodedata.normalize("NFC", name)


def check_twins(spellings: dict[Any, str]) -> None:
    """Raise DataError if two different raw names have become one."""
    groups = defaultdict(list)
    for raw, clean in spellings.items():
        groups[clean].append(raw)
    for clean, raws in groups.items():
        if len(raws) > 1:
            codes = " and ".join(ascii(raw) for raw in raws)
            raise DataError(
                f"class {clean!r} is spelled in {len(raws)} ways that look the same ({codes}); "
                "rename them to one spelling, or to names that differ"
            )


def warn_similar(classes: Iterable[str], *, case_sensitive: bool = False) -> None:
    """Warn of classes that differ only in case or spaces; in case on purpose, if so it is said."""
    groups = defaultdict(list)
    for name in classes:
        spaceless = "".join(name.split())
        groups[spaceless if case_sensitive else spaceless.casefold()].append(name)
    ignored = "spaces" if case_sensitive else "case or spaces"
    remedy = "" if case_sensitive else " If not, say `case_sensitive=True`"
    for twins in groups.values():
        if len(twins) > 1:
            warn_user(
                f"classes {twins} differ only in {ignored}; are they meant to be one?{remedy}"
            )


def warn_refused(classes: Iterable[str]) -> None:
    """Warn of names that no class may be given from outside: models keep those of their data."""
    if found := [name for name in classes if name_problem(name)]:
        more = f" (so it is with {len(found) - 1} more)" if len(found) > 1 else ""
        warn_user(
            f"class {name_problem(found[0])}{more}. A model trained on it keeps the name; no "
            "class can be given one like it later"
        )


def _unique(values: list[Any]) -> list[Any]:
    try:
        return list(dict.fromkeys(values))
    except TypeError as error:
        raise DataError(f"labels must be names: {error}") from error


def _clean(name: Any, raw: Sequence[Any], names: Sequence[str], multi_label: bool) -> str:
    """NFC spelling of one raw name; integers are taken by their digits."""
    if isinstance(name, str) and name.strip():
        return nfc(_text(name))
    if isinstance(name, int | np.integer) and not isinstance(name, bool):
        return str(int(name))
    where = [file for file, label in zip(names, raw, strict=True) if _has(label, name, multi_label)]
    shown = f"{number_of(len(where), 'image')}, such as {where[0]!r}," if where else "A class"
    have = "have" if len(where) > 1 else "has"
    if isinstance(name, str) or _is_missing(name):
        raise DataError(f"{shown} {have} no label (seen: {name!r}); label them or leave them out")
    raise DataError(
        f"{shown} {have} the label {name!r} ({type(name).__name__}); labels are names or integers"
    )


def _text(name: str) -> str:
    """`name`, unless it came from a file system that writes names in another encoding."""
    # Python stands in surrogates for bytes that are no UTF-8; JSON and safetensors refuse them.
    try:
        return name.encode().decode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"class name {name!a} is no text in UTF-8: rename the folder or file"
        ) from error


def _has(label: Any, name: Any, multi_label: bool) -> bool:
    candidates = label if multi_label else [label]
    # A missing value first: pandas' NA is neither equal to anything nor unequal.
    return any(
        _is_missing(one) if _is_missing(name) else not _is_missing(one) and one == name
        for one in candidates
    )


def _is_missing(value: Any) -> bool:
    import pandas as pd  # here, since many callers never need it

    return pd.isna(value)


def ids_of_classes(ids: Sequence[int], n_classes: int) -> tuple[int, ...]:
    """The ids of all classes: `ids` of the first ones, then those above the largest, one by one.

    >>> ids_of_classes((3, 17), 4), ids_of_classes((), 2), ids_of_classes((3, 17), 1)
    ((3, 17, 18, 19), (0, 1), (3,))
    """
    following = range(max(ids, default=-1) + 1, max(ids, default=-1) + 1 + n_classes)
    return (*ids, *following)[:n_classes]


def ids_by_name(names: Iterable[str], known: Mapping[str, int]) -> tuple[int, ...]:
    """The ids of classes: those `known`, and for the others those above the largest, one by one.

    >>> ids_by_name("acb", {"a": 3, "b": 17})
    (3, 18, 17)
    """
    names = list(names)
    new = [name for name in names if name not in known]
    first = max((known[name] for name in names if name in known), default=-1) + 1
    own = dict(zip(new, range(first, first + len(new)), strict=True))
    return tuple((own | dict(known))[name] for name in names)


def name_problem(name: str, verb: str = "has") -> str:
    """Why a class may not get this name from outside; empty if it may.

    >>> name_problem("ok"), name_problem("-"), name_problem("-1")
    ('', '', '')
    >>> name_problem("=1+1")
    "'=1+1' begins with '=': spreadsheets would compute it; begin with a letter or a digit"
    """
    if len(name) > LONGEST_NAME or not name.isprintable():
        return (
            f"{name[:20]!a} {verb} {number_of(len(name), 'character')}; a class name has "
            f"{LONGEST_NAME} at most, all of which can be printed"
        )
    if name in _ANSWERS:
        return (
            f"{name!r} is what predictions say of images that are of no class or cannot be read; "
            "take another name, such as 'other'"
        )
    if name.startswith(_FORMULA) and len(name) > 1 and not _is_whole(name):
        return (
            f"{name[:20]!a} begins with {name[0]!r}: spreadsheets would compute it; begin with a "
            "letter or a digit"
        )
    return ""
