"""The queue of images to label: the order in which they are asked for, and who holds one.

The order is a function of arrays. An image is leased to a browser, so that two people are not asked
the same.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import numpy as np

VIEWS = ("unknown", "unsure", "all")
_SURE = 0.5  # lead of the likeliest class over the next from which on it is no question
_BLIND = 10  # every so many-th image is asked without what the model thinks
SECONDS = 60.0


def asking_order(
    names: Sequence[str],
    scores: np.ndarray,
    leads: np.ndarray,
    flagged: np.ndarray,
    skipped: np.ndarray,
    view: str = "unknown",
) -> np.ndarray:
    """Places (K,) of the images that are asked for, the first to ask first.

    Those put off come last, whatever they are. Ties go by name.

    Args:
        names: of N images.
        scores: OOD scores (N,); NaN where the model tells none, which comes first.
        leads: of the likeliest class over the next, (N,), in 0..1.
        flagged: which are out of distribution, bool (N,).
        skipped: which were put off, bool (N,).
        view: "unknown" asks for those flagged, the furthest out first; "unsure" also for those
            with a small lead, the smallest first; "all" for every image, those flagged first.

    >>> asking_order(["b", "a", "c"], np.array([2.0, 2, 9]), np.zeros(3), np.ones(3, bool),
    ...     np.array([False, False, True])).tolist()
    [1, 0, 2]
    """
    scores = np.where(np.isnan(scores), np.inf, scores)
    asked = flagged | skipped
    if view == "unsure":
        asked = asked | (leads < _SURE)
    elif view == "all":
        asked = np.ones(len(scores), bool)
    first = leads if view == "unsure" else -scores
    # the last key counts first; flagged ones lead where all are asked for
    keys = (-scores, first, skipped) if view == "unsure" else (first, ~flagged, skipped)
    # numpy takes ten times as long for strings, and these come in order or nearly so
    named = np.array(sorted(range(len(names)), key=names.__getitem__), np.intp)
    named = named[asked[named]]
    return named[np.lexsort([key[named] for key in keys])]


def is_blind(image_id: str) -> bool:
    """Whether an image, known by hexadecimal digits, is asked without what the model thinks."""
    # ids are HMACs: as good as drawn, and the same after a restart and in every browser
    return int(image_id[:8], 16) % _BLIND == 0


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
