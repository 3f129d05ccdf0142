"""Clients who open a connection and do not come to the point."""

import asyncio
import logging

import pytest

pytest.importorskip("uvicorn")
import uvicorn
from uvicorn.server import ServerState

from learnkit.serving.timeouts import impatient, quiet

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
    assert found.startswith(b"HTTP/1.1 400 Bad Request")
    logging.getLogger("uvicorn.error").warning("something else")
    assert capfd.readouterr().err.splitlines() == ["WARNING:  something else"]
