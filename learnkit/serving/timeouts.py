"""Timeouts of connections to clients who send slowly; uvicorn is imported when called."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from learnkit.serving.header_limits import bounded

_NOISE = "Invalid HTTP request received."


def impatient(seconds: float) -> type[asyncio.Protocol]:
    """Uvicorn's protocol, which closes connections without a request for `seconds`.

    Headers are bounded, see `bounded`. How long a body may take is `Limits.seconds`, too.
    """
    # uvicorn itself waits for ever for the end of a request's headers: a few hundred clients who
    # never come to it would keep all others out
    from uvicorn.protocols.http.auto import AutoHTTPProtocol

    base = bounded(AutoHTTPProtocol)

    class Impatient(base):
        _giving_up: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._wait_for_request()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._wait_for_request()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            super().connection_lost(exc)

        def _wait_for_request(self) -> None:
            self._stop_waiting()
            self._giving_up = self.loop.call_later(seconds, self._give_up)

        def _stop_waiting(self) -> None:
            if self._giving_up is not None:
                self._giving_up.cancel()

        def _give_up(self) -> None:
            if self.cycle is None or self.cycle.response_complete:  # else there is a request
                self.transport.close()

    return Impatient


def quiet() -> None:
    """Keep broken requests and forms, which are answered, out of the log."""
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)
    logging.getLogger("uvicorn.error").addFilter(_is_worth_a_line)


# a function with a name, so that a second call of `quiet` adds no second filter
def _is_worth_a_line(record: logging.LogRecord) -> bool:
    return record.msg != _NOISE
