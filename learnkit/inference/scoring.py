"""Predictions from features and logits, with numpy alone."""

from __future__ import annotations

import numpy as np

from learnkit.inference.batch import Result
from learnkit.inference.prediction import not_finite, prediction_of
from learnkit.uncertainty.ood import sigmoid, softmax
from learnkit.uncertainty.scoring import Scoring

Array = np.ndarray


def judged(
    scoring: Scoring | None,
    features: Array,
    logits: Array | None,
    classes: tuple[str, ...],
    *,
    multi_label: bool = False,
    threshold: float = 0.5,
) -> list[Result]:
    """For each image its prediction, or a PredictionError.

    Args:
        scoring: of the head; None for a trained head that cannot tell unusual images.
        features: pooled features (N, D).
        logits: the network's own (N, C), where the labels come from them.
        classes: the C names.
        multi_label: an image may have several labels, or none.
        threshold: a label counts above it, if `multi_label`.
    """
    by_scoring = scoring is not None and scoring.labels
    sound = np.isfinite(features if logits is None or by_scoring else logits).all(1)
    if scoring is not None:
        sound &= np.isfinite(features).all(1)
    kept = features[sound]
    values = scoring.logits(kept) if by_scoring else logits[sound]
    values = values.astype(np.float64)
    probs = (sigmoid(values) if multi_label else softmax(values)).astype(np.float32)
    told = [{}] * len(kept) if scoring is None else scoring.ood_fields(kept)
    rows = (
        prediction_of(row, classes, multi_label=multi_label, threshold=threshold, **ood)
        for row, ood in zip(probs, told, strict=True)
    )
    return [next(rows) if is_sound else not_finite() for is_sound in sound.tolist()]
