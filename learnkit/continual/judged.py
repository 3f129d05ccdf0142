"""What a classifier says of images: logits, and the raw scores of how unusual they are."""

import math
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from learnkit.continual.closed_form.linear import LinearClassifier
from learnkit.continual.score_parts import Reference, nearest

# What can be said of an image; "logits" carry the scores that are made of them.
PARTS = ("logits", "mahalanobis", "relative", "knn")


@dataclass(frozen=True, eq=False)
class Judged:
    """Logits (N,P) and raw scores (N,) of images.

    `mahalanobis` and `relative` are those of the geometry, `knn` the distance to the nearest
    remembered feature.
    """

    logits: Tensor
    mahalanobis: Tensor
    relative: Tensor
    knn: Tensor


def judge(
    linear: LinearClassifier,
    features: Tensor,
    reference: Reference,
    parts: Collection[str] = PARTS,
) -> Judged:
    """Logits and scores of embedded features (N,D) the classifier has not learned.

    Only the `parts` asked for are computed; the others are infinite, or have no columns.
    """
    geometry, none = linear.geometry, torch.full((len(features),), math.inf, dtype=torch.float64)
    relative, away = none, none
    if not {"mahalanobis", "relative"}.isdisjoint(parts):
        relative = geometry.relative_scores(features)
    if "mahalanobis" in parts:
        away = relative + geometry.squared_lengths(features)
    return Judged(
        linear.logits(features) if "logits" in parts else features[:, :0],
        away,
        relative if "relative" in parts else none,
        nearest(features, reference) if "knn" in parts else none,
    )
