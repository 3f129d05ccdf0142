"""Evaluation of a deployed model: labels encoded, out-of-distribution measures added."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from learnkit._version import versions
from learnkit.continual.closed_form.near_copies import copy_groups
from learnkit.continual.fingerprints import Learned
from learnkit.data.labelled_images import image_paths, labelled_dataset
from learnkit.data.read_images import chunks, image_name, load_ahead, unreadable_images
from learnkit.errors import ContinualPredictionError, DataError, ImageReadError
from learnkit.evaluation.intervals import fpr_interval
from learnkit.evaluation.measures import asked_measures, good_classes, top_k_of
from learnkit.inference.batch import BATCH, Predicts, padded, predict_stream
from learnkit.inference.heatmap import evidence_of_files
from learnkit.inference.prediction import (
    Prediction,
    Result,
    knowledge_of,
    predictions_and_features,
    raised,
)
from learnkit.interpret.page.images import AlikeImages, EvaluatedImages
from learnkit.interpret.page.page import EvaluationPage
from learnkit.report.progress import watched
from learnkit.uncertainty.scoring import GRID, unit_rows
from learnkit.uncertainty.similarity import most_alike

if TYPE_CHECKING:
    from learnkit.data.dataset import ImageDataset
    from learnkit.evaluation.evaluate import Evaluation
    from learnkit.inference.model import Model

_N_ALIKE = 3  # learned images beside an evaluated one
_MAX_LEARNED = 2000  # that are looked at for them


def evaluate_predictor(
    predictor: Any,
    dataset: Any,
    *,
    ood: Any,
    measures: Any,
    good: Any,
    learned: Any,
    bs: int,
    n_workers: int,
    progress: bool,
) -> Evaluation:
    """How good the predictions for all images of `dataset` are; see `Predictor.evaluate`."""
    from learnkit.evaluation.evaluate import evaluate

    started = time.perf_counter()
    if not getattr(predictor, "knows_classes", True):
        raise ContinualPredictionError(
            "the model knows no class yet, so there is nothing to evaluate; `extend` it with "
            "images and labels"
        )
    if good is None:  # as far as the model's card says, and it knows them
        card = predictor.metadata.get("card") or {}
        good = tuple(name for name in card.get("good") or () if name in predictor.classes)
    n_ood = -1 if not predictor.detects_ood else int(ood is not None)
    known = {"multi_label": predictor.multi_label, "good": good}
    asked = asked_measures(measures, **known, n_ood=n_ood)
    good_classes(good, predictor.classes)
    dataset = labelled_dataset(dataset)
    learned = None if learned is None else labelled_dataset(learned, "learned")
    about = predictor._learned()
    former = {} if about is None else about.former_names
    targets = encoded_labels(dataset, predictor.classes, predictor.multi_label, former)
    unknown = [] if ood is None else image_paths(ood)
    if ood is not None and not predictor.detects_ood:
        from learnkit.continual.classifier import check_detects_ood

        check_detects_ood(predictor.record.ood)
    failures: dict[str, str] = {}
    run = {"bs": bs, "n_workers": n_workers, "progress": progress}
    recognizing = predictor if about is None else _Recognizing(predictor, about)
    results, read = _results(recognizing, dataset.paths, failures, **run)
    labels = [predictor.classes[i] for i in targets[read]] if about is not None else []
    found, known_ones, notes, groups = _recognized(about, results, labels)
    evaluation = evaluate(
        _probs(found, len(predictor.classes)),
        targets[read],
        predictor.classes,
        multi_label=predictor.multi_label,
        threshold=predictor.threshold,
        class_ids=predictor.class_ids if predictor.record.class_ids else None,
        measures=None if asked is None else [name for name in asked if top_k_of(name)],
        good=good,
    )
    evaluation, strange, sources = replace(evaluation, notes=notes, asked=asked), [], []
    evaluation = evaluation.with_copies(groups)
    if (scoring := knowledge_of(predictor.record)[0]) is not None:
        results, read_strange = _results(recognizing, unknown, failures, **run)
        strange, known, *_ = _recognized(about, results)
        sources = [unknown[place] for place in read_strange]
        evaluation = replace(evaluation, notes=(*evaluation.notes, *ood_notes(known)))
        promised = scoring.threshold.false_alarm_rate
        scores = [[one.ood_score for one in side] for side in (found, strange)]
        limit = next((one.ood_threshold for one in [*found, *strange]), None)
        evaluation = with_ood_scores(evaluation, *scores, limit, targets[read], promised)
    sources = [dataset.paths[place] for place in read] + sources
    scored = bool(found) and found[0].ood_score is not None
    images = EvaluatedImages(
        probs=_probs([*found, *strange], len(predictor.classes)),
        targets=targets[read],
        sources=sources,
        root=dataset.root,
        threshold=predictor.threshold,
        ood_scores=np.array([one.ood_score for one in [*found, *strange]]) if scored else None,
        ood_threshold=found[0].ood_threshold if scored else None,
        learned=known_ones,
        unreadable=failures,
        seconds=time.perf_counter() - started,
    )
    evaluation = replace(evaluation, page=EvaluationPage(pictured(images, predictor, learned)))
    if failures:
        error = unreadable_images(failures, len(dataset) + len(unknown), "the others are judged")
        error.evaluation = evaluation
        raise error
    return evaluation


def ood_notes(learned: Any) -> tuple[str, ...]:
    """A note where images given as out of distribution (N,) were learned; none where unknown."""
    if learned is None or not np.any(learned):
        return ()
    return (
        f"{int(np.sum(learned))} of {len(learned)} images in `ood` were learned by this model, to "
        "which they are not out of distribution: leave them out",
    )


def _probs(found: Sequence[Prediction], n_classes: int) -> np.ndarray:
    rows = [np.asarray(prediction.probs) for prediction in found]
    return np.stack(rows) if rows else np.zeros((0, n_classes), np.float32)


def pictured(images: EvaluatedImages, predictor: Any, learned: Any = None) -> EvaluatedImages:
    """The images with their pictures, what speaks for classes in them, and the model's facts.

    With the learned images that are most alike, too: of the dataset `learned`, or remembered ones.
    """
    recipe, record, sources = predictor.preprocessing, predictor.record, images.sources
    about = predictor._learned()

    def picture(place: int) -> Any:
        return recipe.decode(sources[place])

    def heat(places: Sequence[int], numbers: Sequence[int]) -> Any:
        return evidence_of_files(record, [sources[place] for place in places], numbers)

    return replace(
        images,
        picture=picture,
        box=recipe.seen_box,
        heat=heat,
        decode=recipe.decode,
        alike=lambda places: _alike(record, about, [sources[place] for place in places], learned),
        facts=facts_of(predictor),
        n_learned={} if about is None else about.n_images,
    )


def _alike(
    record: Model, about: Learned | None, sources: Sequence[Any], learned: Any
) -> AlikeImages | None:
    """The learned images most alike some; None where the model says nothing of either."""
    root = about is not None and about.root
    read, features = _features(record, sources)
    if features is None or not len(read):
        return None
    if learned is not None:
        learned = learned.train if "train" in learned.splits else learned
        paths, n_learned = learned.paths, len(learned)
        labels = [", ".join(one) if isinstance(one, tuple) else one for one in learned.labels]
        chosen = _spread_out(labels, _MAX_LEARNED)
        kept, others = _features(record, [paths[place] for place in chosen])
        places = [chosen[row] for row in kept]
        labels, files = [labels[place] for place in places], [paths[place] for place in places]
        others, told = unit_rows(others, root=root), {"sources": files, "root": learned.root}
    elif about is not None:
        others, labels = about.remembered / GRID, [about.names[place] for place in about.labels]
        told, n_learned = {}, int(about.counts.sum())
    if (learned is None and about is None) or not len(others):
        return None
    found, likeness = most_alike(unit_rows(features, root=root), others, _N_ALIKE)
    rows, similarity = np.full((len(sources), found.shape[1]), -1), np.zeros((len(sources), 1))
    similarity = np.repeat(similarity, found.shape[1], 1)
    rows[read], similarity[read] = found, likeness
    return AlikeImages(rows, similarity, labels, n_learned=n_learned, **told)


def _features(record: Model, sources: Sequence[Any]) -> tuple[list[int], np.ndarray | None]:
    """(places of what can be read, pooled features of these (n, D) or None of a bare network)."""
    pixels = lambda place: record.preprocessing.pixels(sources[place])
    loaded = load_ahead(pixels, range(len(sources)), n_ahead=2 * BATCH, n_workers=2)
    there = (one for one in loaded if not isinstance(one[1], ImageReadError))  # some may be gone
    read, rows = [], [np.zeros((0, record.network.n_features or 0))]
    for batch in chunks(there, BATCH):
        features = record.network.run(np.stack(padded([image for _, image in batch], BATCH)))[0]
        if features is None:
            return [], None
        read += [place for place, _ in batch]
        rows.append(np.nan_to_num(features[: len(batch)], posinf=0, neginf=0))
    return read, np.concatenate(rows)


def _spread_out(labels: Sequence[str], most: int) -> list[int]:
    """Places of about so many images at most, evenly over classes and over each one's files."""
    by_class: dict[str, list[int]] = {}
    for place, label in enumerate(labels):
        by_class.setdefault(label, []).append(place)
    share = max(_N_ALIKE, most // max(len(by_class), 1))
    return sorted(
        own[at] for own in by_class.values() for at in {*range(0, len(own), -(-len(own) // share))}
    )


class _Recognizing:
    """A predictor whose results come in pairs with the features of the image, on the grid."""

    def __init__(self, predictor: Any, learned: Learned):
        self.classes, self.detects_ood = predictor.classes, predictor.detects_ood
        self.load, self._predictor = predictor.load, predictor
        self._learned = learned

    def try_loaded(self, images: Sequence[Any]) -> list[tuple[Result, Any]]:
        record, wrap = self._predictor.record, self._predictor._wrap
        results, features = predictions_and_features(
            record, np.stack(list(images)), wrap, self._predictor.tta
        )
        sound = np.nan_to_num(features, posinf=0, neginf=0)
        return list(zip(results, self._learned.on_grid(sound), strict=True))


def facts_of(predictor: Any) -> dict[str, str]:
    """What a page says of a model: its name, architecture, size of images, digest, and the rest.

    Whatever ran it, and which channels of its images can be shown.
    """
    card, home = predictor.metadata.get("card") or {}, predictor._home
    network, recipe = getattr(predictor.record.network, "model", None), predictor.preprocessing
    spec = getattr(network, "spec", None)
    arch = [getattr(spec, "arch", ""), predictor.variant]
    height, width = recipe.size
    own = ("torch", "timm") if predictor.needs_torch else ()
    found = versions("numpy", "Pillow", *own, predictor.record.network.backend)
    shown = {2: "the first channel of 2"}.get(recipe.channels, "")
    return {
        "name": str(card.get("name") or (home and home.path.name) or ""),
        "arch": ", ".join(map(str, filter(None, arch))),
        "size": f"{height} x {width} pixels",
        "digest": predictor.digest or "",
        "versions": ", ".join(f"{name} {version}" for name, version in found.items()),
        "shown": f"the first 3 channels of {recipe.channels}" if recipe.channels > 3 else shown,
    }


def _recognized(
    about: Learned | None, results: Sequence[Any], labels: Sequence[str] | None = None
) -> tuple[list[Prediction], Any, tuple[str, ...], Any]:
    """(predictions, which images the model has learned, notes on these, groups of near copies).

    The notes also tell of images that decide its threshold and, of images with labels, of near
    copies of learned ones; without labels there are no groups. None where nobody knows.
    """
    if about is None:
        return list(map(raised, results)), None, (), None
    pairs = [one if isinstance(one, tuple) else (raised(one), None) for one in results]
    found, rows = [raised(result) for result, _ in pairs], [row for _, row in pairs]
    grid = np.stack(rows) if rows else about.remembered[:0]
    groups = None if labels is None else copy_groups(grid, labels)
    return found, about.know(grid), about.notes(grid, labels), groups


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
    from learnkit.uncertainty.ood import evaluate_ood

    found = evaluate_ood(known, ood, threshold)
    names = ("false_alarm_rate", "detection_rate", "auroc", "fpr_at_95_tpr")
    values = {name: getattr(found, name) for name in (names if len(ood) else names[:1])}
    # so written that NaN is flagged, as a prediction's `is_ood` is
    can_flag = threshold is not None
    flagged = ~(np.asarray(known, float) <= (threshold if can_flag else np.nan)) & can_flag
    n = evaluation.per_class["n"].to_numpy()
    own = np.bincount(np.asarray(targets), flagged, len(n)) / np.where(n * can_flag, n, np.nan)
    bounds = fpr_interval(known, targets, ood, measured=found.fpr_at_95_tpr)
    found = replace(
        evaluation.with_measures(**values),
        bounds={**evaluation.bounds, "fpr_at_95_tpr": bounds},
        per_class=evaluation.per_class.assign(false_alarm_rate=own),
        n_ood=len(ood),
        promised=promised,
    )
    return found.inspected(evaluation.good, flagged)


def encoded_labels(
    dataset: ImageDataset,
    classes: tuple[str, ...],
    multi_label: bool,
    former_names: Mapping[str, str] | None = None,
) -> np.ndarray:
    """Class numbers (N,), or zeros and ones (N, C) if `multi_label`.

    Raises:
        DataError: a label is no class, or what one was called before: `{former name: name now}`.
    """
    number = {name: i for i, name in enumerate(classes)}
    labels = [label if isinstance(label, tuple) else (label,) for label in dataset.labels]
    found = {name for names in labels for name in names}
    if unknown := sorted(found - set(classes), key=str):
        for old, now in ((one, (former_names or {}).get(one)) for one in unknown):
            if now in number:
                raise DataError(
                    f"class {old!r} is called {now!r} now: it was renamed, or merged with others; "
                    f"label these images {now!r}"
                )
        raise DataError(
            f"the dataset has labels {unknown[:5]} that this model does not know; its classes are "
            f"{list(classes)}: filter those images out, or rename classes of the model by its "
            "set(class_names=)"
        )
    if not multi_label:
        return np.array([number[names[0]] for names in labels], np.int64)
    targets = np.zeros((len(labels), len(classes)), np.int64)
    for row, names in zip(targets, labels, strict=True):
        row[[number[name] for name in names]] = 1
    return targets
