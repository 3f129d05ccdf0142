"""A model without torch: a variant of a bundle that predicts in onnxruntime or OpenVINO.

Nothing here imports torch, and nothing that it imports does: numpy, Pillow, safetensors and the
backend are all that a process needs to answer.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from learnkit.bundle.audit import HISTORY, NO_HISTORY, HistoryFacts, history_facts
from learnkit.bundle.read_runtime import read_learned, read_runtime, read_session
from learnkit.bundle.variant import path_of
from learnkit.continual.change_report import AuditLog
from learnkit.continual.fingerprints import Learned
from learnkit.deploy.base import BasePredictor
from learnkit.deploy.home import home_of, pickled
from learnkit.deploy.hub_bundle import located
from learnkit.deploy.settable import check_settable
from learnkit.errors import BundleError, OptimizedModelError, PredictionError
from learnkit.inference.class_names import checked_metadata, checked_threshold, renamed
from learnkit.inference.model import Model
from learnkit.inference.tta import with_views
from learnkit.storage.read_folder import read_folder

_NEEDS_TORCH = frozenset(
    {
        *("extend", "subtract", "forget", "rename", "merge_classes", "merge", "undo"),
        *("features", "save", "optimize", "calibrate", "snapshot", "restore"),
        *("drop_snapshot", "push_to_hub"),
    }
)


def load_runtime(
    path: str | os.PathLike,
    *,
    variant: str | None = None,
    sha256: str | None = None,
    threads: int | None = None,
    device: str = "cpu",
    revision: str | None = None,
) -> RuntimePredictor:
    """The model in a variant of the bundle at `path`, for a process without torch.

    It predicts as the bundle's `load_learner(path, variant=)` does, to the bit. It cannot learn:
    that takes torch. Only the variant's files are read, and checked like all of a bundle: hashes,
    shapes, and probe images whose recorded answers must come out again.

    Args:
        path: folder written by `save` of an optimised predictor; or "hf-hub:OWNER/NAME", which is
            fetched into the cache of the Hugging Face hub (needs huggingface_hub).
        variant: its name, such as "onnxruntime-int8"; default the one the bundle was saved from,
            or the only one that runs without torch.
        sha256: what `save` returned: nothing else is accepted.
        threads: processor threads for one forward pass; default all this process may use.
        device: "cpu", or another that `learnkit.devices()` lists.
        revision: branch, tag or commit on the hub, also as "hf-hub:OWNER/NAME@REVISION".

    Raises:
        BundleNotFoundError: no bundle there, or no way to the hub.
        BundleError: no such variant, or none that runs without torch; the message has the remedy.
        BundleCorruptError: damaged, altered, or not the one pinned by `sha256`.
        BundleVersionError: written in a format newer than this learnkit reads.
        BundleProbeError: the network does not give the recorded answers here.
        MissingExtraError: the backend is not installed; the message has the pip line.
    """
    path = located(path, revision=revision, sha256=sha256)
    record = read_runtime(path, variant=variant, sha256=sha256, threads=threads, device=device)
    predictor = RuntimePredictor(record)
    # set again, as the setter notes the state that `is_changed` compares with
    predictor.digest = record.digest
    predictor._home = home_of(predictor, path, str(record.digest))
    return predictor


def opened_runtime(
    path: str, digest: str, variant: str | None, threads: int | None, device: str
) -> RuntimePredictor:
    """What a pickle of a `RuntimePredictor` calls."""
    return load_runtime(path, sha256=digest, variant=variant, threads=threads, device=device)


class RuntimePredictor(BasePredictor):
    """Verbs over a model in a backend of its own; needs no torch.

    Predicting changes nothing, so threads may share it. Probabilities are numpy arrays. Class names
    and the threshold for images out of distribution can be `set`; nothing can be learned here.

    Args:
        record: the model; its session runs without torch.

    Raises:
        PredictionError: a threshold outside (0, 1).
    """

    needs_torch = False

    def __init__(self, record: Model):
        checked_threshold(record.threshold, len(record.classes))
        super().__init__(record)

    @property
    def session(self) -> Any:
        """What runs the network."""
        return self.record.network

    @property
    def continual(self) -> None:
        """None: no class statistics are kept here that could grow."""
        return None

    @property
    def ood_threshold(self) -> float | None:
        """Score above which an image is flagged; None if the model detects none."""
        stored = self.record.stored
        return None if stored is None else stored.threshold.value

    @property
    def audit(self) -> AuditLog:
        """What was changed, when, how many images and what it led to; see `Predictor.audit`.

        It is read from the bundle each time; empty if the model never changed.

        Raises:
            BundleError: the bundle is gone, or another one by now.
        """
        return self._history().log

    @property
    def snapshots(self) -> tuple[str, ...]:
        """The names that `restore` knows, where there is torch; read as `audit` is."""
        return self._history().names

    def _learned(self) -> Learned | None:
        if self._home is None or self.variant is None:
            return None
        try:
            found = read_learned(self._home.path, self.variant, self._home.digest)
        except BundleError:  # gone, or another one by now: nobody knows
            return None
        # `set` may have renamed the classes here; those of a detector are not the model's
        labels = self.record.stored is not None and self.record.stored.labels
        return replace(found, names=self.classes) if labels and found else found

    def _history(self) -> HistoryFacts:
        if self._home is None or self.variant is None:
            return NO_HISTORY
        where = path_of(self.variant, HISTORY)
        found = read_folder(self._home.path, sha256=self._home.digest, wanted=(where,)).files
        return history_facts(found[where], where) if where in found else NO_HISTORY

    @property
    def threads(self) -> int:
        """Processor threads that one forward pass may use."""
        return self.session.threads

    @property
    def device(self) -> str:
        """Where the network runs."""
        return self.session.device

    def set(
        self,
        *,
        class_names: Sequence[str] | Mapping[str, str] | None = None,
        ood_threshold: float | None = None,
        metadata: Mapping[str, Any] | None = None,
        threads: int | None = None,
        device: str | None = None,
        tta: int | None = None,
        **unknown: Any,
    ) -> RuntimePredictor:
        """This predictor with something set; predictions under way end as they began.

        Args:
            class_names: all of them, or `{old: new}`.
            ood_threshold: an image is flagged if its score is above it.
            metadata: takes the place of what there was.
            threads: processor threads for one forward pass. The network is read again from its
                bundle, as it is for `device`.
            device: where it runs: "cpu", or another that `learnkit.devices()` lists.
            tta: views of an image from which all verbs predict, see `predict_batch`.
            **unknown: anything else is refused.

        Raises:
            PredictionError: another number of names, an unknown old name, a name twice; a threshold
                for a model that detects no images out of distribution.
            UncertaintyError: a threshold that is no finite number.
            BundleError: the bundle is gone, or another one by now.
            BackendUnavailableError: the backend has nothing for `device`.
            OptimizedModelError: `threads` or `device` of a network that came from no bundle; what
                is fixed after optimisation.
        """
        check_settable(unknown, optimized=True)
        changes: dict[str, Any] = {}
        if (
            class_names is not None
            and (names := renamed(self.classes, class_names)) != self.classes
        ):
            changes["names"] = names
        if ood_threshold is not None:
            if self.record.stored is None:
                raise PredictionError(
                    f"`ood_threshold`={ood_threshold} is for models that detect images out of "
                    "distribution; this one cannot"
                )
            changes["stored"] = self.record.stored.with_threshold(ood_threshold)
        if threads is not None or device is not None:
            changes["network"] = self._opened(threads, device)
        if metadata is not None:
            changes["metadata"] = checked_metadata(metadata)
        if tta is not None:
            changes["metadata"] = with_views(changes.get("metadata", self.metadata), tta)
        self.record = self.record.replace(**changes)  # at once: no thread sees a half of it
        return self

    def _opened(self, threads: int | None, device: str | None) -> Any:
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

    def __reduce__(self) -> tuple[Any, ...]:
        return opened_runtime, pickled(self)

    def __getattr__(self, name: str) -> Any:
        if name in _NEEDS_TORCH:
            raise OptimizedModelError(
                f"`{name}` needs torch, and this model was loaded to predict without it: install "
                "torch and learnkit as a whole, and open the bundle with load_learner"
            )
        return super().__getattr__(name)

    def __dir__(self) -> Collection[str]:
        return [name for name in super().__dir__() if name not in _NEEDS_TORCH]

    def __repr__(self) -> str:
        what = self.variant or f"{self.session.backend}-{self.session.precision}"
        return f"RuntimePredictor({what}, {self._about()})"
