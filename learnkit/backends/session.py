"""The session, which every backend offers: it turns images into features and logits."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from learnkit.backends.processor import instruction_set
from learnkit.errors import BundleCorruptError, PredictionError

Shape = tuple[int, int, int]
Value = tuple[str, bool, Sequence[Any]]  # its name, if it is of the right type, and its shape
Outputs = tuple[np.ndarray | None, np.ndarray | None]
CHANNELS_LAST = "channels last"
_LONGEST = 300  # characters of what a backend complains of


class Session(ABC):
    """A network ready to run in one backend; any number of threads may use it at once.

    Args:
        backend: its name.
        precision: its name.
        shape: (H, W, C) of an image.
        n_features: width D of the features; None if the network has no feature map.
        n_outputs: width of the logits; None if the network has no head.
        threads: processor threads one run may use.
        device: "cpu" or "cuda".

    Attributes:
        layout: of the memory that a live network runs in, where it is not torch's own.
    """

    layout = ""

    def __init__(
        self,
        backend: str,
        precision: str,
        *,
        shape: Shape,
        n_features: int | None,
        n_outputs: int | None,
        threads: int,
        device: str,
    ):
        self.backend, self.precision, self.shape = backend, precision, shape
        self.n_features, self.n_outputs = n_features, n_outputs
        self.threads, self.device = threads, device

    def run(self, images: np.ndarray) -> Outputs:
        """Features float32 (N, D), and logits float32 (N, C), of `images`; either may be None.

        Args:
            images: uint8 (N, H, W, C); N may be 0.

        Raises:
            PredictionError: images of another shape or type.
        """
        shape = getattr(images, "shape", ())
        if len(shape) != 4 or shape[1:] != self.shape or images.dtype != np.uint8:
            raise PredictionError(
                f"`images` is {getattr(images, 'dtype', type(images).__name__)} {tuple(shape)}; "
                f"this network takes uint8 (N, {', '.join(map(str, self.shape))})"
            )
        if len(images):
            return self._run(np.ascontiguousarray(images))
        widths = self.n_features, self.n_outputs
        features, logits = (None if n is None else np.zeros((0, n), np.float32) for n in widths)
        return features, logits

    def features(self, images: np.ndarray) -> np.ndarray:
        """Features float32 (N, D) of `images`, as `run` takes them.

        Raises:
            PredictionError: the network gives none.
        """
        features, _ = self.run(images)
        if features is None:
            raise PredictionError(self.no_features())
        return features

    def origin(self, batch: int) -> str:
        """The origin of the features that batches of so many images give; see `feature_origin`."""
        return feature_origin(self.backend, self.precision, self.device, batch, self.layout)

    def no_images(self) -> np.ndarray:
        """An empty batch uint8 (0, H, W, C)."""
        return np.zeros((0, *self.shape), np.uint8)

    def no_features(self) -> str:
        """Why the network gives no features."""
        return f"the {self.backend} network gives no features"

    @abstractmethod
    def _run(self, images: np.ndarray) -> Outputs:
        """`run` for at least one image, contiguous."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "Session":
        """Itself: nothing of it changes, and backends cannot copy what they have compiled."""
        return self

    def __repr__(self) -> str:
        return (
            f"<{self.backend} {self.precision} session, {self.n_features} features, "
            f"{self.threads} threads on {self.device}>"
        )


def feature_origin(
    backend: str, precision: str, device: str, batch: int | str, layout: str = ""
) -> str:
    """What decides the last bits of features, on one line: backend, machine, images in a batch.

    Of torch's own `layout` of memory nothing is said, as before there was another.
    """
    try:
        release = version(backend)
    except PackageNotFoundError:
        release = "unknown"
    where = f"cpu {instruction_set()}" if device == "cpu" else device
    how = f"{precision} {layout}".rstrip()
    return f"{backend} {release} {how}, {where}, batches of {batch}"


def brief(error: BaseException) -> str:
    r"""What a backend complains of, on one line that ends somewhere.

    >>> brief(RuntimeError("Exception from core.cpp:105:\n\n  Check 'n == 4' failed\n"))
    "Exception from core.cpp:105: Check 'n == 4' failed"
    """
    said = " ".join(str(error).split())
    return said if len(said) <= _LONGEST else f"{said[:_LONGEST]} ..."


def signature(inputs: Sequence[Value], outputs: Sequence[Value]) -> dict[str, Any]:
    """`shape`, `n_features` and `n_outputs` of a network with these inputs and outputs.

    Raises:
        BundleCorruptError: it is none that learnkit has written.
    """
    names = [[name for name, *_ in values] for values in (inputs, outputs)]
    shapes = [shape for _, _, shape in (*inputs, *outputs)]
    sound = (
        names[0] == ["image"]
        and names[1] in (["features"], ["features", "logits"])
        and all(right for _, right, _ in (*inputs, *outputs))
        and [len(shape) for shape in shapes] == [4, 2, 2][: len(shapes)]
        and all(isinstance(n, int) and n > 0 for shape in shapes for n in shape[1:])
    )
    if not sound:
        raise BundleCorruptError(
            f"a network with inputs {list(inputs)} and outputs {list(outputs)} is none of "
            "learnkit's: `image` uint8 (N, H, W, C) goes in, `features` and perhaps `logits` come "
            "out; export the model again"
        )
    image, features, *logits = shapes
    n_outputs = logits[0][1] if logits else None
    return {"shape": tuple(image[1:]), "n_features": features[1], "n_outputs": n_outputs}
