"""Many images are read ahead of their use, in order, and all that fail are named."""

import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from learnkit.data.read_images import load_ahead, read_images
from learnkit.errors import ImageReadError, UnreadableImagesError


def test_decoding_runs_ahead_but_never_by_more_than_asked():
    lock, started, taken, worst = threading.Lock(), [], [], []

    def load(i):
        with lock:
            started.append(i)
            worst.append(len(started) - len(taken))
        return torch.tensor(i)

    for item, value in load_ahead(load, iter(range(50)), n_ahead=6, n_workers=3):
        taken.append(item)
        assert item == value
    assert taken == list(range(50))
    assert max(worst) <= 6


def test_a_broken_off_stream_stops_decoding():
    loaded, before = [], set(threading.enumerate())

    def load(i):
        time.sleep(0.002)
        loaded.append(i)

    stream = load_ahead(load, range(1000), n_ahead=200, n_workers=2)
    next(stream)
    stream.close()
    assert len(loaded) < 200
    own = set(threading.enumerate()) - before
    assert not [t for t in own if t.name.startswith("learnkit-decode")]


_STALLED = """
import signal, sys, threading, time
from learnkit.data.read_images import load_ahead
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have set it aside
def load(item):
    print("reading", flush=True)
    if sys.argv[1:]:  # the signal comes to this thread while the main one waits already
        time.sleep(0.3)
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)
    threading.Event().wait()
list(load_ahead(load, range(9), n_ahead=4, n_workers=2))
"""


def test_ctrl_c_ends_a_pass_whose_reads_never_return():
    command = [sys.executable, "-c", _STALLED]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        try:
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert b"KeyboardInterrupt" in errors


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="signals go to the process alone")
def test_ctrl_c_ends_a_pass_that_waits_when_another_thread_gets_the_signal():
    command = [sys.executable, "-c", _STALLED, "to the worker"]
    ended = subprocess.run(command, capture_output=True, timeout=60)
    assert b"KeyboardInterrupt" in ended.stderr


def unless_odd(i):
    if i % 2:
        raise ImageReadError(f"{i} is odd")
    return 10 * i


@pytest.mark.parametrize("n_workers", [0, 3])
def test_images_come_in_order(n_workers):
    found = read_images(unless_odd, range(0, 100, 2), n_ahead=4, n_workers=n_workers)
    assert list(found) == list(range(0, 1000, 20))


@pytest.mark.parametrize("n_workers", [0, 3])
def test_after_a_failure_nothing_more_is_given_and_every_failure_is_named(n_workers):
    found = read_images(unless_odd, [0, 2, 3, 4, 5, 6], n_ahead=2, n_workers=n_workers)
    assert [next(found), next(found)] == [0, 20]
    with pytest.raises(UnreadableImagesError, match="2 of 6 images cannot be read") as caught:
        next(found)
    assert caught.value.failures == {"image 2": "3 is odd", "image 4": "5 is odd"}


def test_other_errors_are_raised_as_they_come():
    with pytest.raises(ZeroDivisionError):
        list(read_images(lambda i: 1 // i, [1, 0, 2], n_ahead=2))


def test_no_images_are_no_failure():
    assert list(read_images(unless_odd, [], n_ahead=2, progress=True)) == []
