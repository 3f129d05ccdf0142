"""One temperature for logits that carry weights: the least log loss, found exactly."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from learnkit.uncertainty.calibration import Expected, LogLoss, best_factor

BOUNDS = (1e-2, 1e4)
# How far the logarithm of the temperature is from what is expected of it (standard deviation): on
# photographs and digits, from 2 images a class on, .1 to .5 within a data set, .5 between them.
_SPREAD = 0.6
_BLOCK = 2**20  # numbers of a table held at once


class Tempered(NamedTuple):
    """A temperature and the weighted log loss, in nats, of the logits divided by it."""

    temperature: float
    log_loss: float


def temper(
    logits: Tensor,
    targets: Tensor,
    weights: Tensor,
    *,
    log_prior: Tensor | None = None,
    expected: float | None = None,
    bounds: tuple[float, float] = BOUNDS,
) -> Tempered:
    """Temperature T with the least log loss of `softmax(logits / T + log_prior)`.

    The loss counts one imagined mistake, of the size of one sample, at which the runner-up was
    right.

    Args:
        logits: float64 (N,C), C at least 2; -inf for classes that cannot be.
        targets: Class number of each row, (N,).
        weights: Of each row, (N,), summing to 1.
        log_prior: Logarithm of the class's prior, (C,); the temperature does not touch it.
        expected: Temperature to expect before any sample is seen; counts as much as few samples do.
        bounds: Least and largest temperature.
    """
    offset = torch.zeros(logits.shape[1], dtype=torch.float64) if log_prior is None else log_prior
    logits = (logits - logits.amax(1, keepdim=True)).clamp_min_(-1e30)
    truth, truth_offset = _softened(logits, offset, targets, weights)
    factor = best_factor(
        LogLoss(*(t.numpy() for t in (logits, truth, weights, offset))),
        1 / bounds[1],
        1 / bounds[0],
        start=1 / (expected or max(_spread(logits, weights), 1e-15)),
        # ten samples of which half are wrong would speak for no confidence at all
        expected=Expected(1 / expected, _SPREAD, effective_number(weights)) if expected else None,
    )
    sums = [torch.logsumexp((block * factor).add_(offset), 1) for block in _blocks(logits)]
    total = torch.cat(sums) - truth * factor - truth_offset
    return Tempered(1 / factor, float(weights @ total))


def _spread(logits: Tensor, weights: Tensor) -> float:
    """Root mean square of all logits: divided by it, they spread by about 1."""
    squares = [block.clamp_min(-1e15).square_().mean(1) for block in _blocks(logits)]
    return float(weights @ torch.cat(squares)) ** 0.5


def effective_number(weights: Tensor) -> float:
    """How many samples of equal weight say as much as these, whose weights sum to 1."""
    return 1 / float(weights.square().sum())


def _blocks(table: Tensor, n_columns: int | None = None) -> tuple[Tensor, ...]:
    """Rows of a table (N,C), as many at a time as make small tables of so many columns."""
    return table.split(max(1, _BLOCK // (n_columns or table.shape[1])))


def _softened(
    logits: Tensor, offset: Tensor, targets: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Logit and offset (N,) of the truth, mixed with the runner-up's by one sample's share."""
    # Ten samples of which none is wrong then speak for a confidence of about ten elevenths and not
    # of 1; thousands are left to speak for themselves.
    share = 1 / (1 + effective_number(weights))
    own = targets[:, None]
    rivals = [
        block.scatter(1, at, -math.inf).argmax(1, keepdim=True)
        for block, at in zip(_blocks(logits), _blocks(own, logits.shape[1]), strict=True)
    ]
    rival = torch.cat(rivals)

    def mixed(values: Tensor) -> Tensor:
        pick = (1 - share) * values.gather(1, own) + share * values.gather(1, rival)
        return pick[:, 0]

    return mixed(logits), mixed(offset.expand_as(logits))
