"""One temperature for logits that carry weights: the least log loss, found exactly."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

BOUNDS = (1e-2, 1e4)
_STEPS = 60
_PRECISE = 1e-8  # Newton's last step: the next would be of its square


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
    bounds: tuple[float, float] = BOUNDS,
) -> Tempered:
    """Temperature T with the least log loss of `softmax(logits / T + log_prior)`.

    The loss is convex in 1/T, so that Newton's steps, kept between bounds, find its only minimum.
    It counts one imagined mistake, of the size of one sample, at which the runner-up was right:
    ten samples of which none is wrong then speak for a confidence of about ten elevenths and not
    of 1, and thousands are left to speak for themselves.

    Args:
        logits: float64 (N,C), C at least 2; -inf for classes that cannot be.
        targets: Class number of each row, (N,).
        weights: Of each row, (N,), summing to 1.
        log_prior: Logarithm of the class's prior, (C,); the temperature does not touch it.
        bounds: Least and largest temperature.
    """
    offset = torch.zeros(logits.shape[1], dtype=torch.float64) if log_prior is None else log_prior
    logits = (logits - logits.amax(1, keepdim=True)).clamp_min(-1e30)
    problem = _Problem(logits, offset, _softened(logits, offset, targets, weights), weights)
    low, high = 1 / bounds[1], 1 / bounds[0]
    beta = min(max(problem.start(), low), high)
    bracket, tested = [low, high], [False, False]
    for _ in range(_STEPS):
        slope, curvature = problem.slope(beta)
        side = slope > 0
        bracket[side], tested[side] = beta, True
        new = min(max(_newton(beta, slope, curvature), bracket[0]), bracket[1])
        if tested[0] and tested[1] and new in bracket:
            new = (bracket[0] * bracket[1]) ** 0.5
        if abs(new - beta) <= _PRECISE * beta:
            break
        beta = new
    temperature = min(max(1 / beta, bounds[0]), bounds[1])
    return Tempered(temperature, problem.loss(1 / temperature))


def _newton(beta: float, slope: float, curvature: float) -> float:
    """Newton's step for the logarithm of beta, in which the loss bends alike over decades."""
    bend = curvature * beta + slope
    if bend <= 0:  # far below the minimum
        return 8 * beta
    return beta * math.exp(min(max(-slope / bend, -50.0), 50.0))


class _Problem(NamedTuple):
    """Log loss as a function of the inverse temperature."""

    logits: Tensor
    offset: Tensor
    truth: tuple[Tensor, Tensor]
    weights: Tensor

    def start(self) -> float:
        """Inverse temperature that leaves the logits a spread of about 1."""
        spread = self.logits.clamp_min(-1e15).square().mean(1)
        return 1 / max(float(self.weights @ spread) ** 0.5, 1e-15)

    def loss(self, beta: float) -> float:
        """Weighted log loss."""
        wanted = self.truth[0] * beta + self.truth[1]
        total = torch.logsumexp(self.logits * beta + self.offset, 1) - wanted
        return float(self.weights @ total)

    def slope(self, beta: float) -> tuple[float, float]:
        """First and second derivative."""
        probs = torch.softmax(self.logits * beta + self.offset, 1)
        mean = (probs * self.logits).sum(1)
        square = probs.mul_(self.logits).mul_(self.logits).sum(1)
        return (
            float(self.weights @ (mean - self.truth[0])),
            float(self.weights @ (square - mean.square())),
        )


def _softened(
    logits: Tensor, offset: Tensor, targets: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Logit and offset (N,) of the truth, mixed with the runner-up's by one sample's share."""
    share = 1 / (1 + 1 / float(weights.square().sum()))
    own = targets[:, None]
    rival = logits.scatter(1, own, float("-inf")).argmax(1, keepdim=True)

    def mixed(values: Tensor) -> Tensor:
        pick = (1 - share) * values.gather(1, own) + share * values.gather(1, rival)
        return pick[:, 0]

    return mixed(logits), mixed(offset.expand_as(logits))
