"""The reference: remembered features that nearest-neighbour scores are measured from."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from learnkit.continual.closed_form.linear import MAX_REFERENCE, LeaveOneOut
from learnkit.continual.memory import FeatureMemory
from learnkit.uncertainty.checks import Array
from learnkit.uncertainty.ood import Neighbors


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
    def of(cls, memory: FeatureMemory) -> "Reference":
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
        distances[lone[part, None] & (labels[part, None] == reference.labels)] = np.inf

    found = reference.neighbors.nearest(features.numpy(), hide)
    partners = memory.embedded(memory.partners[at].clamp_min(0))
    apart = (features - partners).norm(dim=1).numpy()
    return np.where(lone, np.minimum(found, apart), found)
