"""Comparison of a converted model with float32: the same images, two answers."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from learnkit.backends.torch_session import channels_last, comparable
from learnkit.evaluation.inputs import LabelThreshold, labels_above
from learnkit.evaluation.measures import expected_calibration_error
from learnkit.inference.batch import BATCH
from learnkit.inference.prediction import check_outputs
from learnkit.optimize.quality import ChangedClass, ChangedImage, Quality
from learnkit.report.progress import watched
from learnkit.uncertainty.ood import auroc

if TYPE_CHECKING:
    from learnkit.inference.model import Model
    from learnkit.optimize.samples import Pictures

N_WORST = 10
_SEEN = 5e-4  # changes of a probability below this are none in a table


class Answers(NamedTuple):
    """What a model says of images: all rows aligned, float64; rows that are not `finite` are 0.

    Attributes:
        logits: (N, C).
        features: (N, D), or (N, 0) where nothing rests on them.
        scores: OOD score of each (N,); (0,) where there is none.
        threshold: the score above which an image is flagged.
        finite: which rows are sound, bool (N,).
    """

    logits: Tensor
    features: Tensor
    scores: Tensor
    threshold: float
    finite: Tensor


def answers(model: Model, pixels: Tensor, *, progress: bool = False) -> Answers:
    """What `model` concludes from `pixels` uint8 (N, C, H, W).

    Features are those of the batches that it learns from, to the bit.
    """
    batches = pixels.split(BATCH) or (pixels,)
    found = [
        _raw(model, images)
        for images in watched(batches, len(batches), progress, "compare", "batches")
    ]
    logits, features = (
        torch.from_numpy(np.concatenate(parts))[: len(pixels)] for parts in zip(*found, strict=True)
    )
    finite = logits.isfinite().all(1) & features.isfinite().all(1)
    logits, features = _sound(logits, finite), _sound(features, finite)
    scores, threshold, ood = torch.zeros(0, dtype=torch.float64), math.nan, model.ood
    if ood is not None:
        scores, threshold = ood.ood_scores(features), ood.threshold.value
    if model.head is not None:
        with torch.no_grad():
            logits = model.head(features)
    return Answers(logits.double(), features.double(), scores, threshold, finite)


def _raw(model: Model, images: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """(logits, features) of a batch, either of width 0 where nothing rests on it.

    Where there are fewer images than `BATCH`, the last one fills it up.
    """
    # the last bits of features depend on the size of the batch, and heads learn from this one
    n_missing = BATCH - len(images) if len(images) else 0
    filled = torch.cat([images, images[-1:].expand(n_missing, -1, -1, -1)])
    features, logits = model.network.run(channels_last(filled))
    if model.head is not None:
        return features[:, :0], features
    check_outputs(logits, len(model.names))
    return logits, logits[:, :0] if model.detector is None else features


def compare(
    before: Answers,
    after: Answers,
    pictures: Pictures,
    classes: Sequence[str],
    *,
    multi_label: bool = False,
    threshold: LabelThreshold = 0.5,
    unknown: tuple[Tensor, Tensor] | None = None,
) -> Quality:
    """What changed between two answers on the same pictures.

    Args:
        before: in float32.
        after: converted.
        pictures: the images, with labels or without.
        classes: class names.
        multi_label: whether an image may have several labels.
        threshold: a label counts above this probability, or these, if `multi_label`.
        unknown: scores of images of no known class, before and after.
    """
    sound = before.finite & after.finite
    old, new = (
        one.logits.sigmoid() if multi_label else one.logits.softmax(1) for one in (before, after)
    )
    named = [_labels(probs, classes, multi_label, threshold) for probs in (old, new)]
    kept = torch.tensor([a == b for a, b in zip(*named, strict=True)], dtype=torch.bool) & sound
    change = (new - old).abs().amax(1) if len(old) else old.sum(1)
    # forgotten classes have -inf on both sides, and their difference would be NaN
    shift = (comparable(after.logits) - comparable(before.logits))[sound]
    cosines = cosine_similarity(before.features, after.features)[sound]
    pairs = zip(named, (before, after), strict=True)
    right = [_right(labels, pictures.labels) & one.finite for labels, one in pairs]
    labelled = pictures.labels is not None
    return Quality(
        n=len(pictures),
        n_same=int(kept.sum()),
        n_broken=int((~after.finite).sum()),
        logit_rms=_rms(shift),
        logit_rms_share=_rms(shift) / _rms(comparable(before.logits[sound])),
        logit_max=_largest(shift.abs()),
        prob_mean=change.mean().item(),
        prob_max=_largest(change),
        feature_cosine=cosines.mean().item() if before.features.shape[1] else math.nan,
        feature_cosine_min=-_largest(-cosines) if before.features.shape[1] else math.nan,
        n_labelled=len(pictures) if labelled else 0,
        n_right=int(right[0].sum()),
        n_lost=int((right[0] & ~right[1]).sum()),
        n_gained=int((right[1] & ~right[0]).sum()),
        ece_before=_calibration(old[sound], pictures, sound, classes, multi_label),
        ece=_calibration(new[sound], pictures, sound, classes, multi_label),
        n_strange=0 if unknown is None else len(unknown[0]),
        auroc_before=_auroc(before, sound, unknown and unknown[0]),
        auroc=_auroc(after, sound, unknown and unknown[1]),
        false_alarms_before=_alarms(before, sound),
        false_alarms=_alarms(after, sound),
        worst_class=_worst_class(named[0], pictures.labels, kept, right),
        worst_images=_worst_images(named, (old, new), change, pictures),
    )


def _sound(values: Tensor, finite: Tensor) -> Tensor:
    return torch.where(finite[:, None], values, 0.0)


def _labels(
    probs: Tensor, classes: Sequence[str], multi_label: bool, threshold: LabelThreshold
) -> list[Hashable]:
    """A name per image, or a sorted tuple of names."""
    if not multi_label:
        return [classes[i] for i in probs.argmax(1).tolist()]
    return [
        tuple(sorted(name for name, above in zip(classes, row, strict=True) if above))
        for row in labels_above(probs, threshold).tolist()
    ]


def _right(labels: list[Hashable], truth: Sequence[Hashable] | None) -> Tensor:
    if truth is None:
        return torch.zeros(len(labels), dtype=torch.bool)
    truth = [tuple(sorted(one)) if isinstance(one, tuple) else one for one in truth]
    return torch.tensor([a == b for a, b in zip(labels, truth, strict=True)], dtype=torch.bool)


def _calibration(
    probs: Tensor, pictures: Pictures, sound: Tensor, classes: Sequence[str], multi_label: bool
) -> float:
    if pictures.labels is None or multi_label or not len(probs):
        return math.nan
    number = {name: i for i, name in enumerate(classes)}
    flags = zip(pictures.labels, sound.tolist(), strict=True)
    targets = [number[name] for name, is_sound in flags if is_sound]
    return expected_calibration_error(probs.numpy(), targets)


def _alarms(found: Answers, sound: Tensor) -> float:
    if not len(found.scores) or not bool(sound.any()):
        return math.nan
    return (found.scores[sound] > found.threshold).double().mean().item()


def _auroc(found: Answers, sound: Tensor, unknown: Tensor | None) -> float:
    if unknown is None or not len(found.scores):
        return math.nan
    return auroc(found.scores[sound], unknown)


def _worst_class(
    named: list[Hashable],
    truth: Sequence[Hashable] | None,
    kept: Tensor,
    right: list[Tensor],
) -> ChangedClass | None:
    """The class that lost most right answers, or, without labels, most of float32's labels."""
    groups = named if truth is None else truth
    was = torch.ones_like(kept) if truth is None else right[0]
    now = kept if truth is None else right[1]
    # images with several labels are of no one class
    if any(isinstance(name, tuple) for name in groups):
        return None
    found = []
    for name in dict.fromkeys(groups):
        inside = torch.tensor([one == name for one in groups])
        shares = [one[inside].double().mean().item() for one in (was, now)]
        found.append(ChangedClass(str(name), int(inside.sum()), *shares))
    return min(found, key=lambda one: (one.after - one.before, one.after), default=None)


def _worst_images(
    named: list[list[Hashable]],
    probs: tuple[Tensor, Tensor],
    change: Tensor,
    pictures: Pictures,
) -> tuple[ChangedImage, ...]:
    """The images whose probabilities changed most, as far as one can see it."""
    # stable: of equal changes the first images, every time
    order = change.argsort(descending=True, stable=True)[:N_WORST].tolist()
    tops = [one.amax(1).tolist() if len(one) else [] for one in probs]
    return tuple(
        ChangedImage(
            pictures.names[i],
            None if pictures.labels is None else _text(pictures.labels[i]),
            *(_text(labels[i]) for labels in named),
            *(top[i] for top in tops),
            change[i].item(),
            pictures.thumbnail(i),
        )
        for i in order
        if change[i] >= _SEEN
    )


def _text(label: Hashable) -> str:
    return ", ".join(label) or "no label" if isinstance(label, tuple) else str(label)


def _rms(values: Tensor) -> float:
    return values.square().mean().sqrt().item() if values.numel() else math.nan


def _largest(values: Tensor) -> float:
    return values.max().item() if values.numel() else math.nan
