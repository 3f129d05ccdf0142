"""What the classifier would have said of a remembered image had it never seen it, in closed form.

Leaving a sample out changes the scatter by a rank-one term, so that its honest distances follow
from the whitened space of all samples (Sherman-Morrison), at the price of a prediction. The ridge,
the center and the effective dimension are held at their values for all samples.

Source: Hoffbeck and Landgrebe, "Covariance matrix estimation and classification with limited
training data", 1996, for the covariance; the class means of the left-out sample move here as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from learnkit.continual.embedding import GRID
from learnkit.continual.geometry import Geometry
from learnkit.continual.statistics import ClassStatistics

# 1 - leverage is never negative; rounding and a ridge of nothing must not make it zero.
_LEAST = 1e-12


@dataclass(frozen=True, eq=False, repr=False)
class MemoryRows:
    """Remembered samples that can be left out, class after class in the order of their names.

    `features (R,D)` embedded float64; `labels (R,)` places of their classes; `positions (R,)` where
    `stats.memory.of(name)` keeps each; `copies (R,)` how many images of the class are this very
    one; `partners (R,)` another row of the same class, -1 if none.
    """

    features: Tensor
    labels: Tensor
    positions: Tensor
    copies: Tensor
    partners: Tensor

    def __len__(self) -> int:
        return len(self.labels)


def memory_rows(stats: ClassStatistics, limit: int | None = None) -> MemoryRows:
    """Remembered samples of the classes that have other images too, at most about `limit`.

    Equally many of each class, the first by hash, two at least: where the limit does not allow that
    for every class, some classes, evenly spaced by name, stand for all. Which ones does not depend
    on the order in which anything came.
    """
    places = [place for place in stats.places() if not is_alone(stats, place)]
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
        features=torch.cat([nothing, *kept]).to(torch.float64) / GRID,
        labels=torch.tensor(places, dtype=torch.int64).repeat_interleave(sizes),
        positions=positions,
        copies=torch.tensor([n for cell in cells for n in cell.copies[:quota]], dtype=torch.int64),
        partners=torch.where(size > 1, first + (positions + 1) % size, -1),
    )


def is_alone(stats: ClassStatistics, place: int) -> bool:
    """Whether a class is one image, or copies of one: without it, nothing of the class is left."""
    n = int(stats.counts[place])
    return n == 1 or n in stats.memory.cells[place].copies


def _quota(sizes: list[int], limit: int | None) -> int:
    """Largest number of rows per class that keeps the total within `limit`, at least two."""
    most = max(sizes, default=0)
    if limit is None:
        return most
    quota = 2
    while quota < most and sum(min(n, quota + 1) for n in sizes) <= limit:
        quota += 1
    return quota


@dataclass(frozen=True, eq=False, repr=False)
class LeftOut:
    """Distances of samples to every class as if the classifier had not seen them.

    `distances (R,P)` squared Mahalanobis distances to the classes of the geometry, `background
    (R,)` to its center, `counts (R,P)` the number of images each mean then rests on.
    """

    distances: Tensor
    background: Tensor
    counts: Tensor

    def followed_by(self, other: LeftOut) -> LeftOut:
        """Both, one after the other."""
        return LeftOut(
            torch.cat([self.distances, other.distances]),
            torch.cat([self.background, other.background]),
            torch.cat([self.counts, other.counts]),
        )

    def debiased(self, d_eff: float) -> Tensor:
        """Squared distances less what the means are off by on average, (R,P)."""
        return self.distances - d_eff / self.counts

    def mahalanobis_scores(self, d_eff: float) -> Tensor:
        """Honest `Geometry.mahalanobis_scores`, (R,)."""
        return self.debiased(d_eff).amin(1)

    def relative_scores(self, d_eff: float) -> Tensor:
        """Honest `Geometry.relative_scores`, (R,)."""
        return self.mahalanobis_scores(d_eff) - self.background


def leave_one_out(
    geometry: Geometry, points: Tensor, labels: Tensor, copies: Tensor | None = None
) -> LeftOut:
    """Leave each sample out in turn, with all its copies; exact to rounding.

    Args:
        geometry: Of the statistics that contain the samples.
        points: The samples, turned by `geometry.spectrum.turn`, (R,D).
        labels: Position of their class in `geometry.classes`, (R,).
        copies: How many images of the class are this very one, (R,), fewer than all; default: 1.
    """
    u, means = points * geometry.scale, geometry.means
    n, k = geometry.counts[labels], _copies(copies, labels)
    e = u - means[labels]
    ee = e.square().sum(1)
    gain = _gain(k * n / (n - k) * _unit(geometry), ee)
    fewer = _fewer(geometry, k)[:, None]

    product = (e * u).sum(1)[:, None] - e @ means.T
    distances = _squared(u, means).addcmul_(gain[:, None] * product, product)
    rows = torch.arange(len(u))
    distances[rows, labels] = (n / (n - k)).square() * (ee + gain * ee.square())
    background = u.square().sum(1) + gain * (e * u).sum(1).square()
    return LeftOut(
        distances=distances.mul_(fewer).clamp_min_(0),
        background=background * fewer[:, 0],
        counts=_counts(geometry, labels, n - k),
    )


def log_det_left_out(
    geometry: Geometry, points: Tensor, labels: Tensor, copies: Tensor | None = None
) -> Tensor:
    """Log determinant (R,) of the covariance without each sample; arguments of `leave_one_out`."""
    n, k = geometry.counts[labels], _copies(copies, labels)
    length = (points * geometry.scale - geometry.means[labels]).square().sum(1)
    leverage = k * n / (n - k) * _unit(geometry) * length
    whole = -2 * geometry.scale.log().sum() - len(geometry.scale) * _fewer(geometry, k).log()
    return whole + (1 - leverage).clamp_min(_LEAST).log()


def leave_pair_out(
    geometry: Geometry,
    points: Tensor,
    labels: Tensor,
    partners: Tensor,
    copies: tuple[Tensor, Tensor] | None = None,
) -> LeftOut:
    """Leave each sample out with its partner, then tell its class by the partner alone.

    What a class of one image looks like can only be learnt from classes of more: both samples
    leave the scatter (two rank-one terms), the partner becomes the class mean, of one image.

    Args:
        geometry: Of the statistics that contain the samples.
        points: The samples, turned by `geometry.spectrum.turn`, (R,D).
        labels: Position of their class in `geometry.classes`, (R,).
        partners: The turned samples of the same class that stay as the class mean, (R,D).
        copies: How many images of the class are the sample, and how many the partner, (R,) each,
            together fewer than all; default: 1 and 1.
    """
    u, v, means = points * geometry.scale, partners * geometry.scale, geometry.means
    n, mean = geometry.counts[labels], means[labels]
    k, k2 = (_copies(c, labels) for c in (copies or (None, None)))
    first = u - mean
    moved = mean - (k / (n - k))[:, None] * first  # the mean without the sample
    downdate = _PairDowndate(geometry, (first, v - moved), n, (k, k2))

    distances = downdate.lengths(
        (downdate.first * u).sum(1)[:, None] - downdate.first @ means.T,
        (downdate.second * u).sum(1)[:, None] - downdate.second @ means.T,
        _squared(u, means),
    )
    distances[torch.arange(len(u)), labels] = downdate.of(u - v)
    return LeftOut(
        distances=distances.clamp_min_(0),
        background=downdate.of(u),
        counts=_counts(geometry, labels, torch.ones(len(u), dtype=torch.float64)),
    )


class _PairDowndate:
    """Squared lengths after two rank-one terms have left the scatter."""

    def __init__(
        self,
        geometry: Geometry,
        residuals: tuple[Tensor, Tensor],
        n: Tensor,
        copies: tuple[Tensor, Tensor],
    ) -> None:
        self.first, self.second = residuals
        (k, k2), unit = copies, _unit(geometry)
        self.fewer = _fewer(geometry, k + k2)
        self.both = (self.first * self.second).sum(1)
        self.gain1 = _gain(k * n / (n - k) * unit, self.first.square().sum(1))
        length = self.second.square().sum(1) + self.gain1 * self.both.square()
        self.gain2 = _gain(k2 * (n - k) / (n - k - k2) * unit, length)

    def of(self, vectors: Tensor) -> Tensor:
        """Squared lengths (R,) of whitened vectors (R,D)."""
        along = [(e * vectors).sum(1)[:, None] for e in (self.first, self.second)]
        return self.lengths(*along, vectors.square().sum(1)[:, None])[:, 0]

    def lengths(self, along1: Tensor, along2: Tensor, squared: Tensor) -> Tensor:
        """Squared lengths (R,K) from products with the two residuals and the old lengths."""
        gain1, gain2 = self.gain1[:, None], self.gain2[:, None]
        moved = along2 + gain1 * self.both[:, None] * along1
        longer = squared + gain1 * along1.square() + gain2 * moved.square()
        return longer * self.fewer[:, None]


def _unit(geometry: Geometry) -> float:
    """What one unit of scatter is in the whitened space; 0 if no scatter entered it."""
    return (1 - geometry.shrinkage) / max(geometry.spectrum.dof, 1.0)


def _fewer(geometry: Geometry, n: Tensor) -> Tensor:
    """Factor on squared distances as `n` degrees of freedom go: the covariance divides by less."""
    if geometry.shrinkage == 1:
        return torch.ones_like(n)
    dof = geometry.spectrum.dof
    return (dof - n).clamp_min(1.0) / dof


def _gain(share: Tensor, length: Tensor) -> Tensor:
    """Sherman-Morrison: what the inverse gains along a residual whose outer product leaves."""
    return share / (1 - share * length).clamp_min(_LEAST)


def _copies(copies: Tensor | None, labels: Tensor) -> Tensor:
    """Number of copies per row, float64 (R,)."""
    return (torch.ones_like(labels) if copies is None else copies).to(torch.float64)


def _squared(u: Tensor, means: Tensor) -> Tensor:
    """Squared distances (R,P); may round to just below zero."""
    return (u.square().sum(1)[:, None] + means.square().sum(1)).sub_(2 * u @ means.T)


def _counts(geometry: Geometry, labels: Tensor, own: Tensor) -> Tensor:
    """Images per class (R,P), the own class's replaced."""
    counts = geometry.counts.repeat(len(labels), 1)
    counts[torch.arange(len(labels)), labels] = own
    return counts
