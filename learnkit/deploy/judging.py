"""What a head in the continual state says of pooled features: labels, and how unusual they are."""

import copy
import math

import torch
from torch import Tensor

from learnkit.continual.classifier import ContinualClassifier
from learnkit.deploy.bulk import Result
from learnkit.deploy.prediction import not_finite, prediction_of


def judged(head: ContinualClassifier, features: Tensor) -> list[Result]:
    """For each row of `features` (N, D) its prediction, or a PredictionError.

    All of it is said by the head as it is at one moment, whoever changes it meanwhile.

    Raises:
        ContinualPredictionError: the head knows no class, or features of another width.
    """
    head = copy.deepcopy(head)  # shares what it knows, which never changes
    sound = features.isfinite().all(1)
    with torch.no_grad():
        probs = head(features[sound]).softmax(1)
    threshold, derived = head.threshold, head.knowledge.derived
    scores = head.ood_scores(features[sound])
    p_values, classes = threshold.p_value(scores).tolist(), head.classes
    misfits = (derived.misfits, derived.misfit_weights)
    rows = (
        prediction_of(
            row,
            classes,
            ood_score=score,
            ood_threshold=threshold.value,
            p_value=None if math.isnan(p_value) else p_value,
            misfits=misfits,
        )
        for row, score, p_value in zip(probs, scores.tolist(), p_values, strict=True)
    )
    return [next(rows) if is_sound else not_finite() for is_sound in sound.tolist()]
