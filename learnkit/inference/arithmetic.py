"""Arithmetic on features and logits that torch does elsewhere, with numpy alone."""

import numpy as np

_BLANK = 1e-12  # a feature with no larger entry has no direction
_BLOCK = 2**22  # distances held at once

Array = np.ndarray


def embed(features: Array, *, root: bool) -> Array:
    """Rows of length 1, float64 (N, D), as in `continual.embedding`; a row of zeros stays zero.

    >>> embed(np.array([[9.0, 16.0], [0.0, 0.0]]), root=True).tolist()
    [[0.6, 0.8], [0.0, 0.0]]
    """
    x = features.astype(np.float64)
    if root:
        size = np.abs(x)
        x = np.where(size <= _BLANK**2, 0.0, np.sign(x) * np.sqrt(size))
    blank = np.abs(x).max(1, keepdims=True, initial=0.0) <= _BLANK
    length = np.sqrt(np.square(x).sum(1, keepdims=True))  # float32 squared stays within float64
    return np.where(blank, 0.0, x / np.where(blank, 1.0, length))


def nearest(embedded: Array, reference: Array) -> Array:
    """Distance (N,) to the nearest of `reference` (K, D)."""
    lengths = np.square(reference).sum(1)
    rows = max(1, _BLOCK // len(reference))
    parts = [np.zeros(0)]
    for start in range(0, len(embedded), rows):
        part = embedded[start : start + rows]
        squared = np.square(part).sum(1)[:, None] + lengths - 2 * part @ reference.T
        parts.append(np.maximum(squared, 0).min(1))
    return np.sqrt(np.concatenate(parts))


def softmax(logits: Array) -> Array:
    """Probabilities (N, C); they sum to 1."""
    odds = np.exp(logits - logits.max(1, keepdims=True))
    return odds / odds.sum(1, keepdims=True)


def sigmoid(logits: Array) -> Array:
    """Probabilities (N, C), each of its own."""
    odds = np.exp(-np.abs(logits))
    return np.where(logits >= 0, 1, odds) / (1 + odds)


def log_sum_exp(logits: Array) -> Array:
    """Logarithm of the sum of exponentials of each row, (N,)."""
    top = logits.max(1)
    return top + np.log(np.exp(logits - top[:, None]).sum(1))
