"""Moments of classes: what every fit in closed form takes of the class statistics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


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
