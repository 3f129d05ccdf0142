"""Predictions from features and logits, with numpy alone: one conclusion for every predictor."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from learnkit.data.labels import ids_of_classes
from learnkit.errors import PredictionError
from learnkit.inference.prediction import Result, not_finite, prediction_of
from learnkit.inference.tta import averaged, view
from learnkit.uncertainty.ood import sigmoid, softmax
from learnkit.uncertainty.scoring import Scoring

if TYPE_CHECKING:
    from torch import Tensor

    from learnkit.inference.model import Model

Array = np.ndarray


def predictions(
    model: Model,
    images: np.ndarray,
    wrap: Callable[[Array], Any] = np.asarray,
    n_views: int = 1,
) -> list[Result]:
    """For each image its prediction, or a PredictionError where numbers are not finite.

    All of it is concluded from what the model knows at one moment, whoever changes it meanwhile.

    Args:
        model: says it.
        images: uint8 (N, H, W, channels).
        wrap: makes what probabilities are given as of the array (N, C).
        n_views: of each image, over which probabilities are averaged; see `tta`. OOD scores are
            those of the images as they are.

    Raises:
        PredictionError: the network gives no (N, C), or no features where they are needed.
    """
    return predictions_and_features(model, images, wrap, n_views)[0]


def predictions_and_features(
    model: Model,
    images: np.ndarray,
    wrap: Callable[[Array], Any] = np.asarray,
    n_views: int = 1,
) -> tuple[list[Result], Array | None]:
    """What `predictions` gives, and the pooled features (N, D) where anything rests on them."""
    scoring, classes = knowledge_of(model)
    if not len(images):
        return [], None
    features, logits = model.network.run(images)
    if scoring is not None and features is None:
        raise PredictionError(model.network.no_features())
    said = {
        "multi_label": model.multi_label,
        "threshold": model.threshold,
        "wrap": wrap,
        "class_ids": ids_of_classes(model.class_ids, len(classes)) if model.class_ids else None,
    }
    results = conclude(scoring, features, logits, classes, **said)
    if n_views > 1:
        passes = (model.network.run(view(images, number)) for number in range(1, n_views))
        others = [conclude(scoring, *one, classes, **said) for one in passes]
        labels = {"multi_label": model.multi_label, "threshold": model.threshold}
        results = averaged(results, others, wrap, **labels)
    return results, features


def knowledge_of(model: Model) -> tuple[Scoring | None, tuple[str, ...]]:
    """(scoring or None, class names), both of one moment, whoever changes the model meanwhile."""
    if model.ood is None:
        return model.stored, model.names
    ood = copy.copy(model.ood)  # shares what it knows, which never changes
    return ood.scoring, model.names if model.head is None else ood.classes


def conclude(
    scoring: Scoring | None,
    features: Array | None,
    logits: Array | None,
    classes: tuple[str, ...],
    *,
    multi_label: bool = False,
    threshold: float = 0.5,
    wrap: Callable[[Array], Any] = np.asarray,
    class_ids: tuple[int, ...] | None = None,
) -> list[Result]:
    """For each image its prediction, or a PredictionError where numbers are not finite.

    Args:
        scoring: of the head or a detector; None for a trained head alone.
        features: pooled features (N, D), where anything is scored.
        logits: the network's own (N, C), where the labels come from them.
        classes: the C names.
        multi_label: an image may have several labels, or none.
        threshold: a label counts above it, if `multi_label`.
        wrap: makes what probabilities are given as of the array (N, C).
        class_ids: of the classes, where these are not their places.

    Raises:
        PredictionError: the logits are no (N, C).
    """
    by_scoring = scoring is not None and scoring.labels
    if not by_scoring:
        check_outputs(logits, len(classes))
    sound = np.isfinite(features if by_scoring else logits).all(1)
    if scoring is not None:
        sound &= np.isfinite(features).all(1)
        features = _blanked(features, ~sound)
    values = scoring.logits(features) if by_scoring else _blanked(logits, ~sound)
    values = values.astype(np.float64)
    probs = wrap((sigmoid(values) if multi_label else softmax(values)).astype(np.float32))
    told = [{}] * len(probs) if scoring is None else scoring.ood_fields(features)
    said = {"multi_label": multi_label, "threshold": threshold, "class_ids": class_ids}
    return [
        prediction_of(row, classes, **said, **ood) if is_sound else not_finite()
        for row, ood, is_sound in zip(probs, told, sound.tolist(), strict=True)
    ]


def _blanked(rows: Array, out: Array) -> Array:
    """`rows`, zeros in those that are `out`: sums of another number of rows have other bits."""
    return np.where(out[:, None], np.zeros_like(rows), rows) if out.any() else rows


def logits_of(model: Model, images: np.ndarray) -> Tensor:
    """The outputs float32 (N, C) for `images` uint8 (N, H, W, channels), as a tensor.

    Raises:
        PredictionError: the network gives no (N, C).
    """
    import torch

    if model.head is not None:
        with torch.no_grad():
            return model.head(torch.from_numpy(model.network.features(images)))
    if not len(images):
        return torch.zeros(0, len(model.names))
    logits = model.network.run(images)[1]
    check_outputs(logits, len(model.names))
    return torch.from_numpy(logits)


def check_outputs(logits: Array | None, n_classes: int) -> None:
    """Raise PredictionError unless `logits` are (N, n_classes)."""
    if logits is None:
        raise PredictionError("the network has no head: it gives features, not logits")
    n = len(logits) if logits.ndim else 0
    if logits.shape != (n, n_classes):
        raise PredictionError(
            f"the network gives outputs of shape {logits.shape} for {n} images and {n_classes} "
            f"classes; it must give ({n}, {n_classes})"
        )
