"""Processor threads of torch and of numpy: set for a while, and set back; work shared out."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import torch

from learnkit._blas import single_blas_thread

T = TypeVar("T")
R = TypeVar("R")


@contextmanager
def torch_threads(n: int | None) -> Iterator[None]:
    """Torch computes with `n` threads inside, None for as many as before, which come back after."""
    before = torch.get_num_threads()
    torch.set_num_threads(n or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


_allowed: ContextVar[int] = ContextVar("threads that work may be shared out to", default=1)
_WORTH_A_THREAD = 5_000_000  # multiplications of one item: some milliseconds


@contextmanager
def same_bits() -> Iterator[None]:
    """One thread for every computation inside: sums and decompositions have other bits with more.

    `in_threads` shares out computations of which each takes one.
    """
    # its LAPACK has threads of its own, which are found once it is loaded
    import scipy.linalg  # noqa: F401

    allowed = _allowed.set(torch.get_num_threads())
    try:
        with torch_threads(1), single_blas_thread:
            yield
    finally:
        _allowed.reset(allowed)


def in_threads(function: Callable[[T], R], items: Sequence[T], n_products: float) -> list[R]:
    """`[function(item) for item in items]`, in as many threads as torch had before `same_bits`.

    The bits are those of a loop. Inside of `function`, and outside of `same_bits`, it is one.

    Args:
        function: Of one item; it changes nothing that another call reads.
        items: Independent of each other.
        n_products: Multiplications of each; few are not worth a thread.
    """
    n_threads = min(_allowed.get(), len(items)) if n_products >= _WORTH_A_THREAD else 1
    if n_threads < 2:
        return [function(item) for item in items]
    # torch counts threads for each of Python's; a new one begins with the number that any set last
    with ThreadPoolExecutor(n_threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return list(pool.map(function, items))
