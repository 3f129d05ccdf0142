"""Uvicorn's protocol with limits: of request headers, of all else around bodies, and of waiting.

Its parser has none. Uvicorn is imported when called.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from learnkit.serving.access_log import ID_HEADER, log_request, new_request_id
from learnkit.serving.http_errors import as_json

HEADER_BYTES, HEADERS = 65_536, 200
_PIECE = 4096  # bytes that are parsed before they, and the requests in them, are counted
_LINGER = 1.0  # seconds to read on after a refusal, so that a client that still sends gets it
_SENTENCE = (
    f"the request's line and headers are longer than {HEADER_BYTES:,} bytes or more than {HEADERS};"
    " send what is large as the body"
)
_NO_HTTP = "this is no request of HTTP/1.1; see /openapi.json for what there is"
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


def bounded(base: Any) -> Any:
    """Uvicorn's protocol `base`, which refuses with 431 what is too much beside the body.

    That is the request line, headers, what stands between chunks and after the last one: at most
    `HEADER_BYTES`, and between chunks as much again as they hold; and at most `HEADERS` headers.
    The protocol over h11, which is what there is where httptools is not installed, has limits of
    its own and stays as it is.
    """
    if not hasattr(base, "on_body"):  # without that call a body would count as what stands around
        return base
    # httptools keeps an unfinished line and copies all of it at each arrival: 60 MB of one line
    # stopped the server for seconds, for everybody

    class Bounded(base):
        _beside = _in_body = 0
        _refused, _unparsed = False, b""
        _cycles: tuple[Any, ...] = ()

        def on_headers_complete(self) -> None:
            super().on_headers_complete()
            known = (*self._cycles, self.cycle)
            self._cycles = tuple(one for one in known if one and not one.response_complete)

        def connection_lost(self, exc: Exception | None) -> None:
            # uvicorn tells the last request alone: answers to those before it, sent ahead, were
            # written to a closed connection, and each left a traceback in the log
            for cycle in self._cycles:
                cycle.disconnected = True
                cycle.message_event.set()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            self._parse(self._unparsed + data)

        def on_response_complete(self) -> None:
            super().on_response_complete()  # reads on
            self._parse(self._unparsed)

        def _parse(self, data: bytes) -> None:
            self._unparsed = b""
            for start in range(0, len(data), _PIECE):
                if self._refused or self.transport.is_closing():
                    return
                # each is kept as an object of its own, a hundred times its bytes: 20 MB of them
                # stopped the server for a minute
                if self.pipeline:
                    self._unparsed = data[start:]
                    self.flow.pause_reading()
                    return
                piece = data[start : start + _PIECE]
                self._beside += len(piece)
                super().data_received(piece)
                too_long = self._beside > HEADER_BYTES + self._in_body
                if too_long or len(self.headers or ()) > HEADERS:  # None before the first request
                    self._refuse()

        def on_body(self, body: bytes) -> None:
            self._beside -= len(body)
            self._in_body += len(body)
            super().on_body(body)

        def on_message_complete(self) -> None:
            self._beside = self._in_body = 0
            super().on_message_complete()

        def _refuse(self) -> None:
            self._refused = True
            if self.cycle is not None and not self.cycle.response_complete:
                if self.cycle.response_started:
                    self.transport.close()
                    return
                self.cycle.disconnected = True  # whoever reads its body is told, and not heard
                self.cycle.message_event.set()
            self._say("431 Request Header Fields Too Large", _SENTENCE)
            self.loop.call_later(_LINGER, self.transport.close)

        def send_400_response(self, msg: str) -> None:
            """Answer what is no HTTP, in the form of all other errors."""
            self._say("400 Bad Request", _NO_HTTP)
            self.transport.close()

        def _say(self, status: str, sentence: str) -> None:
            id_ = new_request_id()
            content = as_json({"error": sentence, "request_id": id_})
            lines = (
                f"HTTP/1.1 {status}",
                "content-type: application/json",
                f"content-length: {len(content)}",
                f"{ID_HEADER}: {id_}",
                "connection: close",
            )
            self.transport.write("\r\n".join([*lines, "", ""]).encode() + content)
            # the application, which logs all other requests, never sees this one
            log_request(id_, "", "", int(status[:3]), 0.0, len(content))

    return Bounded


def quiet() -> None:
    """Keep broken requests and forms, which are answered, out of the log."""
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)
    logging.getLogger("uvicorn.error").addFilter(_is_worth_a_line)


# a function with a name, so that a second call of `quiet` adds no second filter
def _is_worth_a_line(record: logging.LogRecord) -> bool:
    return record.msg != _NOISE
