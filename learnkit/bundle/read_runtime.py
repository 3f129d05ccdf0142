"""A variant's files as a session and all that belongs to it, without torch and without trust."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from learnkit.backends.registry import open_session
from learnkit.backends.session import Session
from learnkit.bundle.audit import HISTORY
from learnkit.bundle.schema import (
    CONFIG,
    check_schema,
    default_variant,
    newer_is_told,
    read_section,
)
from learnkit.bundle.scoring_file import stored_scoring
from learnkit.bundle.variant import (
    FLOAT32,
    Variant,
    check_variant,
    files_of,
    path_of,
    variant_names,
    warn_behind,
)
from learnkit.bundle.variant_probes import check_recorded
from learnkit.continual.fingerprints import Learned, codes_of, feature_hashes
from learnkit.errors import BundleCorruptError, BundleError
from learnkit.inference.model import Model
from learnkit.storage.formats import read_field
from learnkit.storage.read_folder import MANIFEST, Folder, read_folder
from learnkit.uncertainty.scoring import Scoring

_TORCH = "torch-"
# not read: predicting needs none of them
_FOR_LEARNING = ("state.safetensors", HISTORY, "report.json")


def read_runtime(
    path: str | os.PathLike,
    *,
    variant: str | None,
    sha256: str | None,
    threads: int | None,
    device: str,
) -> Model:
    """The variant of the bundle at `path` as a model without torch; see `load_runtime`."""
    name, section, folder = _files(path, variant, sha256)
    with newer_is_told(section):
        described = Variant.from_bytes(folder.bytes(path_of(name, "json")), name)
        session = _session(described, folder, threads, device)
        scoring = stored_scoring(described, folder)
        _check_fit(session, described, scoring)
        where = path_of(name, "probe.safetensors")
        check_recorded(session, folder.arrays(where), where, described.versions)
    warn_behind(path, section, name)
    return Model(
        session,
        described.recipe(),
        described.classes,
        class_ids=described.class_ids,
        multi_label=described.multi_label,
        threshold=described.threshold,
        stored=scoring,
        metadata=read_field(section, "metadata", dict, CONFIG),
        variant=described.name,
        digest=folder.digest,
    )


def read_session(
    path: str | os.PathLike, variant: str, sha256: str, *, threads: int | None, device: str
) -> Session:
    """The network of `variant` in the bundle at `path`, opened again.

    Raises:
        BundleError: the bundle is gone, or another one by now.
        BackendUnavailableError: the backend has nothing for `device`.
    """
    _, _, folder = _files(path, variant, sha256)
    described = Variant.from_bytes(folder.bytes(path_of(variant, "json")), variant)
    return _session(described, folder, threads, device)


def read_learned(path: str | os.PathLike, variant: str, sha256: str) -> Learned | None:
    """What `variant` of the bundle at `path` has learned; None of a head that keeps nothing of it.

    Raises:
        BundleError: the bundle is gone, or another one by now.
        BundleCorruptError: the state is no sound one.
    """
    where, about = path_of(variant, "state.safetensors"), path_of(variant, "json")
    folder = read_folder(path, sha256=sha256, wanted=(where, about))
    described = Variant.from_bytes(folder.bytes(about), variant)
    if (config := described.continual or described.ood) is None or where not in folder.files:
        return None
    settings = read_field(config, "settings", dict, about)
    found = _learned(
        folder.arrays(where),
        tuple(map(str, read_field(config, "class_names", list, about))),
        where,
        n_features=described.n_features,
        root=read_field(settings, "root", bool, about),
    )
    # an earlier version wrote none
    former = read_field({"former_names": {}, **config}, "former_names", dict, about)
    return replace(found, former_names=former)


def _learned(
    arrays: Mapping[str, np.ndarray],
    names: tuple[str, ...],
    where: str,
    *,
    n_features: int,
    root: bool,
) -> Learned:
    """The same from the tensors of the state's file, of which no more than this needs is looked at.

    Raises:
        BundleCorruptError: one is missing, or of another type or shape.
    """

    def tensor(name: str, dtype: Any, *shape: int) -> np.ndarray:
        found = arrays.get(name)
        fits = found is not None and found.dtype == dtype and found.shape[1:] == shape[1:]
        if not fits or shape[0] not in (-1, len(found)):
            raise BundleCorruptError(f"{where}: `{name}` is missing, or not of these classes")
        return found

    def sized(name: str, total: int) -> np.ndarray:
        sizes = tensor(name, np.int64, -1)
        if (sizes < 0).any() or sizes.sum() != total:
            raise BundleCorruptError(f"{where}: `{name}` does not add up to {total}")
        return sizes

    remembered = tensor("memory", np.int16, -1, n_features)
    sizes = sized("memory_sizes", len(remembered))
    validated = tensor("validation", np.int16, -1, n_features)
    counts = tensor("counts", np.int64, len(names))
    if "fingerprints" in arrays:
        codes = tensor("fingerprints", np.int64, -1)
        owners = sized("fingerprint_sizes", len(codes))[: len(names)]
        n_seen = int(owners.sum())  # what is behind these belongs to forgotten classes
        # the same 64 bits: torch wrote them as signed
        codes = codes[:n_seen].view(np.uint64)
    else:
        # a file has none where the remembered features say it all, and before there were any
        codes = codes_of(feature_hashes(remembered))
        n_seen = int(tensor("memory_copies", np.int64, len(remembered)).sum())
    return Learned(
        names,
        counts,
        codes,
        max(0, int(counts.sum()) - n_seen),
        codes_of(feature_hashes(validated)),
        root,
        remembered,
        np.repeat(np.arange(len(sizes)), sizes),
    )


def chosen_variant(asked: str | None, default: str | None, files: Collection[str]) -> str:
    """The variant to run: the one asked for, the default one, or the only one.

    Raises:
        BundleError: there is none such that runs without torch, or the choice is not clear.
    """
    if asked is not None and asked != FLOAT32:
        check_variant(asked, files)
    runnable = [name for name in variant_names(files) if not name.startswith(_TORCH)]
    if not runnable or (asked is not None and asked not in runnable):
        what = "the bundle has nothing" if asked is None else f"`variant`={asked!r} is nothing"
        there = f" (there are {', '.join(map(repr, runnable))})" if runnable else ""
        raise BundleError(
            f"{what} that runs without torch{there}: open it with load_learner, which needs torch, "
            "or add a variant with optimize(backend='onnxruntime') and save"
        )
    if (name := asked or default) in runnable:
        return name
    if len(runnable) > 1:
        raise BundleError(f"`variant` is missing: choose one of {', '.join(map(repr, runnable))}")
    return runnable[0]


def _files(
    path: str | os.PathLike, variant: str | None, sha256: str | None
) -> tuple[str, dict[str, Any], Folder]:
    """(name of the variant, what config.json says, the variant's files), all of one bundle."""
    while True:
        config = read_folder(path, sha256=sha256, wanted=(CONFIG,))
        check_schema(config.manifest, MANIFEST)
        section, listed = read_section(config.bytes(CONFIG)), config.manifest["files"]
        name = chosen_variant(variant, default_variant(section), listed)
        wanted = files_of(name, listed) - {path_of(name, ending) for ending in _FOR_LEARNING}
        try:
            return name, section, read_folder(path, sha256=config.digest, wanted=wanted)
        except BundleCorruptError:
            if sha256 is not None or read_folder(path, wanted=()).digest == config.digest:
                raise  # otherwise a writer replaced the bundle under our eyes: read the new one


def _session(variant: Variant, folder: Folder, threads: int | None, device: str) -> Session:
    files = variant.network_files(folder.files)
    given = {"threads": threads, "device": device, **variant.params}
    return open_session(variant.backend, variant.precision, files, **given)


def _check_fit(session: Session, variant: Variant, scoring: Scoring | None) -> None:
    """Raise unless network, description and scoring are about the same images and classes."""
    recipe, n_classes = variant.recipe(), len(variant.classes)
    pairs = {
        "images": (session.shape, (*recipe.size, recipe.channels)),
        "features": (session.n_features, variant.n_features),
    }
    # where the scoring gives the labels, networks end in features
    if scoring is None or not scoring.labels:
        pairs["classes"] = (session.n_outputs, n_classes)
    for what, (found, expected) in pairs.items():
        if found != expected:
            raise BundleCorruptError(
                f"the network of variant {variant.name!r} has {what} {found}, and its description "
                f"{expected}"
            )
