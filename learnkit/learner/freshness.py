"""Freshness of images: which ones a learner has learned, or their like, and thus flatter it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import learnkit._torchvision  # noqa: F401  # before fastai

import numpy as np
import torch
from torch import Tensor

from learnkit.continual.classifier import ContinualClassifier
from learnkit.continual.closed_form.near_copies import copy_groups
from learnkit.continual.fingerprints import Learned, Notes, learned_notes, near_copies_notes
from learnkit.continual.validation_images import (
    note_on_copies,
    note_on_groups,
    note_on_learned,
)
from learnkit.data.read_images import file_of
from learnkit.errors import warn_user
from learnkit.interpret.learner_state import class_names, detector_of
from learnkit.interpret.outputs import Outputs
from learnkit.learner.features import features_of
from learnkit.learner.training_data import files_known


def labels_of(learn: Any, outputs: Outputs) -> list[str]:
    """The class name of each image, by the names of the pass or of the learner."""
    names = outputs.classes or class_names(learn)
    return [names[i] for i in outputs.require_targets().tolist()]


def optimism(learn: Any, outputs: Outputs) -> tuple[np.ndarray | None, Notes]:
    """Which images the learner has learned, by file or by features, and notes."""
    files, known, detector = list(outputs.items or ()), files_known(learn), detector_of(learn)
    learned = np.array([file_of(one) in known for one in files or [""] * len(outputs)], bool)
    features = outputs.features
    if detector is None or (features is None and (known or not files)):
        return learned if known else None, learned_notes(int(learned.sum()), len(outputs))
    about = Learned.of(detector.knowledge)
    grid = about.on_grid((features_of(learn, files) if features is None else features).numpy())
    learned |= about.know(grid)
    return learned, about.notes(grid, labels_of(learn, outputs), learned)


def groups_of_copies(learn: Any, outputs: Outputs) -> np.ndarray | None:
    """The group of near copies each image is of, int (N,); None where no features were kept."""
    if outputs.features is None or outputs.require_targets().ndim > 1:
        return None
    by = detector_of(learn) or ContinualClassifier(outputs.features.shape[1])
    grid = Learned.of(by.knowledge).on_grid(outputs.features.numpy())
    return copy_groups(grid, labels_of(learn, outputs))


def fresh_to_trained(learn: Any, outputs: Outputs, groups: list[Any] | None) -> Tensor:
    """Which images tell a trained network of fresh ones, bool (N,); warns of learned ones."""
    learned, _ = optimism(learn, outputs)
    learned = np.zeros(len(outputs), bool) if learned is None else learned
    if learned.any():
        warn_user(
            f"{learned.sum()} of {len(learned)} images to calibrate by were learned by this model: "
            "its confidences will be too high; give images it was not trained on"
        )
    near = int(_near_copies(learn, outputs, learned).sum())
    for note in near_copies_notes(near, len(learned), "confidences will be too high"):
        warn_user(note)
    if outputs.features is None or outputs.require_targets().ndim > 1:
        return torch.from_numpy(~learned)
    detector, images = detector_of(learn), (outputs.features, labels_of(learn, outputs))
    by = detector or ContinualClassifier(outputs.features.shape[1])
    fresh = ~learned & by.are_fresh(*images, groups)
    if by_group := int((_of_learned_groups(by, *images, groups) & ~learned).sum()):
        warn_user(
            f"{by_group} of {len(fresh)} images to calibrate by are of groups of which this model "
            "has learned others: its confidences will be too high; `group=` of `split` keeps "
            "together what belongs together"
        )
    if detector is None and (copies := int((~learned & ~fresh).sum())):
        warn_user(
            f"{copies} of {len(fresh)} images to calibrate by are near copies of others of them "
            "(bursts, augmented files, files saved again): if these were split at random, the "
            "network has learned the like, and confidences will be too high; `group=` of `split` "
            "keeps together what belongs together"
        )
    return torch.from_numpy(fresh)


def fresh_to_head(
    head: ContinualClassifier, features: Tensor, labels: Sequence[str], groups: Any = None
) -> np.ndarray:
    """Which validation images tell of fresh ones, bool (N,); warns of those that do not."""
    about, fresh = Learned.of(head.knowledge), head.are_fresh(features, labels, groups)
    grid = about.on_grid(features.numpy())
    learned = about.know(grid)
    notes = note_on_learned(learned)
    by_group = _of_learned_groups(head, features, labels, groups)
    notes += note_on_groups(int(by_group.sum()), len(fresh))
    if (about.copies(grid, labels) & ~learned).any():  # of each other they may well be
        notes += note_on_copies(int((~learned & ~fresh & ~by_group).sum()), len(fresh))
    for note in notes:
        warn_user(note)
    return fresh


def _of_learned_groups(
    head: ContinualClassifier, features: Tensor, labels: Sequence[str], groups: Any
) -> np.ndarray:
    """Which images count for none as the groups they are said to be of are learned, bool (N,)."""
    if groups is None:
        return np.zeros(len(labels), bool)
    return head.are_fresh(features, labels) & ~head.are_fresh(features, labels, groups)


def _near_copies(learn: Any, outputs: Outputs, learned: np.ndarray) -> np.ndarray:
    """Which of the images that are not `learned` are near copies of such, bool (N,)."""
    detector = detector_of(learn)
    if detector is None or outputs.features is None:
        return np.zeros(len(outputs), bool)
    about = Learned.of(detector.knowledge)
    grid = about.on_grid(outputs.features.numpy())
    return about.copies(grid, labels_of(learn, outputs)) & ~learned
