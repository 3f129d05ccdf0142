"""A predictor that runs in another backend or precision, and learns on as before."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

from learnkit.bundle.siblings import BaseFiles
from learnkit.continual.classifier import ContinualClassifier
from learnkit.continual.ood_detector import OodDetector
from learnkit.deploy.pickling import home_of
from learnkit.deploy.predictor import Predictor
from learnkit.errors import OptimizedModelError, OptimizeError
from learnkit.inference.batch import Result
from learnkit.optimize.conversion_report import ConversionReport
from learnkit.optimize.convert import Converted

if TYPE_CHECKING:
    from learnkit.data.preprocess import Preprocessing

_SETTABLE = ("device", "threads", "metadata", "class_names", "ood_threshold")
_KEPT = frozenset({"metadata", "digest", "probes", "measured", "report"})
_RULE = f"after optimisation only {', '.join(_SETTABLE)} may be set"
_REMEDY = "change the float32 model (load_learner(path, variant='float32')) and optimise it again"


class OptimizedPredictor(Predictor):
    """A predictor over a converted network; `optimize` and `load_learner` make it.

    It predicts, tells unusual images, learns and unlearns like any other, on the features of the
    converted network. What was decided when it was converted stays: only `device`, `threads`,
    `metadata`, `class_names` and `ood_threshold` may be set.

    Attributes:
        variant: backend and precision, such as "onnxruntime-int8".
        converted: the network's files.
        report: what the conversion cost; None if it was lost.
    """

    def __init__(
        self,
        converted: Converted,
        preprocessing: Preprocessing,
        classes: Sequence[str],
        *,
        head: ContinualClassifier | None,
        detector: OodDetector | None,
        multi_label: bool,
        threshold: float,
        base: BaseFiles,
        metadata: Mapping[str, Any] | None = None,
        device: str = "cpu",
        threads: int | None = None,
        network: Any = None,
        has_learned: bool = False,
    ):
        # Predictor's own is for networks of torch; what it sets is set here
        self.converted, self.variant, self.base = converted, converted.name, base
        self.preprocessing, self.multi_label = preprocessing, multi_label
        self.metadata: dict[str, Any] = dict(metadata or {})
        self.probes: Tensor | None = None
        self.report: ConversionReport | None = None
        self._head, self.detector = head, detector
        known = self.ood
        self.measured: Any = known and known.statistics
        self._has_learned, self._named = has_learned, tuple(classes)
        self._labelling = (tuple(classes), threshold)
        self.network = network or converted.open(preprocessing, threads=threads, device=device)
        self._ready = True

    @property
    def continual(self) -> ContinualClassifier | None:
        """The head that keeps class statistics; None if the model is not in the continual state."""
        return self._head

    @property
    def threads(self) -> int:
        """Processor threads one prediction may use."""
        return self.network.session.threads

    @property
    def converted_files(self) -> Mapping[str, bytes]:
        """What the network is in its backend, by ending; none for torch."""
        return self.converted.files

    @property
    def has_learned(self) -> bool:
        """Whether it knows other things, or other names, than the float32 weights' own head."""
        known = self.ood
        learned = known is not None and known.statistics is not self.measured
        return self._has_learned or learned or self.classes != self._named

    def load(self, source: Any) -> Tensor:
        """As `Predictor.load`, in memory laid out as backends read it: channels last."""
        return torch.from_numpy(self.preprocessing.pixels(source)).permute(2, 0, 1)

    def try_loaded(self, images: Sequence[Tensor]) -> list[Result]:
        """As `Predictor.try_loaded`; images that `load` gave are moved in one piece each."""
        channels_last = torch.stack([image.permute(1, 2, 0) for image in images])
        return self.try_tensors(channels_last.permute(0, 3, 1, 2))

    def set(  # type: ignore[override]
        self,
        *,
        device: str | torch.device | None = None,
        threads: int | None = None,
        metadata: Mapping[str, Any] | None = None,
        class_names: Sequence[str] | Mapping[str, str] | None = None,
        ood_threshold: float | None = None,
        **fixed: Any,
    ) -> OptimizedPredictor:
        """This predictor with something set; predictions under way end as they began.

        Args:
            device: where it runs: "cpu", or "cuda" where the backend has it.
            threads: processor threads one prediction may use.
            metadata: takes the place of the metadata.
            class_names: all new names, or `{old: new}`.
            ood_threshold: an image is flagged if its score is above it.
            **fixed: anything else is refused.

        Raises:
            OptimizedModelError: something else is to be set.
            BackendUnavailableError: the backend has nothing for `device`.
        """
        if fixed:
            _refuse(f"`{next(iter(fixed))}` cannot be set")
        if device is not None or threads is not None:
            self.__dict__["network"] = self.converted.open(
                self.preprocessing,
                threads=self.threads if threads is None else threads,
                device=str(self.network.device if device is None else device),
            )
        if class_names is not None or ood_threshold is not None:
            super().set(class_names=class_names, ood_threshold=ood_threshold)
        if metadata is not None:
            self.metadata = dict(metadata)
        return self

    def save(  # type: ignore[override]
        self,
        path: str | os.PathLike,
        *,
        others: Sequence[OptimizedPredictor] = (),
        variants: bool = True,
    ) -> str:
        """SHA-256 (hex) that pins the bundle written to `path`: float32 weights and this variant.

        It opens as this variant; `load_learner(path, variant="float32")` gives the float32 model,
        which knows what it knew when this one was made of it: if this one has learned since, a
        warning says so there. Other variants of the bundle it came from go along as they are.

        Args:
            path: absent, an empty folder or an earlier bundle, which is replaced as a whole.
            others: further variants of the same model that go into the bundle.
            variants: False leaves out those that were in the bundle it came from.

        Raises:
            ExportError: the float32 network cannot travel as data; others are of another model.
            BundleError: it was loaded from a bundle that is there no more.
            BundleWriteError: the folder could not be written; what stood there still does.
        """
        from learnkit.bundle.variants.write_variant import bundle_with_variants
        from learnkit.bundle.write import write_bundle

        as_written = home_of(self, path, "")
        files = bundle_with_variants(self, others, variants=variants)
        digest = write_bundle(path, files)
        self._home = as_written._replace(digest=digest)
        return digest

    def optimize(self, *_: Any, **__: Any) -> NoReturn:
        """Refused: what is optimised once cannot be again.

        Raises:
            OptimizeError: always; the message says what to do.
        """
        raise OptimizeError(
            f"this model is optimised already ({self.variant}); to convert it otherwise, take the "
            "float32 model: load_learner(path, variant='float32').optimize(...)"
        )

    def __setattr__(self, name: str, value: Any) -> None:
        if self.__dict__.get("_ready") and name not in _KEPT and not name.startswith("_"):
            _refuse(f"`{name}` cannot be set")
        super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        if name == "model":
            raise OptimizedModelError(
                "an optimised model has no network of torch to look into; for that take the "
                "float32 model: load_learner(path, variant='float32')"
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __repr__(self) -> str:
        return f"OptimizedPredictor({self.variant}, {self._about()})"


def _refuse(what: str) -> NoReturn:
    raise OptimizedModelError(f"{what}: {_RULE}; {_REMEDY}")
