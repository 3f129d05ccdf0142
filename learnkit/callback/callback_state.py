"""The state of callbacks between two epochs, as data; and callbacks that hear nothing for a while.

A resumed training skips epochs that are done. Their events must not reach callbacks that act on
epochs: they would save, stop or lower the learning rate by the weights of now. Instead they get
back what they had counted.
"""

import os
import pickle
from collections.abc import Mapping
from typing import Any

import learnkit._torchvision  # noqa: F401  # before fastai

import numpy as np
import torch
from fastai.callback.core import Callback, TrainEvalCallback
from fastai.callback.progress import CSVLogger, ProgressCallback
from fastai.callback.tracker import EarlyStoppingCallback
from fastai.learner import Recorder

# What runs the loop and shows the table; learnkit's own callbacks see to themselves.
_MACHINERY = (TrainEvalCallback, Recorder, ProgressCallback)
_NO_STATE = {"learn", "run", "order"}
_ARRAYS = np.float64 | np.float32 | np.integer | np.bool_ | torch.Tensor


def stateful_callbacks(learn: Any) -> dict[str, Callback]:
    """Callbacks of fastai and of the user, by class and number: "SaveModelCallback 0"."""
    found: dict[str, Callback] = {}
    for cb in learn.cbs:
        if isinstance(cb, _MACHINERY) or type(cb).__module__.startswith("learnkit."):
            continue
        name, n = type(cb).__name__, 0
        while f"{name} {n}" in found:
            n += 1
        found[f"{name} {n}"] = cb
    return found


def callback_marks(learn: Any, first: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What `callback_state` compares with, taken when a fit begins; `first` as the first one did.

    That is how a resumed training, which tells them nothing of earlier fits, finds its callbacks.
    """
    now = {key: _marks(cb) for key, cb in stateful_callbacks(learn).items()}
    size = {key: {"": marks[""]} for key, marks in now.items() if "" in marks}
    return {key: marks | first.get(key, {}) | size.get(key, {}) for key, marks in now.items()}


def callback_state(learn: Any, begun: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Numbers, and lists, tuples and dictionaries of them, that changed since the fit began.

    Arguments of callbacks do not change, so that a resumed call may give others. A text by itself
    is left out: it may name the file that a callback writes.
    """
    state = {}
    for key, cb in stateful_callbacks(learn).items():
        before, now = begun.get(key, {}), _marks(cb)
        changed = {n: getattr(cb, n) for n in _numbers(cb) if now[n] != before.get(n)}
        state[key] = {"values": changed, "size": before.get("", 0)}
    return state


def restore_callbacks(learn: Any, state: dict[str, dict[str, Any]]) -> None:
    """Give the callbacks of a fit that has begun their `callback_state`."""
    for key, cb in stateful_callbacks(learn).items():
        for name, value in state.get(key, {}).get("values", {}).items():
            setattr(cb, name, value)
        if key in state and isinstance(cb, CSVLogger) and cb.append:
            # The lines of the epochs to be skipped are written again, by the recorder.
            cb.file.flush()
            # the smaller: beyond the end of a file `truncate` fills up with zeros
            cb.file.truncate(min(state[key]["size"], os.path.getsize(cb.file.name)))


def switch_off_others(
    learn: Any, speaker: Callback, state: dict[str, Any]
) -> list[tuple[Callback, bool]]:
    """Switch off all callbacks but `speaker` and the machinery: each with its switch before."""
    # One that the interrupted run had not, and that only counts, counts what it is shown.
    counts = [
        cb
        for key, cb in stateful_callbacks(learn).items()
        if type(cb) is EarlyStoppingCallback and key not in state
    ]
    heard = (*counts, speaker)
    others = [cb for cb in learn.cbs if not isinstance(cb, _MACHINERY) and cb not in heard]
    switches = [(cb, cb.run) for cb in others]
    for cb in others:
        cb.run = False
    return switches


def _numbers(cb: Callback) -> list[str]:
    return [n for n, v in vars(cb).items() if n not in _NO_STATE and _is_plain(v, top=True)]


def _marks(cb: Callback) -> dict[str, Any]:
    """A mark of each number a callback holds; under "" the size of the table it appends to."""
    # as bytes: a list that grows in place would equal itself
    marks: dict[str, Any] = {n: pickle.dumps(plain_tree(getattr(cb, n))) for n in _numbers(cb)}
    if isinstance(cb, CSVLogger) and hasattr(cb, "file") and not cb.file.closed:
        # what is still buffered has no size
        cb.file.flush()
        marks[""] = os.path.getsize(cb.file.name)
    return marks


def _is_plain(value: Any, *, top: bool = False) -> bool:
    """Whether a checkpoint can hold the value and give the same back."""
    if type(value) is dict:
        return all(_is_plain(k) and _is_plain(v) for k, v in value.items())
    if type(value) in (list, tuple):
        return all(map(_is_plain, value))
    if type(value) is str:
        return not top
    return type(value) in (bool, int, float, type(None)) or isinstance(value, _ARRAYS)


def plain_tree(value: Any) -> Any:
    """The same tree of plain Python and torch objects, as `torch.load(weights_only=True)` wants it.

    >>> plain_tree({"lr": np.float64(0.5), "sizes": (1, np.int64(2))})
    {'lr': 0.5, 'sizes': (1, 2)}
    """
    if isinstance(value, torch.Tensor):
        return value.detach().as_subclass(torch.Tensor)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {plain_tree(k): plain_tree(v) for k, v in value.items()}
    if isinstance(value, tuple):
        return tuple(map(plain_tree, value))
    if value is None or isinstance(value, str | int | float):
        return value
    return [plain_tree(v) for v in value]  # a list, or fastcore's L
