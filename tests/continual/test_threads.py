"""Work shared out to threads: what a loop gives, in one thread of torch each."""

import os
import subprocess
import sys
import threading

import pytest
import torch

from learnkit.continual.closed_form.threads import in_threads, same_bits
from learnkit.models.eval_mode import torch_threads

MANY, FEW = 1e9, 10


def seen(barrier):
    """What a call finds: its thread, and torch's threads in it."""
    if barrier is not None:
        barrier.wait(10)  # so that no thread takes two items
    return threading.get_ident(), torch.get_num_threads()


def test_items_go_to_as_many_threads_as_torch_had_and_each_computes_in_one():
    with torch_threads(3):
        with same_bits():
            found = in_threads(seen, [threading.Barrier(3)] * 3, MANY)
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 3
    assert len({ident for ident, _ in found}) == 3
    assert {n for _, n in found} == {1}


@pytest.mark.parametrize("n_products", [MANY, FEW])
def test_results_come_in_the_order_of_the_items(n_products):
    with torch_threads(2), same_bits():
        assert in_threads(lambda n: n * n, range(50), n_products) == [n * n for n in range(50)]
        assert in_threads(str, [], n_products) == []


def test_little_work_and_work_inside_of_work_stay_in_their_thread():
    here = threading.get_ident()

    def inner(_):
        own = threading.get_ident()
        return {ident == own for ident, _ in in_threads(seen, [None] * 4, MANY)}

    with torch_threads(2):
        assert {ident for ident, _ in in_threads(seen, [None] * 4, MANY)} == {here}
        with same_bits():
            assert {ident for ident, _ in in_threads(seen, [None] * 4, FEW)} == {here}
            assert in_threads(inner, range(4), MANY) == [{True}] * 4


def test_an_error_of_one_item_comes_through_and_leaves_the_threads_as_they_were():
    with torch_threads(2):
        with pytest.raises(ZeroDivisionError), same_bits():
            in_threads(lambda n: 1 / n, [1, 0, 2], MANY)
        assert torch.get_num_threads() == 2


_LATER = """
from threadpoolctl import threadpool_info
from learnkit.continual.closed_form.threads import same_bits
with same_bits():
    from scipy.linalg import lapack  # with a BLAS of its own
    print({one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"})
"""


def test_a_library_that_a_refit_loads_takes_one_thread_too():
    many = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "2")
    command = [sys.executable, "-c", _LATER]
    ran = subprocess.run(command, env=os.environ | many, capture_output=True, text=True)
    assert ran.stdout == "{1}\n", ran.stderr
