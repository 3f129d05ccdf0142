"""Activation ranges of a float network on sample images, to quantise in, and means.

A range goes from the smallest to the largest value seen.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from learnkit.errors import OptimizeError
from learnkit.optimize.quantize.graph import FloatNetwork, Range, open_raw


@dataclass(frozen=True)
class ActivationRanges:
    """What was seen of a network's activations.

    Args:
        ranges: smallest and largest value of each.
        means: the mean over images of each that a heavy layer reads, float32 (1, ...).
        features: what the network gives, float32 (N, D).
    """

    ranges: dict[str, Range]
    means: dict[str, np.ndarray]
    features: np.ndarray


class _Seen:
    """Extremes, and if asked for the mean over images, of one activation."""

    def __init__(self, averaged: bool):
        self.low, self.high = np.inf, -np.inf
        self.averaged, self.rows, self.total = averaged, 0, 0.0

    def add(self, value: np.ndarray) -> None:
        # Narrower ranges, of percentiles or of the least square error, were no better on the real
        # network measured, and now and then cut off the few large values that mattered (error of
        # the features .145 instead of .117).
        # np.minimum hands on what is not a number; min would drop it
        self.low = np.minimum(self.low, value.min())
        self.high = np.maximum(self.high, value.max())
        if self.averaged:
            self.rows += len(value)
            self.total = self.total + value.sum(0, dtype=np.float64)

    @property
    def mean(self) -> np.ndarray:
        return (self.total[None] / self.rows).astype(np.float32)


def observe_activations(
    network: FloatNetwork,
    images: np.ndarray,
    *,
    bs: int = 8,
    progress: Callable[[int], object] | None = None,
) -> ActivationRanges:
    """Everything there is to see when the images run through the network once.

    Args:
        network: the float network.
        images: uint8 (N, H, W, C).
        bs: images at a time.
        progress: called with the number of images after each batch.

    Raises:
        OptimizeError: an activation is not finite.
    """
    names = network.activations
    session = open_raw(_showing(network, names))
    read = {node.input[0] for node in network.heavy}
    seen = {name: _Seen(name in read) for name in names}
    features = []
    for start in range(0, len(images), bs):
        batch = images[start : start + bs]
        first, *values = session.run(["features", *names], {"image": batch})
        features.append(first)
        for one, value in zip(seen.values(), values, strict=True):
            one.add(value)
        if progress is not None:
            progress(len(batch))
    _check(seen)
    return ActivationRanges(
        {name: (float(one.low), float(one.high)) for name, one in seen.items()},
        {name: one.mean for name, one in seen.items() if one.averaged},
        np.concatenate(features),
    )


def _check(seen: dict[str, _Seen]) -> None:
    bad = [name for name, one in seen.items() if not np.isfinite([one.low, one.high]).all()]
    if bad:
        raise OptimizeError(
            f"{len(bad)} activations of the network are not finite on the samples, first {bad[0]}; "
            "it cannot be quantised: look at its weights, or train it again"
        )


def _showing(network: FloatNetwork, names: Sequence[str]) -> bytes:
    """The network with `names` among its outputs."""
    model = network.copy()
    known = {value.name: value for value in model.graph.value_info}
    present = {value.name for value in model.graph.output}
    model.graph.output.extend(known[name] for name in names if name not in present)
    return model.SerializeToString()


def spread(n: int, most: int) -> np.ndarray:
    """Indices of at most `most` of `n`, evenly spread."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int))
