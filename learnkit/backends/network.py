"""The session of a live torch network: it runs for any number of threads, and is left as found."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from learnkit.backends.session import CHANNELS_LAST, Outputs, Session
from learnkit.data.preprocess import Preprocessing
from learnkit.models.eval_mode import evaluating, is_channels_last

_LOCKS: WeakKeyDictionary[nn.Module, threading.Lock] = WeakKeyDictionary()
_LOCKS_GUARD = threading.Lock()
_RELATIVE_TOLERANCE = 1e-3  # another CPU or thread count moves logits by 1e-5 of the largest


class Network(Session):
    """A live torch network in float32, nobody's copy: what it learns meanwhile counts at once.

    A model that belongs to its predictor alone is put into eval mode once and runs without locks. A
    shared one may be in training mode: it is put into eval mode for each pass, one pass at a time,
    and left as it was found.

    Args:
        model: gives logits for normalised float32 images (N, channels, H, W).
        preprocessing: says how images are normalised.
        owned: nobody else uses `model`.
        continual: the head lives outside, and only the body of `Sequential(body, head)` runs.
    """

    def __init__(
        self,
        model: nn.Module,
        preprocessing: Preprocessing,
        *,
        owned: bool,
        continual: bool = False,
    ):
        self.model, self.preprocessing, self.continual = model, preprocessing, continual
        self.backend, self.precision = "torch", "float32"
        self.shape = (*preprocessing.size, preprocessing.channels)
        self._lock = None
        if owned:
            model.eval()
        else:
            # one lock for whoever runs this body: heads over it may differ
            shared = model[0] if self.has_body else model
            with _LOCKS_GUARD:
                self._lock = _LOCKS.setdefault(shared, threading.Lock())

    @property
    def device(self) -> str:  # type: ignore[override]
        """Where the model runs now."""
        return str(next((p.device for p in self.model.parameters()), "cpu"))

    @property
    def threads(self) -> int:  # type: ignore[override]
        """Processor threads one run may use: those torch is set to."""
        return torch.get_num_threads()

    @property
    def layout(self) -> str:  # type: ignore[override]
        """The memory layout its body runs in, where it is not torch's own."""
        last = self.has_body and self.device == "cpu" and is_channels_last(self.model[0])
        return CHANNELS_LAST if last else ""

    @property
    def n_features(self) -> int | None:  # type: ignore[override]
        """Width D of the features; None if the network has no feature map."""
        return self._widths[0]

    @property
    def n_outputs(self) -> int | None:  # type: ignore[override]
        """Width of the logits; None if the head lives outside."""
        return self._widths[1]

    @cached_property
    def _widths(self) -> tuple[int | None, int | None]:
        features, logits = self._run(np.zeros((1, *self.shape), np.uint8))
        return (
            None if features is None else features.shape[1],
            None if logits is None else logits.shape[-1],
        )

    @property
    def has_body(self) -> bool:
        """Whether the model is a `Sequential(body, head)`."""
        return isinstance(self.model, nn.Sequential) and len(self.model) == 2

    def no_features(self) -> str:
        """Why the network gives no features."""
        if not self.has_body:
            return (
                f"the network is a {type(self.model).__name__} without a body to read features "
                "from; build it with cnn_learner or create_cnn_model"
            )
        return "the body gives no feature map; features are read off a map (N,D,H,W)"

    def _run(self, images: np.ndarray) -> Outputs:
        x = torch.from_numpy(images if images.flags.writeable else images.copy())
        # in one layout, or else in the other: networks give other last bits in each
        x = x.permute(0, 3, 1, 2).to(self.device)
        x = self.preprocessing.normalize(x if self.layout else x.contiguous())
        if self._lock is None:
            with torch.inference_mode():
                return self._outputs(x)
        # no_grad: tensors a shared network caches in inference mode could not be trained with later
        with self._lock, evaluating(self.model), torch.no_grad():
            return self._outputs(x)

    @contextmanager
    def alone(self) -> Iterator[nn.Module]:
        """The model, for passes with gradients; nobody else runs a shared one meanwhile."""
        with self._lock or nullcontext():
            yield self.model

    def _outputs(self, x: Tensor) -> Outputs:
        if not self.has_body:
            return None, _numpy(self.model(x))
        feature_map = self.model[0](x)
        logits = None if self.continual else _numpy(self.model[1](feature_map))
        if feature_map.ndim == 2 and not getattr(self.model[0], "needs_pool", True):
            return _numpy(feature_map), logits  # fastai's mark of a body that pools itself
        if feature_map.ndim != 4:
            return None, logits
        return _numpy(adaptive_avg_pool2d(feature_map, 1).flatten(1)), logits

    def __deepcopy__(self, memo: dict[int, Any]) -> Network:
        """The session of a copy of the network; locks cannot be copied."""
        model = copy.deepcopy(self.model, memo)
        owned = self._lock is None
        return Network(model, self.preprocessing, owned=owned, continual=self.continual)


def _numpy(values: Tensor) -> np.ndarray:
    return values.to("cpu", torch.float32, copy=True).numpy()


def default_probes(preprocessing: Preprocessing, n: int = 2) -> Tensor:
    """Noise uint8 (n, channels, H, W), the same every time: probes where no images are at hand."""
    generator = torch.Generator().manual_seed(0)
    shape = (n, preprocessing.channels, *preprocessing.size)
    return torch.randint(256, shape, dtype=torch.uint8, generator=generator)


def channels_last(images: Tensor) -> np.ndarray:
    """`images` uint8 (N, C, H, W) as sessions take them: (N, H, W, C), contiguous."""
    return images.detach().cpu().permute(0, 2, 3, 1).contiguous().numpy()


def tolerance_of(values: Tensor) -> float:
    """How far `values` may be off elsewhere."""
    return _RELATIVE_TOLERANCE * max(1.0, values.abs().max().item())


def comparable(logits: Tensor) -> Tensor:
    """`logits` with 0 for the -inf of classes that can never win: files hold finite numbers."""
    return torch.where(logits.isneginf(), 0.0, logits)
