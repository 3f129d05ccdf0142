"""The access log, one line of plain ASCII for each request, and the ids of requests."""

from __future__ import annotations

import logging
import re
import sys
import time
import uuid
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

LOG = logging.getLogger("learnkit.access")
ID_HEADER = "X-Request-ID"
_SANE = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LONGEST = 200  # characters of a path that are logged
_KEY = "learnkit.request_id"
_NOTHING = "-"

Observer = Callable[[str, int, float], object]  # is told path, status and seconds of each answer


def request_id(scope: dict[str, Any]) -> str:
    """The id of a request: what its client sent if that is short and plain, else a new one."""
    # kept in the scope: an answer that names an error and the log's line have the same id
    if _KEY not in scope:
        name = ID_HEADER.lower().encode()
        sent = next((value for key, value in scope["headers"] if key.lower() == name), b"")
        given = sent.decode("latin-1")
        scope[_KEY] = given if _SANE.fullmatch(given) else new_request_id()
    return scope[_KEY]


def new_request_id() -> str:
    """32 hexadecimal digits that no other request has."""
    return uuid.uuid4().hex


def log_request(
    id_: str, method: str, path: str, status: int | None, seconds: float, n_bytes: int
) -> None:
    """Write the line of one request: time, id, method, path, status, milliseconds, bytes sent.

    The address's fields are left out, and headers, with the tokens among them. Whatever is no
    plain character stands there as %XX, so that a request is one line of seven columns.
    """
    if not LOG.isEnabledFor(logging.INFO):
        return
    now = time.time()
    when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"
    shown = quote(path[:_LONGEST], safe="/:@!$&'()*+,;=", errors="replace") or _NOTHING
    verb = quote(method[:20], safe="") or _NOTHING
    code = _NOTHING if status is None else status
    LOG.info("%s %s %s %s %s %.1fms %dB", when, id_, verb, shown, code, 1000 * seconds, n_bytes)


def print_access_log() -> None:
    """Print the lines to the standard output from now on, and nothing else there."""
    handler = _Lines(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    # in place of what was there, and not handed on: a line must not be printed twice
    LOG.handlers, LOG.propagate = [handler], False
    LOG.setLevel(logging.INFO)


class _Lines(logging.StreamHandler):
    """Lines for whoever reads them; nobody is told for each that nobody does."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Report what went wrong, unless the reader is gone."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


class Accounted:
    """An ASGI application whose requests have ids and are logged, whatever becomes of them.

    Args:
        app: the application.
        observe: is told path, status and seconds of each answer.
    """

    def __init__(self, app: Any, observe: Observer = lambda path, status, seconds: None):
        self._app, self._observe = app, observe

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Serve one request, or hand on what is none."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        id_, began = request_id(scope), time.perf_counter()
        status, n_bytes = None, 0

        async def counted(message: dict[str, Any]) -> None:
            nonlocal status, n_bytes
            if message["type"] == "http.response.start":
                status = message["status"]
                own = (ID_HEADER.lower().encode(), id_.encode())
                message = {**message, "headers": [*message.get("headers", ()), own]}
            n_bytes += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive, counted)
        finally:
            seconds = time.perf_counter() - began
            log_request(id_, scope["method"], scope["path"], status, seconds, n_bytes)
            # None if the client left, or the application ended, before an answer began
            if status is not None:
                self._observe(scope["path"], status, seconds)
