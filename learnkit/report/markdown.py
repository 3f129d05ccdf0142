"""Markdown of a document, in GitHub's form: text shows as text, whatever is in it."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from learnkit.report import document as doc

# Emphasis, code, links, pictures, tables; links that need no brackets; a heading, list or rule.
_SPECIAL = re.compile(r"[\\`*_\[\]{}|~@]|:(?=//)|(?<=www)\.|^[#+=-]", re.IGNORECASE)
_NUMBERED = re.compile(r"^(\d+)([.)])(?=\s|$)")
_SIGNS = {True: "✓ ", False: "✗ ", None: ""}


def as_markdown(document: doc.Document, level: int = 2) -> str:
    """Markdown with a heading of `level` for each section."""
    return "\n\n".join(_blocks(document.content, level))


def escape(text: Any) -> str:
    r"""`text` for reading, inert in Markdown and HTML, on one line.

    >>> print(escape("<b>[cat](http://x) | dog"))
    &lt;b&gt;\[cat\](http\://x) \| dog
    """
    return _inert(str(text)).strip()


def _blocks(blocks: Sequence[Any], level: int) -> list[str]:
    return [_rendered(block, level) for block in doc.filled(blocks)]


def _rendered(block: Any, level: int) -> str:
    match block:
        case doc.Section(title, content):
            return "\n\n".join([f"{'#' * level} {escape(title)}", *_blocks(content, level + 1)])
        case doc.Headline(subject, _, phrase, reason):
            return f"**{escape(subject)}** {phrase}: {escape(reason)}"
        case doc.Items(lines, None):
            return "\n".join(f"* {_line(line)}" for line in lines)
        case doc.Items(lines, start):
            return "\n".join(f"{i}. {_line(line)}" for i, line in enumerate(lines, start))
        case doc.Code(content, language):
            # as many backticks within the program would end a shorter one
            fence = "`" * max(3, 1 + max(map(len, re.findall("`+", content)), default=0))
            return f"{fence}{language}\n{content}\n{fence}"
        case doc.Table():
            return _table(block)
        case doc.Bars():
            return _table(block.as_table())
        case doc.Gallery(pictures):
            return _table(doc.Table([[one.name, one.mark, one.caption] for one in pictures]))
    return _line(block.content).strip()


def _table(block: doc.Table) -> str:
    sides = block.alignment
    # GitHub takes no lines for a table that have no header
    rows = [block.header or [""] * len(sides), *block.content]
    lines = [[_line(cell).strip() for cell in row] for row in rows]
    lines.insert(1, [{"l": "---", "r": "---:"}[side] for side in sides])
    found = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{found}\n\n{escape(block.more)}" if block.more else found


def _line(piece: doc.Inline) -> str:
    match piece:
        # within code ` would end it, and | the cell
        case doc.Span(str(content), "code") if not set(content) & set("`|"):
            return f"`{doc.visible(content, ' ')}`"
        case doc.Span(content, "strong"):
            # ** in front of a blank begins no emphasis, and behind one ends none
            return f"**{_line(content).strip()}**"
        case doc.Span(content):
            return _line(content)
        case doc.Mark(word, good):
            return f"{_SIGNS[good]}{_inert(word)}"
        case doc.Lines(content):
            return "; ".join(map(_line, content))
        case tuple():
            return "".join(map(_line, piece))
    return _inert(doc.value_text(piece))


def _inert(text: str) -> str:
    """`text` with every character that means something in Markdown or HTML escaped."""
    line = "".join(" " if unicodedata.category(c) in {"Cc", "Zl", "Zp"} else c for c in text)
    # spaces in front hide a heading from `^` that appears when a line is stripped
    start, inner = re.fullmatch(r"(\s*)(.*)", line, re.DOTALL).groups()
    inner = _NUMBERED.sub(r"\1\\\2", _SPECIAL.sub(r"\\\g<0>", doc.visible(inner, "\ufffd")))
    return start + html.escape(inner, quote=False)
