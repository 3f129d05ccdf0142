"""Calibration of confidences when the training is over."""

from __future__ import annotations

from learnkit.callback.after_fit import AfterFit


class Calibration(AfterFit):
    """After a training: `learn.calibrate` on the validation images.

    With `ContinualLearning` there is nothing left to do: that state is calibrated as it begins.
    """

    step = "calibration"

    def __init__(self):
        super().__init__()
