"""The history of a training: what happened in every epoch of every fit, as one table or as lines.

fastai's `Recorder` forgets at each `fit`; `TrainingHistory` keeps, and can add what the losses
alone do not show: the error on training images *as the network would see them when predicting*
(eval mode, no augmentation), next to the error on the validation images. The distance between the
two is overfitting. `EpochLines` writes each row to a terminal, with progress while an epoch runs.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import learnkit._torchvision  # noqa: F401  # before fastai

import numpy as np
import pandas as pd
import torch
from fastai.learner import Recorder
from fastai.torch_core import to_device
from fastcore.basics import noop

from learnkit.callback.base import TrainingCallback, current_lr
from learnkit.errors import DataError
from learnkit.evaluation.inputs import labels_above
from learnkit.interpret.losses import activation_of, loss_threshold
from learnkit.interpret.source import ValidationView
from learnkit.models.eval_mode import evaluating, randomness_kept
from learnkit.report.progress import Progress


class TrainingHistory(TrainingCallback):
    """Keeps one row per trained epoch over all fits of a learner: `learn.training_history.frame`.

    Args:
        train_share: also measure the error rate on training images: a share of them (0 to 1), or
            their number. None measures nothing extra.
        seed: chooses the images, once for all epochs.
    """

    order = Recorder.order + 1  # needs this epoch's losses and metrics
    _stateattrs = ("_started", "_trained", "_valid_error")

    def __init__(self, train_share: float | int | None = None, *, seed: int = 42):
        super().__init__()
        _check_share(train_share)
        self.train_share, self.seed = train_share, seed
        self.rows: list[dict[str, Any]] = []
        self.n_fits = 0
        self._new_fit = False

    @property
    def frame(self) -> pd.DataFrame:
        """Table of the epochs: fit, epoch, lr at its end, losses, metrics, seconds.

        A metric of a name that is taken gets a number: "accuracy_2". What fastai's recorder did not
        measure is NaN: a pass that was cut short, the rate of a learner without optimizer.

        Fits and epochs count from 1, epochs over all fits. With `train_share` also `train_error`
        and `valid_error`, the share of wrong predictions (0 to 1) in eval mode on the chosen
        training images and on the validation images.
        """
        return pd.DataFrame(self.rows)

    def state(self) -> dict[str, Any]:
        """What `load_state` needs to go on from here: numbers and strings only."""
        return {"rows": [dict(row) for row in self.rows], "n_fits": self.n_fits}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a `state`; the fit that is running is the one in which it was taken."""
        self.rows = [dict(row) for row in state["rows"]]
        self.n_fits, self._new_fit = state["n_fits"], False

    def before_fit(self) -> None:
        """A new fit is counted when it trains, not when it is announced."""
        self._new_fit = True

    def before_epoch(self) -> None:
        """Start the clock; whether this epoch trains is seen at `before_train`."""
        self._started, self._trained = time.perf_counter(), False

    def before_train(self) -> None:
        """Count the fit at its first training epoch."""
        self._trained = True
        self.n_fits += self._new_fit
        self._new_fit = False

    def before_validate(self) -> None:
        """Forget the errors of the last epoch."""
        self._valid_error = _ErrorRate(self.loss_func)

    def after_batch(self) -> None:
        """Count the wrong predictions of a validation batch."""
        if self.train_share is not None and not self.training and len(self.yb):
            self._valid_error.add(self.pred, self.yb[0])

    def after_epoch(self) -> None:
        """Write the row, unless the epoch was skipped."""
        if self._trained:
            self.rows.append(self._row())

    def _row(self) -> dict[str, Any]:
        row = {"fit": self.n_fits, "epoch": len(self.rows) + 1, "lr": current_lr(self.opt)}
        last = {}
        if self.train_share is not None:
            last |= {"train_error": self._train_error(), "valid_error": self._valid_error.value}
        last["seconds"] = time.perf_counter() - self._started
        if (recorder := vars(self.learn).get("recorder")) is not None:
            taken = {*row, *last}
            for name, value in _recorded(recorder):
                numbered = (f"{name}_{n}" for n in itertools.count(2))
                column = next(one for one in itertools.chain([name], numbered) if one not in taken)
                taken.add(column)
                row[column] = value
        return row | last

    def _train_error(self) -> float:
        """Error rate on the chosen training images; leaves modes and random states as they were."""
        error, device = _ErrorRate(self.loss_func), next(self.model.parameters()).device
        images = self._chosen_images()
        with randomness_kept(), evaluating(self.model), torch.no_grad():
            # by the loader of validation, on which fastai switches random transforms off
            for batch in self.dls.valid.new(dataset=images, shuffle=False, drop_last=False):
                *xb, y = to_device(batch, device)
                error.add(self.model(*xb), y)
        return error.value

    def _chosen_images(self) -> ValidationView:
        images = self.dls.train.dataset
        share, n = self.train_share, len(images)
        n = min(n, share) if isinstance(share, int) else max(1, int(share * n + 0.5))
        order = np.random.default_rng(self.seed).permutation(len(images))
        return ValidationView(images, sorted(order[:n].tolist()))


class _ErrorRate:
    """Share of wrong predictions; of wrong labels where an image may have several."""

    def __init__(self, loss_func: Any):
        self.n_wrong = self.n = 0
        self.loss_func = loss_func

    def add(self, logits: torch.Tensor, targets: torch.Tensor) -> None:
        # fastai's subclasses of Tensor refuse to be compared with each other
        logits, targets = (t.as_subclass(torch.Tensor) for t in (logits, targets))
        several = targets.ndim == logits.ndim
        if several:
            probs = activation_of(self.loss_func, multi_label=True)(logits)
            above = labels_above(probs.cpu(), loss_threshold(self.loss_func, logits.shape[1]))
            wrong = torch.from_numpy(above) != (targets > 0.5).cpu()
        else:
            wrong = logits.argmax(1) != targets
        self.n_wrong, self.n = self.n_wrong + int(wrong.sum()), self.n + wrong.numel()

    @property
    def value(self) -> float:
        return self.n_wrong / self.n if self.n else float("nan")


def is_history(state: Any) -> bool:
    """Whether `state` is one that `TrainingHistory.state` gave, by its form."""
    if not isinstance(state, Mapping) or state.keys() != {"rows", "n_fits"}:
        return False
    rows = state["rows"]
    if type(state["n_fits"]) is not int or not isinstance(rows, list):
        return False
    plain = str | int | float | None
    return all(
        isinstance(row, Mapping) and all(isinstance(value, plain) for value in row.values())
        for row in rows
    )


def _recorded(recorder: Recorder) -> list[tuple[str, Any]]:
    """(name, number) of everything fastai's recorder has of the last epoch; NaN for what it lacks.

    Of a pass that was cut short it leaves the numbers out without a gap: those of the other pass
    would stand under their names.
    """
    names = list(recorder.metric_names[1:])
    # the time comes last among the names, and not among the values
    names = names[:-1] if recorder.add_time else names
    n_metrics = len(recorder.metrics)
    n_train = min(len(names), 1 + n_metrics * recorder.train_metrics)
    values = list(map(_number, recorder.values[-1]))
    if recorder.cancel_train:
        values = [math.nan] * n_train + values
    values += [math.nan] * (n_train + (1 + n_metrics) * recorder.valid_metrics - len(values))
    return list(zip(names, values, strict=False))


def _number(value: Any) -> Any:
    """A plain Python number where there is one."""
    single = isinstance(value, torch.Tensor) and value.numel() == 1
    return value.item() if single or isinstance(value, np.generic) else value


def _check_share(share: float | int | None) -> None:
    if share is None or (isinstance(share, int) and not isinstance(share, bool) and share > 0):
        return
    if not (isinstance(share, float) and 0 < share <= 1):
        raise DataError(
            f"`train_share` is {share!r}; give a share of the training images above 0.0 and up to "
            "1.0, a number of images from 1 on, or None"
        )


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
    # without a bar fastai's Recorder prints each row by it
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
