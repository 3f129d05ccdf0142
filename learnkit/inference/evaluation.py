"""Evaluation of a deployed model: labels encoded, out-of-distribution measures added."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from learnkit.continual.classifier import check_detects_ood
from learnkit.data.labelled_images import image_paths
from learnkit.data.read_images import image_name, unreadable_images, watched
from learnkit.errors import DataError, ImageReadError
from learnkit.inference.batch import Predicts, predict_stream
from learnkit.inference.prediction import Prediction, raised

if TYPE_CHECKING:
    from torch import Tensor

    from learnkit.data.dataset import ImageDataset
    from learnkit.evaluation.evaluate import Evaluation


def evaluate_predictor(
    predictor: Any, dataset: ImageDataset, *, ood: Any, bs: int, n_workers: int, progress: bool
) -> Evaluation:
    """How good the predictions for all images of `dataset` are; see `Predictor.evaluate`."""
    import torch

    from learnkit.evaluation.evaluate import evaluate

    targets = encoded_labels(dataset, predictor.classes, predictor.multi_label)
    unknown = [] if ood is None else image_paths(ood)
    if ood is not None:
        check_detects_ood(predictor.ood)
    failures: dict[str, str] = {}
    run = {"bs": bs, "n_workers": n_workers, "progress": progress}
    found, read = _predicted(predictor, dataset.paths, failures, **run)
    rows = [prediction.probs for prediction in found]
    evaluation = evaluate(
        torch.stack(rows) if rows else torch.empty(0, len(predictor.classes)),
        targets[read],
        predictor.classes,
        multi_label=predictor.multi_label,
        threshold=predictor.threshold,
        class_ids=predictor.class_ids if predictor.record.class_ids else None,
    )
    if predictor.detects_ood:
        strange, _ = _predicted(predictor, unknown, failures, **run)
        evaluation = with_ood_measures(evaluation, found, strange, targets[read])
    if failures:
        error = unreadable_images(failures, len(dataset) + len(unknown), "the others are judged")
        error.evaluation = evaluation
        raise error
    return evaluation


def _predicted(
    predictor: Predicts,
    paths: Sequence[Any],
    failures: dict[str, str],
    *,
    bs: int,
    n_workers: int,
    progress: bool,
) -> tuple[list[Prediction], list[int]]:
    """Predictions and places of the images that can be read; of the others, why they cannot."""
    found, read = [], []
    stream = watched(
        predict_stream(predictor, paths, bs=bs, n_workers=n_workers), len(paths), progress
    )
    for place, (path, result) in enumerate(stream):
        if isinstance(result, ImageReadError):
            failures[image_name(path, place)] = str(result)
        else:
            found.append(raised(result))
            read.append(place)
    return found, read


def with_ood_measures(
    evaluation: Evaluation,
    known: Sequence[Prediction],
    unknown: Sequence[Prediction],
    targets: Any,
) -> Evaluation:
    """`evaluation` with what the OOD scores of known and unknown images add to it."""
    scores = [[prediction.ood_score for prediction in side] for side in (known, unknown)]
    threshold = next((p.ood_threshold for p in [*known, *unknown]), None)
    return with_ood_scores(evaluation, *scores, threshold, targets)


def with_ood_scores(
    evaluation: Evaluation, known: Any, ood: Any, threshold: float | None, targets: Any
) -> Evaluation:
    """`evaluation`, also saying how well OOD images are detected.

    `false_alarm_rate` of the evaluated images are flagged, in all and of each class; given OOD
    images, `detection_rate` of them are, and `auroc` and `fpr_at_95_tpr` measure the score itself.

    Args:
        evaluation: of the known images.
        known: their OOD scores (N,).
        ood: the OOD scores (M,) of images of no known class, empty without any.
        threshold: the score above which an image is flagged.
        targets: class numbers of the known images (N,).
    """
    import numpy as np
    import pandas as pd

    from learnkit.uncertainty.ood import evaluate_ood

    found = evaluate_ood(known, ood, threshold)
    names = ("false_alarm_rate", "detection_rate", "auroc", "fpr_at_95_tpr")
    values = {name: getattr(found, name) for name in (names if len(ood) else names[:1])}
    summary = pd.concat([evaluation.summary, pd.Series(values, dtype=float)])
    flagged = np.asarray(known, float) > (np.nan if threshold is None else threshold)
    n = evaluation.per_class["n"].to_numpy()
    own = np.bincount(np.asarray(targets), flagged, len(n)) / np.where(n, n, np.nan)
    return replace(
        evaluation,
        summary=summary.rename(evaluation.summary.name),
        per_class=evaluation.per_class.assign(false_alarm_rate=own),
    )


def encoded_labels(dataset: ImageDataset, classes: tuple[str, ...], multi_label: bool) -> Tensor:
    """Class numbers (N,), or zeros and ones (N, C) if `multi_label`."""
    import torch

    number = {name: i for i, name in enumerate(classes)}
    labels = [label if isinstance(label, tuple) else (label,) for label in dataset.labels]
    found = {name for names in labels for name in names}
    if unknown := sorted(found - set(classes), key=str):
        raise DataError(
            f"the dataset has labels {unknown[:5]} that this model does not know; its classes are "
            f"{list(classes)}: filter those images out, or rename with set(class_names=)"
        )
    if not multi_label:
        return torch.tensor([number[names[0]] for names in labels], dtype=torch.int64)
    targets = torch.zeros(len(labels), len(classes), dtype=torch.int64)
    for row, names in zip(targets, labels, strict=True):
        row[[number[name] for name in names]] = 1
    return targets
