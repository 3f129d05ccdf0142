"""Refusals: what a server answers instead of a prediction, a status and a sentence as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


class Refusal(Exception):
    """A request is not served.

    Args:
        status: of HTTP.
        sentence: what was wrong, and what to do.
        headers: that go with it.
        more: further entries of the answer beside `error`.
    """

    def __init__(
        self,
        status: int,
        sentence: str,
        headers: Mapping[str, str] | None = None,
        more: Mapping[str, Any] | None = None,
    ):
        super().__init__(sentence)
        self.status, self.headers, self.more = status, dict(headers or {}), dict(more or {})


def as_json(content: Any) -> bytes:
    """`content` as JSON in plain ASCII, so that no name of a file or class can break it.

    >>> json.loads(as_json({"label": "<ß>"}))
    {'label': '<ß>'}
    """
    return json.dumps(content, allow_nan=False).encode("ascii")
