"""What class statistics say of pooled features: labels, and how unusual they are."""

import copy
import math
from typing import Any

import torch
from torch import Tensor

from learnkit.continual.classifier import ContinualClassifier
from learnkit.continual.ood_detector import OodDetector
from learnkit.inference.batch import Result
from learnkit.inference.prediction import not_finite, prediction_of


def judged(head: ContinualClassifier, features: Tensor) -> list[Result]:
    """For each row of `features` (N, D) its prediction, or a PredictionError.

    All of it is said by the head as it is at one moment, whoever changes it meanwhile.

    Raises:
        ContinualPredictionError: the head knows no class, or features of another width.
    """
    head = copy.copy(head)  # shares what it knows, which never changes
    sound = features.isfinite().all(1)
    with torch.no_grad():
        probs = head(features[sound]).softmax(1)
    nonconformity = head.scoring.nonconformity
    return _rows(probs, sound, head.classes, _said(head, features[sound], nonconformity))


def judged_beside(
    detector: OodDetector, logits: Tensor, features: Tensor, classes: tuple[str, ...]
) -> list[Result]:
    """As `judged`, the classes being told by a trained head that gave `logits` (N, C)."""
    detector = copy.copy(detector)
    sound = logits.isfinite().all(1) & features.isfinite().all(1)
    said = _said(detector, features[sound], detector.nonconformity)
    return _rows(logits[sound].softmax(1), sound, classes, said)


def _said(
    head: ContinualClassifier, features: Tensor, nonconformity: tuple[Tensor, Tensor] | None
) -> list[dict[str, Any]]:
    """Fields of `Prediction` from `ood_score` on, for each row of finite features."""
    threshold, scores = head.threshold, head.ood_scores(features)
    return [
        {
            "ood_score": score,
            "ood_threshold": threshold.value,
            "p_value": None if math.isnan(p_value) else p_value,
            "nonconformity": nonconformity,
        }
        for score, p_value in zip(scores.tolist(), threshold.p_values(scores).tolist(), strict=True)
    ]


def _rows(
    probs: Tensor, sound: Tensor, classes: tuple[str, ...], said: list[dict[str, Any]]
) -> list[Result]:
    """A prediction for every sound row, whose probabilities and judgements come in order."""
    rows = (prediction_of(row, classes, **own) for row, own in zip(probs, said, strict=True))
    return [next(rows) if is_sound else not_finite() for is_sound in sound.tolist()]
