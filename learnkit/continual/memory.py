"""A bounded memory of features: per class, those whose bytes hash lowest.

Which features are kept depends on the features alone, not on when or in what batches they came, so
memories merge without loss. A feature that comes several times is kept once with the number of its
copies; both are functions of the multiset of features seen.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress
from typing import Any

import numpy as np
import torch
from torch import Tensor

from learnkit.continual.closed_form.near_copies import (
    CopyRule,
    fresh_rows,
    near_copy_groups,
    of_no_learned_group,
    with_given_groups,
)
from learnkit.continual.embedding import grid_products
from learnkit.continual.fingerprints import NONE, codes_of, feature_hashes, fingerprints_of
from learnkit.continual.names import check_known
from learnkit.errors import StatisticsError
from learnkit.uncertainty.checks import Array
from learnkit.uncertainty.scoring import GRID


@dataclass(frozen=True, eq=False)
class Cell:
    """The remembered features of one class, lowest hash first: int16 (m, D), and their copies.

    `given (m,)` are codes of the groups they are said to be of, 0 for none, () for none of all.
    """

    features: Tensor
    hashes: tuple[bytes, ...] = ()
    copies: tuple[int, ...] = ()
    given: tuple[int, ...] = ()
    # the learned cell asked for last, and groups of both: every refit asks for them
    _beside: list[tuple["Cell", CopyRule, tuple[int, ...]]] = field(
        default_factory=list, init=False, repr=False
    )
    _groups: dict[CopyRule, tuple[int, ...]] = field(default_factory=dict, init=False, repr=False)

    @property
    def n_copies(self) -> int:
        """Images these features stand for."""
        return sum(self.copies)

    @property
    def grid(self) -> Tensor:
        """The features as float64 integers (m, D), for sums."""
        return self.features.to(torch.float64)

    @property
    def fingerprints(self) -> Array:
        """Of the images these features stand for, uint64 (n_copies,)."""
        return np.repeat(codes_of(self.hashes), self.copies)

    def total(self) -> Tensor:
        """Sum of the images these features stand for, float64 integers (D,)."""
        return torch.tensor(self.copies, dtype=torch.float64) @ self.grid

    def groups(self, rule: CopyRule) -> tuple[int, ...]:
        """Of each feature the first one that it is a near copy of, or is said to go with; (m,)."""
        if rule not in self._groups:
            found = near_copy_groups(self.features.numpy(), rule)
            self._groups[rule] = with_given_groups(found, self.given)
        return self._groups[rule]

    def fresh_beside(self, learned: "Cell", count: int, rule: CopyRule | None) -> Array:
        """Which of these validation features count beside a class of `count` images, bool (m,).

        Those `learned` are what is remembered of it. What is said to be of a group that is learned
        does not count, nor do near copies by the rule; with None they are not looked for.
        """
        all_remembered, fresh = learned.n_copies >= count, np.ones(len(self.hashes), bool)
        if self.given and learned.given:
            told = self.given, learned.given
            fresh = of_no_learned_group(*told, all_remembered=all_remembered)
        if rule is None or not self.hashes:
            return fresh
        known = next(iter(self._beside), None)
        if known is None or known[0] is not learned or known[1] != rule:
            # these in front: of many rows the first are compared
            both = torch.cat([self.features, learned.features])
            known = learned, rule, near_copy_groups(both.numpy(), rule)
            self._beside[:] = [known]
        about = {"all_remembered": all_remembered, "strays": rule.strays}
        return fresh & fresh_rows(known[2], len(self.hashes), **about)

    def with_groups(self, codes: Mapping[bytes, int]) -> "Cell":
        """With groups of some features, by hash; the lower of two codes, so that order is none."""
        told = self.given or (0,) * len(self.hashes)
        each = zip(told, self.hashes, strict=True)
        given = tuple(_either(code, codes.get(one, 0)) for code, one in each)
        return replace(self, given=given if any(given) else ())

    def picked(self, rows: Array) -> "Cell":
        """Some of the features, bool (m,)."""
        hashes, copies = tuple(compress(self.hashes, rows)), tuple(compress(self.copies, rows))
        given = tuple(compress(self.given, rows))
        kept = self.features[torch.from_numpy(rows)]
        return Cell(kept, hashes, copies, given if any(given) else ())

    def equals(self, other: "Cell") -> bool:
        """Whether both hold the same features as often."""
        mine, its = ((one.hashes, one.copies, one.given) for one in (self, other))
        return mine == its


@dataclass(frozen=True, eq=False)
class FeatureMemory:
    """At most `size` distinct features a class; every operation returns a new memory.

    After `remove` a class may hold fewer features than `size` although it has more images: those
    pushed out earlier do not come back.
    """

    size: int
    n_features: int
    class_names: tuple[str, ...] = ()
    cells: tuple[Cell, ...] = ()
    # what `all` gave, by its argument: every refit asks for it
    _all: dict[int | None, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return sum(len(cell.hashes) for cell in self.cells)

    @property
    def n_copies(self) -> int:
        """Images that all features stand for."""
        return sum(cell.n_copies for cell in self.cells)

    @property
    def fingerprints(self) -> Array:
        """Of the images all features stand for, uint64 (n_copies,)."""
        return np.concatenate([NONE, *(cell.fingerprints for cell in self.cells)])

    @property
    def nbytes(self) -> int:
        """Bytes taken by features, hashes and copies."""
        return sum(
            # 16 bytes of a hash and 8 of a count
            cell.features.nbytes + 24 * len(cell.hashes) + 8 * len(cell.given)
            for cell in self.cells
        )

    def of(self, name: str) -> Tensor:
        """Remembered features of one class on the integer grid, int16 (m, D), lowest hash first.

        Raises:
            DataError: There is no such class.
        """
        return self.cells[self.class_names.index(check_known(name, self.class_names))].features

    def all(self, per_class: int | None = None) -> tuple[Tensor, Tensor]:
        """(features float64 (M, D), class indices int64 (M,)), classes in order.

        The features are the embedded ones, rounded to the grid: exactly what the statistics
        contain. With `per_class`, at most so many of each class: those with the lowest hashes.
        """
        if per_class not in self._all:
            self._all[per_class] = self._collect(per_class)
        return self._all[per_class]

    def _collect(self, per_class: int | None) -> tuple[Tensor, Tensor]:
        kept = [cell.features[:per_class] for cell in self.cells if cell.hashes]
        sizes = torch.tensor([len(cell.hashes[:per_class]) for cell in self.cells])
        labels = torch.arange(len(self.cells)).repeat_interleave(sizes.to(torch.int64))
        empty = torch.empty(0, self.n_features, dtype=torch.int16)
        return torch.cat([empty, *kept]).to(torch.float64).div_(GRID), labels

    def copies(self) -> Tensor:
        """How many images each row of `all()` stands for, int64 (M,)."""
        return torch.tensor([n for cell in self.cells for n in cell.copies], dtype=torch.int64)

    def given(self) -> Tensor:
        """The code of the group that each row of `all()` is said to be of, 0 for none, (M,)."""
        told = [cell.given or (0,) * len(cell.hashes) for cell in self.cells]
        return torch.tensor([code for codes in told for code in codes], dtype=torch.int64)

    def places_of(self, codes: Array) -> list[set[int]]:
        """The classes of which features of these fingerprints (N,) are remembered, each a set."""
        found: dict[int, set[int]] = {code: set() for code in codes.tolist()}
        for place, cell in enumerate(self.cells):
            for code in found.keys() & codes_of(cell.hashes).tolist():
                found[code].add(place)
        return [found[code] for code in codes.tolist()]

    def named(self, class_names: Sequence[str]) -> "FeatureMemory":
        """The same cells under other names; more names than cells get empty ones."""
        extra = len(class_names) - len(self.cells)
        return self._with((*self.cells, *[self.empty_cell()] * extra), tuple(class_names))

    def add(self, grid: Tensor, index: Tensor) -> "FeatureMemory":
        """With the rows of `grid` (N, D integers) added to the classes at `index` (N,)."""
        if not self.size:
            return self
        cells = list(self.cells)
        for place, rows in _by_class(grid, index):
            cells[place] = self._lowest([cells[place], _cell(rows)])
        return self._with(cells)

    def grouped(self, grid: Tensor, index: Tensor, codes: Array) -> "FeatureMemory":
        """With the rows of `grid`, as far as they are remembered, in groups of these codes (N,)."""
        # object: an array of numpy's own bytes drops zeros at the end of each
        cells, hashes = list(self.cells), np.array(feature_hashes(grid.numpy()), dtype=object)
        for place in set(index.tolist()):
            told: dict[bytes, int] = {}
            for row in np.flatnonzero(index.numpy() == place):
                told[hashes[row]] = _either(told.get(hashes[row], 0), int(codes[row]))
            cells[place] = cells[place].with_groups(told)
        return self._with(cells)

    def with_given(self, codes: Sequence[int]) -> "FeatureMemory":
        """With these codes of groups (M,), in the order of `given`, for those there are."""
        left = iter(codes)
        told = [tuple(next(left) for _ in cell.hashes) for cell in self.cells]
        both = zip(self.cells, told, strict=True)
        return self._with([replace(a, given=b if any(b) else ()) for a, b in both])

    def remove(
        self, grid: Tensor, index: Tensor, counts: Sequence[int] | None = None
    ) -> "FeatureMemory":
        """Without one copy of each row of `grid`; rows that are not remembered change nothing.

        Args:
            grid: Features on the integer grid (N, D).
            index: Their classes (N,).
            counts: Images each class had before; None if nobody counted.

        Raises:
            StatisticsError: More rows are not remembered than the class had images besides.
        """
        cells = list(self.cells)
        for place, rows in _by_class(grid, index):
            before = cells[place]
            cells[place], others = self._without(before, rows)
            if counts is not None and others > counts[place] - before.n_copies:
                raise StatisticsError(
                    f"a feature to be subtracted from class {self.class_names[place]!r} was never "
                    "added to it; subtract the same images, read by the same network, that were "
                    "learned"
                )
        return self._with(cells)

    def without(self, codes: Array) -> "FeatureMemory":
        """Without the features of these fingerprints, of whatever class and however often."""
        own = [codes_of(cell.hashes) for cell in self.cells]
        # once for all classes: `isin` sorts `codes`
        kept = ~np.isin(np.concatenate([NONE, *own]), codes)
        parts = np.split(kept, np.cumsum([len(one) for one in own]))[:-1]
        both = zip(self.cells, parts, strict=True)
        return self._with([cell if rows.all() else cell.picked(rows) for cell, rows in both])

    def once(self) -> "FeatureMemory":
        """With each feature standing for one image."""
        ones = [(1,) * len(cell.hashes) for cell in self.cells]
        each = zip(self.cells, ones, strict=True)
        return self._with([a if a.copies == b else replace(a, copies=b) for a, b in each])

    def emptied(self, places: Iterable[int]) -> "FeatureMemory":
        """With nothing remembered of the classes at `places`."""
        cells = list(self.cells)
        for place in places:
            cells[place] = self.empty_cell()
        return self._with(cells)

    def joined(self, places: Sequence[int], into: int) -> "FeatureMemory":
        """With what is remembered of all `places` at `into`, as if it had come there at once."""
        union = self._lowest([self.cells[place] for place in {*places, into}])
        cells = list(self.emptied(places).cells)
        cells[into] = union
        return self._with(cells)

    def merge(self, other: "FeatureMemory") -> "FeatureMemory":
        """With all of `other`, whose class names must be among this memory's."""
        cells = list(self.cells)
        places = {name: place for place, name in enumerate(self.class_names)}
        for name, cell in zip(other.class_names, other.cells, strict=True):
            if cell.hashes:
                cells[places[name]] = self._lowest([cells[places[name]], cell])
        return self._with(cells)

    def picked(self, places: Sequence[int]) -> "FeatureMemory":
        """The classes at `places` alone, in that order."""
        names = tuple(self.class_names[place] for place in places)
        return self._with([self.cells[place] for place in places], names)

    def fresh_beside(
        self, learned: "FeatureMemory", counts: Sequence[int], rule: CopyRule | None
    ) -> "FeatureMemory":
        """Validation features that count beside learned ones of the same classes.

        Args:
            learned: What is remembered of these classes.
            counts: Images that each of them has.
            rule: What near copies are; with None they are not looked for, and count.
        """
        each = zip(self.cells, learned.cells, counts, strict=True)
        rows = [own.fresh_beside(its, n, rule) for own, its, n in each]
        if all(one.all() for one in rows):
            return self
        return self._with([own.picked(some) for own, some in zip(self.cells, rows, strict=True)])

    def hashed(self) -> "FeatureMemory":
        """With its hash in the place of each feature, int16 (m, 8): as telling, and small."""
        rows = [np.frombuffer(b"".join(cell.hashes), "<i2").reshape(-1, 8) for cell in self.cells]
        features = [torch.from_numpy(one.astype(np.int16)) for one in rows]
        cells = [replace(a, features=b) for a, b in zip(self.cells, features, strict=True)]
        return replace(self._with(cells), n_features=8)

    def empty_cell(self) -> Cell:
        """A class of which nothing is remembered."""
        return Cell(torch.empty(0, self.n_features, dtype=torch.int16))

    def _with(
        self, cells: Sequence[Cell], class_names: tuple[str, ...] | None = None
    ) -> "FeatureMemory":
        names = self.class_names if class_names is None else class_names
        # a new `_all`: `replace` would hand on what was collected of the old cells
        return replace(self, cells=tuple(cells), class_names=names, _all={})

    def _lowest(self, cells: Sequence[Cell]) -> Cell:
        """The `size` features with the lowest hashes of all `cells`, copies added up."""
        filled = [cell for cell in cells if cell.hashes]
        if len(filled) == 1 and len(filled[0].hashes) <= self.size:
            return filled[0]
        copies: Counter[bytes] = Counter()
        rows: dict[bytes, Tensor] = {}
        given: dict[bytes, int] = {}
        for cell in cells:
            # strict=False: `given` is () where no group was said
            for code, group in zip(cell.hashes, cell.given, strict=False):
                given[code] = _either(given.get(code, 0), group)
            for row, (code, n) in enumerate(zip(cell.hashes, cell.copies, strict=True)):
                copies[code] += n
                rows.setdefault(code, cell.features[row])
        hashes = tuple(sorted(rows)[: self.size])
        if not hashes:
            return self.empty_cell()
        kept = torch.stack([rows[code] for code in hashes])
        return Cell(kept, hashes, tuple(copies[code] for code in hashes)).with_groups(given)

    def _without(self, cell: Cell, rows: np.ndarray) -> tuple[Cell, int]:
        """(the cell without one copy of each row, number of rows that are not in it)."""
        wanted = Counter(feature_hashes(rows))
        each = zip(cell.hashes, cell.copies, strict=True)
        left = [max(n - wanted[code], 0) for code, n in each]
        less = cell.picked(np.array(left, dtype=np.int64) > 0)
        less = replace(less, copies=tuple(n for n in left if n))
        return less, len(rows) - (cell.n_copies - less.n_copies)


def _either(one: int, other: int) -> int:
    """The lower of two codes of groups, the one there is if the other is 0."""
    return min(one, other) if one and other else one or other


def _cell(rows: np.ndarray) -> Cell:
    """All of `rows` as one cell, each distinct one once."""
    hashes = feature_hashes(rows)
    copies = Counter(hashes)
    first = {code: row for row, code in reversed(list(enumerate(hashes)))}
    order = sorted(first)
    features = torch.from_numpy(rows[[first[code] for code in order]])
    return Cell(features, tuple(order), tuple(copies[code] for code in order))


def _by_class(grid: Tensor, index: Tensor) -> Iterable[tuple[int, np.ndarray]]:
    """(class, its rows as int16) for every class in `index`."""
    rows, places = grid.to(torch.int16).numpy(), index.numpy()
    order = np.argsort(places, kind="stable")
    found, starts = np.unique(places[order], return_index=True)
    for place, chosen in zip(found, np.split(order, starts)[1:], strict=True):
        yield int(place), rows[chosen]


@dataclass(frozen=True, eq=False)
class Forgotten:
    """The remainder of a forgotten class: number and sum of images that were no longer remembered.

    Their products cannot be told apart without them and stay in the Gram matrix; with these two,
    (n,) and (D,) integers, their share of it stays a within-class one. What was remembered left it.
    `fingerprints` uint64 (n,) say which images they are, fewer if they were forgotten by an earlier
    version: one that comes again can be taken out.
    """

    name: str
    count: int
    total: Tensor
    fingerprints: Array = field(default_factory=lambda: NONE)

    def key(self) -> tuple[Any, ...]:
        """Sort key, so that the order of forgetting leaves no trace."""
        return self.name, self.count, tuple(self.total.tolist()), tuple(self.fingerprints.tolist())

    def without(self, grid: Tensor, codes: Array) -> tuple["Forgotten", Tensor]:
        """(what is left without the images `grid` (N, D), products (D, D) of those taken out).

        All copies of an image leave. `codes` are the fingerprints of `grid`, all of them known.
        """
        codes, rows = np.unique(codes, return_index=True)
        times = np.searchsorted(self.fingerprints, codes, "right")
        times -= np.searchsorted(self.fingerprints, codes)
        gone = grid[rows]
        total = self.total - torch.from_numpy(times).to(torch.float64) @ gone
        kept = self.fingerprints[~np.isin(self.fingerprints, codes)]
        left = Forgotten(self.name, self.count - int(times.sum()), total, kept)
        return left, grid_products(gone, times.tolist())


def in_order(forgotten: Iterable[Forgotten]) -> tuple[Forgotten, ...]:
    """Sorted, so that the order of forgetting leaves no trace."""
    return tuple(sorted(forgotten, key=Forgotten.key))


def renamed_remainders(
    forgotten: Iterable[Forgotten], names: Mapping[str, str]
) -> tuple[Forgotten, ...]:
    """The same, of classes that are called otherwise now."""
    return in_order([replace(one, name=names.get(one.name, one.name)) for one in forgotten])


def recalled(
    forgotten: Sequence[Forgotten], grid: Tensor, labels: Sequence[str] | None
) -> tuple[list[Forgotten], Tensor, Array]:
    """(remainders without the images `grid` (N, D), products of those found, which these are (N,)).

    With `labels` only those whose label is the name of the forgotten class.
    """
    codes, found = fingerprints_of(grid), np.zeros(len(grid), dtype=bool)
    left, products = [], grid.new_zeros(grid.shape[1], grid.shape[1])
    for one in forgotten:
        own = np.isin(codes, one.fingerprints)
        if labels is not None:
            own &= np.array([label == one.name for label in labels], dtype=bool)
        less, its = one.without(grid[own], codes[own])
        left.append(less)
        products += its
        found |= own
    return left, products, found


def settled_remainders(
    forgotten: Iterable[Forgotten], gram: Tensor
) -> tuple[tuple[Forgotten, ...], Tensor]:
    """(remainders of two images or more, the Gram matrix without the others).

    The sum of one image is the image: its products are known, and leave.
    """
    left = []
    for one in forgotten:
        if one.count > 1:
            left.append(one)
        elif one.count:
            gram = gram - grid_products(one.total[None])
    return in_order(left), gram
