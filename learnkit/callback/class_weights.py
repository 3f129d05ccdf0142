"""Class weights in the loss of training steps, and there alone.

The loss function itself stays what it is: it has the weights while a training step runs, so that
validation, top losses, thresholds and everything else that asks it sees none. Of a history,
`train_loss` is then the weighted mean, `valid_loss` the plain one that models are compared by.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import learnkit._torchvision  # noqa: F401  # before fastai

import torch
from torch import Tensor

from learnkit.callback.base import TrainingCallback
from learnkit.data.labels import check_balance, weights_of_classes
from learnkit.errors import DataError, first_few
from learnkit.interpret.learner_state import class_names, names_of


class ClassWeights(TrainingCallback):
    """Training losses that weigh the classes; found as `learn.class_weights`.

    Args:
        weights: True weighs every class inversely to its training images, "sqrt" inversely to the
            root of their number, {name: weight} as it says; see `ImageDataset.class_weights`.

    Raises:
        DataError: `weights` is none of these.
    """

    def __init__(self, weights: bool | str | Mapping[str, float] = True):
        super().__init__()
        if not isinstance(weights, Mapping):
            try:
                check_balance(weights)
            except DataError as error:
                raise DataError(
                    f"`class_weights` is {weights!r}; give True, 'sqrt', or {{name: weight}} such "
                    "as dataset.class_weights()"
                ) from error
        self.asked = weights
        self._found: tuple[Any, Tensor] | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.asked!r})"

    def weights(self) -> Tensor:
        """float32 (C,), in the order of the outputs, on the CPU.

        Raises:
            DataError: Classes have no weight, or a weight is no finite number from 0 on; the
                loaders do not tell their labels.
        """
        names, dls = class_names(self.learn) or [], self.learn.dls
        of = (dls.train.dataset, names)
        if self._found is None or self._found[0][0] is not of[0] or self._found[0][1] != names:
            found = self.asked
            if not isinstance(found, Mapping):
                found = weights_of_classes(_labels_of(dls), names, found)
            self._found = of, _checked(found, names)
        return self._found[1]

    def before_fit(self) -> None:
        """Find out before the first batch whether the loss takes them."""
        check_weighable(self.learn)


def check_weighable(learn: Any) -> None:
    """Raise DataError where the learner's classes cannot be weighed as its `ClassWeights` asks."""
    with weighted_loss(learn):
        pass


@contextmanager
def weighted_loss(learn: Any) -> Iterator[None]:
    """Let the loss function weigh the classes inside the block, if the learner has `ClassWeights`.

    Raises:
        DataError: The loss function takes no weights, or has weights of its own.
    """
    asked = next((cb for cb in learn.cbs if isinstance(cb, ClassWeights)), None)
    if asked is None or asked.asked is False:
        yield
        return
    loss = learn.loss_func
    loss = getattr(getattr(loss, "__self__", None), "old_lf", loss)  # under fastai's MixUp
    # fastai's losses hold the one of torch's that they call
    func = getattr(loss, "func", loss)
    name = "pos_weight" if hasattr(func, "pos_weight") else "weight"
    # None: it could have weights, and has none; 0: it takes none
    if getattr(func, name, 0) is not None:
        has = "has weights of its own" if hasattr(func, name) else "takes none"
        raise DataError(
            f"`class_weights` go into the loss function, and {type(func).__name__} {has}; leave "
            "one of `loss_func` and `class_weights` out"
        )
    weights = asked.weights().to(next(learn.model.parameters()).device)
    flat = vars(loss).get("flatten")
    try:
        setattr(func, name, weights)
        if name == "pos_weight" and flat is not None:
            loss.flatten = False  # one weight per column needs columns
        yield
    finally:
        # as it was: with another value it is refused above
        setattr(func, name, None)
        if flat is not None:
            loss.flatten = flat


def _labels_of(dls: Any) -> list[Any]:
    """The labels of the training images; no image is read."""
    dataset = getattr(dls, "image_dataset", None)
    if dataset is not None:
        return dataset.train.labels
    names, tls = names_of(dls), getattr(dls.train.dataset, "tls", ())
    if names is None or len(tls) != 2:
        raise DataError(
            "`class_weights` counts training images by class, and the loaders do not tell their "
            "labels; give the weights as {name: weight}"
        )
    targets = [torch.as_tensor(y) for y in tls[1]]
    if all(y.ndim == 0 for y in targets):
        return [names[int(y)] for y in targets]
    return [tuple(names[i] for i in y.nonzero().flatten().tolist()) for y in targets]


def _checked(weights: Mapping[str, float], names: list[str]) -> Tensor:
    if other := sorted(set(map(str, weights)) ^ set(names)):
        raise DataError(
            f"`class_weights` names {first_few(map(repr, weights))}; it must have one weight for "
            f"each class: {first_few(map(repr, names))} (look at {other[0]!r})"
        )
    for name, value in weights.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 <= value < math.inf:
            raise DataError(
                f"`class_weights` has {value!r} for {name!r}; a weight is a finite number from 0 on"
            )
    return torch.tensor([float(weights[name]) for name in names])
