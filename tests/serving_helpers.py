"""Requests for a served model: images as clients send them, good and bad."""

import io
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
