"""Progress of a pass: what is said, when, where, and what is left of it."""

import asyncio
import io
import re
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from rich.cells import cell_len

from learnkit.report import progress
from learnkit.report.progress import Progress, clear_line, counted, watched


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


class Clock:
    """Seconds that go by when somebody waits: `speed` things are done in each, until `end`."""

    def __init__(self, shown, speed, end):
        self.seconds, self.shown, self.speed, self.end = 0.0, shown, speed, end
        self.waited = []

    def wait(self, seconds):
        self.waited.append(seconds)
        self.seconds += seconds
        n_now = self.shown.n_before + int(self.speed * self.seconds)
        if n_now > self.shown.n_done:
            self.shown.advance(n_now - self.shown.n_done)
        return self.seconds > self.end

    def set(self):
        """Nobody waits any more."""


# Set in the test itself: pytest changes the streams between fixtures and test.
def piped(monkeypatch):
    """Standard error, no terminal."""
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    return sys.stderr


def terminal(monkeypatch, columns=80):
    """Standard error, a terminal."""
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    return sys.stderr


def run(monkeypatch, shown, *, speed, end):
    """Let a pass go on by a clock of its own; the clock."""
    clock = Clock(shown, speed, end)
    monkeypatch.setattr(progress, "_now", lambda: clock.seconds)
    shown._start, shown._last, shown._ended = 0.0, 0.0, clock
    shown._go_on()
    shown.__exit__()
    return clock


def test_a_pipe_gets_a_line_after_two_seconds_and_every_ten_with_the_time_left(monkeypatch):
    stream = piped(monkeypatch)
    clock = run(monkeypatch, Progress("predict", 400, "images"), speed=4, end=35)
    assert clock.waited == [2, 10, 10, 10, 10]
    assert stream.getvalue().splitlines() == [
        "predict: 8 of 400 images, 1 min 38 s left",
        "predict: 48 of 400 images, 1 min 28 s left",
        "predict: 88 of 400 images, 1 min 18 s left",
        "predict: 128 of 400 images, 1 min 8 s left",
    ]


def test_what_was_done_before_does_not_count_as_speed(monkeypatch):
    stream = piped(monkeypatch)
    run(monkeypatch, Progress("predict", 1000, "images", n_before=900), speed=1, end=9)
    assert stream.getvalue() == "predict: 902 of 1000 images, 1 min 38 s left\n"


def test_between_batches_the_time_is_counted_down_and_up_again_when_it_is_late(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress, "_now", lambda: now[0])
    shown, said = Progress("predict", 48, "images"), []
    for now[0], n in ((8.0, 16), (13.0, 0), (20.0, 0), (32.0, 0), (40.0, 16)):
        if n:
            shown.advance(n)
        said.append(str(shown).partition(", ")[2])
    # 16 in 8 s leave 16 s for 32 more; after 24 s they are late; 32 in 40 s leave 20 s for 16
    assert said == ["16 s left", "11 s left", "4 s left", "1 min 4 s left", "20 s left"]


def test_where_nobody_knows_the_end_the_time_so_far_is_told(monkeypatch):
    stream = piped(monkeypatch)
    run(monkeypatch, Progress("search", None, "tries"), speed=2, end=9)
    run(monkeypatch, Progress("export", 1, "networks"), speed=0, end=9)
    assert stream.getvalue().splitlines() == [
        "search: 4 tries, 2 s so far",
        "export: 0 of 1 networks, 2 s so far",
    ]


def test_a_short_pass_says_nothing_on_a_pipe(monkeypatch):
    stream = piped(monkeypatch)
    assert list(watched(range(1000), 1000, True)) == list(range(1000))
    with counted("suggest", 3, True) as done:
        done(3)
    assert stream.getvalue() == ""


def test_a_quiet_pass_is_the_stream_itself(monkeypatch):
    monkeypatch.setattr(threading, "Thread", None)  # none is made
    stream = [1, 2]
    assert watched(stream, 2, False) is stream
    assert watched([], 0, True) == []
    with counted("suggest", 3, False) as done:
        done(3)


def test_a_loader_is_as_long_as_it_says(monkeypatch):
    stream = piped(monkeypatch)
    monkeypatch.setattr(progress._Lines, "first", 0.0)
    for loader, said in ((range(7), "of 7 batches"), (iter(lambda: 1, 1), None)):
        steps = watched(loader, None, True, "predict", "batches")
        for _ in steps:
            while "predict" not in stream.getvalue():
                pass
            steps.close()
        assert (
            (said in stream.getvalue()) if said else ("0 batches, 0 s so far" in stream.getvalue())
        )
        stream.seek(0)
        stream.truncate()


def drawn(stream):
    """The lines that a terminal showed, one after the other, without colours."""
    parts = re.split(r"\r|\x1b\[[02]K", stream.getvalue())
    return [one for one in (re.sub(r"\x1b\[[0-9;]*m", "", part) for part in parts) if one]


@pytest.mark.parametrize("columns", [30, 60, 120])
def test_a_terminal_shows_one_line_that_fits_and_is_gone_in_the_end(monkeypatch, columns):
    stream = terminal(monkeypatch, columns)
    clock = run(monkeypatch, Progress("predict", 400, "images"), speed=100, end=4)
    assert clock.waited[:3] == [0.5, 0.2, 0.2]
    lines = drawn(stream)
    assert "\n" not in stream.getvalue()
    assert all(cell_len(line) < columns for line in lines)
    assert stream.getvalue().endswith("\r\x1b[0K")
    bars = [len(re.match("[━╸╺]*", line)[0]) for line in lines]
    if columns == 30:
        assert lines[0] == "predict: 50 of 400 images, 4…"
        return
    assert lines[0].endswith(" predict: 50 of 400 images, 4 s left")
    assert len(set(bars)) <= 3  # the text grows
    if columns == 120:
        assert bars == [40] * len(bars)


def test_a_terminal_that_cannot_go_back_gets_lines(monkeypatch):
    stream = terminal(monkeypatch)
    monkeypatch.setenv("TERM", "dumb")
    run(monkeypatch, Progress("predict", 400, "images"), speed=4, end=9)
    assert stream.getvalue() == "predict: 8 of 400 images, 1 min 38 s left\n"


def test_without_rich_a_terminal_gets_lines(monkeypatch):
    stream = terminal(monkeypatch)
    monkeypatch.setattr(progress, "find_spec", lambda name: None)
    run(monkeypatch, Progress("predict", 400, "images"), speed=4, end=9)
    assert stream.getvalue() == "predict: 8 of 400 images, 1 min 38 s left\n"


def test_of_passes_inside_each_other_the_outer_is_shown(monkeypatch):
    stream = piped(monkeypatch)
    with Progress("outer", 2, "images") as outer:
        outer.show()
        with Progress("inner", 2, "images") as inner:
            inner.show()
    with Progress("next", 2, "images") as later:
        later.show()
    assert [line.partition(":")[0] for line in stream.getvalue().splitlines()] == ["outer", "next"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_ends_it_and_lets_others_be_shown(monkeypatch, error):
    stream = terminal(monkeypatch)
    n_threads = threading.active_count()

    def images():
        yield 1
        raise error

    with pytest.raises(error):
        [*watched(images(), 2, True)]
    assert threading.active_count() == n_threads
    with pytest.raises(error), counted("suggest", 3, True):
        raise error
    with Progress("next", 2, "images") as shown:
        shown.show()
        assert progress._live == [shown]
    assert progress._live == []
    assert stream.getvalue().endswith("\r\x1b[0K")


def test_who_stops_early_ends_it(monkeypatch):
    piped(monkeypatch)
    n_threads = threading.active_count()
    for _ in watched(range(3), 3, True):
        break
    assert threading.active_count() == n_threads


def after(condition, *items):
    """Items that take until a condition holds."""
    while not condition():
        time.sleep(0.001)
    yield from items


def fails_with_a_variable(images):
    held = iter(images)
    next(held)
    raise ValueError("out of order")


def fails_with_a_generator(images):
    held = (number for number, _ in enumerate(images))
    next(held)
    raise ValueError("out of order")


def fails_in_a_thread(images):
    with ThreadPoolExecutor(1) as pool:
        pool.submit(fails_with_a_variable, images).result()


def fails_in_a_coroutine(images):
    async def consume():
        fails_with_a_generator(images)

    asyncio.run(consume())


FAILURES = [
    fails_with_a_variable,
    fails_with_a_generator,
    fails_in_a_thread,
    fails_in_a_coroutine,
]


@pytest.mark.parametrize("fail", FAILURES)
def test_a_pass_that_a_traceback_holds_leaves_the_line_to_the_next(monkeypatch, fail):
    stream = piped(monkeypatch)
    monkeypatch.setattr(progress._Lines, "first", 0.0)
    slow = after(lambda: "failed" in stream.getvalue(), 1, 2)
    with pytest.raises(ValueError, match="out of order") as held:
        fail(watched(slow, 2, True, "failed"))
    assert len(progress._live) == 1
    [*watched(after(lambda: "next" in stream.getvalue(), 1, 2), 2, True, "next")]
    assert progress._live == []
    assert held.tb is not None


@pytest.mark.parametrize("fail", FAILURES)
def test_the_bar_of_a_pass_that_a_traceback_holds_goes_by_itself(monkeypatch, fail):
    stream = terminal(monkeypatch)
    monkeypatch.setattr(progress._Terminal, "first", 0.0)
    monkeypatch.setattr(progress._Terminal, "interval", 0.001)
    slow = after(lambda: "predict" in stream.getvalue(), 1, 2)
    with pytest.raises(ValueError, match="out of order") as held:
        fail(watched(slow, 2, True))
    [*after(lambda: not progress._live)]
    shown = stream.getvalue()
    assert shown.endswith("\r\x1b[0K")
    time.sleep(0.02)
    assert stream.getvalue() == shown
    assert held.tb is not None


def test_a_pass_handed_on_is_shown_again_in_the_same_output(monkeypatch):
    said = []

    class Output:
        first, interval = 0.0, 0.001

        def __init__(self):
            said.append("made")

        def draw(self, shown):
            said.append(shown.n_done)

        def clear(self):
            said.append("cleared")

    monkeypatch.setattr(progress, "_kind", lambda: Output)

    def slow():
        for n in range(3):
            yield from after(lambda n=n: said[-1:] == [n], n)

    images = watched(slow(), 3, True)

    def look():
        return next(images)

    assert look() == 0
    [*after(lambda: said[-1] == "cleared")]
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: [*images]).result() == [1, 2]
    distinct = [one for one, last in zip(said, [None, *said], strict=False) if one != last]
    assert distinct == ["made", 0, "cleared", 1, 2, "cleared"]


def test_a_consumer_that_waits_for_something_else_goes_on(monkeypatch):
    stream = piped(monkeypatch)
    monkeypatch.setattr(progress._Lines, "first", 0.0)
    monkeypatch.setattr(progress._Lines, "interval", 0.001)

    def numbered():
        yield from enumerate(watched([1, 2], 2, True))

    for number, _ in numbered():
        [*after(lambda n=number: f"{n} of 2 images" in stream.getvalue())]
        assert len(progress._live) == 1


def test_the_collector_may_end_a_pass_from_its_own_thread(monkeypatch):
    ended = []

    class Collects:
        first, interval = 0.0, 0.001

        def draw(self, shown):
            ended.append(shown.__exit__())

        def clear(self):
            """Nothing was drawn."""

    monkeypatch.setattr(progress, "_kind", lambda: Collects)
    with Progress("predict", 2, "images") as shown:
        shown._beat.join()
    assert ended == [None]
    assert progress._live == []


def test_a_closed_stream_harms_no_pass(monkeypatch):
    stream = piped(monkeypatch)
    monkeypatch.setattr(progress._Lines, "first", 0.0)
    stream.close()
    with Progress("predict", 2, "images") as shown:
        shown._beat.join()
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setattr(sys, "stderr", None)  # as under pythonw
    with Progress("predict", 2, "images") as shown:
        shown.show()
    assert sys.stdout.getvalue() == ""
    screen = terminal(monkeypatch)
    with Progress("predict", 2, "images") as shown:
        shown.show()
        screen.close()
    assert progress._live == []


def test_the_bar_makes_room_for_what_is_written(monkeypatch):
    stream = terminal(monkeypatch)
    with Progress("predict", 2, "images") as shown:
        shown.show()
        assert not stream.getvalue().endswith("\r\x1b[0K")
        clear_line()
        assert stream.getvalue().endswith("\r\x1b[0K")


def test_a_notebook_gets_one_output_that_is_empty_in_the_end(monkeypatch):
    outputs = []

    class Output:
        def update(self, one):
            outputs.append((one._repr_html_(), repr(one)))

    def display(one, display_id):
        Output().update(one)
        return Output()

    monkeypatch.setattr("IPython.display.display", display)
    monkeypatch.setattr(progress, "_kind", lambda: progress._Notebook)
    clock = run(monkeypatch, Progress("predict", 400, "images"), speed=100, end=3.5)
    assert clock.waited == [2, 1, 1]
    texts = [text for _, text in outputs]
    assert texts == [
        "predict: 200 of 400 images, 2 s left",
        "predict: 300 of 400 images, 1 s left",
        "",
    ]
    assert "200 of 400 images" in outputs[0][0]
    assert "width:50" in outputs[0][0].replace(" ", "")


def test_a_kernel_is_told_from_a_shell(monkeypatch):
    from types import SimpleNamespace

    for shell, kind in ((SimpleNamespace(kernel=1), "_Notebook"), (SimpleNamespace(), "_Lines")):
        fake = SimpleNamespace(get_ipython=lambda shell=shell: shell)
        monkeypatch.setitem(sys.modules, "IPython", fake)
        monkeypatch.setattr(sys, "stderr", io.StringIO())
        assert progress._kind().__name__ == kind
