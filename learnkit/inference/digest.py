"""Which model said it: one digest for what a predictor knows and how it is set at this moment."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def model_digest(predictor: Any) -> str:
    """SHA-256 (hex) that tells models apart, whatever they have learned or been set to since.

    That of the bundle while the model is as it was loaded, with the name of the variant behind it
    if it runs one; else that of its weights, what it has learned, class names and thresholds.
    """
    if predictor.digest is None or getattr(predictor, "is_changed", False):
        return _content_digest(predictor)
    variant = getattr(predictor, "variant", None)
    variant = getattr(variant, "name", variant)
    return predictor.digest if variant is None else f"{predictor.digest}:{variant}"


def same_state(predictor: Any, state: Any) -> bool:
    """Whether `predictor` is still as it was when `state_of` gave `state`; costs nothing."""
    now = state_of(predictor)
    return len(now) == len(state) and all(a is b for a, b in zip(now, state, strict=True))


def state_of(predictor: Any) -> tuple[Any, ...]:
    """What a change to a predictor replaces; nothing for predictors that cannot change."""
    return tuple(getattr(predictor, "state", ()))


def _content_digest(predictor: Any) -> str:
    knows = getattr(predictor, "knows_classes", True)  # else it has no threshold either
    threshold = getattr(predictor, "ood_threshold", None) if knows else None
    settings = {
        "bundle": predictor.digest,
        "classes": list(predictor.classes),
        "multi_label": bool(predictor.multi_label),
        "threshold": getattr(predictor, "threshold", None),
        "ood_threshold": threshold,
        "preprocessing": predictor.preprocessing.to_dict(),
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    converted = getattr(getattr(predictor, "record", None), "converted", None)
    for name, data in sorted(() if converted is None else converted.files.items()):
        digest.update(f"\0{name} {len(data)}\0".encode() + data)
    # the network may be elsewhere than what it has learned
    for part in ("model", "continual", "detector"):
        module = getattr(predictor, part, None)
        if module is None:
            continue
        import torch  # only whoever has a model of torch's comes here

        for name, tensor in sorted(module.state_dict().items()):
            values = tensor.detach().cpu().contiguous()
            digest.update(f"\0{part} {name} {values.dtype} {tuple(values.shape)}\0".encode())
            digest.update(values.flatten().view(torch.uint8).numpy() if values.numel() else b"")
    return digest.hexdigest()
