import itertools

import numpy as np
import pytest

from learnkit.optimize.timing import (
    BLOCK,
    MAX_ROUNDS,
    MIN_ROUNDS,
    measure,
    was_busy,
)

PIXELS = np.arange(3, dtype=np.uint8).reshape(3, 1, 1, 1)


class Clock:
    """Time that goes by only in what runs."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def run(self, seconds, calls=None):
        def call(images):
            self.now += next(seconds)
            if calls is not None:
                calls.append(images)

        return call


def test_median_and_95th_percentile_are_those_of_the_calls():
    clock = Clock()
    runs = {
        "steady": clock.run(itertools.repeat(0.002)),
        "rising": clock.run(itertools.count(0.0, 0.001)),
    }
    times = measure(runs, PIXELS, batches=(1,), seconds=0.0, settled=0.0, clock=clock)
    assert times["steady"][1] == pytest.approx((2.0, 2.0))
    # calls 1, 5, 9, ... begin a turn and do not count; call 0 warmed up
    counted = [turn * (BLOCK + 1) + 2 + i for turn in range(MIN_ROUNDS) for i in range(BLOCK)]
    assert times["rising"][1].median == pytest.approx(sorted(counted)[len(counted) // 2])


def test_calls_count_when_those_before_them_have_gone_on_for_long_enough():
    clock, turns = Clock(), itertools.cycle([0.5, 0.5, 0.5, 0.25, 0.25, 0.25])
    run = {"slow at first": clock.run(itertools.chain([9.0], turns))}
    times = measure(run, PIXELS, batches=(1,), seconds=0.0, settled=1.5, clock=clock)
    assert times["slow at first"][1] == pytest.approx((250.0, 250.0))


def test_runs_take_turns_on_whole_batches_of_the_images():
    clock, calls = Clock(), []
    runs = {"a": clock.run(itertools.repeat(1.0), calls), "b": clock.run(itertools.repeat(2.0))}
    times = measure(runs, PIXELS, batches=(1, 4), seconds=0.0, clock=clock)
    assert {len(images) for images in calls} == {1, 4}
    assert calls[-1].flatten().tolist() == [0, 1, 2, 0]
    assert times["b"][4].median / times["a"][4].median == 2.0


def test_measuring_goes_on_for_the_time_given_and_no_longer_than_needed():
    clock, calls = Clock(), []
    run = {"a": clock.run(itertools.repeat(0.1), calls)}
    measure(run, PIXELS, batches=(1,), seconds=4.0, clock=clock)
    assert 4.0 < clock.now < 5.0
    clock, calls = Clock(), []
    run = {"a": clock.run(itertools.repeat(1e-6), calls)}
    measure(run, PIXELS, batches=(1,), seconds=4.0, settled=0.0, clock=clock)
    assert len(calls) == 1 + MAX_ROUNDS * (BLOCK + 1)


def test_times_that_scatter_tell_of_others_on_the_machine():
    clock = Clock()
    steady = {"a": clock.run(itertools.repeat(0.1))}
    jumpy = {"a": clock.run(itertools.cycle([0.1, 0.1, 0.9, 0.1]))}
    assert not was_busy(measure(steady, PIXELS, batches=(1,), seconds=0.0, clock=clock))
    assert was_busy(measure(jumpy, PIXELS, batches=(1,), seconds=0.0, clock=clock))
