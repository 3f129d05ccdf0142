"""Groups of images that look the same, from their thumbnails alone."""

from collections.abc import Iterator

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tqdm.auto import tqdm

# Recompressing or rescaling moves a thumbnail by less than one grey level. Images of high contrast
# may move more and still look the same.
_ABSOLUTE, _OF_CONTRAST = 1.0, 0.03
_BLOCK = 512


def near_duplicate_groups(thumbnails: np.ndarray, *, progress: bool = False) -> list[list[int]]:
    """Row numbers of images that look the same, in groups of two or more, each sorted.

    Two images do if the root mean square difference of their thumbnails is at most one grey level,
    or 3 % of the smaller standard deviation if that is more; groups are what such pairs connect.

    Args:
        thumbnails: uint8 (N, D), one row per image.
        progress: Show a bar.
    """
    x = thumbnails.astype(np.float32)
    blocks = tqdm(
        _pairs(x),
        total=-(-len(x) // _BLOCK),
        desc="comparing images",
        disable=not progress or len(x) < 10 * _BLOCK,
    )
    pairs = [pair for pair in blocks if pair.size]
    if not pairs:
        return []
    i, j = np.concatenate(pairs, axis=1)
    graph = coo_array((np.ones(len(i), dtype=bool), (i, j)), shape=(len(x), len(x)))
    _, component = connected_components(graph, directed=False)
    order = np.argsort(component, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(component[order])) + 1)
    return sorted(group.tolist() for group in groups if len(group) > 1)


def _pairs(x: np.ndarray) -> Iterator[np.ndarray]:
    """int64 (2, P) per block: pairs within their tolerance."""
    order = np.argsort(x.mean(1), kind="stable")
    x = x[order]
    means, tolerance = x.mean(1), np.maximum(_ABSOLUTE, _OF_CONTRAST * x.std(1))
    centred = x - means[:, None]
    squares = (centred**2).mean(1)
    for start in range(0, len(x), _BLOCK):
        rows = slice(start, min(start + _BLOCK, len(x)))
        # The difference of two means is never more than the root mean square difference, so rows
        # sorted by mean need comparing only with those that follow within the largest tolerance.
        reach = means[rows.stop - 1] + tolerance[rows].max() + 1e-3
        columns = slice(start, int(np.searchsorted(means, reach, side="right")))
        cross = centred[rows] @ centred[columns].T / x.shape[1]
        gap = means[rows, None] - means[None, columns]
        distance = squares[rows, None] + squares[None, columns] - 2 * cross + gap**2
        limit = np.minimum(tolerance[rows, None], tolerance[None, columns]) ** 2
        near = np.triu(distance <= limit + 1e-3, k=1)
        i, j = np.nonzero(near)
        yield np.stack([order[i + start], order[j + start]])
