"""From pooled features to points on the unit sphere, and from there onto an integer grid.

Both steps look at one image alone and are exact to the bit: whatever batch, thread or device an
image comes in, the same feature gives the same integers. That is what makes sums of them additive
without any rounding.
"""

import math

import torch
from torch import Tensor

GRID = 2**15
LARGEST = GRID - 1  # what fits 16 bits with either sign
BLANK = 1e-12  # a feature with no larger entry has no direction
_FINE = 2.0**40


def embed(features: Tensor, *, root: bool) -> Tensor:
    """Rows of length 1, float64 (N, D); a row of zeros stays zero. Differentiable.

    With `root` the signed square root is taken first, which tames the few large entries of features
    that are never negative.

    >>> embed(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), root=False).tolist()
    [[0.6, 0.8], [0.0, 0.0]]
    >>> embed(torch.tensor([[9.0, 16.0]]), root=True).tolist()
    [[0.6, 0.8]]
    """
    x = features.to(torch.float64)
    if root:
        x = _signed_root(x)
    top = x.detach().abs().amax(dim=1, keepdim=True) if x.shape[1] else x.new_zeros(len(x), 1)
    blank = top <= BLANK
    x = torch.where(blank, torch.zeros_like(x), x / torch.where(blank, 1.0, top))
    return x / torch.where(blank, 1.0, _length(x, blank))


def to_grid(embedded: Tensor) -> Tensor:
    """`embedded` in units of 1/32768, rounded: float64 (N, D) of integers that fit 16 bits.

    >>> to_grid(torch.tensor([[0.6, -0.8, 1.0]], dtype=torch.float64)).tolist()
    [[19661.0, -26214.0, 32767.0]]
    """
    return (embedded.to(torch.float64) * GRID).round().clamp(-LARGEST, LARGEST)


def _signed_root(x: Tensor) -> Tensor:
    """Square root of the size with the sign kept; its slope at zero is taken as 0, not infinite."""
    zero = x.abs() <= BLANK**2
    return torch.where(zero, 0.0, x.sign() * torch.where(zero, 1.0, x.abs()).sqrt())


def _length(x: Tensor, blank: Tensor) -> Tensor:
    """Euclidean length of each row (N, 1), the same to the bit however rows are batched."""
    exact = _exact_length(x.detach())
    if not x.requires_grad:
        return exact
    smooth = torch.where(blank, torch.ones_like(x), x).norm(dim=1, keepdim=True)
    return smooth + (exact - smooth).detach()


def _exact_length(x: Tensor) -> Tensor:
    """The same, without a gradient, of rows whose largest entry is 1.

    Squares are split into two integers each whose sums are exact in float64 and so do not depend
    on the order of summation, which differs with the shape of a batch and the number of threads.
    """
    # sums of 2^13 integers up to 2^40 are exact; wider features are summed block by block
    return sum(_square_sum(block) for block in x.split(2**13, dim=1)).sqrt()


def _square_sum(x: Tensor) -> Tensor:
    square = x * x * _FINE
    coarse = square.round()
    fine = ((square - coarse) * _FINE).round()
    total = coarse.sum(dim=1, keepdim=True) / _FINE
    return total + fine.sum(dim=1, keepdim=True) / (_FINE * _FINE)


def largest_count() -> int:
    """How many images' products still add up exactly in float64: 8,389,120.

    >>> largest_count()
    8389120
    """
    return math.floor(2**53 / LARGEST**2)
