"""Images from a request's body, counted while they arrive. Names are labels, never paths."""

from __future__ import annotations

import asyncio
import io
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from PIL import Image

from learnkit.data.image import FORMATS, naming_errors, source_name
from learnkit.data.pixels import check_pixel_count
from learnkit.serving.limits import Limits, Ticket, check_size
from learnkit.serving.refusals import Refusal

if TYPE_CHECKING:
    from starlette.requests import Request

_LONGEST_NAME = 200
_MOST_FIELDS = 100


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
        Refusal: 413 too large, said before it is read where the client declares its size; 408 too
            slow; 400 no images, no form, or broken off; 503 no room for it now.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdigit():
        check_size(int(declared), limits)
    try:
        uploads, found = await asyncio.wait_for(_read(request, ticket, limits), limits.seconds)
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


def plain_name(name: str | None) -> str:
    """What a client calls an image, without folders and not endless.

    >>> plain_name("../../etc/passwd"), plain_name(None)
    ('passwd', 'image')
    """
    return re.split(r"[/\\]", name or "")[-1][:_LONGEST_NAME] or "image"


async def _read(
    request: Request, ticket: Ticket, limits: Limits
) -> tuple[list[Upload], dict[str, list[str]]]:
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect
    from starlette.requests import Request as Counted

    async def receive() -> Mapping[str, Any]:
        message = await request.receive()
        ticket.take_bytes(len(message.get("body", b"")))
        return message

    counted = Counted(request.scope, receive)
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
            uploads.append(Upload(await value.read(), plain_name(value.filename)))
    return uploads, found
