"""Callbacks that derive something from the network when its training is over.

`ContinualLearning` begins the continual state, `OutOfDistribution` fits the OOD detector and
`Calibration` the temperature, each by the learner's verb.
"""

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


class ContinualLearning(AfterFit):
    """After a training: `learn.init_continual` with the training data; see there for the arguments.

    A learner that has learned nothing since may be trained on: it returns to its trained head, and
    a new continual state begins afterwards. One that was extended refuses, as without callback.

    Args:
        memory: features remembered of each class.
        classifier: "lda", "ridge" or "prototype".
        false_alarm_rate: share of known images that may be flagged as unknown.
        **settings: further arguments of `init_continual`.
    """

    step = "continual"

    def __init__(
        self,
        *,
        memory: int = 64,
        classifier: str = "lda",
        false_alarm_rate: float = 0.05,
        **settings: Any,
    ):
        chosen = {"memory": memory, "classifier": classifier, "false_alarm_rate": false_alarm_rate}
        super().__init__(**chosen, **settings)


class OutOfDistribution(AfterFit):
    """After a training: `learn.fit_ood` on the training data; see there for the arguments.

    With `ContinualLearning` it sets how the continual state detects out-of-distribution images.

    Args:
        score: "combined", "mahalanobis", "relative", "knn", "msp" or "energy".
        false_alarm_rate: share of known images that may be flagged as unknown.
        guarantee: "loo", "split" or "pac".
        **settings: further arguments of `fit_ood`.
    """

    step = "ood"

    def __init__(
        self,
        *,
        score: str = "combined",
        false_alarm_rate: float = 0.05,
        guarantee: str = "loo",
        **settings: Any,
    ):
        chosen = {"score": score, "false_alarm_rate": false_alarm_rate, "guarantee": guarantee}
        super().__init__(**chosen, **settings)


class Calibration(AfterFit):
    """After a training: `learn.calibrate` on the validation images.

    With `ContinualLearning` there is nothing left to do: that state is calibrated as it begins.
    """

    step = "calibration"

    def __init__(self):
        super().__init__()
