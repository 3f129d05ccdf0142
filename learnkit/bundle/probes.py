"""Probe images: they travel with a network, and it must still answer them as it did at export.

Of a model in the continual state the body's features are recorded beside the logits: they must come
out again for ever, while a later version may derive another classifier from the same statistics.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from learnkit.backends.torch_session import Network, channels_last, comparable, tolerance_of
from learnkit.continual.classifier import continual_head
from learnkit.data.preprocess import Preprocessing
from learnkit.errors import BundleCorruptError, ExportError

PROBE = "probe.safetensors"
MAX_PROBES = 16
_FEATURE_NOISE = 1e-4


class Probes(NamedTuple):
    """Images, the logits they must give, how far those may be off, and features (continual)."""

    images: Tensor
    logits: Tensor
    tolerance: float
    features: Tensor | None


def check_probes(images: Tensor, preprocessing: Preprocessing, error: type = ExportError) -> None:
    """Raise `error` unless `images` are a few preprocessed ones."""
    shape = (preprocessing.channels, *preprocessing.size)
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1:] != shape:
        raise error(
            f"the probe images are {images.dtype} {tuple(images.shape)}; preprocessed images are "
            f"uint8 (n, {', '.join(map(str, shape))})"
        )
    if not 1 <= len(images) <= MAX_PROBES:
        raise error(f"there are {len(images)} probe images; 1 to {MAX_PROBES} are needed")


def probe_tensors(model: nn.Module, probes: Tensor, recipe: Preprocessing) -> dict[str, Tensor]:
    """The file's tensors: images, the logits of `model` for them, and how far those may be off.

    Of a model in the continual state also `features`.
    """
    head, features = continual_head(model), None
    if head is not None:
        network = Network(model, recipe, owned=True, continual=True)
        features = torch.from_numpy(network.features(channels_last(probes)))
    # without a class there is nothing to classify by: on loading the features alone are compared
    if head is not None and head.knowledge.derived is None:
        logits, tolerance = torch.zeros(len(probes), len(head.classes)), 0.0
    else:
        with torch.no_grad():
            logits = comparable(model(recipe.normalize(probes)))
        tolerance = tolerance_of(logits)
        if head is not None:
            tolerance = max(tolerance, _response(head, features))
    found = {"images": probes, "logits": logits, "tolerance": torch.tensor(tolerance)}
    return found if features is None else {**found, "features": features}


def _response(head: nn.Module, features: Tensor) -> float:
    """How far logits move when features do in their last digits, as on another machine."""
    # signs in turn: heads scale features to length 1, and a common factor would move nothing
    signs = 1 - 2 * (torch.arange(features.numel()).view_as(features) % 2)
    with torch.no_grad():
        moved = head(features * (1 + _FEATURE_NOISE * signs))
        return (comparable(moved) - comparable(head(features))).abs().max().item()


def read_probes(
    probe: Mapping[str, Tensor], preprocessing: Preprocessing, n_classes: int, *, continual: bool
) -> Probes:
    """What the file of probes says.

    Raises:
        BundleCorruptError: a tensor is missing or of another shape or type.
    """
    wanted = {"images", "logits", "tolerance"} | ({"features"} if continual else set())
    if missing := wanted - probe.keys():
        raise BundleCorruptError(f"{PROBE} lacks {sorted(missing)}")
    images, logits, tolerance = probe["images"], probe["logits"], probe["tolerance"]
    check_probes(images, preprocessing, BundleCorruptError)
    if logits.dtype != torch.float32 or logits.shape != (len(images), n_classes):
        raise BundleCorruptError(f"{PROBE}: `logits` is {logits.dtype} {tuple(logits.shape)}")
    # so written that NaN is refused
    if tolerance.shape != () or not tolerance.item() >= 0:
        raise BundleCorruptError(f"{PROBE}: `tolerance` is not one number of at least 0")
    return Probes(images, logits, tolerance.item(), probe["features"] if continual else None)
