"""Cosine similarity of features: groups of images that are alike, and the most alike of others."""

from __future__ import annotations

import numpy as np

from learnkit.uncertainty.scoring import Scoring, unit_rows

_CUT = 0.3  # cosine distance where the model says nothing of how far its images are apart
_BLOCK = 2**22  # similarities held at once


def most_alike(features: np.ndarray, others: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows of `others` most alike each of `features`, their cosine similarities), (N, k) each.

    The most alike come first, of equals the earlier; fewer than k if there are fewer.

    Args:
        features: embedded, of length 1 (N, D).
        others: likewise (K, D).
        k: how many of them.

    >>> places, similarity = most_alike(np.eye(2), np.array([[0.6, 0.8], [0.0, 1.0]]), 1)
    >>> places.tolist(), similarity.tolist()
    ([[0], [1]], [[0.6], [1.0]])
    """
    k, found = min(k, len(others)), []
    step = max(1, _BLOCK // max(len(others), 1))
    for start in range(0, len(features), step):
        similar = features[start : start + step] @ others.T
        order = np.argsort(-similar, 1, kind="stable")[:, :k]
        found.append((order, np.take_along_axis(similar, order, 1)))
    if not found:
        return np.zeros((0, k), np.int64), np.zeros((0, k))
    places, similarity = zip(*found, strict=True)
    return np.concatenate(places), np.concatenate(similarity)


def groups_alike(features: np.ndarray, cut: float, *, root: bool = False) -> list[list[int]]:
    """Places of images by group, the largest group first, in each the most typical first.

    Args:
        features: pooled features (N, D).
        cut: mean cosine distance, in 0..2, below which two groups are one.
        root: see `unit_rows`.

    >>> groups_alike(np.array([[1, 0], [0, 1], [1, 0.1], [1, 0.2]]), 0.3)
    [[2, 3, 0], [1]]
    """
    from scipy.cluster.hierarchy import fcluster, linkage  # here: predicting needs no scipy

    rows = unit_rows(features, root=root)
    if len(rows) < 2:
        return [[place] for place in range(len(rows))]
    # products of copies round to a little above 1
    distances = np.clip(1 - rows @ rows.T, 0, 2)
    # condensed: a square table scipy would take for rows of features
    condensed = distances[np.triu_indices(len(rows), 1)]
    numbers = fcluster(linkage(condensed, "average"), cut, "distance")
    found = [np.flatnonzero(numbers == one) for one in np.unique(numbers)]
    away = [distances[np.ix_(places, places)].mean(1) for places in found]  # from their own group
    found = [a[np.argsort(b, kind="stable")] for a, b in zip(found, away, strict=True)]
    return [one.tolist() for one in sorted(found, key=lambda places: (-len(places), places.min()))]


def cut_of(scoring: Scoring | None) -> float:
    """The cosine distance from the nearest known image at which the model flags an image.

    Of unit vectors it is half the squared distance; scores that have no such part say nothing.

    >>> cut_of(None)
    0.3
    """
    parts = (
        {} if scoring is None else {name: (loc, spread) for name, loc, spread in scoring.standards}
    )
    if "knn" not in parts:
        return _CUT
    location, spread = parts["knn"]
    distance = location + spread * max(0.0, scoring.threshold.value)
    return float(np.clip(distance**2 / 2, 0.02, 1.0))
