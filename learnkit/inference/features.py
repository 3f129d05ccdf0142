"""Features of many images, to learn from: decoding in threads while the network works."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from learnkit.backends.network import Network
from learnkit.data.read_images import image_name, read_images
from learnkit.errors import PredictionError
from learnkit.inference.batch import chunks

BATCH = 16  # small enough that filling up the last batch costs little


def feature_rows(
    network: Network,
    items: Sequence[Any],
    *,
    bs: int,
    n_workers: int,
    progress: bool,
    read: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Pooled features float32 (N, D) of `items`, in order; no items, no rows.

    `read` says otherwise what is read of each batch of images uint8.

    Every forward pass has exactly `bs` images, the last one being filled up: so an image's features
    do not depend, to the bit, on which others are there.

    Raises:
        UnreadableImagesError: images cannot be read; all of them are named.
        PredictionError: features are not finite; the images are named.
    """
    if bs < 1:
        raise PredictionError(f"`bs`={bs}; a batch has at least one image")
    read = read or network.features
    loaded = read_images(
        network.preprocessing.load,
        items,
        n_ahead=2 * bs,
        n_workers=n_workers,
        progress=progress,
        what="features",
    )
    rows = [
        read(_filled_up(torch.stack(images), bs))[: len(images)] for images in chunks(loaded, bs)
    ]
    if not rows:
        return read(network.no_images())
    features = torch.cat(rows)
    _check_finite(features, items)
    return features


def _filled_up(images: Tensor, n: int) -> Tensor:
    """`images`, the last one repeated until there are `n`."""
    return torch.cat([images, images[-1:].expand(n - len(images), -1, -1, -1)])


def _check_finite(features: Tensor, items: Sequence[Any]) -> None:
    """Raise PredictionError naming the images whose features are not finite."""
    if wrong := (~features.isfinite().all(1)).nonzero().flatten().tolist():
        shown = ", ".join(image_name(items[i], i) for i in wrong[:5])
        shown += ", ..." if len(wrong) > 5 else ""
        raise PredictionError(
            f"the network's features are not finite for {shown} ({len(wrong)} of {len(items)} "
            "images); check its weights for NaN, and the images for values far outside those of "
            "training"
        )
