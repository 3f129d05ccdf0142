import tracemalloc

import numpy as np
import pytest
import sklearn.metrics as skm
import torch

from learnkit.errors import EvaluationError
from learnkit.evaluation.confusion import confusion_matrix, multilabel_confusion


@pytest.mark.parametrize("n_classes", [2, 3, 17])
def test_counts_equal_scikit_learns(n_classes):
    rng = np.random.default_rng(n_classes)
    targets, preds = rng.integers(0, n_classes, (2, 200))
    expected = skm.confusion_matrix(targets, preds, labels=range(n_classes))
    np.testing.assert_array_equal(confusion_matrix(targets, preds, n_classes), expected)


def test_rows_are_the_truth():
    assert confusion_matrix([0], [1], 2).tolist() == [[0, 1], [0, 0]]


def test_tensors_and_absent_classes_are_counted():
    matrix = confusion_matrix(torch.tensor([0, 3]), torch.tensor([0, 0]), 5)
    assert matrix.shape == (5, 5)
    assert matrix.dtype == np.int64
    assert matrix.sum() == 2
    assert matrix[3, 0] == 1


def test_no_samples_give_zeros():
    assert confusion_matrix([], [], 2).tolist() == [[0, 0], [0, 0]]


def test_a_thousand_classes_need_memory_for_the_result_only():
    rng = np.random.default_rng(0)
    targets, preds = rng.integers(0, 1000, (2, 50_000))
    tracemalloc.start()
    matrix = confusion_matrix(targets, preds, 1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert matrix.sum() == 50_000
    assert peak < 30e6


def test_multilabel_counts_equal_scikit_learns():
    rng = np.random.default_rng(0)
    targets, preds = rng.integers(0, 2, (2, 60, 4))
    expected = skm.multilabel_confusion_matrix(targets, preds)
    np.testing.assert_array_equal(multilabel_confusion(targets, preds), expected)


@pytest.mark.parametrize(
    ("targets", "preds", "message"),
    [
        ([0, 1], [0], "`targets` has 2, `pred_labels` has 1 rows"),
        ([0, 3], [0, 0], "`targets` holds 3 in row 1; with 3 classes the numbers run from 0 to 2"),
        ([0, 0], [0, -1], "`pred_labels` holds -1 in row 1"),
        ([0, 0.5], [0, 0], "`targets` holds 0.5 in row 1; class numbers are whole"),
        (["cat"], [0], "give class numbers"),
        ([[0, 1]], [0], "one class number per sample"),
    ],
)
def test_bad_labels_are_refused_by_name(targets, preds, message):
    with pytest.raises(EvaluationError, match=message):
        confusion_matrix(targets, preds, 3)


def test_multilabel_wants_flags():
    with pytest.raises(EvaluationError, match=r"`targets` holds 2 in row 0; flags are 0 .* or 1"):
        multilabel_confusion([[2, 0]], [[1, 0]])
    with pytest.raises(EvaluationError, match=r"`targets` has shape \(2,\)"):
        multilabel_confusion([0, 1], [[1, 0]])
