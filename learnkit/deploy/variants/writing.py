"""An optimised predictor as files of a bundle, beside the float32 weights it was made from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from learnkit.deploy.bundle import CARD
from learnkit.deploy.detector import Detector
from learnkit.deploy.formats import parse_tensors, tensors_to_bytes, to_json
from learnkit.deploy.probes import PROBE
from learnkit.deploy.runtime.judge_file import judge_tensors
from learnkit.deploy.schema import CONFIG, with_variant
from learnkit.deploy.variants.description import Variant, files_of, path_of
from learnkit.deploy.variants.probes import backend_versions, recorded
from learnkit.errors import ExportError

if TYPE_CHECKING:
    from learnkit.deploy.conversion.optimized import OptimizedPredictor

_HEADING = "\n## Optimised: "


def bundle_with_variants(
    predictor: OptimizedPredictor, others: Sequence[OptimizedPredictor] = ()
) -> dict[str, bytes]:
    """All files of a bundle that opens as `predictor`, by name.

    Raises:
        ExportError: the float32 network cannot travel as data; `others` are of another model, or
            of the same backend and precision.
        BundleError: the float32 files are not where they were.
    """
    files = predictor.base.read()
    for one in (*others, predictor):
        if one.base.weights != predictor.base.weights:
            raise ExportError(
                f"`others` has {one.variant!r} of another model; the variants of a bundle are all "
                "made from its own float32 weights"
            )
        files = {name: data for name, data in files.items() if name not in _own(one, files)}
        files |= variant_files(one, files)
    files[CONFIG] = with_variant(
        files[CONFIG],
        predictor.variant,
        predictor.metadata,
        has_learned=predictor.has_learned,
    )
    files[CARD] = _card(files[CARD], predictor)
    return files


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


def _own(predictor: OptimizedPredictor, files: dict[str, bytes]) -> set[str]:
    return files_of(predictor.variant, files)


def _described(predictor: OptimizedPredictor, config: dict | None) -> Variant:
    converted, is_detector = predictor.converted, isinstance(predictor.ood, Detector)
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
        versions=backend_versions(converted.backend),
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


def _card(card: bytes, predictor: OptimizedPredictor) -> bytes:
    """The model card with what the conversion cost at its end."""
    text = card.decode().split(_HEADING)[0]
    if predictor.report is None:
        return text.encode()
    return f"{text}{_HEADING}{predictor.variant}\n\n```text\n{predictor.report}\n```\n".encode()
