"""The continual state as a pass sees it: names, numbers and scores come from the head itself.

Loaders number the classes as they did in training. The head numbers those it knows now, under the
names they have now; a number of a loader is translated by its name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from learnkit.continual.classifier import continual_head
from learnkit.errors import InterpretationError
from learnkit.interpret.learner_state import learner_state

if TYPE_CHECKING:
    from learnkit.continual.classifier import ContinualClassifier


def detector_of(learn: Any) -> ContinualClassifier | None:
    """What tells unusual images for this learner: its continual head, or what `fit_ood` made."""
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
