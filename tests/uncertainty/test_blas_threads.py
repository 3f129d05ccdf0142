import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from learnkit.uncertainty.blas_threads import single_blas_thread
from learnkit.uncertainty.ood import ClassDistances, Neighbors
from learnkit.uncertainty.scoring import Scoring
from learnkit.uncertainty.threshold import fit_threshold


def blas_threads():
    """How many threads the libraries behind numpy's products take."""
    return {one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"}


@pytest.fixture(autouse=True)
def two_threads():
    with threadpool_limits(2, "blas"):
        yield


def test_products_take_one_thread_and_then_as_many_as_before():
    with single_blas_thread:
        assert blas_threads() == {1}
    assert blas_threads() == {2}


def test_an_error_inside_leaves_as_many_as_before():
    with pytest.raises(ZeroDivisionError), single_blas_thread:
        1 / 0  # noqa: B018
    assert blas_threads() == {2}


def test_who_leaves_first_leaves_one_thread_to_others():
    inside, leave = threading.Event(), threading.Event()

    def other():
        with single_blas_thread:
            inside.set()
            leave.wait(30)

    thread = threading.Thread(target=other)
    with single_blas_thread:
        thread.start()
        assert inside.wait(30)
    assert blas_threads() == {1}
    leave.set()
    thread.join()
    assert blas_threads() == {2}


def test_it_holds_in_another_thread_than_that_which_set_the_number_before():
    seen = []

    def other():
        with single_blas_thread:
            seen.append(blas_threads())
        seen.append(blas_threads())

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert seen == [{1}, {2}]
    with threadpool_limits(1, "blas"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert seen[2:] == [{1}, {1}]
    assert blas_threads() == {2}


_LATER = """
import numpy
from threadpoolctl import threadpool_info, threadpool_limits
from learnkit.uncertainty.blas_threads import single_blas_thread
threads = lambda: sorted(o["num_threads"] for o in threadpool_info() if o["user_api"] == "blas")
before = threads()
with single_blas_thread:
    import scipy.linalg
    own = max(threads())  # one core sets no more than one, whatever is asked for
    with single_blas_thread:
        print(len(before), threads())
print(threads() == sorted([*before, own]))
"""


def test_a_library_that_is_loaded_inside_takes_one_thread_from_the_next_on():
    many = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "2")
    command = [sys.executable, "-c", _LATER]
    ran = subprocess.run(command, env=os.environ | many, capture_output=True, text=True)
    assert ran.stdout == "1 [1, 1]\nTrue\n", ran.stderr


_MISSING = """
import sys
sys.modules["threadpoolctl"] = None
import numpy
from learnkit.uncertainty.blas_threads import single_blas_thread
with single_blas_thread:
    print(numpy.ones((9, 9)) @ numpy.ones(9))
"""


def test_without_what_sets_threads_products_are_as_right():
    ran = subprocess.run([sys.executable, "-c", _MISSING], capture_output=True, text=True)
    assert ran.stdout == "[9. 9. 9. 9. 9. 9. 9. 9. 9.]\n", ran.stderr


def scoring(n_classes=5, width=300, n_remembered=400):
    """A head of random numbers, whose products are large enough for several threads."""
    rng = np.random.default_rng(0)
    made = lambda *shape: rng.standard_normal(shape)
    weight, empty = made(n_classes, width), np.zeros(0)
    distances = ClassDistances(
        made(width), weight, rng.random(n_classes), 0.0, made(width, width) / width
    )
    neighbors = Neighbors(made(n_remembered, width))
    standards = (("mahalanobis", 0.0, 1.0), ("knn", 0.0, 1.0))
    threshold = fit_threshold(rng.random(50), source="validation")
    return Scoring(
        True,
        False,
        1.0,
        standards,
        threshold,
        weight,
        made(n_classes),
        (empty, empty),
        distances,
        neighbors,
    )


@pytest.mark.parametrize("verb", ["logits", "probs", "ood_scores", "probs_and_ood_scores"])
@pytest.mark.parametrize(("n", "wanted"), [(1, {1}), (64, {1}), (65, {2})])
def test_a_batch_is_scored_in_one_thread(verb, n, wanted, monkeypatch):
    head, seen = scoring(), set()

    def affine(self, embedded):
        seen.update(blas_threads())
        return embedded @ self.weight.T + self.bias

    def nearest(self, embedded):
        seen.update(blas_threads())
        return np.zeros(len(embedded))

    monkeypatch.setattr(Scoring, "_affine", affine)
    monkeypatch.setattr(Neighbors, "nearest", nearest)
    getattr(head, verb)(np.random.default_rng(1).random((n, 300)))
    assert seen == wanted
    assert blas_threads() == {2}


def test_a_batch_has_the_same_bits_with_any_number_of_threads():
    head, features = scoring(), np.random.default_rng(1).random((16, 300))
    found = []
    for n in (1, 2, 4):
        with threadpool_limits(n, "blas"):
            found.append([part.tobytes() for part in head.probs_and_ood_scores(features)])
    assert found[0] == found[1] == found[2]
