"""Embedding of pooled features in torch, where gradients are, and the integer grid.

`learnkit.uncertainty.embedding` has the same in numpy, exact to the bit: statistics and scores are
made of that. This one agrees with it to rounding and can be differentiated.
"""

from typing import Any

import torch
from torch import Tensor

from learnkit.uncertainty.embedding import BLANK, GRID

LARGEST = GRID - 1  # what fits 16 bits with either sign
EXACT = 2**53  # whole numbers below it are exact in float64


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
    top = x.detach().abs().amax(dim=1, keepdim=True) if x.shape[1] else x.new_zeros(len(x), 1)
    blank = top <= BLANK
    x = torch.where(blank, torch.zeros_like(x), x / torch.where(blank, 1.0, top))
    return x / torch.where(blank, torch.ones_like(x), x).norm(dim=1, keepdim=True)


def to_grid(embedded: Any) -> Tensor:
    """Embedded features in units of 1/32768, rounded: float64 (N, D) of integers that fit 16 bits.

    >>> to_grid(torch.tensor([[0.6, -0.8, 1.0]], dtype=torch.float64)).tolist()
    [[19661.0, -26214.0, 32767.0]]
    """
    table = torch.as_tensor(embedded, dtype=torch.float64)
    return (table * GRID).round_().clamp_(-LARGEST, LARGEST)
