"""HTML of a document: a fragment for notebooks, or a page of its own."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping
from functools import cache
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from learnkit.report.document import (
    Document,
    filled,
    interval_ends,
    interval_text,
    share_text,
    value_text,
    visible,
)

_NAME = 24  # characters of a name below a picture


def as_html(document: Document) -> str:
    """A fragment that takes colours of text and ground from the page around it.

    Its style sheet touches nothing else on the page. Without it (some viewers remove it) verdicts
    keep their signs and words, and tables their rows.
    """
    return templates().get_template("fragment.html").render(blocks=document.content)


def as_page(title: str, documents: Mapping[str, Document]) -> str:
    """A whole page: each document below its heading, if that is not empty."""
    parts = {heading: Markup(as_html(one)) for heading, one in documents.items()}
    return templates().get_template("page.html").render(title=title, parts=parts)


@cache
def templates() -> Environment:
    """The templates of documents and pages; whatever stands in them is escaped."""
    found = Environment(
        loader=PackageLoader("learnkit.report"),
        autoescape=True,
        # by default jinja2 writes nothing for a name that is misspelt
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # what a macro made is markup already
        finalize=lambda value: (
            value
            if isinstance(value, Markup)
            else Markup(html.escape(visible(value_text(value), "\ufffd")))
        ),
    )
    found.globals |= {
        "interval_ends": interval_ends,
        "interval_text": interval_text,
        "percent": share_text,
    }
    found.filters |= {
        "kind": lambda value: type(value).__name__,
        "filled": filled,
        "ending": lambda name: name if len(name) <= _NAME else f"…{name[1 - _NAME :]}",
        "address": _address,
        "of": lambda index, values: values[index],
        "local": lambda name: f"./{quote(name)}",  # beside the page, whatever the name
    }
    return found


def _address(image: Any) -> str:
    """The image itself as a data URI."""
    if not isinstance(image, bytes):
        from PIL import Image

        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        image = buffer.getvalue()
    kind = "png" if image.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"
