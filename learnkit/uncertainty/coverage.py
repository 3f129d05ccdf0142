"""Coverage of a pool of images by the few that are to be labelled: greedy, batch-aware selection.

Active learning in the regime of few labels: an image is worth its label if many doubtful images are
like it and none that is labelled. Each choice is made as if those before it had their labels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from learnkit.errors import UncertaintyError
from learnkit.uncertainty.checks import Array, as_floats, check_scores, refuse
from learnkit.uncertainty.scoring import unit_rows

# Unrelated features, centered and of length 1, are 1.4 apart, near ones of one class .6 to 1. From
# .7 to 1.1 accuracies on photographs differed by .02 at most, about their noise.
_WIDTH = 0.9
_TARGETS = 4096  # of a larger pool so many stand for all
_BLOCK = 512  # images compared with all targets at once
_STALE = 32  # upper bounds brought up to date at once


@dataclass(frozen=True, eq=False)
class Coverage:
    """Images chosen from a pool, in the order in which their labels are worth most.

    Attributes:
        chosen: their places in the pool, int64 (n,).
        n_covered: how many images of the pool are likest to each, itself included, (n,); 0 of one
            that shows the same as one before it. Those that are likest to an image whose label is
            known count for none. In a pool of more than 4,096 images, extrapolated from as many.
    """

    chosen: Array
    n_covered: Array


def cover(
    features: Any,
    weights: Any,
    n: int,
    *,
    known: Any = None,
    done: Callable[[int], object] = lambda n: None,
) -> Coverage:
    """The `n` images of a pool that cover it best, beside those whose labels are known.

    The next image is the one that adds most to `sum_i w_i max_j k(i, j)` over images i of the pool,
    j of those chosen or known, k a Gaussian kernel of centered features of length 1. The sum is
    submodular: choosing greedily reaches at least 63 % of the best that n images can.

    Args:
        features: of the pool (N, D), N >= n.
        weights: how much each of them is in doubt (N,), 0 or more.
        n: how many to choose.
        known: features (K, D) of images whose labels are known.
        done: told how many more of N + n steps are done.

    Raises:
        UncertaintyError: `n` below 1 or above N; weights of another number, or below 0.

    Source: Bae et al., "Uncertainty herding: one active learning method for all label budgets",
    2025; deviating, features are centered and the kernel's width is fixed. Nemhauser et al., "An
    analysis of approximations for maximizing submodular set functions", 1978.

    >>> pool = np.array([[5.0, 0.0], [4.0, 0.1], [0.0, 1.0]])
    >>> cover(pool, np.ones(3), 2).chosen.tolist()
    [1, 2]
    """
    features, weights = as_floats(features, name="features"), check_scores(weights, name="weights")
    _check(features, weights, n)
    known = features[:0] if known is None else as_floats(known, name="known")
    # both counted from their common mean, each row of length 1
    both = unit_rows(np.concatenate([features, known]), root=False)
    both = unit_rows(both - both.mean(0), root=False).astype(np.float32)
    pool, known = both[: len(features)], both[len(features) :]
    targets = _drawn(pool)
    greedy = _Greedy(pool, pool[targets], weights[targets].astype(np.float32), known)
    greedy.start(done)
    chosen = []
    for _ in range(n):
        chosen.append(greedy.choose())
        done(1)
    first = _first_alike(pool[chosen])
    counts = np.bincount(first[greedy.likest[greedy.likest >= 0]], minlength=n)
    # at least 1: in a large pool a chosen image need not be among those that stand for all
    covered = np.maximum(counts * len(pool) // len(targets), 1)
    return Coverage(np.array(chosen), np.where(first == np.arange(n), covered, 0))


def _first_alike(rows: Array) -> Array:
    """The number of the first row that is the same as each, int64 (n,)."""
    seen: dict[bytes, int] = {}
    return np.array([seen.setdefault(row.tobytes(), i) for i, row in enumerate(rows)])


class _Greedy:
    """Lazy greedy maximisation: what an image adds never grows, so old gains are upper bounds.

    Source: Minoux, "Accelerated greedy algorithms for maximizing submodular set functions", 1978.
    """

    def __init__(self, pool: Array, targets: Array, weights: Array, known: Array):
        self._pool, self._targets, self._weights = pool, targets, weights
        self._reached = np.zeros(len(targets), np.float32)  # the kernel to the likest so far
        for part in _parts(known):
            self._reached = np.maximum(self._reached, self._kernel(known[part]).max(0))
        self.likest = np.full(len(targets), -1)  # the number of the choice, -1 for a known image
        self._bounds = np.zeros(len(pool))
        self._rows: dict[int, Array] = {}  # of the kernel, where they were asked for before
        self._n = 0

    def start(self, done: Callable[[int], object]) -> None:
        """Find what each image adds before any is chosen."""
        for part in _parts(self._pool):
            self._bounds[part] = self._gains(self._kernel(self._pool[part]))
            done(len(self._bounds[part]))

    def choose(self) -> int:
        """The place of the image that adds most now; from then on it counts as labelled."""
        fresh = np.zeros(len(self._bounds), bool)
        # a fresh bound that is the highest is the largest gain: the others are no less than theirs
        while not fresh[best := int(self._bounds.argmax())]:
            stale = np.flatnonzero(~fresh & np.isfinite(self._bounds))
            if len(stale) > _STALE:
                top = np.argpartition(-self._bounds[stale], _STALE)[:_STALE]
                stale = stale[top]
            self._bounds[stale] = self._gains(self._rows_of(stale.tolist()))
            fresh[stale] = True
        likeness = self._rows_of([best])[0]
        self.likest[likeness > self._reached] = self._n
        self._reached = np.maximum(self._reached, likeness)
        self._bounds[best] = -np.inf
        self._n += 1
        return best

    def _gains(self, likeness: Array) -> Array:
        return np.maximum(likeness - self._reached, 0) @ self._weights

    def _rows_of(self, places: list[int]) -> Array:
        """The kernel of these images to all targets (n, targets)."""
        # 4,096 rows of 4,096 float32 take 67 MB; what is let go is computed again
        if len(self._rows) > _TARGETS:
            self._rows.clear()
        missing = [place for place in places if place not in self._rows]
        self._rows.update(zip(missing, self._kernel(self._pool[missing]), strict=True))
        return np.stack([self._rows[place] for place in places])

    def _kernel(self, rows: Array) -> Array:
        """Gaussian kernel float32 (n, targets) of rows of length 1."""
        # |x - y|^2 = 2 - 2 x y for rows of length 1
        return np.exp((rows @ self._targets.T - 1) * np.float32(2 / _WIDTH**2))


def _drawn(pool: Array) -> Array:
    """Places of at most 4,096 images: those with the smallest hashes, whatever their order."""
    if len(pool) <= _TARGETS:
        return np.arange(len(pool))
    hashes = [hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in pool]
    # of a fixed byte order: every machine draws the same images
    return np.argsort(np.frombuffer(b"".join(hashes), ">u8"), kind="stable")[:_TARGETS]


def _parts(rows: Array) -> list[slice]:
    return [slice(start, start + _BLOCK) for start in range(0, len(rows), _BLOCK)]


def _check(features: Array, weights: Array, n: int) -> None:
    if features.ndim != 2 or len(features) != len(weights):
        raise UncertaintyError(
            f"`features` has shape {features.shape} and `weights` {weights.shape}; give (N, D) and "
            "(N,), a weight per image"
        )
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or not 1 <= n <= len(features):
        raise UncertaintyError(
            f"`n` is {n!r}; choose from 1 to {len(features)}, the number of images"
        )
    refuse(weights, weights < 0, "weights", "a weight is 0 or more")
