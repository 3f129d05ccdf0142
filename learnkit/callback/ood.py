"""Learn what is usual when the training is over."""

from __future__ import annotations

from typing import Any

from learnkit.callback.after_fit import AfterFit


class OutOfDistribution(AfterFit):
    """After a training: `learn.fit_ood` on the training data; see there for the arguments.

    Beside `ContinualLearning` it sets how unusual images are told in the continual state.

    Args:
        score: "combined", "mahalanobis", "relative", "knn", "msp" or "energy".
        false_alarm_rate: share of known images that may be flagged as unknown.
        guarantee: "loo", "split" or "pac".
        **settings: further arguments of `fit_ood`.
    """

    task = "ood"

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
