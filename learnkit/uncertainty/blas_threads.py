"""Threads of numpy's BLAS: how many take part in a product.

Threads of a BLAS wait for the next product for some hundredths of a second, at full speed, and
those of a network wait for a processor. A network that took 7 ms by itself took 14 ms, and in one
of ten cases 89 ms, after the scores of one image by 640 remembered features had been computed in
two threads; and these took 1.7 ms in the place of 1.2.
"""

from __future__ import annotations

import sys
import threading
from functools import cache
from typing import Any


class SingleBlasThread:
    """Context in which the products of numpy and scipy take one thread, in all of the process.

    Threads of Python may be in it at once: the numbers from before come back with the last of them.
    """

    def __init__(self) -> None:
        self._lock, self._own = threading.Lock(), threading.local()
        # by library: itself, its number of threads before, and how many are inside
        self._held: dict[tuple[str, int], tuple[Any, int, int]] = {}

    def __enter__(self) -> None:
        # scipy has a BLAS of its own, which may have been loaded since others came in
        libraries = _libraries("scipy.linalg" in sys.modules)
        with self._lock:
            keys = [self._hold(library) for library in libraries]
        self._own.__dict__.setdefault("stack", []).append(keys)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            for key in self._own.stack.pop():
                self._release(key)

    def _hold(self, library: Any) -> tuple[str, int]:
        # what runs on OpenMP counts threads for each of Python's
        is_own = getattr(library, "threading_layer", None) == "openmp"
        key = library.filepath, threading.get_ident() if is_own else 0
        same, before, n_inside = self._held.get(key, (library, 0, 0))
        if not n_inside:
            before = same.get_num_threads()
            _set_threads(same, 1)
        self._held[key] = same, before, n_inside + 1
        return key

    def _release(self, key: tuple[str, int]) -> None:
        library, before, n_inside = self._held.pop(key)
        if n_inside > 1:
            self._held[key] = library, before, n_inside - 1
        else:
            _set_threads(library, before)


def _set_threads(library: Any, n: int) -> None:
    # threadpoolctl 3.8 passes over, in silence, what a thread sets after another thread did: the
    # last to leave would leave one thread for ever, and a refit beside others would keep several
    control = getattr(library, "clear_controlling_thread", None)
    if control is not None:
        control(force=True)
    library.set_num_threads(n)
    if control is not None:
        control(force=True)


@cache
def _libraries(with_scipy: bool) -> tuple[Any, ...]:
    """The BLAS libraries of this process; to look them up takes milliseconds."""
    try:
        from threadpoolctl import ThreadpoolController
    except ModuleNotFoundError:
        # a serving environment put together by hand: slower then, and as right
        return ()
    return tuple(ThreadpoolController().select(user_api="blas").lib_controllers)


single_blas_thread = SingleBlasThread()
