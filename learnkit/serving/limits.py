"""Limits of what a server takes on: beyond them it says so at once, and goes on serving."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields

from learnkit.errors import ServingError
from learnkit.serving.http_errors import Refusal

_RETRY_SECONDS = "1"
_MOST_CONNECTIONS = 1000  # below the 1,024 files that a process may commonly have open


@dataclass(frozen=True)
class Limits:
    """What one request may be, and what all that wait may be together.

    Attributes:
        request_bytes: of one request's body.
        images: in one request.
        pixels: of one image; the model's own limit counts, too.
        queue: images of all requests that wait or are at work, and requests being received.
        queue_bytes: of the bodies of all of them.
        batch: images in one forward pass, of as many requests as there are.
        seconds: for a client to send its request.

    Raises:
        ServingError: a limit is not above 0, or that of one request above that of all.
    """

    request_bytes: int = 32_000_000
    images: int = 64
    pixels: int = 50_000_000
    queue: int = 256
    queue_bytes: int = 256_000_000
    batch: int = 16
    seconds: float = 30.0

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self)):
            if not getattr(self, name) > 0:
                raise ServingError(f"`{name}` is {getattr(self, name)}; a limit is above 0")
        for one, all_ in (("images", "queue"), ("request_bytes", "queue_bytes")):
            if getattr(self, one) > getattr(self, all_):
                raise ServingError(
                    f"`{one}` is {getattr(self, one)} and `{all_}` {getattr(self, all_)}; one "
                    "request must fit into the queue, so raise the second or lower the first"
                )


class Gate:
    """Counts what has been let in and is not answered yet; used by one thread, the event loop's."""

    def __init__(self, limits: Limits):
        self.limits = limits
        self.n_requests = self.n_images = self.n_bytes = 0
        self.n_connections: Callable[[], int] = lambda: 0  # the server that runs the app knows

    @contextmanager
    def request(self) -> Iterator[Ticket]:
        """Let one more request in until the block ends.

        Raises:
            Refusal: 503, there are too many; nothing of it need be read then.
        """
        if self.is_full:
            raise self.busy()
        ticket = Ticket(self)
        self.n_requests += 1
        try:
            yield ticket
        finally:
            self.n_requests -= 1
            self.n_images -= ticket.n_images
            self.n_bytes -= ticket.n_bytes

    @property
    def is_full(self) -> bool:
        """Whether the next request is refused."""
        # a request that is still received has a place, too: its images are not counted yet
        return max(self.n_requests, self.n_images) >= self.limits.queue or self.is_crowded

    @property
    def is_crowded(self) -> bool:
        """Whether there are more open connections than the process has files for."""
        return self.n_connections() > _MOST_CONNECTIONS

    def crowded(self) -> Refusal:
        """The refusal of whatever comes while there are too many connections; it closes its own."""
        return Refusal(
            503,
            f"the server has more than {_MOST_CONNECTIONS:,} open connections; send the request "
            "again in a second, and several over one connection",
            {"Retry-After": _RETRY_SECONDS, "Connection": "close"},
        )

    def busy(self) -> Refusal:
        """The refusal of a request that there is no room for now."""
        return Refusal(
            503,
            f"the server is busy with {self.n_images} images; send the request again in a second",
            {"Retry-After": _RETRY_SECONDS},
        )


class Ticket:
    """What one request has taken up so far."""

    def __init__(self, gate: Gate):
        self._gate, self.n_images, self.n_bytes = gate, 0, 0

    def take_bytes(self, n: int) -> None:
        """Take up `n` more bytes.

        Raises:
            Refusal: 413, the request is too large; 503, there is no room for it now.
        """
        limits = self._gate.limits
        check_size(self.n_bytes + n, limits)
        if self._gate.n_bytes + n > limits.queue_bytes:
            raise self._gate.busy()
        # counted once it is let in: the gate gives back what the ticket has
        self.n_bytes += n
        self._gate.n_bytes += n

    def take_images(self, n: int) -> None:
        """Take up the places of `n` images.

        Raises:
            Refusal: 413, they are too many for one request; 503, there is no room for them now.
        """
        limits = self._gate.limits
        if n > limits.images:
            raise Refusal(
                413, f"the request has {n} images; {limits.images} are allowed, so send several"
            )
        if self._gate.n_images + n > limits.queue:
            raise self._gate.busy()
        self.n_images += n
        self._gate.n_images += n


def check_size(n_bytes: int, limits: Limits) -> None:
    """Raise Refusal 413 for a request body of `n_bytes` if that is too many."""
    if n_bytes > limits.request_bytes:
        raise Refusal(
            413,
            f"the request is larger than the {limits.request_bytes:,} bytes allowed; send fewer "
            "or smaller images at a time",
            {"Connection": "close"},  # what else the client sends is not read
        )
