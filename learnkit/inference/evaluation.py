"""Evaluation of a deployed model: labels encoded, out-of-distribution measures added."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from learnkit.continual.classifier import check_detects_ood
from learnkit.continual.label_issues import optimism
from learnkit.data.labelled_images import image_paths, labelled_dataset
from learnkit.data.read_images import image_name, unreadable_images
from learnkit.errors import DataError, ImageReadError
from learnkit.inference.batch import Predicts, predict_stream
from learnkit.inference.heatmap import evidence_of_files
from learnkit.inference.prediction import Prediction, Result, raised
from learnkit.inference.scoring import predictions_and_features
from learnkit.interpret.page.images import EvaluatedImages
from learnkit.interpret.page.page import EvaluationPage
from learnkit.report.progress import watched

if TYPE_CHECKING:
    from torch import Tensor

    from learnkit.data.dataset import ImageDataset
    from learnkit.evaluation.evaluate import Evaluation


def evaluate_predictor(
    predictor: Any, dataset: Any, *, ood: Any, bs: int, n_workers: int, progress: bool
) -> Evaluation:
    """How good the predictions for all images of `dataset` are; see `Predictor.evaluate`."""
    import torch

    from learnkit.evaluation.evaluate import evaluate

    dataset = labelled_dataset(dataset)
    targets = encoded_labels(dataset, predictor.classes, predictor.multi_label)
    unknown = [] if ood is None else image_paths(ood)
    if ood is not None:
        check_detects_ood(predictor.ood)
    failures: dict[str, str] = {}
    run = {"bs": bs, "n_workers": n_workers, "progress": progress}
    recognizing = predictor if predictor.record.ood is None else _Recognizing(predictor)
    results, read = _results(recognizing, dataset.paths, failures, **run)
    found, learned, notes = _recognized(predictor, results)
    rows = [prediction.probs for prediction in found]
    evaluation = evaluate(
        torch.stack(rows) if rows else torch.empty(0, len(predictor.classes)),
        targets[read],
        predictor.classes,
        multi_label=predictor.multi_label,
        threshold=predictor.threshold,
        class_ids=predictor.class_ids if predictor.record.class_ids else None,
    )
    evaluation, strange, sources = replace(evaluation, notes=notes), [], []
    if predictor.detects_ood:
        results, read_strange = _results(predictor, unknown, failures, **run)
        strange, sources = list(map(raised, results)), [unknown[place] for place in read_strange]
        promised = predictor.ood.threshold.false_alarm_rate
        evaluation = with_ood_measures(evaluation, found, strange, targets[read], promised)
    sources = [dataset.paths[place] for place in read] + sources
    images = _evaluated(predictor, [*found, *strange], targets[read], sources)
    images = replace(images, root=dataset.root, learned=learned, unreadable=failures)
    evaluation = replace(evaluation, page=EvaluationPage(images))
    if failures:
        error = unreadable_images(failures, len(dataset) + len(unknown), "the others are judged")
        error.evaluation = evaluation
        raise error
    return evaluation


class _Recognizing:
    """A predictor whose results come in pairs with the fingerprint of the image."""

    def __init__(self, predictor: Any):
        self.classes, self.detects_ood = predictor.classes, predictor.detects_ood
        self.load, self._predictor = predictor.load, predictor
        self._statistics = predictor.record.ood.statistics

    def try_loaded(self, images: Sequence[Any]) -> list[tuple[Result, int]]:
        record, wrap = self._predictor.record, self._predictor._wrap
        results, features = predictions_and_features(
            record, np.stack(list(images)), wrap, self._predictor.tta
        )
        sound = np.nan_to_num(features, posinf=0, neginf=0)
        return list(zip(results, self._statistics.fingerprints(sound), strict=True))


def _evaluated(
    predictor: Any, found: Sequence[Prediction], targets: Any, sources: Sequence[Any]
) -> EvaluatedImages:
    """The images of an evaluation, with what was answered to each."""
    rows = [np.asarray(prediction.probs) for prediction in found]
    scored = bool(found) and found[0].ood_score is not None
    head = predictor.continual
    return EvaluatedImages(
        probs=np.stack(rows) if rows else np.zeros((0, len(predictor.classes)), np.float32),
        targets=np.asarray(targets),
        sources=sources,
        threshold=predictor.threshold,
        ood_scores=np.array([one.ood_score for one in found]) if scored else None,
        ood_threshold=found[0].ood_threshold if scored else None,
        n_learned={} if head is None else head.n_images,
        facts=facts_of(predictor),
        decode=predictor.preprocessing.decode,
        box=predictor.preprocessing.seen_box,
        heat=partial(evidence_of_files, predictor.record),
    )


def facts_of(predictor: Any) -> dict[str, str]:
    """What a page says of a model: its name, architecture, size of images and digest."""
    card, home = predictor.metadata.get("card") or {}, predictor._home
    network = getattr(predictor.record.network, "model", None)
    spec = getattr(network, "spec", None)
    arch = [getattr(spec, "arch", ""), predictor.variant]
    height, width = predictor.preprocessing.size
    return {
        "name": str(card.get("name") or (home and home.path.name) or ""),
        "arch": ", ".join(map(str, filter(None, arch))),
        "size": f"{height} x {width} pixels",
        "digest": predictor.digest or "",
    }


def _recognized(
    predictor: Any, results: Sequence[Any]
) -> tuple[list[Prediction], Any, tuple[str, ...]]:
    """(predictions, which images the model has learned, notes on these).

    The notes also tell of images that decide its threshold. None where nobody knows.
    """
    if predictor.record.ood is None:
        return list(map(raised, results)), None, ()
    pairs = [one if isinstance(one, tuple) else (one, 0) for one in results]
    knowledge = predictor.record.ood.knowledge
    codes = np.array([code for _, code in pairs], dtype=np.uint64)
    notes = optimism(knowledge.statistics, knowledge.validation, codes)
    learned = knowledge.statistics.learned.know(codes)
    return [raised(result) for result, _ in pairs], learned, notes


def _results(
    predictor: Predicts,
    paths: Sequence[Any],
    failures: dict[str, str],
    *,
    bs: int,
    n_workers: int,
    progress: bool,
) -> tuple[list[Any], list[int]]:
    """Results and places of the images that can be read; of the others, why they cannot."""
    found, read = [], []
    stream = predict_stream(predictor, paths, bs=bs, n_workers=n_workers)
    for place, (path, result) in enumerate(watched(stream, len(paths), progress)):
        if isinstance(result, ImageReadError):
            failures[image_name(path, place)] = str(result)
        else:
            found.append(result)
            read.append(place)
    return found, read


def with_ood_measures(
    evaluation: Evaluation,
    known: Sequence[Prediction],
    unknown: Sequence[Prediction],
    targets: Any,
    promised: float | None,
) -> Evaluation:
    """`evaluation` with what the OOD scores of known and unknown images add to it."""
    scores = [[prediction.ood_score for prediction in side] for side in (known, unknown)]
    threshold = next((p.ood_threshold for p in [*known, *unknown]), None)
    return with_ood_scores(evaluation, *scores, threshold, targets, promised)


def with_ood_scores(
    evaluation: Evaluation,
    known: Any,
    ood: Any,
    threshold: float | None,
    targets: Any,
    promised: float | None = None,
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
        promised: share of known images that the threshold may flag; None if it promises nothing.
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
        n_ood=len(ood),
        promised=promised,
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
