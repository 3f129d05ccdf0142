"""Embedding of pooled features in torch, where gradients are, and the integer grid.

`learnkit.uncertainty.scoring` has the same in numpy, exact to the bit: statistics and scores are
made of that. This one agrees with it to rounding and can be differentiated.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from learnkit.errors import StatisticsError
from learnkit.uncertainty.scoring import BLANK, GRID, unit_rows

LARGEST = GRID - 1  # what fits 16 bits with either sign
EXACT = 2**53  # whole numbers below it are exact in float64
_BLOCK = 8192  # rows that are embedded, or whose products are added up, at once


def embed(features: Tensor, *, root: bool) -> Tensor:
    """Rows of length 1, float64 (N, D); a row of zeros stays zero. Differentiable.

    With `root` the signed square root is taken first, see `unit_rows`.

    >>> embed(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), root=False).tolist()
    [[0.6, 0.8], [0.0, 0.0]]
    """
    x = features.to(torch.float64)
    if root:
        zero = x.abs() <= BLANK**2
        # the slope of the root at zero is taken as 0, not infinite
        x = torch.where(zero, 0.0, x.sign() * torch.where(zero, 1.0, x.abs()).sqrt())
    # detached: it cancels out of the result, and so out of the gradient
    top = x.detach().abs().amax(dim=1, keepdim=True) if x.shape[1] else x.new_zeros(len(x), 1)
    blank = top <= BLANK
    x = torch.where(blank, torch.zeros_like(x), x / torch.where(blank, 1.0, top))
    # a row of zeros by the length of ones: 0 / 0 is NaN, and so is its gradient
    return x / torch.where(blank, torch.ones_like(x), x).norm(dim=1, keepdim=True)


def to_grid(embedded: Any) -> Tensor:
    """Embedded features in units of 1/32768, rounded: float64 (N, D) of integers that fit 16 bits.

    >>> to_grid(torch.tensor([[0.6, -0.8, 1.0]], dtype=torch.float64)).tolist()
    [[19661.0, -26214.0, 32767.0]]
    """
    table = torch.as_tensor(embedded, dtype=torch.float64)
    return (table * GRID).round_().clamp_(-LARGEST, LARGEST)


def features_on_grid(features: Tensor, *, root: bool) -> Tensor:
    """Features (N, D) embedded and in units of the grid, float64, equal to the bit anywhere."""
    grid = torch.empty(features.shape, dtype=torch.float64)
    # some at a time: what is computed on the way takes several times as much
    for part, its in zip(features.split(_BLOCK), grid.split(_BLOCK), strict=True):
        its.copy_(to_grid(unit_rows(part, root=root)))
    return grid


def grid_products(grid: Tensor, copies: Sequence[int] | None = None) -> Tensor:
    """Sum of outer products of the rows, `copies` of each, float64 integers (D, D)."""
    total = torch.zeros(grid.shape[1], grid.shape[1], dtype=torch.float64)
    times = torch.ones(len(grid), 1) if copies is None else torch.tensor(copies)[:, None]
    for block, n in zip(grid.split(_BLOCK), times.split(_BLOCK), strict=True):
        total.addmm_(block.T, block if copies is None else block * n)
    return total


def exact_sum(gram: Tensor, more: Tensor, n_images: int) -> Tensor:
    """The sum of two Gram matrices (D, D), of `n_images` in all.

    Raises:
        StatisticsError: It is not exact in float64.
    """
    # The largest diagonal bounds whatever was added up on the way: the products of any two features
    # by Cauchy-Schwarz, the features themselves because |z| <= z^2 for whole numbers. Squares only
    # grow, and a sum beyond 2^53 is never rounded below it. int64 at rest would hold 1,000 times
    # as much; a merge took 1.4 times as long, and every refit would make a float64 copy of it.
    total = gram + more
    largest, feature = total.diagonal().max(0)
    if largest >= EXACT:
        raise StatisticsError(
            f"the squares of feature {int(feature)} would add up to {float(largest):.4g} over "
            f"{n_images:,} images, on the diagonal of the Gram matrix; up to 2^53 = {EXACT:.4g} "
            "sums are exact in float64: learn fewer images, or subtract some first"
        )
    return total
