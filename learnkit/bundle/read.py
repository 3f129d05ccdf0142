"""A bundle read as a model: the weights as trained or a variant, none of its files trusted.

Reading is strict both ways: names, shapes, types, finiteness; then the probe images must give what
was recorded.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from learnkit._version import __version__, listed, versions
from learnkit.backends.conversion import Converted
from learnkit.backends.session import Session
from learnkit.backends.torch_session import (
    Network,
    channels_last,
    checked_device,
    comparable,
    tolerance_of,
)
from learnkit.bundle.audit import HISTORY
from learnkit.bundle.probes import PROBE, Probes, read_probes
from learnkit.bundle.schema import (
    CONFIG,
    Contents,
    check_schema,
    default_variant,
    newer_is_told,
    read_section,
)
from learnkit.bundle.scoring_file import stored_scoring
from learnkit.bundle.siblings import BaseFiles, siblings_at
from learnkit.bundle.state import (
    OOD,
    STATE,
    read_detector,
    read_head,
    read_history,
    reading_state,
)
from learnkit.bundle.timm_layout import from_files
from learnkit.bundle.variant import (
    FLOAT32,
    Variant,
    check_variant,
    files_of,
    learned_since,
    path_of,
    warn_behind,
)
from learnkit.bundle.variant_probes import check_recorded
from learnkit.continual.classifier import ContinualClassifier
from learnkit.continual.ood_detector import OodDetector
from learnkit.errors import (
    BundleCorruptError,
    BundleError,
    BundleProbeError,
    LearnkitError,
    PredictionError,
    warn_user,
)
from learnkit.inference.class_names import checked_threshold
from learnkit.inference.model import Model
from learnkit.inference.prediction import logits_of
from learnkit.interpret.normalization import Normalization, note_conventions
from learnkit.models.rebuild import rebuild, skeleton
from learnkit.storage.formats import read_field
from learnkit.storage.read_folder import MANIFEST, Folder, read_folder
from learnkit.uncertainty.scoring import Scoring

T = TypeVar("T")
_TELLING = ("torch", "timm")


def read(
    path: str | os.PathLike,
    *,
    variant: str | None = None,
    sha256: str | None = None,
    device: str = "cpu",
    threads: int | None = None,
) -> Model:
    """The model in the bundle at `path`; arguments and errors as of `load_learner`."""
    opened = which_variant(path, variant, sha256)
    with newer_is_told(opened.section):
        if opened.name == FLOAT32:
            model = read_float32(path, sha256=sha256, device=device)
        else:
            model = load_variant(path, opened, device=device, threads=threads)
    warn_behind(path, opened.section, opened.name)
    return model


class Opened(NamedTuple):
    """A bundle's configuration, and which variant of it is meant."""

    folder: Folder
    section: dict[str, Any]
    name: str


def which_variant(path: str | os.PathLike, asked: str | None, sha256: str | None) -> Opened:
    """The bundle's configuration and the variant meant: `asked`, its default, or "float32".

    Raises:
        BundleError: there is no such variant; the message lists those there are.
    """
    folder = read_folder(path, sha256=sha256, wanted=(CONFIG,))
    check_schema(folder.manifest, MANIFEST)
    section = read_section(folder.bytes(CONFIG))
    name = (default_variant(section) or FLOAT32) if asked is None else asked
    if name != FLOAT32:
        check_variant(name, folder.manifest["files"])
    return Opened(folder, section, name)


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
        BackendUnavailableError: torch has nothing for `device` here.
    """
    checked_device(device)  # before weights are read
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
        # the card's measures are of just these; the first change drops them from the card
        measured=None if head is None else head.statistics,
        siblings=siblings_at(path, folder),
        digest=folder.digest,
    )
    # of states of format 1 other classifiers were derived
    alike = (contents.continual or {}).get("format") != 1
    check_probe_answers(model, probes, contents.versions, derived_alike=alike)
    return model


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
        # first: another version may derive other logits from these features, but no other features
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
        with_, here = listed(written_with, *_TELLING), _versions_here()
        remedy = (
            "these are alike, so that it is the processor, another build of one of them, or an "
            "altered network: load it where it was exported, or export the model again here"
            if with_ == here
            else "install those versions, or export the model again with these"
        )
        raise BundleProbeError(
            f"the network gives other {what} here than where it was exported: they differ by "
            f"{difference:.3g}, {tolerance:.3g} is allowed. Exported with {with_}; here {here}: "
            f"{remedy}"
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
        # from headers alone: a sparse file of 40 GB is refused before it is read
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


def _versions_here() -> str:
    return listed(versions(*_TELLING), *_TELLING)


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


def load_variant(
    path: str | os.PathLike, opened: Opened, *, device: str, threads: int | None
) -> Model:
    """The variant `which_variant` found in the bundle at `path`, as a model that learns on.

    Raises:
        BundleCorruptError: damaged, altered, or made from other weights than those beside it.
        BundleProbeError: its backend gives other numbers here; both versions are named.
        BackendUnavailableError: its backend cannot run it here.
        MissingExtraError: its backend is not installed.
    """
    name = opened.name
    own = files_of(name, opened.folder.manifest["files"])
    folder = read_folder(path, sha256=opened.folder.digest, wanted={CONFIG, *own})
    variant = Variant.from_bytes(folder.bytes(path_of(name, "json")), name)
    base = BaseFiles.left_at(path, folder, without=own)
    if variant.weights != base.weights:
        raise BundleCorruptError(
            f"the variant {name!r} was made from other float32 weights than those beside it"
        )
    head = _head(variant, folder)
    is_detector = isinstance(head, OodDetector)
    converted, recipe = _converted(variant, folder, path), variant.recipe()
    try:
        model = Model(
            converted.open(recipe, threads=threads, device=device),
            recipe,
            variant.classes,
            class_ids=variant.class_ids,
            multi_label=variant.multi_label,
            threshold=variant.threshold,
            head=None if is_detector else head,
            detector=head if is_detector else None,
            metadata=read_field(opened.section, "metadata", dict, CONFIG),
            measured=None if head is None else head.statistics,
            variant=name,
            converted=converted,
            report=_report(folder, name),
            siblings=base,
            knew_more=name in learned_since(opened.section),
            digest=folder.digest,
        )
    except PredictionError as error:  # a network for images of another size
        raise BundleCorruptError(f"the variant {name!r} does not fit together: {error}") from error
    _check_fit(model.network, variant)
    where = path_of(name, "probe.safetensors")
    check_recorded(model.network, folder.arrays(where), where, variant.versions)
    return model


def _converted(variant: Variant, folder: Folder, path: str | os.PathLike) -> Converted:
    model, files = None, variant.network_files(folder.files)
    is_open = variant.continual is not None
    # such a variant has no network of its own: torch casts the bundle's weights
    if variant.backend == "torch":
        model = _module(*_opened(path, folder.digest))  # without the head, which is the variant's
    kind = variant.backend, variant.precision, variant.params
    return Converted(*kind, files, model, continual=is_open)


def _head(variant: Variant, folder: Folder) -> ContinualClassifier | None:
    """The head, or the detector beside a trained one, on the variant's own features."""
    config = variant.ood if variant.continual is None else variant.continual
    if config is None:
        return None
    where = path_of(variant.name, "state.safetensors")
    tensors = folder.tensors(where)
    kind = OodDetector if variant.continual is None else ContinualClassifier
    with reading_state(where):
        head = kind.from_state(config, tensors)
    if head.n_features != variant.n_features or head.knowledge.derived is None:
        raise BundleCorruptError(
            f"{where} is of {head.n_features} features and {len(head.classes)} classes; the "
            f"variant has {variant.n_features} features"
        )
    if kind is ContinualClassifier and head.classes != variant.classes:
        raise BundleCorruptError(f"{where} is of other classes than its description")
    _restore_scoring(head, stored_scoring(variant, folder), where)
    if (before := path_of(variant.name, HISTORY)) in folder.files:
        head.history = read_history(folder.bytes(before), before, head)
    return head.eval()


def _restore_scoring(head: ContinualClassifier, stored: Scoring, where: str) -> None:
    """Let `head` score to the bit as when it was written, and as `load_runtime` does."""
    own = head.scoring
    for name in ("root", "labels"):
        if getattr(own, name) != getattr(stored, name):
            raise BundleCorruptError(f"{where} and the stored scores have another `{name}`")
    if own.weight.shape != stored.weight.shape:
        raise BundleCorruptError(
            f"{where} is of {own.weight.shape} weights, the stored scores of {stored.weight.shape}"
        )
    # not what follows from the statistics here: another processor solves to other last bits
    head.restore_scoring(stored)


def _check_fit(session: Session, variant: Variant) -> None:
    pairs = {"features": (session.n_features, variant.n_features)}
    # under a head in the continual state networks end in features
    if variant.continual is None:
        pairs["outputs"] = (session.n_outputs, len(variant.classes))
    for what, (found, expected) in pairs.items():
        if found != expected:
            raise BundleCorruptError(
                f"the network of variant {variant.name!r} has {found} {what}, and its description "
                f"{expected}"
            )


def _report(folder: Folder, name: str) -> dict[str, Any] | None:
    """The conversion report, if it is a sound one."""
    where = path_of(name, "report.json")
    if where not in folder.files:
        return None
    from learnkit.optimize.conversion_report import ConversionReport

    return ConversionReport.from_dict(folder.json(where), where).to_dict()
