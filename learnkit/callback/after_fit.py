"""Callbacks that derive something from the network, by a learner's verb, after its training."""

from __future__ import annotations

import warnings
from typing import Any

import learnkit._torchvision  # noqa: F401  # before fastai

from learnkit.callback.base import TrainingCallback
from learnkit.callback.stop_on_non_finite import StopOnNonFinite
from learnkit.interpret.learner_state import learner_state


class AfterFit(TrainingCallback):
    """Base: works after the last fit of a training, not after `lr_find` or inference.

    Attributes:
        step: "continual", "ood" or "calibration".
        options: arguments of the learner's verb.
        report: what the verb gave back last.
        made: the statistics derived last; the training of a learner that has no others may go on.
    """

    order = StopOnNonFinite.order + 5  # which raises after a fit that went wrong
    _stateattrs = ("made", "report")  # belong to one learner
    step = ""
    report: Any = None
    made: Any = None

    def __init__(self, **options: Any):
        super().__init__()
        self.options = options

    @property
    def task(self) -> str:
        """The former name of `step`."""
        warnings.warn("`task` is called `step` now", DeprecationWarning, stacklevel=2)
        return self.step

    def after_fit(self) -> None:
        """Do the work of all callbacks of this kind, if this is the first of them."""
        # The first does the work of all: they share one pass over the training images, and their
        # order in the list does not matter.
        kin = {cb.step: cb for cb in self.learn.cbs if isinstance(cb, AfterFit)}
        if next(iter(kin.values())) is self and not learner_state(self.learn).fits_to_come:
            finish_training(self.learn, kin)


def finish_training(learn: Any, callbacks: dict[str, AfterFit]) -> None:
    """Call the learner's verbs for the callbacks present, by step."""
    continual, ood, calibration = map(callbacks.get, ("continual", "ood", "calibration"))
    if continual is not None:  # threshold and temperature come with it
        data = getattr(learn.dls, "image_dataset", None) or learn.dls
        options = continual.options | (ood.options if ood is not None else {})
        report = learn.init_continual(data, **options)
        for cb in callbacks.values():
            cb.report, cb.made = report, learn.continual.statistics
        return
    outputs = learn.outputs(1, with_features=True)
    if ood is not None:
        ood.report = learn.fit_ood(validation=outputs, **ood.options)
        ood.made = learn.ood.statistics
    if calibration is not None:
        calibration.report = learn.calibrate(outputs, **calibration.options)
