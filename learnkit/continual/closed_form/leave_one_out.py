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

from learnkit.continual.closed_form.whitening import Geometry, squared_lengths

# 1 - leverage is never negative; rounding and a ridge of nothing must not make it zero.
_LEAST = 1e-12


@dataclass(frozen=True, eq=False, repr=False)
class LeftOut:
    """Distances of samples to every class as if the classifier had not seen them.

    `distances (R,P)` squared Mahalanobis distances to the classes of the geometry, `background
    (R,)` to the mean of the class means, `held (R,)` to what it was with the sample, `lengths
    (R,P)` from the mean of the class means to each of them (beside a partner, and by earlier rules,
    from what it was with the sample), `counts (R,P)` the number of images each mean then rests on.
    """

    distances: Tensor
    background: Tensor
    held: Tensor
    lengths: Tensor
    counts: Tensor

    def put(self, rows: Tensor, other: LeftOut) -> None:
        """Take the values of `rows` (K,) from K others, in place."""
        for mine, its in zip(vars(self).values(), vars(other).values(), strict=True):
            mine[rows] = its

    def mahalanobis_scores(self, d_eff: float) -> Tensor:
        """Mahalanobis scores (R,), see `ClassDistances`."""
        return (self.distances - d_eff / self.counts).amin(1)  # the means are off by so much


class _Products:
    """Inner products, in the whitened space, of samples u, their class means m and all means.

    `lengths (R,)` are the squared ones of the samples, where they are known.
    """

    def __init__(
        self,
        geometry: Geometry,
        points: Tensor,
        labels: Tensor,
        lengths: Tensor | None,
        m_means: Tensor | None = None,
    ) -> None:
        rows = torch.arange(len(points))
        if m_means is None:
            own, which = torch.unique(labels, return_inverse=True)
            m_means = (geometry.weights[own] @ geometry.spectrum.means.T)[which]
        self.uu = squared_lengths([geometry], points)[0] if lengths is None else lengths
        self.u_means = points @ geometry.weights.T
        self.m_means = m_means
        self.means_means = geometry.lengths
        self.um, self.mm = self.u_means[rows, labels], self.m_means[rows, labels]
        self.rows, self.labels = rows, labels

    @property
    def residual(self) -> Tensor:
        """Squared lengths of u - m, (R,)."""
        return (self.uu - 2 * self.um + self.mm).clamp_min(0)

    def squared_distances(self) -> Tensor:
        """Squared distances of the samples to all means, (R,P)."""
        # |u - m|^2 from products alone: no table of differences (R,P,D)
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
    geometry: Geometry,
    points: Tensor,
    labels: Tensor,
    copies: Tensor | None = None,
    lengths: Tensor | None = None,
) -> LeftOut:
    """Leave each sample out in turn, with all its copies; exact to rounding.

    Args:
        geometry: Of the statistics that contain the samples.
        points: The samples, turned by `geometry.spectrum.turn`, (R,D).
        labels: Position of their class in `geometry.classes`, (R,).
        copies: How many images of the class are this very one, (R,), fewer than all; default: 1.
        lengths: Of the samples, from `squared_lengths`, (R,); default: computed.
    """
    n, k = geometry.counts[labels], _copies(copies, labels)
    inner = _Products(geometry, points, labels, lengths)
    # k copies take k n / (n - k) r r^T from the scatter, r = u - m: the mean goes with them
    length, along = inner.residual, inner.uu - inner.um
    gain = _gain(k * n / (n - k) * _unit(geometry), length)
    fewer = _fewer(geometry, k)

    # r (u - m_c), along which the inverse of the covariance gains
    product = along[:, None] - inner.u_means + inner.m_means
    distances = inner.squared_distances().addcmul_(gain[:, None] * product, product)
    # u less its mean without the copies is n / (n - k) r
    own = (n / (n - k)).square() * (length + gain * length.square())
    distances[inner.rows, labels] = own

    across = product.neg_().add_(along[:, None])  # of the residual with the class means
    back = k / (n - k)
    # the center goes back by `aside` r, and the means lie that much further
    aside = back * follows(geometry, since=4)
    further = (2 * aside[:, None] * across).add_((aside.square() * length)[:, None])
    across += (aside * length)[:, None]
    lengths = (gain[:, None] * across).mul_(across).add_(further.add_(inner.means_means))
    # the own mean without the copies is m - back r
    own_back = back - aside
    across_own = inner.um - inner.mm - own_back * length
    moved = inner.mm - own_back * (2 * (inner.um - inner.mm) - own_back * length)
    lengths[inner.rows, labels] = moved + gain * across_own.square()
    return LeftOut(
        distances=distances.mul_(fewer[:, None]).clamp_min_(0),
        background=_lengthened(inner.uu, along, length, gain, back * follows(geometry)) * fewer,
        held=(inner.uu + gain * along.square()) * fewer,
        lengths=lengths.mul_(fewer[:, None]).clamp_min_(0),
        counts=_counts(geometry, labels, n - k),
    )


def follows(geometry: Geometry, since: int = 2) -> float:
    """How far the center moves as one class mean does, it is their mean; before these rules: 0.

    By the first rules it stayed: with few classes what is relative to it, and energy, then looked
    far more unusual left out than fresh, and nothing was flagged. Up to the third the lengths of
    the means counted from where it stayed. That told where the sample had been: of two ants and two
    bees .92 were right left out, and .79 of fresh ones.
    """
    return 1 / len(geometry.counts) if geometry.spectrum.rules >= since else 0.0


def _lengthened(uu: Tensor, along: Tensor, length: Tensor, gain: Tensor, by: Tensor) -> Tensor:
    """Squared lengths (R,) of u + `by` r, as the inverse of the covariance gains along r."""
    away = uu + 2 * by * along + by.square() * length
    return away + gain * (along + by * length).square()


def own_left_out(
    geometry: Geometry, points: Tensor, labels: Tensor, copies: Tensor, lengths: Tensor
) -> Tensor:
    """The distances (R,) to the own class alone; arguments of `leave_one_out`."""
    n, k = geometry.counts[labels], copies
    along = torch.linalg.vecdot(points, geometry.weights[labels])
    length = (lengths - 2 * along + geometry.lengths[labels]).clamp_min(0)  # of the residuals
    gain = _gain(k * n / (n - k) * _unit(geometry), length)
    own = (n / (n - k)).square() * (length + gain * length.square())
    return own * _fewer(geometry, k)


def log_det_left_out(
    geometry: Geometry,
    points: Tensor,
    labels: Tensor,
    copies: Tensor | None = None,
    lengths: Tensor | None = None,
) -> Tensor:
    """Log determinant (R,) of the covariance without each sample; arguments of `leave_one_out`."""
    n, k = geometry.counts[labels], _copies(copies, labels)
    residual = _Products(geometry, points, labels, lengths).residual
    # matrix determinant lemma, for one term of rank one
    leverage = k * n / (n - k) * _unit(geometry) * residual
    return _log_det(geometry, k) + (1 - leverage).clamp_min(_LEAST).log()


def _log_det(geometry: Geometry, n: Tensor) -> Tensor:
    """Log determinant (R,) of the covariance, divided by n degrees of freedom less."""
    return geometry.log_det - geometry.spectrum.n_features * _fewer(geometry, n).log()


def leave_pair_out(
    geometry: Geometry,
    points: Tensor,
    labels: Tensor,
    partners: Tensor,
    copies: tuple[Tensor, Tensor] | None = None,
    lengths: tuple[Tensor, Tensor] | None = None,
) -> LeftOut:
    """Leave each sample out with its partner, then tell its class by the partner alone.

    What a class of one image looks like can only be learnt from classes of more: both samples
    leave the scatter (two rank-one terms), the partner becomes the class mean, of one image. The
    lengths count from where the center stays: from where it moves, one image of a class of CIFAR-10
    beside 450 of each other gained .035 of its recall, and the others lost .016.

    Args:
        geometry: Of the statistics that contain the samples.
        points: The samples, turned by `geometry.spectrum.turn`, (R,D).
        labels: Position of their class in `geometry.classes`, (R,).
        partners: The turned samples of the same class that stay as the class mean, (R,D).
        copies: How many images of the class are the sample, and how many the partner, (R,) each,
            together fewer than all; default: 1 and 1.
        lengths: Of the samples and of the partners, as in `leave_one_out`.
    """
    n, unit = geometry.counts[labels], _unit(geometry)
    k, k2 = (_copies(c, labels) for c in (copies or (None, None)))
    known, known2 = lengths or (None, None)
    u = _Products(geometry, points, labels, known)
    v = _Products(geometry, partners, labels, known2, u.m_means)
    uv = torch.linalg.vecdot(points, geometry.solve(partners))
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
    # the center moves by this share of v - m, and u is that much further from it
    share = follows(geometry)
    second_m = v.um - u.mm + back * first_m
    away = u.uu - 2 * share * (uv - u.um) + share**2 * v.residual
    from_center = first_u - share * (first_v - first_m), second_u - share * (second_v - second_m)

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
        background=lengths(*from_center, away) * fewer,
        held=lengths(first_u, second_u, u.uu) * fewer,
        lengths=mean_lengths.mul_(fewer[:, None]).clamp_min_(0),
        counts=_counts(geometry, labels, torch.ones(len(points), dtype=torch.float64)),
    )


@dataclass(frozen=True, eq=False, repr=False)
class Group:
    """Samples of one class that leave together: near copies, or images of one burst or part.

    `points (R,K,D)` are turned by `geometry.spectrum.turn`, `copies (R,K)` says how many images of
    the class each is; 0 where there are fewer than K.
    """

    points: Tensor
    copies: Tensor

    @property
    def n_images(self) -> Tensor:
        """Images that leave, (R,)."""
        return self.copies.sum(1)

    def residuals(self, geometry: Geometry, labels: Tensor) -> Tensor:
        """Counted from the class means, (R,K,D)."""
        return self.points - geometry.spectrum.means[labels][:, None]

    def log_det(self, geometry: Geometry, labels: Tensor) -> Tensor:
        """Log determinant (R,) of the covariance without each group."""
        residuals = self.residuals(geometry, labels)
        rows = downdate(residuals, self.copies, geometry.counts[labels])
        kept, _ = _kept(_unit(geometry) * geometry.solve(rows) @ rows.mT)
        return _log_det(geometry, self.n_images) + kept.log().sum(1)


def leave_group_out(
    geometry: Geometry, points: Tensor, labels: Tensor, group: Group, means: Tensor | None = None
) -> LeftOut:
    """Leave whole groups out, one for each sample; exact to rounding.

    A group of K changes the scatter by a term of rank K: the Woodbury identity in place of that of
    Sherman and Morrison.

    Args:
        geometry: Of the statistics that contain the samples.
        points: The samples, turned by `geometry.spectrum.turn`, (R,D).
        labels: Position of their class in `geometry.classes`, (R,).
        group: What leaves with each, itself included; fewer images than the class has.
        means: Samples of the class, turned, that then are its mean, of one image, (R,D), as in
            `leave_pair_out`; default: the mean of the images that stay.
    """
    n, k, rows = geometry.counts[labels], group.n_images, torch.arange(len(points))
    residuals = group.residuals(geometry, labels)
    if means is None:
        moved = (group.copies[:, :, None] * residuals).sum(1) / (n - k)[:, None]
        own, own_counts = geometry.spectrum.means[labels] - moved, n - k
    else:
        own, own_counts = means, torch.ones_like(k)
    removed, fewer = downdate(residuals, group.copies, n), _fewer(geometry, k)
    gains = woodbury_gains(removed, _unit(geometry), geometry.solve(removed))

    # whitened, |x|^2 without the group is |x|^2 + |gains @ x|^2
    along_u = (gains @ points[:, :, None])[:, :, 0]
    along_means = gains @ geometry.spectrum.means.T
    along_own = (gains @ own[:, :, None])[:, :, 0]
    went = own - geometry.spectrum.means[labels]
    aside = follows(geometry, since=4) if means is None else 0.0
    from_center, center = points - follows(geometry) * went, aside * went
    along_center = (gains @ from_center[:, :, None])[:, :, 0]
    along_moved = (gains @ center[:, :, None])[:, :, 0]
    each = points, points - own, own - center, from_center, center
    uu, away, own_own, background, moved_moved = map(geometry.squares, each)
    inner = _Products(geometry, points, labels, uu)
    distances = inner.squared_distances() + (along_u[:, :, None] - along_means).square().sum(1)
    distances[rows, labels] = away + (along_u - along_own).square().sum(1)
    lengths = inner.means_means - 2 * center @ geometry.weights.T + moved_moved[:, None]
    lengths = lengths + (along_means - along_moved[:, :, None]).square().sum(1)
    lengths[rows, labels] = own_own + (along_own - along_moved).square().sum(1)
    return LeftOut(
        distances=distances.mul_(fewer[:, None]).clamp_min_(0),
        background=(background + along_center.square().sum(1)) * fewer,
        held=(uu + along_u.square().sum(1)) * fewer,
        lengths=lengths.mul_(fewer[:, None]),
        counts=_counts(geometry, labels, own_counts),
    )


def downdate(residuals: Tensor, copies: Tensor, n: Tensor) -> Tensor:
    """Rows B (R,K,D) so that the scatter about a mean of n images loses B^T B with the group.

    That is the sum of k r r^T, and what the mean moves: s s^T / (n - sum of k), s the sum of k r.
    """
    k, root = copies.sum(1), copies.sqrt()
    # the symmetric root of I + w w^T / (n - k), where w is `root` and |w|^2 = k
    grown = ((n / (n - k)).sqrt() - 1) / k
    total = (copies[:, :, None] * residuals).sum(1, keepdim=True)
    return root[:, :, None] * (residuals + grown[:, None, None] * total)


def _kept(leverage: Tensor) -> tuple[Tensor, Tensor]:
    """(eigenvalues (R,K) of 1 - leverage, its eigenvectors (R,K,K)) of symmetric ones (R,K,K)."""
    values, axes = torch.linalg.eigh(leverage)
    return (1 - values).clamp_min(_LEAST), axes


def woodbury_gains(rows: Tensor, unit: float, solved: Tensor) -> Tensor:
    """T (R,K,D) so that T^T T is what the inverse A^-1 gains as unit * B^T B leaves A.

    Args:
        rows: B, (R,K,D).
        unit: The factor.
        solved: B A^-1.
    """
    # Woodbury: unit (B A^-1)^T (I - unit B A^-1 B^T)^-1 B A^-1, the inner inverse by eigenvectors
    kept, axes = _kept(unit * solved @ rows.mT)
    return (unit / kept).sqrt()[:, :, None] * (axes.mT @ solved)


def _unit(geometry: Geometry) -> float:
    """Size of one unit of scatter in the whitened space; 0 if no scatter entered it."""
    return (1 - geometry.shrinkage) / max(geometry.spectrum.dof, 1.0)


def _fewer(geometry: Geometry, n: Tensor) -> Tensor:
    """Factor on squared distances as `n` degrees of freedom go: the covariance divides by less."""
    # no scatter is in the covariance, and nothing is divided by its degrees of freedom
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
