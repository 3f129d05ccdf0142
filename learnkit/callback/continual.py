"""The continual state, begun when the training is over."""

from __future__ import annotations

from typing import Any

from learnkit.callback.after_fit import AfterFit


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
