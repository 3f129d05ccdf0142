import itertools
import math

import numpy as np
import pytest

from learnkit.optimize.timing import (
    BLOCK,
    MAX_ROUNDS,
    MIN_ROUNDS,
    Clocks,
    measure,
    waited_for_processor,
)

PIXELS = np.arange(3, dtype=np.uint8).reshape(3, 1, 1, 1)


class Clock(Clocks):
    """Time that goes by only in what runs, which has a processor for a share of it."""

    def __new__(cls, computing=1.0, waiting=0.0):
        now = lambda share: lambda: share * clock.now
        clock = super().__new__(cls, now(1.0), now(computing), now(waiting))
        clock.now = 0.0
        return clock

    def run(self, seconds, calls=None):
        def call(images):
            self.now += next(seconds)
            if calls is not None:
                calls.append(images)

        return call


def test_the_fastest_call_and_the_95th_percentile_are_told():
    clock = Clock()
    runs = {
        "steady": clock.run(itertools.repeat(0.002)),
        "rising": clock.run(itertools.count(0.0, 0.001)),
    }
    times = measure(runs, PIXELS, batches=(1,), seconds=0.0, settled=0.0, clocks=clock)
    assert times["steady"][1][:2] == pytest.approx((2.0, 2.0))
    # calls 1, 5, 9, ... begin a turn and do not count; call 0 warmed up
    counted = [turn * (BLOCK + 1) + 2 + i for turn in range(MIN_ROUNDS) for i in range(BLOCK)]
    assert times["rising"][1].best == pytest.approx(min(counted))
    assert times["rising"][1].p95 == pytest.approx(np.quantile(counted, 0.95))


def test_calls_count_when_those_before_them_have_gone_on_for_long_enough():
    clock, turns = Clock(), itertools.cycle([0.5, 0.5, 0.5, 0.25, 0.25, 0.25])
    run = {"slow at first": clock.run(itertools.chain([9.0], turns))}
    times = measure(run, PIXELS, batches=(1,), seconds=0.0, settled=1.5, clocks=clock)
    assert times["slow at first"][1] == (250.0, 250.0, "")


def test_runs_take_turns_on_whole_batches_of_the_images():
    clock, calls = Clock(), []
    runs = {"a": clock.run(itertools.repeat(1.0), calls), "b": clock.run(itertools.repeat(2.0))}
    times = measure(runs, PIXELS, batches=(1, 4), seconds=0.0, clocks=clock)
    assert {len(images) for images in calls} == {1, 4}
    assert calls[-1].flatten().tolist() == [0, 1, 2, 0]
    assert times["b"][4].best / times["a"][4].best == 2.0


def test_measuring_goes_on_for_the_time_given_and_no_longer_than_needed():
    clock, calls = Clock(), []
    run = {"a": clock.run(itertools.repeat(0.1), calls)}
    measure(run, PIXELS, batches=(1,), seconds=4.0, clocks=clock)
    assert 4.0 < clock.now < 5.0
    clock, calls = Clock(), []
    run = {"a": clock.run(itertools.repeat(1e-6), calls)}
    measure(run, PIXELS, batches=(1,), seconds=4.0, settled=0.0, clocks=clock)
    assert len(calls) == 1 + MAX_ROUNDS * (BLOCK + 1)


@pytest.mark.parametrize(
    ("seconds", "computing", "waiting", "sign"),
    [
        ([0.1], 1.0, 0.0, ""),
        ([0.1], 1.9, 0.1, ""),  # two threads
        ([0.1], 1.0, float("nan"), ""),  # where nobody counts who waits
        ([0.1, 0.1, 0.9, 0.1], 1.0, 0.0, "the slowest calls took 9 times the median"),
        ([0.1], 0.4, 0.0, "it had a processor 40% of the time"),
        ([0.1], 1.4, 0.6, "threads waited for one 60% of the time"),
        ([0.1], 0.4, float("nan"), "it had a processor 40% of the time"),
    ],
)
def test_times_are_disturbed_by_others_and_say_what_tells_so(seconds, computing, waiting, sign):
    clock = Clock(computing, waiting)
    run = {"a": clock.run(itertools.cycle(seconds))}
    (found,) = measure(run, PIXELS, batches=(1,), seconds=0.0, clocks=clock)["a"].values()
    assert found.disturbed == sign
    assert found.best == pytest.approx(100.0)  # what disturbs some calls leaves the fastest alone


def test_waiting_for_a_processor_is_counted_and_never_less_than_before():
    before = waited_for_processor()
    sum(range(100_000))
    assert math.isnan(before) or 0 <= before <= waited_for_processor()
