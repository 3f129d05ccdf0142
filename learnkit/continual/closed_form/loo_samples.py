"""Leave-one-out samples: remembered features as test samples, each left out of what scores it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from learnkit.continual.closed_form.leave_one_out import (
    Group,
    LeftOut,
    leave_group_out,
    leave_one_out,
    leave_pair_out,
    log_det_left_out,
    own_left_out,
)
from learnkit.continual.closed_form.mean_noise import MeanNoise
from learnkit.continual.closed_form.near_copies import stand_for
from learnkit.continual.closed_form.threads import in_threads
from learnkit.continual.closed_form.whitening import Geometry, Moments, Spectrum, squared_lengths
from learnkit.uncertainty.scoring import GRID

Prior = Literal["uniform", "training"]
_ENOUGH = 256  # held-out distances whose mean is known to 2 %: they spread by a third of it
_BLOCK = 2**18  # numbers in a table of samples by classes, of which some lie about at once


@dataclass(frozen=True, eq=False, repr=False)
class LooSamples:
    """Remembered features as held-out samples: each left out, some once more beside a partner.

    `points (M,K)` are the rows of `memory` turned into the axes of the spectrum. `rows (R,)` says
    which row each sample is, the first `n_single` each once. `labels (R,)` are positions among the
    classes of the spectrum, `copies (R,)` as in `MemoryRows`, `weights (R,)` sum to 1. A sample
    leaves with its group. The samples from `n_single` on leave together with the memory row
    `partners (R - n_single,)` and its group, and the partner then is all that is known of the
    class.
    """

    points: Tensor
    memory: MemoryRows
    labels: Tensor
    copies: Tensor
    weights: Tensor
    rows: Tensor
    partners: Tensor
    n_single: int

    def __len__(self) -> int:
        return len(self.labels)

    def blocks(self, n_columns: int) -> Iterator[slice]:
        """All samples, some at a time: as many as make tables of so many columns small.

        Samples that leave alone and those that leave with a partner are never in one block.
        """
        step = max(1, _BLOCK // n_columns)
        for first, last in (0, self.n_single), (self.n_single, len(self)):
            for start in range(first, last, step):
                yield slice(start, min(start + step, last))

    def partners_of(self, block: slice) -> Tensor:
        """Memory rows that leave with the samples of a block of such, (K,)."""
        return self.partners[block.start - self.n_single : block.stop - self.n_single]

    def points_of(self, block: slice) -> Tensor:
        """The turned samples of a block (K,D)."""
        if len(self.points) == self.n_single and block.stop <= self.n_single:
            return self.points[block]  # every row is a sample, in order: no copy of them
        return self.points[self.rows[block]]

    @cached_property
    def _telling(self) -> slice:
        """Samples that leave alone; where these are many, some, evenly spaced."""
        return slice(0, self.n_single, max(1, self.n_single // _ENOUGH))

    @cached_property
    def _told(self) -> Tensor:
        """The points of these."""
        return self.points_of(self._telling)

    @cached_property
    def _lengths(self) -> dict[float | None, Tensor]:
        """What `measure` found, by the ridge of the geometry."""
        return {}

    def measure(self, geometries: Sequence[Geometry]) -> None:
        """Compute the squared lengths of all points, faster for several geometries at once."""
        found = zip(geometries, squared_lengths(geometries, self.points), strict=True)
        self._lengths.update({geometry.ridge: lengths for geometry, lengths in found})

    def _lengths_in(self, geometry: Geometry) -> Tensor:
        """Squared lengths (M,) of `points` in the whitened space."""
        if geometry.ridge not in self._lengths:
            self.measure([geometry])
        return self._lengths[geometry.ridge]

    def own_left_out(self, geometry: Geometry) -> tuple[Tensor, Tensor]:
        """Held-out distances to the own class, and images it then has, (K,) each.

        Of samples that leave alone; where these are many, of some, evenly spaced.
        """
        alone = self._telling
        labels, copies = self.labels[alone], self.copies[alone]
        lengths = self._lengths_in(geometry)[self.rows[alone]]
        points = self._told
        own = own_left_out(geometry, points, labels, copies, lengths)
        counts = geometry.counts[labels] - copies
        for rows, group, _ in self.grouped(alone):
            part, at = leave_group_out(geometry, points[rows], labels[rows], group), labels[rows]
            own[rows] = part.distances.gather(1, at[:, None])[:, 0]
            counts[rows] = part.counts.gather(1, at[:, None])[:, 0]
        return own, counts

    def left_out(self, geometry: Geometry, block: slice) -> LeftOut:
        """Held-out distances of a block of samples in the whitened space of one shrinkage."""
        points, labels = self.points_of(block), self.labels[block]
        every = self._lengths_in(geometry)
        lengths = every[self.rows[block]]
        if block.start < self.n_single:
            found = leave_one_out(geometry, points, labels, self.copies[block], lengths)
        else:
            partners = self.partners_of(block)
            copies = self.copies[block], self.memory.copies[partners]
            both = lengths, every[partners]
            found = leave_pair_out(geometry, points, labels, self.points[partners], copies, both)
        for rows, group, partners in self.grouped(block):
            means = None if partners is None else self.points[partners]
            part = leave_group_out(geometry, points[rows], labels[rows], group, means)
            found.put(rows, part)
        return found

    def log_det_left_out(self, geometry: Geometry) -> Tensor:
        """Log determinant of the covariance without each sample that leaves alone, (n_single,)."""
        alone = slice(0, self.n_single)
        points, labels = self.points_of(alone), self.labels[alone]
        lengths = self._lengths_in(geometry)[self.rows[alone]]
        found = log_det_left_out(geometry, points, labels, self.copies[alone], lengths)
        for rows, group, _ in self.grouped(alone):
            found[rows] = group.log_det(geometry, labels[rows])
        return found

    def grouped(
        self, block: slice, *, with_partners: bool = True
    ) -> Iterator[tuple[Tensor, Group, Tensor | None]]:
        """(positions in the block, groups, partners) of samples of which other rows leave too.

        Args:
            block: Of `blocks`.
            with_partners: Whether the groups of the partners leave too.
        """
        members, partners, alone = self.memory.members[self.rows[block]], None, 1
        if block.start >= self.n_single:
            partners = self.partners_of(block)
            if with_partners:
                both = torch.cat([members, self.memory.members[partners]], 1)
                members, alone = both.sort(1, descending=True).values, 2
        rows = ((members >= 0).sum(1) > alone).nonzero()[:, 0]
        step = max(1, _BLOCK // (members.shape[1] * self.points.shape[1]))
        for some in rows.split(step) if len(rows) else ():
            left = members[some]
            copies = self.memory.copies[left.clamp_min(0)].masked_fill(left < 0, 0.0)
            group = Group(self.points[left.clamp_min(0)], copies)
            yield some, group, None if partners is None else partners[some]


def prior_weights(counts: Tensor, prior: Prior) -> Tensor:
    """Weight of each class, float64 (P,): its number of images, or 1."""
    return torch.ones_like(counts) if prior == "uniform" else counts


def class_masses(counts: Tensor, prior: Prior) -> Tensor:
    """Share of each class among the images to come, float64 (P,), summing to 1."""
    weights = prior_weights(counts, prior)
    return weights / weights.sum()


def make_loo_samples(
    moments: Moments,
    spectrum: Spectrum,
    memory: MemoryRows,
    prior: Prior,
    most: int | None = None,
) -> LooSamples:
    """A row of every group once and, while classes of one image exist, once more with a partner.

    A class weighs as much as its prior, whatever the number of its rows. Classes of one image
    cannot be left out; rows that play their part (`leave_pair_out`) get their weight. Of more than
    `most` samples some are taken, evenly spaced, and of the memory what these need.
    """
    masses = class_masses(spectrum.counts, prior)
    lonely = float(masses[torch.tensor(moments.is_alone)].sum())
    position = torch.full((moments.n_classes,), -1, dtype=torch.int64)
    position[spectrum.classes] = torch.arange(len(spectrum.classes))
    alone_left = memory.first_rows
    pairs = alone_left[:0]
    if lonely > 0:
        pairs = _with_partners(memory, alone_left, spectrum.counts[position[memory.labels]])
    if most is not None and len(alone_left) + len(pairs) > most:
        memory, alone_left, pairs = _evenly_spaced(memory, alone_left, pairs, most)
    labels = position[memory.labels]
    share = lonely if len(pairs) else 0.0
    rows = torch.cat([alone_left, pairs])
    weights = [
        (1 - share) * row_weights(labels[alone_left], masses),
        share * row_weights(labels[pairs], masses),
    ]
    return LooSamples(
        points=_turned(spectrum, memory),
        memory=memory,
        labels=labels[rows],
        copies=memory.copies[rows],
        weights=torch.cat(weights),
        rows=rows,
        partners=memory.partners[pairs],
        n_single=len(alone_left),
    )


def _with_partners(memory: MemoryRows, rows: Tensor, counts: Tensor) -> Tensor:
    """Those of `rows` that have a partner and leave images of their class behind with it.

    `counts (M,)` are the images of the class of each row of the memory.
    """
    partners = memory.partners[rows]
    leaving = memory.leaving
    leave_some = counts[rows] > leaving[rows] + leaving[partners]
    return rows[(partners >= 0) & leave_some]


def _evenly_spaced(
    memory: MemoryRows, alone: Tensor, pairs: Tensor, most: int
) -> tuple[MemoryRows, Tensor, Tensor]:
    """(the rows that `most` samples need, those of them left alone, those left with a partner)."""
    step = -(-(len(alone) + len(pairs)) // most)
    alone, pairs = alone[::step], pairs[-len(alone) % step :: step]
    needed = memory.members[torch.cat([alone, pairs, memory.partners[pairs]])]
    kept = needed[needed >= 0].unique()
    place = torch.full((len(memory),), -1, dtype=torch.int64)
    place[kept] = torch.arange(len(kept))
    return memory.picked(kept), place[alone], place[pairs]


def every_row_out(spectrum: Spectrum, memory: MemoryRows) -> LooSamples:
    """Every row of a memory once, all of the same weight, each leaving with its group."""
    position = torch.full((int(spectrum.classes.max()) + 1,), -1, dtype=torch.int64)
    position[spectrum.classes] = torch.arange(len(spectrum.classes))
    n = len(memory)
    return LooSamples(
        points=_turned(spectrum, memory),
        memory=memory,
        labels=position[memory.labels],
        copies=memory.copies,
        weights=torch.full((n,), 1 / max(n, 1), dtype=torch.float64),
        rows=torch.arange(n),
        partners=memory.partners[:0],
        n_single=n,
    )


def _turned(spectrum: Spectrum, memory: MemoryRows) -> Tensor:
    """All memory rows in the axes of the spectrum, float64 (M,K)."""
    points = torch.empty(len(memory), spectrum.axes.shape[1], dtype=torch.float64)
    blocks = torch.arange(len(points)).split(max(1, _BLOCK // spectrum.n_features))

    def turn(rows: Tensor) -> None:
        points[rows] = spectrum.turn(memory.embedded(rows))

    in_threads(turn, blocks, min(_BLOCK, memory.grid.numel()) * points.shape[1])
    return points


def spread_evenly(masses: Tensor, labels: Tensor) -> Tensor:
    """The mass of each class divided among its rows (R,)."""
    return (masses / torch.bincount(labels, minlength=len(masses)).clamp_min(1))[labels]


def row_weights(labels: Tensor, masses: Tensor) -> Tensor:
    """Weights (R,) summing to 1, those of a class in proportion to its mass."""
    weights = spread_evenly(masses, labels)
    return weights / weights.sum()


class LooScores(NamedTuple):
    """Scores by the discriminant of samples it has not seen.

    `logits (R,P)` without the prior and before the temperature; the Mahalanobis scores
    `mahalanobis (R,)` and `relative (R,)`. The logits are counted from the center as it is;
    `shift (R,)`, added to all of a row, counts them from where it moves, which energy needs.
    """

    logits: Tensor
    mahalanobis: Tensor
    relative: Tensor
    shift: Tensor


def mean_noise(samples: LooSamples, geometry: Geometry) -> MeanNoise:
    """The noise of class means in the whitened space of one shrinkage."""
    return MeanNoise.of(geometry, *samples.own_left_out(geometry))


def score_left_out(samples: LooSamples, geometry: Geometry, debias: float) -> LooScores:
    """Scores of all samples by the discriminant of one shrinkage, each without the sample."""
    n, n_classes = len(samples), len(geometry.counts)
    noise = mean_noise(samples, geometry)
    logits = torch.empty(n, n_classes, dtype=torch.float64)
    mahalanobis, relative, shift = logits.new_empty(3, n)
    is_held = geometry.spectrum.rules > 2

    def score(block: slice) -> None:
        left_out = samples.left_out(geometry, block)
        counts = left_out.counts
        debts = noise.debts(left_out.lengths, counts, debias)
        # The center has the noise of the means of few images already; moved, it would have it
        # twice, and logits of these classes, whose factors are less, would lose to all others.
        center = left_out.held if is_held else left_out.background
        evidence = center[:, None] - left_out.distances + debts
        # held as well, but for rows that play a class of one image: of classes of as many images
        # all logits count alike, and would not where one of them has an image less
        counts = geometry.counts if block.start < samples.n_single else counts
        logits[block] = evidence.mul_(noise.reliabilities(counts, debias)).mul_(0.5)
        mahalanobis[block] = left_out.mahalanobis_scores(geometry.d_eff)
        relative[block] = mahalanobis[block] - left_out.background
        shift[block] = (left_out.background - center) / 2

    blocks = list(samples.blocks(n_classes))
    in_threads(score, blocks, min(n * n_classes, _BLOCK) * samples.points.shape[1])
    return LooScores(logits, mahalanobis, relative, shift)


@dataclass(frozen=True, eq=False, repr=False)
class MemoryRows:
    """Remembered samples that can be left out, class after class in the order of their names.

    `grid (R,D)` int16 on the integer grid; `labels (R,)` places of their classes; `positions (R,)`
    where the memory of the class keeps each; `copies (R,)` how many images of the class each stands
    for, float64; `partners (R,)` the first row of another group of the same class, -1 if none;
    `members (R,K)` the rows of its group, the first one in front, -1 where there are no more.
    """

    grid: Tensor
    labels: Tensor
    positions: Tensor
    copies: Tensor
    partners: Tensor
    members: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def features(self) -> Tensor:
        """All of them embedded, float64 (R,D)."""
        return self.embedded(slice(None))

    @property
    def first_rows(self) -> Tensor:
        """The first row of each group, which is left out for all of it: a burst weighs as one."""
        return (self.members[:, 0] == torch.arange(len(self))).nonzero()[:, 0]

    @property
    def leaving(self) -> Tensor:
        """How many images leave with each row: those of its whole group, (R,)."""
        known = self.members >= 0
        return self.copies[self.members.clamp_min(0)].masked_fill(~known, 0.0).sum(1)

    def picked(self, rows: Tensor) -> MemoryRows:
        """Some rows, in ascending order; mates and partners that are not among them are none."""
        place = torch.full((len(self) + 1,), -1, dtype=torch.int64)  # the last one: of -1
        place[rows] = torch.arange(len(rows))
        fields = (self.grid, self.labels, self.positions, self.copies)
        others = (place[self.partners[rows]], place[self.members[rows]])
        return MemoryRows(*(field[rows] for field in fields), *others)

    def embedded(self, rows: Tensor | slice) -> Tensor:
        """Some of them embedded, float64 (K,D), made again at each call."""
        return self.grid[rows].to(torch.float64).div_(GRID)


def memory_rows(moments: Moments, limit: int | None = None) -> MemoryRows:
    """Remembered samples of the classes that have other images too, at most about `limit`.

    Equally many of each class, the first by hash and whole groups, two at least: where the limit
    does not allow that for every class, some classes, evenly spaced by name, stand for all. Which
    ones does not depend on the order in which anything came.
    """
    chosen = [i for i, alone in enumerate(moments.is_alone) if not alone]
    if limit is not None and len(chosen) > limit // 2:
        chosen = chosen[:: -(-len(chosen) // max(limit // 2, 1))]
    quota = _quota([len(moments.copies[i]) for i in chosen], limit)
    kept = [_whole_groups(moments.groups[i], quota) for i in chosen]
    sizes = torch.tensor([len(rows) for rows in kept], dtype=torch.int64)
    positions = torch.tensor([row for rows in kept for row in rows], dtype=torch.int64)
    nothing = torch.zeros(0, moments.n_features, dtype=torch.int16)
    members, partners = _grouped([moments.groups[i] for i in chosen], kept)
    return MemoryRows(
        grid=torch.cat(
            [nothing, *[moments.samples[i][rows] for i, rows in zip(chosen, kept, strict=True)]]
        ),
        labels=moments.places[chosen].repeat_interleave(sizes),
        positions=positions,
        copies=torch.tensor(_stand_for(moments, chosen, kept), dtype=torch.float64),
        partners=partners,
        members=members,
    )


def _whole_groups(groups: Sequence[int], quota: int) -> list[int]:
    """The first rows of a class, at least so many and two groups if it has them; whole groups."""
    sizes = Counter(groups)
    firsts, n = set(), 0
    for first, size in sizes.items():
        if n >= quota and len(firsts) > 1:
            break
        firsts.add(first)
        n += size
    return [row for row, first in enumerate(groups) if first in firsts]


def _stand_for(moments: Moments, chosen: list[int], kept: list[list[int]]) -> list[float]:
    """How many images of its class each kept row stands for."""
    found = []
    for i, rows in zip(chosen, kept, strict=True):
        each = stand_for(moments.groups[i], moments.copies[i], int(moments.counts[i]))
        found += [each[row] for row in rows]
    return found


def _grouped(groups: list[Sequence[int]], kept: list[list[int]]) -> tuple[Tensor, Tensor]:
    """(members (R,K), partners (R,)) of the kept rows, class after class."""
    members, partners, start = [], [], 0
    for own, rows in zip(groups, kept, strict=True):
        together: dict[int, list[int]] = {}
        for at, row in enumerate(rows, start):
            together.setdefault(own[row], []).append(at)
        heads = [rows_of[0] for rows_of in together.values()]
        following = dict(zip(together, [*heads[1:], heads[0]], strict=True)) if rows else {}
        members += [together[own[row]] for row in rows]
        partners += [following[own[row]] if len(heads) > 1 else -1 for row in rows]
        start += len(rows)
    width = max(map(len, members), default=1)
    padded = [[*rows, *[-1] * (width - len(rows))] for rows in members]
    return torch.tensor(padded, dtype=torch.int64).view(-1, width), torch.tensor(
        partners, dtype=torch.int64
    )


def _quota(sizes: list[int], limit: int | None) -> int:
    """Largest number of rows per class that keeps the total within `limit`, at least two."""
    most = max(sizes, default=0)
    if limit is None:
        return most
    quota = 2
    while quota < most and sum(min(n, quota + 1) for n in sizes) <= limit:
        quota += 1
    return quota
