"""Stored features of a frozen body: collected, fed in the order of a loader, the body skipped."""

import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from fastai.data.load import DataLoader
from fastai.torch_core import to_device
from torch import Tensor, nn

from learnkit.callback.cacheable import transforms_of
from learnkit.models.eval_mode import evaluating
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
