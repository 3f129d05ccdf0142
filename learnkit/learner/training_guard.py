"""Training in the continual state: refused, unless a callback begins that state anew afterwards.

Statistics of features are void once the body that gave them has changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import learnkit._torchvision  # noqa: F401  # before fastai

from learnkit.callback.after_fit import AfterFit
from learnkit.callback.stored_features import checksums_of
from learnkit.continual.classifier import continual_head
from learnkit.errors import ContinualStateError, OodLockedError


@contextmanager
def training(learn: Any, *, n_fits: int = 0) -> Iterator[None]:
    """Let a fit run, or a verb of `n_fits` fits whose last one ends the training.

    What a callback derived from the network after an earlier fit is put aside and, if the network
    is the same afterwards (as after `lr_find`), put back.

    Raises:
        ContinualStateError: Statistics that no callback would renew would become void.
        OodLockedError: The same of a detector from `fit_ood`.
    """
    check_trainable(learn)
    state = _put_aside(learn)
    learn.fits_to_come = max(getattr(learn, "fits_to_come", 0) - 1, 0) or n_fits
    try:
        yield
    finally:
        learn.fits_to_come = 0 if n_fits else learn.fits_to_come
        _put_back(learn, state)


def check_trainable(learn: Any) -> None:
    """Raise ContinualStateError or OodLockedError unless the network may be trained."""
    head, detector = continual_head(learn.model), getattr(learn, "ood_detector", None)
    renewed = [cb.made for cb in learn.cbs if isinstance(cb, AfterFit) and cb.made is not None]
    if head is not None and not any(made is head.statistics for made in renewed):
        raise ContinualStateError(
            f"training would change the features that the statistics of {len(head.classes)} "
            "classes are made of. Either call learn.refit(data) with images of all classes, which "
            "trains and begins the continual state anew; or go back to the trained head with "
            "learn.drop_continual(), and train that"
        )
    if detector is not None and not any(made is detector.statistics for made in renewed):
        raise OodLockedError(
            "training would change the features that the detector of unusual images is made of; "
            "remove it with learn.clear_ood(), and call fit_ood again after the training"
        )


def _put_aside(learn: Any) -> tuple[Any, ...] | None:
    """Take the learner back to its trained head without a detector; what it was, None if that."""
    head, detector = continual_head(learn.model), getattr(learn, "ood_detector", None)
    if head is None and detector is None:
        return None
    notes = getattr(learn, "continual_notes", None)
    state = head, notes, detector, checksums_of(learn.model[0])
    if head is not None:
        learn.model[1], learn.continual_notes = notes.trained_head, None
    learn.ood_detector = None
    return state


def _put_back(learn: Any, state: tuple[Any, ...] | None) -> None:
    if state is None or continual_head(learn.model) or getattr(learn, "ood_detector", None):
        return
    head, notes, detector, checksums = state
    if checksums_of(learn.model[0]) == checksums:
        if head is not None:
            learn.model[1], learn.continual_notes = head, notes
        learn.ood_detector = detector
