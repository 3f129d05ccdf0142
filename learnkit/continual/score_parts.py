"""The distance to the nearest remembered feature, of fresh images and of those left out."""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from learnkit.continual.closed_form.linear import LeaveOneOut, LinearClassifier
from learnkit.continual.memory import FeatureMemory

# Remembered features searched for the nearest one: numbers held, and products of one fit.
_MAX_REFERENCE = 2**23
_MAX_PRODUCTS = 6_000_000_000
_MIN_ROWS = 256
_BLOCK = 2**20  # numbers of a table held at once


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


def nearest(features: Tensor, reference: Reference, hide: Callable | None = None) -> Tensor:
    """Distance (N,) to the nearest remembered; infinite if there are none, or all are hidden.

    `hide(distances, rows)` may set some squared distances to infinity.
    """
    if not len(reference) or not len(features):
        return torch.full((len(features),), math.inf, dtype=torch.float64)
    parts = []
    for part in torch.arange(len(features)).split(max(1, _BLOCK // len(reference))):
        rows = features[part]
        distances = rows.square().sum(1)[:, None] + reference.lengths
        distances.sub_(2 * rows @ reference.features.T).clamp_min_(0)
        parts.append((distances if hide is None else hide(distances, part)).amin(1))
    return torch.cat(parts).sqrt()


def nearest_other(loo: LeaveOneOut, rows: Tensor, reference: Reference) -> Tensor:
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

    found = nearest(features, reference, hide)
    apart = (features - partners).norm(dim=1)
    return torch.where(lone, torch.minimum(found, apart), found)


def thinned(rows: Tensor, reference: Reference) -> Tensor:
    """Evenly spaced rows, as many as can be compared with the reference in a second or so."""
    most = max(_MIN_ROWS, _MAX_PRODUCTS // max(reference.features.numel(), 1))
    return rows[:: -(-len(rows) // most)] if len(rows) > most else rows


# What can be said of an image; "logits" carry the scores that are made of them.
PARTS = ("logits", "mahalanobis", "relative", "knn")


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
    geometry, none = linear.geometry, torch.full((len(features),), math.inf, dtype=torch.float64)
    relative, away = none, none
    if not {"mahalanobis", "relative"}.isdisjoint(parts):
        relative = geometry.relative_scores(features)
    if "mahalanobis" in parts:
        away = relative + geometry.squared_lengths(features)
    return Judged(
        linear.logits(features) if "logits" in parts else features[:, :0],
        away,
        relative if "relative" in parts else none,
        nearest(features, reference) if "knn" in parts else none,
    )
