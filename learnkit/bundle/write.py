"""A model written as a bundle: a folder of data, whole or not there.

    config.json          timm's fields, and under `learnkit` all that a predictor is
    model.safetensors    weights; head.safetensors the head's, if timm opens only the body
    state.safetensors    class statistics and all else a head in the continual state knows
    history.safetensors  the same before its last changes, snapshots, and the log of changes
    ood.safetensors      the same of the OOD detector beside a trained head
    probe.safetensors    a few images and the logits they must give
    README.md            model card
    variants/            the same of converted networks, beside the weights they were made from
    manifest.json        sizes and hashes, written last

Writing rebuilds the network from what is to be written, and compares, before the disk is touched.
`read` is the way back.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from learnkit._version import versions
from learnkit.backends.torch_session import Network, channels_last, default_probes, tolerance_of
from learnkit.bundle.audit import HISTORY
from learnkit.bundle.card import checked_card, model_card
from learnkit.bundle.probes import PROBE, check_probes, probe_tensors
from learnkit.bundle.schema import CONFIG, PACKAGES, SCHEMA, Contents
from learnkit.bundle.scoring_file import scoring_tensors
from learnkit.bundle.siblings import BaseFiles, siblings_in, with_siblings
from learnkit.bundle.state import (
    OOD,
    STATE,
    described,
    detector_facts,
    head_facts,
    history_bytes,
    trimmed_history,
)
from learnkit.bundle.timm_layout import pack
from learnkit.bundle.variant import Variant, path_of, variant_names, with_variants
from learnkit.bundle.variant_probes import BACKEND_PACKAGES, recorded
from learnkit.continual.classifier import ContinualClassifier, continual_head
from learnkit.continual.knowledge import UNDO_LEVELS
from learnkit.continual.ood_detector import OodDetector
from learnkit.data.labels import ids_of_classes
from learnkit.errors import BundleCorruptError, BundleError, ExportError, warn_user, warned_after
from learnkit.inference.model import Model
from learnkit.models.rebuild import rebuild
from learnkit.models.spec import ModelSpec
from learnkit.storage.formats import parse_json, parse_tensors, tensors_to_bytes, to_json
from learnkit.storage.write_folder import write_folder

CARD = "README.md"


class Written(NamedTuple):
    """The digest of a bundle, and what a model in it is to remember of its other files."""

    digest: str
    siblings: Any


@warned_after
def write(
    path: str | os.PathLike,
    model: Model,
    *,
    card: Mapping[str, Any] | None = None,
    probes: Tensor | None = None,
    others: Sequence[Model] = (),
    variants: bool = True,
    history: int = UNDO_LEVELS,
    replaces: str | None = None,
) -> Written:
    """SHA-256 (hex) of the manifest of the bundle written to `path`, and the model's siblings.

    Args:
        path: absent, an empty folder or an earlier bundle, which is replaced as a whole.
        model: what the bundle opens as: weights as trained, or a converted network.
        card: see `model_card`; for weights as trained.
        probes: see `float32_files`; for weights as trained.
        others: further variants of the same model.
        variants: also those of the bundle that the model came from.
        history: states before the last changes that go along, 0 to 3.
        replaces: digest of the only bundle whose place it may take.

    Raises:
        ExportError: something cannot travel as data, a weight is not finite, the network that is
            rebuilt from the data computes something else, `others` are of another model, or
            `history` is no number from 0 to 3.
        BundleError: the float32 weights of a converted network are not where they were.
        BundleWriteError: the folder could not be written; what stood there still does.
    """
    if type(history) is not int or not 0 <= history <= UNDO_LEVELS:
        raise ExportError(
            f"`history`={history!r}; of the states before the last changes 0 to {UNDO_LEVELS} go "
            "along"
        )
    along = {"variants": variants, "history": history}
    if model.variant is not None:
        given, base = (*others, model), model.siblings
        files = bundle_with_variants(base, given, default=model, **along)
        return Written(_written(path, files, replaces), base)
    own = float32_files(model, card=card, probes=probes, history=history)
    base = with_siblings(own, model.siblings)
    if others or model.siblings is not None:
        files = bundle_with_variants(base, others, default=None, **along)
    else:
        files = base.read()
    return Written(_written(path, files, replaces), siblings_in(path, files))


def _written(path: str | os.PathLike, files: Mapping[str, bytes], replaces: str | None) -> str:
    about = {"schema": SCHEMA, "versions": versions(*PACKAGES)}
    return write_folder(path, files, about=about, replaces=replaces)


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
    # by identity: every change replaces the statistics as a whole
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
    # so written that NaN is refused
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
    # other threads may teach a model while it is written: its files are to be of one moment
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

    # variants that are stale or gone were left out, and stay among those that had learned
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
        versions=versions(*BACKEND_PACKAGES.get(converted.backend, ())),
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
    # a network may give zeros alone, of which nothing is a share
    moved = np.abs(now - before.numpy()).max() / max(float(before.abs().max()), 1e-6)
    tensors = recorded(model.network, images, float(moved))
    return {name: torch.from_numpy(np.array(array, order="C")) for name, array in tensors.items()}
