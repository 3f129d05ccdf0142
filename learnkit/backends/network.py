"""A network that runs for any number of threads and is left as it was found."""

import threading
from collections.abc import Callable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from learnkit.backends.session import Outputs, Session
from learnkit.data.preprocess import Preprocessing
from learnkit.errors import PredictionError
from learnkit.models.eval_mode import evaluating

_LOCKS: WeakKeyDictionary[nn.Module, threading.Lock] = WeakKeyDictionary()
_LOCKS_GUARD = threading.Lock()


class Network:
    """The forward passes of a model: images in, outputs or pooled features out.

    A model that belongs to its predictor alone is put into eval mode once and runs without locks. A
    shared one may be in training mode: it is put into eval mode for each pass, one pass at a time,
    and left as it was found.

    Args:
        model: gives outputs for normalised float32 images (N, channels, H, W).
        preprocessing: says how images are normalised.
        owned: nobody else uses `model`.
    """

    def __init__(self, model: nn.Module, preprocessing: Preprocessing, *, owned: bool):
        self.model, self.preprocessing = model, preprocessing
        self._lock = None if owned else _lock_of(model)
        if owned:
            model.eval()

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return next((p.device for p in self.model.parameters()), torch.device("cpu"))

    def outputs(self, images: Tensor, n_classes: int) -> Tensor:
        """The model's outputs float32 (N, n_classes) for `images` uint8 (N, channels, H, W).

        Raises:
            PredictionError: the model gives another shape.
        """
        x = self._normalized(images)
        outputs = self._run(self.model, x) if len(x) else x.new_empty(0, n_classes)
        return _checked(outputs, len(x), n_classes)

    def features(self, images: Tensor) -> Tensor:
        """The body's feature map averaged over space, float32 (N, D), for `images` uint8.

        Raises:
            PredictionError: the model is no `Sequential(body, head)` with a feature map.
        """
        self._check_body()
        x = self._normalized(images)
        feature_map = self._run(self.model[0], x if len(x) else x.new_zeros(1, *x.shape[1:]))
        return _pooled(feature_map)[: len(x)]

    def outputs_and_features(self, images: Tensor, n_classes: int) -> tuple[Tensor, Tensor]:
        """What `outputs` and `features` give, of one pass. Raises like both."""
        self._check_body()
        if not len(images):
            return self.outputs(images, n_classes), self.features(images)
        x, kept = self._normalized(images), []

        def both(x: Tensor) -> Tensor:
            kept.append(self.model[0](x))
            return self.model[1](kept[0])

        return _checked(self._run(both, x), len(x), n_classes), _pooled(kept[0])

    def _check_body(self) -> None:
        if not isinstance(self.model, nn.Sequential) or len(self.model) != 2:
            raise PredictionError(
                f"the network is a {type(self.model).__name__} without a body to read features "
                "from; build it with cnn_learner or create_cnn_model"
            )

    def no_images(self) -> Tensor:
        """An empty batch uint8 (0, channels, H, W)."""
        recipe = self.preprocessing
        return torch.zeros(0, recipe.channels, *recipe.size, dtype=torch.uint8)

    def _normalized(self, images: Tensor) -> Tensor:
        return self.preprocessing.normalize(images.to(self.device))

    def _run(self, module: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """`module(x)` in eval mode, without gradients; the model's modes are left as found."""
        if self._lock is None:
            with torch.inference_mode():
                return module(x)
        # no_grad: tensors a shared network caches in inference mode could not be trained with later
        with self._lock, evaluating(self.model), torch.no_grad():
            return module(x)


def _checked(outputs: Tensor, n: int, n_classes: int) -> Tensor:
    """`outputs` float32 (n, n_classes), if that is their shape."""
    if outputs.shape != (n, n_classes):
        raise PredictionError(
            f"the network gives outputs of shape {tuple(outputs.shape)} for {n} images and "
            f"{n_classes} classes; it must give ({n}, {n_classes})"
        )
    return outputs.to("cpu", torch.float32, copy=True)


def _pooled(feature_map: Tensor) -> Tensor:
    """A feature map averaged over space, float32 (N, D)."""
    if feature_map.ndim != 4:
        raise PredictionError(
            f"the body gives {tuple(feature_map.shape)}; features are read off a map (N,D,H,W)"
        )
    return adaptive_avg_pool2d(feature_map, 1).flatten(1).to("cpu", torch.float32, copy=True)


def _lock_of(model: nn.Module) -> threading.Lock:
    """The one lock of a shared model, whichever predictor asks."""
    with _LOCKS_GUARD:
        return _LOCKS.setdefault(model, threading.Lock())


_RELATIVE_TOLERANCE = 1e-3  # another CPU or thread count moves logits by 1e-5 of the largest


def default_probes(preprocessing: Preprocessing, n: int = 2) -> Tensor:
    """Noise uint8 (n, channels, H, W), the same every time: probes where no images are at hand."""
    generator = torch.Generator().manual_seed(0)
    shape = (n, preprocessing.channels, *preprocessing.size)
    return torch.randint(256, shape, dtype=torch.uint8, generator=generator)


def tolerance_of(values: Tensor) -> float:
    """How far `values` may be off elsewhere."""
    return _RELATIVE_TOLERANCE * max(1.0, values.abs().max().item())


def comparable(logits: Tensor) -> Tensor:
    """`logits` with 0 for the -inf of classes that can never win: files hold finite numbers."""
    return torch.where(logits.isneginf(), 0.0, logits)


LAYOUT = torch.channels_last  # of images in memory that need not be moved for a session


class SessionNetwork:
    """The forward passes of a session, in the shape of `Network`: no locks, any number of threads.

    Args:
        session: runs the network.
        preprocessing: what prepared the images; normalising them is the session's own part.

    Raises:
        PredictionError: the session takes images of another size.
    """

    def __init__(self, session: Session, preprocessing: Preprocessing):
        self.session, self.preprocessing = session, preprocessing
        wanted = (*preprocessing.size, preprocessing.channels)
        if session.shape != wanted:
            raise PredictionError(
                f"the {session.backend} network takes images (H, W, C) {session.shape}; its "
                f"preprocessing makes them {wanted}"
            )

    @property
    def device(self) -> torch.device:
        """Where the network runs."""
        return torch.device(self.session.device)

    def features(self, images: Tensor) -> Tensor:
        """Pooled features float32 (N, D) of `images` uint8 (N, channels, H, W)."""
        return torch.from_numpy(self._run(images)[0])

    def outputs(self, images: Tensor, n_classes: int) -> Tensor:
        """The network's logits float32 (N, n_classes) for `images` uint8 (N, channels, H, W).

        Raises:
            PredictionError: it has no head, or one for another number of classes.
        """
        return self.outputs_and_features(images, n_classes)[0]

    def outputs_and_features(self, images: Tensor, n_classes: int) -> tuple[Tensor, Tensor]:
        """What `outputs` and `features` give, of one pass. Raises like `outputs`."""
        given = self.session.n_outputs
        if given is None:
            raise PredictionError("the network has no head: it gives features, not logits")
        if given != n_classes:
            raise PredictionError(f"the network gives {given} logits for {n_classes} classes")
        features, logits = map(torch.from_numpy, self._run(images))
        return logits, features

    def no_images(self) -> Tensor:
        """An empty batch uint8 (0, channels, H, W)."""
        recipe = self.preprocessing
        return torch.zeros(0, recipe.channels, *recipe.size, dtype=torch.uint8)

    def __repr__(self) -> str:
        return f"SessionNetwork({self.session!r})"

    def _run(self, images: Tensor) -> Outputs:
        channels_last = images.detach().cpu().permute(0, 2, 3, 1).contiguous()
        return self.session.run(channels_last.numpy())
