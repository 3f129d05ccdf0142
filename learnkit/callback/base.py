"""What learnkit's training callbacks share."""

from typing import Any

import learnkit._torchvision  # noqa: F401  # before fastai

from fastai.callback.core import Callback

from learnkit.errors import LearnkitError


class TrainingCallback(Callback):
    """Base of callbacks that concern real fits only.

    fastai runs the same loop for `lr_find`, `get_preds` and `validate`; none of them reaches a
    callback derived from this one. Errors of learnkit raised in an event keep their own message,
    which fastai would prefix with the name of the callback and of the event.
    """

    def __call__(self, event_name: str) -> Any:
        """Run the event if the learner is in a fit."""
        if not is_fitting(self.learn):
            return None
        try:
            return super().__call__(event_name)
        except LearnkitError as error:
            text = str(error)
            error.args = (text.partition(":\n\t")[2] or text,)
            raise


def is_fitting(learn: Any) -> bool:
    """False while the loop runs for `lr_find`, `get_preds` or `validate`.

    The last two hold the learner's lock, which is all that tells `validate` from a fit.
    """
    names = vars(learn)
    return not ("lr_finder" in names or "gather_preds" in names or learn.lock.locked())
