"""Features of many images, to learn from: decoding in threads while the network works."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from learnkit.backends.session import Session
from learnkit.backends.torch_session import Network, channels_last, default_probes, tolerance_of
from learnkit.continual.label_issues import LabelErrors, label_errors
from learnkit.data.labelled_images import Labelled
from learnkit.data.preprocess import Preprocessing
from learnkit.data.read_images import chunks, image_name, read_images
from learnkit.errors import PredictionError
from learnkit.inference.batch import check_batch_size, padded
from learnkit.inference.model import Model

ENGINES = ("torch", "onnxruntime")


def feature_rows(
    network: Session,
    recipe: Preprocessing,
    items: Sequence[Any],
    *,
    bs: int,
    n_workers: int,
    progress: bool,
    read: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Tensor:
    """Pooled features float32 (N, D) of `items`, in order; no items, no rows.

    `read` says otherwise what is read of each batch of images uint8 (bs, H, W, channels).

    Every forward pass has exactly `bs` images, the last one being filled up.

    Raises:
        UnreadableImagesError: images cannot be read; all of them are named.
        PredictionError: features are not finite; the images are named.
    """
    check_batch_size(bs)
    read = read or network.features
    loaded = read_images(
        recipe.pixels,
        items,
        n_ahead=2 * bs,
        n_workers=n_workers,
        progress=progress,
        what="features",
    )
    # padded, so that an image's features do not depend, to the bit, on which others are there
    rows = [read(np.stack(padded(images, bs)))[: len(images)] for images in chunks(loaded, bs)]
    if not rows:
        return torch.from_numpy(read(network.no_images()))
    features = torch.from_numpy(np.concatenate(rows))
    _check_finite(features, items)
    return features


def find_label_errors(model: Model, images: Labelled, **run: Any) -> LabelErrors:
    """Labels that are probably wrong, by the features of a model's network alone.

    Args:
        model: whose network and recipe are used.
        images: with their labels, and groups where there are any.
        **run: `bs`, `n_workers` and `progress`, see `feature_rows`.
    """
    features = feature_rows(model.network, model.preprocessing, images.items, **run)
    root = model.ood is not None and model.ood.settings.root
    return label_errors(features, images.labels, images.items, root=root, groups=images.groups)


def engine_of(origins: Sequence[str]) -> str:
    """The engine that features of these origins come from: "onnxruntime" if all do, else "torch".

    >>> engine_of(["onnxruntime 1.22 float32, cpu avx2, batches of 16"]), engine_of([])
    ('onnxruntime', 'torch')
    >>> engine_of(["onnxruntime 1.22 int8, cpu avx2, batches of 16"])  # of another network
    'torch'
    """
    found = {tuple(origin.partition(",")[0].split()[::2]) for origin in origins}
    return ENGINES[1] if found == {(ENGINES[1], "float32")} else ENGINES[0]


def learning_session(
    network: Session, origins: Sequence[str], engine: str | None = None
) -> Session:
    """The session that reads features to learn: `network`, or what gives the same in onnxruntime.

    Args:
        network: a live network, or a converted one, which is taken as it is.
        origins: of the features learned so far; their engine goes on.
        engine: "torch" or "onnxruntime", in the place of theirs.

    Raises:
        PredictionError: there is no such engine, or it is asked of a converted network.
        ExportError: the network gives other features in it.
    """
    if engine not in (None, *ENGINES):
        raise PredictionError(f"`engine` is {engine!r}; it must be one of {', '.join(ENGINES)}")
    if isinstance(network, Network) and (engine or engine_of(origins)) == ENGINES[1]:
        from learnkit.backends.onnx_export import same_in_onnxruntime

        return same_in_onnxruntime(network)
    return network


def learning_model(model: Model) -> Model:
    """The model, its network as what it has learned was read: see `learning_session`."""
    origins = model.ood.statistics.origins if model.ood is not None else ()
    return model.replace(network=learning_session(model.network, origins))


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


def check_same_features(one: Model, other: Model) -> None:
    """Raise PredictionError unless two models make the same features of the same pixels."""
    recipe = one.preprocessing
    same = recipe == other.preprocessing and one.variant == other.variant
    if same:
        images = channels_last(default_probes(recipe))
        found = [torch.from_numpy(model.network.features(images)) for model in (one, other)]
        same = found[0].shape == found[1].shape
        same = same and bool((found[0] - found[1]).abs().max() <= tolerance_of(found[0]))
    if not same:
        raise PredictionError(
            "`other` is over another network, precision or preprocessing: its features do not "
            "compare with these; merge copies of one exported model, in the same variant"
        )
