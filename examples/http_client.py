"""Ask a server of learnkit what is on images, and act on what it answers; needs Python alone.

    learnkit serve MODEL
    python examples/http_client.py http://127.0.0.1:8000 a.jpg b.jpg
    LEARNKIT_PREDICT_TOKEN=... python examples/http_client.py https://parts.example shots/*.jpg

Prints a line for each image, its name and what was decided: a class, UNKNOWN, or ERROR and why.
Ends with 0 if each has a class, 1 if not, 2 if the server could not be asked.
"""

import base64
import json
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

AT_ONCE = 16
ATTEMPTS = 5
LATER = {429, 502, 503, 504}  # busy, or not there for a moment; every other error stays one


class ServerError(Exception):
    """The server gave no predictions, and a further attempt would give none either."""


def ask(address: str, images: Sequence[Path], token: str | None = None) -> list[dict]:
    """The server's entry for each image: `decision` and more, or `error`."""
    body = json.dumps({"images": [_encoded(path) for path in images]}).encode()
    headers = {"Content-Type": "application/json"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    request = urllib.request.Request(f"{address.rstrip('/')}/predict", body, headers)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)["predictions"]
        except urllib.error.HTTPError as error:
            told = _told(error)
            if error.code == 422 and "predictions" in told:
                return told["predictions"]  # none of them is an image
            if error.code not in LATER or attempt == ATTEMPTS:
                sentence = f"{error.code}: {told.get('error', error.reason)}"
                raise ServerError(f"{sentence} (request {told.get('request_id')})") from error
            wait = float(error.headers.get("Retry-After", attempt))
        except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
            if attempt == ATTEMPTS:
                raise ServerError(f"{address} cannot be reached: {error}") from error
            wait = attempt
        time.sleep(wait)
    raise AssertionError


def main(arguments: Sequence[str]) -> int:
    """Ask for all images and print; see the top of this file."""
    if len(arguments) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    address, *names = arguments
    token, worst = os.environ.get("LEARNKIT_PREDICT_TOKEN"), 0
    for part in _parts([Path(name) for name in names]):
        try:
            entries = ask(address, part, token)
        except (ServerError, OSError) as error:
            print(error, file=sys.stderr)
            return 2
        for path, entry in zip(part, entries, strict=True):
            decision = entry.get("decision", f"ERROR {entry.get('error')}")
            print(f"{path}\t{decision}")
            worst = max(worst, int("error" in entry or entry["decision"] == "UNKNOWN"))
    return worst


def _encoded(path: Path) -> dict[str, str]:
    return {"name": path.name, "data": base64.b64encode(path.read_bytes()).decode()}


def _told(error: urllib.error.HTTPError) -> dict:
    """What the answer to an error says, if it is the server's and not of a proxy before it."""
    try:
        told = json.loads(error.read())
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


def _parts(images: list[Path]) -> Iterator[list[Path]]:
    for start in range(0, len(images), AT_ONCE):
        yield images[start : start + AT_ONCE]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
