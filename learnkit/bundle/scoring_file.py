"""What a head in the continual state concludes, as numbers a process without torch can use.

The class statistics stay out of it: they are for learning. `judge_reading` reads it back, with
numpy, and `runtime_judge` judges by it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from learnkit.continual.classifier import ContinualClassifier
from learnkit.continual.closed_form.whitening import Geometry
from learnkit.continual.derived import Derived
from learnkit.continual.embedding import GRID
from learnkit.continual.scorer import Scorer
from learnkit.errors import ExportError
from learnkit.storage.formats import to_json
from learnkit.uncertainty.threshold import Threshold

FORMAT = 1
_WITH_GEOMETRY = frozenset({"mahalanobis", "relative"})
_PARTS = _WITH_GEOMETRY | {"knn", "msp", "energy"}


def judge_tensors(head: ContinualClassifier, *, labels: bool = True) -> dict[str, Tensor]:
    """Everything `head` says of features, at this moment, as tensors for a safetensors file.

    `facts` is JSON in UTF-8: which score there is, and the threshold. `weight (C,D)` and `bias
    (C,)` give calibrated logits of embedded features, where a class is `known (C,)`;
    `misfits (R,)` with their weights are the nonconformity scores of prediction sets;
    `threshold_scores (n,)` with theirs give p-values. The parts of the score add what
    they need: see `_geometry_tensors`, and `reference (K,D)` int16, the remembered features.

    Args:
        head: of the continual state; or a `OodDetector` beside a trained head.
        labels: whether its logits give the labels; False if those of the network do.

    Raises:
        ExportError: it knows no class, or has a score that cannot be written.
    """
    knowledge = head.knowledge
    derived = knowledge.derived
    if derived is None:
        raise ExportError("the model knows no class yet; extend it before it is exported")
    known, threshold = derived.bias.isfinite(), head.threshold
    nonconformity = (derived.nonconformity, derived.nonconformity_weights)
    if not labels:
        nonconformity = getattr(head, "nonconformity", None) or (derived.nonconformity[:0],) * 2
    return {
        "facts": _as_bytes(_facts(derived.scorer, threshold, knowledge.settings.root, labels)),
        "weight": derived.weight,
        "bias": torch.where(known, derived.bias, 0.0),
        "known": known,
        "misfits": nonconformity[0].to(torch.float64),
        "misfit_weights": nonconformity[1].to(torch.float64),
        "threshold_scores": threshold.calibration_scores,
        "threshold_weights": threshold.calibration_weights,
        **_score_tensors(derived),
    }


def _facts(scorer: Scorer, threshold: Threshold, root: bool, labels: bool) -> dict[str, Any]:
    parts = [part for part, _, _ in scorer.standards]
    if unknown := sorted(set(parts) - _PARTS):
        raise ExportError(
            f"the score has the parts {unknown}, which no process without torch could compute; "
            "choose another `score`"
        )
    return {
        "format": FORMAT,
        "labels": labels,
        "root": root,
        "temperature": scorer.temperature,
        "standards": [list(standard) for standard in scorer.standards],
        "combined": "mean",
        "threshold": {
            "value": threshold.value,
            "source": threshold.source,
            "guarantee": threshold.guarantee,
            "statement": threshold.statement,
            "loc": threshold.loc,
            "scale": threshold.scale,
        },
    }


def _as_bytes(facts: dict[str, Any]) -> Tensor:
    return torch.frombuffer(bytearray(to_json(facts)), dtype=torch.uint8)


def _score_tensors(derived: Derived) -> dict[str, Tensor]:
    scorer = derived.scorer
    parts = {part for part, _, _ in scorer.standards}
    found = {}
    if parts & _WITH_GEOMETRY:
        found |= _geometry_tensors(scorer.linear.geometry)
    if "mahalanobis" in parts:
        found |= _length_tensors(scorer.linear.geometry)
    if "knn" in parts:
        found["reference"] = (scorer.reference.features * GRID).round().to(torch.int16)
    return found


def _geometry_tensors(geometry: Geometry) -> dict[str, Tensor]:
    """What distances to class means need: they are |u|^2 - 2 (x - center) @ covectors.T + offsets.

    `center (D,)`, `covectors (P,D)`; `offsets (P,)` hold the squared length of a mean in the
    whitened space, less what its being a mean of few images adds on average.
    """
    return {
        "center": geometry.spectrum.center,
        "covectors": geometry.covectors,
        "offsets": geometry.offsets,
    }


def _length_tensors(geometry: Geometry) -> dict[str, Tensor]:
    """What the squared length in the whitened space needs: |u|^2 = base |y|^2 - |y @ axes|^2.

    y is the feature, counted from the center. If all axes are needed, `base` is 0, and |u|^2 =
    |y @ axes|^2.
    """
    base, axes, own = geometry.lengths
    return {"base": base, "axes": axes * own.abs().sqrt()}
