"""Features of many images, to learn from: decoding in threads while the network works."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from learnkit.backends.network import Network
from learnkit.errors import PredictionError, UnreadableImagesError
from learnkit.inference.batch import chunks, load_ahead, watched

BATCH = 16  # small enough that filling up the last batch costs little
_LISTED = 100  # images a message names; the error keeps them all


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
    loaded = load_ahead(network.preprocessing.load, items, n_ahead=2 * bs, n_workers=n_workers)
    rows, failures, n_seen = [], {}, 0
    for batch in chunks(watched(loaded, len(items), progress, "features"), bs):
        for item, image in batch:
            if not isinstance(image, Tensor):
                failures[item_name(item, n_seen)] = str(image)
            n_seen += 1
        if not failures:
            images = torch.stack([image for _, image in batch])
            rows.append(read(_filled_up(images, bs))[: len(images)])
    if failures:
        raise unreadable(failures, len(items))
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
        shown = ", ".join(item_name(items[i], i) for i in wrong[:5]) + ", ..." * (len(wrong) > 5)
        raise PredictionError(
            f"the network's features are not finite for {shown} ({len(wrong)} of {len(items)} "
            "images); check its weights for NaN, and the images for values far outside those of "
            "training"
        )


def item_name(item: Any, number: int) -> str:
    """What to call an image in a message: its path, else its number."""
    return str(item) if isinstance(item, str | os.PathLike) else f"image {number}"


def unreadable(failures: Mapping[str, str], n: int) -> UnreadableImagesError:
    """The error that lists `failures` (of `n` images), and keeps them."""
    listed = list(failures.values())
    more = f"; and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
    error = UnreadableImagesError(
        f"{len(listed)} of {n} images cannot be read, and nothing was changed: "
        f"{'; '.join(listed[:_LISTED])}{more}. Leave them out, or mend them, and call again"
    )
    error.failures = dict(failures)
    return error
