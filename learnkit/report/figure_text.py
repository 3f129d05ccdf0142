"""Names in figures: different ones stay different when cut, in letters a font has."""

from __future__ import annotations

import unicodedata
import warnings
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from itertools import count, takewhile
from typing import Any

from learnkit.report.document import visible

_CONTEXT = 2  # characters shown before the first that differs
_RIGHT_TO_LEFT = {"R", "AL"}
_SHAPING = (3, 11)  # from this version on matplotlib joins letters and turns lines around itself
_LISTED = 20


def shorten(text: str, width: int = 20) -> str:
    """`text` in at most `width` characters, its middle replaced by an ellipsis.

    >>> shorten("a_very_long_name_of_a_class_17", 15)
    'a_very_…lass_17'
    """
    text = str(text)
    if len(text) <= width:
        return text
    head = width // 2
    return f"{text[:head]}…{text[len(text) - (width - head - 1) :]}"


def distinct_names(names: Sequence[str], width: int = 20) -> list[str]:
    """The names in at most `width` characters; different names stay different, equal ones equal.

    Names that would look alike are cut where they differ; where nothing that is seen differs, they
    get numbers, behind which they may be wider.

    >>> distinct_names(["left_camera_scratch_top_view", "left_camera_scuffed_top_view", "ok"], 14)
    ['lef…scratch_t…', 'lef…scuffed_t…', 'ok']
    """
    unique = list(dict.fromkeys(map(str, names)))
    seen = [" ".join(_seen(name).split()) for name in unique]
    texts = [shorten(name, width) for name in seen]
    for alike in _groups(texts):
        parts = _apart([seen[i] for i in alike], width)
        for i, text in zip(alike, parts, strict=True):
            texts[i] = text
    told = dict(zip(unique, _numbered(texts, width), strict=True))
    return [told[str(name)] for name in names]


def figure_names(names: Sequence[str], width: int = 20) -> tuple[list[str], dict[str, Any]]:
    """`distinct_names`, and the keywords with which matplotlib writes them as they are.

    Letters that the default font lacks are taken from another installed one. Names in letters that
    no font has become numbers, of the name among the different ones; a warning says which is which.
    """
    unique = list(dict.fromkeys(map(str, names)))
    letters = set("".join(map(_seen, unique)))
    families, missing = _fonts_for(frozenset(c for c in letters if not c.isspace()))
    drawn = {name: _numbers_for(name, i, missing) for i, name in enumerate(unique)}
    shown = distinct_names([drawn[name] for name in unique], width)
    if len(set(shown)) < len(unique):  # a class is called what another's number is
        shown = _numbered(shown, width)
    told = dict(zip(unique, shown, strict=True))
    if unread := [f"{told[name]} = {name}" for name in unique if drawn[name] != name]:
        more = f" and {len(unread) - _LISTED} more" if len(unread) > _LISTED else ""
        warnings.warn(
            f"No installed font has all letters of these names; the figure shows "
            f"{', '.join(unread[:_LISTED])}{more}. Install a font that has them, such as Noto Sans "
            "CJK, or rename the classes",
            stacklevel=2,
        )
    # else matplotlib sets what is between two $ in a name as a formula
    style = {"parse_math": False} | ({"fontfamily": families} if families else {})
    return [told[str(name)] for name in names], style


def _seen(name: str) -> str:
    """What of a name can be seen: no control characters, accents joined to their letters."""
    return visible(unicodedata.normalize("NFC", name), "\ufffd")


def _groups(texts: Sequence[str]) -> list[list[int]]:
    """Places of texts that occur more than once."""
    places = defaultdict(list)
    for i, text in enumerate(texts):
        places[text].append(i)
    return [found for found in places.values() if len(found) > 1]


def _apart(names: Sequence[str], width: int) -> list[str]:
    """A window of each name around the first letter in which they differ, and so on for each group.

    Those that share a window share its letters: their first difference lies further on.
    """
    pairs = zip(min(names), max(names), strict=False)  # what these two share, all share
    at = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    texts = [_window(name, at, width) for name in names]
    for alike in _groups(texts):
        if len(alike) < len(names):
            parts = _apart([names[i] for i in alike], width)
            for i, text in zip(alike, parts, strict=True):
                texts[i] = text
    return texts


def _window(name: str, at: int, width: int) -> str:
    head = max(1, width // 4)
    room = max(1, width - head - 2)
    start = at - min(_CONTEXT, room // 3)
    if len(name) <= width:
        return name
    if start <= head + 1:  # nothing is left out before it
        return f"{name[: width - 1]}…"
    start = min(start, len(name) - room - 1)
    rest = name[start:]
    return f"{name[:head]}…{rest if len(rest) <= room + 1 else f'{rest[:room]}…'}"


def _numbered(texts: Sequence[str], width: int) -> list[str]:
    """The texts, a number behind each that stood there before."""
    taken, found = set(texts), {}
    for text in texts:
        if text in found:
            tags = (f"…{i}" for i in count(2))
            cut = (f"{text[: max(1, width - len(tag))]}{tag}" for tag in tags)
            text = next(one for one in cut if one not in taken)
            taken.add(text)
        found[text] = None
    return list(found)


def _numbers_for(name: str, i: int, missing: frozenset[str]) -> str:
    """The name, or its number and what of it can be written."""
    if missing.isdisjoint(_seen(name)):
        return name
    rest = "".join(c for c in _seen(name) if c not in missing).strip()
    return f"#{i} {rest}" if any(map(str.isalnum, rest)) else f"#{i}"


def _fonts_for(letters: frozenset[str]) -> tuple[list[str], frozenset[str]]:
    """(font families to name, none where the default does; the letters that no font has)."""
    from matplotlib import __version_info__, font_manager, rcParams

    turned = {c for c in letters if unicodedata.bidirectional(c) in _RIGHT_TO_LEFT}
    unset = turned if __version_info__[:2] < _SHAPING else set()
    families = list(rcParams["font.family"])
    # one by one: of several families `findfont` gives a single file
    paths = [
        font_manager.findfont(font_manager.FontProperties(family=[family])) for family in families
    ]
    missing = set(letters) - unset
    missing -= set().union(*(_letters_in(path) for path in paths)) if missing else set()
    added: list[str] = []
    while missing:
        named = _upright()
        best = max(named, key=lambda name: len(missing & _letters_in(named[name])), default=None)
        if best is None or missing.isdisjoint(_letters_in(named[best])):
            break
        missing -= _letters_in(named[best])
        added.append(best)
    return [*families, *added] if added else [], frozenset(missing | unset)


def _upright() -> dict[str, str]:
    """The file of each installed font family, those without slant or weight first, by name."""
    from matplotlib import font_manager

    plain = lambda f: (f.style != "normal", str(f.weight) not in {"400", "normal", "regular"})
    fonts = sorted(font_manager.fontManager.ttflist, key=lambda f: (f.name, plain(f), f.fname))
    # matplotlib's own font of last resort has a box for every letter there is
    # reversed: of fonts with one name the last stays, and the plain ones were sorted to the front
    return {f.name: f.fname for f in reversed(fonts) if not f.name.startswith("Last Resort")}


@cache
def _letters_in(path: str) -> frozenset[str]:
    """The letters a font file can draw; none of a font that holds bitmaps only."""
    from matplotlib import font_manager

    try:
        font = font_manager.get_font(path)
    # what FreeType refuses matplotlib raises as a RuntimeError
    except (OSError, RuntimeError):
        return frozenset()
    return frozenset(map(chr, font.get_charmap())) if font.scalable else frozenset()
