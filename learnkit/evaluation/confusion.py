"""Confusion matrices by counting: rows are the truth, columns the prediction."""

from __future__ import annotations

from typing import Any

import numpy as np

from learnkit.evaluation.inputs import check_flags, check_labels, check_same_length


def confusion_matrix(targets: Any, pred_labels: Any, n_classes: int) -> np.ndarray:
    """Counts as int64 (C, C): entry [i, j] is how many samples of class i were called class j.

    Args:
        targets: true class numbers (N,).
        pred_labels: predicted class numbers (N,).
        n_classes: C; classes that never occur keep rows and columns of zeros.

    Raises:
        EvaluationError: lengths differ, or a number lies outside `0..n_classes-1`.

    >>> confusion_matrix([0, 0, 1, 2], [0, 1, 1, 1], 3)
    array([[1, 1, 0],
           [0, 1, 0],
           [0, 1, 0]])
    """
    targets = check_labels(targets, n_classes)
    pred_labels = check_labels(pred_labels, n_classes, name="pred_labels")
    check_same_length(targets=targets, pred_labels=pred_labels)
    # One pass, and memory for the result alone, whatever the number of samples.
    cells = np.bincount(targets * n_classes + pred_labels, minlength=n_classes**2)
    return cells.astype(np.int64, copy=False).reshape(n_classes, n_classes)


def multilabel_confusion(targets: Any, preds: Any) -> np.ndarray:
    """Counts as int64 (C, 2, 2): one `[[tn, fp], [fn, tp]]` per class, truth in the rows.

    Args:
        targets: zeros and ones (N, C).
        preds: zeros and ones (N, C), after the threshold.

    Raises:
        EvaluationError: shapes differ, or values other than 0 and 1.

    >>> multilabel_confusion([[1, 0], [1, 1]], [[1, 1], [0, 1]]).tolist()
    [[[0, 0], [1, 1]], [[0, 1], [0, 1]]]
    """
    n_classes = np.shape(preds)[1] if np.ndim(preds) == 2 else 0
    targets = check_flags(targets, n_classes)
    preds = check_flags(preds, n_classes, name="preds")
    check_same_length(targets=targets, preds=preds)
    tp = (targets & preds).sum(0)
    fp = (~targets & preds).sum(0)
    fn = (targets & ~preds).sum(0)
    tn = len(targets) - tp - fp - fn
    return np.stack([tn, fp, fn, tp], axis=1).astype(np.int64).reshape(n_classes, 2, 2)
