"""Reading many images: decoding ahead of their use, and the failures of a whole pass."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from queue import SimpleQueue
from threading import Thread
from typing import Any

from learnkit.data.arguments import check_number
from learnkit.errors import ImageReadError, UnreadableImagesError, number_of
from learnkit.report.progress import watched

_PATIENCE = 1  # seconds for a reader to end, and between two looks for a Ctrl-C
_LISTED = 100  # images a message names; the error keeps them all


def read_images(
    load: Callable[[Any], Any],
    items: Sequence[Any],
    *,
    n_ahead: int,
    n_workers: int = 2,
    progress: bool = False,
    what: str = "read",
) -> Iterator[Any]:
    """`load(item)` of each item, in order; after a failure the rest is read for its errors alone.

    Args:
        load: Reads one image, or raises ImageReadError.
        items: Paths, or images of any kind `load` takes.
        n_ahead: How many images, at most, wait in memory for their use.
        n_workers: Decoding threads; 0 decodes between the uses.
        progress: Show a bar.
        what: What is done, for the bar.

    Raises:
        UnreadableImagesError: Images cannot be read; all of them are named. Raised when all were
            tried, so a caller who changes nothing before has changed nothing.
    """
    loaded = load_ahead(load, items, n_ahead=n_ahead, n_workers=n_workers)
    failures = {}
    for number, (item, found) in enumerate(watched(loaded, len(items), progress, what)):
        if isinstance(found, ImageReadError):
            failures[image_name(item, number)] = str(found)
        elif not failures:
            yield found
    if failures:
        raise unreadable_images(failures, len(items), "nothing was changed")


def load_ahead(
    load: Callable[[Any], Any], items: Iterable[Any], *, n_ahead: int, n_workers: int
) -> Iterator[tuple[Any, Any]]:
    """Each item with `load(item)` or the ImageReadError it raised, at most `n_ahead` waiting.

    Raises:
        DataError: `n_workers` is no whole number from 0 on.
    """
    check_number("n_workers", n_workers, least=0)

    def load_or_error(item: Any) -> Any:
        try:
            return load(item)
        except ImageReadError as error:
            return error

    if n_workers < 1:
        yield from ((item, load_or_error(item)) for item in items)
        return
    tasks: SimpleQueue = SimpleQueue()
    # daemons, unlike those of an executor: a read that never returns must not keep Ctrl-C waiting
    named = {"target": _work, "args": (tasks, load_or_error), "daemon": True}
    workers = [Thread(name=f"learnkit-decode-{i}", **named) for i in range(n_workers)]
    for worker in workers:
        worker.start()
    waiting: deque = deque()
    try:
        for item in items:
            future: Future = Future()
            tasks.put((future, item))
            waiting.append((item, future))
            if len(waiting) >= n_ahead:
                first, future = waiting.popleft()
                yield first, _result_of(future)
        for item, future in waiting:
            yield item, _result_of(future)
    finally:
        # before the workers are told to end: they would decode first all that is still waiting
        for _, future in waiting:
            future.cancel()
        for _ in workers:
            tasks.put(None)
        for worker in workers:
            worker.join(_PATIENCE)


def _result_of(future: Future) -> Any:
    """The result of a future, however long it takes, waited for in turns.

    A signal can be taken by another thread, or by this one just before its wait begins: either way
    the wait goes on, and one without an end would never hear of a Ctrl-C.
    """
    while not future.done():
        wait([future], _PATIENCE)
    return future.result()


def _work(tasks: SimpleQueue, load: Callable[[Any], Any]) -> None:
    """Load what is asked for, until None is."""
    while (task := tasks.get()) is not None:
        future, item = task
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(load(item))
            except BaseException as error:  # noqa: BLE001  # raised where the result is wanted
                future.set_exception(error)


def image_name(item: Any, number: int) -> str:
    """What to call an image in a message: its path, else its number."""
    return str(item) if isinstance(item, str | os.PathLike) else f"image {number}"


def file_of(item: Any) -> str:
    """The file an image is in, as an absolute path; "" for one that is in none."""
    return os.path.abspath(os.fsdecode(item)) if isinstance(item, str | os.PathLike) else ""


def unreadable_images(failures: Mapping[str, str], n: int, then: str) -> UnreadableImagesError:
    """The error that says each reason once, with its files, and keeps `failures` (of `n` images).

    Args:
        failures: why, by file.
        n: How many images there were.
        then: What became of the call.
    """
    error = UnreadableImagesError(
        f"{len(failures)} of {number_of(n, 'image')} cannot be read, and {then}: "
        f"{reasons_once(failures)}. "
        "Leave them out, or mend them, and call again"
    )
    error.failures = dict(failures)
    return error


def reasons_once(failures: Mapping[str, str]) -> str:
    """The first files, `_LISTED` of them, each reason behind all of its files."""
    files: dict[str, list[str]] = {}
    for name, message in [*failures.items()][:_LISTED]:
        start = f"image {name!r} "
        quoted = repr(name) if message.startswith(start) else name
        reason = message.removeprefix(start).removeprefix("cannot be read: ")
        files.setdefault(reason, []).append(quoted)
    said = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in files.items())
    n_left = len(failures) - _LISTED
    return f"{said}; and {n_left} more" if n_left > 0 else said


def chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of `size` items, the last one shorter."""
    chunk = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
