"""Tables and text of a classifier's mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from learnkit.interpret.outputs import Outputs

if TYPE_CHECKING:
    import pandas as pd


def label_text(outputs: Outputs, label: Tensor) -> str:
    """Return the name of a class number, or the names of flags (C,); a dash if none is set."""
    if not outputs.multi_label:
        return str(outputs.classes[int(label)])
    return "; ".join(str(outputs.classes[i]) for i in torch.nonzero(label)[:, 0]) or "–"


def mistakes_of(
    confusion: np.ndarray, classes: Sequence[str], min_val: int = 1
) -> list[tuple[str, str, int]]:
    """Return off-diagonal counts of at least `min_val` as (actual, predicted, n), largest first.

    >>> mistakes_of(np.array([[5, 1], [2, 5]]), ["cat", "dog"])
    [('dog', 'cat', 2), ('cat', 'dog', 1)]
    """
    wrong = confusion * (1 - np.eye(len(confusion), dtype=confusion.dtype))
    cells = np.argwhere(wrong >= max(1, min_val)).tolist()
    mistakes = [(classes[i], classes[j], int(wrong[i, j])) for i, j in cells]
    return sorted(mistakes, key=lambda mistake: -mistake[2])


def errors_table(outputs: Outputs) -> pd.DataFrame:
    """Return the misclassified samples as a table, largest loss first, indexed by position."""
    import pandas as pd

    position = torch.nonzero(~outputs.correct)[:, 0]
    if outputs.losses is not None:
        order = outputs.losses[position].argsort(descending=True, stable=True)
        position = position[order]
    targets, pred_labels = outputs.require_targets()[position], outputs.pred_labels[position]
    files, index = outputs.items, pd.Index(position.numpy(), name="position")
    paths = [str(files[i]) if files else None for i in position.tolist()]
    columns = {
        "path": pd.Series(paths, index, dtype=object),  # pandas' text refuses undecodable names
        "actual": [label_text(outputs, label) for label in targets],
        "predicted": [label_text(outputs, label) for label in pred_labels],
        "prob": outputs.probability_of(outputs.pred_labels)[position].numpy(),
        "prob_actual": outputs.probability_of(outputs.require_targets())[position].numpy(),
        "loss": None if outputs.losses is None else outputs.losses[position].numpy(),
    }
    return pd.DataFrame(columns, index=index)


def report_text(outputs: Outputs) -> str:
    """Return scikit-learn's classification report; an undefined value counts as zero there."""
    from sklearn.metrics import classification_report

    return classification_report(
        outputs.require_targets().numpy(),
        outputs.pred_labels.numpy(),
        labels=range(len(outputs.classes)),
        target_names=list(outputs.classes),
        zero_division=0,
    )
