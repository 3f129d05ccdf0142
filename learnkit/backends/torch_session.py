"""Networks in torch itself: another memory layout, half precision, or compiled code."""

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from learnkit.backends.processor import n_threads
from learnkit.backends.registry import check_backend
from learnkit.backends.session import Outputs, Session, brief
from learnkit.data.preprocess import Preprocessing
from learnkit.data.torch_threads import torch_threads
from learnkit.errors import BackendUnavailableError, ExportError
from learnkit.models.eval_mode import set_channels_last

_TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_THREADS = threading.Lock()


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
