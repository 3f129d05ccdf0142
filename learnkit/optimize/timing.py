"""Timing of networks for a batch, side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from learnkit.data.read_images import watched

BATCHES = (1, 16)
MIN_ROUNDS, MAX_ROUNDS = 3, 30
BLOCK = 3  # calls in a row that count
SETTLED = 0.02  # seconds of calls before them, in which threads of the run before come to rest
BUSY = 3.0  # times the median that the 95th percentile reaches only where others compute, too


class Times(NamedTuple):
    """Milliseconds per call: median and 95th percentile."""

    median: float
    p95: float


def measure(
    runs: Mapping[str, Callable[[np.ndarray], object]],
    images: np.ndarray,
    *,
    batches: Sequence[int] = BATCHES,
    seconds: float = 3.0,
    settled: float = SETTLED,
    clock: Callable[[], float] = time.perf_counter,
    progress: bool = False,
) -> dict[str, dict[int, Times]]:
    """The times of every run by name and batch size.

    The runs take turns, a few calls each. The first calls of a turn do not count.

    Args:
        runs: each takes uint8 images (N, H, W, C).
        images: what to run on, repeated to fill a batch.
        batches: batch sizes.
        seconds: about how long to go on at every batch size, for all runs together.
        settled: seconds after which calls of a turn count; the first one never does.
        clock: seconds that go by.
        progress: show a progress bar.
    """
    found: dict[str, dict[int, Times]] = {name: {} for name in runs}
    for batch in watched(batches, len(batches), progress, "time", unit="batch size"):
        given = images[np.arange(batch) % len(images)]
        calls = {name: partial(run, given) for name, run in runs.items()}
        for name, values in _turns(calls, seconds, settled, clock).items():
            median, p95 = np.quantile(values, (0.5, 0.95))
            found[name][batch] = Times(1000 * float(median), 1000 * float(p95))
    return found


def _turns(
    calls: Mapping[str, Callable[[], object]],
    seconds: float,
    settled: float,
    clock: Callable[[], float],
) -> dict[str, list[float]]:
    """Seconds of every call that counts."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()  # whatever is made at the first one
    end = clock() + seconds
    for done in range(MAX_ROUNDS):
        if done >= MIN_ROUNDS and clock() > end:
            break
        # in turns, so that whatever else the machine does meanwhile hits all runs alike
        for name, call in calls.items():
            begun = clock()
            call()  # uncounted: threads of the run before may still wait for work in a loop
            while clock() - begun < settled:
                call()
            for _ in range(BLOCK):
                started = clock()
                call()
                times[name].append(clock() - started)
    return times


def was_busy(found: Mapping[str, Mapping[int, Times]]) -> bool:
    """Whether times scatter so much that others must have used the machine, too."""
    return any(t.p95 > BUSY * t.median for times in found.values() for t in times.values())
