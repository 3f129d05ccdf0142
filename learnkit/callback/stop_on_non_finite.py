"""A stop of the training at its first non-finite loss, instead of NaN to the last epoch."""

import math
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import learnkit._torchvision  # noqa: F401  # before fastai

import torch
from fastai.callback.core import CancelFitException
from fastai.callback.tracker import SaveModelCallback, TerminateOnNaNCallback, TrackerCallback
from fastcore.basics import listify
from torch import nn

from learnkit.callback.base import TrainingCallback, current_lr
from learnkit.errors import (
    DataError,
    LearnkitError,
    NonFiniteLossError,
    first_few,
    number_of,
    warn_user,
)
from learnkit.storage.formats import first_non_finite

_SHOWN = 5


class StopOnNonFinite(TrainingCallback):
    """Stops at the first non-finite loss or weight and puts the last good weights back.

    A copy of the weights is taken when training starts, every `every` batches and at the end of
    each epoch, if they are finite. `NonFiniteLossError` names epoch, batch, learning rate and the
    images of the batch; it is raised after the fit has been cleaned up, so the learner can be
    trained on with a lower rate. Also refuses to train on a loader without batches, or with a
    callback that watches a measure of validation images where there are none, and keeps a
    `SaveModelCallback` that saved nothing in a fit from loading the file of an earlier one. Beside
    fastai's `TerminateOnNaNCallback`, which asks for a quiet stop, it lets that one stop.

    Args:
        every: batches between two copies.
    """

    order = 90  # last: sees what others made of the loss, raises when they have cleaned up
    _stateattrs = ("_good", "_error")

    def __init__(self, every: int = 100):
        super().__init__()
        self.every = every
        self._forget()

    def before_fit(self) -> None:
        """Forget what an interrupted fit may have left."""
        self._forget()
        self._quiet = any(isinstance(cb, TerminateOnNaNCallback) for cb in self.learn.cbs)

    def before_train(self) -> None:
        """Refuse a loader without batches and a network that is not finite to begin with."""
        if len(self.dls.train) == 0:  # fastai would report a loss of NaN
            self._stop(DataError(no_batches(self.dls.train)))
        if self.epoch == 0 and (sentence := _nothing_to_watch(self.learn)):
            self._stop(DataError(sentence))
        if self._good is None and not self._quiet:
            if (name := first_non_finite(self.model.state_dict())) is not None:
                self._stop(NonFiniteLossError(_bad_start(name)))
            self._keep("the start of the fit")

    def after_loss(self) -> None:
        """Look at the loss before it is propagated."""
        if self._quiet or not self.training or not len(self.yb):
            return
        if not torch.isfinite(self.loss).all():
            self._give_up(f"the training loss is {self.loss.max().item()}")
        if self.iter and self.iter % self.every == 0:
            self._keep(f"epoch {self.epoch}, batch {self.iter}")

    def after_step(self) -> None:
        """Look at the weights the step has made."""
        if self._quiet:
            return
        weights = [p.detach() for p in self.model.parameters() if p.requires_grad]
        # by the largest value: a sum of squares overflows where no weight does
        if not torch.isfinite(nn.utils.get_total_norm(weights, norm_type=math.inf)):
            name = first_non_finite(self.model.state_dict())
            self._give_up(f"the step made the weight {name!r} non-finite")

    def after_train(self) -> None:
        """Look at what no step changes: the running statistics of norm layers."""
        if not self._quiet and (name := first_non_finite(self.model.state_dict())) is not None:
            self._give_up(f"the buffer {name!r} became non-finite")

    def after_epoch(self) -> None:
        """Keep the weights of a finished epoch."""
        if self._good is not None:
            self._keep(f"the end of epoch {self.epoch}")
        # not in `after_fit`: SaveModelCallback comes before this one, and would have loaded
        if self.epoch + 1 == self.n_epoch:
            self._keep_from_older_files()

    def after_cancel_fit(self) -> None:
        """End the fit for the others, put the weights back, and raise what was found."""
        if self._error is None:
            self._keep_from_older_files()
            return
        for cb in self._loading_callbacks():  # the message says which weights are in the network
            cb.run = False
        callbacks = list(self.learn.cbs.sorted("order"))
        with ExitStack() as end:  # an error of another callback becomes the context of this one
            end.callback(self._raise)
            # a stack is unwound from its end, so they end by `order`; once this raises,
            # fastai calls no `after_fit` itself
            for cb in reversed(callbacks[: callbacks.index(self)]):
                end.callback(cb, "after_fit")

    def after_fit(self) -> None:
        """Drop the copy of the weights."""
        self._forget()

    def _raise(self) -> None:
        error = self._error
        if self._good is not None:
            self._restore()  # whatever the others have loaded
        self._forget()
        raise error

    def _loading_callbacks(self) -> list[SaveModelCallback]:
        """Those that load their file at the end of the fit."""
        saving = [cb for cb in self.learn.cbs if isinstance(cb, SaveModelCallback)]
        return [cb for cb in saving if not cb.at_end and not cb.every_epoch and cb.run]

    def _keep_from_older_files(self) -> None:
        """Switch off those that would load what an earlier training has saved."""
        for cb in self._loading_callbacks():
            # where fastai's TrackerCallback begins: no epoch was better
            if cb.best is not None and math.isinf(cb.best):
                cb.run = False
                warn_user(
                    f"SaveModelCallback has saved nothing in this fit: {cb.monitor!r} has no best "
                    f"epoch. The weights stay as trained, no earlier file {cb.fname!r} is loaded"
                )

    def _forget(self) -> None:
        self._good: dict[str, torch.Tensor] | None = None
        self._error: LearnkitError | None = None
        self._when = ""
        self._quiet = False

    def _keep(self, when: str) -> None:
        """Copy the weights, unless something in them is not finite."""
        if first_non_finite(self.model.state_dict()) is not None:
            return
        state = self.model.state_dict()
        if self._good is None:
            self._good = {name: value.detach().clone() for name, value in state.items()}
        else:
            for name, value in state.items():
                # in place: there are two copies of the network at any time, never three
                self._good[name].copy_(value)
        self._when = when

    def _give_up(self, what: str) -> None:
        rate = current_lr(self.opt)
        items = _items_of_batch(self.dl, self.iter)
        inputs = [x for x in self.xb if isinstance(x, torch.Tensor) and x.is_floating_point()]
        broken = [i for x in inputs for i, row in enumerate(x) if not torch.isfinite(row).all()]
        error = NonFiniteLossError(
            f"{what} in epoch {self.epoch}, batch {self.iter}, both counted from 0 (learning rate "
            f"{rate:.3g}; {_describe(items, broken)}). The weights of {self._when} are back in the "
            f"network; {_remedy(broken)}"
        )
        error.epoch, error.batch, error.lr, error.items = self.epoch, self.iter, rate, items
        self._restore()
        self._stop(error)

    def _restore(self) -> None:
        """Put the good weights back and clear what the bad step left in gradients and optimizer."""
        self.model.load_state_dict(self._good)
        if self.opt is not None:
            self.opt.clear_state()
        for parameter in self.model.parameters():
            parameter.grad = None

    def _stop(self, error: LearnkitError) -> None:
        self._error = error
        raise CancelFitException


def _items_of_batch(dl: Any, batch: int) -> list[Any]:
    """Paths (or else indices) of the items in a batch; empty where the loader does not tell."""
    # fastai's private `__idxs`: the order of the pass that runs
    order, bs = getattr(dl, "_DataLoader__idxs", None), getattr(dl, "bs", None)
    if not isinstance(order, list) or bs is None:
        return []
    chosen = order[batch * bs : (batch + 1) * bs]
    items = getattr(getattr(dl, "dataset", None), "items", None)
    if items is None or callable(items):
        return chosen
    rows = getattr(items, "iloc", items)  # a table is indexed by row
    found: list[Any] = []
    for i in chosen:
        # a path itself, the first of a pair, or the `path` of a table's row
        item = rows[i]
        item = item[0] if isinstance(item, tuple | list) and item else getattr(item, "path", item)
        path = item if isinstance(item, str | os.PathLike) else ""
        found.append(str(path) or i)
    return found


def _describe(items: list[Any], broken: list[int]) -> str:
    """The images to look at: those with a non-finite input, else the whole batch, shortened."""
    guilty = [items[i] for i in broken if i < len(items)] if items else broken
    shown = guilty or items
    if not shown:
        return "its items are not known"
    names = first_few(shown, _SHOWN)
    return f"items with a non-finite input: {names}" if guilty else f"items: {names}"


def _remedy(broken: list[int]) -> str:
    if broken:
        return "remove or repair these items"
    return "train with a lower learning rate (a tenth of it, or what `lr_find` suggests)"


def check_has_batches(dl: Any) -> None:
    """Raise DataError where a training loader has none."""
    if len(dl) == 0:
        raise DataError(no_batches(dl))


def no_batches(dl: Any, name: str = "training loader") -> str:
    """What to say of a loader without batches."""
    n, bs = getattr(dl, "n", None), getattr(dl, "bs", None)
    if not n:
        return f"the {name} has no images; set others as `learn.dls`, or make a learner with some"
    return (
        f"the {name} has 0 batches: {number_of(n, 'image')}, batch size {bs}, and the last, "
        f"incomplete batch is dropped; use a batch size of at most {n}, or drop_last=False"
    )


def _nothing_to_watch(learn: Any) -> str | None:
    """What to say of a callback that watches validation images where there are none."""
    if len(learn.dls.loaders) < 2 or len(learn.dls.valid):
        return None
    for cb in learn.cbs:
        if isinstance(cb, TrackerCallback) and cb.run and not cb.monitor.startswith("train_"):
            return (
                f"{type(cb).__name__} watches {cb.monitor!r}, and there are no validation images "
                "to measure it on: give some, as by ImageDataset.split(), or let it watch "
                "monitor='train_loss'"
            )
    return None


@contextmanager
def explained_monitors(learn: Any, cbs: Any) -> Iterator[None]:
    """Say of a callback that watches what no epoch measures, and so ended the fit, what there is.

    Raises:
        DataError: One of those of `learn`, or of `cbs`, does.
    """
    try:
        yield
    except (AssertionError, IndexError) as error:  # fastai's, of which the message is lost
        measured = list(getattr(learn.recorder, "metric_names", ()))[1:]
        for cb in [*learn.cbs, *listify(cbs)]:
            if isinstance(cb, TrackerCallback) and measured and cb.monitor not in measured:
                raise DataError(
                    f"{type(cb).__name__} watches {cb.monitor!r}, which no epoch measures; there "
                    f"are {first_few(map(repr, measured), len(measured))}"
                ) from error
        raise


def _bad_start(name: str) -> str:
    return (
        f"the weight {name!r} is not finite before the training starts; load other weights, or "
        "build a new learner"
    )
