"""Markdown that shows text as text: escaped cells and tables."""

import html
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

# Emphasis, code, links, pictures, tables; links that need no brackets; a heading, list or rule.
_SPECIAL = re.compile(
    r"[\\`*_\[\]{}|~@]|:(?=//)|(?<=www)\.|^[#+=-]|(?<=^\d)[.)](?=\s)", re.IGNORECASE
)


def escape(text: Any) -> str:
    r"""`text` as it is to be read, inert in Markdown and HTML, on one line.

    >>> print(escape("<b>[cat](http://x) | dog"))
    &lt;b&gt;\[cat\](http\://x) \| dog
    """
    line = "".join(" " if unicodedata.category(c) in {"Cc", "Zl", "Zp"} else c for c in str(text))
    return html.escape(_SPECIAL.sub(r"\\\g<0>", line.strip()), quote=False)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table with the first row's keys as columns; empty if there are no rows."""
    if not rows:
        return ""
    columns = list(rows[0])
    lines = [[escape(column) for column in columns], ["---"] * len(columns)]
    lines += [[_cell(row.get(column)) for column in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        value = f"{value:.4g}"
    return "–" if value is None else escape(value)
