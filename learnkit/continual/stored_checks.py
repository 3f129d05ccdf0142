"""What no class statistics can be: the rules that numbers read from a file must keep."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from learnkit.continual.embedding import GRID, LARGEST
from learnkit.continual.statistics import LIMIT
from learnkit.errors import StatisticsError

DAMAGED = "the statistics are damaged: read them from another copy"


def check_keys(tensors: Mapping[str, Tensor], types: Mapping[str, torch.dtype]) -> None:
    """Raise StatisticsError unless there are exactly these tensors, as `check_types` wants them."""
    if set(tensors) != set(types):
        missing, extra = sorted(set(types) - set(tensors)), sorted(set(tensors) - set(types))
        raise StatisticsError(f"tensors missing: {missing}, unexpected: {extra}; {DAMAGED}")
    check_types(tensors, types)


def check_types(tensors: Mapping[str, Tensor], types: Mapping[str, torch.dtype]) -> None:
    """Raise StatisticsError at what is no tensor of its type, or not finite."""
    for name, dtype in types.items():
        tensor = tensors[name]
        if not isinstance(tensor, Tensor) or tensor.dtype != dtype:
            seen = getattr(tensor, "dtype", type(tensor).__name__)
            raise StatisticsError(f"`{name}` is {seen} and not {dtype}; {DAMAGED}")
        if dtype.is_floating_point and not torch.isfinite(tensor).all():
            raise StatisticsError(f"`{name}` holds NaN or infinity; {DAMAGED}")


def check_shapes(tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise StatisticsError at the first tensor of another shape."""
    for name, shape in shapes.items():
        if tuple(tensors[name].shape) != shape:
            raise StatisticsError(
                f"`{name}` has shape {tuple(tensors[name].shape)} and not {shape}; {DAMAGED}"
            )


def width_of(gram: Tensor) -> int:
    """Width D of a matrix of products; a StatisticsError if it is no matrix."""
    if gram.dim() != 2 or not gram.shape[0]:
        raise StatisticsError(f"`gram` has shape {tuple(gram.shape)}; it is a square; {DAMAGED}")
    return gram.shape[0]


def check_counts(*counts: Tensor) -> None:
    """Raise StatisticsError unless these are numbers of images whose products add up exactly."""
    if any((n < 0).any() or (n > LIMIT).any() for n in counts):
        raise StatisticsError(f"`counts` are not all from 0 to {LIMIT:,}; {DAMAGED}")
    if sum(int(n.sum()) for n in counts) > LIMIT:
        raise StatisticsError(f"`counts` add up to more than {LIMIT:,}; {DAMAGED}")


def check_sums(name: str, sums: Tensor, counts: Tensor) -> None:
    """Raise StatisticsError unless rows (C,D) can be sums of so many features on the grid.

    These are whole numbers, and no longer than that many vectors of length 1 and their rounding.
    """
    longest = counts.to(torch.float64) * (GRID + math.sqrt(sums.shape[1]))
    if (sums != sums.round()).any() or (sums.norm(dim=1) > longest).any():
        raise StatisticsError(f"`{name}` are not sums of that many features; {DAMAGED}")


def check_gram(gram: Tensor, n: int) -> None:
    """Raise StatisticsError unless a square (D,D) can be the products of `n` features on the grid.

    These are whole numbers, symmetric, within Cauchy-Schwarz, and no larger in all than those of
    `n` vectors of length 1.
    """
    diagonal = gram.diagonal()
    largest = n * (GRID + math.sqrt(len(gram))) ** 2
    wrong = (
        (gram != gram.round()).any()
        or not torch.equal(gram, gram.T)
        or (diagonal < 0).any()
        or (diagonal > n * float(LARGEST) ** 2).any()
        or diagonal.sum() > largest
    )
    root = diagonal.clamp_min(0).sqrt()
    if wrong or (gram.abs() > torch.outer(root, root) * (1 + 1e-9)).any():
        raise StatisticsError(f"`gram` is no sum of products of {n} features; {DAMAGED}")
