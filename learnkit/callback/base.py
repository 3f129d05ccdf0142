"""Base of learnkit's training callbacks: real fits only, errors in their own words."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import learnkit._torchvision  # noqa: F401  # before fastai

from fastai.callback.core import Callback

from learnkit.errors import LearnkitError


def current_lr(opt: Any) -> float:
    """The learning rate of the last parameter group; NaN without an optimizer that has one."""
    hypers = getattr(opt, "hypers", None)
    return float(hypers[-1].get("lr", math.nan)) if hypers else math.nan


@contextmanager
def own_words() -> Iterator[None]:
    """Give errors of learnkit back the message they had before fastai named callback and event."""
    try:
        yield
    except LearnkitError as error:
        text = str(error)
        error.args = (text.partition(":\n\t")[2] or text,)
        raise


class TrainingCallback(Callback):
    """Base of callbacks that concern real fits only.

    fastai runs the same loop for `lr_find`, `get_preds` and `validate`; none of them reaches a
    callback derived from this one. Errors of learnkit raised in an event keep their own message.
    """

    def __call__(self, event_name: str) -> Any:
        """Run the event if the learner is in a fit."""
        # not by `hasattr`: what a Learner lacks, fastai looks up in its model
        names = vars(self.learn)
        # `get_preds` and `validate` hold the learner's lock: all that tells `validate` from a fit.
        if "lr_finder" in names or "gather_preds" in names or self.learn.lock.locked():
            return None
        with own_words():
            return super().__call__(event_name)
