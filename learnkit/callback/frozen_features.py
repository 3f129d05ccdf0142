"""Head epochs on stored features: a frozen body sees every image once, not once per epoch.

Two things happen, each confined to a moment from which an exception cannot leave traces. When
training or validation begins, `learn.dl` (which fastai sets each time) becomes a loader that
gives stored features in the order of the real one. In each batch, the next call of the model skips
the body, and the skipping ends inside that call. `learn.model`, `learn.dls`, optimizer, metrics and
random numbers stay what they are.
"""

import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from fastai.callback.progress import ProgressCallback
from fastai.data.load import DataLoader
from fastai.torch_core import to_device
from torch import Tensor, nn

from learnkit.callback.base import TrainingCallback
from learnkit.callback.cacheable import (
    body_reason,
    callback_reason,
    model_reason,
    order_reason,
    structure_reason,
    transforms_of,
    trial_reason,
)
from learnkit.callback.training_precision import precision_of, step_of
from learnkit.errors import warn_user
from learnkit.models.eval_mode import evaluating, randomness_kept
from learnkit.report.progress import watched

Layer = tuple[nn.Module, str]  # a layer by its place: parent and name


@dataclass(frozen=True)
class StoredSplit:
    """Features and targets of one loader's items, in the order of its dataset, on the CPU.

    The kinds are fastai's tensor subclasses of the targets; metrics and losses may look at them.
    """

    features: Tensor
    targets: tuple[Tensor, ...]
    kinds: tuple[type, ...]

    def batch(self, indices: list[int]) -> tuple[Tensor, ...]:
        """Features and targets of these items, as the body and the loader would give them."""
        index = torch.as_tensor(indices)
        targets = zip(self.targets, self.kinds, strict=True)
        return self.features[index], *(t[index].as_subclass(kind) for t, kind in targets)


@dataclass
class Store:
    """The features of both splits, and what they were made from."""

    splits: list[StoredSplit]
    sources: tuple[list[Any], list[int]]
    checksums: list[int]
    precision: str


class StoredLoader(DataLoader):
    """Stored features in place of the items of `source`, in its order and drawing what it draws."""

    def __init__(self, source: DataLoader, split: StoredSplit):
        same = {name: getattr(source, name) for name in ("bs", "shuffle", "drop_last", "device")}
        super().__init__(source.dataset, n=source.n, indexed=True, **same)
        self.source, self.split = source, split

    def __len__(self) -> int:
        return len(self.source)

    def randomize(self) -> None:
        """Move the generator of `source`, so that its next pass is the one it would have been."""
        self.source.randomize()

    def get_idxs(self) -> list[int]:
        """The order `source` would go in."""
        return self.source.get_idxs()

    def create_batches(self, samps: Iterator[int]) -> Iterator[tuple[Tensor, ...]]:
        """Batches looked up whole."""
        for chunk in self.chunkify(samps):
            yield self.split.batch(list(chunk))


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


def stored_layers(model: nn.Sequential) -> list[Layer]:
    """The layers whose output is stored: the body, and the pooling the head begins with."""
    layers, head = [(model, next(iter(model._modules)))], model[1]
    if isinstance(head, nn.Sequential) and len(head) and _is_pool(head[0]):
        layers.append((head, next(iter(head._modules))))
    return layers


def stored_output(model: nn.Sequential, images: Tensor) -> Tensor:
    """What is stored for these images, a plain tensor: the output of the last of those layers."""
    images = images.as_subclass(Tensor)
    for parent, name in stored_layers(model):
        images = parent._modules[name](images)
    return images


def collect(
    learn: Any, dl: DataLoader, context: Callable[[Tensor], AbstractContextManager]
) -> StoredSplit | None:
    """Features and targets of all items of `dl` in one pass; None if it skips items.

    The body runs in the context of each batch of images.
    """
    everything = partial(list, range(dl.n))  # also where the loader draws its own order
    loader = dl.new(shuffle=False, drop_last=False, get_idxs=everything)
    store, targets, done = None, [], 0
    with evaluating(learn.model), torch.no_grad():
        for batch in watched(loader, None, hasattr(learn, "progress"), "features", "batches"):
            images, *y = to_device(batch, next(learn.model.parameters()).device)
            with context(images):
                features = stored_output(learn.model, images).float()
            if store is None:
                # filled as it goes: parts that are joined in the end need the memory twice
                store = torch.empty((dl.n, *features.shape[1:]), dtype=features.dtype)
                kinds = tuple(map(type, y))
            store[done : done + len(features)] = features.cpu()
            targets.append([t.cpu().as_subclass(Tensor) for t in y])
            done += len(features)
    joined = tuple(torch.cat(parts) for parts in zip(*targets, strict=True))
    return StoredSplit(store, joined, kinds) if done == dl.n else None


def sources_of(learn: Any) -> tuple[list[Any], list[int]]:
    """The objects the features are made from (compared by identity) and the lengths of the data."""
    loaders = learn.dls.loaders[:2]
    objects = [parent._modules[name] for parent, name in stored_layers(learn.model)]
    for dl in loaders:
        objects += [dl.dataset, *transforms_of(dl)]
    return objects, [len(dl.dataset) for dl in loaders]


def checksums_of(body: nn.Module) -> list[int]:
    """A checksum of every parameter and buffer."""
    # Of the values: fastai's optimizers write through `.data`, past torch's version counters.
    # CRC-32: it takes 10 ms for a ResNet-18, a fifth of SHA-256.
    values = (value.detach().cpu().contiguous() for value in body.state_dict().values())
    return [zlib.crc32(value.reshape(-1).view(torch.uint8).numpy()) for value in values]


def skip_once(model: nn.Sequential, layers: list[Layer], features: Tensor) -> None:
    """Let the next call of `model`, if it is with `features`, pass over `layers`.

    The model is itself again before anything of it runs; hooks on the model and on the other
    layers see an ordinary call.
    """

    def forward(x: Tensor) -> Tensor:
        unskip(model)
        if x is not features:  # an interrupted batch never made its call, this is another
            return model(x)
        with _as_identity(layers):
            return type(model).forward(model, x)

    forward.skips_body = True
    model.forward = forward


def unskip(model: nn.Module) -> None:
    """Take back a `skip_once` whose call has not come."""
    if hasattr(vars(model).get("forward"), "skips_body"):
        del model.forward


@contextmanager
def _as_identity(layers: list[Layer]) -> Iterator[None]:
    """Replace layers by the identity inside the block."""
    kept = [(parent, name, parent._modules[name]) for parent, name in layers]
    try:
        for parent, name, _ in kept:
            parent._modules[name] = nn.Identity()
        yield
    finally:
        for parent, name, layer in kept:
            parent._modules[name] = layer


def _is_pool(layer: nn.Module) -> bool:
    """True for a pooling layer without parameters, buffers or wishes of its own."""
    return (
        "pool" in type(layer).__name__.lower()
        and not layer.state_dict()
        and not any(m._forward_hooks or m._forward_pre_hooks for m in layer.modules())
    )
