"""Fingerprints of learned images, 8 bytes each: an image that comes again is known.

The fingerprint of an image is a hash of its feature on the integer grid. That needs no file, so
that uploads, arrays and merged statistics have one, too, and the same pixels in another file have
the same. Features are equal to the bit within one origin (network, backend, device, size of batch);
another origin gives other fingerprints. Among a million images two that differ share one with a
probability of 3 in 100 million.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from learnkit.continual.closed_form.near_copies import copies_of_learned, rows_by_class
from learnkit.data.groups import is_missing
from learnkit.errors import DataError, StatisticsError, first_few, number_of
from learnkit.uncertainty.checks import Array
from learnkit.uncertainty.scoring import GRID, unit_rows

if TYPE_CHECKING:
    from torch import Tensor

_KEY = b"learnkit feature memory"
_BYTES = 8
NONE = np.zeros(0, dtype=np.uint64)
Notes = tuple[str, ...]


def feature_hashes(rows: Array) -> list[bytes]:
    """A keyed hash of every row's bytes, 16 bytes each, equal on every machine."""
    little = np.ascontiguousarray(rows, dtype="<i2")
    return [hashlib.blake2b(row.tobytes(), digest_size=16, key=_KEY).digest() for row in little]


def codes_of(hashes: Iterable[bytes]) -> Array:
    """The fingerprints uint64 (N,) of features by their hashes; in the same order."""
    # big-endian: codes then sort as the hashes do, and those of a memory are sorted already
    return np.frombuffer(b"".join(one[:_BYTES] for one in hashes), dtype=">u8").astype(np.uint64)


def fingerprints_of(grid: Tensor) -> Array:
    """The fingerprints uint64 (N,) of features on the integer grid (N, D)."""
    return codes_of(feature_hashes(grid.numpy()))


def group_codes(groups: Sequence[Any], n: int) -> Array:
    """Numbers int64 (N,) that stand for groups, equal for equal texts on every machine.

    A missing value (None, NaN, pandas' NA) is no group, and 0.

    Raises:
        DataError: There is not one for each of `n` images.
    """
    listed = isinstance(groups, Iterable) and not isinstance(groups, str | bytes | Mapping | Set)
    values = [None if is_missing(one) else str(one) for one in groups] if listed else []
    if not listed or len(values) != n:
        raise DataError(
            f"`groups` is {groups!r:.100}; give one value for each of {number_of(n, 'image')}, "
            "None for none"
        )
    texts = set(values) - {None}
    hashed = {text: hashlib.blake2b(text.encode(), digest_size=_BYTES, key=_KEY) for text in texts}
    codes = {
        # or 1: 0 stands for no group
        text: int.from_bytes(one.digest(), "big", signed=True) or 1
        for text, one in hashed.items()
    }
    return np.array([0 if one is None else codes[one] for one in values], dtype=np.int64)


def less_one_of_each(held: Array, codes: Array) -> tuple[Array, Array]:
    """(`held`, sorted, less one of each of `codes`; the codes that are not in it)."""
    wanted, times = np.unique(codes, return_counts=True)
    start = np.searchsorted(held, wanted)
    taken = np.minimum(times, np.searchsorted(held, wanted, "right") - start)
    before = np.cumsum(taken) - taken
    # of each code wanted the first places in `held`, as many as are taken
    gone = np.repeat(start - before, taken) + np.arange(taken.sum())
    return np.delete(held, gone), np.repeat(wanted, times - taken)


@dataclass(frozen=True, eq=False)
class Fingerprints:
    """Of all images of every class; every operation returns new ones.

    They are a function of the multiset of images, as the statistics are. A class of which fewer are
    known than it has images was learned by an earlier version, which kept those remembered alone.

    Attributes:
        classes: of each class uint64 (n,), sorted; an image that counts twice is there twice.
    """

    classes: tuple[Array, ...] = ()

    def __len__(self) -> int:
        return sum(map(len, self.classes))

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        return _BYTES * len(self)

    def union(self) -> Array:
        """All of them, each once, sorted."""
        return np.unique(np.concatenate([NONE, *self.classes]))

    def know(self, codes: Array) -> Array:
        """Which images are among them, of whatever class, bool (N,)."""
        return np.isin(codes, np.concatenate([NONE, *self.classes]))

    def repeated(self, codes: Array, labels: Sequence[str], names: Sequence[str]) -> Array:
        """Which images their class has, or has earlier among `codes`, bool (N,).

        Of the classes that `labels` (N,) say; those that are none of `names` have none yet.
        """
        found = np.ones(len(codes), dtype=bool)
        for name in set(labels):
            # label by label: numpy compares without the NUL characters at a text's end
            rows = np.flatnonzero([label == name for label in labels])
            found[rows[np.unique(codes[rows], return_index=True)[1]]] = False
            if name in names:
                found[rows] |= np.isin(codes[rows], self.classes[names.index(name)])
        return found

    def equals(self, other: Fingerprints) -> bool:
        """Whether both are of the same images as often."""
        return all(np.array_equal(a, b) for a, b in zip(self.classes, other.classes, strict=True))

    def sized(self, n_classes: int) -> Fingerprints:
        """With places for so many classes, of which the new ones have none."""
        return Fingerprints((*self.classes, *[NONE] * (n_classes - len(self.classes))))

    def add(self, codes: Array, index: Tensor) -> Fingerprints:
        """With those of more images, of the classes at `index` (N,)."""
        new = ((at, [self.classes[at], codes[rows]]) for at, rows in _rows_by(index))
        return self._changed({at: np.sort(np.concatenate(both)) for at, both in new})

    def remove(
        self, codes: Array, index: Tensor, counts: Sequence[int], names: Sequence[str]
    ) -> Fingerprints:
        """Without those of images that are unlearned.

        Args:
            codes: Of the images (N,).
            index: Places of their classes (N,).
            counts: Images each class had before, those included that were learned unseen.
            names: Of the classes.

        Raises:
            StatisticsError: Images were not learned, and cannot be among those learned unseen.
        """
        changed = {}
        for at, rows in _rows_by(index):
            changed[at], missing = less_one_of_each(self.classes[at], codes[rows])
            if len(missing) > counts[at] - len(self.classes[at]):
                where = rows[np.isin(codes[rows], missing)].tolist()
                raise StatisticsError(
                    f"{len(missing)} of {len(rows)} images to be subtracted from class "
                    f"{names[at]!r} were never added to it (rows {first_few(where)}): their "
                    "features are not those that were added; subtract the same images, read by "
                    "the same network, that were learned"
                )
        return self._changed(changed)

    def merge(self, other: Fingerprints, index: Tensor) -> Fingerprints:
        """With all of `other`, whose classes have the places `index` here."""
        pairs = zip(index.tolist(), other.classes, strict=True)
        return self._changed(
            {at: np.sort(np.concatenate([self.classes[at], its])) for at, its in pairs if len(its)}
        )

    def joined(self, places: Sequence[int], into: int) -> Fingerprints:
        """With those of all `places` at `into`."""
        union = np.concatenate([self.classes[at] for at in {*places, into}])
        return self._changed(dict.fromkeys(places, NONE) | {into: np.sort(union)})

    def emptied(self, place: int) -> Fingerprints:
        """With none of one class."""
        return self._changed({place: NONE})

    def picked(self, places: Sequence[int]) -> Fingerprints:
        """The classes at `places` alone, in that order."""
        return replace(self, classes=tuple(self.classes[at] for at in places))

    def _changed(self, new: dict[int, Array]) -> Fingerprints:
        return Fingerprints(tuple(new.get(at, own) for at, own in enumerate(self.classes)))


def _rows_by(index: Tensor) -> Iterator[tuple[int, Array]]:
    """(place, its rows) of every class in `index`."""
    places = index.numpy()
    for place in np.unique(places).tolist():
        yield place, np.flatnonzero(places == place)


@dataclass(frozen=True, eq=False)
class Learned:
    """What a model has learned, as far as it can tell of images that it sees again; numpy alone.

    Attributes:
        names: of its classes.
        counts: images it learned of each, int64 (C,).
        codes: fingerprints of these, uint64 (L,).
        n_unseen: images that an earlier version learned without noting which.
        validated: fingerprints of images that decide threshold and temperature.
        root: whether features are square-rooted, see `unit_rows`.
        remembered: features on the integer grid, int16 (K, D), classes in order.
        labels: place in `names` of each remembered one, int64 (K,).
        former_names: what classes were called before -> what they are called now.
    """

    names: tuple[str, ...]
    counts: Array
    codes: Array
    n_unseen: int
    validated: Array
    root: bool
    remembered: Array
    labels: Array
    former_names: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, knowledge: Any) -> Learned:
        """What a head or a detector knows: of its statistics, memory and validation images."""
        stats = knowledge.statistics
        features, labels = stats.memory.all()
        return cls(
            names=stats.class_names,
            counts=stats.counts.numpy(),
            codes=np.concatenate([NONE, *stats.learned.classes]),
            n_unseen=stats.n_unseen,
            validated=knowledge.validation.fingerprints,
            root=stats.root,
            # back to the integers that `all` divided
            remembered=np.rint(features.numpy() * GRID).astype(np.int16),
            labels=labels.numpy(),
            former_names=stats.former_names,
        )

    def on_grid(self, features: Array) -> Array:
        """Features of images (N, D) on the integer grid, int16: what `notes` takes."""
        # as `embedding.to_grid`, without torch
        grid = np.rint(unit_rows(features, root=self.root) * GRID).clip(1 - GRID, GRID - 1)
        return grid.astype(np.int16)

    def copies(self, grid: Array, labels: Sequence[str]) -> Array:
        """Which images are near copies of remembered ones of their class, bool (N,).

        Args:
            grid: Their features on the integer grid (N, D).
            labels: Their classes; of a class that is not known, none is.
        """
        found, places = np.zeros(len(grid), bool), {name: i for i, name in enumerate(self.names)}
        for name, rows in rows_by_class(labels, range(len(grid))).items():
            own = self.remembered[self.labels == places.get(name, -1)]
            found[rows] = copies_of_learned(grid[rows], own)
        return found

    @property
    def n_images(self) -> dict[str, int]:
        """Images learned by class name."""
        return dict(zip(self.names, self.counts.tolist(), strict=True))

    def know(self, grid: Array) -> Array:
        """Which images are among those learned, by features on the grid (N, D), bool (N,)."""
        return np.isin(codes_of(feature_hashes(grid)), self.codes)

    def notes(
        self, grid: Array, labels: Sequence[str] | None = None, learned: Array | None = None
    ) -> Notes:
        """Notes where images to evaluate on have had a part in the model, or near copies of them.

        Args:
            grid: Their features on the integer grid (N, D).
            labels: Their classes; without, near copies are not looked for.
            learned: Which of them it has learned, bool (N,); default those it knows again.
        """
        codes, least = codes_of(feature_hashes(grid)), "at least " if self.n_unseen else ""
        n, learned = len(codes), np.isin(codes, self.codes) if learned is None else learned
        notes = learned_notes(int(learned.sum()), n, least)
        if labels is not None:
            notes += near_copies_notes(int((self.copies(grid, labels) & ~learned).sum()), n)
        if decide := int(np.isin(codes, self.validated).sum()):
            notes += (
                f"{decide} of {n} images decide threshold and temperature of this model: false "
                "alarms and calibration error are optimistic",
            )
        return notes


def near_copies_notes(n_copies: int, n: int, what: str = "the numbers are optimistic") -> Notes:
    """A note where images to evaluate on are near copies of learned ones."""
    if not n_copies:
        return ()
    return (
        f"{n_copies} of {n} images are near copies of learned ones (bursts, augmented files, files "
        f"saved again): {what}; `group=` of `split` keeps together what belongs together",
    )


def learned_notes(n_learned: int, n: int, least: str = "") -> Notes:
    """A note where a model has learned images to evaluate on."""
    if not n_learned:
        return ()
    return (
        f"{least}{n_learned} of {n} images were learned by this model: the numbers are optimistic",
    )
