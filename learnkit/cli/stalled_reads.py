"""Ctrl-C while a disk does not answer: the end of a process whose main thread waits in a read."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_TICK = 0.5  # seconds between two looks
_PATIENCE = 5.0  # seconds for a disk that is slow, and answers


@contextmanager
def ended_by_ctrl_c(say: Callable[[str], object]) -> Iterator[None]:
    """Within, Ctrl-C ends the process with exit code 130 although a read never returns.

    The system tells a thread that waits for a disk of no signal but SIGKILL, and a network share
    that is gone lets it wait for ever; a training reads its images in the main thread. Whatever
    the command has written by then is whole: it is what a kill leaves.

    Args:
        say: is given the sentence before the end.
    """
    if not hasattr(signal, "sigpending"):  # Windows, where reads can be cancelled
        yield
        return
    done = threading.Event()
    watch = threading.Thread(target=_watch, args=(done, say), name="learnkit-ctrl-c", daemon=True)
    watch.start()
    try:
        yield
    finally:
        done.set()


def _watch(done: threading.Event, say: Callable[[str], object]) -> None:
    """End the process where a SIGINT is taken by nobody, and the main thread does not move."""
    # `sigpending` tells of signals that its thread blocks, and only of those that wait
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    while not done.wait(_TICK):
        if signal.SIGINT not in signal.sigpending():
            continue
        before = _step()
        if not done.wait(_PATIENCE) and _step() == before:
            say("interrupted; a file is left that the disk or network does not answer for")
            os._exit(130)  # a wait for a disk ends with its process, and by nothing else


def _step() -> tuple[FrameType | None, int]:
    """Where the main thread is: its frame, and the instruction in it."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    return frame, -1 if frame is None else frame.f_lasti
