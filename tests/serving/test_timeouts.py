"""Clients who open a connection and do not come to the point."""

import asyncio
import json
import logging
import resource

import pytest

pytest.importorskip("uvicorn")
import uvicorn
import uvicorn.protocols.http.httptools_impl
from uvicorn.server import ServerState

from learnkit.serving.protocol import impatient, quiet

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n"


async def app(scope, receive, send):
    if scope["path"] == "/slow":
        await asyncio.sleep(0.5)
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body"})


async def answers(*requests, seconds=0.2):
    """What the server says in all to the clients who send these bytes and wait."""
    config = uvicorn.Config(app, http=impatient(seconds), log_level="warning")
    config.load()
    state = ServerState()
    server = await asyncio.get_running_loop().create_server(
        lambda: config.http_protocol_class(config=config, server_state=state, app_state={}),
        "127.0.0.1",
    )

    async def answer(request):
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(request)
        try:
            return await asyncio.wait_for(reader.read(), 3)
        except asyncio.TimeoutError:
            return b"still open"
        except ConnectionResetError:  # closed on what was sent meanwhile: the answer is lost
            return b""
        finally:
            writer.close()

    try:
        return await asyncio.gather(*map(answer, requests))
    finally:
        server.close()


def test_who_never_finishes_a_request_is_given_up_and_nobody_else():
    whole, slow = REQUEST + b"\r\n", REQUEST.replace(b"/ ", b"/slow ") + b"\r\n"
    found = asyncio.run(answers(b"", REQUEST, whole, whole + REQUEST, slow))
    assert found[:2] == [b"", b""]
    assert [one.split(b"\r\n")[0] for one in found[2:]] == [b"HTTP/1.1 204 No Content"] * 3


def test_what_is_no_http_is_answered_and_not_logged(capfd):
    quiet()
    (found,) = asyncio.run(answers(b"\x00\xff" * 50, seconds=2))
    head, _, body = found.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request")
    told = json.loads(body)
    assert "no request of HTTP/1.1" in told["error"]
    assert f"X-Request-ID: {told['request_id']}".encode() in head
    logging.getLogger("uvicorn.error").warning("something else")
    assert capfd.readouterr().err.splitlines() == ["WARNING:  something else"]


class TestHeaders:
    """Whatever stands around bodies is bounded, and who sends too much of it is told so."""

    FLOODS = {
        "one header": REQUEST + b"a: " + b"x" * 300_000,
        "many headers": REQUEST + b"a: 1\r\n" * 500,
        "request line": b"GET /" + b"x" * 300_000,
    }

    @pytest.mark.parametrize("kind", FLOODS)
    def test_too_much_is_refused_before_its_end(self, kind):
        (found,) = asyncio.run(answers(self.FLOODS[kind], seconds=2))
        status, _, rest = found.partition(b"\r\n")
        assert status == b"HTTP/1.1 431 Request Header Fields Too Large"
        assert b"longer than 65,536 bytes or more than 200" in rest

    CHUNKED = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"

    @pytest.mark.parametrize(
        "around", [b"4;" + b"x" * 300_000, b"4\r\nabcd\r\n0\r\na: " + b"x" * 300_000]
    )
    def test_extensions_of_chunks_and_trailers_are_bounded_too(self, around):
        (found,) = asyncio.run(answers(self.CHUNKED.replace(b"/ ", b"/slow ") + around, seconds=2))
        assert found.startswith(b"HTTP/1.1 431")
        assert found.count(b"HTTP/1.1") == 1

    def test_what_is_within_bounds_is_served_in_pieces_as_at_once(self):
        head = REQUEST + b"a: " + b"x" * 60_000 + b"\r\n" + b"b: 1\r\n" * 190 + b"\r\n"
        body = self.CHUNKED + b"1\r\nx\r\n" * 9_000 + b"0\r\n\r\n"
        large = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 900000\r\n\r\n" + b"y" * 900_000
        found = asyncio.run(answers(head, body, large, head + head, seconds=2))
        assert [one.count(b"HTTP/1.1 204") for one in found] == [1, 1, 1, 2]

    def test_without_httptools_bodies_are_served_and_what_stands_around_them_is_bounded(
        self, monkeypatch
    ):
        from uvicorn.protocols.http.h11_impl import H11Protocol

        monkeypatch.setattr("uvicorn.protocols.http.auto.AutoHTTPProtocol", H11Protocol)
        large = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 900000\r\n\r\n" + b"y" * 900_000
        floods = [self.FLOODS["one header"], self.FLOODS["request line"]]
        served, *refused = asyncio.run(answers(large, *floods, REQUEST, seconds=2))
        assert served.startswith(b"HTTP/1.1 204")
        assert {one[:12] for one in refused} <= {b"HTTP/1.1 400", b""}

    def test_empty_lines_before_a_request_are_nothing(self):
        found = asyncio.run(answers(b"\r\n" * 50 + REQUEST + b"\r\n", b"\r\n" * 99, seconds=0.5))
        assert found[0].startswith(b"HTTP/1.1 204")
        assert found[1] == b""

    def test_requests_sent_ahead_are_answered_in_turn_and_not_piled_up(self, monkeypatch):
        piled = []
        base = uvicorn.protocols.http.httptools_impl.HttpToolsProtocol
        begin = base.on_message_begin
        monkeypatch.setattr(
            base, "on_message_begin", lambda self: piled.append(len(self.pipeline)) or begin(self)
        )
        one, n = REQUEST + b"\r\n", 1000
        ahead, other = asyncio.run(answers(one * n, one, seconds=0.5))
        assert (ahead.count(b"HTTP/1.1 204"), len(piled)) == (n, n + 1)
        assert max(piled) < 4096 / len(one) + 1
        assert other.startswith(b"HTTP/1.1 204")

    def test_a_request_is_told_that_its_client_hung_up_also_with_others_behind_it(self):
        told = []

        async def waiting(scope, receive, send):
            while (message := await receive())["type"] == "http.request":
                pass
            told.append(message["type"])

        async def hang_up():
            config = uvicorn.Config(waiting, http=impatient(2), log_level="warning")
            config.load()
            state = ServerState()
            server = await asyncio.get_running_loop().create_server(
                lambda: config.http_protocol_class(config=config, server_state=state, app_state={}),
                "127.0.0.1",
            )
            _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(3 * (REQUEST + b"\r\n"))
            await writer.drain()
            while not state.tasks:
                await asyncio.sleep(0.01)
            writer.close()
            await asyncio.wait(state.tasks, timeout=5)
            server.close()

        asyncio.run(hang_up())
        assert told == ["http.disconnect"]  # the first of them was under way

    def test_nobody_waits_for_who_sends_a_header_without_end(self):
        async def meanwhile():
            flood = [REQUEST + b"a: " + b"x" * 50_000_000] * 4
            *refused, served = await answers(*flood, REQUEST + b"\r\n", seconds=2)
            return [one[:12] for one in refused], served[:12]

        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        refused, served = asyncio.run(meanwhile())
        assert served == b"HTTP/1.1 204"
        assert set(refused) <= {b"HTTP/1.1 431", b""}  # to a client that goes on sending it is lost
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000
