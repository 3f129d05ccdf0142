"""A float32 model as the files of a bundle: what `write` writes.

    config.json          timm's fields, and under `learnkit` all that a predictor is
    model.safetensors    weights; head.safetensors the head's, if timm opens only the body
    state.safetensors    class statistics and all else a head in the continual state knows
    history.safetensors  the same before its last changes, snapshots, and the log of changes
    ood.safetensors      the same of the OOD detector beside a trained head
    probe.safetensors    a few images and the logits they must give
    README.md            model card
    manifest.json        sizes and hashes, written last

Writing rebuilds the network from what is to be written, and compares, before the disk is touched.
`reading` is the way back.
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from learnkit._version import versions
from learnkit.backends.network import Network, channels_last, default_probes, tolerance_of
from learnkit.bundle.audit import HISTORY
from learnkit.bundle.card import checked_card, model_card
from learnkit.bundle.probes import PROBE, check_probes, probe_tensors
from learnkit.bundle.schema import CONFIG, PACKAGES, Contents
from learnkit.bundle.siblings import BaseFiles, with_siblings
from learnkit.bundle.state import (
    OOD,
    STATE,
    described,
    detector_facts,
    head_facts,
    history_bytes,
)
from learnkit.bundle.timm_layout import pack
from learnkit.continual.classifier import ContinualClassifier, continual_head
from learnkit.continual.knowledge import UNDO_LEVELS
from learnkit.continual.ood_detector import OodDetector
from learnkit.data.labels import ids_of_classes
from learnkit.errors import BundleCorruptError, ExportError
from learnkit.inference.model import Model
from learnkit.models.rebuild import rebuild
from learnkit.models.spec import ModelSpec
from learnkit.storage.formats import parse_json, tensors_to_bytes, to_json

CARD = "README.md"


def base_files(
    model: Model, *, card: Mapping[str, Any] | None = None, probes: Tensor | None = None
) -> BaseFiles:
    """A float32 model as files, as it is now; variants beside it stay where they are until then.

    That it cannot travel is noted as its `problem`, and said when it is written.
    """
    try:
        return with_siblings(float32_files(model, card=card, probes=probes), model.siblings)
    except ExportError as error:
        return BaseFiles(problem=str(error))


def float32_files(
    model: Model,
    *,
    card: Mapping[str, Any] | None = None,
    probes: Tensor | None = None,
    history: int = UNDO_LEVELS,
) -> dict[str, bytes]:
    """The files of a bundle of a float32 model, by name; the model is left as found.

    Args:
        model: what to write.
        card: see `model_card`; default the one it was read with, if it still is about the model.
        probes: 1 to 16 preprocessed images uint8 (n, channels, H, W); they travel with the bundle,
            and their logits must come out again when it is loaded. Default those of the model, or
            noise.
        history: states before the last changes that go along.

    Raises:
        ExportError: something cannot travel as data, a weight is not finite, or the network that is
            rebuilt from the data computes something else.
    """
    card, recipe = checked_card(_own_card(model) if card is None else card), model.preprocessing
    probes = model.probes if probes is None else probes
    probes = default_probes(recipe) if probes is None else probes
    check_probes(probes, recipe)
    module = model.network.model
    head = deepcopy(continual_head(module))  # later changes of the model do not reach it
    if head is not None:
        head.eval()
    spec = _as_read(described(module, head, recipe.channels))
    copy = _rebuilt_like(model, spec, head, probes)
    config, tensors = (None, None) if head is None else head.state()
    classes = model.names if head is None else head.classes
    ood, ood_tensors = (None, None) if model.detector is None else model.detector.state()
    packed = pack(copy, spec, recipe, classes, recipe.normalize(probes))
    contents = Contents(
        spec=spec,
        preprocessing=recipe,
        classes=classes,
        multi_label=model.multi_label,
        threshold=model.threshold,
        layout=packed.layout,
        versions=versions(*PACKAGES),
        metadata={**model.metadata, "card": card},
        continual=config,
        ood=ood,
        class_ids=model.class_ids[: len(classes)],
    )
    files = {name: tensors_to_bytes(tensors) for name, tensors in packed.files.items()}
    if tensors is not None:
        files[STATE] = tensors_to_bytes(tensors)
    if head is not None and (before := history_bytes(head, history)) is not None:
        files[HISTORY] = before
    if ood_tensors is not None:
        files[OOD] = tensors_to_bytes(ood_tensors)
    files[PROBE] = tensors_to_bytes(probe_tensors(copy, probes, recipe))
    files[CONFIG] = contents.to_bytes(packed.config)
    files[CARD] = _card(contents, packed.kind, card, head, model.detector).encode()
    return files


def _own_card(model: Model) -> dict[str, Any]:
    """The card it was read with, without what was measured on another state of knowledge."""
    card = dict(model.metadata.get("card", {}))
    if model.head is not None and model.head.statistics is not model.measured:
        card = {k: v for k, v in card.items() if k not in {"measures", "intervals", "per_class"}}
    return card


def _as_read(spec: ModelSpec) -> ModelSpec:
    """`spec` as the reader will get it from JSON."""
    try:
        return ModelSpec.from_dict(parse_json(to_json(spec.to_dict()), "the description"))
    except (TypeError, ValueError) as error:  # learnkit's own errors are ValueErrors
        raise ExportError(f"the network cannot travel as data: {error}") from error


def _rebuilt_like(
    model: Model, spec: ModelSpec, head: nn.Module | None, probes: Tensor
) -> nn.Module:
    """The network rebuilt from `spec` (and `head`), if it computes what the model's does."""
    advice = "was it changed after it was built? Keep its weights with learn.save"
    module = model.network.model
    weights = (module if head is None else nn.Sequential(module[0])).state_dict()
    state = {name: tensor.detach().cpu() for name, tensor in weights.items()}
    tensors_to_bytes(state)  # names the tensor with NaN, before anything computes with it
    try:
        copy = rebuild(spec, state)
    except BundleCorruptError as error:
        raise ExportError(f"the network is not what it was built as: {error}; {advice}") from error
    is_open, images = head is not None, channels_last(probes)
    copy = copy.append(head) if is_open else copy
    again = Network(copy, model.preprocessing, owned=True, continual=is_open)
    found, expected = (torch.from_numpy(_outputs(one, images)) for one in (again, model.network))
    difference = (found - expected).abs().max().item()
    if not difference <= tolerance_of(expected):
        raise ExportError(
            f"the network rebuilt from its description gives other "
            f"{'features' if is_open else 'logits'} (they differ by {difference:.3g}); {advice}"
        )
    return copy


def _outputs(network: Network, images: np.ndarray) -> np.ndarray:
    """Logits, or features where the head lives outside."""
    features, logits = network.run(images)
    return features if logits is None else logits


def _card(
    contents: Contents,
    kind: str,
    card: Mapping[str, Any],
    head: ContinualClassifier | None,
    detector: OodDetector | None,
) -> str:
    preprocessing, ids = contents.preprocessing, contents.class_ids
    height, width = preprocessing.size
    colour = "RGB" if preprocessing.channels == 3 else "grey"
    return model_card(
        card,
        architecture=contents.spec.arch,
        classes=contents.classes,
        multi_label=contents.multi_label,
        threshold=contents.threshold,
        image=f"{colour} images of {height} x {width} pixels ({preprocessing.method})",
        opened_by_timm=kind,
        versions=contents.versions,
        continual=None if head is None else head_facts(head),
        ood=None if detector is None else detector_facts(detector),
        changes=None if head is None else head.audit,
        class_ids=ids_of_classes(ids, len(contents.classes)) if ids else (),
    )
