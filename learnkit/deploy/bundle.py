"""A predictor as a folder of data.

    config.json          timm's fields, and under `learnkit` all that a predictor is
    model.safetensors    weights; head.safetensors the head's, if timm opens only the body
    probe.safetensors    a few images and the logits they must give
    README.md            model card
    manifest.json        sizes and hashes, written last

Writing rebuilds the network from what is to be written, and compares, before the disk is touched.
`reading` is the way back.
"""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from learnkit.deploy.atomic import write_folder
from learnkit.deploy.card import checked_card, model_card
from learnkit.deploy.formats import parse_json, tensors_to_bytes, to_json
from learnkit.deploy.probes import (
    PROBE,
    check_probes,
    default_probes,
    probe_tensors,
    tolerance_of,
)
from learnkit.deploy.rebuild import rebuild
from learnkit.deploy.schema import CONFIG, SCHEMA, Contents
from learnkit.deploy.timm_layout import pack
from learnkit.deploy.versions import versions
from learnkit.errors import BundleCorruptError, ExportError
from learnkit.models.spec import ModelSpec

if TYPE_CHECKING:
    from learnkit.deploy.predictor import Predictor

CARD = "README.md"


def save_bundle(
    path: str | os.PathLike,
    predictor: "Predictor",
    *,
    card: Mapping[str, Any] | None = None,
    probes: Tensor | None = None,
) -> str:
    """SHA-256 (hex) of the manifest of the bundle written to `path`.

    The predictor and its model are left as found.

    Args:
        path: absent, an empty folder or an earlier bundle, which is replaced as a whole.
        predictor: what to write.
        card: see `model_card`.
        probes: 1 to 16 preprocessed images uint8 (n, channels, H, W); they travel with the bundle,
            and their logits must come out again when it is loaded. Default noise.

    Raises:
        ExportError: something cannot travel as data, a weight is not finite, or the network that is
            rebuilt from the data computes something else.
        BundleWriteError: the folder could not be written; what stood there still does.
    """
    spec, card = _spec_of(predictor.model), checked_card(card or {})
    probes = default_probes(predictor.preprocessing) if probes is None else probes
    check_probes(probes, predictor.preprocessing)
    state = {name: tensor.detach().cpu() for name, tensor in predictor.model.state_dict().items()}
    tensors_to_bytes(state)  # names the tensor with NaN, before anything computes with it
    copy = _rebuilt_like(predictor, spec, state, probes)
    images = predictor.preprocessing.normalize(probes)
    packed = pack(copy, spec, predictor.preprocessing, predictor.classes, images)
    contents = Contents(
        spec=spec,
        preprocessing=predictor.preprocessing,
        classes=predictor.classes,
        multi_label=predictor.multi_label,
        threshold=predictor.threshold,
        layout=packed.layout,
        versions=versions(),
        metadata={**predictor.metadata, "card": card},
    )
    files = {name: tensors_to_bytes(tensors) for name, tensors in packed.files.items()}
    files[PROBE] = tensors_to_bytes(probe_tensors(copy, probes, predictor.preprocessing))
    files[CONFIG] = contents.to_bytes(packed.config)
    files[CARD] = _card(contents, packed.kind, card).encode()
    return write_folder(path, files, about={"schema": SCHEMA, "versions": versions()})


def _spec_of(model: nn.Module) -> ModelSpec:
    """The model's description, as the reader will get it from JSON."""
    spec = getattr(model, "spec", None)
    if spec is None:
        problem = getattr(model, "spec_problem", None) or "it was not built by learnkit"
        raise ExportError(
            f"the network cannot travel as data: {problem}. Build it with cnn_learner from an "
            "architecture's name, or keep its weights with learn.save"
        )
    try:
        return ModelSpec.from_dict(parse_json(to_json(spec.to_dict()), "the description"))
    except (TypeError, ValueError) as error:  # learnkit's own errors are ValueErrors
        raise ExportError(f"the network cannot travel as data: {error}") from error


def _rebuilt_like(
    predictor: "Predictor", spec: ModelSpec, state: Mapping[str, Tensor], probes: Tensor
) -> nn.Module:
    """The network rebuilt from `spec`, if it computes what the predictor's does."""
    advice = "was it changed after it was built? Keep its weights with learn.save"
    try:
        copy = rebuild(spec, state)
    except BundleCorruptError as error:
        raise ExportError(f"the network is not what it was built as: {error}; {advice}") from error
    with torch.no_grad():
        rebuilt = copy(predictor.preprocessing.normalize(probes))
    logits = predictor.logits(probes)
    difference = (rebuilt - logits).abs().max().item()
    if not difference <= tolerance_of(logits):
        raise ExportError(
            f"the network rebuilt from its description gives other logits (they differ by "
            f"{difference:.3g}); {advice}"
        )
    return copy


def _card(contents: Contents, kind: str, card: Mapping[str, Any]) -> str:
    preprocessing = contents.preprocessing
    height, width = preprocessing.size
    colour = "RGB" if preprocessing.channels == 3 else "grey"
    return model_card(
        card,
        architecture=contents.spec.arch,
        classes=contents.classes,
        multi_label=contents.multi_label,
        image=f"{colour} images of {height} x {width} pixels ({preprocessing.method})",
        opened_by_timm=kind,
        versions=contents.versions,
    )
