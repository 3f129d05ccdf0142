"""Events from the server to pages: every one that listens gets the newest of each kind."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

_HEARTBEAT = 15.0  # seconds without an event after which a comment keeps the connection


class Events:
    """Hands events from any thread to all streams that are open."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: set[_Stream] = set()
        self._closed = False

    def publish(self, name: str, make: Callable[[], Any]) -> None:
        """Tell all pages; what is told is made when they are sent it, so that it is the newest."""
        with self._lock:
            streams = list(self._open)
        for stream in streams:
            stream.put(name, make)

    def close(self) -> None:
        """End all streams; none begins any more."""
        with self._lock:
            self._closed = True
            streams = list(self._open)
        for stream in streams:
            stream.put("", None)

    async def stream(self) -> AsyncIterator[bytes]:
        """The bytes of a stream of events, until the page leaves or the server ends."""
        stream = _Stream(asyncio.get_running_loop())
        with self._lock:
            if self._closed:
                return
            self._open.add(stream)
        try:
            yield b": hello\n\n"
            while True:
                try:
                    waiting = await asyncio.wait_for(stream.next(), _HEARTBEAT)
                # not the built-in one before Python 3.11
                except asyncio.TimeoutError:
                    yield b": still here\n\n"
                    continue
                if "" in waiting:
                    return
                for name, make in waiting.items():
                    # in a thread, as it may wait for locks
                    # JSON in ASCII is one line, as `data:` needs it
                    told = json.dumps(await asyncio.to_thread(make))
                    yield f"event: {name}\ndata: {told}\n\n".encode("ascii")
        finally:
            with self._lock:
                self._open.discard(stream)


class _Stream:
    """The events that one page has not been sent yet: one of each kind."""

    def __init__(self, loop: asyncio.AbstractEventLoop):
        self._loop, self._waiting = loop, {}
        self._ready = asyncio.Event()

    def put(self, name: str, make: Any) -> None:
        try:
            # asyncio's events and this dictionary belong to the thread of the loop
            self._loop.call_soon_threadsafe(self._put, name, make)
        except RuntimeError:  # the loop has ended, and the page with it
            return

    def _put(self, name: str, make: Any) -> None:
        self._waiting[name] = make
        self._ready.set()

    async def next(self) -> dict[str, Any]:
        await self._ready.wait()
        self._ready.clear()
        # no `await` since the event was cleared: nothing is put in between and lost
        waiting, self._waiting = self._waiting, {}
        return waiting
