"""Progress of a long pass on standard error: a live bar on a terminal or in a notebook, else lines.

A log gets a line after two seconds and every ten from then on. What is over sooner shows nothing.
So does a pass whose consumer is gone: the traceback of its error can hold it for as long as a
notebook lives.
"""

from __future__ import annotations

import contextvars
import inspect
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from importlib.util import find_spec
from operator import length_hint
from types import CodeType
from typing import Any, Protocol

from learnkit.report.document import Bar, BarRow, Bars, Document
from learnkit.report.notebook import Shown

_WIDEST_BAR, _NARROWEST_BAR = 40, 5
_now = time.monotonic
# Frames that are on no stack while they wait, though whoever consumes goes on.
_WAIT = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
_line = threading.RLock()  # held while a bar is drawn, or another pass gets its line
_live: list[Progress] = []  # the one that is shown, if any is


def watched(
    stream: Iterable[Any],
    n: int | None,
    progress: bool,
    what: str = "predict",
    unit: str = "images",
    n_before: int = 0,
) -> Iterable[Any]:
    """`stream`, of `n` items with `n_before` that are done, counted as they pass if wanted.

    Without `n` it is as long as it says, if it does.
    """
    n = n if n is not None else length_hint(stream) or None
    return _counting(stream, Progress(what, n, unit, n_before)) if progress and n != 0 else stream


def _closed_streams_ignored() -> AbstractContextManager[None]:
    """Where standard error is closed, or its reader gone, nobody is there to see anything."""
    return suppress(OSError, ValueError)


def _counting(stream: Iterable[Any], progress: Progress) -> Iterator[Any]:
    with progress:
        progress.consumer = _caller()
        for item in stream:
            yield item
            progress.consumer = _caller()
            progress.advance()


# Not the frame itself, which would hold all that is in it.
def _caller() -> tuple[int, CodeType]:
    """Who called the generator that asks: the next frame that is no generator's."""
    frame = sys._getframe(1)
    while frame.f_code.co_flags & _WAIT and frame.f_back:
        frame = frame.f_back
    return id(frame), frame.f_code


def _on_a_stack(wanted: tuple[int, CodeType]) -> bool:
    """Whether a thread runs in this frame."""
    for frame in sys._current_frames().values():
        while frame:
            if (id(frame), frame.f_code) == wanted:
                return True
            frame = frame.f_back
    return False


@contextmanager
def counted(
    what: str, n: int | None, progress: bool, unit: str = "images"
) -> Iterator[Callable[[int], object]]:
    """Something to call with how many more are done, which moves a bar if wanted.

    Args:
        what: what is done.
        n: how many there are; None if nobody knows.
        progress: show it.
        unit: what is counted.
    """
    if not progress:
        yield lambda _: None
        return
    with Progress(what, n, unit) as shown:
        yield shown.advance


def clear_line() -> None:
    """Take the bar off its line of the terminal, for something else to be written there."""
    for one in [*_live]:
        one.lift()


class Progress(Shown):
    """What is done of a pass, shown while the pass goes on; of several at once the first is.

    Args:
        what: what is done, such as "predict".
        n: how many there are; None if nobody knows.
        unit: what is counted, such as "images".
        n_before: how many were done before.
    """

    def __init__(self, what: str, n: int | None, unit: str, n_before: int = 0):
        self.what, self.n, self.unit, self.n_before = what, n, unit, n_before
        self.n_done, self._start = n_before, _now()
        self._last = self._start
        self.consumer: tuple[int, CodeType] | None = None
        self._view: _View | None = None
        self._ended = threading.Event()
        self._beat: threading.Thread | None = None

    def __enter__(self) -> Progress:
        # Views of a notebook belong to the cell whose context they have. A daemon, for a process
        # that ends in the middle of a pass must not wait for it.
        run = contextvars.copy_context().run
        named = {"name": "learnkit-progress", "daemon": True}
        self._beat = threading.Thread(target=run, args=(self._go_on,), **named)
        self._beat.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        # The collector may end it from any thread, its own included.
        if self._beat not in (None, threading.current_thread()):
            self._beat.join()
        with _line:
            self._leave()

    def advance(self, n: int = 1) -> None:
        """Count `n` more."""
        self.n_done += n
        self._last = _now()

    def show(self) -> None:
        """Show what is done now, unless another pass is shown or nobody consumes this one."""
        # Never waiting: who draws may collect this pass, and waits for this thread then.
        if not _line.acquire(blocking=False):
            return
        try:
            for one in [*_live]:
                if not one._is_consumed():
                    one._leave()
            if self._is_consumed() and _live in ([], [self]):
                _live[:] = [self]
                self._view = self._view or _kind()()
                self._view.draw(self)
        finally:
            _line.release()

    def lift(self) -> None:
        """Take the bar away until it is shown again."""
        if self._view is not None:
            with _closed_streams_ignored():
                self._view.clear()

    def _leave(self) -> None:
        """Leave the line to others, if it is this one's."""
        if self in _live:
            _live.remove(self)
            self.lift()

    def _is_consumed(self) -> bool:
        return self.consumer is None or _on_a_stack(self.consumer)

    def _go_on(self) -> None:
        with _closed_streams_ignored():
            kind = _kind()
            wait = kind.first
            while not self._ended.wait(wait):
                self.show()
                wait = kind.interval

    def __str__(self) -> str:
        seconds = _now() - self._start
        count = f"{self.n_done} {self.unit}"
        if self.n is not None:
            count = f"{self.n_done} of {self.n} {self.unit}"
        n_own = self.n_done - self.n_before
        if self.n is None or not n_own:
            return f"{self.what}: {count}, {duration(seconds)} so far"
        n_left = max(self.n - self.n_done, 0)
        # Many are done at once, in batches: counted down from the last of them, until it is late.
        left = (self._last - self._start) / n_own * n_left - (_now() - self._last)
        left = left if left > 0 else seconds / n_own * n_left
        return f"{self.what}: {count}, {duration(left)} left"

    __repr__ = __str__

    def document(self) -> Document:
        """A bar, and what `str` says."""
        share = self.n_done / self.n if self.n else 0.0
        return Document([Bars([BarRow(self.what, [Bar(share, str(self))])], top=1.0)])


def duration(seconds: float) -> str:
    """A length of time in its two largest units.

    >>> duration(9.6), duration(80), duration(3600), duration(93_000)
    ('10 s', '1 min 20 s', '1 h 0 min', '25 h 50 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


class _View(Protocol):
    """Where progress is shown; the seconds until it first is, and between two times."""

    first: float
    interval: float

    def draw(self, progress: Progress) -> None:
        """Show it as it is now."""

    def clear(self) -> None:
        """Make room for something else."""


class _Lines:
    """A line each time, for a pipe or a file; none without standard error, as under pythonw."""

    first, interval = 2.0, 10.0

    def draw(self, progress: Progress) -> None:
        if sys.stderr is not None:
            sys.stderr.write(f"{progress}\n")
            sys.stderr.flush()

    def clear(self) -> None:
        """Leave what is written."""


class _Terminal:
    """One line that changes; the cursor waits at its start, so that others write over it."""

    first, interval = 0.5, 0.2

    def __init__(self) -> None:
        from rich.console import Console
        from rich.control import Control
        from rich.segment import ControlType

        # `_kind` has asked already; rich's own answer depends on the environment, too
        self._console = Console(stderr=True, force_terminal=True)
        self._erase = Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2))
        # A prompt may stand in the line of a pass that failed.
        self._erase_rest = Control((ControlType.ERASE_IN_LINE, 0))

    def draw(self, progress: Progress) -> None:
        from rich.progress_bar import ProgressBar
        from rich.segment import Segment, Segments
        from rich.text import Text

        room = self._console.width - 1  # a full line would break
        line = Text(str(progress), no_wrap=True, overflow="ellipsis", end="\r")
        width, parts = min(room - line.cell_len - 1, _WIDEST_BAR), [self._erase.segment]
        if width >= _NARROWEST_BAR:
            bar = ProgressBar(progress.n, progress.n_done, width)
            parts += [*self._console.render(bar), Segment(" ")]
        parts += self._console.render(line, self._console.options.update(width=room))
        self._console.print(Segments(parts))

    def clear(self) -> None:
        self._console.control(self._erase_rest)


class _Notebook:
    """One output that changes, and is empty in the end."""

    first, interval = 2.0, 1.0

    def __init__(self) -> None:
        self._output: Any = None

    def draw(self, progress: Progress) -> None:
        from IPython.display import display

        if self._output is None:
            # without an id IPython returns no handle to update it by
            self._output = display(progress, display_id=True)
        else:
            self._output.update(progress)

    def clear(self) -> None:
        if self._output is not None:
            self._output.update(_Nothing())


class _Nothing(Shown):
    """What a bar leaves behind."""

    def __repr__(self) -> str:
        return ""

    def document(self) -> Document:
        """No blocks."""
        return Document([])


def _kind() -> type[_Lines] | type[_Terminal] | type[_Notebook]:
    """How progress can be shown here; rich is not part of what serving needs."""
    # not imported for this: where there is a notebook, IPython is loaded
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    # IPython's shell in a terminal has none
    if hasattr(shell, "kernel"):
        return _Notebook
    live = sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    return _Terminal if live and find_spec("rich") else _Lines
