"""Sessions of torch: a live network, left as it is found, or a copy of it made to run faster.

The copy has another memory layout, half precision, or compiled code.
"""

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

from learnkit.backends.processor import n_threads
from learnkit.backends.registry import check_backend
from learnkit.backends.session import CHANNELS_LAST, Outputs, Session, brief
from learnkit.data.preprocess import Preprocessing
from learnkit.errors import BackendUnavailableError, ExportError
from learnkit.models.eval_mode import evaluating, is_channels_last, set_channels_last, torch_threads

_TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# a new thread begins with the number of torch's threads that any set last: one sets it at a time
_THREADS = threading.Lock()
# by body, and weakly: a lock lives as long as the network it guards
_LOCKS: WeakKeyDictionary[nn.Module, threading.Lock] = WeakKeyDictionary()
_LOCKS_GUARD = threading.Lock()
_RELATIVE_TOLERANCE = 1e-3  # another CPU or thread count moves logits by 1e-5 of the largest


def checked_device(device: Any) -> Any:
    """`device`, if torch can compute on it here.

    Raises:
        BackendUnavailableError: it cannot, or knows no such device.
    """
    try:
        # back to the processor, too: the device "meta" takes numbers and gives none
        torch.empty(0, device=device).cpu()
    # a torch without CUDA raises AssertionError for it
    except (RuntimeError, AssertionError, TypeError) as error:
        found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        here = ["cpu", *(name for name, there in found.items() if there)]
        raise BackendUnavailableError(
            f"`device` is {str(device)!r}, which torch cannot use here; there is "
            f"{' and '.join(map(repr, here))}"
        ) from error
    return device


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
        # torch warns of arrays that are read-only: writing through their tensors is undefined
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


class TorchSession(Session):
    """A copy of a live network in torch; the network itself stays as it is.

    The body runs in `precision`; normalising, pooling and head in float32.

    Args:
        model: `Sequential(body, head)` whose body gives a feature map (N, D, H', W').
        precision: "float32", "bfloat16", or "float16" (on "cuda" only).
        preprocessing: size, channels and normalisation of the images.
        continual: leave the head out: it lives outside, so that it can grow.
        channels_last: keep maps in memory pixel by pixel, which most networks run faster with.
        compile: let torch compile the body: faster later, but its first run takes up to minutes,
            again for a second size of batch, and needs a C++ compiler.
        threads: processor threads one run may use; None for what torch is set to. Torch has one
            such number for the whole process: another one is set for the time of each run.
        device: "cpu" or "cuda".

    Raises:
        BackendUnavailableError: this machine cannot do it; the message names what it can.
        ExportError: the network has no body to read features from.
    """

    def __init__(
        self,
        model: nn.Module,
        precision: str,
        preprocessing: Preprocessing,
        *,
        continual: bool,
        channels_last: bool = True,
        compile: bool = False,
        threads: int | None = None,
        device: str = "cpu",
    ):
        check_backend("torch", precision, device)
        if device == "cuda" and not torch.cuda.is_available():
            raise BackendUnavailableError("`device`='cuda'; torch finds no such device here")
        self.preprocessing, self.compiled = preprocessing, compile
        self.channels_last = channels_last
        self._type = _TYPES[precision]
        self._body, self._head = self._copies(model, continual, device)
        if compile:
            self._body = torch.compile(self._body, options={"freezing": True})
        self.device, self.threads = device, threads and n_threads(threads)
        features, logits = self._tried()
        super().__init__(
            "torch",
            precision,
            shape=(*preprocessing.size, preprocessing.channels),
            n_features=features.shape[1],
            n_outputs=None if logits is None else logits.shape[1],
            threads=self.threads or torch.get_num_threads(),
            device=device,
        )

    def _copies(
        self, model: nn.Module, continual: bool, device: str
    ) -> tuple[Any, nn.Module | None]:
        """Body in `precision` and head in float32, nobody else's, in eval mode."""
        lengths = (1, 2) if continual else (2,)
        if not isinstance(model, nn.Sequential) or len(model) not in lengths:
            raise ExportError(
                f"the network is a {type(model).__name__} without a body to read features from; "
                "build it with cnn_learner or create_cnn_model"
            )
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        body = set_channels_last(copy.deepcopy(model[0]), False).eval().requires_grad_(False)
        body = body.to(device, self._type).to(memory_format=layout)
        if continual:
            return body, None
        head = copy.deepcopy(model[1]).eval().requires_grad_(False)
        return body, head.to(device, torch.float32)

    def _tried(self) -> Outputs:
        """The outputs for one black image: whatever cannot run says so now."""
        image = np.zeros((1, *self.preprocessing.size, self.preprocessing.channels), np.uint8)
        try:
            return self._run(image)
        except RuntimeError as error:
            if not self.compiled:
                raise
            raise BackendUnavailableError(
                f"torch cannot compile the network ({brief(error)}); it needs a C++ "
                "compiler. Use compile=False"
            ) from error

    def _run(self, images: np.ndarray) -> Outputs:
        with _threads(self.threads), torch.no_grad():
            features, logits = self._outputs(torch.from_numpy(images))
        return features.cpu().numpy(), None if logits is None else logits.cpu().numpy()

    def _outputs(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        x = self.preprocessing.normalize(images.to(self.device).permute(0, 3, 1, 2))
        x = x.to(self._type) if self.channels_last else x.to(self._type).contiguous()
        feature_map = self._body(x).to(torch.float32)
        if feature_map.ndim != 4:
            raise ExportError(
                f"the body gives {tuple(feature_map.shape)}; features are read off a map (N,D,H,W)"
            )
        features = adaptive_avg_pool2d(feature_map, 1).flatten(1)
        return features, None if self._head is None else self._head(feature_map)


@contextmanager
def _threads(wanted: int | None) -> Iterator[None]:
    """Torch set to `wanted` threads for a while, one caller at a time; None leaves it alone."""
    if wanted is None:
        yield
        return
    with _THREADS, torch_threads(wanted):
        yield


def _numpy(values: Tensor) -> np.ndarray:
    return values.to("cpu", torch.float32, copy=True).numpy()


def default_probes(preprocessing: Preprocessing, n: int = 2) -> Tensor:
    """Noise uint8 (n, channels, H, W), the same every time: probes where no images are at hand."""
    # one of its own: the caller's random numbers go on as they would have
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
