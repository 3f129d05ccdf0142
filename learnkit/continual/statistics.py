"""What is remembered of every class: numbers that add up exactly.

Counts, sums and products of features on an integer grid, held in float64, where sums of integers
are exact. Two sets of statistics from disjoint images therefore merge, in any order, to the very
bits that one pass over all images gives, and subtracting images leaves no trace of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from learnkit.continual.checks import check_images
from learnkit.continual.embedding import GRID, embed, largest_count, to_grid
from learnkit.continual.names import (
    check_distinct,
    check_known,
    clean_name,
    index_tensor,
)
from learnkit.continual.relabel import RelabelledSums
from learnkit.continual.sums import in_order
from learnkit.errors import StatisticsError

LIMIT = largest_count()
_BLOCK = 8192  # rows whose float64 grid is held at once


@dataclass(frozen=True, eq=False)
class ClassStatistics(RelabelledSums):
    """Additive statistics of classes; every operation returns new ones and changes nothing.

    `ClassStatistics.empty(n_features, root=...)` is where to begin; what is held is described at
    `ClassSums`.
    """

    def update(
        self,
        features: Tensor,
        labels: Sequence[Any],
        class_names: Sequence[str] | None = None,
    ) -> "ClassStatistics":
        """With the images of `features` (N, D) added, known and new classes mixed.

        Args:
            features: Pooled features as the network gives them, not embedded.
            labels: One class name per image, or places in `class_names`.
            class_names: In which order classes not yet known are appended, also ones without
                images; default: as they first appear in `labels`.

        Raises:
            DataError: Features that are no finite numbers, of another width or without a row; a
                label for every image is missing; or two names look alike.
            StatisticsError: More images than can be added up exactly.
        """
        grid, labels = self._checked(features, labels, class_names)
        self._check_room(len(grid))
        in_this_order = list(map(clean_name, class_names or ()))
        check_distinct(in_this_order)
        grown = self.with_classes([*in_this_order, *labels])
        index = index_tensor(grown.class_names, labels)
        return replace(
            grown,
            counts=grown.counts + torch.bincount(index, minlength=grown.n_classes),
            sums=grown.sums.index_add(0, index, grid),
            gram=grown.gram + _products(grid),
            memory=grown.memory.add(grid, index),
        )

    def merge(self, other: "ClassStatistics") -> "ClassStatistics":
        """With all images of `other` added, as if they had come here.

        Raises:
            StatisticsError: Width, square root or memory size differ, or there are too many images.
            DataError: Two class names look alike.
        """
        for what in "n_features", "root":
            _check_same(what, getattr(self, what), getattr(other, what))
        _check_same("memory_size", self.memory.size, other.memory.size)
        self._check_room(other.n_images)
        grown = self.with_classes(other.class_names)
        index = index_tensor(grown.class_names, other.class_names)
        return replace(
            grown,
            counts=grown.counts.index_add(0, index, other.counts),
            sums=grown.sums.index_add(0, index, other.sums),
            gram=grown.gram + other.gram,
            memory=grown.memory.merge(other.memory),
            forgotten=in_order([*self.forgotten, *other.forgotten]),
        )

    def subtract(self, features: Tensor, labels: Sequence[Any]) -> "ClassStatistics":
        """Without these images: counts, sums and products as if they had never been added.

        Features pushed out of the memory by them do not come back: as long as no class ever had
        more distinct features than the memory holds, the memory too is as before. A class left
        without images keeps its place.

        Raises:
            DataError: As `update`; or there is no such class.
            StatisticsError: These images were not all added, as far as can be seen.
        """
        grid, labels = self._checked(features, labels, None)
        for name in dict.fromkeys(labels):
            check_known(name, self.class_names)
        index = index_tensor(self.class_names, labels)
        memory = self.memory.remove(grid, index, self.counts.tolist())
        less = replace(
            self,
            counts=self.counts - torch.bincount(index, minlength=self.n_classes),
            sums=self.sums.index_add(0, index, -grid),
            gram=self.gram - _products(grid),
            memory=memory,
        )
        less._check_subtracted(self)
        return less

    def to_tensors(self) -> dict[str, Tensor]:
        """All numbers as named tensors; see `learnkit.continual.serialization`."""
        from learnkit.continual.serialization import to_tensors

        return to_tensors(self)

    @classmethod
    def from_tensors(
        cls,
        tensors: Mapping[str, Tensor],
        class_names: Sequence[str],
        *,
        root: bool,
        memory_size: int,
        forgotten_names: Sequence[str] = (),
    ) -> "ClassStatistics":
        """Statistics from what `to_tensors` gave.

        Raises:
            StatisticsError: Names, shapes, types or values cannot be those of class statistics.
        """
        from learnkit.continual.serialization import from_tensors

        return from_tensors(tensors, class_names, root, memory_size, forgotten_names)

    def _checked(
        self, features: Tensor, labels: Sequence[Any], class_names: Sequence[str] | None
    ) -> tuple[Tensor, list[str]]:
        """(features on the grid, clean labels) of what a caller gave."""
        features, labels = check_images(features, labels, class_names, self.n_features)
        return to_grid(embed(features, root=self.root)), labels

    def _check_room(self, n_new: int) -> None:
        total = self.n_images + n_new
        if total > LIMIT:
            raise StatisticsError(
                f"{total:,} images are more than add up exactly in float64 ({LIMIT:,}, so that "
                "sums of products stay below 2^53); leave images out"
            )

    def _check_subtracted(self, before: "ClassStatistics") -> None:
        """Refuse a result that no set of images could have."""
        for place in torch.nonzero(self.counts < 0).flatten().tolist():
            raise StatisticsError(
                f"class {self.class_names[place]!r} has {int(before.counts[place])} images; "
                f"{int(before.counts[place] - self.counts[place])} cannot be subtracted from it"
            )
        emptied = self.counts == 0
        wrong = emptied & (self.sums != 0).any(dim=1)
        wrong |= self.sums.abs().amax(dim=1) > self.counts * float(GRID)
        names = [self.class_names[place] for place in torch.nonzero(wrong).flatten().tolist()]
        if names or (self.gram.diagonal() < 0).any():
            raise StatisticsError(
                f"the features subtracted{f' from {names[:5]}' if names else ''} are not those "
                "that were added; subtract the same images, read by the same network"
            )


def _products(grid: Tensor) -> Tensor:
    """Sum of outer products of the rows, float64 integers (D, D)."""
    total = torch.zeros(grid.shape[1], grid.shape[1], dtype=torch.float64)
    for block in grid.split(_BLOCK):
        total.addmm_(block.T, block)
    return total


def _check_same(what: str, mine: Any, its: Any) -> None:
    if mine != its:
        raise StatisticsError(
            f"`{what}` is {mine} here and {its} there; only statistics of one network, collected "
            "with the same settings, can be merged"
        )
