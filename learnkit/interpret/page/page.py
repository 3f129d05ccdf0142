"""The evaluation page of evaluated images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from learnkit.errors import UsageError
from learnkit.interpret.page.build import page_data
from learnkit.interpret.page.images import EvaluatedImages
from learnkit.interpret.page.thumbs import add_pictures

if TYPE_CHECKING:
    from learnkit.evaluation.evaluate import Evaluation

_LARGEST_MB = 200


@dataclass(frozen=True, eq=False)
class EvaluationPage:
    """The page of one evaluation: its `data` of JSON types.

    Attributes:
        images: the evaluated images.
    """

    images: EvaluatedImages

    def data(
        self, evaluation: Evaluation, *, max_mb: float = 25, pictures: bool = True, **about: Any
    ) -> dict[str, Any]:
        """All that the page shows, as JSON types; see `page_data` for `about`.

        Raises:
            UsageError: `max_mb` outside 0..200.
            EvaluationError: `good` names no class, or all of them.
        """
        if not 0 <= max_mb <= _LARGEST_MB:
            raise UsageError(f"`max_mb` is {max_mb}; give megabytes from 0 to {_LARGEST_MB}")
        listed, data = page_data(evaluation, self.images, **about)
        if pictures:
            add_pictures(data, lambda row: self.images.open(listed[row]), max_mb=max_mb)
        return data
