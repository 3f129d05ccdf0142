"""Lines of a training on a terminal: a bar while an epoch runs, one line when it is done."""

from collections.abc import Callable
from typing import Any

import learnkit._torchvision  # noqa: F401  # before fastai

from fastcore.basics import noop
from tqdm.auto import tqdm

from learnkit.callback.base import TrainingCallback
from learnkit.callback.history import TrainingHistory


class EpochLines(TrainingCallback):
    """Writes a line per epoch and, on a terminal only, shows a bar; see `watch_epochs`.

    Args:
        write: called with the line of each epoch.
        n_epochs: how many there will be over all fits.
    """

    order = TrainingHistory.order + 1  # the line is read off the epoch's row
    _stateattrs = ("_bar",)
    _bar: tqdm | None = None

    def __init__(self, write: Callable[[str], None], n_epochs: int):
        super().__init__()
        self.write, self.n_total = write, n_epochs

    def before_train(self) -> None:
        """Show a bar over training and validation batches, on terminals only."""
        self._close()
        n = len(self.dls.train) + len(self.dls.valid)
        title = f"epoch {len(self.training_history.rows) + 1}/{self.n_total}"
        self._bar = tqdm(total=n, desc=title, unit="batch", leave=False, disable=None)

    def after_batch(self) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update()

    def after_epoch(self) -> None:
        """Write the line of an epoch that was trained."""
        if self._bar is not None:
            self._close()
            self.write(epoch_line(self.training_history.rows[-1], self.n_total))

    def after_fit(self) -> None:
        """Take the bar of a cancelled epoch away."""
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._bar = None


def watch_epochs(learn: Any, write: Callable[[str], None], n_epochs: int) -> EpochLines:
    """An EpochLines for `learn`, whose own bar and table, made for notebooks, are taken away."""
    if hasattr(learn, "progress"):
        learn.remove_cb(learn.progress)
    learn.logger = noop
    return EpochLines(write, n_epochs)


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
