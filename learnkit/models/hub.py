"""Published weights: taken from a cache, fetched if the hub answers, else refused in one sentence.

The hub is asked once, with a time limit, before any download is tried.
"""

import http.client
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import huggingface_hub
import torch

from learnkit.errors import WeightsUnavailableError

SECONDS = 5.0
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")


def server_answers(url: str, seconds: float = SECONDS) -> bool:
    """True if the server of `url` answers anything within the time limit."""
    answered: list[bool] = []

    def ask() -> None:
        parts = urlsplit(url)
        request = urllib.request.Request(f"{parts.scheme}://{parts.netloc}/", method="HEAD")
        try:
            with urllib.request.urlopen(request, timeout=seconds):
                answered.append(True)
        except urllib.error.HTTPError:
            answered.append(True)  # a refusal is an answer too
        except (OSError, ValueError, http.client.HTTPException):
            answered.append(False)

    # a name server that does not respond blocks beyond the socket's own time limit
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return bool(answered and answered[0])


def cached_on_hub(repo: str, filename: str | None = None) -> Path | None:
    """Return the file of a hub repository's weights in the local cache, None if it is not there."""
    repo, _, revision = repo.partition("@")
    for name in (filename,) if filename else _HUB_FILES:
        found = huggingface_hub.try_to_load_from_cache(repo, name, revision=revision or None)
        # None, or an object of the client's where the hub is known to have no such file
        if isinstance(found, str):
            return Path(found)
    return None


def require_hub(label: str) -> None:
    """Raise WeightsUnavailableError unless the hub (or its mirror) answers."""
    endpoint = huggingface_hub.constants.ENDPOINT
    if huggingface_hub.constants.is_offline_mode():
        raise unavailable(label, "HF_HUB_OFFLINE is set")
    # left alone, the hub's client retries for three quarters of a minute before it gives up
    if not server_answers(endpoint):
        raise unavailable(label, f"{endpoint} does not answer")


def require_url(label: str, url: str) -> None:
    """Raise WeightsUnavailableError unless `url` is in torch's cache or its server answers."""
    # under this name torch.hub keeps what it fetched
    cached = Path(torch.hub.get_dir(), "checkpoints", os.path.basename(urlsplit(url).path))
    if not cached.is_file() and not server_answers(url):
        server = urlsplit(url)
        raise unavailable(label, f"{server.scheme}://{server.netloc} does not answer")


@contextmanager
def fetching(label: str) -> Iterator[None]:
    """Turn whatever a failed download raises inside into WeightsUnavailableError."""
    try:
        yield
    except WeightsUnavailableError:
        raise
    except (OSError, huggingface_hub.errors.EntryNotFoundError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise unavailable(label, first) from error


def unavailable(label: str, reason: Any) -> WeightsUnavailableError:
    """Return the error that names the ways out."""
    return WeightsUnavailableError(
        f"no pretrained weights for {label}: {reason}. Ways out: (1) a weights file,"
        ' `pretrained="file.safetensors"`; (2) a filled cache (HF_HOME, TORCH_HOME), a mirror'
        ' (HF_ENDPOINT) or a local copy of the hub\'s folder, `arch="local-dir:FOLDER"`;'
        " (3) random weights, `pretrained=False`"
    )
