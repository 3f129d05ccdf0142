"""Several labels per image: the loss function's threshold, where fastai compares with it."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import learnkit._torchvision  # noqa: F401  # before fastai

import numpy as np
import torch
from fastai.learner import AvgMetric
from fastai.metrics import accuracy_multi
from torch import Tensor

from learnkit.errors import warn_user
from learnkit.evaluation.inputs import LabelThreshold, labels_above
from learnkit.interpret.losses import loss_threshold


def comparable_loss(loss_func: Any) -> Any:
    """The loss function; a copy of one whose `thresh` is a list, which fastai cannot compare with.

    Raises:
        InterpretationError: One of the thresholds is no probability.
    """
    thresh = getattr(loss_func, "thresh", None)
    if not isinstance(thresh, list | tuple | np.ndarray):
        return loss_func
    loss_func = copy.copy(loss_func)
    thresholds = loss_threshold(loss_func, len(thresh))
    loss_func.thresh = torch.tensor(thresholds, dtype=torch.float64)
    return loss_func


def metrics_of_loss(metrics: Any, loss_func: Any, n_classes: int | None) -> list[Any]:
    """The metrics; `accuracy_multi` counts a label above the threshold of the loss function.

    A metric with another threshold of its own stays as it is, and a warning says so.
    """
    if not hasattr(loss_func, "thresh") or n_classes is None:
        return list(metrics)
    return [_of_loss(metric, loss_threshold(loss_func, n_classes)) for metric in metrics]


def _of_loss(metric: Any, threshold: LabelThreshold) -> Any:
    if getattr(metric, "func", None) is accuracy_multi:
        return metric if threshold == 0.5 else AvgMetric(partial(_label_accuracy, threshold))
    named = getattr(getattr(metric, "func", None), "keywords", None) or vars(metric)
    own = named.get("thresh")
    if own is not None and own != threshold:
        warn_user(
            f"the metric {metric.name} counts labels above {own}, the loss function, `evaluate` "
            f"and `predict` above {threshold}; give both the same `thresh`"
        )
    return metric


def _label_accuracy(threshold: LabelThreshold, logits: Tensor, targets: Tensor) -> Tensor:
    predicted = labels_above(logits.detach().sigmoid().cpu().as_subclass(Tensor), threshold)
    right = predicted == targets.cpu().as_subclass(Tensor).bool().numpy()
    return torch.tensor(right.mean())


_label_accuracy.__name__ = accuracy_multi.__name__  # the column of the history
