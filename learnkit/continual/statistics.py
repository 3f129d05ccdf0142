"""Class statistics: counts, sums and products of features that add up exactly.

They are taken of features on an integer grid and held in float64, where sums of integers are exact.
Two sets of statistics from disjoint images therefore merge, in any order, to the very bits that one
pass over all images gives, and subtracting images leaves no trace of them. What is read off them
runs over the classes in the order of their names: the order in which they arrived shows nowhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from learnkit.continual.checks import (
    check_enough,
    check_labelled_features,
    check_mergeable,
    check_subtracted,
)
from learnkit.continual.closed_form.near_copies import COPY_RULE, CopyRule
from learnkit.continual.closed_form.whitening import Moments
from learnkit.continual.embedding import exact_sum, features_on_grid, grid_products
from learnkit.continual.fingerprints import (
    Fingerprints,
    fingerprints_of,
    group_codes,
    less_one_of_each,
)
from learnkit.continual.memory import (
    FeatureMemory,
    Forgotten,
    in_order,
    recalled,
    renamed_remainders,
    settled_remainders,
)
from learnkit.continual.names import (
    check_all_known,
    check_current,
    check_distinct,
    check_known,
    check_new,
    clean_name,
    former_after,
    index_tensor,
    merged_former,
    name_list,
    names_after,
    new_names,
)
from learnkit.continual.serialization import (
    read_former,
    read_origins,
    read_statistics,
    statistics_tensors,
)
from learnkit.continual.settings import MOST_FEATURES, check_whole
from learnkit.errors import DataError
from learnkit.uncertainty.checks import Array
from learnkit.uncertainty.scoring import GRID

_RELABEL = "label these images {now}"
_NEW_CLASS = ", or, if {old} is another class, pass `reuse_names=True`"
_RENAME = "{call} where it has the former name, before merging"


@dataclass(frozen=True, eq=False)
class ClassStatistics:
    """Additive statistics of classes; every operation returns new ones and changes nothing.

    `ClassStatistics.empty(n_features, root=...)` is where to begin.

    Attributes:
        class_names: In order of arrival. A place is never given to another class: one that is
            forgotten keeps its place with count 0, and may come back to it.
        counts: Images per class, int64 (C,).
        sums: Sum of the features of each class on the grid, float64 integers (C, D).
        gram: Sum of outer products of all features on the grid, float64 integers (D, D).
        memory: Some features of every class.
        learned: Fingerprints of all images of every class.
        root: Whether features are square-rooted before they are scaled to length 1.
        forgotten: What forgotten classes leave behind in `gram`: images not remembered.
        former_names: What classes were called before they were renamed or merged -> what they are
            called now. No class has images under such a name.
        origins: Backend, version, precision, instruction set and batch that the features came from,
            where known, sorted: features of another origin have other last bits.
        case_sensitive: Whether 'A' and 'a' are two classes; if not, they are refused together.
    """

    class_names: tuple[str, ...]
    counts: Tensor
    sums: Tensor
    gram: Tensor
    memory: FeatureMemory
    learned: Fingerprints
    root: bool
    forgotten: tuple[Forgotten, ...] = ()
    former_names: Mapping[str, str] = field(default_factory=dict)
    origins: tuple[str, ...] = ()
    case_sensitive: bool = False

    @classmethod
    def empty(
        cls, n_features: int, *, root: bool, memory_size: int = 64, case_sensitive: bool = False
    ) -> ClassStatistics:
        """Statistics of no image.

        Args:
            n_features: Width D of the features.
            root: Whether to take square roots first: for features that are never negative.
            memory_size: Features remembered of each class; 0 for none.
            case_sensitive: Whether 'A' and 'a' are two classes.

        Raises:
            StatisticsError: A number is not a whole one, or out of range.
        """
        check_whole("n_features", n_features, least=1, most=MOST_FEATURES)
        check_whole("memory_size", memory_size, least=0)
        return cls(
            (),
            torch.zeros(0, dtype=torch.int64),
            torch.zeros(0, n_features, dtype=torch.float64),
            torch.zeros(n_features, n_features, dtype=torch.float64),
            FeatureMemory(memory_size, n_features),
            Fingerprints(),
            bool(root),
            case_sensitive=case_sensitive,
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
        """Images in the Gram matrix: those of classes, and those in `forgotten`."""
        return int(self.counts.sum()) + sum(one.count for one in self.forgotten)

    @property
    def n_groups(self) -> int:
        """Groups with a mean of their own: classes with images, and those in `forgotten`."""
        return int((self.counts > 0).sum()) + len(self.forgotten)

    @property
    def dof(self) -> int:
        """Of the within-class scatter: images less groups."""
        return self.n_images - self.n_groups

    @property
    def nbytes(self) -> int:
        """Bytes of all numbers held."""
        left = sum(one.total.nbytes + 8 + one.fingerprints.nbytes for one in self.forgotten)
        held = (self.counts, self.sums, self.gram, self.memory, self.learned)
        return left + sum(one.nbytes for one in held)

    def with_classes(self, names: Sequence[str], *, known: Sequence[str] = ()) -> ClassStatistics:
        """With places for those of `names` that have none yet, without images.

        Args:
            names: Of classes.
            known: Names that are taken as they are: classes have them already, as in a state of
                an earlier version.

        Raises:
            DataError: Two names look alike; or a new one breaks a rule, see `names.check_new`.
        """
        here = set(self.class_names)
        new = [name for name in dict.fromkeys(map(clean_name, names)) if name not in here]
        if not new:
            return self
        check_new(set(new).difference(map(clean_name, known)))
        class_names = (*self.class_names, *new)
        check_distinct(class_names, case_sensitive=self.case_sensitive)
        return replace(
            self,
            class_names=class_names,
            counts=torch.cat([self.counts, self.counts.new_zeros(len(new))]),
            sums=torch.cat([self.sums, self.sums.new_zeros(len(new), self.n_features)]),
            memory=self.memory.named(class_names),
            learned=self.learned.sized(len(class_names)),
        )

    def told_apart(self, case_sensitive: bool = True) -> ClassStatistics:
        """With classes told apart by case if one side says so: what was said once stays."""
        return replace(self, case_sensitive=self.case_sensitive or case_sensitive)

    def canonical(self) -> ClassStatistics:
        """The same knowledge with the classes that have images in order of their names.

        What is derived from it does not depend on the order in which classes arrived.
        """
        return self.picked(self.places())

    def places(self) -> list[int]:
        """Places of the classes with images, in order of their names."""
        alive = [i for i, n in enumerate(self.counts.tolist()) if n]
        return sorted(alive, key=lambda place: self.class_names[place])

    def picked(self, places: Sequence[int]) -> ClassStatistics:
        """These classes alone, in this order; meant for classes whose others have no images."""
        as_it_is = places == list(range(self.n_classes))
        return replace(
            self,
            class_names=tuple(self.class_names[place] for place in places),
            counts=self.counts if as_it_is else self.counts[places],
            sums=self.sums if as_it_is else self.sums[places],
            memory=self.memory.picked(places),
            learned=self.learned.picked(places),
        )

    def means(self) -> Tensor:
        """Class means of the embedded features, float64 (C, D); zeros for a class without images.

        A mean of unit vectors that differ is shorter than 1.
        """
        return (self.sums / self.counts.clamp_min(1)[:, None]).div_(GRID)

    def scatter(self) -> Tensor:
        """Within-class scatter of the embedded features, float64 (D, D), symmetric.

        The sum over images of (z - class mean)(z - class mean)^T, `forgotten` ones included.
        """
        places = self.places()  # by name: the sum below is the same to the bit in any arrival order
        totals = [self.sums[places], *[one.total[None] for one in self.forgotten]]
        counts = [self.counts[places], torch.tensor([one.count for one in self.forgotten])]
        # t / sqrt(n) for each total t: their products add up to the sum of t t^T / n
        root = torch.cat(totals).div_(torch.cat(counts).to(torch.float64).sqrt()[:, None])
        rows = root.numpy()
        between = torch.from_numpy(rows.T @ rows)  # numpy multiplies half of it, and mirrors that
        # in the place of `between`: a table of 2,048 features takes 34 MB
        return torch.sub(self.gram, between, out=between).div_(GRID**2)

    def moments(self, rule: CopyRule = COPY_RULE) -> Moments:
        """Moments for the fits in closed form; classes without images are left out."""
        places = torch.tensor(self.places(), dtype=torch.int64)
        cells = [self.memory.cells[place] for place in places.tolist()]
        return Moments(
            places=places,
            n_classes=self.n_classes,
            counts=self.counts[places].to(torch.float64),
            means=self.means()[places],
            scatter=self.scatter(),
            dof=float(self.dof),
            samples=tuple(cell.features for cell in cells),
            copies=tuple(cell.copies for cell in cells),
            groups=tuple(cell.groups(rule) for cell in cells),
        )

    def equals(self, other: ClassStatistics) -> bool:
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
            and mine.learned.equals(its.learned)
            and all(a.equals(b) for a, b in zip(mine.memory.cells, its.memory.cells, strict=True))
        )

    def update(
        self,
        features: Tensor,
        labels: Sequence[Any],
        class_names: Sequence[str] | None = None,
        *,
        reuse_names: bool = False,
    ) -> ClassStatistics:
        """With the images of `features` (N, D) added, known and new classes mixed.

        Args:
            features: Pooled features as the network gives them, not embedded.
            labels: One class name per image, or places in `class_names`.
            class_names: In which order classes not yet known are appended, also ones without
                images; default: as they first appear in `labels`.
            reuse_names: Take a name that a class had before it was renamed or merged for the name
                of another class.

        Raises:
            DataError: Features that are no finite numbers, of another width or without a row; a
                label for every image is missing; two names look alike; a new one is endless, cannot
                be printed, or is a formula in spreadsheets; or a label is a name that a class no
                longer has.
            StatisticsError: The products would add up to more than float64 holds exactly.
        """
        grid, labels = self._checked(features, labels, class_names)
        in_this_order = name_list("class_names", () if class_names is None else class_names)
        if not reuse_names:
            self.check_current(labels, _RELABEL + _NEW_CLASS)
        check_distinct(in_this_order, case_sensitive=self.case_sensitive)
        grown = self.with_classes([*in_this_order, *labels])
        index = index_tensor(grown.class_names, labels)
        return replace(
            grown,
            counts=grown.counts + torch.bincount(index, minlength=grown.n_classes),
            sums=grown.sums.index_add(0, index, grid),
            gram=exact_sum(self.gram, grid_products(grid), self.n_images + len(grid)),
            memory=grown.memory.add(grid, index),
            learned=grown.learned.add(fingerprints_of(grid), index),
            # a name taken for another class on purpose is a former one no longer
            former_names=merged_former(self.former_names, {}, set(labels)),
        )

    def merge(self, other: ClassStatistics, *, reuse_names: bool = False) -> ClassStatistics:
        """With all images of `other` added, as if they had come here.

        Args:
            other: Statistics of the same network.
            reuse_names: Let a class have a name that the other side's class had before it was
                renamed or merged: they are two classes.

        Raises:
            StatisticsError: Width, square root or memory size differ, or the products would add up
                to more than float64 holds exactly.
            DataError: `other` is no class statistics; two class names look alike; or one side has
                images under a name that a class of the other side no longer has.
        """
        check_mergeable(self, other)
        present = self.present() | other.present()
        if not reuse_names:
            for one, to in ((other, self), (self, other)):
                check_current(one.present(), to.former_names, _RENAME + _NEW_CLASS, one.class_names)
        its = other.class_names
        grown = self.told_apart(other.case_sensitive).with_classes(its, known=its)
        index = index_tensor(grown.class_names, its)
        return replace(
            grown,
            counts=grown.counts.index_add(0, index, other.counts),
            sums=grown.sums.index_add(0, index, other.sums),
            gram=exact_sum(self.gram, other.gram, self.n_images + other.n_images),
            memory=grown.memory.merge(other.memory),
            learned=grown.learned.merge(other.learned, index),
            forgotten=in_order([*self.forgotten, *other.forgotten]),
            former_names=merged_former(self.former_names, other.former_names, present),
            origins=tuple(sorted({*self.origins, *other.origins})),
        )

    def grouped(
        self, features: Tensor, labels: Sequence[str], groups: Sequence[Any]
    ) -> ClassStatistics:
        """With images that were added said to belong together: one value each, None for none.

        Groups of a class are left out as a whole; what is not remembered of them is estimated.
        """
        index, codes = index_tensor(self.class_names, labels), group_codes(groups, len(labels))
        return replace(self, memory=self.memory.grouped(self._on_grid(features), index, codes))

    def subtract(self, features: Tensor, labels: Sequence[Any]) -> ClassStatistics:
        """Without these images: counts, sums and products as if they had never been added.

        The memory is as before, too, as long as no class ever had more distinct features than it
        holds. Beyond that features pushed out by these images do not come back, so that fewer are
        remembered until others are learned. A class left without images keeps its place. What is
        left of a forgotten class is taken out by `recalled`.

        Raises:
            DataError: As `update`; or there is no such class.
            StatisticsError: These images were not all added, as far as can be seen.
        """
        grid, labels = self._checked(features, labels, None)
        self.check_current(labels, _RELABEL)
        check_all_known(labels, self.class_names)
        index = index_tensor(self.class_names, labels)
        counts = self.counts - torch.bincount(index, minlength=self.n_classes)
        check_enough(self.class_names, self.counts, counts)
        before = self.counts.tolist()
        less = replace(
            self,
            counts=counts,
            sums=self.sums.index_add(0, index, -grid),
            gram=self.gram - grid_products(grid),
            memory=self.memory.remove(grid, index, before),
            learned=self.learned.remove(fingerprints_of(grid), index, before, self.class_names),
        )
        # where an earlier version took no fingerprints, only sums that cannot be tell a mistake
        check_subtracted(less.class_names, counts, less.sums, less.gram)
        return less

    @property
    def n_unseen(self) -> int:
        """Images without a fingerprint: learned by an earlier version, and not remembered."""
        return int(self.counts.sum()) - len(self.learned)

    def fingerprints(self, features: Tensor) -> Array:
        """Of images, by their features (N, D), uint64 (N,): `learned` has those of its own."""
        return fingerprints_of(self._on_grid(features))

    def knows(self, features: Tensor) -> Array:
        """Which images (N, D) are among those learned, of whatever class, bool (N,)."""
        return self.learned.know(self.fingerprints(features))

    def repeated(self, features: Tensor, labels: Sequence[str]) -> Array:
        """Which images (N, D) their class has learned, or has earlier in the same rows, bool (N,).

        Labels are clean; those of no class have learned none.
        """
        return self.learned.repeated(self.fingerprints(features), labels, self.class_names)

    def recalled(
        self, features: Tensor, labels: Sequence[str] | None = None
    ) -> tuple[ClassStatistics, Array]:
        """(without these images in what forgotten classes left, which of them were there (N,)).

        They are to come again, or to go for good. With `labels` only those whose label is the name
        of the forgotten class. What an earlier version forgot has no fingerprints, and stays.
        """
        if not any(len(one.fingerprints) for one in self.forgotten):
            return self, np.zeros(len(features), dtype=bool)
        left, products, found = recalled(self.forgotten, self._on_grid(features), labels)
        forgotten, gram = settled_remainders(left, self.gram - products)
        return replace(self, forgotten=forgotten, gram=gram), found

    def to_tensors(self) -> dict[str, Tensor]:
        """All numbers as named tensors; see `learnkit.continual.serialization`."""
        sums = self.counts, self.sums, self.gram
        return statistics_tensors(*sums, self.forgotten, self.memory, self.learned)

    @classmethod
    def from_tensors(
        cls,
        tensors: Mapping[str, Tensor],
        class_names: Sequence[str],
        *,
        root: bool,
        memory_size: int,
        forgotten_names: Sequence[str] = (),
        former_names: Mapping[str, str] | None = None,
        origins: Sequence[str] = (),
        case_sensitive: bool = False,
    ) -> ClassStatistics:
        """Statistics from what `to_tensors` gave.

        Raises:
            StatisticsError: Names, shapes, types or values cannot be those of class statistics.
        """
        known = (class_names, root, memory_size, forgotten_names, case_sensitive)
        fields = read_statistics(tensors, *known)
        former = read_former(former_names or {}, fields)
        return cls(**fields, former_names=former, origins=read_origins(origins))

    def _checked(
        self, features: Tensor, labels: Sequence[Any], class_names: Sequence[str] | None
    ) -> tuple[Tensor, list[str]]:
        """(features on the grid, clean labels) of what a caller gave."""
        features, labels = check_labelled_features(features, labels, class_names, self.n_features)
        return self._on_grid(features), labels

    def _on_grid(self, features: Tensor) -> Tensor:
        return features_on_grid(features, root=self.root)

    def forget(self, name: str) -> ClassStatistics:
        """With class `name` unknown again: no count, no mean, no memory, but its place kept.

        What is remembered leaves the Gram matrix for good. A class that the memory holds as a whole
        is forgotten exactly: all is to the bit as if it had never been there. Of a larger one the
        remainder stays in the pooled scatter, as one of `forgotten`: its products cannot be told
        apart without the images; `subtract` them instead to take out everything. Images of the
        remainder that come again, under whatever name, are to be `recalled` before they are added.

        Raises:
            DataError: There is no such class, or it has no images.
        """
        name = self._known(name)
        place = self.class_names.index(name)
        if not self.counts[place]:
            raise DataError(f"class {name!r} has no images: there is nothing to forget")
        cell = self.memory.cells[place]
        codes, _ = less_one_of_each(self.learned.classes[place], cell.fingerprints)
        n_left, total = int(self.counts[place]) - cell.n_copies, self.sums[place] - cell.total()
        gram = self.gram - grid_products(cell.grid, cell.copies)
        left, gram = settled_remainders([Forgotten(name, n_left, total, codes)], gram)
        at = torch.tensor([place])
        return replace(
            self,
            counts=self.counts.index_fill(0, at, 0),
            sums=self.sums.index_fill(0, at, 0.0),
            gram=gram,
            memory=self.memory.emptied([place]),
            learned=self.learned.emptied(place),
            forgotten=in_order([*self.forgotten, *left]),
        )

    def rename(self, names: Mapping[str, str]) -> ClassStatistics:
        """With classes called otherwise, `{old: new}`; names may be swapped.

        The name of a place that `merge_classes` emptied is free.

        Raises:
            DataError: There is no such class, or a new name looks like another class's, is endless,
                cannot be printed, or is a formula in spreadsheets.
        """
        new = {self._known(old): to for old, to in new_names(names).items()}
        check_new(set(new.values()).difference(self.class_names, self.former_names))
        class_names = names_after(self.class_names, new, self.former_names)
        check_distinct(class_names, case_sensitive=self.case_sensitive)
        return replace(
            self,
            class_names=class_names,
            memory=self.memory.named(class_names),
            forgotten=renamed_remainders(self.forgotten, new),
            former_names=former_after(self.former_names, new),
        )

    def merge_classes(self, names: Sequence[str], into: str) -> ClassStatistics:
        """With all images of `names` counted to class `into`, as if they had been labelled so.

        `into` may be one of them, another class, or a new name, which then takes the place of the
        first of them. The other names keep their places, without images.

        Raises:
            DataError: There is no such class, fewer than two are merged, or names look alike.
        """
        names = list(dict.fromkeys(map(self._known, name_list("names", names))))
        into = clean_name(into)
        if len({*names, into} & set(self.class_names)) < 2:
            raise DataError(
                f"merging {names} into {into!r} joins fewer than two classes; to call a class "
                "otherwise, use `rename`"
            )
        known = self if into in self.class_names else self.rename({names[0]: into})
        return known._joined(
            [into if name not in known.class_names else name for name in names], into
        )

    def _joined(self, names: Sequence[str], into: str) -> ClassStatistics:
        """All images of `names` and `into`, classes that exist, in `into`."""
        target = self.class_names.index(into)
        places = sorted({self.class_names.index(name) for name in names} - {target})
        at = torch.tensor(places, dtype=torch.int64)
        counts, sums = self.counts.index_fill(0, at, 0), self.sums.index_fill(0, at, 0.0)
        # in place, of the copies that `index_fill` has just made
        counts[target] += self.counts[at].sum()
        sums[target] += self.sums[at].sum(0)
        return replace(
            self,
            counts=counts,
            sums=sums,
            memory=self.memory.joined(places, target),
            learned=self.learned.joined(places, target),
            forgotten=renamed_remainders(self.forgotten, dict.fromkeys(names, into)),
            former_names=former_after(self.former_names, dict.fromkeys(names, into)),
        )

    def check_current(self, labels: Iterable[str], remedy: str = _RELABEL) -> None:
        """Refuse clean names that classes no longer have; see `names.check_current`."""
        check_current(labels, self.former_names, remedy)

    def _known(self, name: Any) -> str:
        return check_known(name, self.class_names, self.former_names)

    def present(self) -> set[str]:
        """Names of classes with images."""
        return {self.class_names[place] for place in self.places()}
