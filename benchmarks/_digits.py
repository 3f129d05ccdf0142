"""Features that need no download: the 8 x 8 pixels of scikit-learn's 1,797 handwritten digits."""

from pathlib import Path

import numpy as np
import torch
from _features import Split, load
from sklearn.datasets import load_digits


def load_or_digits(options) -> tuple[str, dict[str, Split]]:
    """Name and splits of the features asked for; those of the digits if none are."""
    if not (options.features or options.data):
        return "digits", digits()
    return Path(options.features or options.data).stem, load(options)


def digits() -> dict[str, Split]:
    """Pixels (N,64) and names of the digits, 1,000 to train on and 797 to test on."""
    pixels, targets = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(pixels))
    parts = {"train": order[:1000], "test": order[1000:]}
    return {
        name: Split(torch.from_numpy(pixels[i]), targets[i].astype(str))
        for name, i in parts.items()
    }


def noise(like: torch.Tensor, *, n: int = 500) -> torch.Tensor:
    """Vectors (n,D) that are no digit: uniform between 0 and the largest value."""
    rng = np.random.default_rng(1)
    return torch.from_numpy(rng.uniform(0, like.max().item(), (n, like.shape[1])))
