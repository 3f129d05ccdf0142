"""What a learner in the continual state keeps beside its head: names and files, no numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from learnkit.errors import warn_user


@dataclass(frozen=True, eq=False)
class Notes:
    """What only the learner can know of its continual state; replaced as a whole.

    Attributes:
        trained_head: the head before, None where it is not known.
        former_names: what a class was called -> what it is called now.
        learnt: files learnt from.
        validated: files that decide threshold and temperature.
        earlier: the notes before the last change.
    """

    trained_head: nn.Module | None = None
    former_names: Mapping[str, str] = field(default_factory=dict)
    learnt: frozenset[str] = frozenset()
    validated: frozenset[str] = frozenset()
    earlier: Notes | None = None

    def renamed(self, names: Mapping[str, str]) -> Notes:
        """With classes called otherwise, `{old: new}`; names before that lead there, too."""
        former = {old: names.get(now, now) for old, now in self.former_names.items()}
        return replace(self, former_names=dict(names) | former)

    def warn_of_repetition(self, files: Iterable[str], n: int) -> None:
        """Warn if some of the files of `n` new images have had a part in the head before."""
        files = set(files)
        if again := len(files & self.learnt):
            warn_user(f"{again} of the {n} images were learnt before and count once more now")
        if twice := len(files & self.validated):
            warn_user(
                f"{twice} of the {n} images decide threshold and temperature as validation images; "
                "learning from them as well makes both optimistic"
            )


def notes_of(learn: Any) -> Notes:
    """The notes of a learner; empty ones if it has none."""
    return getattr(learn, "continual_notes", None) or Notes()
