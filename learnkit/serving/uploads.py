"""Images from a request's body, counted while they arrive. Names are labels, never paths."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import re
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote

from learnkit.data.image import check_pixel_count, naming_errors, open_picture, source_name
from learnkit.serving.http_errors import Refusal
from learnkit.serving.limits import Limits, Ticket, check_size

if TYPE_CHECKING:
    from starlette.requests import Request

_LONGEST_NAME = 200
_MOST_FIELDS = 100
_READ_ON = 4  # times the size allowed that is read, to be answered after it
_READ_ON_SECONDS = 5.0
_JSON_SIGNS = 16  # brackets, commas and colons for each image allowed; its own are six
_JSON_FIELDS: dict[str, tuple[type, ...]] = {
    "label": (str,),
    "group": (str,),
    "again": (bool,),
    "alpha": (float, int),
}
_DATA_URI = re.compile(r"^data:[^,]{0,100};base64,", re.IGNORECASE)
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_BROKEN_OFF = (
    "the form broke off: its last boundary is missing, and images with it; nothing was done, so "
    "send all of it again"
)


class Upload(io.BytesIO):
    """The bytes of an image a client sent; `name` is what the client calls it."""

    def __init__(self, data: bytes, name: str):
        super().__init__(data)
        self.name = name


async def read_uploads(
    request: Request, ticket: Ticket, limits: Limits
) -> tuple[list[Upload], dict[str, list[str]]]:
    """The images of a request and the text fields beside them.

    A form (`multipart/form-data`) has any number of images, whatever its fields are called, and so
    has JSON (`application/json`), see `json_uploads`; any other body is one image. Fields of the
    address count where a form or JSON has none of their name.

    Raises:
        Refusal: 413 too large; 408 too slow; 400 no images, no form, no JSON, or broken off; 422
            text that is no UTF-8, images that are no base64; 503 no room for it now.
    """
    in_address = _address_fields(request.scope.get("query_string", b""))
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
    return uploads, {**in_address, **found}


def check_pixels(upload: Upload, most: int) -> None:
    """Raise ImageReadError, by the header, for what is no image or has more than `most` pixels."""
    with naming_errors(source_name(upload), upload):
        check_pixel_count(*open_picture(upload).size, source_name(upload), most)
    # Pillow has read the header, and whoever decodes begins at the start
    upload.seek(0)


class _Body:
    """A request's body, counted while it arrives."""

    def __init__(self, request: Request, ticket: Ticket, limits: Limits):
        self._request, self._ticket, self._limits = request, ticket, limits
        declared = request.headers.get("content-length", "")
        self.declared, self._ended = int(declared) if declared.isdecimal() else 0, False
        self._n_bytes = 0

    async def receive(self) -> Mapping[str, Any]:
        """The next message; Refusal if that is too much, or the last one and not all there is."""
        message = await self._next()
        n_bytes = len(message.get("body", b""))
        self._ticket.take_bytes(n_bytes)
        self._n_bytes += n_bytes
        whole = message["type"] == "http.request" and self._ended
        if whole and self.declared and self._n_bytes != self.declared:
            raise Refusal(
                400,
                f"the request has {self._n_bytes:,} bytes and its Content-Length says "
                f"{self.declared:,}; send all of it again",
            )
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
    from python_multipart.exceptions import FormParserError
    from python_multipart.multipart import parse_options_header
    from starlette.datastructures import Headers
    from starlette.formparsers import MultiPartException, MultiPartParser
    from starlette.requests import ClientDisconnect
    from starlette.requests import Request as Counted

    class Parser(MultiPartParser):
        """Starlette's parser, which takes what has arrived for all there is, but for `whole`."""

        ended = False

        def on_end(self) -> None:
            self.ended = True

        async def whole(self, stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
            async for chunk in stream:
                yield chunk
            if not self.ended:  # raised while it parses, so that it closes its files
                raise Refusal(400, _BROKEN_OFF)

    counted = Counted(request.scope, body.receive)
    kind = request.headers.get("content-type", "")
    is_form = kind.lower().startswith("multipart/form-data")
    try:
        if kind.partition(";")[0].strip().lower() == "application/json":
            return json_uploads(await counted.body(), limits.images)
        if not is_form:
            return [Upload(await counted.body(), "image")], {}
        charset = parse_options_header(kind)[1].get(b"charset", b"utf-8").decode("latin-1")
        # Starlette's decoding never fails, and as Latin-1, the last one counts, it keeps all bytes.
        headers = Headers({"content-type": f"{kind}; charset=latin-1"})
        most = {"max_files": limits.images, "max_fields": _MOST_FIELDS}
        parser = Parser(headers, counted.stream(), **most)
        parser.stream = parser.whole(parser.stream)
        form = await parser.parse()
        try:
            return await _parts(form, charset)
        finally:
            await form.close()
    except (MultiPartException, FormParserError) as error:
        raise Refusal(400, f"the form cannot be read: {error}") from None
    except ClientDisconnect:
        raise Refusal(400, "the request broke off before its end") from None


async def _parts(form: Any, charset: str) -> tuple[list[Upload], dict[str, list[str]]]:
    uploads: list[Upload] = []
    found: dict[str, list[str]] = {}
    for field, value in form.multi_items():
        if isinstance(value, str):
            _add_text(found, field, value, charset)
        else:
            called = (value.filename or "").encode("latin-1").decode("utf-8", "replace")
            uploads.append(Upload(await value.read(), _own_name(called)))
    return uploads, found


def _own_name(called: str) -> str:
    """A name without the folders a client may write, and not endless; only shown, never refused."""
    return re.split(r"[/\\]", called)[-1][:_LONGEST_NAME] or "image"


def json_uploads(data: bytes, most: int) -> tuple[list[Upload], dict[str, list[str]]]:
    """The images and text fields of a JSON object, at most `most` images.

    `images` is a list of base64 strings, or of `{"name": "a.png", "data": "..."}`; a string may
    be a data URI. `label` and `group` are a string or a list of them, `again` true or false,
    `alpha` a number.

    Raises:
        Refusal: 400 no such object; 413 too many images; 422 an image that is no base64, or texts
            that are none.

    >>> uploads, fields = json_uploads(b'{"images": ["QUJD"], "label": "ok", "again": true}', 9)
    >>> uploads[0].getvalue(), fields
    (b'ABC', {'label': ['ok'], 'again': ['true']})
    """
    # a list of a byte for each `[]` would take thirty times the memory that limits speak of
    if sum(map(data.count, (b"[", b"{", b",", b":"))) > _JSON_SIGNS * (most + 1):
        raise Refusal(413, f"the JSON has too many parts; {most} images are allowed, so send fewer")
    try:
        content = json.loads(data)
    # RecursionError of thousands of brackets within each other
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"the body is no JSON ({str(error)[:80]}); send one object") from None
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list):
        raise Refusal(400, 'the JSON has no list `images`; send {"images": ["BASE64", ...]}')
    if len(images) > most:
        raise Refusal(413, f"the request has {len(images)} images; {most} are allowed")
    uploads = [_json_image(number, image) for number, image in enumerate(images, 1)]
    found = {name: _json_texts(name, content[name]) for name in _JSON_FIELDS if name in content}
    return uploads, found


def _json_image(number: int, image: Any) -> Upload:
    given = image if isinstance(image, dict) else {"data": image}
    data, name = given.get("data"), given.get("name", "")
    if isinstance(data, str) and isinstance(name, str):
        with contextlib.suppress(ValueError):  # binascii's own is one; so is what is no ASCII
            encoded = _DATA_URI.sub("", data, count=1)
            # without `validate` signs that are no base64 are left out, and the rest is decoded
            return Upload(base64.b64decode(encoded, validate=True), _own_name(name))
    raise Refusal(
        422,
        f"image {number} of the JSON is no base64; send the file's bytes in base64 without line "
        "breaks, as `base64 -w0 FILE` writes them",
    )


def _json_texts(name: str, value: Any) -> list[str]:
    """A field as a form would send it."""
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(one, _JSON_FIELDS[name]) for one in values):
        raise Refusal(422, f"`{name}` of the JSON is {str(value)[:20]!a}; see /openapi.json")
    texts = [one if isinstance(one, str) else json.dumps(one) for one in values]
    if any(_LONE_SURROGATE.search(text) for text in texts):
        raise Refusal(422, f"`{name}` of the JSON has half a surrogate pair; send whole characters")
    return texts


def _address_fields(query: bytes) -> dict[str, list[str]]:
    """The fields of an address, as texts by name.

    >>> _address_fields(b"label=a+b&label=%C3%BC&other=")
    {'label': ['a b', 'ü'], 'other': ['']}
    """
    found: dict[str, list[str]] = {}
    # bytes that a client left as they are become %XX first; as Latin-1 all of them are kept
    for field, value in parse_qsl(quote(query, safe="%&=+"), True, encoding="latin-1"):
        _add_text(found, field, value, "utf-8")
    return found


def _add_text(found: dict[str, list[str]], field: str, value: str, charset: str) -> None:
    """Add what was read as Latin-1 in its true `charset`; Refusal 422 if that is impossible."""
    try:
        name, text = (one.encode("latin-1").decode(charset) for one in (field, value))
    except (UnicodeDecodeError, LookupError) as error:
        raise Refusal(
            422,
            f"the field {field[:20]!a} is no text in {charset[:20]!a} ({error}); send texts in "
            "UTF-8, and images with a file name",
        ) from None
    found.setdefault(name, []).append(text)
