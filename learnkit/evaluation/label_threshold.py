"""The threshold of a multi-label model: a label counts above it; one for all, or one per class."""

from __future__ import annotations

from typing import Any

import numpy as np

from learnkit.errors import EvaluationError

LabelThreshold = float | tuple[float, ...]


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
    except (TypeError, ValueError):
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
