"""The routes of labelling: HTTP alone, mounted beside those of the server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from learnkit.serving.http_errors import Refusal, as_json
from learnkit.serving.labelling.access import COOKIE, Access
from learnkit.serving.labelling.queue import VIEWS
from learnkit.serving.labelling.workplace import Workplace

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.requests import Request
    from starlette.responses import Response

LABEL_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; "
    # of this, base-uri and frame-ancestors default-src says nothing
    "form-action 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_TYPES = {
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".html": "text/html; charset=utf-8",
}
_MOST_BYTES = 200_000  # of a request's JSON
_MOST_ASKED = 100

Handler = Callable[["Request", str], Awaitable["Response"]]


class Labelling:
    """What `app.state.labelling` is: the workplace, and who may come in."""

    def __init__(self, workplace: Workplace, access: Access):
        self.workplace, self.access = workplace, access

    def new_key(self) -> str:
        """A key that opens the page once."""
        return self.access.new_key()


def mount_labelling(app: FastAPI, workplace: Workplace, access: Access) -> None:
    """Let an application serve the labelling page, and open the workplace when it starts."""
    app.state.labelling = Labelling(workplace, access)
    workplace.served = app.state.service.served
    app.state.service.is_labelled = True
    within = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(one: FastAPI) -> AsyncIterator[Any]:
        async with within(one) as state:
            await asyncio.to_thread(workplace.open)
            try:
                yield state
            finally:
                await asyncio.to_thread(workplace.close)

    app.router.lifespan_context = lifespan
    routes = _Routes(workplace, access)
    for method, path, handle, is_open in routes.table():
        endpoint = routes.guarded(handle, method, is_open=is_open)
        methods = ["GET", "HEAD"] if method == "GET" and path != "/label/events" else [method]
        app.add_route(path, endpoint, methods=methods, include_in_schema=False)


class _Routes:
    """The endpoints, and what every request to them must be."""

    def __init__(self, workplace: Workplace, access: Access):
        self._at, self._access = workplace, access
        self._page = files("learnkit.serving.labelling") / "page"

    def table(self) -> list[tuple[str, str, Handler, bool]]:
        """(method, path, endpoint, whether it takes no cookie) of each."""
        return [
            ("GET", "/label", self.page, True),
            ("GET", "/label/static/{name}", self.static, True),
            ("POST", "/label/login", self.login, True),
            ("GET", "/label/queue", self.queue, False),
            ("GET", "/label/groups", self.groups, False),
            ("GET", "/label/image/{image}", self.image, False),
            ("GET", "/label/heat/{image}", self.heat, False),
            ("POST", "/label/answer", self.answer, False),
            ("POST", "/label/undo", self.undo, False),
            ("POST", "/label/class", self.change_class, False),
            ("GET", "/label/log", self.log, False),
            ("GET", "/label/log.csv", self.log_csv, False),
            ("GET", "/label/events", self.events, False),
        ]

    def guarded(self, handle: Handler, method: str, *, is_open: bool) -> Callable[..., Any]:
        """An endpoint that is reached by its own page only, and answers refusals as JSON."""

        async def endpoint(request: Request) -> Response:
            try:
                self._access.check_origin(method, request.headers)
                owner = "" if is_open else self._access.owner(request.cookies.get(COOKIE, ""))
                response = await handle(request, owner)
            except Refusal as refusal:
                content = {"error": str(refusal), **refusal.more}
                response = _json(content, refusal.status, refusal.headers)
            for name, value in LABEL_HEADERS.items():
                # what an endpoint says itself stays: pictures may be kept for an hour
                response.headers.setdefault(name, value)
            return response

        return endpoint

    async def page(self, request: Request, owner: str) -> Response:
        """The page."""
        return self._file("index.html")

    async def static(self, request: Request, owner: str) -> Response:
        """A file that the page loads."""
        name = request.path_params["name"]
        if name == "index.html":
            raise Refusal(404, "there is no such file")
        return self._file(name)

    def _file(self, name: str) -> Response:
        from starlette.responses import Response

        # looked up among what is there: no name from outside is joined to a path
        there = {one.name: one for one in self._page.iterdir()} if self._page.is_dir() else {}
        kind = _TYPES.get(name[name.rfind(".") :])
        if name not in there or kind is None:
            raise Refusal(404, "there is no such file")
        return Response(there[name].read_bytes(), media_type=kind)

    async def login(self, request: Request, owner: str) -> Response:
        """A cookie for a key."""
        asked = await _body(request)
        cookie = self._access.login(str(asked.get("key", "")))
        return _json({}, 200, {"Set-Cookie": cookie})

    async def queue(self, request: Request, owner: str) -> Response:
        """Images to name, and the state."""
        given = request.query_params
        n = _number(given.get("n", "6"), 0, _MOST_ASKED)
        have = [one for one in given.get("have", "").split(",") if one][:_MOST_ASKED]
        view, who = self._view(request), _owner(owner, given.get("tab", ""))
        work = partial(self._at.views.queue, n, view, have, given.get("first"), who)
        return _json(await asyncio.to_thread(work))

    async def groups(self, request: Request, owner: str) -> Response:
        """Images that are alike."""
        who = _owner(owner, request.query_params.get("tab", ""))
        return _json(await asyncio.to_thread(self._at.views.groups, self._view(request), who))

    def _view(self, request: Request) -> str:
        view = request.query_params.get("view") or self._at.views.show
        if view not in VIEWS:
            raise Refusal(400, f"`view` is one of {', '.join(VIEWS)}")
        return view

    async def image(self, request: Request, owner: str) -> Response:
        """A picture."""
        from starlette.responses import Response

        image = request.path_params["image"]
        side = _number(request.query_params.get("side", "1600"), 16, 4096)
        # an id stands for the bytes of a file, so that its picture never changes
        tag = f'"{image[:32]}-{side}"'
        headers = {"ETag": tag, "Cache-Control": "private, max-age=3600"}
        if request.headers.get("if-none-match") == tag and image in self._at.book.pictures:
            return Response(status_code=304, headers=headers)
        data = await asyncio.to_thread(self._at.picture, image, side)
        return Response(data, headers=headers, media_type="image/webp")

    async def heat(self, request: Request, owner: str) -> Response:
        """Where a picture speaks for a class."""
        image, label = request.path_params["image"], request.query_params.get("label") or None
        return _json(await asyncio.to_thread(self._at.heat, image, label))

    async def answer(self, request: Request, owner: str) -> Response:
        """A label, or what is to be done with images."""
        asked = await _body(request)
        who = _owner(owner, str(asked.get("tab", "")))
        return await self._changed(partial(self._at.desk.answer, asked, who))

    async def undo(self, request: Request, owner: str) -> Response:
        """What was done, taken back."""
        return await self._changed(partial(self._at.desk.undo, await _body(request)))

    async def change_class(self, request: Request, owner: str) -> Response:
        """A class under another name, joined or forgotten."""
        return await self._changed(partial(self._at.desk.change_class, await _body(request)))

    async def _changed(self, work: Callable[[], tuple[int, dict[str, Any]]]) -> Response:
        """Do something in the thread for changes; what came of it, and the state."""
        loop = asyncio.get_running_loop()
        status, content = await loop.run_in_executor(self._at.working, work)
        state = await asyncio.to_thread(self._at.views.state)
        return _json({**state, **content}, status)

    async def log(self, request: Request, owner: str) -> Response:
        """What was done."""
        given = request.query_params
        n = _number(given.get("n", "200"), 1, 2000)
        before = _number(given["before"], 0, 2**53) if "before" in given else None
        return _json(await asyncio.to_thread(self._at.views.log, n, before))

    async def log_csv(self, request: Request, owner: str) -> Response:
        """What was done, as a table."""
        from starlette.responses import Response

        text = await asyncio.to_thread(self._at.views.log_csv)
        headers = {"Content-Disposition": 'attachment; filename="labels.csv"'}
        # Excel takes a table without this mark for one in the system's code page
        return Response("\ufeff" + text, headers=headers, media_type="text/csv; charset=utf-8")

    async def events(self, request: Request, owner: str) -> Response:
        """What happens, as it does."""
        from starlette.responses import StreamingResponse

        return StreamingResponse(self._at.events.stream(), media_type="text/event-stream")


def _owner(cookie: str, tab: str) -> str:
    """Who holds images: a tab of a browser."""
    return f"{cookie}.{tab[:64]}"


def _number(text: str, least: int, most: int) -> int:
    if not text.isdecimal() or not text.isascii() or len(text) > 16:
        raise Refusal(400, f"{text[:20]!a} is no whole number")
    return min(max(int(text), least), most)


async def _body(request: Request) -> dict[str, Any]:
    """The JSON object of a request.

    Raises:
        Refusal: 400 there is none, 413 it is too large.
    """
    data = b""
    async for chunk in request.stream():
        data += chunk
        if len(data) > _MOST_BYTES:
            raise Refusal(413, f"the request has more than {_MOST_BYTES:,} bytes")
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise Refusal(400, "the body is no JSON object")
    return found


def _json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    from starlette.responses import Response

    return Response(as_json(content), status, headers, media_type="application/json")
