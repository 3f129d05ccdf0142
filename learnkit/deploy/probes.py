"""Probe images: they travel with a network, and it must still answer them as it did at export."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from learnkit.data.preprocess import Preprocessing
from learnkit.errors import BundleCorruptError, ExportError

PROBE = "probe.safetensors"
MAX_PROBES = 16
_RELATIVE_TOLERANCE = 1e-3  # another CPU or thread count moves logits by 1e-5 of the largest


def default_probes(preprocessing: Preprocessing, n: int = 2) -> Tensor:
    """Noise uint8 (n, channels, H, W), the same every time: probes where no images are at hand."""
    generator = torch.Generator().manual_seed(0)
    shape = (n, preprocessing.channels, *preprocessing.size)
    return torch.randint(256, shape, dtype=torch.uint8, generator=generator)


def check_probes(images: Tensor, preprocessing: Preprocessing, error: type = ExportError) -> None:
    """Raise `error` unless `images` are a few preprocessed ones."""
    shape = (preprocessing.channels, *preprocessing.size)
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1:] != shape:
        raise error(
            f"the probe images are {images.dtype} {tuple(images.shape)}; preprocessed images are "
            f"uint8 (n, {', '.join(map(str, shape))})"
        )
    if not 1 <= len(images) <= MAX_PROBES:
        raise error(f"there are {len(images)} probe images; 1 to {MAX_PROBES} are needed")


def tolerance_of(values: Tensor) -> float:
    """How far `values` may be off elsewhere."""
    return _RELATIVE_TOLERANCE * max(1.0, values.abs().max().item())


def comparable(logits: Tensor) -> Tensor:
    """`logits` with 0 for the -inf of classes that can never win: files hold finite numbers."""
    return torch.where(logits.isneginf(), 0.0, logits)


def probe_tensors(model: nn.Module, probes: Tensor, recipe: Preprocessing) -> dict[str, Tensor]:
    """The file's tensors: images, the logits of `model` for them, and how far those may be off."""
    with torch.no_grad():
        logits = comparable(model(recipe.normalize(probes)))
    return {"images": probes, "logits": logits, "tolerance": torch.tensor(tolerance_of(logits))}


def read_probes(
    probe: Mapping[str, Tensor], preprocessing: Preprocessing, n_classes: int
) -> tuple[Tensor, Tensor, float]:
    """Probe images, the logits they must give, and how far those may be off.

    Raises:
        BundleCorruptError: a tensor is missing or of another shape or type.
    """
    if missing := {"images", "logits", "tolerance"} - probe.keys():
        raise BundleCorruptError(f"{PROBE} lacks {sorted(missing)}")
    images, logits, tolerance = probe["images"], probe["logits"], probe["tolerance"]
    check_probes(images, preprocessing, BundleCorruptError)
    if logits.dtype != torch.float32 or logits.shape != (len(images), n_classes):
        raise BundleCorruptError(f"{PROBE}: `logits` is {logits.dtype} {tuple(logits.shape)}")
    if tolerance.shape != () or not tolerance.item() >= 0:
        raise BundleCorruptError(f"{PROBE}: `tolerance` is not one number of at least 0")
    return images, logits, tolerance.item()
