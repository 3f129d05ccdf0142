"""The float32 model of a bundle, read without trusting any of its files.

Reading is strict both ways: names, shapes, types, finiteness; then the probe images must give the
recorded logits.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from learnkit._version import __version__, listed, versions
from learnkit.backends.network import Network, channels_last, comparable, tolerance_of
from learnkit.bundle.audit import HISTORY
from learnkit.bundle.probes import PROBE, Probes, read_probes
from learnkit.bundle.schema import CONFIG, Contents, check_schema
from learnkit.bundle.siblings import siblings_at
from learnkit.bundle.state import (
    OOD,
    STATE,
    read_detector,
    read_head,
    read_history,
)
from learnkit.bundle.timm_layout import from_files
from learnkit.continual.serialization import FORMAT
from learnkit.errors import (
    BundleCorruptError,
    BundleError,
    BundleProbeError,
    LearnkitError,
    warn_user,
)
from learnkit.inference.class_names import checked_threshold
from learnkit.inference.model import Model
from learnkit.inference.prediction import logits_of
from learnkit.interpret.normalization import Normalization, note_conventions
from learnkit.models.rebuild import rebuild, skeleton
from learnkit.storage.read_folder import MANIFEST, Folder, read_folder

T = TypeVar("T")
_TELLING = ("torch", "timm")


def _versions_here() -> str:
    return listed(versions(*_TELLING), *_TELLING)


def read_float32(
    path: str | os.PathLike, *, sha256: str | None = None, device: str = "cpu"
) -> Model:
    """The weights as trained in the bundle at `path`, with all that belongs to them.

    Its files, names, shapes, types and values are checked; then the probe images must give what
    was recorded.

    Raises:
        BundleNotFoundError: there is none.
        BundleCorruptError: damaged, altered, or not the one pinned by `sha256`.
        BundleVersionError: written in a format newer than this learnkit reads.
        BundleProbeError: the network does not give what was recorded here.
        BundleError: the versions of torch and timm here cannot build the network.
    """
    folder, contents, blank = _opened(path, sha256)
    recipe, continual = contents.preprocessing, contents.continual is not None
    probes = read_probes(
        folder.tensors(PROBE),
        recipe,
        len(contents.classes),
        continual=continual,
    )
    module = _module(folder, contents, blank)
    head, detector = None, None
    names = None if continual else contents.classes
    note_conventions(module, Normalization(recipe.mean, recipe.std), names)
    if continual:
        tensors = folder.tensors(STATE)
        width, classes = module[0].n_features, contents.classes
        head = read_head(contents.continual, tensors, contents.spec, width, classes)
        if HISTORY in folder.files:
            head.history = read_history(folder.bytes(HISTORY), HISTORY, head)
        module.append(head)
    if contents.ood is not None:
        tensors = folder.tensors(OOD)
        detector = read_detector(contents.ood, tensors, module[0].n_features)
    model = Model(
        Network(module.to(device), recipe, owned=True, continual=continual),
        recipe,
        contents.classes,
        class_ids=contents.class_ids,
        multi_label=contents.multi_label,
        threshold=checked_threshold(contents.threshold, len(contents.classes)),
        head=head,
        detector=detector,
        metadata=dict(contents.metadata),
        probes=probes.images,
        measured=None if head is None else head.statistics,
        siblings=siblings_at(path, folder),
        digest=folder.digest,
    )
    written = FORMAT if contents.continual is None else contents.continual.get("format")
    check_probe_answers(model, probes, contents.versions, derived_alike=written == FORMAT)
    return model


def read_module(path: str | os.PathLike, *, sha256: str) -> nn.Module:
    """The network alone of the bundle at `path`, without a head that lives outside."""
    return _module(*_opened(path, sha256))


def check_probe_answers(
    model: Model, probes: Probes, written_with: Mapping[str, str], *, derived_alike: bool = True
) -> None:
    """Raise BundleProbeError unless `model` answers the probes as it did at export.

    Another version of learnkit, or one that wrote states of another format (not `derived_alike`),
    may derive another classifier from the same statistics: that is a warning, as long as the
    features are the same.
    """
    images, logits, tolerance, features = probes
    try:
        if features is not None:
            found = torch.from_numpy(model.network.features(channels_last(images)))
            _compare("features", found, features, tolerance_of(features), written_with)
        if not model.knows_classes:
            return
        found = comparable(logits_of(model, channels_last(images)))
    except (RuntimeError, LearnkitError) as error:
        if isinstance(error, BundleProbeError):
            raise
        raise BundleProbeError(f"the network does not run here: {error}") from error
    try:
        _compare("logits", found, logits, tolerance, written_with)
    except BundleProbeError as error:
        alike = derived_alike and written_with.get("learnkit") == __version__
        if features is None or alike:
            raise
        told = "from the same class statistics; labels and scores may differ a little"
        warn_user(f"{error}, {told}")


def _compare(
    what: str, found: Tensor, recorded: Tensor, tolerance: float, written_with: Mapping[str, str]
) -> None:
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
            f"{listed(written_with, *_TELLING)}; here {_versions_here()}: install those versions,"
            " or export the model again with these"
        )


def _opened(
    path: str | os.PathLike, sha256: str | None
) -> tuple[Folder, Contents, nn.Module | None]:
    """The files, what they describe, and the network without memory, if it has such a form.

    Nothing is read before it is known that the weights are those of the network described.
    """
    while True:
        described = read_folder(path, sha256=sha256, wanted=(CONFIG,))
        check_schema(described.manifest, MANIFEST)
        contents = Contents.from_bytes(described.bytes(CONFIG))
        blank = _built(contents, _weights(described.empty_tensors, contents), skeleton)
        try:
            return read_folder(path, sha256=described.digest), contents, blank
        except BundleCorruptError:
            if sha256 is not None or read_folder(path, wanted=()).digest == described.digest:
                raise  # otherwise a writer replaced the bundle under our eyes: read the new one


def _module(folder: Folder, contents: Contents, blank: nn.Module | None) -> nn.Module:
    return _built(contents, _weights(folder.tensors, contents), partial(rebuild, model=blank))


def _weights(
    read: Callable[[str], Mapping[str, Tensor]], contents: Contents
) -> Mapping[str, Tensor]:
    """The tensors of the network, by their names in it."""
    return from_files({name: read(name) for name in contents.layout}, contents.layout)


def _built(contents: Contents, weights: Mapping[str, Tensor], build: Callable[..., T]) -> T:
    spec = contents.spec
    try:
        return build(spec, weights)
    except BundleCorruptError:
        raise
    except Exception as error:  # the libraries raise nearly anything for arguments they do not take
        raise BundleError(
            f"{spec.source}:{spec.arch} cannot be built here ({_versions_here()}): {error}"
        ) from error
