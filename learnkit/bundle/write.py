"""A predictor as a folder of data.

    config.json          timm's fields, and under `learnkit` all that a predictor is
    model.safetensors    weights; head.safetensors the head's, if timm opens only the body
    state.safetensors    class statistics and all else a head in the continual state knows
    ood.safetensors      the same of what tells unusual images beside a trained head
    probe.safetensors    a few images and the logits they must give
    README.md            model card
    manifest.json        sizes and hashes, written last

Writing rebuilds the network from what is to be written, and compares, before the disk is touched.
`reading` is the way back.
"""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from learnkit._version import versions
from learnkit.backends.network import Network, default_probes, tolerance_of
from learnkit.bundle.card import checked_card, model_card
from learnkit.bundle.probes import PROBE, check_probes, probe_tensors
from learnkit.bundle.schema import CONFIG, PACKAGES, SCHEMA, Contents
from learnkit.bundle.state import OOD, STATE, described, detector_facts, head_facts
from learnkit.bundle.timm_layout import pack
from learnkit.continual.classifier import ContinualClassifier, frozen_head
from learnkit.continual.ood_detector import OodDetector
from learnkit.errors import BundleCorruptError, ExportError
from learnkit.models.rebuild import rebuild
from learnkit.models.spec import ModelSpec
from learnkit.storage.formats import parse_json, tensors_to_bytes, to_json
from learnkit.storage.write_folder import write_folder

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
    return write_bundle(path, bundle_files(predictor, card=card, probes=probes))


def write_bundle(path: str | os.PathLike, files: Mapping[str, bytes]) -> str:
    """SHA-256 (hex) of the manifest of the bundle of these files, written to `path`."""
    about = {"schema": SCHEMA, "versions": versions(*PACKAGES)}
    return write_folder(path, files, about=about)


def bundle_files(
    predictor: "Predictor",
    *,
    card: Mapping[str, Any] | None = None,
    probes: Tensor | None = None,
) -> dict[str, bytes]:
    """The files of a bundle of `predictor`, by name; arguments and errors as of `save_bundle`."""
    card, recipe = checked_card(card or {}), predictor.preprocessing
    probes = default_probes(recipe) if probes is None else probes
    check_probes(probes, recipe)
    head = frozen_head(predictor.model)
    spec = _as_read(described(predictor.model, head, recipe.channels))
    copy = _rebuilt_like(predictor, spec, head, probes)
    config, tensors = (None, None) if head is None else head.state()
    classes = predictor.classes if head is None else head.classes
    ood, ood_tensors = (None, None) if predictor.detector is None else predictor.detector.state()
    packed = pack(copy, spec, recipe, classes, recipe.normalize(probes))
    contents = Contents(
        spec=spec,
        preprocessing=recipe,
        classes=classes,
        multi_label=predictor.multi_label,
        threshold=predictor.threshold,
        layout=packed.layout,
        versions=versions(*PACKAGES),
        metadata={**predictor.metadata, "card": card},
        continual=config,
        ood=ood,
    )
    files = {name: tensors_to_bytes(tensors) for name, tensors in packed.files.items()}
    if tensors is not None:
        files[STATE] = tensors_to_bytes(tensors)
    if ood_tensors is not None:
        files[OOD] = tensors_to_bytes(ood_tensors)
    files[PROBE] = tensors_to_bytes(probe_tensors(copy, probes, recipe))
    files[CONFIG] = contents.to_bytes(packed.config)
    files[CARD] = _card(contents, packed.kind, card, head, predictor.detector).encode()
    return files


def _as_read(spec: ModelSpec) -> ModelSpec:
    """`spec` as the reader will get it from JSON."""
    try:
        return ModelSpec.from_dict(parse_json(to_json(spec.to_dict()), "the description"))
    except (TypeError, ValueError) as error:  # learnkit's own errors are ValueErrors
        raise ExportError(f"the network cannot travel as data: {error}") from error


def _rebuilt_like(
    predictor: "Predictor", spec: ModelSpec, head: nn.Module | None, probes: Tensor
) -> nn.Module:
    """The network rebuilt from `spec` (and `head`), if it computes what the predictor's does."""
    advice = "was it changed after it was built? Keep its weights with learn.save"
    model = predictor.model if head is None else nn.Sequential(predictor.model[0])
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    tensors_to_bytes(state)  # names the tensor with NaN, before anything computes with it
    try:
        copy = rebuild(spec, state)
    except BundleCorruptError as error:
        raise ExportError(f"the network is not what it was built as: {error}; {advice}") from error
    copy = copy if head is None else copy.append(head)
    what = "logits" if head is None else "features"
    rebuilt = Network(copy, predictor.preprocessing, owned=True)
    if head is None:
        n_classes = len(predictor.classes)
        found, expected = rebuilt.outputs(probes, n_classes), predictor.logits(probes)
    else:
        found, expected = rebuilt.features(probes), predictor.network.features(probes)
    difference = (found - expected).abs().max().item()
    if not difference <= tolerance_of(expected):
        raise ExportError(
            f"the network rebuilt from its description gives other {what} (they differ by "
            f"{difference:.3g}); {advice}"
        )
    return copy


def _card(
    contents: Contents,
    kind: str,
    card: Mapping[str, Any],
    head: ContinualClassifier | None,
    detector: OodDetector | None,
) -> str:
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
        continual=None if head is None else head_facts(head),
        ood=None if detector is None else detector_facts(detector),
    )
