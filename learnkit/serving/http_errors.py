"""Refusals: what a server answers instead of a prediction, a status and a sentence."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from learnkit.report.document import visible

UNREADABLE = "ERROR"  # what stands for an image in plain text that could not be predicted


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
    # json writes NaN, which is no JSON, unless it is told to raise ValueError
    return json.dumps(content, allow_nan=False).encode("ascii")


def as_plain(content: Mapping[str, Any]) -> bytes | None:
    r"""An answer in UTF-8: a line for each image, else what was wrong; None for other answers.

    The line is the image's decision, or ERROR. No name of a class can break a line.

    >>> as_plain({"predictions": [{"decision": "ok"}, {"error": "damaged"}]})
    b'ok\nERROR\n'
    >>> as_plain({"error": "no image could be predicted", "predictions": []})
    b'no image could be predicted\n'
    """
    if "error" in content:
        lines = [content["error"]]
    elif "predictions" in content:
        decisions = [entry.get("decision", UNREADABLE) for entry in content["predictions"]]
        lines = [one if isinstance(one, str) else ", ".join(one) for one in decisions]
    else:
        return None
    text = "".join(f"{visible(line, '?')}\n" for line in lines)
    return text.encode("utf-8", "replace")


def prefers_plain(accept: str) -> bool:
    """Whether a header `Accept` asks for plain text rather than for JSON.

    >>> [prefers_plain(one) for one in ("text/plain", "*/*", "text/plain, application/json")]
    [True, False, False]
    """
    wanted = {"text/plain": 0.0, "application/json": 0.0}
    for part in accept.lower().split(","):
        kind, *parameters = (piece.strip() for piece in part.split(";"))
        if kind in wanted:
            wanted[kind] = _quality(parameters)
    return wanted["text/plain"] > wanted["application/json"]


def _quality(parameters: list[str]) -> float:
    for one in parameters:
        if one.startswith("q="):
            try:
                return float(one[2:])
            except ValueError:
                return 0.0
    return 1.0
