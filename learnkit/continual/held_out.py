"""Held-out logits and scores: of images not learned, to fit thresholds and temperatures on.

Validation images are such; of remembered images, the closed-form leave-one-out values are. Both are
used side by side. Without either, images are drawn from the fitted distribution, and the result
says so. Nearest-neighbour scores are measured from a reference, the remembered features.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from learnkit.continual.closed_form.linear import (
    MAX_REFERENCE,
    LeaveOneOut,
    LinearClassifier,
)
from learnkit.continual.closed_form.loo_samples import (
    LooSamples,
    Prior,
    prior_weights,
    spread_evenly,
)
from learnkit.continual.closed_form.threads import in_threads
from learnkit.continual.closed_form.whitening import Geometry
from learnkit.continual.memory import FeatureMemory
from learnkit.continual.settings import RULES
from learnkit.continual.statistics import ClassStatistics
from learnkit.uncertainty.checks import Array
from learnkit.uncertainty.ood import Neighbors

MIXED = "validation and leave-one-out"
_BY_ROW = ("logits", "labels", "weights", "mahalanobis", "relative", "shift", "knn", "images")


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Logits and scores of R images by a classifier that none of them has taught.

    `logits (R,P)` before the temperature, `labels (R,)` places of their classes, `weights (R,)`
    summing to 1, and the parts of an OOD score (R,): `mahalanobis` and `relative` distances, and
    `knn`, the distance to the nearest remembered feature, infinite where no other is remembered.
    `shift (R,)` is added to all logits of a row for its energy. `images (R,)` is the same number
    for rows of one image; any but the first of them plays a class of one image.
    The first `n_fresh` are validation images. `source` is "validation", "leave-one-out", the two
    joined by "and", or "parametric".
    """

    logits: Array
    labels: Array
    weights: Array
    mahalanobis: Array
    relative: Array
    shift: Array
    knn: Array
    images: Array
    source: str
    n_fresh: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def first_rows(self) -> Array:
        """The first row of each image, ascending."""
        return np.sort(np.unique(self.images, return_index=True)[1])

    def picked(self, rows: Array) -> HeldOut:
        """Some rows, in ascending order, their weights summing to 1 again."""
        picked = {name: getattr(self, name)[rows] for name in _BY_ROW}
        n_fresh = int((rows < self.n_fresh).sum())
        source = self.source
        if source == MIXED:
            source = {0: "leave-one-out", len(rows): "validation"}.get(n_fresh, MIXED)
        picked["weights"] = picked["weights"] / picked["weights"].sum()
        return HeldOut(**picked, source=source, n_fresh=n_fresh)


@dataclass(frozen=True, eq=False)
class Reference:
    """Remembered features to search for the nearest: K in all, the first of each class by hash.

    `labels (K,)` are their classes, `starts (P,)` is where each class begins, `sizes (P,)` how many
    it has.
    """

    neighbors: Neighbors
    labels: Array
    sizes: Array
    starts: Array

    @classmethod
    def of(cls, memory: FeatureMemory) -> Reference:
        """Return all features of a memory, or as many of each class as can be searched."""
        per_class = None
        if len(memory) * memory.n_features > MAX_REFERENCE:
            per_class = max(1, MAX_REFERENCE // (memory.n_features * len(memory.cells)))
        features, labels = (rows.numpy() for rows in memory.all(per_class))
        sizes = np.bincount(labels, minlength=len(memory.cells))
        return cls(Neighbors(features), labels, sizes, sizes.cumsum() - sizes)

    def __len__(self) -> int:
        return len(self.labels)

    def places(self, labels: Array, positions: Array) -> Array:
        """Rows of remembered features by class and position; -1 for those left aside."""
        aside = (positions < 0) | (positions >= self.sizes[labels])
        return np.where(aside, -1, self.starts[labels] + positions)


def collect_held_out(
    stats: ClassStatistics,
    validation: FeatureMemory,
    linear: LinearClassifier,
    reference: Reference,
    prior: Prior,
) -> HeldOut:
    """Logits and scores of validation images and of remembered ones by leave-one-out.

    Args:
        stats: The statistics, in the order of names and without empty classes.
        validation: Validation features of the same classes.
        linear: The classifier of these statistics.
        reference: Remembered features.
        prior: "training" weighs classes by their images, "uniform" all alike.
    """
    fresh, labels = validation.all()
    loo, mass = linear.loo, prior_weights(stats.counts.to(torch.float64), prior)
    rows = torch.arange(len(loo.labels))
    if not len(fresh) and not len(rows):
        fresh, labels = draw_images(linear.geometry)
        return _of_fresh(linear, reference, fresh, labels, spread_evenly(mass, labels))
    kinds = (
        labels,
        *(loo.labels[rows[kind]] for kind in (rows < loo.n_single, rows >= loo.n_single)),
    )
    weights = held_out_weights(mass, *kinds)
    # left-out rows that fade to nothing beside many validation images are not even scored
    used = weights[len(labels) :] > 0
    left_out = _of_left_out(linear, reference, rows[used], weights[len(labels) :][used])
    if not len(fresh):
        return left_out
    seen = _of_fresh(linear, reference, fresh, labels, weights[: len(labels)])
    if not len(left_out):  # no second table of logits, the largest thing there is
        return replace(seen, source="validation", n_fresh=len(seen))
    # again, now that both are scored; the bias changes weights and makes none 0
    weights = held_out_weights(
        mass, *kinds, squared_bias=squared_bias(seen, left_out, linear.geometry.spectrum.rules)
    )
    return _joined(seen, left_out, weights[weights > 0].numpy())


def _joined(seen: HeldOut, left_out: HeldOut, weights: Array) -> HeldOut:
    """Validation images before remembered ones."""
    joined = {
        name: np.concatenate([getattr(seen, name), getattr(left_out, name)]) for name in _BY_ROW
    }
    return HeldOut(**joined | {"weights": weights}, source=MIXED, n_fresh=len(seen))


def squared_bias(seen: HeldOut, left_out: HeldOut, rules: int = RULES) -> float:
    """Squared bias of leaving out against validation images, in units of one image's variance.

    A network trained on the learned images takes them for more ordinary than fresh ones, and so do
    near copies. The bias is the difference of the means, of the Mahalanobis scores or of the
    margins by which the true class leads, whichever is larger, less two standard errors, so that
    chance is taken for a bias in one of twenty cases, and for a small one then. The mean of few
    images is not normal: of one it takes 4.4 (Cantelli's inequality), by the first rules two. 0
    where no class has both kinds.
    """
    seen, left_out, _ = mixed_alike(seen, left_out)
    if not len(seen):
        return 0.0
    few = [np.square(rows.weights).sum() for rows in (seen, left_out)]
    if rules > 3:  # two rows of one image are one
        few[1] = max(few[1], 1 / len(left_out.first_rows))
    error = np.sqrt(sum(few))
    allowed = 2.0 if rules == 1 else 2.0 + 2.4 * max(few)
    found = [0.0]
    for read in (lambda rows: rows.mahalanobis, _margins):
        pairs = [(read(rows), rows.weights) for rows in (seen, left_out)]
        means = [weights @ values for values, weights in pairs]
        spread = max(
            weights @ np.square(values - mean)
            for (values, weights), mean in zip(pairs, means, strict=True)
        )
        if spread > 0:
            found.append(abs(means[0] - means[1]) / np.sqrt(spread) - allowed * error)
    return float(max(found)) ** 2


def mixed_alike(one: HeldOut, other: HeldOut) -> tuple[HeldOut, HeldOut, tuple[Array, Array]]:
    """(both, which rows of each these are) of the classes that both have, which weigh alike.

    Else unlike classes would show as a difference of the two.
    """
    rows = (
        np.flatnonzero(np.isin(one.labels, other.labels)),
        np.flatnonzero(np.isin(other.labels, one.labels)),
    )
    one, other = one.picked(rows[0]), other.picked(rows[1])
    return _mixed_as(one, other), _mixed_as(other, one), rows


def _mixed_as(rows: HeldOut, others: HeldOut) -> HeldOut:
    """Rows whose classes weigh as in both together."""
    places = np.concatenate([rows.labels, others.labels])
    mass = np.bincount(places, np.concatenate([rows.weights, others.weights]))
    weights = (mass / np.maximum(np.bincount(rows.labels, minlength=len(mass)), 1))[rows.labels]
    return replace(rows, weights=weights / weights.sum())


def _margins(rows: HeldOut) -> Array:
    """By how much the logit of the true class leads the next (R,); zeros for a single class."""
    if rows.logits.shape[1] == 1:
        return np.zeros(len(rows))
    at = rows.labels[:, None]
    others = rows.logits.copy()
    np.put_along_axis(others, at, -np.inf, 1)
    return np.take_along_axis(rows.logits, at, 1)[:, 0] - others.max(1)


# A remembered image left out is not quite a fresh one: it comes from the day of the others, and
# what was held fixed has seen it. However many a class has, together they say no more than so many
# validation images of it; and beside a full memory of validation images, nothing.
_LOO_IS_WORTH = 20.0
_ENOUGH = 64
# Rows that play a class of one image are of other classes, and say less about it.
_PAIRS_ARE_WORTH = 4.0


def held_out_weights(
    mass: Tensor, fresh: Tensor, single: Tensor, pairs: Tensor, *, squared_bias: float = 0.0
) -> Tensor:
    """Weights (F + S + R,) summing to 1 of validation images, left-out rows, and pairs.

    The mass of a class is shared by its validation images, 1 each, and its L left-out rows,
    together `k L / (k + L)`: the inverse of the variance 1 / L and a squared bias of 1 / k, in
    units of one image's variance. That fades to 0 as validation images come near `_ENOUGH`. Each of
    them adds to what its class has, and takes away no more than it brings.

    Args:
        mass: Of each class, above 0, (P,).
        fresh: Class of each validation image, (F,).
        single: Class of each row left out alone, (S,).
        pairs: Class of each row that plays a class of one image, (R,).
        squared_bias: Of left-out rows as these images show it, beyond the usual one.
    """
    n_fresh, n_left = (
        torch.bincount(rows, minlength=len(mass)).double() for rows in (fresh, single)
    )
    fade = (1 - n_fresh / _ENOUGH).clamp_min(0)
    most = 1 / (1 / _LOO_IS_WORTH + squared_bias)
    by_left = _worth(n_left, most) * fade
    by_pairs = torch.zeros_like(mass)
    by_pairs[n_left == 0] = _worth(torch.tensor(len(pairs)).double(), min(_PAIRS_ARE_WORTH, most))
    by_pairs *= fade
    # 1e-300: by 0 it would be infinite, and infinity times no pair is NaN
    unit = mass / (n_fresh + by_left + by_pairs).clamp_min(1e-300)
    # shares that sum to 1, each class's rows together alike
    share = spread_evenly(torch.ones_like(mass), pairs)
    share = share / share.sum() if len(pairs) else share
    played = share * float((unit * by_pairs).sum())
    weights = torch.cat([unit[fresh], (unit * by_left / n_left.clamp_min(1))[single], played])
    return weights / weights.sum()


def _worth(n: Tensor, most: float) -> Tensor:
    """How many validation images `n` other rows say as much as: nearly n if few, never `most`."""
    return n * most / (n + most)


_AT_ONCE = 1024  # rows that one thread scores at a time, whatever their number


def _of_fresh(
    linear: LinearClassifier,
    reference: Reference,
    features: Tensor,
    labels: Tensor,
    weights: Tensor,
) -> HeldOut:
    """Of embedded features (N,D) that the classifier has not learned."""
    distances, neighbors = linear.geometry.distances, reference.neighbors
    logits = np.empty((len(features), len(linear.bias)))
    mahalanobis, relative, knn = np.empty((3, len(features)))

    def score(first: int) -> None:
        rows = slice(first, first + _AT_ONCE)
        embedded = features[rows].numpy()
        logits[rows] = linear.logits(features[rows]).numpy()
        relative[rows] = distances.relative(embedded)
        mahalanobis[rows] = relative[rows] + distances.from_center(embedded)
        knn[rows] = neighbors.nearest(embedded)

    # both `squares` and `distances` are made here: threads would make them several times
    compared = len(neighbors.squares) + features.shape[1] + 2 * logits.shape[1]
    n_products = min(len(features), _AT_ONCE) * features.shape[1] * compared
    in_threads(score, range(0, len(features), _AT_ONCE), n_products)
    return HeldOut(
        logits=logits,
        labels=labels.numpy(),
        weights=weights.numpy(),
        mahalanobis=mahalanobis,
        relative=relative,
        shift=np.zeros_like(relative),
        knn=knn,
        images=-1 - np.arange(len(features)),  # rows of the memory count from 0
        source="parametric",
    )


def _of_left_out(
    linear: LinearClassifier, reference: Reference, rows: Tensor, weights: Tensor
) -> HeldOut:
    """Of these rows of the remembered samples, each left out."""
    loo = linear.loo
    # all rows as they are: no copy of the largest table
    logits = loo.logits if len(rows) == len(loo.logits) else loo.logits[rows]
    return HeldOut(
        logits=logits.numpy(),
        labels=loo.labels[rows].numpy(),
        weights=weights.numpy(),
        mahalanobis=held_out_mahalanobis(linear)[rows].numpy(),
        relative=loo.relative[rows].numpy(),
        shift=loo.shift[rows].numpy(),
        knn=nearest_other(loo, rows, reference),
        images=loo.rows[rows].numpy(),
        source="leave-one-out",
    )


def nearest_other(loo: LeaveOneOut, rows: Tensor, reference: Reference) -> Array:
    """Distance of left-out samples to the nearest remembered one that is not left out (R,)."""
    memory, at = loo.memory, loo.rows[rows]
    labels, features = memory.labels[at].numpy(), memory.embedded(at)
    own = memory.members[at]  # a group leaves as a whole
    positions = memory.positions[own.clamp_min(0)].masked_fill(own < 0, -1)
    own = reference.places(labels[:, None], positions.numpy())
    lone = (rows >= loo.n_single).numpy()

    def hide(distances: Array, part: slice) -> None:
        known = np.nonzero(own[part] >= 0)
        distances[known[0], own[part][known]] = np.inf
        # of a class played by one image its partner is all there is: it is added back below
        distances[lone[part, None] & (labels[part, None] == reference.labels)] = np.inf

    found = reference.neighbors.nearest(features.numpy(), hide)
    partners = memory.embedded(memory.partners[at].clamp_min(0))
    apart = (features - partners).norm(dim=1).numpy()
    return np.where(lone, np.minimum(found, apart), found)


_N_DRAWN = 512


# Spread of the squared distance of real images around its mean, beyond that of a normal one.
_SPREAD = 0.3


def draw_images(geometry: Geometry) -> tuple[Tensor, Tensor]:
    """(embedded features (R,D), places (R,)) drawn around the class means, always the same.

    They differ from the class means as images yet to come would, on average; their squared
    distances vary by at least `_SPREAD`, as those of real images do.
    """
    spectrum, n_classes = geometry.spectrum, len(geometry.counts)
    places = torch.arange(n_classes).repeat(-(-_N_DRAWN // n_classes))
    if n_classes > _N_DRAWN:
        places = places[:: n_classes // _N_DRAWN]
    generator = torch.Generator().manual_seed(0)
    shape = len(places), len(spectrum.values)
    noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    # along eigenvectors, as nothing can be left out (`fit_spectrum`)
    flat = torch.full_like(spectrum.values, spectrum.variance_per_axis)
    noise *= (flat if spectrum.is_flat else spectrum.values / spectrum.dof).sqrt()
    # the root, as `_SPREAD` is of squared distances
    noise *= (
        (1 + _SPREAD * torch.randn(len(places), 1, generator=generator).double())
        .clamp_min(0.1)
        .sqrt()
    )
    kept, variance = _true_means(geometry)
    drawn = kept[places, None] * spectrum.means[places] + noise * variance[places, None].sqrt()
    return spectrum.center + drawn @ spectrum.axes.T, places


def _true_means(geometry: Geometry) -> tuple[Tensor, Tensor]:
    """(share (P,) of its distance from the center a class mean keeps, variance factor (P,))."""
    # Estimated means lie further out than true ones by their own noise, and the covariance fits
    # the samples it was estimated from too well: images yet to come show both.
    counts, n = geometry.counts, float(geometry.counts.sum())
    leverage = 0.0 if geometry.spectrum.is_flat else (1 - geometry.shrinkage) * geometry.d_eff / n
    stretch = 1 / (1 - counts / (counts - 1).clamp_min(1) * leverage).clamp_min(0.05)
    n_classes = len(counts)
    # counted from their own mean, squared lengths fall short by one part in n_classes
    apart = geometry.lengths.mean() * n_classes / max(n_classes - 1, 1)
    kept = (1 - geometry.d_eff * stretch / counts / apart.clamp_min(1e-12)).clamp(0.05, 1)
    return kept, stretch * (1 + kept / counts)


_MANY = 200  # degrees of freedom to one that leaves, from which on it makes no difference


def held_out_mahalanobis(linear: LinearClassifier) -> Tensor:
    """`linear.loo.mahalanobis` (M,), with the round part of the covariance held.

    Rows that play a class of one image stay as they are.
    """
    loo, geometry = linear.loo, linear.geometry
    spectrum, alone = geometry.spectrum, loo.rows[: loo.n_single]
    if spectrum.is_flat or geometry.shrinkage == 1:
        return loo.mahalanobis
    leaving = loo.memory.leaving[alone]
    counted = [
        n_images for n_images in leaving.unique().tolist() if spectrum.dof <= _MANY * n_images
    ]
    if not counted:
        return loo.mahalanobis
    points, scores = spectrum.turn(loo.memory.features), loo.mahalanobis.clone()
    for n_images in counted:
        some = (leaving == n_images).nonzero()[:, 0]
        scores[some] = _held(linear, points, some, n_images)
    return scores


def _held(linear: LinearClassifier, points: Tensor, some: Tensor, n_images: float) -> Tensor:
    """Mahalanobis scores (K,) of some left-out samples, with each of which so many images leave.

    `points` are all rows of the memory in the axes of the spectrum.
    """
    loo, geometry = linear.loo, linear.geometry
    at = loo.rows[some]
    samples = LooSamples(
        points=points,
        memory=loo.memory,
        labels=torch.searchsorted(geometry.classes, loo.labels[some]),
        copies=loo.memory.copies[at],
        weights=loo.weights[some],
        rows=at,
        partners=at[:0],
        n_single=len(some),
    )
    other, factor = _counterweight(geometry, n_images)
    left_out = samples.left_out(other, slice(0, len(some)))
    held = replace(left_out, distances=left_out.distances * factor)
    return held.mahalanobis_scores(geometry.d_eff)


def _counterweight(geometry: Geometry, n_images: float) -> tuple[Geometry, float]:
    """(geometry, factor on squared distances) whose round part grows to the one that is wanted.

    It grows as so many images leave: the whole covariance is divided by fewer degrees of freedom.
    """
    share, dof = geometry.shrinkage, geometry.spectrum.dof
    if dof < n_images + 1:  # no scatter is left, the round part alone
        return geometry.spectrum.geometry(1.0), 1 / share
    # wanted is (1 - r) S / (dof - n) + r t I; leaving out multiplies all of it by dof / (dof - n)
    odds = share / (1 - share) * (dof - n_images) / dof
    return geometry.spectrum.geometry(odds / (1 + odds)), 1 / (1 + odds) / (1 - share)
