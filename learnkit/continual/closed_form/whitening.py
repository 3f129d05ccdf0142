"""Whitening: the space in which classes are round, by their common covariance, and its moments.

One tridiagonalisation of the within-class scatter serves every shrinkage, as each adds a multiple
of the identity, and takes less than half the time of eigenvectors. With few images, samples and
class means lie in a space of few dimensions, and there eigenvectors cost nothing. Products of
either carry the classifier (`lda.py`) and the Mahalanobis scores alike.

All sums run over the classes in the order of their names, so that the result does not depend, not
in the last bit, on the order in which the classes arrived.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from learnkit.continual.closed_form.threads import in_threads
from learnkit.errors import ContinualNotInitializedError
from learnkit.uncertainty.ood import ClassDistances

# Total variance within a class, of unit-length features, where the data cannot tell: one image of
# each class, or copies of one image. Photographs in ImageNet networks have .35 to .55.
DEFAULT_VARIANCE = 0.5
# Copies of one image still differ by the rounding to the grid, which is no variance.
_NO_VARIANCE = 1e-6
_SAME = 1e-13  # relative difference of two scales that only rounding can tell apart
_AT_ONCE = 2**23  # numbers in vectors whose lengths are computed together


@dataclass(frozen=True, eq=False, repr=False)
class Moments:
    """First and second moments of embedded features, with some samples of every class.

    Everything "(P, ...)" goes by the classes that have images, in the order of their names, so that
    no result depends, not in the last bit, on the order in which the classes arrived.

    Attributes:
        places: column of each class among all, int64 (P,).
        n_classes: number of columns, those of classes without images included.
        counts: images of each class, float64 (P,).
        means: class means, float64 (P, D).
        scatter: sum over images of (z - class mean)(z - class mean)^T, float64 (D, D).
        dof: degrees of freedom of the scatter: images less groups.
        samples: some features of each class on the integer grid, int16 (m, D) each.
        copies: how many images of the class each of these is.
        groups: the first sample of the class that leaves together with each; itself, mostly.
        rules: what is derived by, see `Settings`.
    """

    places: Tensor
    n_classes: int
    counts: Tensor
    means: Tensor
    scatter: Tensor
    dof: float
    samples: tuple[Tensor, ...]
    copies: tuple[Sequence[int], ...]
    groups: tuple[Sequence[int], ...]
    rules: int = 2

    @property
    def n_features(self) -> int:
        """Width D of the features."""
        return len(self.scatter)

    @property
    def is_alone(self) -> list[bool]:
        """Which classes are one image, or one group: without it, nothing of them is left."""
        each = zip(self.counts.tolist(), self.copies, self.groups, strict=True)
        # several remembered images all of one group: so are, most likely, those not remembered
        return [
            n == 1 or (not any(first) and (sum(copies) == n or len(first) > 1))
            for n, copies, first in each
        ]


@dataclass(frozen=True, eq=False, repr=False)
class Spectrum:
    """The within-class scatter in its own axes, with the class means; all shrinkages come from it.

    `classes (P,)` are the places of the classes that have images, sorted by name; everything
    "(P, ...)" here and in what is derived goes by this order. `axes (D,K)` are orthonormal columns,
    `means (P,K)` the class means in these axes, counted from their common `center (D,)`, `values
    (K,)` the eigenvalues of the scatter, ascending. `tridiagonal` is the scatter in these axes:
    diagonal (K,) and what is beside it (K-1,); None if they are the eigenvectors. `dof` is the
    number of images less the number of classes. K is D, or less: then samples and means have no
    part outside these axes, and there is no scatter.
    """

    classes: Tensor
    counts: Tensor
    values: Tensor
    axes: Tensor
    center: Tensor
    means: Tensor
    dof: float
    tridiagonal: tuple[Tensor, Tensor] | None = None
    rules: int = 2

    @property
    def n_features(self) -> int:
        """Width D of the features."""
        return len(self.axes)

    @cached_property
    def total(self) -> float:
        """Sum of the scatter over all axes."""
        return float(self.values.sum())

    @cached_property
    def spread_of_means(self) -> float:
        """Mean squared distance of the class means from their mean."""
        return float(self.means.var(0, correction=0).sum())

    def scatter_along(self, vectors: Tensor) -> float:
        """Mean scatter v^T S v of `vectors (N,K)` in these axes."""
        diagonal, beside = self.tridiagonal or (self.values, None)
        found = vectors.square().mean(0) @ diagonal
        if beside is not None:
            found += 2 * (vectors[:, 1:] * vectors[:, :-1]).mean(0) @ beside
        return float(found)

    @property
    def is_flat(self) -> bool:
        """True if no class shows any variation: there is no covariance to estimate."""
        return self.dof < 1 or self.total / self.dof < _NO_VARIANCE

    @property
    def variance_per_axis(self) -> float:
        """Mean over the axes of the variance within classes; a default if there is none."""
        return self._variance / self.n_features

    @property
    def _variance(self) -> float:
        return DEFAULT_VARIANCE if self.is_flat else self.total / self.dof

    @property
    def unit_of_distance(self) -> float:
        """What squared distances are counted in: the variance within classes."""
        return self._variance if self.rules > 1 else DEFAULT_VARIANCE

    def turn(self, features: Tensor) -> Tensor:
        """Features (N,D), embedded, in these axes and counted from the center: float64 (N,K)."""
        return (features.to(torch.float64) - self.center) @ self.axes

    def factors(self, ridge: float) -> tuple[Tensor, Tensor | None]:
        """D (K,), and L beside its diagonal (K-1,), of scatter plus `ridge` times I as L D L^T.

        No L where these axes are eigenvectors. D is above 0: the scatter has no eigenvalue below,
        but for rounding, which is much less than a ridge.
        """
        if self.tridiagonal is None:
            return self.values + ridge, None
        diagonal, beside = self.tridiagonal
        pivots, factors, _ = _lapack().dpttrf((diagonal + ridge).numpy(), beside.numpy())
        return torch.from_numpy(pivots), torch.from_numpy(factors)

    def solve(self, vectors: Tensor, ridge: float) -> Tensor:
        """`vectors (...,K)` in these axes times the inverse of the scatter plus `ridge` times I."""
        pivots, factors = self.factors(ridge)
        if factors is None:
            return vectors / pivots
        # a row of ours is a column of LAPACK's, which solves for one after the other
        flat = vectors.reshape(-1, vectors.shape[-1]).numpy()
        solved, _ = _lapack().dpttrs(pivots.numpy(), factors.numpy(), flat.T)
        return torch.from_numpy(solved.T).view(vectors.shape)

    def squared_lengths(self, vectors: Tensor, ridges: Sequence[float]) -> Tensor:
        """Products v^T (scatter + ridge I)^-1 v (R,N) of `vectors (N,K)`, for each of R ridges."""
        each = [self.factors(ridge) for ridge in ridges]
        inverses = 1 / torch.stack([pivots for pivots, _ in each])
        if self.tridiagonal is None:
            return inverses @ vectors.square().T
        # one axis after the other, all vectors and all ridges at once: a thread for each ridge
        # would wait for the others at every step
        before = np.stack([np.r_[0, factors] for _, factors in each], 1)[:, :, None]
        now, found = np.zeros((2, len(ridges), len(vectors)))
        part, columns = np.empty_like(now), vectors.T.contiguous().numpy()
        for column, factor, inverse in zip(
            columns, before, inverses.T[:, :, None].numpy(), strict=True
        ):
            np.multiply(now, factor, out=part)
            np.subtract(column, part, out=now)
            np.square(now, out=part)
            part *= inverse
            found += part
        return torch.from_numpy(found)

    def geometry(self, shrinkage: float) -> Geometry:
        """Whitened space of the covariance `(1 - r) S / dof + r t I`, t the mean variance per axis.

        With shrinkage 1, all that is left is `t I`. A flat spectrum has no other.
        """
        if self.is_flat or shrinkage == 1:
            scale = torch.full_like(self.values, self.variance_per_axis**-0.5)
            return Geometry(self, 1.0, None, scale, float(self.n_features))
        keep = 1 - shrinkage
        # S + r / (1 - r) (total / D) I: the covariance is this times (1 - r) / dof
        ridge = shrinkage / keep * self.total / self.n_features
        scale = (self.dof / keep / (self.values + ridge)).sqrt()
        # the variance within classes, values / dof, as it is in the whitened space
        d_eff = float((self.values / (self.values + ridge)).sum()) / keep
        return Geometry(self, shrinkage, ridge, scale, d_eff)


@dataclass(frozen=True, eq=False, repr=False)
class Geometry:
    """The whitened space of one shrinkage: squared lengths in it are Mahalanobis distances.

    The covariance is the scatter plus `ridge` times the identity, divided by `factor`; where
    `ridge` is None, a multiple of the identity. `scale (K,)` says by how much each of its
    eigenvectors is stretched. `d_eff` is the average squared distance of a sample from its own,
    perfectly known, mean: the debt of a mean of n images is `d_eff / n`.
    """

    spectrum: Spectrum
    shrinkage: float
    ridge: float | None
    scale: Tensor
    d_eff: float

    @property
    def classes(self) -> Tensor:
        """Indices of the classes that have images, sorted by name, int64 (P,)."""
        return self.spectrum.classes

    @property
    def counts(self) -> Tensor:
        """Number of images of each of `classes`, float64 (P,)."""
        return self.spectrum.counts

    @property
    def factor(self) -> float:
        """Of the covariance: the degrees of freedom, without what is shrunk."""
        return self.spectrum.dof / (1 - self.shrinkage)

    def solve(self, vectors: Tensor) -> Tensor:
        """Turned `vectors (...,K)` times the inverse covariance."""
        if self.ridge is None or self.spectrum.tridiagonal is None:
            return vectors * self.scale.square()
        return self.spectrum.solve(vectors, self.ridge).mul_(self.factor)

    def squares(self, vectors: Tensor) -> Tensor:
        """Squared lengths (...,) of turned `vectors (...,K)` in the whitened space."""
        return torch.linalg.vecdot(self.solve(vectors), vectors)

    @cached_property
    def weights(self) -> Tensor:
        """Vectors (P,K) whose products with turned features are those with the whitened means."""
        return self.solve(self.spectrum.means)

    @cached_property
    def lengths(self) -> Tensor:
        """Squared lengths (P,) of the whitened means."""
        return torch.linalg.vecdot(self.weights, self.spectrum.means)

    @property
    def log_det(self) -> float:
        """Log determinant of the covariance, over all D dimensions."""
        outside = self.spectrum.n_features - len(self.scale)
        return -2 * float(self.scale.log().sum() + outside * self.scale.amax().log())

    @cached_property
    def covectors(self) -> Tensor:
        """Vectors (P,D) whose products with centered features are those with the whitened means."""
        return self.weights @ self.spectrum.axes.T

    @cached_property
    def distances(self) -> ClassDistances:
        """Distances of embedded features to the class means, in numpy."""
        # the squared length of a mean, less what its being a mean of few images adds
        offsets = self.lengths - self.d_eff / self.counts
        base, axes = self._lengths()
        arrays = (self.spectrum.center, self.covectors, offsets)
        # contiguous as what is read from a file: then products of them are equal to the bit
        center, covectors, offsets, axes = (x.contiguous().numpy() for x in (*arrays, axes))
        return ClassDistances(center, covectors, offsets, base, axes)

    def _lengths(self) -> tuple[float, Tensor]:
        """(base, axes (D,r)) for squared lengths of whitened features, see `ClassDistances`."""
        if self.ridge is not None and self.spectrum.tridiagonal is not None:
            pivots, factors = self.spectrum.factors(self.ridge)
            axes = self.spectrum.axes.T.numpy().copy()
            for i, factor in enumerate(factors.tolist(), 1):  # L^-1, of L D L^T
                axes[i] -= factor * axes[i - 1]
            return 0.0, torch.from_numpy(axes.T) * (self.factor / pivots).sqrt()
        # With fewer images than dimensions most axes have no scatter and share one scale: it is in
        # the base, and the few others have less than that. What is outside the axes has no scatter.
        base = self.scale.amax().square()
        n_own = int((self.scale < self.scale.amax() * (1 - _SAME)).sum())
        if 2 * n_own > self.spectrum.n_features:
            return 0.0, self.spectrum.axes * self.scale
        first = len(self.scale) - n_own  # scatter grows along the axes, the scale falls
        own = self.scale[first:].square() - base
        return float(base), self.spectrum.axes[:, first:] * own.abs().sqrt()


def squared_lengths(geometries: Sequence[Geometry], vectors: Tensor) -> Tensor:
    """Squared lengths (G,N) of turned `vectors (N,K)` in whitened spaces of one spectrum."""
    # some at a time: what is computed on the way is as large as they are
    blocks = vectors.split(max(1, _AT_ONCE // max(vectors.shape[1], 1)))
    return torch.cat([_squared_lengths(geometries, block) for block in blocks], 1)


def _squared_lengths(geometries: Sequence[Geometry], vectors: Tensor) -> Tensor:
    found = torch.empty(len(geometries), len(vectors), dtype=torch.float64)
    ridged = [i for i, geometry in enumerate(geometries) if geometry.ridge is not None]
    for i in set(range(len(geometries))) - set(ridged):
        found[i] = vectors.square() @ geometries[i].scale.square()
    if ridged:
        spectrum, some = geometries[0].spectrum, [geometries[i] for i in ridged]
        lengths = spectrum.squared_lengths(vectors, [one.ridge for one in some])
        for i, one, its in zip(ridged, some, lengths, strict=True):
            found[i] = its * one.factor
    return found


def fit_spectrum(moments: Moments) -> Spectrum:
    """Spectrum of the within-class scatter: the one costly step, O(D^3), or O(D^2 K).

    Raises:
        ContinualNotInitializedError: No class has an image.
    """
    if not len(moments.places):
        raise ContinualNotInitializedError(
            "no class has an image yet; learn some before a classifier is asked for"
        )
    center = moments.means.mean(0)
    means = moments.means - center
    # without a sample images are drawn along all axes (`held_out.draw_images`)
    rank = int(moments.dof) if any(map(len, moments.samples)) else moments.n_features
    each = zip(moments.samples, moments.is_alone, strict=True)
    drawn = not any(len(samples) and not alone for samples, alone in each)
    values, axes, tridiagonal = _axes(moments.scatter, means, rank, drawn=drawn)
    return Spectrum(
        classes=moments.places,
        counts=moments.counts,
        # rounding takes eigenvalues of nothing a little below 0
        values=values.clamp_min_(0),
        axes=axes,
        center=center,
        means=means @ axes,
        dof=moments.dof,
        tridiagonal=tridiagonal,
        rules=moments.rules,
    )


# More axes than this share of all, and the whole decomposition takes no longer.
_FEW_AXES = 0.55
_SPARE = 8  # axes more than the rank, so that none of it is missed by bad luck
_MISSED = 1e-10  # share of the scatter
# So many times the classes the square of the width must be, or solving for their means, once for
# each shrinkage, takes longer than eigenvectors do.
_MANY_CLASSES = 1000
_BLOCK = 256  # columns of the axes that one thread makes at a time, whatever their number


def _axes(
    scatter: Tensor, means: Tensor, rank: int, *, drawn: bool
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]:
    """(eigenvalues (K,) ascending, axes (D,K), tridiagonal) of a scatter of at most this rank.

    The axes hold all scatter and all means (P,D). With few of both K is less than D: products of
    the scatter with random vectors span its range, exactly. `drawn` asks for eigenvectors, along
    which images are drawn where none can be left out.

    Source: Halko, Martinsson and Tropp, "Finding structure with randomness", 2011, section 4.1.
    """
    n_features = len(scatter)
    if not scatter.any():
        return scatter.new_zeros(n_features), torch.eye(n_features, dtype=scatter.dtype), None
    n_random = rank + _SPARE
    if n_random + len(means) <= _FEW_AXES * n_features:
        # a fixed seed: the same statistics give the same axes, to the bit
        shape, generator = (n_features, n_random), torch.Generator().manual_seed(0)
        random = torch.rand(shape, generator=generator, dtype=scatter.dtype).sub_(0.5)
        basis, _ = torch.linalg.qr(torch.cat([scatter @ random, means.T], 1))
        values, turned = _eigh(basis.T @ (scatter @ basis))
        if scatter.trace() - values.sum() <= _MISSED * scatter.trace():
            return values, basis @ turned, None
    # of little rank, the eigenvectors give distances fewer axes of their own (`Geometry.distances`)
    little = rank <= _FEW_AXES * n_features or n_features**2 < _MANY_CLASSES * len(means)
    if drawn or little:
        return *_eigh(scatter), None
    return _tridiagonalised(scatter)


def _eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """`torch.linalg.eigh` by numpy's LAPACK: .75 of the time at 1,280 axes, .6 at 2,048."""
    values, axes = np.linalg.eigh(matrix.numpy())
    return torch.from_numpy(values), torch.from_numpy(axes)


def _tridiagonalised(matrix: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """(eigenvalues (D,) ascending, axes (D,D), tridiagonal) by Householder reflections.

    A symmetric matrix is `axes T axes^T`, T with `tridiagonal`: diagonal (D,), beside it (D-1,).

    Source: Golub and Van Loan, "Matrix Computations", 2013, section 8.3.1.
    """
    n = len(matrix)
    # symmetric: its transpose is itself, in the order of Fortran
    lapack = _lapack()
    packed, diagonal, beside, taus, _ = lapack.dsytrd(matrix.numpy().T, lower=1, lwork=_BLOCK * n)
    values, _ = lapack.dsterf(diagonal, beside)
    axes = np.zeros((n, n), order="F")
    axes[0, 0] = 1  # which the first reflection leaves where it is

    # once: LAPACK's door copies a part of a matrix whose columns do not follow each other
    reflectors = np.asfortranarray(packed[1:, :-1])
    del packed

    def reflect(first: int) -> None:
        some = slice(first, min(first + _BLOCK, n - 1))
        unit = np.zeros((n - 1, some.stop - first), order="F")
        np.fill_diagonal(unit[first:], 1)
        # those after the last of these leave them where they are
        these = reflectors[:, : some.stop], taus[: some.stop]
        found = lapack.dormqr("L", "N", *these, unit, _BLOCK**2, overwrite_c=1)
        axes[1:, 1:][:, some] = found[0]

    in_threads(reflect, range(0, n - 1, _BLOCK), _BLOCK * n**2)
    return (
        torch.from_numpy(values),
        torch.from_numpy(axes),
        (torch.from_numpy(diagonal), torch.from_numpy(beside)),
    )


def _lapack() -> Any:
    """LAPACK in double precision; imported at the first refit, as predicting needs none of it."""
    from scipy.linalg import lapack

    return lapack
