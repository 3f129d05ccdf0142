"""A variant of a bundle as a model that learns on; its files are not trusted."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from learnkit.backends.conversion import Converted
from learnkit.backends.session import Session
from learnkit.bundle.audit import HISTORY
from learnkit.bundle.read_float32 import read_module
from learnkit.bundle.schema import CONFIG, check_schema, default_variant, read_section
from learnkit.bundle.scoring_file import stored_scoring
from learnkit.bundle.siblings import BaseFiles
from learnkit.bundle.state import read_history, reading_state
from learnkit.bundle.variant import (
    FLOAT32,
    Variant,
    check_variant,
    files_of,
    learned_since,
    path_of,
)
from learnkit.bundle.variant_probes import check_recorded
from learnkit.continual.classifier import ContinualClassifier
from learnkit.continual.ood_detector import OodDetector
from learnkit.errors import BundleCorruptError, PredictionError
from learnkit.inference.model import Model
from learnkit.storage.formats import read_field
from learnkit.storage.read_folder import MANIFEST, Folder, read_folder
from learnkit.uncertainty.scoring import Scoring


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


def load_variant(
    path: str | os.PathLike, opened: Opened, *, device: str, threads: int | None
) -> Model:
    """The variant `which_variant` found in the bundle at `path`, checked before use.

    Raises:
        BundleCorruptError: damaged, altered, or made from other weights than those beside it.
        BundleProbeError: its backend gives other numbers here; both versions are named.
        BackendUnavailableError: its backend cannot run it here.
        MissingExtraError: its backend is not installed.
    """
    name, listed = opened.name, opened.folder.manifest["files"]
    own = files_of(name, listed)
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
    if variant.backend == "torch":
        model = read_module(path, sha256=folder.digest)
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
    head.restore_scoring(stored)


def _check_fit(session: Session, variant: Variant) -> None:
    pairs = {"features": (session.n_features, variant.n_features)}
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
