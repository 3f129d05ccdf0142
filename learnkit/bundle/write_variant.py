"""Variants as files of a bundle, beside the float32 weights they were made from."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from learnkit._version import versions
from learnkit.backends.network import channels_last
from learnkit.bundle.audit import HISTORY
from learnkit.bundle.probes import PROBE
from learnkit.bundle.schema import CONFIG
from learnkit.bundle.scoring_file import scoring_tensors
from learnkit.bundle.siblings import BaseFiles
from learnkit.bundle.state import history_bytes, trimmed_history
from learnkit.bundle.variant import Variant, path_of, variant_names, with_variants
from learnkit.bundle.variant_probes import PACKAGES, recorded
from learnkit.bundle.write_float32 import CARD
from learnkit.continual.knowledge import UNDO_LEVELS
from learnkit.errors import BundleCorruptError, BundleError, ExportError, warn_user
from learnkit.inference.model import Model
from learnkit.storage.formats import parse_tensors, tensors_to_bytes, to_json


def bundle_with_variants(
    base: BaseFiles,
    models: Sequence[Model],
    *,
    default: Model | None,
    variants: bool = True,
    history: int = UNDO_LEVELS,
) -> dict[str, bytes]:
    """All files of a bundle with these variants, by name.

    Args:
        base: the float32 model they were made of.
        models: over converted networks.
        default: the one of them that opens unless another is asked for; None for float32.
        variants: also those of the bundle that its float32 files are from.
        history: states before the last changes that go along, of every model.

    Raises:
        ExportError: the float32 network cannot travel as data; one is of another model, or of the
            same backend and precision as another one.
        BundleError: the float32 files are not where they were.
    """
    given = [model.frozen() for model in models]
    names = {model.variant for model in given}
    float32 = base.read(variants=variants, replaced=names)
    if history < UNDO_LEVELS:
        float32 |= {
            name: trimmed_history(data, name, history)
            for name, data in float32.items()
            if name.endswith(HISTORY)
        }
    files = dict(float32)
    for model in given:
        if model.siblings.weights != base.weights:
            raise ExportError(
                f"`others` has {model.variant!r} of another model; the variants of a bundle are "
                "all made from its own float32 weights"
            )
        files |= variant_files(model, float32, history)
    learned = {model.variant for model in given if model.has_learned}
    if lost := names.intersection(base.learned) - learned:
        warn_user(
            f"{', '.join(sorted(lost))} takes the place of a variant of this name that had learned "
            "more since it was made; save it elsewhere if that is to be kept"
        )
    learned |= {*base.learned} - names
    if default is None:
        return finished(files, learned)
    return finished(files, learned, default=default.variant, metadata=default.metadata)


def finished(
    files: Mapping[str, bytes],
    learned: Collection[str],
    *,
    default: str | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> dict[str, bytes]:
    """The files of a bundle, with what config.json and model card say of the variants among them.

    Args:
        files: of the float32 model, and of variants.
        learned: variants that know more than the float32 model does.
        default: the variant that opens; None for the float32 model.
        metadata: see `variant.with_variants`.

    Raises:
        BundleCorruptError: a variant is no sound one.
    """
    from learnkit.bundle.overview import with_variants_listed

    learned = set(variant_names(files)).intersection(learned)
    config = with_variants(files[CONFIG], learned=learned, default=default, metadata=metadata)
    files = {**files, CONFIG: config}
    try:
        card = with_variants_listed(files[CARD].decode(), files)
    except BundleError as error:
        raise BundleCorruptError(f"{error}; `save(path, variants=False)` leaves it out") from error
    return {**files, CARD: card.encode()}


def variant_files(
    model: Model, base: Mapping[str, bytes], history: int = UNDO_LEVELS
) -> dict[str, bytes]:
    """The files of one variant; `base` are those of the float32 model."""
    ood = model.ood
    config, tensors = (None, None) if ood is None else ood.state()
    found = {
        "json": _described(model, config).to_bytes(),
        **model.converted.files,
        "probe.safetensors": tensors_to_bytes(_probes(model, base)),
    }
    if ood is not None:
        found["state.safetensors"] = tensors_to_bytes(tensors)
        found["judge.safetensors"] = tensors_to_bytes(scoring_tensors(ood))
    if model.head is not None and (before := history_bytes(model.head, history)) is not None:
        found[HISTORY] = before
    if model.report is not None:
        found["report.json"] = to_json(model.report)
    return {path_of(model.variant, ending): data for ending, data in found.items()}


def _described(model: Model, config: dict | None) -> Variant:
    converted = model.converted
    return Variant(
        backend=converted.backend,
        precision=converted.precision,
        params=dict(converted.params),
        files=tuple(sorted(converted.files)),
        classes=tuple(model.classes),
        multi_label=model.multi_label,
        threshold=model.threshold,
        n_features=model.network.n_features,
        weights=model.siblings.weights,
        preprocessing=model.preprocessing.to_dict(),
        versions=versions(*PACKAGES.get(converted.backend, ())),
        continual=None if model.head is None else config,
        ood=None if model.detector is None else config,
        class_ids=model.class_ids[: len(model.classes)],
    )


def _probes(model: Model, base: Mapping[str, bytes]) -> dict[str, torch.Tensor]:
    """Probe images and what the variant makes of them."""
    was = parse_tensors(base[PROBE], PROBE)
    images = channels_last(was["images"])
    features, logits = model.network.run(images)
    now, before = (logits, was["logits"]) if "features" not in was else (features, was["features"])
    moved = np.abs(now - before.numpy()).max() / max(float(before.abs().max()), 1e-6)
    tensors = recorded(model.network, images, float(moved))
    return {name: torch.from_numpy(np.array(array, order="C")) for name, array in tensors.items()}
