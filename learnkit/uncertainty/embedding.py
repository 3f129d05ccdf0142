"""Embedding of pooled features: rows of length one, the same to the bit wherever they are made.

Each row is looked at alone and its length summed exactly, so that neither batch nor machine shows.
That is what makes sums of embedded features additive without any rounding.
"""

from __future__ import annotations

import numpy as np

from learnkit.uncertainty.checks import Array, as_floats

GRID = 2**15  # steps from 0 to 1 of the integer grid on which features are remembered
BLANK = 1e-12  # a feature with no larger entry has no direction
_FINE = 2.0**40
_BLOCK = 2**18  # numbers worked on at once


def unit_rows(features: Array, *, root: bool) -> Array:
    """Rows of length 1, float64 (N, D); a row of zeros stays zero.

    With `root` the signed square root is taken first, which tames the few large entries of features
    that are never negative.

    >>> unit_rows([[3.0, 4.0], [0.0, 0.0]], root=False).tolist()
    [[0.6, 0.8], [0.0, 0.0]]
    >>> unit_rows([[9.0, 16.0]], root=True).tolist()
    [[0.6, 0.8]]
    """
    features = as_floats(features, name="features")
    rows = np.empty(features.shape)
    step = max(1, _BLOCK // max(features.shape[1], 1))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        x = features[part]
        if root:
            size = np.abs(x)
            x = np.where(size <= BLANK**2, 0.0, np.copysign(np.sqrt(size), x))
        rows[part] = _scaled(x)
    return rows


def _scaled(x: Array) -> Array:
    """Rows divided by their largest entry, which keeps squares in range, then by their length."""
    top = np.abs(x).max(1, keepdims=True, initial=0.0)
    blank = top <= BLANK
    x = np.where(blank, 0.0, x / np.where(blank, 1.0, top))
    # sums of 2^13 integers up to 2^40 are exact; wider features are summed block by block
    starts = range(0, x.shape[1], 2**13)
    length = np.sqrt(sum(_square_sum(x[:, start : start + 2**13]) for start in starts))
    return x / np.where(blank, 1.0, length)


def _square_sum(x: Array) -> Array:
    """Squared length of each row (N, 1), of rows with no entry above 1."""
    # Two integers for each square: their sums are exact in float64 and so do not depend on the
    # order of summation, which differs between libraries and with the shape of a batch.
    square = x * x * _FINE
    coarse = np.rint(square)
    fine = np.rint((square - coarse) * _FINE)
    total = coarse.sum(1, keepdims=True) / _FINE
    return total + fine.sum(1, keepdims=True) / (_FINE * _FINE)
