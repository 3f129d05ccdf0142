"""Names of classes from a keyboard: which may be, as folders on any system and beside others."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from learnkit.data.labels import nfc
from learnkit.inference.class_names import name_problem

LONGEST = 80
_SIGNS = '/\\:*?"<>|'
# also with an extension: on Windows these are devices, in every folder
_RESERVED = re.compile(r"(?:con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]|conin\$|conout\$)(?:\..*)?")
# control, format (which turn text around), private, unassigned, surrogate, ends of lines
_INVISIBLE = ("Cc", "Cf", "Co", "Cn", "Cs", "Zl", "Zp")


@dataclass(frozen=True)
class NameProblem:
    """Why a class cannot be called so.

    Attributes:
        code: "empty", "long", "signs", "ends", "reserved", "same" or "forgotten".
        sentence: for the person who typed it.
        known: the class that is meant, or what the former one is called now.
    """

    code: str
    sentence: str
    known: str | None = None


def checked_name(name: str) -> str:
    """`name` as a class has it: composed, as folders are read."""
    return nfc(name)


def problem_of(
    name: str, known: Collection[str], former: Mapping[str, str] | None = None
) -> NameProblem | None:
    r"""What is wrong with the name of a new class; None if nothing is.

    Args:
        name: as it was typed.
        known: the names there are.
        former: what classes were called before -> what they are called now; a class that was
            forgotten is called as it was.

    >>> problem_of("Scratch", ["Crack"]), problem_of("crâck", ["Crack"]).known
    (None, 'Crack')
    >>> [problem_of(one, []).code for one in ("", "a/b", "NUL.txt", "end.", "a\\u202eb")]
    ['empty', 'signs', 'reserved', 'ends', 'signs']
    """
    name, former = checked_name(name), former or {}
    shaped = _shape_problem(name)
    if shaped is not None:
        return shaped
    if name in former:
        return NameProblem(
            "forgotten",
            f"there was a class {name!r} before"
            + (f", which is called {former[name]!r} now" if former[name] != name else ", forgotten")
            + ". Take it up again?",
            former[name],
        )
    for one in known:
        if _key(one) == _key(name) and one != name:
            return NameProblem("same", f"Is it {one}? The names differ only in small things.", one)
    return None


def _shape_problem(name: str) -> NameProblem | None:
    """What is wrong with a name whatever others there are."""
    if not name.strip():
        return NameProblem("empty", "A class needs a name.")
    if len(name) > LONGEST:
        return NameProblem(
            "long", f"The name has {len(name)} characters; it may have {LONGEST} at most."
        )
    if wrong := [sign for sign in name if sign in _SIGNS]:
        return NameProblem("signs", f"A name has none of {' '.join(_SIGNS)}; here is {wrong[0]}.")
    if any(unicodedata.category(sign) in _INVISIBLE for sign in name):
        return NameProblem("signs", "The name holds a sign that cannot be seen; type it anew.")
    # Windows drops dots and spaces at a name's end; a dot in front hides a folder elsewhere
    if name != name.strip() or name[0] == "." or name[-1] == ".":
        return NameProblem("ends", "A name neither begins nor ends with a dot or a space.")
    if _RESERVED.fullmatch(name.casefold()):
        return NameProblem("reserved", f"{name} is the name of a device on Windows; add a word.")
    if reason := name_problem(name):
        return NameProblem("signs", f"The name {reason}.")
    return None


def _key(name: str) -> str:
    """What is left of a name without case, spaces and accents."""
    apart = unicodedata.normalize("NFKD", name.casefold())
    return "".join(sign for sign in apart if not unicodedata.combining(sign) and not sign.isspace())
