"""State of a learner, apart from its network, and what a pass over it reads off that state.

One unchanging value, replaced as a whole: what a verb changes together takes effect together, and a
shallow copy of a learner goes its own way.

In the continual state names, numbers and scores come from the head. Loaders number the classes as
they did in training; the head numbers those it knows now, under the names they have now, so that a
number of a loader is translated by its name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from learnkit.continual.classifier import ContinualClassifier, continual_head
from learnkit.errors import InterpretationError

if TYPE_CHECKING:
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
        ood_detector: what `fit_ood` made for the trained head, None without.
        fits_to_come: fits that the running verb has still to begin.
    """

    record: ContinualRecord | None = None
    ood_detector: OodDetector | None = None
    fits_to_come: int = 0


def learner_state(learn: Any) -> LearnerState:
    """The state of a learner; an empty one for a Learner of fastai's own."""
    # Not by getattr alone: fastai's Learner looks up in its model what it has not itself.
    state = getattr(learn, "state", None)
    return state if isinstance(state, LearnerState) else LearnerState()


def detector_of(learn: Any) -> ContinualClassifier | None:
    """The out-of-distribution detector of this learner: its continual head, else `fit_ood`'s."""
    head = continual_head(learn.model)
    return learner_state(learn).ood_detector if head is None else head


def class_numbers(
    learn: Any, classes: Sequence[str], *, in_training: bool = False
) -> dict[str, int]:
    """The number of every class name, and of every name a class used to have.

    A class merged into another keeps its name without images; its number is then the other's.

    Args:
        learn: the learner.
        classes: what its outputs are called.
        in_training: a name stands for what it stood for in training, even if another class has it
            now.
    """
    numbers = {name: i for i, name in enumerate(classes)}
    head, record = continual_head(learn.model), learner_state(learn).record
    if head is None or record is None:
        return numbers
    live = {name for name, n in head.n_images.items() if n and not in_training}
    former = {old: now for old, now in record.former_names.items() if old not in live}
    return numbers | {old: numbers[now] for old, now in former.items() if now in numbers}


def renumbering(learn: Any, dl: Any, names: Sequence[str] | None) -> Tensor | None:
    """Class number of the head for every class number of a loader, int64; -1 for unknown names.

    None where nothing is to be translated: outside the continual state, or without names.
    """
    head = continual_head(learn.model)
    if head is None or names is None:
        return None
    own = any(dl is loader for loader in learn.dls.loaders)
    numbers = class_numbers(learn, head.classes, in_training=own)
    return torch.tensor([numbers.get(name, -1) for name in names], dtype=torch.int64)


def renumbered(targets: Tensor, numbers: Tensor | None, names: Sequence[str] | None) -> Tensor:
    """Targets int64 (N,) in the numbers of the head.

    Raises:
        InterpretationError: one is of a class the model does not know.
    """
    if numbers is None or targets.ndim != 1 or targets.is_floating_point():
        return targets
    new = numbers.to(targets.device)[targets]
    if (new < 0).any():
        unknown = sorted({names[i] for i in targets[new < 0].tolist()})
        raise InterpretationError(
            f"The samples have labels the learner does not know: {', '.join(unknown[:5])}; extend "
            "it with images of them, or leave those samples out"
        )
    return new


def loss_of(learn: Any) -> Any:
    """The loss the outputs were made for; in the continual state plain cross-entropy."""
    return learn.loss_func if continual_head(learn.model) is None else nn.CrossEntropyLoss()
