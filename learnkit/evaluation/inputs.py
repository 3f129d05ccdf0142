"""Inputs of the measures: numpy or torch arrays, checked once, in one wording.

Probabilities, class numbers, flags, and the threshold above which a label of a multi-label model
counts: one for all labels, or one per class.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from learnkit.errors import EvaluationError

ROW_SUM_TOLERANCE = 1e-3
LabelThreshold = float | tuple[float, ...]


def as_array(values: Any) -> np.ndarray:
    """Return `values` as a numpy array without copying where that is possible."""
    if hasattr(values, "detach"):  # a tensor: torch itself need not be imported to measure
        values = values.detach().cpu()
        # numpy has no bfloat16
        values = values.float() if str(values.dtype) == "torch.bfloat16" else values
        values = values.numpy()
    return np.asarray(values)


def check_labels(labels: Any, n_classes: int, *, name: str = "targets") -> np.ndarray:
    """Return class numbers as int64 (N,).

    Raises:
        EvaluationError: not one whole number per sample, or outside `0..n_classes-1`.
    """
    array = as_array(labels)
    # before the type is looked at: an empty list becomes an array of floats
    if array.size == 0:
        return np.zeros(0, np.int64)
    if array.ndim != 1:
        raise EvaluationError(
            f"`{name}` has shape {array.shape}; give one class number per sample, shape (N,)"
            " (for several labels per sample pass `multi_label=True`)"
        )
    if array.dtype.kind == "f" and not np.array_equal(array, np.trunc(array)):
        raise EvaluationError(
            f"`{name}` holds {first_where(array, array != np.trunc(array))};"
            " class numbers are whole"
        )
    if array.dtype.kind not in "biuf":
        raise EvaluationError(
            f"`{name}` holds {array.dtype} values such as {array[0]!r}; give class numbers,"
            " for example `classes.index(label)`"
        )
    array = array.astype(np.int64)
    outside = (array < 0) | (array >= n_classes)
    if outside.any():
        raise EvaluationError(
            f"`{name}` holds {first_where(array, outside)}; with {n_classes} classes the numbers"
            f" run from 0 to {n_classes - 1}"
        )
    return array


def check_flags(flags: Any, n_classes: int, *, name: str = "targets") -> np.ndarray:
    """Return zeros and ones, one column per class, as bool (N, C).

    Raises:
        EvaluationError: another shape, or values other than 0 and 1.
    """
    array = as_array(flags)
    if array.size == 0:
        return np.zeros((0, n_classes), bool)
    if array.ndim != 2 or array.shape[1] != n_classes:
        raise EvaluationError(
            f"`{name}` has shape {array.shape}; several labels per sample are zeros and ones of"
            f" shape (N, {n_classes})"
        )
    others = (array != 0) & (array != 1)
    if others.any():
        seen = first_where(array, others)
        raise EvaluationError(f"`{name}` holds {seen}; flags are 0 (absent) or 1 (there)")
    return array.astype(bool)


def check_probs(
    probs: Any, *, multi_label: bool = False, n_classes: int | None = None
) -> np.ndarray:
    """Return `probs` as a float array (N, C): finite, in 0..1, rows summing to 1.

    With several labels per sample the rows may sum to anything.

    Raises:
        EvaluationError: wrong shape, not finite, or not probabilities (logits, most often).
    """
    array = as_array(probs)
    if array.ndim != 2 or (n_classes is not None and array.shape[1] != n_classes):
        columns = "C" if n_classes is None else n_classes
        raise EvaluationError(
            f"`probs` has shape {array.shape}; give one row per sample and one column per class,"
            f" shape (N, {columns})"
        )
    if array.dtype.kind != "f":
        array = array.astype(np.float64)
    finite = np.isfinite(array)
    if not finite.all():
        raise EvaluationError(
            f"`probs` holds {first_where(array, ~finite)}; every value must be finite:"
            " look at the network's output for that sample"
        )
    if not multi_label and len(array):
        _check_row_sums(array)
    outside = (array < -ROW_SUM_TOLERANCE) | (array > 1 + ROW_SUM_TOLERANCE)
    if outside.any():
        remedy = "logits.sigmoid()" if multi_label else "logits.softmax(dim=1)"
        raise EvaluationError(
            f"`probs` holds {first_where(array, outside)}; probabilities lie in 0..1:"
            f" pass `{remedy}`"
        )
    return array


def check_same_length(**arrays: np.ndarray) -> None:
    """Raise EvaluationError unless the named arrays have equally many rows."""
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        seen = ", ".join(f"`{name}` has {n}" for name, n in lengths.items())
        raise EvaluationError(f"{seen} rows; give one row of each per sample, in the same order")


def first_where(array: np.ndarray, mask: np.ndarray) -> str:
    """Say which value stands at the first True of `mask`, and in which row."""
    index = tuple(int(i) for i in np.argwhere(mask)[0])
    value = array[index].item()
    return f"{value:g} in row {index[0]}"


def _check_row_sums(array: np.ndarray) -> None:
    sums = array.sum(axis=1, dtype=np.float64)
    wrong = np.abs(sums - 1) > ROW_SUM_TOLERANCE
    if wrong.any():
        row = int(np.argmax(wrong))
        raise EvaluationError(
            f"`probs` rows must sum to 1, row {row} sums to {sums[row]:.4g}; if these are logits,"
            " pass `logits.softmax(dim=1)`; if a sample may have several labels,"
            " pass `multi_label=True`"
        )


def label_threshold(
    value: Any,
    n_classes: int,
    *,
    name: str = "`threshold`",
    ends: bool = False,
    error: type[Exception] = EvaluationError,
) -> LabelThreshold:
    """`value` as a float, or as a tuple of one float per class.

    Args:
        value: a number, or one per class: a list, an array, a tensor.
        n_classes: how many classes there are.
        name: what the message calls it.
        ends: whether 0 and 1 themselves will do.
        error: what is raised unless every number lies between 0 and 1.

    >>> label_threshold([0.5, 0.9], 2)
    (0.5, 0.9)
    """
    plain = value.tolist() if hasattr(value, "tolist") else value
    try:
        numbers = np.asarray(plain, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        numbers = np.full((), np.nan)  # no number is above it
    inside = (numbers >= 0) & (numbers <= 1) if ends else (numbers > 0) & (numbers < 1)
    if numbers.shape not in ((), (n_classes,)) or not inside.all():
        raise error(
            f"{name} is {plain}; it is a probability between 0 and 1, or a list of one for each "
            f"of the {n_classes} classes"
        )
    return float(numbers) if numbers.ndim == 0 else tuple(numbers.tolist())


def labels_above(probs: Any, threshold: LabelThreshold) -> np.ndarray:
    """Which labels count, bool in the shape of `probs` (..., C); a numpy array or CPU tensor."""
    # In float64 on both sides: whatever compares them, a label counts or not for everyone.
    return np.asarray(probs, dtype=np.float64) > np.asarray(threshold)
