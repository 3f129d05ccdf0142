"""Threads of a refit: one for every computation, to which work is shared out."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import torch

from learnkit.models.eval_mode import torch_threads
from learnkit.uncertainty.blas_threads import single_blas_thread

T = TypeVar("T")
R = TypeVar("R")


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
