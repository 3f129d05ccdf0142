"""Probes of a variant: its backend must give what it gave when it was saved; needs no torch."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from learnkit._version import listed, versions
from learnkit.backends.session import Session, brief
from learnkit.errors import BundleCorruptError, BundleProbeError, LearnkitError

BACKEND_PACKAGES = {  # whose versions decide what a backend computes
    "onnxruntime": ("onnxruntime",),
    "openvino": ("openvino",),
    "torch": ("torch", "timm"),
}


# what another processor or version may change, as a share of the largest value
_NOISE = {"float32": 1e-3, "float16": 2e-3, "bfloat16": 2e-2, "int8": 1e-2}


_OUTPUTS = ("features", "logits")


def recorded(
    session: Session, images: np.ndarray, conversion_error: float
) -> dict[str, np.ndarray]:
    """What `session` makes of `images` uint8 (n, H, W, C), and how far that may be off elsewhere.

    Args:
        session: the variant.
        images: a few, preprocessed.
        conversion_error: how far the features moved when they were converted, as a share of their
            largest value. Half of it is allowed elsewhere if that is more than the noise of the
            precision: what changes less matters less than the conversion did.
    """
    share = max(_NOISE[session.precision], min(0.5 * conversion_error, 0.05))
    found = {"images": images, "share": np.array(share)}
    outputs = zip(_OUTPUTS, session.run(images), strict=True)
    return {**found, **{name: array for name, array in outputs if array is not None}}


def check_recorded(
    session: Session, probes: Mapping[str, np.ndarray], where: str, made_with: Mapping[str, str]
) -> None:
    """Raise unless `session` gives what was recorded.

    Args:
        session: the variant as it runs here.
        probes: as from `recorded`.
        where: the file they are from.
        made_with: versions of the packages it was made with.

    Raises:
        BundleProbeError: it gives something else; both versions are named.
        BundleCorruptError: `probes` cannot have come from `recorded`.
    """
    share = _checked(session, probes, where)
    try:
        outputs = dict(zip(_OUTPUTS, session.run(probes["images"]), strict=True))
    except LearnkitError:
        raise
    except Exception as error:  # backends raise whatever they have
        raise BundleProbeError(f"the network does not run here: {brief(error)}") from error
    for name in _OUTPUTS:
        if outputs[name] is not None:
            _compare(name, outputs[name], probes[name], share, session.backend, made_with)


def _checked(session: Session, probes: Mapping[str, np.ndarray], where: str) -> float:
    wanted = {"images", "share", "features"} | ({"logits"} if session.n_outputs else set())
    if probes.keys() != wanted:
        raise BundleCorruptError(f"{where} holds {sorted(probes)}; it must hold {sorted(wanted)}")
    images, share = probes["images"], probes["share"]
    n = len(images) if images.ndim else 0
    # 16 is `probes.MAX_PROBES`, in a module that brings torch
    if images.dtype != np.uint8 or images.shape[1:] != session.shape or not 1 <= n <= 16:
        raise BundleCorruptError(
            f"{where}: `images` is {images.dtype} {images.shape}; preprocessed images are uint8 "
            f"(n, {', '.join(map(str, session.shape))})"
        )
    # `recorded` writes no larger one, by which any answer would pass
    if share.shape != () or not 0 <= float(share) <= 0.05:
        raise BundleCorruptError(f"{where}: `share` is not one number in 0..0.05")
    for name, width in (("features", session.n_features), ("logits", session.n_outputs)):
        if name in wanted and probes[name].shape != (n, width):
            raise BundleCorruptError(f"{where}: `{name}` is {probes[name].shape}, not {(n, width)}")
    return float(share)


def _compare(
    name: str,
    found: np.ndarray,
    expected: np.ndarray,
    share: float,
    backend: str,
    made_with: Mapping[str, str],
) -> None:
    allowed = share * max(float(np.abs(expected).max()), 1e-6)
    difference = float(np.abs(found - expected).max())
    if difference <= allowed:  # so written that NaN fails
        return
    packages = BACKEND_PACKAGES.get(backend, ())
    raise BundleProbeError(
        f"the network gives other {name} here than where it was saved: they differ by "
        f"{difference:.3g}, {allowed:.3g} is allowed. Saved with {listed(made_with, *packages)}; "
        f"here {listed(versions(*packages), *packages)}: install those versions, or optimise the "
        "model again with these"
    )
