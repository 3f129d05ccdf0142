"""Uncertainty of a learner: calibrated confidences and out-of-distribution (OOD) detection.

In the continual state both belong to the head. A trained head takes its temperature into its
weights; its OOD detector is derived from the features of the same body.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import compress
from typing import Any, NamedTuple

import learnkit._torchvision  # noqa: F401  # before fastai

import numpy as np
import torch
from fastai.data.core import DataLoaders
from torch import Tensor, nn

from learnkit.continual.change_report import ChangeReport
from learnkit.continual.classifier import ContinualClassifier, continual_head
from learnkit.continual.knowledge import Change, History, Knowledge
from learnkit.continual.label_issues import LabelErrors, label_errors
from learnkit.continual.ood_detector import OodDetector
from learnkit.data.labelled_images import (
    Labelled,
    all_labelled,
    dataset_of,
    grouped_by_path,
    is_dataset,
    parted,
)
from learnkit.data.read_images import file_of, unreadable_images
from learnkit.errors import (
    OodLockedError,
    OodUnsupportedError,
    UnreadableImagesError,
    warned_after,
)
from learnkit.evaluation.evaluate import Evaluation
from learnkit.evaluation.measures import asked_measures, top_k_of
from learnkit.inference.evaluation import ood_notes, pictured, with_ood_scores
from learnkit.interpret.classification import ClassificationInterpretation
from learnkit.interpret.learner_state import (
    class_names,
    detector_of,
    learner_state,
    loss_of,
    names_of,
)
from learnkit.interpret.losses import activation_of
from learnkit.interpret.outputs import Outputs, collect_outputs
from learnkit.interpret.page.images import EvaluatedImages, common_folder
from learnkit.interpret.page.page import EvaluationPage
from learnkit.interpret.source import detached
from learnkit.learner.continual import (
    change,
    check_supported,
    empty_head,
    validation_images,
)
from learnkit.learner.dataloaders import is_multi_label
from learnkit.learner.export import good_of_learner, predictor_of
from learnkit.learner.features import (
    features_and_logits,
    features_of,
    origin_of,
    unreadable,
    unreadable_by_recipe,
)
from learnkit.learner.freshness import (
    fresh_to_head,
    fresh_to_trained,
    groups_of_copies,
    labels_of,
    optimism,
)
from learnkit.learner.trained_head import divide_logits
from learnkit.learner.training_data import (
    case_matters,
    data_of_training,
    files_known,
    groups_seen,
    images_only,
    labelled_data,
    without_files,
)
from learnkit.models.eval_mode import randomness_kept
from learnkit.uncertainty.calibration import TemperatureFit, fit_temperature
from learnkit.uncertainty.threshold import Threshold


class _HeldOut(NamedTuple):
    """Pooled features (N, D) of images, labels, the trained head's logits (N, C), and groups."""

    features: Tensor
    labels: list[str]
    logits: Tensor
    groups: list[Any] | None = None


@warned_after
def calibrate(learn: Any, dl: Any = None, *, ds_idx: int = 1, group: Any = None) -> TemperatureFit:
    """Make the confidences of the learner mean what they say; see `ImageLearner.calibrate`."""
    head = continual_head(learn.model)
    # features tell which images were learned, and which show the same thing
    wanted = {"with_features": isinstance(learn.model, nn.Sequential) and len(learn.model) == 2}
    outputs, groups = _seen(learn, dl, ds_idx, group, **wanted)
    if head is not None:
        _validate(learn, outputs, groups, lambda head, images: head.validate(*images))
        return head.calibration
    fitted = fit_temperature(outputs.logits, outputs.require_targets(), source="validation")
    fresh = fresh_to_trained(learn, outputs, groups)
    if fitted.is_fitted:
        with randomness_kept():
            images = detached(learn.dls.valid.one_batch()[0])[:2]
        device = next(learn.model.parameters()).device
        divide_logits(learn.model, fitted.temperature, images.to(device))
    detector = learn.state.ood_detector
    if detector is not None:  # its prediction sets were calibrated by the former probabilities
        labels = list(compress(labels_of(learn, outputs), fresh))
        _calibrate_sets(learn, detector, outputs.logits[fresh] / fitted.temperature, labels)
    return fitted


def _seen(
    learn: Any, dl: Any, ds_idx: int, group: Any, **wanted: bool
) -> tuple[Outputs, list[Any] | None]:
    """(outputs of the images to calibrate by, what each is said to belong to)."""
    data = _validation_of(dl)
    outputs = _outputs(learn, data, ds_idx, **wanted)
    return outputs, groups_seen(learn, data, outputs.items, len(outputs), group)


@warned_after
def fit_ood(
    learn: Any, data: Any = None, *, validation: Any = None, group: Any = None, **settings: Any
) -> Threshold:
    """The threshold of a detector fitted; see `ImageLearner.fit_ood`."""
    head = continual_head(learn.model)
    if head is not None:
        return _fit_threshold(learn, head, data, validation, {"group": group, **settings})
    check_supported(learn)
    own = data is None
    found = labelled_data(
        data_of_training(learn) if own else data, classes=names_of(learn.dls) or (), group=group
    )
    if isinstance(validation, Outputs):
        labels = labels_of(learn, validation)
        groups = grouped_by_path(Labelled(list(validation.items or ()), labels), group).groups
        held_out = _HeldOut(validation.features, labels, validation.logits, groups)
    else:
        held_out = _validation(learn, found, validation, own=own, group=group)
    settings.setdefault("case_sensitive", case_matters(learn, found))
    detector = empty_head(learn, OodDetector, **settings)
    # its classes have their names already, whatever these are
    own = [name for name in dict.fromkeys(found.labels) if name in (names_of(learn.dls) or ())]
    detector.history = History((Knowledge.empty(detector.settings, own),))
    features = features_of(learn, found.items)
    validation = held_out and (held_out.features, held_out.labels, held_out.groups)
    origin = origin_of(learn, found.items)
    given = {"validation": validation, "origin": origin, "groups": found.groups}
    detector.extend(features, found.labels, **given)
    if held_out is not None:
        fresh = fresh_to_head(detector, *validation)
        labels = list(compress(held_out.labels, fresh))
        _calibrate_sets(learn, detector, held_out.logits[torch.from_numpy(fresh)], labels)
    # last: what fails before leaves the learner as it was
    learn.state = replace(learn.state, ood_detector=detector)
    return detector.threshold


def _fit_threshold(
    learn: Any, head: ContinualClassifier, data: Any, validation: Any, settings: dict[str, Any]
) -> Threshold:
    """The threshold of the continual state, fitted again."""
    # of the images to validate by; of those learned, `extend` is told
    group = settings.pop("group") if validation is not None or settings["group"] is None else None
    fixed = sorted(set(settings) - {"false_alarm_rate", "guarantee", "per_class"})
    if data is not None or fixed:
        raise OodLockedError(
            f"{'`data`' if data is not None else fixed} cannot be given in the continual state, "
            "which detects out-of-distribution images by its own statistics; give `validation`, "
            "`false_alarm_rate`, `guarantee` or `per_class`, or begin a new one with other settings"
        )
    given = {name: value for name, value in settings.items() if value is not None}
    replace(head.settings, **given)  # refused before any image counts
    if validation is None:
        change(learn, lambda head: head.set_threshold(None, **settings))
        return head.threshold

    def step(head: ContinualClassifier, images: tuple[Any, ...]) -> ChangeReport:
        return head.change("set_threshold", lambda known: _fitted(known, images, settings))

    _validate(learn, *_seen(learn, validation, 1, group, with_features=True), step)
    return head.threshold


def _fitted(known: Knowledge, images: tuple[Any, ...], settings: Mapping[str, Any]) -> Change:
    """With these validation images, and the threshold fitted to all there are then."""
    known, notes = known.validate(images)
    names = "false_alarm_rate", "guarantee", "per_class"
    return known.with_threshold(None, *map(settings.get, names))[0], notes


def _validation_of(images: Any) -> Any:
    """The validation images of a split dataset, in any form of it; anything else as it is."""
    images = dataset_of(images)
    split = is_dataset(images) and "valid" in getattr(images, "splits", ())
    return images.valid if split else images


def _validate(
    learn: Any,
    outputs: Outputs,
    groups: list[Any] | None,
    step: Callable[[ContinualClassifier, tuple[Any, ...]], ChangeReport],
) -> None:
    """Let the head take validation images in by `step`, and warn of those that do not count."""
    images = outputs.features, labels_of(learn, outputs), groups
    change(learn, lambda head: step(head, images))
    fresh_to_head(continual_head(learn.model), *images)


def label_errors_of(
    learn: Any, data: Any = None, labels: Any = None, *, group: Any = None
) -> LabelErrors:
    """Labels that are probably wrong; see `ImageLearner.label_errors`."""
    data = data_of_training(learn) if data is None and labels is None else data
    if isinstance(data, DataLoaders) or hasattr(data, "dataset"):
        found = labelled_data(data, labels, classes=names_of(learn.dls) or (), group=group)
        items, names, groups = found.items, found.labels, found.groups
        if found.validation is not None and group is None and isinstance(items, list):
            items, names = items + found.validation.items, names + found.validation.labels
    else:
        items, names, _, _, groups = all_labelled(data, labels, group=group)
    head = continual_head(learn.model)
    root = head is not None and head.settings.root
    features = features_of(learn, items)
    shown = items if isinstance(items, Sequence) else [None] * len(names)
    return label_errors(features, names, shown, root=root, groups=groups)


def scores_to_plot(
    learn: Any, ood: Any = None, *, dl: Any = None, ds_idx: int = 1
) -> tuple[Tensor, Threshold, Tensor | None]:
    """(scores of known images, threshold, scores of `ood` if given): what `plot_ood` draws."""
    detector = _required(learn)
    known = _outputs(learn, dl, ds_idx).ood_scores
    return known, detector.threshold, None if ood is None else ood_scores(learn, ood)


def ood_scores(learn: Any, images: Any) -> Tensor:
    """Out-of-distribution scores float64 (N,), higher = further out; labels are not needed."""
    return _required(learn).ood_scores(features_of(learn, images_only(images)))


def evaluate_learner(
    learn: Any, dl: Any, ds_idx: int, data: Any, *, ood: Any, measures: Any, good: Any
) -> Evaluation:
    """How good the learner is on a loader, a dataset, a split, or an interpretation of these.

    Raises:
        UnreadableImagesError: images of a dataset cannot be read; the error's `evaluation` is that
            of the others.
    """
    good = good_of_learner(learn) if good is None else good
    n_ood = -1 if detector_of(learn) is None else int(ood is not None)
    several = continual_head(learn.model) is None and is_multi_label(learn.dls)
    asked = asked_measures(measures, good=good, n_ood=n_ood, multi_label=several)
    wanted = {"ood": ood, "measures": measures, "good": good}
    try:
        interp = dl
        if not isinstance(dl, ClassificationInterpretation):
            interp = learn.interpret(ds_idx, dl=dl, data=data)
    except OSError as error:
        images = dl if data is None else data
        raise _with_evaluation_of_readable(learn, images, error, **wanted) from error
    top = None if asked is None else [name for name in asked if top_k_of(name)]
    evaluation = interp.outputs.evaluate(measures=top, good=good)
    return _with_ood(learn, interp, replace(evaluation, asked=asked), ood)


def _with_evaluation_of_readable(
    learn: Any, images: Any, error: OSError, **wanted: Any
) -> UnreadableImagesError:
    """The error that names the unreadable ones of `images` and keeps the evaluation of the others.

    Args:
        learn: the learner.
        images: what it was to evaluate, and in reading which `error` came.
        error: is raised again where `images` are no dataset, or all of them can be read.
        **wanted: for `learn.evaluate`.
    """
    data = dataset_of(images)
    failures = unreadable(learn, data.paths) if is_dataset(data) else {}
    if not failures:
        raise error
    found = unreadable_images(failures, len(data), "the others are judged")
    readable = data.filter([str(path) not in failures for path in data.paths])
    found.evaluation = learn.evaluate(data=readable, **wanted) if len(readable) else None
    if found.evaluation is not None:
        images = replace(found.evaluation.page.images, unreadable=failures)
        found.evaluation = replace(found.evaluation, page=EvaluationPage(images))
    return found


def _with_ood(
    learn: Any, interp: ClassificationInterpretation, evaluation: Evaluation, ood: Any
) -> Evaluation:
    """`evaluation` with measures of OOD detection where the learner detects it, and its page.

    Its notes say how many of the files the learner was trained on, or has learned since.
    """
    outputs = interp.outputs
    learned, notes = optimism(learn, outputs)
    evaluation = replace(evaluation, notes=notes).with_copies(groups_of_copies(learn, outputs))
    images = _images_of(learn, interp, learned)
    if ood is not None or outputs.ood_scores is not None:
        threshold = _required(learn).threshold
        sources, probs, unknown, known = _answers_to(learn, ood)
        evaluation = replace(evaluation, notes=(*evaluation.notes, *ood_notes(known)))
        sides = outputs.ood_scores, unknown
        promised = threshold.false_alarm_rate
        evaluation = with_ood_scores(evaluation, *sides, threshold.value, outputs.targets, promised)
        images = replace(
            images,
            probs=np.concatenate([images.probs, probs]),
            sources=[*images.sources, *sources],
            ood_scores=np.concatenate([outputs.ood_scores.numpy(), unknown]),
            ood_threshold=threshold.value,
        )
    return replace(evaluation, page=EvaluationPage(_pictured(learn, interp, images)))


def _answers_to(
    learn: Any, ood: Any
) -> tuple[list[Any], np.ndarray, np.ndarray, np.ndarray | None]:
    """(files or None, probabilities (M, C), OOD scores (M,), which were learned) of `ood`."""
    detector, n_classes = _required(learn), len(class_names(learn) or ())
    if ood is None:
        return [], np.zeros((0, n_classes), np.float32), np.zeros(0), None
    items = images_only(ood)
    if continual_head(learn.model) is not None:
        features = features_of(learn, items)
        probs = detector.scoring.probs(features.numpy())
    else:
        features, logits = features_and_logits(learn, items, n_classes)
        probs = activation_of(loss_of(learn), multi_label=False)(logits).numpy()
    sources = items if isinstance(items, list) else [None] * len(features)
    files = files_known(learn)
    by_file = np.array([file_of(one) in files for one in sources], bool)
    known = by_file | detector.knowledge.statistics.knows(features)
    return sources, np.asarray(probs, np.float32), detector.ood_scores(features).numpy(), known


def _images_of(
    learn: Any, interp: ClassificationInterpretation, learned: np.ndarray | None
) -> EvaluatedImages:
    """The images of an interpretation, with what was answered to each."""
    outputs, own = interp.outputs, getattr(learn.dls, "image_dataset", None)
    sources = [None] * len(outputs) if outputs.items is None else list(outputs.items)
    root = common_folder(sources)
    if own is not None and root is not None and root.is_relative_to(own.root):
        root = own.root
    head = continual_head(learn.model)
    return EvaluatedImages(
        probs=outputs.probs.numpy(),
        targets=outputs.targets.numpy().astype(np.int64),
        sources=sources,
        root=root,
        threshold=outputs.threshold,
        learned=learned,
        n_learned={} if head is None else head.n_images,
    )


def _pictured(
    learn: Any, interp: ClassificationInterpretation, images: EvaluatedImages
) -> EvaluatedImages:
    """The images with pictures and heat: read by the recipe, or as the loaders read them."""
    if all(map(file_of, images.sources)) and unreadable_by_recipe(learn) is None:
        n_learned = images.n_learned
        shown = pictured(images, predictor_of(learn), _trained_on(learn))
        return replace(shown, n_learned=n_learned)
    return replace(images, picture=interp.picture, heat=interp.heat)


def _trained_on(learn: Any) -> Any:
    """The dataset it was trained on; None if its classes are others by now, or it learned none."""
    data, record = getattr(learn.dls, "image_dataset", None), learner_state(learn).record
    if data is None or not files_known(learn) or "train" not in data.splits:
        return None
    # swapped, they are the same names
    if record is not None and any(old != now for old, now in record.former_names.items()):
        return None
    return data if set(class_names(learn) or ()) <= set(data.train.classes) else None


def _required(learn: Any) -> ContinualClassifier:
    detector = detector_of(learn)
    if detector is None:
        raise OodUnsupportedError(
            "the learner cannot detect out-of-distribution images yet; call learn.fit_ood() for "
            "the trained head, or learn.init_continual(data)"
        )
    return detector


def _outputs(learn: Any, dl: Any, ds_idx: int, *, with_features: bool = False) -> Outputs:
    """Outputs as they are, or of a pass over a loader, a dataset or a split of the learner."""
    if isinstance(dl, Outputs):
        return dl
    return collect_outputs(learn, dl, ds_idx=ds_idx, with_features=with_features)


def _calibrate_sets(
    learn: Any, detector: OodDetector, logits: Tensor, labels: Sequence[str]
) -> None:
    """Calibrate prediction sets of the trained head by what it says of images it has not seen."""
    numbers = {name: i for i, name in enumerate(class_names(learn))}
    # `fit_sets` leaves -1 out: the head has no output for it
    targets = torch.tensor([numbers.get(label, -1) for label in labels], dtype=torch.int64)
    detector.fit_sets(logits.cpu().float().softmax(1), targets)


def _validation(
    learn: Any, found: Labelled, given: Any, *, own: bool, group: Any
) -> _HeldOut | None:
    """What is seen of validation images: given, else of the data, else the learner's own."""
    if given is None:
        images = validation_images(learn, found, own=own, group=group)
    else:  # those learned are not left out in silence, see `_fresh`
        _, given = parted(labelled_data(given, classes=names_of(learn.dls) or ()), validation=True)
        images = without_files(grouped_by_path(given, group), (), names=set(found.labels))
    if images is None:
        return None
    features, logits = features_and_logits(learn, images.items, len(class_names(learn)))
    return _HeldOut(features, images.labels, logits, images.groups)
