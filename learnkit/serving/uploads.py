"""Images from a request's body, counted while they arrive. Names are labels, never paths."""

from __future__ import annotations

import asyncio
import contextlib
import io
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from PIL import Image

from learnkit.data.image import FORMATS, check_pixel_count, naming_errors, source_name
from learnkit.serving.http_errors import Refusal
from learnkit.serving.limits import Limits, Ticket, check_size

if TYPE_CHECKING:
    from starlette.requests import Request

_LONGEST_NAME = 200
_MOST_FIELDS = 100
_READ_ON = 4  # times the size allowed that is read, to be answered after it
_READ_ON_SECONDS = 5.0


class Upload(io.BytesIO):
    """The bytes of an image a client sent; `name` is what the client calls it."""

    def __init__(self, data: bytes, name: str):
        super().__init__(data)
        self.name = name


async def read_uploads(
    request: Request, ticket: Ticket, limits: Limits
) -> tuple[list[Upload], dict[str, list[str]]]:
    """The images of a request and the text fields beside them.

    A form (`multipart/form-data`) has any number of images, whatever its fields are called; any
    other body is one image.

    Raises:
        Refusal: 413 too large; 408 too slow; 400 no images, no form, or broken off; 503 no room for
            it now.
    """
    body = _Body(request, ticket, limits)
    try:
        check_size(body.declared, limits)
        uploads, found = await asyncio.wait_for(_read(request, body, limits), limits.seconds)
    except Refusal as refusal:
        if refusal.status == 413:
            await body.read_on()
        raise
    except asyncio.TimeoutError:
        raise Refusal(
            408,
            f"the request took longer than {limits.seconds:g} s to arrive; send it again, or less",
            {"Connection": "close"},
        ) from None
    if not any(upload.getbuffer().nbytes for upload in uploads):
        raise Refusal(400, "the request has no image; send one as its body, or several as a form")
    ticket.take_images(len(uploads))
    return uploads, found


def check_pixels(upload: Upload, most: int) -> None:
    """Raise ImageReadError, by the header, for what is no image or has more than `most` pixels."""
    with naming_errors(source_name(upload), upload):
        check_pixel_count(*Image.open(upload, formats=FORMATS).size, source_name(upload), most)
    upload.seek(0)


class _Body:
    """A request's body, counted while it arrives."""

    def __init__(self, request: Request, ticket: Ticket, limits: Limits):
        self._request, self._ticket, self._limits = request, ticket, limits
        declared = request.headers.get("content-length", "")
        self.declared, self._ended = int(declared) if declared.isdigit() else 0, False

    async def receive(self) -> Mapping[str, Any]:
        """The next message; Refusal if that is too much."""
        message = await self._next()
        self._ticket.take_bytes(len(message.get("body", b"")))
        return message

    async def read_on(self) -> None:
        """Forget the rest, within reason: who sends all of it first reads the answer then.

        Not if it is far too large, or if the client waits for leave to send it.
        """
        left = _READ_ON * self._limits.request_bytes
        if self.declared > left or "expect" in self._request.headers:
            return
        with contextlib.suppress(asyncio.TimeoutError):
            seconds = min(_READ_ON_SECONDS, self._limits.seconds)
            await asyncio.wait_for(self._forget(left), seconds)

    async def _forget(self, left: int) -> None:
        while left > 0 and not self._ended:
            left -= len((await self._next()).get("body", b""))

    async def _next(self) -> Mapping[str, Any]:
        message = await self._request.receive()
        self._ended = not message.get("more_body")
        return message


async def _read(
    request: Request, body: _Body, limits: Limits
) -> tuple[list[Upload], dict[str, list[str]]]:
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect
    from starlette.requests import Request as Counted

    counted = Counted(request.scope, body.receive)
    try:
        if not request.headers.get("content-type", "").startswith("multipart/form-data"):
            return [Upload(await counted.body(), "image")], {}
        async with counted.form(max_files=limits.images, max_fields=_MOST_FIELDS) as form:
            return await _parts(form)
    except HTTPException as error:
        raise Refusal(400, f"the form cannot be read: {error.detail}") from None
    except ClientDisconnect:
        raise Refusal(400, "the request broke off before its end") from None


async def _parts(form: Any) -> tuple[list[Upload], dict[str, list[str]]]:
    uploads: list[Upload] = []
    found: dict[str, list[str]] = {}
    for name, value in form.multi_items():
        if isinstance(value, str):
            found.setdefault(name, []).append(value)
        else:
            # without the folders a client may write, and not endless
            own = re.split(r"[/\\]", value.filename or "")[-1][:_LONGEST_NAME]
            uploads.append(Upload(await value.read(), own or "image"))
    return uploads, found
