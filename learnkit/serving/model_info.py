"""The description of a served model as JSON types."""

from __future__ import annotations

from typing import Any

from learnkit._version import versions
from learnkit.storage.formats import finite_or_none

_PACKAGES = ("torch", "timm", "onnxruntime", "openvino", "pillow", "fastapi", "uvicorn")


def model_facts(predictor: Any) -> dict[str, Any]:
    """Classes, what they rest on, thresholds, input and versions."""
    recipe = predictor.preprocessing
    head = getattr(predictor, "continual", None)
    multi_label = bool(getattr(predictor, "multi_label", False))
    threshold = None
    if getattr(
        predictor, "knows_classes", True
    ):  # what has learned nothing yet has no threshold either
        threshold = getattr(getattr(head, "threshold", None), "value", None)
        threshold = getattr(predictor, "ood_threshold", threshold)
    return {
        "classes": list(predictor.classes),
        "multi_label": multi_label,
        "threshold": predictor.threshold if multi_label else None,
        "ood_threshold": finite_or_none(threshold),
        "images_per_class": getattr(head, "n_images", None),
        "size": list(recipe.size),
        "channels": recipe.channels,
        "versions": versions(*_PACKAGES),
    }
