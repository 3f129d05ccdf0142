"""What the uncertainty floor accepts: numpy or torch, checked once, in one wording."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from learnkit.errors import UncertaintyError


def as_tensor(values: Any, *, name: str = "scores") -> Tensor:
    """Return `values` as a plain float64 tensor on the CPU, cut off from any graph.

    Raises:
        UncertaintyError: they are no numbers.
    """
    try:
        # Lists of floats would become float32 without a word.
        dtype = None if isinstance(values, Tensor) else torch.float64
        tensor = torch.as_tensor(values, dtype=dtype)
    except (TypeError, ValueError, RuntimeError) as error:  # torch raises each of them
        raise UncertaintyError(f"`{name}` holds what is no array of numbers: {error}") from error
    return tensor.detach().as_subclass(Tensor).to("cpu", torch.float64)


def check_scores(scores: Any, *, name: str = "scores") -> Tensor:
    """Return one finite number per image as float64 (N,).

    Raises:
        UncertaintyError: another shape, or NaN or infinity; the message names the first rows.
    """
    tensor = as_tensor(scores, name=name)
    if tensor.ndim != 1:
        raise UncertaintyError(
            f"`{name}` has shape {tuple(tensor.shape)}; give one number per image, shape (N,)"
        )
    refuse(tensor, ~tensor.isfinite(), name, "every value must be finite: look at those images")
    return tensor


def check_logits(logits: Any, *, name: str = "logits") -> Tensor:
    """Return logits as float64 (N, C); -inf, a class that cannot win, may stand beside finite ones.

    Raises:
        UncertaintyError: another shape, NaN or +inf, or a row without any finite value.
    """
    tensor = as_tensor(logits, name=name)
    if tensor.ndim != 2:
        raise UncertaintyError(
            f"`{name}` has shape {tuple(tensor.shape)}; give one row per image and one column per"
            " class, shape (N, C)"
        )
    wrong = (tensor.isnan() | (tensor == math.inf)).any(1)
    rule = "logits are finite, or -inf for a class without images"
    refuse(tensor.amax(1) if tensor.numel() else tensor, wrong, name, rule)
    empty = tensor.isneginf().all(1)
    refuse(tensor.amax(1) if tensor.numel() else tensor, empty, name, "no class has any images")
    return tensor


def check_weights(weights: Any, n: int) -> Tensor:
    """Return one weight above 0 per row as float64 (n,); ones if None.

    Raises:
        UncertaintyError: another length, or weights that are not finite and above 0.
    """
    if weights is None:
        return torch.ones(n, dtype=torch.float64)
    tensor = check_scores(weights, name="weights")
    if len(tensor) != n:
        raise UncertaintyError(f"`weights` has {len(tensor)} values for {n} rows; give one per row")
    refuse(tensor, tensor <= 0, "weights", "weights are above 0: leave out the rows of weight 0")
    return tensor


def check_rate(rate: float, *, name: str) -> float:
    """Return a share strictly between 0 and 1 as a float, or raise UncertaintyError."""
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate < 1:
        raise UncertaintyError(
            f"`{name}` is {rate!r}; give a share between 0 and 1, for example 0.05"
        )
    return float(rate)


def check_score(value: float, *, name: str) -> float:
    """Return one finite number as a float, or raise UncertaintyError."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise UncertaintyError(f"`{name}` is {value!r}; give one finite score")
    return float(value)


def check_choice(value: str, choices: tuple[str, ...], *, name: str) -> str:
    """Return `value` if it is one of `choices`, or raise UncertaintyError listing them."""
    if value not in choices:
        raise UncertaintyError(f"`{name}` is {value!r}; choose from {', '.join(choices)}")
    return value


def refuse(values: Tensor, wrong: Tensor, name: str, rule: str) -> None:
    """Raise UncertaintyError naming up to five of the rows where `wrong` (N,) holds."""
    rows = wrong.nonzero().flatten().tolist()
    if rows:
        some = ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")
        plural = "s" if len(rows) > 1 else ""
        raise UncertaintyError(
            f"`{name}` holds {values[rows[0]].item():g} in row{plural} {some}; {rule}"
        )
