"""Timing of networks for a batch, side by side."""

from __future__ import annotations

import contextlib
import glob
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from learnkit.report.progress import watched

BATCHES = (1, 16)
MIN_ROUNDS, MAX_ROUNDS = 3, 30
BLOCK = 3  # calls in a row that count
SETTLED = 0.02  # seconds of calls before them, in which threads of the run before come to rest
SCATTER = 3.0  # times the median that the 95th percentile reaches only where others compute, too
COMPUTING = 0.8  # share of its time that a call at least has a processor where it need not wait
WAITING = 0.2  # share of its time that its threads together wait for one there at most


class Times(NamedTuple):
    """Milliseconds per call: the fastest, which others on the machine disturb least, and p95.

    `disturbed` says what tells that others used the machine meanwhile; empty if nothing does.
    """

    best: float
    p95: float
    disturbed: str = ""


class Clocks(NamedTuple):
    """Seconds gone by, of processors used, and waited for one; the last NaN where nobody counts."""

    wall: Callable[[], float] = time.perf_counter
    computing: Callable[[], float] = time.process_time
    waiting: Callable[[], float] = lambda: waited_for_processor()


def measure(
    runs: Mapping[str, Callable[[np.ndarray], object]],
    images: np.ndarray,
    *,
    batches: Sequence[int] = BATCHES,
    seconds: float = 3.0,
    settled: float = SETTLED,
    clocks: Clocks = Clocks(),  # noqa: B008  # it is a tuple
    progress: bool = False,
) -> dict[str, dict[int, Times]]:
    """The times of every run by name and batch size.

    The runs take turns, a few calls each. The first calls of a turn do not count. Of the others the
    fastest is what the machine can do; whether others held up the rest is noted.

    Args:
        runs: each takes uint8 images (N, H, W, C).
        images: what to run on, repeated to fill a batch.
        batches: batch sizes.
        seconds: about how long to go on at every batch size, for all runs together.
        settled: seconds after which calls of a turn count; the first one never does.
        clocks: seconds that go by, and what this process has of the processors meanwhile.
        progress: show a progress bar.
    """
    found: dict[str, dict[int, Times]] = {name: {} for name in runs}
    for batch in watched(batches, len(batches), progress, "time", "batch sizes"):
        given = images[np.arange(batch) % len(images)]
        calls = {name: partial(run, given) for name, run in runs.items()}
        for name, spent in _turns(calls, seconds, settled, clocks).items():
            found[name][batch] = spent.times()
    return found


def waited_for_processor() -> float:
    """Seconds that threads of this process were ready to run and had no processor; NaN if unknown.

    Linux alone counts them.
    """
    nanoseconds = []
    for file in glob.glob("/proc/self/task/*/schedstat"):
        with contextlib.suppress(OSError):  # the thread has just ended
            # time on a processor, time waiting for one, and number of time slices
            nanoseconds.append(int(Path(file).read_text().split()[1]))
    return sum(nanoseconds) / 1e9 if nanoseconds else math.nan


@dataclass
class _Spent:
    """Seconds of every call that counts, and by each clock of all of them together."""

    calls: list[float] = field(default_factory=list)
    clocks: list[tuple[float, ...]] = field(default_factory=list)

    def times(self) -> Times:
        median, p95 = np.quantile(self.calls, (0.5, 0.95))
        wall, computing, waiting = np.sum(self.clocks, axis=0)
        # NaN, where nobody counts waiting, is above no limit
        signs = {
            f"the slowest calls took {p95 / median:.0f} times the median": p95 > SCATTER * median,
            f"it had a processor {computing / wall:.0%} of the time": computing < COMPUTING * wall,
            f"threads waited for one {waiting / wall:.0%} of the time": waiting > WAITING * wall,
        }
        disturbed = ", ".join(sign for sign, shows in signs.items() if shows)
        return Times(1000 * min(self.calls), 1000 * float(p95), disturbed)


def _turns(
    calls: Mapping[str, Callable[[], object]], seconds: float, settled: float, clocks: Clocks
) -> dict[str, _Spent]:
    """What every run spent in the calls that count."""
    clock, spent = clocks.wall, {name: _Spent() for name in calls}
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
            before = [now() for now in clocks]
            for _ in range(BLOCK):
                started = clock()
                call()
                spent[name].calls.append(clock() - started)
            gone = (now() - then for now, then in zip(clocks, before, strict=True))
            spent[name].clocks.append(tuple(gone))
    return spent
