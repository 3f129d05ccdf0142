"""Leave-one-out in closed form: distances of a remembered image as if it had never been seen.

Leaving a sample out changes the scatter by a rank-one term, so that its held-out distances follow
from the whitened space of all samples (Sherman-Morrison), at the price of a prediction. The ridge,
the center and the effective dimension are held at their values for all samples.

Source: Hoffbeck and Landgrebe, "Covariance matrix estimation and classification with limited
training data", 1996, for the covariance; the class means of the left-out sample move here as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from learnkit.continual.closed_form.whitening import Geometry

# 1 - leverage is never negative; rounding and a ridge of nothing must not make it zero.
_LEAST = 1e-12


@dataclass(frozen=True, eq=False, repr=False)
class LeftOut:
    """Distances of samples to every class as if the classifier had not seen them.

    `distances (R,P)` squared Mahalanobis distances to the classes of the geometry, `background
    (R,)` to its center, `lengths (R,P)` from there to the class means, `counts (R,P)` the number of
    images each mean then rests on.
    """

    distances: Tensor
    background: Tensor
    lengths: Tensor
    counts: Tensor

    def mahalanobis_scores(self, d_eff: float) -> Tensor:
        """Mahalanobis scores (R,), see `ClassDistances`."""
        return (self.distances - d_eff / self.counts).amin(1)  # the means are off by so much


class _Products:
    """Inner products, in the whitened space, of samples u, their class means m and all means."""

    def __init__(
        self, geometry: Geometry, points: Tensor, labels: Tensor, m_means: Tensor | None = None
    ) -> None:
        scaled = geometry.means * geometry.scale
        rows = torch.arange(len(points))
        if m_means is None:
            own, which = torch.unique(labels, return_inverse=True)
            m_means = (geometry.means[own] @ geometry.means.T)[which]
        self.uu = points.square() @ geometry.scale.square()
        self.u_means = points @ scaled.T
        self.m_means = m_means
        self.means_means = geometry.means.square().sum(1)
        self.um, self.mm = self.u_means[rows, labels], self.m_means[rows, labels]
        self.rows, self.labels = rows, labels

    @property
    def residual(self) -> Tensor:
        """Squared lengths of u - m, (R,)."""
        return (self.uu - 2 * self.um + self.mm).clamp_min(0)

    def squared_distances(self) -> Tensor:
        """Squared distances of the samples to all means, (R,P)."""
        return (self.uu[:, None] + self.means_means).sub_(self.u_means, alpha=2)


class _BothLeft(NamedTuple):
    """Gains of the inverse covariance along two residuals (R,) as both leave.

    `cross` is the product of the two before either has left.
    """

    gain1: Tensor
    gain2: Tensor
    cross: Tensor

    def lengths(self, along1: Tensor, along2: Tensor, squared: Tensor) -> Tensor:
        """Squared lengths (R,) or (R,P) afterwards.

        Args:
            along1: Products with the first residual before.
            along2: Products with the second.
            squared: Squared lengths before.
        """
        g1, g2, cross = (one.view(-1, *[1] * (along1.dim() - 1)) for one in self)
        moved = along2 + g1 * cross * along1
        return squared + g1 * along1.square() + g2 * moved.square()


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
    n, k = geometry.counts[labels], _copies(copies, labels)
    inner = _Products(geometry, points, labels)
    length, along = inner.residual, inner.uu - inner.um
    gain = _gain(k * n / (n - k) * _unit(geometry), length)
    fewer = _fewer(geometry, k)

    product = along[:, None] - inner.u_means + inner.m_means
    distances = inner.squared_distances().addcmul_(gain[:, None] * product, product)
    own = (n / (n - k)).square() * (length + gain * length.square())
    distances[inner.rows, labels] = own

    across = product.neg_().add_(along[:, None])  # of the residual with the class means
    lengths = (gain[:, None] * across).mul_(across).add_(inner.means_means)
    back = k / (n - k)
    across_own = inner.um - inner.mm - back * length
    moved = inner.mm - back * (2 * (inner.um - inner.mm) - back * length)
    lengths[inner.rows, labels] = moved + gain * across_own.square()
    return LeftOut(
        distances=distances.mul_(fewer[:, None]).clamp_min_(0),
        background=(inner.uu + gain * along.square()) * fewer,
        lengths=lengths.mul_(fewer[:, None]).clamp_min_(0),
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
    n, unit = geometry.counts[labels], _unit(geometry)
    k, k2 = (_copies(c, labels) for c in (copies or (None, None)))
    u = _Products(geometry, points, labels)
    v = _Products(geometry, partners, labels, u.m_means)
    uv = (points * partners) @ geometry.scale.square()
    back = k / (n - k)

    # first = u - m leaves with the sample; second = v - moved with the partner, where
    # moved = m - back * first is the class mean without the sample
    first_u, first_v, first_m = u.uu - u.um, uv - v.um, u.um - u.mm
    both = first_v - first_m + back * u.residual
    second_u = uv - u.um + back * first_u
    second_v = v.uu - v.um + back * first_v
    gain1 = _gain(k * n / (n - k) * unit, u.residual)
    second = v.residual + 2 * back * (first_v - first_m) + back.square() * u.residual
    gain2 = _gain(k2 * (n - k) / (n - k - k2) * unit, second + gain1 * both.square())
    lengths = _BothLeft(gain1, gain2, both).lengths
    fewer = _fewer(geometry, k + k2)

    first_means = u.u_means - u.m_means
    second_means = v.u_means - u.m_means + back[:, None] * first_means
    distances = lengths(
        first_u[:, None] - first_means, second_u[:, None] - second_means, u.squared_distances()
    )
    apart = (u.uu - 2 * uv + v.uu).clamp_min(0)
    own = lengths(first_u - first_v, second_u - second_v, apart)
    distances[u.rows, labels] = own
    mean_lengths = lengths(first_means, second_means, u.means_means)
    mean_lengths[u.rows, labels] = lengths(first_v, second_v, v.uu)
    return LeftOut(
        distances=distances.mul_(fewer[:, None]).clamp_min_(0),
        background=lengths(first_u, second_u, u.uu) * fewer,
        lengths=mean_lengths.mul_(fewer[:, None]).clamp_min_(0),
        counts=_counts(geometry, labels, torch.ones(len(points), dtype=torch.float64)),
    )


def _unit(geometry: Geometry) -> float:
    """Size of one unit of scatter in the whitened space; 0 if no scatter entered it."""
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


def _counts(geometry: Geometry, labels: Tensor, own: Tensor) -> Tensor:
    """Images per class (R,P), the own class's replaced."""
    counts = geometry.counts.repeat(len(labels), 1)
    counts[torch.arange(len(labels)), labels] = own
    return counts
