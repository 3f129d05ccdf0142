"""Lines of a training on a terminal: progress while an epoch runs, one line when it is done."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import learnkit._torchvision  # noqa: F401  # before fastai

from fastcore.basics import noop

from learnkit.callback.base import TrainingCallback
from learnkit.callback.history import TrainingHistory
from learnkit.report.progress import Progress


class EpochLines(TrainingCallback):
    """Writes a line per epoch and shows progress within it; see `watch_epochs`.

    Args:
        write: called with the line of each epoch.
        n_epochs: how many there will be over all fits.
    """

    name = "progress"  # as that of fastai's bar: a learner that has one shows bars
    order = TrainingHistory.order + 1  # the line is read off the epoch's row
    _stateattrs = ("_shown",)
    _shown: Progress | None = None

    def __init__(self, write: Callable[[str], None], n_epochs: int):
        super().__init__()
        self.write, self.n_total = write, n_epochs

    def before_train(self) -> None:
        """Begin to count training and validation batches."""
        self.close()
        n = len(self.dls.train) + len(self.dls.valid)
        title = f"epoch {len(self.training_history.rows) + 1}/{self.n_total}"
        self._shown = Progress(title, n, "batches").__enter__()

    def after_batch(self) -> None:
        """Count a batch."""
        if self._shown is not None:
            self._shown.advance()

    def after_epoch(self) -> None:
        """Write the line of an epoch that was trained."""
        if self._shown is not None:
            self.close()
            self.write(epoch_line(self.training_history.rows[-1], self.n_total))

    def after_fit(self) -> None:
        """Take the bar of a cancelled epoch away."""
        self.close()

    def close(self) -> None:
        """Count no more."""
        if self._shown is not None:
            self._shown.__exit__()
        self._shown = None


@contextmanager
def watch_epochs(learn: Any, write: Callable[[str], None], n_epochs: int) -> Iterator[None]:
    """Let EpochLines take the place of fastai's own bar and table, made for notebooks."""
    if hasattr(learn, "progress"):
        learn.remove_cb(learn.progress)
    learn.logger, lines = noop, EpochLines(write, n_epochs)
    learn.add_cb(lines)
    try:
        yield
    finally:
        lines.close()  # no event comes after an error


def epoch_line(row: dict, n_epochs: int) -> str:
    """One line of what a row of the history says.

    >>> epoch_line({"fit": 1, "epoch": 2, "lr": 1e-3, "train_loss": 0.5, "seconds": 1.26}, 3)
    'epoch 2/3   train loss 0.5000   1.3 s'
    """
    hidden = {"fit", "epoch", "lr", "seconds"}
    numbers = [
        f"{k.replace('_', ' ')} {v:.4f}"
        for k, v in row.items()
        if k not in hidden and v is not None and v == v  # NaN was not measured
    ]
    parts = [f"epoch {row['epoch']}/{n_epochs}", *numbers, f"{row['seconds']:.1f} s"]
    return "   ".join(parts)
