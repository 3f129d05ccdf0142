"""Several processes at one address: started together, each restarted alone, and ended together."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import Any

from learnkit.errors import LearnkitError, ServingError, number_of

_TICK_SECONDS = 0.2
_SHARED = "PROMETHEUS_MULTIPROC_DIR"
_SPAWN = multiprocessing.get_context("spawn")  # threads of torch do not survive a fork

Say = Callable[[str], object]
# serves until it is told to stop: is given what it says, and what it calls when it is ready
Work = Callable[[Say, Callable[[], object]], None]


class Worker:
    """One process, and what it said of itself."""

    def __init__(self, number: int, work: Work):
        self.number, self.is_ready = number, False
        self._said, theirs = _SPAWN.Pipe(duplex=False)
        self.process = _SPAWN.Process(target=_run, args=(number, work, theirs), daemon=True)
        self.process.start()
        theirs.close()

    def listen(self) -> None:
        """Take note of what it said since.

        Raises:
            LearnkitError: it could not begin.
        """
        # `poll` is True at the end of a pipe, too, and `recv` raises there
        with contextlib.suppress(EOFError):
            while self._said.poll():
                said = self._said.recv()
                if isinstance(said, LearnkitError):
                    raise said
                self.is_ready = True

    def send(self, number: int) -> None:
        """Send it a signal."""
        if self.process.pid is not None and self.process.is_alive():
            os.kill(self.process.pid, number)

    def end(self, seconds: float) -> None:
        """Wait for its end, but not for ever."""
        self.process.join(seconds)
        self.process.kill()
        self.process.join()


def run_workers(
    n: int, work: Work, *, say: Say, when_ready: Callable[[], object], grace: float
) -> None:
    """Run `work` in `n` processes until SIGINT or SIGTERM.

    One that ends is started again; SIGHUP is handed on to all. What Prometheus is told is counted
    over all of them.

    Args:
        n: how many.
        work: can be pickled.
        say: is told in a line what becomes of them.
        when_ready: is called when all of them are.
        grace: seconds they have to end.

    Raises:
        LearnkitError: the first ones could not begin.
    """
    stop = threading.Event()
    workers: list[Worker] = []
    hang_up = lambda *_: [worker.send(signal.SIGHUP) for worker in workers]
    handlers = {signal.SIGINT: lambda *_: stop.set(), signal.SIGTERM: lambda *_: stop.set()}
    if hasattr(signal, "SIGHUP"):  # not on Windows
        handlers[signal.SIGHUP] = hang_up
    with _handled(handlers), _shared_counters():
        try:
            workers += [Worker(number, work) for number in range(1, n + 1)]
            while not stop.is_set() and not all(one.is_ready for one in workers):
                _look_after(workers, None, say)
                stop.wait(_TICK_SECONDS)
            if not stop.is_set():
                when_ready()
            while not stop.wait(_TICK_SECONDS):
                _look_after(workers, work, say)
        finally:
            with contextlib.suppress(OSError):
                say(f"stopping {number_of(len(workers), 'process')}")
            for worker in workers:
                # all are told before any is waited for: they end together, within one `grace`
                worker.send(signal.SIGTERM)
            for worker in workers:
                worker.end(grace)


def _look_after(workers: list[Worker], work: Work | None, say: Say) -> None:
    """Start those again that ended; without `work` that is an error."""
    for place, worker in enumerate(workers):
        try:
            # before it is asked whether it lives: its own error says more than an exit code
            worker.listen()
        except LearnkitError as error:
            if work is None:
                raise
            say(f"worker {worker.number} could not begin: {error}")
        if worker.process.is_alive():
            continue
        ended = f"worker {worker.number} ended with exit code {worker.process.exitcode}"
        if work is None:
            raise ServingError(f"{ended} before it was ready; run the server with one to see why")
        say(f"{ended} and is started again")
        workers[place] = Worker(worker.number, work)


def _run(number: int, work: Work, parent: Any) -> None:
    """What a process does; it ends when its parent does, however that ended."""
    threading.Thread(target=_follow_parent, daemon=True).start()
    say = lambda line: print(f"worker {number}: {line}", flush=True)  # noqa: T201  # as the parent
    try:
        work(say, lambda: parent.send(None))
    except LearnkitError as error:
        parent.send(error)


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        signal.raise_signal(signal.SIGTERM)


@contextlib.contextmanager
def _handled(handlers: dict[int, Any]) -> Iterator[None]:
    """Signals handled like this while the block runs."""
    former = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _shared_counters() -> Iterator[None]:
    """A folder in which the processes' metrics are counted together, unless there is one."""
    if _SHARED in os.environ:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="learnkit-metrics-") as folder:
        # prometheus_client looks once, when a child imports it: it stands here before they start
        os.environ[_SHARED] = folder
        try:
            yield
        finally:
            del os.environ[_SHARED]
