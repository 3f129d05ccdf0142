"""The verbs of fastai's Learner that `ImageLearner` makes safer, each a line to its home."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from learnkit.learner.build import forget_frozen_gradients, frozen_norm_state
from learnkit.learner.saving import (
    explained_mismatch,
    explained_workers,
    load_with_state,
    save_with_state,
)
from learnkit.learner.trained_head import training

if TYPE_CHECKING:
    from typing_extensions import Self


class TrainingVerbs:
    """Training, freezing, saving and loading; stands before fastai's Learner among the bases."""

    def _bn_bias_state(self, with_bias: bool) -> Sequence[dict]:
        """Optimizer states of the norms: fastai asks here which of them train though frozen."""
        everything = with_bias or self.train_bn == "all"
        return super()._bn_bias_state(with_bias) if everything else frozen_norm_state(self)

    def freeze_to(self, n: int) -> None:
        """Freeze parameter groups up to `n` for good: no step moves any of them."""
        super().freeze_to(n)
        forget_frozen_gradients(self.model)

    def all_batches(self) -> None:
        """Run the batches of the current loader."""
        with explained_workers(self):
            super().all_batches()

    def fit(self, *args: Any, **kwargs: Any) -> None:
        """Train, as in fastai.

        Raises:
            ContinualStateError: The learner is in the continual state; the message names ways out.
            OodLockedError: `fit_ood` has derived something from the network as it is.
        """
        with training(self):
            super().fit(*args, **kwargs)

    def fine_tune(self, *args: Any, **kwargs: Any) -> None:
        """Train the head, then everything, as in fastai. Raises like `fit`."""
        with training(self, n_fits=2):
            super().fine_tune(*args, **kwargs)

    def save(self, file: Any, **kwargs: Any) -> Path:
        """The file written: weights, optimizer state, and in the continual state what was learnt.

        What `fit_ood` made stands beside it, in a file of the same name.
        """
        return save_with_state(self, file, super().save, **kwargs)

    def load(self, file: Any, device: Any = None, **kwargs: Any) -> Self:
        """This learner with the weights (and optimizer state) that `save` wrote to `file`.

        It is then in the state in which it was saved, the continual one included.

        Raises:
            WeightsError: They belong to another network.
        """
        with explained_mismatch(self.model, file):
            return load_with_state(self, file, super().load, device=device, **kwargs)
