"""A bundle's files as a network and all that belongs to it, without trusting any of them.

Reading is strict both ways: names, shapes, types, finiteness; then the probe images must give the
recorded logits.
"""

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from learnkit._version import __version__, listed, versions
from learnkit.backends.network import comparable, tolerance_of
from learnkit.bundle.probes import PROBE, Probes, read_probes
from learnkit.bundle.schema import CONFIG, Contents, check_schema
from learnkit.bundle.siblings import Companions, companions_at
from learnkit.bundle.state import OOD, STATE, read_detector, read_head
from learnkit.bundle.timm_layout import from_files
from learnkit.continual.ood_detector import OodDetector
from learnkit.deploy.predictor import Predictor
from learnkit.errors import BundleCorruptError, BundleError, BundleProbeError, LearnkitError
from learnkit.models.rebuild import rebuild
from learnkit.models.spec import ModelSpec
from learnkit.storage.read_folder import MANIFEST, read_folder

_TELLING = ("torch", "timm")


def _versions_here() -> str:
    return listed(versions(*_TELLING), *_TELLING)


@dataclass(frozen=True)
class Bundle:
    """What a bundle holds, read and checked; `check_probes` is left to whoever runs the model."""

    contents: Contents
    model: nn.Module
    probes: Probes
    digest: str
    detector: OodDetector | None = None
    companions: Companions | None = None

    def check_probes(self, predictor: Predictor) -> None:
        """Raise BundleProbeError unless `predictor` answers the probes as it did at export.

        Another version of learnkit may derive another classifier from the same statistics: that is
        a warning, as long as the features are the same.
        """
        images, logits, tolerance, features = self.probes
        try:
            if features is not None:
                found = predictor.network.features(images)
                self._compare("features", found, features, tolerance_of(features))
            found = comparable(predictor.logits(images))
        except (RuntimeError, LearnkitError) as error:
            if isinstance(error, BundleProbeError):
                raise
            raise BundleProbeError(f"the network does not run here: {error}") from error
        try:
            self._compare("logits", found, logits, tolerance)
        except BundleProbeError as error:
            if features is None or self.contents.versions.get("learnkit") == __version__:
                raise
            told = "from the same class statistics; labels and scores may differ a little"
            warnings.warn(f"{error}, {told}", UserWarning, stacklevel=3)

    def _compare(self, what: str, found: Tensor, recorded: Tensor, tolerance: float) -> None:
        if found.shape != recorded.shape:
            raise BundleProbeError(
                f"the network gives {what} of shape {tuple(found.shape)}; {tuple(recorded.shape)} "
                "were recorded"
            )
        difference = (found - recorded).abs().max().item()
        if not difference <= tolerance:  # so written that NaN fails
            raise BundleProbeError(
                f"the network gives other {what} here than where it was exported: they differ by "
                f"{difference:.3g}, {tolerance:.3g} is allowed. Exported with "
                f"{listed(self.contents.versions, *_TELLING)}; here {_versions_here()}: install "
                "those versions, or export the model again with these"
            )


def read_bundle(path: str | os.PathLike, *, sha256: str | None = None) -> Bundle:
    """The bundle at `path`: its files, names, shapes, types and values are checked.

    Raises:
        BundleNotFoundError: there is none.
        BundleCorruptError: damaged, altered, or not the one pinned by `sha256`.
        BundleVersionError: written in a format newer than this learnkit reads.
        BundleError: the versions of torch and timm here cannot build the network.
    """
    folder = read_folder(path, sha256=sha256)
    check_schema(folder.manifest, MANIFEST)
    contents = Contents.from_bytes(folder.bytes(CONFIG))
    continual = contents.continual is not None
    probes = read_probes(
        folder.tensors(PROBE),
        contents.preprocessing,
        len(contents.classes),
        continual=continual,
    )
    files = {name: folder.tensors(name) for name in contents.layout}
    model = _model(contents.spec, from_files(files, contents.layout))
    if continual:
        tensors = folder.tensors(STATE)
        width, classes = model[0].n_features, contents.classes
        model.append(read_head(contents.continual, tensors, contents.spec, width, classes))
    detector = None
    if contents.ood is not None:
        detector = read_detector(contents.ood, folder.tensors(OOD), model[0].n_features)
    beside = companions_at(path, folder)
    return Bundle(contents, model, probes, folder.digest, detector, beside)


def _model(spec: ModelSpec, state: Mapping[str, Tensor]) -> nn.Module:
    try:
        return rebuild(spec, state)
    except BundleCorruptError:
        raise
    except Exception as error:  # the libraries raise nearly anything for arguments they do not take
        raise BundleError(
            f"{spec.source}:{spec.arch} cannot be built here ({_versions_here()}): {error}"
        ) from error
