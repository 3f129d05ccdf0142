"""Distances to remembered features as they were before the square root was taken.

The root helps to tell classes apart from few images, yet it also tames the large entries by which
images of quite another kind give themselves away. Remembered features can be squared again; sums of
them cannot, so that class means are taken over what is remembered.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from learnkit.continual.embedding import GRID, unroot
from learnkit.continual.geometry import DEFAULT_VARIANCE, squared_distances
from learnkit.continual.leave_one_out import MemoryRows
from learnkit.continual.memory import Cell, FeatureMemory

_AT_ONCE = 64  # classes
_NO_VARIANCE = 1e-6  # what rounding to the grid leaves of copies of one image


@dataclass(frozen=True, eq=False)
class RememberedMeans:
    """Class means of what is remembered, without the root.

    `means (P,D)` rest on `counts (P,)` images each, 0 for a class of which nothing is remembered;
    `variance` is the mean squared distance of an image from the true mean of its class.
    """

    means: Tensor
    counts: Tensor
    variance: float

    @classmethod
    def of(cls, memory: FeatureMemory) -> RememberedMeans:
        """Means of all that is remembered."""
        sums, counts, scatter = [], [], 0.0
        for cell, features in _unrooted(memory.cells):
            total, n, around = _summed(cell, features)
            sums.append(total / max(n, 1))
            counts.append(n)
            scatter += around
        dof = sum(max(n - 1, 0) for n in counts)
        seen = scatter / dof if dof else 0.0
        return cls(
            torch.stack(sums),
            torch.tensor(counts, dtype=torch.float64),
            seen if seen > _NO_VARIANCE else DEFAULT_VARIANCE,
        )

    def scores(self, features: Tensor) -> Tensor:
        """Squared distance (N,) of unrooted features to the nearest mean, debiased.

        The least over the classes of `D^2 - variance / n`, as a mean of n images is off by that
        much; infinite if nothing is remembered.
        """
        return self._nearest(squared_distances(features, self.means), self.counts)

    def left_out(self, rows: MemoryRows, at: Tensor, features: Tensor, lone: Tensor) -> Tensor:
        """The same for remembered samples that are not in the means, (R,).

        Args:
            rows: What can be left out.
            at: Which of them, (R,).
            features: These, without the root (R,D).
            lone: Which of them know their class by their partner alone, (R,).
        """
        labels, every = rows.labels[at], torch.arange(len(at))
        n, k = self.counts[labels], rows.copies[at].to(torch.float64)
        distances = squared_distances(features, self.means)
        own = distances[every, labels] * (n / (n - k).clamp_min(1)).square()
        partners = unroot(rows.features[rows.partners[at].clamp_min(0)])
        apart = (features - partners).square().sum(1)
        distances[every, labels] = torch.where(lone, apart, own)
        counts = self.counts.repeat(len(at), 1)
        counts[every, labels] = torch.where(lone, 1.0, n - k)
        return self._nearest(distances, counts)

    def _nearest(self, distances: Tensor, counts: Tensor) -> Tensor:
        debts = torch.where(counts > 0, self.variance / counts, -math.inf)
        return (distances - debts).amin(1)


def _unrooted(cells: Sequence[Cell]) -> Iterator[tuple[Cell, Tensor]]:
    """Each class with its features (m,D), without the root; many classes at once are quicker."""
    for first in range(0, len(cells), _AT_ONCE):
        some = cells[first : first + _AT_ONCE]
        features = unroot(torch.cat([cell.features for cell in some]).to(torch.float64) / GRID)
        yield from zip(some, features.split([len(cell.hashes) for cell in some]), strict=True)


def _summed(cell: Cell, features: Tensor) -> tuple[Tensor, int, float]:
    """(sum (D,), number of images, scatter around their mean) of one class."""
    n = sum(cell.copies)
    if not n:
        return features.new_zeros(features.shape[1]), 0, 0.0
    copies = torch.tensor(cell.copies, dtype=torch.float64)
    total = copies @ features
    around = (features - total / n).square().sum(1)
    return total, n, float(copies @ around)
