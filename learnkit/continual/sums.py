"""What is held of every class, and what can be read off it.

Counts, sums and products of features on an integer grid, in float64, where sums of integers are
exact. What is read off runs over the classes in the order of their names: the order in which they
arrived shows nowhere, not in the last bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from learnkit.continual.embedding import GRID
from learnkit.continual.memory import FeatureMemory
from learnkit.continual.names import check_distinct, clean_name, new_names
from learnkit.continual.settings import check_whole

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True, eq=False)
class Forgotten:
    """Number and sum of the images of a class forgotten without its images: (n,), (D,) integers.

    Their products stay in the Gram matrix; with these two their share of it stays a within-class
    one.
    """

    name: str
    count: int
    total: Tensor

    def key(self) -> tuple[Any, ...]:
        """What to sort by, so that the order of forgetting leaves no trace."""
        return self.name, self.count, tuple(self.total.tolist())


def in_order(forgotten: Iterable[Forgotten]) -> tuple[Forgotten, ...]:
    """Sorted, so that the order of forgetting leaves no trace."""
    return tuple(sorted(forgotten, key=Forgotten.key))


@dataclass(frozen=True, eq=False)
class ClassSums:
    """Sums over the images of every class; unchanging.

    Attributes:
        class_names: In order of arrival. A place is never given to another class: one that is
            forgotten keeps its place with count 0, and may come back to it.
        counts: Images per class, int64 (C,).
        sums: Sum of the features of each class on the grid, float64 integers (C, D).
        gram: Sum of outer products of all features on the grid, float64 integers (D, D).
        memory: Some features of every class.
        root: Whether features are square-rooted before they are scaled to length 1.
        forgotten: What forgotten classes leave behind in `gram`.
    """

    class_names: tuple[str, ...]
    counts: Tensor
    sums: Tensor
    gram: Tensor
    memory: FeatureMemory
    root: bool
    forgotten: tuple[Forgotten, ...] = ()

    @classmethod
    def empty(cls, n_features: int, *, root: bool, memory_size: int = 64) -> Self:
        """Statistics of no image.

        Args:
            n_features: Width D of the features.
            root: Whether to take square roots first: for features that are never negative.
            memory_size: Features remembered of each class; 0 for none.

        Raises:
            StatisticsError: A number is not a whole one, or out of range.
        """
        check_whole("n_features", n_features, least=1)
        check_whole("memory_size", memory_size, least=0)
        return cls(
            (),
            torch.zeros(0, dtype=torch.int64),
            torch.zeros(0, n_features, dtype=torch.float64),
            torch.zeros(n_features, n_features, dtype=torch.float64),
            FeatureMemory(memory_size, n_features),
            bool(root),
        )

    @property
    def n_classes(self) -> int:
        """Places of classes C, those without images included."""
        return len(self.class_names)

    @property
    def n_features(self) -> int:
        """Width D of the features."""
        return len(self.gram)

    @property
    def n_images(self) -> int:
        """Images in the Gram matrix: those of known classes and of forgotten ones."""
        return int(self.counts.sum()) + sum(one.count for one in self.forgotten)

    @property
    def n_groups(self) -> int:
        """Groups with a mean of their own: classes with images, and forgotten ones."""
        return int((self.counts > 0).sum()) + len(self.forgotten)

    @property
    def dof(self) -> int:
        """Of the within-class scatter: images less groups."""
        return self.n_images - self.n_groups

    @property
    def nbytes(self) -> int:
        """Bytes of all numbers held."""
        left = sum(one.total.nbytes + 8 for one in self.forgotten)
        return (
            sum(t.nbytes for t in (self.counts, self.sums, self.gram)) + left + self.memory.nbytes
        )

    def with_classes(self, names: Sequence[str]) -> Self:
        """With places for those of `names` that have none yet, without images.

        Raises:
            DataError: Two names look alike.
        """
        new = new_names(self.class_names, map(clean_name, names))
        if not new:
            return self
        class_names = (*self.class_names, *new)
        check_distinct(class_names)
        return replace(
            self,
            class_names=class_names,
            counts=torch.cat([self.counts, self.counts.new_zeros(len(new))]),
            sums=torch.cat([self.sums, self.sums.new_zeros(len(new), self.n_features)]),
            memory=self.memory.named(class_names),
        )

    def canonical(self) -> Self:
        """The same knowledge with the classes that have images in order of their names.

        What is derived from it does not depend on the order in which classes arrived.
        """
        return self.picked(self.places())

    def places(self) -> list[int]:
        """Places of the classes with images, in order of their names."""
        alive = [i for i, n in enumerate(self.counts.tolist()) if n]
        return sorted(alive, key=lambda place: self.class_names[place])

    def picked(self, places: Sequence[int]) -> Self:
        """These classes alone, in this order; meant for classes whose others have no images."""
        as_it_is = places == list(range(self.n_classes))
        return replace(
            self,
            class_names=tuple(self.class_names[place] for place in places),
            counts=self.counts if as_it_is else self.counts[places],
            sums=self.sums if as_it_is else self.sums[places],
            memory=self.memory.picked(places),
        )

    def means(self) -> Tensor:
        """Class means of the embedded features, float64 (C, D); zeros for a class without images.

        A mean of unit vectors that differ is shorter than 1.
        """
        return (self.sums / self.counts.clamp_min(1)[:, None]).div_(GRID)

    def scatter(self) -> Tensor:
        """Within-class scatter of the embedded features, float64 (D, D), symmetric.

        The sum over images of (z - class mean)(z - class mean)^T, forgotten classes included;
        the same to the bit whatever the order in which classes arrived.
        """
        places = self.places()
        totals = [self.sums[places], *[one.total[None] for one in self.forgotten]]
        counts = [self.counts[places], torch.tensor([one.count for one in self.forgotten])]
        root = torch.cat(totals).div_(torch.cat(counts).to(torch.float64).sqrt()[:, None])
        between = root.T @ root
        between = (between + between.T).div_(2)
        return torch.sub(self.gram, between, out=between).div_(GRID**2)

    def equals(self, other: ClassSums) -> bool:
        """Whether both know the same to the bit, whatever the order in which classes arrived.

        Classes without images do not count.
        """
        mine, its = self.canonical(), other.canonical()
        return (
            (mine.class_names, mine.root, mine.memory.size)
            == (its.class_names, its.root, its.memory.size)
            and [one.key() for one in mine.forgotten] == [one.key() for one in its.forgotten]
            and torch.equal(mine.counts, its.counts)
            and torch.equal(mine.sums, its.sums)
            and torch.equal(mine.gram, its.gram)
            and all(a.equals(b) for a, b in zip(mine.memory.cells, its.memory.cells, strict=True))
        )
