"""Leases: which browser an image is shown to, so that two people are not asked the same."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

SECONDS = 60.0


class Leases:
    """Images held by browsers, each for a minute from when it last asked.

    Args:
        clock: gives seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock, self._lock = clock, threading.Lock()
        self._held: dict[str, tuple[str, float]] = {}

    def take(self, image: str, owner: str) -> bool:
        """Hold an image for a minute; False if another holds it."""
        with self._lock:
            if self._other(image, owner):
                return False
            self._held[image] = owner, self._clock() + SECONDS
            return True

    def is_free(self, image: str, owner: str) -> bool:
        """Whether nobody but this owner holds an image."""
        with self._lock:
            return not self._other(image, owner)

    def of(self, owner: str) -> list[str]:
        """What an owner holds, in the order in which it was first taken."""
        with self._lock:
            now = self._clock()
            return [one for one, (who, end) in self._held.items() if who == owner and end > now]

    def held(self) -> list[str]:
        """What anybody holds, in the order in which it was first taken."""
        with self._lock:
            now = self._clock()
            return [one for one, (_, end) in self._held.items() if end > now]

    def drop(self, image: str) -> None:
        """Hold an image no longer."""
        with self._lock:
            self._held.pop(image, None)

    def _other(self, image: str, owner: str) -> bool:
        who, end = self._held.get(image, (owner, 0.0))
        return who != owner and end > self._clock()
