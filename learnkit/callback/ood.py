"""OOD detection, fitted when the training is over."""

from __future__ import annotations

from typing import Any

from learnkit.callback.after_fit import AfterFit


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
