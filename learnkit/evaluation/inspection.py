"""Inspection measures: defects that pass as good (escapes), and good parts that are rejected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from learnkit.errors import EvaluationError, first_few


class Inspection(NamedTuple):
    """Counts of an inspection that passes what is of a good class and not flagged.

    `n_flagged` is None where nothing can be flagged: no part goes to a person then.
    """

    n_defects: int
    n_escapes: int
    n_good: int
    n_rejects: int
    n_flagged: int | None


def inspection(targets: Any, predicted: Any, good: Any, flagged: Any = None) -> Inspection:
    """The counts of one inspection: escapes are defects predicted good and not flagged.

    False rejects are good parts predicted defect, or flagged.

    Args:
        targets: class numbers (N,).
        predicted: class numbers (N,).
        good: which classes mean that a part is good, bool (C,).
        flagged: which images are taken for unknown (N,), and so go to a person.

    >>> inspection([0, 0, 1, 1], [0, 1, 0, 1], [True, False])
    Inspection(n_defects=2, n_escapes=1, n_good=2, n_rejects=1, n_flagged=None)
    """
    good = np.asarray(good, bool)
    is_good = good[np.asarray(targets, np.int64)]
    unsure = np.zeros(len(is_good), bool) if flagged is None else np.asarray(flagged, bool)
    passed = good[np.asarray(predicted, np.int64)] & ~unsure
    return Inspection(
        n_defects=int((~is_good).sum()),
        n_escapes=int((~is_good & passed).sum()),
        n_good=int(is_good.sum()),
        n_rejects=int((is_good & ~passed).sum()),
        n_flagged=None if flagged is None else int(unsure.sum()),
    )


def good_classes(good: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """Which classes are good, bool (C,), by their names.

    Raises:
        EvaluationError: one is no class, or none is left for defects.
    """
    names = [good] if isinstance(good, str) else list(good)
    if unknown := [name for name in names if name not in classes]:
        raise EvaluationError(
            f"`good` names {unknown[0]!r}, which is no class; the classes are "
            f"{first_few(list(map(repr, classes)))}"
        )
    if names and set(classes) <= set(names):
        raise EvaluationError(
            "`good` names every class, so that nothing would be a defect; leave the defects out"
        )
    return np.array([name in names for name in classes], bool)
