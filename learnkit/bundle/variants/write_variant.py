"""An optimised predictor as files of a bundle, beside the float32 weights it was made from."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from learnkit._version import versions
from learnkit.bundle.probes import PROBE
from learnkit.bundle.schema import CONFIG
from learnkit.bundle.scoring_file import judge_tensors
from learnkit.bundle.variant import Variant, path_of, variant_names, with_variants
from learnkit.bundle.variants.overview import with_variants_listed
from learnkit.bundle.variants.recorded import PACKAGES, recorded
from learnkit.bundle.write import CARD
from learnkit.continual.ood_detector import OodDetector
from learnkit.errors import BundleCorruptError, BundleError, ExportError, warn_user
from learnkit.storage.formats import parse_tensors, tensors_to_bytes, to_json

if TYPE_CHECKING:
    from learnkit.optimize.optimized import OptimizedPredictor


def bundle_with_variants(
    predictor: OptimizedPredictor,
    others: Sequence[OptimizedPredictor] = (),
    *,
    variants: bool = True,
) -> dict[str, bytes]:
    """All files of a bundle that opens as `predictor`, by name.

    Args:
        predictor: the variant that opens by default.
        others: further ones.
        variants: also those of the bundle that its float32 files are from.

    Raises:
        ExportError: the float32 network cannot travel as data; `others` are of another model, or
            of the same backend and precision.
        BundleError: the float32 files are not where they were.
    """
    base, given = predictor.base, [*map(_as_it_is, (*others, predictor))]
    names = {one.variant for one in given}
    base_files = base.read(variants=variants, anew=names)
    files = dict(base_files)
    for one in given:
        if one.base.weights != base.weights:
            raise ExportError(
                f"`others` has {one.variant!r} of another model; the variants of a bundle are all "
                "made from its own float32 weights"
            )
        files |= variant_files(one, base_files)
    learned = {one.variant for one in given if one.has_learned}
    if lost := names.intersection(base.learned) - learned:
        warn_user(
            f"{', '.join(sorted(lost))} takes the place of a variant of this name that had learned "
            "more since it was made; save it elsewhere if that is to be kept"
        )
    learned |= {*base.learned} - names
    return finished(files, learned, default=predictor.variant, metadata=given[-1].metadata)


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
        metadata: see `knowing.with_variants`.

    Raises:
        BundleCorruptError: a variant is no sound one.
    """
    learned = set(variant_names(files)).intersection(learned)
    config = with_variants(files[CONFIG], learned=learned, default=default, metadata=metadata)
    files = {**files, CONFIG: config}
    try:
        card = with_variants_listed(files[CARD].decode(), files)
    except BundleError as error:
        raise BundleCorruptError(f"{error}; `save(path, variants=False)` leaves it out") from error
    return {**files, CARD: card.encode()}


def _as_it_is(predictor: OptimizedPredictor) -> OptimizedPredictor:
    """A predictor that knows what this one knows now, whoever changes this one meanwhile."""
    frozen = copy.copy(predictor)
    vars(frozen).update(
        _head=copy.deepcopy(predictor.continual), detector=copy.deepcopy(predictor.detector)
    )
    return frozen


def variant_files(predictor: OptimizedPredictor, base: dict[str, bytes]) -> dict[str, bytes]:
    """The files of one variant; `base` are those of the float32 model."""
    name, head = predictor.variant, predictor.ood
    state = None if head is None else head.state()
    found = {
        "json": _described(predictor, state and state[0]).to_bytes(),
        **predictor.converted.files,
        "probe.safetensors": tensors_to_bytes(_probes(predictor, base)),
    }
    if head is not None and state is not None:
        labels = predictor.continual is not None
        found["state.safetensors"] = tensors_to_bytes(state[1])
        found["judge.safetensors"] = tensors_to_bytes(judge_tensors(head, labels=labels))
    if predictor.report is not None:
        found["report.json"] = to_json(predictor.report.to_dict())
    return {path_of(name, ending): data for ending, data in found.items()}


def _described(predictor: OptimizedPredictor, config: dict | None) -> Variant:
    converted, is_detector = predictor.converted, isinstance(predictor.ood, OodDetector)
    return Variant(
        backend=converted.backend,
        precision=converted.precision,
        params=dict(converted.params),
        files=tuple(sorted(converted.files)),
        classes=tuple(predictor.classes),
        multi_label=predictor.multi_label,
        threshold=predictor.threshold,
        n_features=predictor.network.session.n_features,
        weights=predictor.base.weights,
        preprocessing=predictor.preprocessing.to_dict(),
        versions=versions(*PACKAGES.get(converted.backend, ())),
        continual=None if is_detector else config,
        ood=config if is_detector else None,
    )


def _probes(predictor: OptimizedPredictor, base: dict[str, bytes]) -> dict[str, torch.Tensor]:
    """Probe images and what the variant makes of them."""
    was = parse_tensors(base[PROBE], PROBE)
    session = predictor.network.session
    images = np.ascontiguousarray(was["images"].permute(0, 2, 3, 1).numpy())
    features, logits = session.run(images)
    now, before = (logits, was["logits"]) if "features" not in was else (features, was["features"])
    moved = np.abs(now - before.numpy()).max() / max(float(before.abs().max()), 1e-6)
    tensors = recorded(session, images, float(moved))
    return {name: torch.from_numpy(np.array(array, order="C")) for name, array in tensors.items()}
