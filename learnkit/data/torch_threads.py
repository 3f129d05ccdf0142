"""Processor threads of torch and of numpy: set for a while, and set back."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from threadpoolctl import ThreadpoolController


@contextmanager
def torch_threads(n: int | None) -> Iterator[None]:
    """Torch computes with `n` threads inside, None for as many as before, which come back after."""
    before = torch.get_num_threads()
    torch.set_num_threads(n or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _SingleBlasThread:
    """Context in which numpy's products and decompositions take one thread, in all of the process.

    Threads of Python may be in it at once: the number from before comes back with the last of them.
    """

    def __init__(self) -> None:
        self._lock, self._inside, self._before = threading.Lock(), 0, None

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._before = _controller().limit(limits=1, user_api="blas")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._before.restore_original_limits()


@cache
def _controller() -> Any:
    """The libraries of this process that have threads; to look them up takes milliseconds."""
    return ThreadpoolController()


single_blas_thread = _SingleBlasThread()
