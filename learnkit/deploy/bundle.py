"""A predictor as a folder of data.

    config.json          timm's fields, and under `learnkit` all that a predictor is
    model.safetensors    weights; head.safetensors the head's, if timm opens only the body
    probe.safetensors    a few images and the logits they must give
    README.md            model card
    manifest.json        sizes and hashes, written last

Writing rebuilds the network from what is to be written, and compares, before the disk is touched.
Reading is strict both ways: names, shapes, types, finiteness; then the probe images must give the
recorded logits.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from learnkit._version import __version__
from learnkit.data.preprocess import Preprocessing
from learnkit.deploy.atomic import write_folder
from learnkit.deploy.card import checked_card, model_card
from learnkit.deploy.files import MANIFEST, Folder, read_folder
from learnkit.deploy.formats import parse_json, parse_tensors, tensors_to_bytes, to_json
from learnkit.deploy.rebuild import rebuild
from learnkit.deploy.schema import CONFIG, SCHEMA, Contents, check_schema
from learnkit.deploy.timm_layout import from_files, pack
from learnkit.errors import (
    BundleCorruptError,
    BundleError,
    BundleProbeError,
    ExportError,
    LearnkitError,
)
from learnkit.models.spec import ModelSpec

if TYPE_CHECKING:
    from learnkit.deploy.predictor import Predictor

PROBE, CARD = "probe.safetensors", "README.md"
MAX_PROBES = 16
_RELATIVE_TOLERANCE = 1e-3  # another CPU or thread count moves logits by 1e-5 of the largest
_PACKAGES = ("torch", "timm", "torchvision", "pillow", "safetensors")


@dataclass(frozen=True)
class Bundle:
    """What a bundle holds, read and checked; `check_probes` is left to whoever runs the model."""

    contents: Contents
    model: nn.Module
    probes: Tensor
    probe_logits: Tensor
    tolerance: float
    digest: str

    def check_probes(self, logits: Callable[[Tensor], Tensor]) -> None:
        """Raise BundleProbeError unless `logits(probes)` are those recorded at export."""
        try:
            difference = (logits(self.probes) - self.probe_logits).abs().max().item()
        except (RuntimeError, LearnkitError) as error:
            raise BundleProbeError(f"the network does not run here: {error}") from error
        if not difference <= self.tolerance:  # so written that NaN fails
            raise BundleProbeError(
                f"the network gives other logits here than where it was exported: they differ by "
                f"{difference:.3g}, {self.tolerance:.3g} is allowed. Exported with "
                f"{_listed(self.contents.versions)}; here {_listed(versions())}: install those "
                "versions, or export the model again with these"
            )


def versions() -> dict[str, str]:
    """Versions of learnkit and of the packages that decide what a network computes."""
    return {"learnkit": __version__, **{name: metadata.version(name) for name in _PACKAGES}}


def _listed(found: Mapping[str, str]) -> str:
    return ", ".join(f"{n} {found.get(n, 'unknown')}" for n in ("learnkit", "torch", "timm"))


# Writing


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
    _check_probe_images(probes, predictor.preprocessing, ExportError)
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
    files[PROBE] = tensors_to_bytes(_probe_tensors(copy, images, probes))
    files[CONFIG] = contents.to_bytes(packed.config)
    files[CARD] = _card(contents, packed.kind, card).encode()
    return write_folder(path, files, about={"schema": SCHEMA, "versions": versions()})


def default_probes(preprocessing: Preprocessing, n: int = 2) -> Tensor:
    """Noise uint8 (n, channels, H, W), the same every time: probes where no images are at hand."""
    generator = torch.Generator().manual_seed(0)
    shape = (n, preprocessing.channels, *preprocessing.size)
    return torch.randint(256, shape, dtype=torch.uint8, generator=generator)


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
    if not difference <= _tolerance(logits):
        raise ExportError(
            f"the network rebuilt from its description gives other logits (they differ by "
            f"{difference:.3g}); {advice}"
        )
    return copy


def _tolerance(logits: Tensor) -> float:
    return _RELATIVE_TOLERANCE * max(1.0, logits.abs().max().item())


def _probe_tensors(model: nn.Module, images: Tensor, probes: Tensor) -> dict[str, Tensor]:
    with torch.no_grad():
        logits = model(images)
    return {"images": probes, "logits": logits, "tolerance": torch.tensor(_tolerance(logits))}


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


# Reading


def read_bundle(path: str | os.PathLike, *, sha256: str | None = None) -> Bundle:
    """The bundle at `path`: its files, names, shapes, types and values are checked.

    Raises:
        BundleNotFoundError: there is none.
        BundleCorruptError: damaged, altered, or not the one pinned by `sha256`.
        BundleVersionError: written in a format newer than this learnkit reads.
        BundleError: the versions of torch and timm here cannot build the network.
    """
    folder = read_folder(path, sha256=sha256)
    check_schema(folder.manifest, MANIFEST)
    contents = Contents.from_bytes(_file(folder, CONFIG))
    probes, probe_logits, tolerance = _probe(folder, contents)
    files = {name: parse_tensors(_file(folder, name), name) for name in contents.layout}
    model = _model(contents.spec, from_files(files, contents.layout))
    return Bundle(contents, model, probes, probe_logits, tolerance, folder.digest)


def _file(folder: Folder, name: str) -> bytes:
    if name not in folder.files:
        raise BundleCorruptError(f"{MANIFEST} does not list {name}")
    return folder.files[name]


def _probe(folder: Folder, contents: Contents) -> tuple[Tensor, Tensor, float]:
    """Probe images, the logits they must give, and how far those may be off."""
    probe = parse_tensors(_file(folder, PROBE), PROBE)
    if missing := {"images", "logits", "tolerance"} - probe.keys():
        raise BundleCorruptError(f"{PROBE} lacks {sorted(missing)}")
    images, logits, tolerance = probe["images"], probe["logits"], probe["tolerance"]
    _check_probe_images(images, contents.preprocessing, BundleCorruptError)
    if logits.dtype != torch.float32 or logits.shape != (len(images), len(contents.classes)):
        raise BundleCorruptError(f"{PROBE}: `logits` is {logits.dtype} {tuple(logits.shape)}")
    if tolerance.shape != () or not tolerance.item() >= 0:
        raise BundleCorruptError(f"{PROBE}: `tolerance` is not one number of at least 0")
    return images, logits, tolerance.item()


def _check_probe_images(images: Tensor, preprocessing: Preprocessing, error: type) -> None:
    shape = (preprocessing.channels, *preprocessing.size)
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1:] != shape:
        raise error(
            f"the probe images are {images.dtype} {tuple(images.shape)}; preprocessed images are "
            f"uint8 (n, {', '.join(map(str, shape))})"
        )
    if not 1 <= len(images) <= MAX_PROBES:
        raise error(f"there are {len(images)} probe images; 1 to {MAX_PROBES} are needed")


def _model(spec: ModelSpec, state: Mapping[str, Tensor]) -> nn.Module:
    try:
        return rebuild(spec, state)
    except BundleCorruptError:
        raise
    except Exception as error:  # the libraries raise nearly anything for arguments they do not take
        raise BundleError(
            f"{spec.source}:{spec.arch} cannot be built here ({_listed(versions())}): {error}"
        ) from error
