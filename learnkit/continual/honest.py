"""What the classifier says of images it has not learned: the ground for thresholds and confidence.

Validation images are such; of remembered images, the closed-form leave-one-out values are. Where a
class has neither, images are drawn from the fitted distribution, and the result says so.
"""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from learnkit.continual.geometry import Geometry
from learnkit.continual.held_ridge import held_out_mahalanobis
from learnkit.continual.linear import LeaveOneOut, LinearClassifier
from learnkit.continual.memory import FeatureMemory
from learnkit.continual.statistics import ClassStatistics

# Remembered features searched for the nearest one: numbers held, and products of one fit.
_MAX_REFERENCE = 2**23
_MAX_PRODUCTS = 6_000_000_000
_MIN_ROWS = 256
_BLOCK = 2**20  # numbers of a table held at once
_N_DRAWN = 512
# What can be said of an image; "logits" carry the scores that are made of them.
PARTS = ("logits", "mahalanobis", "relative", "knn")
# Spread of the squared distance of real images around its mean, beyond that of a normal one.
_SPREAD = 0.3


@dataclass(frozen=True, eq=False)
class Reference:
    """Remembered features to search for the nearest: (K,D), the first of each class by hash.

    `starts (P,)` is where each class begins, `sizes (P,)` how many it has.
    """

    features: Tensor
    labels: Tensor
    sizes: Tensor
    starts: Tensor

    @classmethod
    def of(cls, memory: FeatureMemory) -> "Reference":
        """Return all features of a memory, or as many of each class as can be searched."""
        per_class = None
        if len(memory) * memory.n_features > _MAX_REFERENCE:
            per_class = max(1, _MAX_REFERENCE // (memory.n_features * len(memory.cells)))
        features, labels = memory.all(per_class)
        sizes = torch.bincount(labels, minlength=len(memory.cells))
        return cls(features, labels, sizes, sizes.cumsum(0) - sizes)

    def __len__(self) -> int:
        return len(self.features)

    @cached_property
    def lengths(self) -> Tensor:
        """Squared length of each, (K,)."""
        step = max(1, _BLOCK // self.features.shape[1])
        return torch.cat([rows.square().sum(1) for rows in self.features.split(step)])

    def places(self, labels: Tensor, positions: Tensor) -> Tensor:
        """Rows (R,) of remembered features by class and position; -1 for those left aside."""
        inside = positions < self.sizes[labels]
        return torch.where(inside, self.starts[labels] + positions, -1)


@dataclass(frozen=True, eq=False)
class Honest:
    """Honest judgements of R images: none of them has taught what judges it.

    `logits (R,P)` before the temperature, `labels (R,)` places of their classes, `weights (R,)`
    summing to 1, and the raw scores (R,) of `Judged` (those of what is remembered infinite where
    nothing else is). `source` is "validation", "leave-one-out" or "parametric".
    `n_validated` counts the classes judged by validation images.
    """

    logits: Tensor
    labels: Tensor
    weights: Tensor
    mahalanobis: Tensor
    relative: Tensor
    knn: Tensor
    source: str
    n_validated: int

    def __len__(self) -> int:
        return len(self.labels)


def collect_honest(
    stats: ClassStatistics,
    validation: FeatureMemory,
    linear: LinearClassifier,
    reference: Reference,
    prior: str,
) -> Honest:
    """Honest judgements: of validation images where a class has them, else by leave-one-out.

    Args:
        stats: The statistics, in the order of names and without empty classes.
        validation: Validation features of the same classes.
        linear: The classifier of these statistics.
        reference: Remembered features.
        prior: "training" weighs classes by their images, "uniform" all alike.
    """
    fresh, fresh_labels = validation.all()
    covered = torch.bincount(fresh_labels, minlength=stats.n_classes) > 0
    rows = _thinned(torch.nonzero(~covered[linear.loo.labels])[:, 0], reference)
    if not len(fresh) and not len(rows):
        return _drawn(stats, linear, reference, prior)
    judged = judge(linear, fresh, reference)
    loo = linear.loo
    single = rows < loo.n_single
    mass = _masses(stats, prior)
    weights = torch.cat(
        [_spread(mass, fresh_labels), _loo_weights(mass, stats, loo, rows, single, covered)]
    )
    return Honest(
        logits=_followed(judged.logits, loo.logits, rows),
        labels=torch.cat([fresh_labels, loo.labels[rows]]),
        weights=weights / weights.sum(),
        mahalanobis=torch.cat([judged.mahalanobis, held_out_mahalanobis(linear)[rows]]),
        relative=torch.cat([judged.relative, loo.relative[rows]]),
        knn=torch.cat([judged.knn, _nearest_other(loo, rows, reference)]),
        source="validation" if bool(covered.all()) else "leave-one-out",
        n_validated=int(covered.sum()),
    )


def _followed(first: Tensor, second: Tensor, rows: Tensor) -> Tensor:
    """`first` and these rows of `second`, which come as they are if they are all there is."""
    if not len(first) and len(rows) == len(second):
        return second
    return torch.cat([first, second[rows]])


@dataclass(frozen=True, eq=False)
class Judged:
    """Logits (N,P) and raw scores (N,) of images.

    `mahalanobis` and `relative` are those of the geometry, `knn` the distance to the nearest
    remembered feature.
    """

    logits: Tensor
    mahalanobis: Tensor
    relative: Tensor
    knn: Tensor


def judge(
    linear: LinearClassifier,
    features: Tensor,
    reference: Reference,
    parts: Collection[str] = PARTS,
) -> Judged:
    """Logits and scores of embedded features (N,D) the classifier has not learned.

    Only the `parts` asked for are computed; the others are infinite, or have no columns.
    """
    geometry, none = linear.geometry, _infinite(len(features))
    return Judged(
        linear.logits(features) if "logits" in parts else features[:, :0],
        geometry.mahalanobis_scores(features) if "mahalanobis" in parts else none,
        geometry.relative_scores(features) if "relative" in parts else none,
        _nearest(features, reference) if "knn" in parts else none,
    )


def _infinite(n: int) -> Tensor:
    return torch.full((n,), math.inf, dtype=torch.float64)


def _nearest(features: Tensor, reference: Reference, hide: Callable | None = None) -> Tensor:
    """Distance (N,) to the nearest remembered; infinite if there are none, or all are hidden.

    `hide(distances, rows)` may set some squared distances to infinity.
    """
    if not len(reference) or not len(features):
        return _infinite(len(features))
    parts = []
    for part in torch.arange(len(features)).split(max(1, _BLOCK // len(reference))):
        rows = features[part]
        distances = rows.square().sum(1)[:, None] + reference.lengths
        distances.sub_(2 * rows @ reference.features.T).clamp_min_(0)
        parts.append((distances if hide is None else hide(distances, part)).amin(1))
    return torch.cat(parts).sqrt()


def _nearest_other(loo: LeaveOneOut, rows: Tensor, reference: Reference) -> Tensor:
    """Distance of left-out samples to the nearest remembered one that is not left out (R,)."""
    memory = loo.memory
    at = loo.rows[rows]
    labels = memory.labels[at]
    features = memory.embedded(at)
    partners = memory.embedded(memory.partners[at].clamp_min(0))
    own = reference.places(labels, memory.positions[at])
    lone = rows >= loo.n_single

    def hide(distances: Tensor, part: Tensor) -> Tensor:
        known = own[part] >= 0
        distances[torch.nonzero(known)[:, 0], own[part][known]] = math.inf
        same = lone[part][:, None] & (labels[part][:, None] == reference.labels)
        return distances.masked_fill_(same, math.inf)

    found = _nearest(features, reference, hide)
    apart = (features - partners).norm(dim=1)
    return torch.where(lone, torch.minimum(found, apart), found)


def _thinned(rows: Tensor, reference: Reference) -> Tensor:
    """Evenly spaced rows, as many as can be compared with the reference in a second or so."""
    most = max(_MIN_ROWS, _MAX_PRODUCTS // max(reference.features.numel(), 1))
    return rows[:: -(-len(rows) // most)] if len(rows) > most else rows


def _masses(stats: ClassStatistics, prior: str) -> Tensor:
    """What each class weighs (P,)."""
    counts = stats.counts.to(torch.float64)
    return torch.ones_like(counts) if prior == "uniform" else counts


def _spread(mass: Tensor, labels: Tensor) -> Tensor:
    """The mass of each class spread evenly over its rows (R,)."""
    return (mass / torch.bincount(labels, minlength=len(mass)).clamp_min(1))[labels]


def _loo_weights(
    mass: Tensor,
    stats: ClassStatistics,
    loo: LeaveOneOut,
    rows: Tensor,
    single: Tensor,
    covered: Tensor,
) -> Tensor:
    """Weights of leave-one-out rows; rows that play a class of one image carry those classes."""
    labels = loo.labels[rows]
    weights = torch.zeros(len(rows), dtype=torch.float64)
    weights[single] = _spread(mass, labels[single])
    if not bool(single.all()):
        left_out = torch.zeros(stats.n_classes, dtype=torch.bool)
        left_out[loo.labels[: loo.n_single]] = True
        alone = float(mass[~left_out & ~covered].sum())
        share = _spread(torch.ones_like(mass), labels[~single])
        weights[~single] = max(alone, 1e-9) * share / share.sum()
    return weights


def _drawn(
    stats: ClassStatistics, linear: LinearClassifier, reference: Reference, prior: str
) -> Honest:
    """Judgements of images drawn around the class means as the covariance says, always the same.

    They differ from the class means as images yet to come would, on average; their squared
    distances vary by at least `_SPREAD`, as those of real images do.
    """
    geometry, spectrum = linear.geometry, linear.geometry.spectrum
    places = torch.arange(stats.n_classes).repeat(-(-_N_DRAWN // stats.n_classes))
    if stats.n_classes > _N_DRAWN:
        places = places[:: stats.n_classes // _N_DRAWN]
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(len(places), stats.n_features, generator=generator, dtype=torch.float64)
    noise *= _axis_spread(geometry)
    noise *= (
        (1 + _SPREAD * torch.randn(len(places), 1, generator=generator).double())
        .clamp_min(0.1)
        .sqrt()
    )
    kept, variance = _true_means(geometry)
    whitened = kept[places, None] * geometry.means[places] + noise * variance[places, None].sqrt()
    features = spectrum.center + (whitened / geometry.scale) @ spectrum.axes.T
    judged = judge(linear, features, reference)
    return Honest(
        judged.logits,
        places,
        _spread(_masses(stats, prior), places),
        judged.mahalanobis,
        judged.relative,
        judged.knn,
        "parametric",
        0,
    )


def _axis_spread(geometry: Geometry) -> Tensor:
    """Standard deviation of samples along the axes of the whitened space (D,)."""
    spectrum = geometry.spectrum
    if spectrum.is_flat:
        return torch.ones_like(spectrum.values)
    return (spectrum.values / spectrum.dof).sqrt() * geometry.scale


def _true_means(geometry: Geometry) -> tuple[Tensor, Tensor]:
    """(share (P,) of its distance from the center a class mean keeps, variance factor (P,)).

    Estimated means lie further out than true ones by their own noise, and the covariance fits the
    samples it was estimated from too well: images yet to come show both.
    """
    counts, n = geometry.counts, float(geometry.counts.sum())
    leverage = 0.0 if geometry.spectrum.is_flat else (1 - geometry.shrinkage) * geometry.d_eff / n
    stretch = 1 / (1 - counts / (counts - 1).clamp_min(1) * leverage).clamp_min(0.05)
    n_classes = len(counts)
    apart = geometry.means.square().sum(1).mean() * n_classes / max(n_classes - 1, 1)
    kept = (1 - geometry.d_eff * stretch / counts / apart.clamp_min(1e-12)).clamp(0.05, 1)
    return kept, stretch * (1 + kept / counts)
