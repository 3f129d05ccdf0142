"""Tables and text of a classifier's mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from learnkit.errors import InterpretationError, first_few
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
    position = torch.nonzero(~outputs.correct)[:, 0]
    if outputs.losses is not None:
        order = outputs.losses[position].argsort(descending=True, stable=True)
        position = position[order]
    return _table_of(outputs, position)


def _table_of(outputs: Outputs, position: Tensor) -> pd.DataFrame:
    """Some samples: path, actual, predicted, prob, prob_actual, loss, indexed by position."""
    import pandas as pd

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


def samples_table(
    outputs: Outputs,
    limit: float | None,
    *,
    pred: Any = None,
    true: Any = None,
    confidence: tuple[float, float] | None = None,
    ood: bool | None = None,
    correct: bool | None = None,
) -> pd.DataFrame:
    """Return the samples that all of the conditions hold for, in dataset order.

    Columns as of `errors_table`, and where OOD is detected `ood_score` and `is_ood`.

    Args:
        outputs: of all samples.
        limit: the OOD score above which a sample is flagged; None if none are.
        pred: the name of a class that is predicted, or several of which one is.
        true: the same of the truth.
        confidence: bounds, both included, of the largest probability.
        ood: whether it is flagged as out of distribution.
        correct: whether the prediction is right.

    Raises:
        InterpretationError: an unknown class, bounds that are none, or `ood` where nothing is
            flagged.
    """
    outputs.require_targets()
    keep = torch.ones(len(outputs), dtype=torch.bool)
    for name, wanted, labels in (
        ("pred", pred, outputs.pred_labels),
        ("true", true, outputs.targets),
    ):
        if wanted is not None:
            numbers = _class_numbers(name, wanted, outputs.classes)
            keep &= (
                labels[:, numbers].bool().any(1)
                if outputs.multi_label
                else torch.isin(labels, torch.tensor(numbers))
            )
    if confidence is not None:
        low, high = _bounds_of(confidence)
        sure = outputs.probs.max(1).values.double()
        keep &= (sure >= low) & (sure <= high)
    flagged = None
    if outputs.ood_scores is not None and limit is not None:
        flagged = ~(outputs.ood_scores <= limit)  # so written that NaN is flagged
    if ood is not None:
        if flagged is None:
            raise InterpretationError(
                "`ood` asks what is flagged, and this model detects no images out of distribution; "
                "call learn.fit_ood() or init_continual() first, or leave it out"
            )
        keep &= flagged == ood
    if correct is not None:
        keep &= outputs.correct == correct
    position = torch.nonzero(keep)[:, 0]
    table = _table_of(outputs, position)
    if flagged is not None:
        scores = outputs.ood_scores[position].numpy()
        table = table.assign(ood_score=scores, is_ood=flagged[position].numpy())
    return table


def _class_numbers(argument: str, wanted: Any, classes: Sequence[str]) -> list[int]:
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    if unknown := [name for name in names if name not in classes]:
        raise InterpretationError(
            f"`{argument}` is {unknown[0]!r}, which is no class; the classes are "
            f"{first_few(map(repr, classes))}"
        )
    return [list(classes).index(name) for name in names]


def _bounds_of(confidence: Any) -> tuple[float, float]:
    try:
        low, high = map(float, confidence)
    except (TypeError, ValueError):
        low, high = 1.0, 0.0
    if not 0 <= low <= high <= 1:
        raise InterpretationError(
            f"`confidence` is {confidence!r}; give (lowest, highest) in 0..1, such as (0.5, 0.8)"
        )
    return low, high


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
