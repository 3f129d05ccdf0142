"""Features of a learner's images: one pass, as its validation reads them."""

from __future__ import annotations

from typing import Any

import learnkit._torchvision  # noqa: F401  # before fastai

import numpy as np
import torch
from fastai.torch_core import to_device
from torch import Tensor

from learnkit.backends.network import Network
from learnkit.backends.session import feature_origin
from learnkit.errors import DataError
from learnkit.inference.batch import BATCH
from learnkit.inference.features import feature_rows
from learnkit.interpret.checks import detached
from learnkit.interpret.contexts import progress_over, randomness_kept
from learnkit.interpret.normalization import renormalization
from learnkit.interpret.source import Source
from learnkit.learner.transforms import preprocessing_of
from learnkit.models.eval_mode import evaluating


def features_of(learn: Any, items: Any) -> Tensor:
    """Pooled features float32 (N, D) of images, in order, as the learner's validation reads them.

    Files and pictures go the way they go in deployment, so that a deployed model and the learner
    learn the same from them.

    Args:
        learn: the learner; its model is left in the modes it is in.
        items: files or pictures, or a `Source` of batches.

    Raises:
        UnreadableImagesError: images cannot be read; all of them are named.
    """
    show = hasattr(learn, "progress")
    if isinstance(items, Source):
        return _of_batches(learn, items, show)
    if not len(items) and hasattr(learn.model[0], "n_features"):
        return torch.empty(0, learn.model[0].n_features)
    recipe = preprocessing_of(learn.dls)
    network = Network(learn.model, recipe, owned=False, continual=True)
    return feature_rows(network, recipe, items, bs=BATCH, n_workers=2, progress=show)


def origin_of(learn: Any, items: Any) -> str:
    """The origin of the features that `features_of` gives, see `feature_origin`."""
    batch = "a loader's size" if isinstance(items, Source) else BATCH
    device = next((p.device for p in learn.model.parameters()), "cpu")
    return feature_origin("torch", "float32", str(device), batch)


def features_and_logits(learn: Any, items: Any, n_classes: int) -> tuple[Tensor, Tensor]:
    """What `features_of` gives, and the logits (N, n_classes) of the trained head; one pass."""
    show = hasattr(learn, "progress")
    if isinstance(items, Source):
        both = _of_batches(learn, items, show, with_logits=True)
    else:
        recipe = preprocessing_of(learn.dls)
        network = Network(learn.model, recipe, owned=False)
        read = lambda images: np.concatenate(network.run(images), 1)
        run = {"bs": BATCH, "n_workers": 2, "progress": show, "read": read}
        both = feature_rows(network, recipe, items, **run)
    return both[:, :-n_classes], both[:, -n_classes:]


def _of_batches(learn: Any, source: Source, show: bool, with_logits: bool = False) -> Tensor:
    """Features (and logits) of what a loader gives, in its own batches."""
    device = next((p.device for p in learn.model.parameters()), torch.device("cpu"))
    rows, pixels = [], renormalization(learn, source.template)
    with (
        randomness_kept(),
        evaluating(learn.model),
        torch.no_grad(),
        progress_over(source.batches(), show) as batches,
    ):
        for batch in batches:
            images = batch[0] if isinstance(batch, list | tuple) else batch
            images = images if pixels is None else pixels(images)
            feature_map = learn.model[0](to_device(detached(images), device))
            row = feature_map.to(torch.float32).mean((2, 3))
            if with_logits:
                row = torch.cat([row, learn.model[1](feature_map).to(torch.float32)], 1)
            rows.append(row.cpu())
    if not rows:
        raise DataError("`data` has no images; give a loader over at least one")
    return torch.cat(rows)
