"""State of a learner beside its network: its continual record, its OOD detector, fits to come.

One unchanging value, replaced as a whole: what a verb changes together takes effect together, and a
shallow copy of a learner goes its own way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from learnkit.continual.ood_detector import OodDetector


@dataclass(frozen=True, eq=False)
class ContinualRecord:
    """What only the learner can know of its continual state.

    Attributes:
        trained_head: the head before, None where it is not known.
        former_names: what a class was called -> what it is called now.
        learned: files learned from.
        validated: files that decide threshold and temperature.
        earlier: the record before the last change.
    """

    trained_head: nn.Module | None = None
    former_names: Mapping[str, str] = field(default_factory=dict)
    learned: frozenset[str] = frozenset()
    validated: frozenset[str] = frozenset()
    earlier: ContinualRecord | None = None


@dataclass(frozen=True, eq=False)
class LearnerState:
    """All that learnkit adds to a fastai Learner, as `learn.state`.

    Attributes:
        record: of the continual state; None outside it.
        ood_detector: what `fit_ood` made beside the trained head, None without.
        fits_to_come: fits that the running verb still begins, this one included.
    """

    record: ContinualRecord | None = None
    ood_detector: OodDetector | None = None
    fits_to_come: int = 0


def learner_state(learn: Any) -> LearnerState:
    """The state of a learner; an empty one for a Learner of fastai's own."""
    # Not by getattr alone: fastai's Learner looks up in its model what it has not itself.
    state = getattr(learn, "state", None)
    return state if isinstance(state, LearnerState) else LearnerState()
