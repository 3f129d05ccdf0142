"""Near copies: groups of remembered features of one class that show the same thing.

A burst of photographs, augmented files, a JPEG saved again: the features differ, and still tell no
more than one of them does. Left out one at a time, each is judged by what its copies taught.
"""

from collections.abc import Iterable, Iterator, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from learnkit.uncertainty.checks import Array


class CopyRule(NamedTuple):
    """What near copies are.

    Squared distances in parts of the typical one within the class, MobileNetV2: saved again with
    quality 40 to 95, brighter or darker by a quarter, moved or cut by 4 to 12 %, turned by 2 to 4
    degrees, mirrored, blurred, noisy: ants and bees .04 to .22, CIFAR-10 .06 to .38, the nearest
    of a dozen versions .1 to .4; nearest neighbours of different photographs begin at .3, mostly
    .4 to .6. Healthy photographs are hit once in 500, parts of circuit boards, which look alike,
    once in 8.

    Attributes:
        share: The largest squared distance of two, in parts of the typical one of their class.
        aside: Nothing else of the class is as near as this many times their largest distance.
        strays: How many near copies of learned images are taken for chance among however few
            validation images of a class.
    """

    share: float = 0.45
    aside: float = 1.5
    strays: int = 1


COPY_RULE = CopyRule()


# Rows of healthy data that may be near enough by chance, where features have so few dimensions.
_HEALTHY = 0.02
MANY_NEAR = 0.05  # share of near copies from which on they are no chance
_COMPARED = 512  # rows of a class that are compared, those remembered first
_TELLING = 8  # rows: the distances of fewer do not tell what is usual
# Of fewer, from so many on, distances tell bursts where most rows are of one: 2 photographs in 3
# versions or 3 in 2 are found in 98 of 100 classes, of healthy ones 0 to 2 in 100 are hit.
_HANDFUL, _SHARE_OF_FEW, _ASIDE_OF_FEW = 4, 0.25, 2.0


def near_copy_groups(grid: Array, rule: CopyRule = COPY_RULE) -> tuple[int, ...]:
    """Group of each row (m,): the first row of it, itself where no other is near.

    Groups are what pairs nearer than a copy connect (single linkage), where they stand apart from
    the rest. How near that is depends on the class alone: on the typical squared distance of its
    rows, and on how much these vary, which tells how near different images may come. A class all
    of one burst cannot be told from one of images that are truly alike: it keeps every row to
    itself.

    Args:
        grid: Remembered features of one class on the integer grid, int16 (m, D), all different.
        rule: What near copies are.
    """
    n = len(grid)
    compared = min(n, _COMPARED)
    if compared < _TELLING:
        return tuple(range(n))
    squared = _squared_distances(grid[:compared])
    limit = _copy_distance(squared[np.triu_indices(compared, 1)], compared, rule.share)
    return (*_first_rows(squared, limit, rule.aside), *range(compared, n))


def look_like_bursts(grid: Array) -> bool:
    """Whether most of a handful of features, too few for groups of their own, are near copies.

    Args:
        grid: Remembered features of one class, as for `near_copy_groups`.
    """
    n = len(grid)
    if not _HANDFUL <= n < _TELLING:
        return False
    squared = _squared_distances(grid)
    pairs = squared[np.triu_indices(n, 1)]
    limit = _SHARE_OF_FEW * float(np.quantile(pairs, _MIDDLE, method="lower"))
    return 2 * len(set(_first_rows(squared, limit, _ASIDE_OF_FEW))) <= n


def _first_rows(squared: Array, limit: float, aside: float) -> list[int]:
    """The first row of the group of each, groups nearer than `limit` that stand apart."""
    first = list(range(len(squared)))
    for reach, rows in _clusters(squared, limit):  # those that hold others come after them
        others = np.setdiff1d(np.arange(len(squared)), rows)
        if len(others) and squared[np.ix_(rows, others)].min() >= aside * reach:
            for row in rows:
                first[row] = rows[0]
    return first


def fresh_rows(groups: Sequence[int], n: int, *, all_remembered: bool, strays: int = 1) -> Array:
    """Which validation images of a class count, bool (n,): near copies of learned ones do not.

    Of those that are near copies of each other the first does. Where hardly any are, all count:
    healthy images are near each other by chance. Where some are of learned images that are not
    `all_remembered`, the others may be of those forgotten, and none counts.

    Args:
        groups: Of `n` validation images and then the learned ones, as `near_copy_groups` gives.
        n: How many of them are validation images.
        all_remembered: Whether the learned ones are all that the class has.
        strays: How many near copies are taken for chance among however few validation images.
    """
    own, learned = np.split(np.array(groups, dtype=np.int64), [n])
    first = own == np.arange(n)
    copies = np.isin(own, learned)
    if (~first | copies).sum() <= MANY_NEAR * n:
        return np.ones(n, bool)
    if copies.sum() > strays + MANY_NEAR * n and not all_remembered:
        return np.zeros(n, bool)
    return first & ~copies


def of_no_learned_group(
    given: Sequence[int], learned: Sequence[int], *, all_remembered: bool
) -> Array:
    """Which validation images of a class are of groups of which it has learned none, bool (n,).

    Where more than a few are of learned groups, although not all images are remembered, the others
    may be of those forgotten, and none counts.

    Args:
        given: Codes of the groups that the validation images are said to be of, 0 for none.
        learned: Codes of those of the remembered images.
        all_remembered: Whether these are all that the class has.
    """
    codes = np.array(given, dtype=np.int64)
    of_learned = np.isin(codes, learned) & (codes != 0)
    if of_learned.sum() > MANY_NEAR * len(codes) and not all_remembered:
        return np.zeros(len(codes), bool)
    return ~of_learned


_AT_ONCE = _COMPARED // 2  # validation images compared together, so that learned ones are, too


def fresh_beside(features: Array, learned: Array, rule: CopyRule, *, all_remembered: bool) -> Array:
    """Which of these validation images of a class count beside its learned ones: `fresh_rows`.

    Args:
        features: Of any number of them, on the integer grid, int16 (n, D), all different.
        learned: Remembered ones of the class, likewise (m, D).
        rule: What near copies are.
        all_remembered: Whether these are all that the class has.
    """
    parts = [
        fresh_rows(groups, n, all_remembered=all_remembered, strays=rule.strays)
        for n, groups in _beside(features, learned, rule)
    ]
    return np.concatenate(parts)


def copies_of_learned(features: Array, learned: Array) -> Array:
    """Which images of a class are near copies of learned ones, bool (n,); few are so by chance.

    Args:
        features: Of any number of images, on the integer grid, int16 (n, D).
        learned: Remembered ones of the class, likewise (m, D).
    """
    each = _beside(features, learned, COPY_RULE)
    parts = [np.isin(groups[:n], groups[n:]) for n, groups in each]
    found = np.concatenate(parts)
    return found & (found.sum() > MANY_NEAR * len(found))


def _beside(
    features: Array, learned: Array, rule: CopyRule
) -> Iterator[tuple[int, tuple[int, ...]]]:
    """(n, groups of n images and then of the learned ones), of some images at a time."""
    for first in range(0, len(features), _AT_ONCE):
        part = features[first : first + _AT_ONCE]
        yield len(part), near_copy_groups(np.concatenate([part, learned]), rule)


def copy_groups(grid: Array, labels: Sequence[str]) -> Array:
    """Group of each image, int64 (N,), as `near_copy_groups` of those of each class.

    Args:
        grid: Features on the integer grid, int16 (N, D), as far as possible in order of the files.
        labels: Class names.
    """
    groups = np.arange(len(grid))
    for rows in rows_by_class(labels, range(len(grid))).values():
        for part in np.array_split(rows, -(-len(rows) // _COMPARED)):
            groups[part] = part[list(near_copy_groups(grid[part]))]
    return groups


def rows_by_class(labels: Sequence[str], rows: Iterable[int]) -> dict[str, list[int]]:
    """Some rows by their label."""
    found: dict[str, list[int]] = {}
    for row in rows:
        found.setdefault(labels[row], []).append(row)
    return found


def with_given_groups(groups: Sequence[int], codes: Sequence[int]) -> tuple[int, ...]:
    """Groups of rows (m,) that also keep together what has the same code; 0 says nothing.

    Args:
        groups: Of each row, as `near_copy_groups` gives them.
        codes: Of the group that each is said to be of.
    """
    first, rows_of = list(groups), {}
    for row, code in enumerate(codes):
        rows_of.setdefault(code, []).append(row)
    rows_of.pop(0, None)
    for rows in rows_of.values():
        joined = {first[row] for row in rows}
        first = [min(joined) if one in joined else one for one in first]
    return tuple(first)


def _clusters(squared: Array, limit: float) -> Iterator[tuple[float, list[int]]]:
    """(largest distance that connects it, its rows) of every cluster of single linkage."""
    near = np.argwhere(np.triu(squared <= limit, 1))
    distances = squared[near[:, 0], near[:, 1]]
    clusters = [[row] for row in range(len(squared))]
    for pair in np.argsort(distances, kind="stable"):
        one, other = (clusters[row] for row in near[pair])
        if one is other:
            continue
        joined = sorted(one + other)
        for row in joined:
            clusters[row] = joined
        yield float(distances[pair]), joined


def _squared_distances(grid: Array) -> Array:
    """Squared distances (m,m) of rows on the integer grid: whole numbers, exact in float64."""
    rows = np.asarray(grid, dtype=np.float64)
    products = rows @ rows.T  # numpy multiplies half of it, seeing that both are the same
    lengths = products.diagonal()
    return lengths[:, None] + lengths - 2 * products


# Standard normal deviates of the quantiles read off, and the distance between them.
_MIDDLE, _FAR = 0.75, 0.95
_DEVIATE = NormalDist().inv_cdf(_MIDDLE)
_APART = NormalDist().inv_cdf(_FAR) - _DEVIATE


def _copy_distance(pairs: Array, n: int, share: float) -> float:
    """Squared distance below which a pair counts as near copies, from those of all pairs of n."""
    # Squared distances of independent samples are close to a multiple of chi-squared, its cube root
    # to normal (Wilson and Hilferty, 1931). Both numbers come from above the median, where pairs
    # of one burst are not.
    at = [int(quantile * (len(pairs) - 1)) for quantile in (_MIDDLE, _FAR)]
    middle, far = np.cbrt(np.partition(pairs, at)[at]).tolist()
    spread = (far - middle) / _APART
    typical = middle - _DEVIATE * spread
    # A handful of pairs tells little about their spread: it is taken for wider then.
    by_chance = NormalDist().inv_cdf(_HEALTHY / (n - 1)) * spread * (1 + 4 / n)
    return min(share * typical**3, max(typical + by_chance, 0.0) ** 3)


def stand_for(groups: Sequence[int], copies: Sequence[int], count: int) -> list[float]:
    """How many images of the class each remembered row stands for when its group leaves, (m,).

    These are its copies. Where images were pushed out of the memory, near copies were among them:
    as many, in proportion, as the rows that stayed have beside them.

    Args:
        groups: Of each row, as `near_copy_groups` gives them.
        copies: How many images of the class each row is.
        count: Images of the class.
    """
    sizes = np.bincount(groups, minlength=len(groups))[list(groups)]
    kept = sum(copies)
    mates = float((sizes - 1).sum()) / len(sizes) if len(sizes) else 0.0
    if not mates or kept >= count:
        return [float(n) for n in copies]
    unseen = (count - kept) / kept * mates
    totals = np.bincount(groups, weights=copies, minlength=len(groups))[list(groups)]
    return [n + unseen * n / total for n, total in zip(copies, totals.tolist(), strict=True)]
