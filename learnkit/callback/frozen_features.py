"""Head epochs on stored features: a frozen body sees every image once, not once per epoch.

Two things happen, each confined to a moment from which an exception cannot leave traces. When
training or validation begins, `learn.dl` (which fastai sets each time) becomes a loader that
gives stored features in the order of the real one. In each batch, the next call of the model skips
the body, and the skipping ends inside that call. `learn.model`, `learn.dls`, optimizer, metrics and
random numbers stay what they are.
"""

from contextlib import nullcontext
from functools import partial

import torch
from fastai.callback.progress import ProgressCallback
from torch import Tensor, nn

from learnkit.callback.base import TrainingCallback
from learnkit.callback.cacheable import (
    body_reason,
    callback_reason,
    model_reason,
    order_reason,
    structure_reason,
    trial_reason,
)
from learnkit.callback.stored_features import (
    Store,
    StoredLoader,
    checksums_of,
    collect,
    skip_once,
    sources_of,
    stored_layers,
    stored_output,
    unskip,
)
from learnkit.callback.training_precision import precision_of, step_of
from learnkit.errors import warn_user
from learnkit.interpret.contexts import randomness_kept
from learnkit.models.eval_mode import evaluating


class FrozenFeatures(TrainingCallback):
    """Trains the head of a frozen body on features computed once; found as `learn.frozen_features`.

    The weights become what they would have become without it (to rounding): order of the images,
    dropout, schedules and metrics are the same. Stored is what leaves the body, or the pooling
    layer where the head begins with one: float32, (images of train and valid) x features, on the
    CPU until the body changes, `clear` is called or the learner goes.

    It applies while the body is frozen down to its norm layers (`cnn_learner(train_bn=False)`) and
    the training transforms are not random. Otherwise it is idle, says why once, and keeps that in
    `reason`. `lr_find`, `validate` and `get_preds` never use it. Other callbacks find features in
    `learn.xb`; where one works on the batches, it is idle. A dataset whose items are exchanged in
    place is not noticed: call `clear`.

    Args:
        max_bytes: idle where the features would need more memory than this.
    """

    # After the callbacks that set the modes of layers, before the progress bar of the epoch.
    order = ProgressCallback.order - 1
    _stateattrs = ("_store", "_feeding")
    _store: Store | None = None
    _feeding = False

    def __init__(self, max_bytes: int = 2_000_000_000):
        super().__init__()
        self.max_bytes = max_bytes
        self.reason: str | None = None
        self._told: set[str] = set()
        self._applies = self._has_worked = False

    @property
    def nbytes(self) -> int:
        """Memory the stored features take, in bytes."""
        return sum(s.features.nbytes for s in self._store.splits) if self._store else 0

    def clear(self) -> None:
        """Forget the stored features."""
        self._store = None

    def before_fit(self) -> None:
        """Forget what an interrupted fit may have left; say what can be told now already."""
        self._stop_feeding()
        model = self.learn.model
        # The modes of the layers are set later, and no image is read yet.
        reason = structure_reason(model) or self._callback_reason()
        reason = reason or next(filter(None, map(order_reason, self.dls.loaders[:2])), None)
        if reason is not None:
            self.reason = self._tell(reason, quietly=self._has_worked and _body_trains(model))

    def before_epoch(self) -> None:
        """Whether the features apply is seen when training begins; it may be cancelled before."""
        self._applies = False

    def before_train(self) -> None:
        """Decide, now that every layer is in its mode of training; compute what is missing."""
        with randomness_kept():
            self.reason = self._reason()
        self._applies = self.reason is None
        self._has_worked |= self._applies
        self._feed(0)

    def before_validate(self) -> None:
        """Validate on stored features if the epoch trained on them."""
        self._feed(1)

    def before_batch(self) -> None:
        """Let the model skip the body for these features."""
        if self._feeding:
            skip_once(self.learn.model, stored_layers(self.learn.model), self.learn.xb[0])

    def after_train(self) -> None:
        """Nothing is skipped between the passes."""
        self._stop_feeding()

    def after_validate(self) -> None:
        """Nothing is skipped between the passes."""
        self._stop_feeding()

    def _feed(self, split: int) -> None:
        """Put the stored features in place of the images if this pass is over one of the splits."""
        self._stop_feeding()
        if self._applies and self.learn.dl is self.dls.loaders[split]:
            with randomness_kept():  # a new loader draws its seed
                self.learn.dl = StoredLoader(self.learn.dl, self._store.splits[split])
            self._feeding = True

    def _stop_feeding(self) -> None:
        self._feeding = False
        unskip(self.learn.model)

    def _reason(self) -> str | None:
        """Why stored features cannot be used now; makes them where they can."""
        model = self.learn.model
        if reason := model_reason(model):
            self.clear()
            # What it was added for is done when the body begins to train: no news to the user.
            return self._tell(reason, quietly=self._has_worked and _body_trains(model))
        reason = self._callback_reason()
        if reason is None and not self._is_current():
            self.clear()
            reason = self._compute()
        return self._tell(reason)

    def _callback_reason(self) -> str | None:
        return callback_reason([cb for cb in self.learn.cbs if cb is not self])

    def _tell(self, reason: str | None, *, quietly: bool = False) -> str | None:
        if reason is not None and reason not in self._told and not quietly:
            warn_user(f"FrozenFeatures is idle because {reason}")
            self._told.add(reason)
        return reason

    def _is_current(self) -> bool:
        """True if the store holds what the body of now makes of the data of now."""
        if self._store is None:
            return False
        (objects, sizes), (before, sizes_before) = sources_of(self.learn), self._store.sources
        same = len(objects) == len(before) and sizes == sizes_before
        same = same and all(x is y for x, y in zip(objects, before, strict=True))
        same = same and precision_of(self.learn) == self._store.precision
        return same and self._store.checksums == checksums_of(self.learn.model[0])

    def _compute(self) -> str | None:
        """Fill the store, or say why not."""
        body, loaders = self.learn.model[0], self.dls.loaders[:2]
        if getattr(self.dls, "n_inp", 1) != 1:
            return "the model has several inputs"
        for dl in loaders:  # the same tensors for the same items whenever it is asked
            if reason := order_reason(dl) or trial_reason(dl):
                return reason
        first = partial(list, range(min(2, loaders[0].n)))
        few = loaders[0].new(shuffle=False, drop_last=False, num_workers=0, get_idxs=first)
        images = self.learn._set_device(few.one_batch())[0].as_subclass(Tensor)
        n_images = sum(dl.n for dl in loaders)
        if reason := body_reason(body, images) or self._size_reason(images, n_images=n_images):
            return reason
        # what a training step and a validation would have seen of the body
        contexts = [partial(step_of, self.learn), nullcontext]
        splits = [collect(self.learn, *pair) for pair in zip(loaders, contexts, strict=False)]
        if None in splits:
            return "a loader skips items"
        precision = precision_of(self.learn)
        self._store = Store(splits, sources_of(self.learn), checksums_of(body), precision)
        return None

    def _size_reason(self, images: Tensor, *, n_images: int) -> str | None:
        """Ask that the features of all images fit into the memory allowed."""
        with evaluating(self.learn.model) as model, torch.no_grad():
            needed = n_images * stored_output(model, images[:1]).nbytes
        if needed <= self.max_bytes:
            return None
        return (
            f"the features of {n_images} images would take {needed:,} bytes, more than "
            f"`max_bytes` = {self.max_bytes:,}"
        )


def _body_trains(model: nn.Module) -> bool:
    """Whether a weight of the body is to be trained."""
    body = next(model.children(), model)
    return any(parameter.requires_grad for parameter in body.parameters())
