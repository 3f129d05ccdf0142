"""Remembered samples as honest test samples: each left out of what judges it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from learnkit.continual.closed_form.leave_one_out import LeftOut, leave_one_out, leave_pair_out
from learnkit.continual.closed_form.whitening import Geometry, Spectrum
from learnkit.continual.memory_rows import MemoryRows, are_alone
from learnkit.continual.statistics import ClassStatistics

Prior = Literal["uniform", "training"]
_BLOCK = 2**20  # numbers in a table of trials by classes, of which some lie about at once


@dataclass(frozen=True, eq=False, repr=False)
class Trials:
    """Remembered samples as honest test samples: each left out, some once more beside a partner.

    `points (M,D)` are the memory rows turned into the axes of the spectrum; `rows (R,)` says which
    one each trial is, the first `n_single` each once. `labels (R,)` are positions among the classes
    of the spectrum, `copies (R,)` as in `MemoryRows`, `weights (R,)` sum to 1. The trials from
    `n_single` on leave together with the memory row `partners (R - n_single,)`, which then is all
    that is known of the class.
    """

    points: Tensor
    labels: Tensor
    copies: Tensor
    weights: Tensor
    rows: Tensor
    partners: Tensor
    n_single: int

    def __len__(self) -> int:
        return len(self.labels)

    def blocks(self, n_columns: int) -> Iterator[slice]:
        """All trials, some at a time: as many as make tables of so many columns small.

        Trials that leave alone and those that leave with a partner are never in one block.
        """
        step = max(1, _BLOCK // n_columns)
        for first, last in (0, self.n_single), (self.n_single, len(self)):
            for start in range(first, last, step):
                yield slice(start, min(start + step, last))

    def partners_of(self, block: slice) -> Tensor:
        """Memory rows that leave with the trials of a block of such, (K,)."""
        return self.partners[block.start - self.n_single : block.stop - self.n_single]

    def left_out(self, geometry: Geometry, block: slice) -> LeftOut:
        """Honest distances of a block of trials in the whitened space of one shrinkage."""
        points, labels = self.points[self.rows[block]], self.labels[block]
        if block.start < self.n_single:
            return leave_one_out(geometry, points, labels, self.copies[block])
        partners = self.partners_of(block)
        copies = self.copies[block], self.copies[partners]
        return leave_pair_out(geometry, points, labels, self.points[partners], copies)


def prior_weights(counts: Tensor, prior: Prior) -> Tensor:
    """What each class weighs, float64 (P,): as many as it has images, or all alike."""
    return torch.ones_like(counts) if prior == "uniform" else counts


def class_masses(counts: Tensor, prior: Prior) -> Tensor:
    """Share of each class among the images to come, float64 (P,), summing to 1."""
    weights = prior_weights(counts, prior)
    return weights / weights.sum()


def make_trials(
    stats: ClassStatistics, spectrum: Spectrum, memory: MemoryRows, prior: Prior
) -> Trials:
    """Every memory row once and, while classes of one image exist, once more beside a partner.

    A class weighs as much as its prior, whatever the number of its rows. Classes of one image
    cannot be left out; rows that play their part (`leave_pair_out`) get their weight.
    """
    masses = class_masses(spectrum.counts, prior)
    alone = torch.tensor(are_alone(stats, spectrum.classes.tolist()))
    lonely = float(masses[alone].sum())
    position = torch.full((stats.n_classes,), -1, dtype=torch.int64)
    position[spectrum.classes] = torch.arange(len(spectrum.classes))
    labels = position[memory.labels]
    pairs = pairable(memory, spectrum.counts[labels]) if lonely > 0 else labels[:0]
    share = lonely if len(pairs) else 0.0
    rows = torch.cat([torch.arange(len(labels)), pairs])
    weights = [
        (1 - share) * row_weights(labels, masses),
        share * row_weights(labels[pairs], masses),
    ]
    return Trials(
        points=_turned(spectrum, memory),
        labels=labels[rows],
        copies=memory.copies[rows].to(torch.float64),
        weights=torch.cat(weights),
        rows=rows,
        partners=memory.partners[pairs],
        n_single=len(labels),
    )


def _turned(spectrum: Spectrum, memory: MemoryRows) -> Tensor:
    """All memory rows in the axes of the spectrum, float64 (M,D)."""
    points = torch.empty(memory.grid.shape, dtype=torch.float64)
    for rows in torch.arange(len(points)).split(max(1, _BLOCK // points.shape[1])):
        points[rows] = spectrum.turn(memory.embedded(rows))
    return points


def pairable(memory: MemoryRows, counts: Tensor) -> Tensor:
    """Which rows have a partner and leave images of the class behind together with it, (K,)."""
    together = memory.copies + memory.copies[memory.partners]
    return ((memory.partners >= 0) & (counts > together)).nonzero()[:, 0]


def spread_evenly(masses: Tensor, labels: Tensor) -> Tensor:
    """The mass of each class divided among its rows (R,)."""
    return (masses / torch.bincount(labels, minlength=len(masses)).clamp_min(1))[labels]


def row_weights(labels: Tensor, masses: Tensor) -> Tensor:
    """Weights (R,) summing to 1, those of a class in proportion to its mass."""
    weights = spread_evenly(masses, labels)
    return weights / weights.sum()
