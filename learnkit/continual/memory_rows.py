"""Remembered samples that can be left out: which ones, and what goes with each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from learnkit.continual.embedding import GRID
from learnkit.continual.statistics import ClassStatistics


@dataclass(frozen=True, eq=False, repr=False)
class MemoryRows:
    """Remembered samples that can be left out, class after class in the order of their names.

    `grid (R,D)` int16 on the integer grid; `labels (R,)` places of their classes; `positions (R,)`
    where `stats.memory.of(name)` keeps each; `copies (R,)` how many images of the class are this
    very one; `partners (R,)` another row of the same class, -1 if none.
    """

    grid: Tensor
    labels: Tensor
    positions: Tensor
    copies: Tensor
    partners: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def features(self) -> Tensor:
        """All of them embedded, float64 (R,D)."""
        return self.embedded(slice(None))

    def embedded(self, rows: Tensor | slice) -> Tensor:
        """Some of them embedded, float64 (K,D), made anew at each call."""
        return self.grid[rows].to(torch.float64).div_(GRID)


def memory_rows(stats: ClassStatistics, limit: int | None = None) -> MemoryRows:
    """Remembered samples of the classes that have other images too, at most about `limit`.

    Equally many of each class, the first by hash, two at least: where the limit does not allow that
    for every class, some classes, evenly spaced by name, stand for all. Which ones does not depend
    on the order in which anything came.
    """
    every = stats.places()
    places = [p for p, alone in zip(every, are_alone(stats, every), strict=True) if not alone]
    if limit is not None and len(places) > limit // 2:
        places = places[:: -(-len(places) // max(limit // 2, 1))]
    cells = [stats.memory.cells[place] for place in places]
    quota = _quota([len(cell.copies) for cell in cells], limit)
    kept = [cell.features[:quota] for cell in cells]
    sizes = torch.tensor([len(rows) for rows in kept], dtype=torch.int64)
    size = sizes.repeat_interleave(sizes)
    first = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    positions = torch.arange(len(size)) - first
    nothing = torch.zeros(0, stats.n_features, dtype=torch.int16)
    return MemoryRows(
        grid=torch.cat([nothing, *kept]),
        labels=torch.tensor(places, dtype=torch.int64).repeat_interleave(sizes),
        positions=positions,
        copies=torch.tensor([n for cell in cells for n in cell.copies[:quota]], dtype=torch.int64),
        partners=torch.where(size > 1, first + (positions + 1) % size, -1),
    )


def are_alone(stats: ClassStatistics, places: Sequence[int]) -> list[bool]:
    """Whether classes are one image, or copies of one: without it, nothing of them is left."""
    counts, cells = stats.counts.tolist(), stats.memory.cells
    return [counts[p] == 1 or counts[p] in cells[p].copies for p in places]


def _quota(sizes: list[int], limit: int | None) -> int:
    """Largest number of rows per class that keeps the total within `limit`, at least two."""
    most = max(sizes, default=0)
    if limit is None:
        return most
    quota = 2
    while quota < most and sum(min(n, quota + 1) for n in sizes) <= limit:
        quota += 1
    return quota
