"""A model without torch: a variant of a bundle that predicts in onnxruntime or OpenVINO.

Nothing here imports torch, and nothing that it imports does: numpy, Pillow, safetensors and the
backend are all that a process needs to answer.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from learnkit.backends.session import Session
from learnkit.bundle.variants.read_runtime import read_runtime, read_session
from learnkit.data.preprocess import Preprocessing
from learnkit.deploy.many import Predicting
from learnkit.deploy.pickling import ByPath, home_of
from learnkit.errors import OptimizedModelError, PredictionError
from learnkit.inference.batch import Result
from learnkit.inference.class_names import checked_threshold, renamed
from learnkit.inference.digest import Identified
from learnkit.inference.scoring import judged
from learnkit.uncertainty.scoring import Scoring

_NEEDS_TORCH = frozenset(
    {
        *("extend", "subtract", "forget", "rename", "merge_classes", "merge", "undo"),
        *("evaluate", "features", "save", "optimize"),
    }
)


def load_runtime(
    path: str | os.PathLike,
    *,
    variant: str | None = None,
    sha256: str | None = None,
    threads: int | None = None,
    device: str = "cpu",
) -> RuntimePredictor:
    """The model in a variant of the bundle at `path`, for a process without torch.

    It predicts as the bundle's `load_learner(path, variant=)` does. It cannot learn: that takes
    torch. Only the variant's files are read, and checked like all of a bundle: hashes, shapes, and
    probe images whose recorded answers must come out again.

    Args:
        path: folder written by `save` of an optimised predictor.
        variant: its name, such as "onnxruntime-int8"; default the one the bundle was saved from,
            or the only one that runs without torch.
        sha256: what `save` returned: nothing else is accepted.
        threads: processor threads for one forward pass; default all this process may use.
        device: "cpu", or "cuda" where the backend has it.

    Raises:
        BundleNotFoundError: no bundle there.
        BundleError: no such variant, or none that runs without torch; the message has the remedy.
        BundleCorruptError: damaged, altered, or not the one pinned by `sha256`.
        BundleVersionError: written in a format newer than this learnkit reads.
        BundleProbeError: the network does not give the recorded answers here.
        MissingExtraError: the backend is not installed; the message has the pip line.
    """
    found = read_runtime(path, variant=variant, sha256=sha256, threads=threads, device=device)
    described = found.variant
    predictor = RuntimePredictor(
        found.session,
        described.recipe(),
        described.classes,
        judge=found.judge,
        multi_label=described.multi_label,
        threshold=described.threshold,
        metadata=found.metadata,
        variant=described.name,
    )
    predictor.digest = found.digest
    predictor._home = home_of(predictor, path, found.digest)
    return predictor


class RuntimePredictor(Predicting, Identified, ByPath):
    """A network in a backend of its own, with preprocessing and class names; needs no torch.

    Predicting changes nothing, so threads may share it. Probabilities are numpy arrays. Class names
    and the threshold for unusual images can be `set`; nothing can be learned here. It pickles as
    the path of its bundle, see `ByPath`.

    Args:
        session: the network.
        preprocessing: from a file to the network's input.
        classes: the C class names.
        judge: what tells classes from features, or unusual images; None for a trained head alone.
        multi_label: an image may have several labels, or none.
        threshold: a label counts above this probability, if `multi_label`.
        metadata: what travelled in the bundle.
        variant: name of the variant it is, if any.
    """

    _needs_torch = False
    continual = None  # no class statistics are kept here that could grow

    def __init__(
        self,
        session: Session,
        preprocessing: Preprocessing,
        classes: Sequence[str],
        *,
        judge: Scoring | None = None,
        multi_label: bool = False,
        threshold: float = 0.5,
        metadata: Mapping[str, Any] | None = None,
        variant: str | None = None,
    ):
        self.session, self.preprocessing = session, preprocessing
        self.multi_label, self.threshold = multi_label, checked_threshold(threshold)
        self.metadata, self.variant = dict(metadata or {}), variant
        self._now = (tuple(classes), judge)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the probabilities."""
        return self._now[0]

    @property
    def detects_ood(self) -> bool:
        """Whether predictions say how unusual an image is."""
        return self._now[1] is not None

    @property
    def ood_threshold(self) -> float | None:
        """Score above which an image is flagged; None if the model cannot tell."""
        judge = self._now[1]
        return None if judge is None else judge.threshold.value

    @property
    def threads(self) -> int:
        """Processor threads that one forward pass may use."""
        return self.session.threads

    @property
    def device(self) -> str:
        """Where the network runs."""
        return self.session.device

    @property
    def state(self) -> tuple[Any, ...]:
        """What `set` replaces."""
        return (self._now,)

    def load(self, source: Any) -> np.ndarray:
        """An image as the network takes it, uint8 (H, W, channels).

        Raises:
            ImageReadError: the image cannot be read; the message names it.
        """
        return self.preprocessing.pixels(source)

    def try_loaded(self, images: Sequence[np.ndarray]) -> list[Result]:
        """For each image that `load` gave its prediction, or a PredictionError."""
        if not len(images):
            return []
        classes, judge = self._now
        features, logits = self.session.run(np.stack(list(images)))
        return judged(
            judge,
            features,
            logits,
            classes,
            multi_label=self.multi_label,
            threshold=self.threshold,
        )

    def set(
        self,
        *,
        class_names: Sequence[str] | Mapping[str, str] | None = None,
        ood_threshold: float | None = None,
        metadata: Mapping[str, Any] | None = None,
        threads: int | None = None,
        device: str | None = None,
    ) -> RuntimePredictor:
        """This predictor with something set; predictions under way end as they began.

        Args:
            class_names: all of them, or `{old: new}`.
            ood_threshold: an image is flagged if its score is above it.
            metadata: takes the place of what there was.
            threads: processor threads for one forward pass. The network is read again from its
                bundle, as it is for `device`.
            device: where it runs: "cpu", or "cuda" where the backend has it.

        Raises:
            PredictionError: another number of names, an unknown old name, a name twice; a threshold
                for a model that cannot tell unusual images.
            UncertaintyError: a threshold that is no finite number.
            BundleError: the bundle is gone, or another one by now.
            BackendUnavailableError: the backend has nothing for `device`.
            OptimizedModelError: `threads` or `device` of a network that came from no bundle.
        """
        classes, judge = self._now
        names = classes if class_names is None else renamed(classes, class_names)
        if ood_threshold is not None:
            if judge is None:
                raise PredictionError(
                    f"`ood_threshold`={ood_threshold} is for models that can tell unusual images; "
                    "this one cannot"
                )
            judge = judge.with_threshold(ood_threshold)
        if threads is not None or device is not None:
            self.session = self._opened(threads, device)
        if names != classes or judge is not self._now[1]:
            self._now = (names, judge)  # at once: no thread sees one without the other
        self.metadata = self.metadata if metadata is None else dict(metadata)
        return self

    def _opened(self, threads: int | None, device: str | None) -> Session:
        if self._home is None or self.variant is None:
            raise OptimizedModelError(
                "`threads` and `device` are set by opening the network again, and this one came "
                "from no bundle; give them when you open its session"
            )
        return read_session(
            self._home.path,
            self.variant,
            self._home.digest,
            threads=self.threads if threads is None else threads,
            device=self.device if device is None else device,
        )

    def __getattr__(self, name: str) -> Any:
        if name in _NEEDS_TORCH:
            raise OptimizedModelError(
                f"`{name}` needs torch, and this model was loaded to predict without it: install "
                "torch and learnkit as a whole, and open the bundle with load_learner"
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __dir__(self) -> Collection[str]:
        return [name for name in super().__dir__() if name not in _NEEDS_TORCH]

    def __repr__(self) -> str:
        what = self.variant or f"{self.session.backend}-{self.session.precision}"
        return f"RuntimePredictor({what}, {self._about()})"
