"""Names of classes: one spelling each, and no two that a person would take for the same."""

import difflib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import torch

from learnkit.data.labels import name_problem
from learnkit.errors import DataError, number_of


def clean_name(name: Any) -> str:
    r"""`name` in Unicode's composed form.

    Raises:
        DataError: It is no text, or empty.

    >>> clean_name("cafe\u0301") == "caf\u00e9"
    True
    """
    if not isinstance(name, str) or not name.strip():
        raise DataError(
            f"{name!r} ({type(name).__name__}) is no class name; a name is a text that is not empty"
        )
    # lone surrogates: what Python makes of file names that are no UTF-8
    if any(0xD800 <= ord(char) <= 0xDFFF for char in name):
        raise DataError(f"class name {name!a} is not valid Unicode; rename the class")
    return unicodedata.normalize("NFC", str(name))


def label_names(labels: Iterable[Any], class_names: Sequence[str] | None) -> list[str]:
    """One clean name per image; whole numbers are places in `class_names` when that is given.

    Raises:
        DataError: A label is no name, or a number without a place in `class_names`.
    """
    labels = labels.tolist() if hasattr(labels, "tolist") else list(labels)
    spellings: dict[Any, str] = {}
    for label in labels:
        try:
            known = label in spellings
        except TypeError as error:
            raise DataError(f"label {label!r} is no class name: one name per image") from error
        if not known:
            spellings[label] = _clean_label(label, class_names)
    return [spellings[label] for label in labels]


def _clean_label(label: Any, class_names: Sequence[str] | None) -> str:
    if class_names is None or isinstance(label, str | bool) or not hasattr(label, "__index__"):
        return clean_name(label)
    index = label.__index__()
    if not 0 <= index < len(class_names):
        raise DataError(
            f"label {index} has no place among {number_of(len(class_names), 'class name')}; "
            f"numbers run from 0 to {len(class_names) - 1}"
        )
    return clean_name(class_names[index])


def name_list(what: str, names: Any) -> list[str]:
    """Clean class names in the order given.

    Raises:
        DataError: One text, which would be taken letter by letter; a set or a mapping, whose order
            is chance; or one of them is no name.
    """
    if isinstance(names, str | bytes | Mapping | Set) or not isinstance(names, Iterable):
        raise DataError(
            f"`{what}` is {names!r:.100} ({type(names).__name__}); give a list of class names"
        )
    return [clean_name(name) for name in names]


def new_names(names: Any) -> dict[str, str]:
    """Clean `{old: new}`.

    Raises:
        DataError: No mapping, something in it is no name, or an old name is there twice.
    """
    if not isinstance(names, Mapping):
        raise DataError(f"`names` is {names!r:.100} ({type(names).__name__}); give {{old: new}}")
    old = name_list("names", list(names))
    check_distinct(old, case_sensitive=True)
    return {one: clean_name(to) for one, to in zip(old, names.values(), strict=True)}


def check_distinct(names: Sequence[str], *, case_sensitive: bool = False) -> None:
    """Refuse names given twice, and names that differ only in case, spaces or Unicode form.

    Args:
        names: All class names.
        case_sensitive: Names that differ in case are of two classes, as letters are.

    Raises:
        DataError: With both spellings and what to do.
    """
    seen: dict[str, str] = {}
    for name in names:
        key = _key(name, case_sensitive)
        if key in seen:
            raise DataError(_clash(seen[key], name, case_sensitive))
        seen[key] = name


def check_new(names: Iterable[str]) -> None:
    """Refuse clean names that a class may not get from outside.

    Raises:
        DataError: One is endless, cannot be printed, or is a formula in spreadsheets.
    """
    for name in sorted(names):
        if reason := name_problem(name, "of"):
            raise DataError(f"the new name {reason}")


def check_known(
    name: Any, names: Sequence[str], former: Mapping[str, str] | None = None, remedy: str = ""
) -> str:
    """The clean form of `name`, which must be one of `names`.

    Args:
        name: As a caller gives it.
        names: All class names.
        former: What classes were called before -> what they are called now.
        remedy: What can be done beside writing another name.

    Raises:
        DataError: With the name it has now, or the most similar names known.
    """
    clean = clean_name(name)
    if clean in names:
        return clean
    if former and clean in former:
        raise DataError(f"there is no class {clean!r} any more: it is called {former[clean]!r} now")
    if not names:
        raise DataError(f"there is no class {clean!r}: the model knows none yet; `extend` it first")
    near = difflib.get_close_matches(clean, names, n=3) or list(names[:10])
    raise DataError(f"there is no class {clean!r}; did you mean one of {near}?{remedy}")


def check_all_known(labels: Iterable[str], names: Sequence[str], remedy: str = "") -> None:
    """Refuse clean names that are none of `names`; see `check_known`."""
    for name in dict.fromkeys(labels):
        check_known(name, names, remedy=remedy)


def check_current(
    labels: Iterable[str], former: Mapping[str, str], remedy: str, there: Sequence[str] = ()
) -> None:
    """Refuse names that classes no longer have: they would make new classes in silence.

    Args:
        labels: Clean class names.
        former: What classes were called before -> what they are called now.
        remedy: What to do; `{old}` and `{now}` stand for the names, `{call}` for the change that
            makes `there` of all old names the present one.
        there: All class names where the labels come from.

    Raises:
        DataError: With the name the class has now.
    """
    if found := sorted(set(labels) & set(former)):
        old, now = found[0], former[found[0]]
        alike = [one for one in found if former[one] == now] + [now] * (now in there)
        call = f"rename({{{old!r}: {now!r}}})" if len(alike) < 2 else _joining(alike, now)
        raise DataError(
            f"class {old!r} is called {now!r} now: it was renamed, or merged with others; "
            + remedy.format(old=repr(old), now=repr(now), call=call)
        )


def _joining(names: Sequence[str], into: str) -> str:
    return f"merge_classes({list(names)}, into={into!r})"


def names_after(
    names: Sequence[str], new: Mapping[str, str], former: Mapping[str, str]
) -> tuple[str, ...]:
    """Class names when classes are called otherwise, `{old: new}`.

    A place whose name is a former one is empty: it gives that up for one that becomes free.

    Args:
        names: All class names.
        new: Of classes among them.
        former: What classes were called before -> what they are called now.

    Raises:
        DataError: Two classes would have one name.
    """
    given = set(new.values())
    free = (old for old in new if old not in given)
    emptied = [name for name in names if name in given and name in former and name not in new]
    changed = {name: next(free) for name in emptied} | dict(new)
    after = tuple(changed.get(name, name) for name in names)
    times = Counter(after)
    for old, to in new.items():
        if times[to] > 1:
            both = [name for name, now in zip(names, after, strict=True) if now == to]
            raise DataError(
                f"class {old!r} cannot be called {to!r}: another class has this name, or is to "
                f"have it; to make one class of them, {_joining(both, to)}"
            )
    return after


def former_after(former: Mapping[str, str], names: Mapping[str, str]) -> dict[str, str]:
    """Former names -> present names, when classes are called otherwise, `{old: new}`.

    A present name is no former one, also where two classes have swapped theirs. A former name that
    changes is that of an emptied place: no class is called otherwise, nor has the new name.
    """
    names = {old: new for old, new in names.items() if old not in former}
    changed = {old: new for old, new in names.items() if old != new}
    moved = {old: changed.get(now, now) for old, now in former.items()}
    return {old: now for old, now in (changed | moved).items() if old not in names.values()}


def merged_former(
    one: Mapping[str, str], other: Mapping[str, str], present: Set[str]
) -> dict[str, str]:
    """Former names of both, whichever comes first, but those that are names of classes `present`.

    A name with two successors gets the first of them by the alphabet.
    """
    both = {old: min(n[old] for n in (one, other) if old in n) for old in {**one, **other}}
    return {old: now for old, now in both.items() if old not in present}


def _key(name: str, case_sensitive: bool) -> str:
    """What is left of a name when spaces, Unicode form and perhaps case are ignored."""
    # NFKC, as full-width letters and ligatures look like plain ones
    key = "".join(unicodedata.normalize("NFKC", name).split())
    return key if case_sensitive else key.casefold()


def _clash(one: str, other: str, case_sensitive: bool) -> str:
    if one == other:
        return f"class {one!r} is named twice; name every class once"
    ignored = "spaces or Unicode form" if case_sensitive else "case, spaces or Unicode form"
    remedy = "give the same class one spelling, or rename one of two classes"
    if not case_sensitive and _key(one, True) != _key(other, True):
        remedy += ", or tell classes apart by case: ImageDataset(..., case_sensitive=True)"
    shown = f"class names {one!r} and {other!r}"
    if ascii(one + other) != repr(one + other):  # letters that may look alike, by their numbers
        shown += f" ({one!a} and {other!a})"
    return f"{shown} differ only in {ignored}; {remedy}"


def index_tensor(names: Sequence[str], labels: Sequence[str]) -> torch.Tensor:
    """Places of `labels` in `names`, int64 (N,)."""
    places = {name: i for i, name in enumerate(names)}
    return torch.tensor([places[label] for label in labels], dtype=torch.int64)
