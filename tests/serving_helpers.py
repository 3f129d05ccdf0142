"""Requests for a served model: images as clients send them, good and bad."""

import io
import json
import struct
import zlib

from PIL import Image

TOKEN = "correct-horse-battery"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


def png(image):
    """An image as the bytes of a PNG file."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def bomb(width=60_000, height=60_000):
    """The bytes of a small PNG file that claims to have many pixels."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 100))


def form(*images, name="i.png"):
    return [("images", (name, image, "image/png")) for image in images]


PAGES = {"/", "/docs", "/openapi.json"}


def check_described(document, response):
    """Assert that an answer is one that the OpenAPI `document` describes, to the last entry."""
    from jsonschema import Draft202012Validator

    response.read()
    path, method = response.request.url.path, response.request.method.lower().replace("head", "get")
    if response.is_redirect or (path in PAGES and response.status_code == 200):
        return
    operation = document["paths"].get(path, {}).get(method)
    default = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}
    described = operation["responses"] if operation else {"default": default}
    answer = described.get(str(response.status_code), described["default"])
    kind = response.headers["content-type"].partition(";")[0]
    if kind == "text/plain" and not operation:
        return
    assert kind in answer["content"], f"{method} {path} {response.status_code} gives {kind}"
    assert response.headers["x-request-id"]
    if kind == "application/json" and response.request.method != "HEAD":
        schema = {**answer["content"][kind]["schema"], "components": document["components"]}
        Draft202012Validator(schema).validate(json.loads(response.content))
