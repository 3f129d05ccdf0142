"""Checks of what the uncertainty floor accepts: any arrays, checked once, in one wording."""

from __future__ import annotations

import math
from sys import float_info
from typing import Any

import numpy as np

from learnkit.errors import UncertaintyError, number_of
from learnkit.evaluation.inputs import as_array

Array = np.ndarray


def as_floats(values: Any, *, name: str = "scores") -> Array:
    """Return `values` as a float64 array; a tensor is cut off from any graph.

    Raises:
        UncertaintyError: they are no numbers.
    """
    if isinstance(values, np.ndarray) and values.dtype.kind == "f":
        return values.astype(np.float64, copy=False)  # as everything is that was let in before
    try:
        array = as_array(values)
    except ValueError as error:  # rows of different lengths
        raise UncertaintyError(f"`{name}` holds what is no array of numbers: {error}") from error
    if array.dtype.kind not in "biuf":
        raise UncertaintyError(f"`{name}` holds what is no array of numbers, but {array.dtype}")
    return array.astype(np.float64, copy=False)


def check_scores(scores: Any, *, name: str = "scores") -> Array:
    """Return one finite number per image as float64 (N,).

    Raises:
        UncertaintyError: another shape, or NaN or infinity; the message names the first rows.
    """
    array = as_floats(scores, name=name)
    if array.ndim != 1:
        raise UncertaintyError(
            f"`{name}` has shape {array.shape}; give one number per image, shape (N,)"
        )
    refuse(array, ~np.isfinite(array), name, "every value must be finite: look at those images")
    return array


def check_logits(logits: Any, *, name: str = "logits") -> Array:
    """Return logits as float64 (N, C); -inf, a class that cannot win, may stand beside finite ones.

    Raises:
        UncertaintyError: another shape, NaN or +inf, or a row without any finite value.
    """
    array = as_floats(logits, name=name)
    if array.ndim != 2:
        raise UncertaintyError(
            f"`{name}` has shape {array.shape}; give one row per image and one column per class,"
            " shape (N, C)"
        )
    if not array.size:
        return array
    largest = array.max(1)  # NaN if there is one
    wrong = np.isnan(largest) | (largest == math.inf)
    refuse(largest, wrong, name, "logits are finite, or -inf for a class without images")
    refuse(largest, np.isneginf(largest), name, "no class has any images")
    return array


def check_weights(weights: Any, n: int) -> Array:
    """Return one weight above 0 per row as float64 (n,); ones if None.

    Raises:
        UncertaintyError: another length, or weights that are not finite and above 0.
    """
    if weights is None:
        return np.ones(n)
    array = check_scores(weights, name="weights")
    if len(array) != n:
        raise UncertaintyError(
            f"`weights` has {number_of(len(array), 'value')} for {number_of(n, 'row')}; give one "
            "per row"
        )
    refuse(array, array <= 0, "weights", "weights are above 0: leave out the rows of weight 0")
    return array


def check_rate(rate: float, *, name: str) -> float:
    """Return a share strictly between 0 and 1 as a float, or raise UncertaintyError."""
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate < 1:
        raise UncertaintyError(
            f"`{name}` is {rate!r}; give a share between 0 and 1, for example 0.05"
        )
    return float(rate)


def check_score(value: float, *, name: str) -> float:
    """Return one finite number as a float, or raise UncertaintyError."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not abs(value) <= float_info.max:  # `isfinite` raises for a huge int
        raise UncertaintyError(f"`{name}` is {value!r:.80}; give one finite score")
    return float(value)


def check_choice(value: str, choices: tuple[str, ...], *, name: str) -> str:
    """Return `value` if it is one of `choices`, or raise UncertaintyError listing them."""
    if value not in choices:
        raise UncertaintyError(f"`{name}` is {value!r}; choose from {', '.join(choices)}")
    return value


def refuse(values: Array, wrong: Array, name: str, rule: str) -> None:
    """Raise UncertaintyError naming up to five of the rows where `wrong` (N,) holds."""
    rows = np.flatnonzero(wrong).tolist()
    if rows:
        some = ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")
        plural = "s" if len(rows) > 1 else ""
        raise UncertaintyError(f"`{name}` holds {values[rows[0]]:g} in row{plural} {some}; {rule}")
