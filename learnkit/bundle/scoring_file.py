"""The scoring file: a head's `Scoring` as tensors, for processes without torch.

The class statistics stay out of it: they are for learning. `judge_reading` reads it back.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from learnkit.continual.classifier import ContinualClassifier
from learnkit.errors import ExportError
from learnkit.storage.formats import to_json
from learnkit.uncertainty.embedding import GRID
from learnkit.uncertainty.scoring import PARTS, Scoring

FORMAT = 1


def judge_tensors(head: ContinualClassifier, *, labels: bool = True) -> dict[str, Tensor]:
    """Everything `head` scores features by, at this moment, as tensors for a safetensors file.

    `facts` is JSON in UTF-8: which score there is, and the threshold. `weight (C,D)` and `bias
    (C,)` give calibrated logits of embedded features, where a class is `known (C,)`;
    `misfits (R,)` with their weights are the nonconformity scores of prediction sets;
    `threshold_scores (n,)` with theirs give p-values. The parts of the score add what
    they need: the fields of `ClassDistances`, and `reference (K,D)` int16, the remembered features.

    Args:
        head: of the continual state; or a `OodDetector` beside a trained head.
        labels: whether its logits give the labels; False if those of the network do.

    Raises:
        ExportError: it knows no class, or has a score that cannot be written.
    """
    if head.knowledge.derived is None:
        raise ExportError("the model knows no class yet; extend it before it is exported")
    scoring = head.scoring
    known, threshold = np.isfinite(scoring.bias), scoring.threshold
    arrays = {
        "weight": scoring.weight,
        "bias": np.where(known, scoring.bias, 0.0),
        "known": known,
        "misfits": scoring.nonconformity[0],
        "misfit_weights": scoring.nonconformity[1],
        "threshold_scores": threshold.calibration_scores,
        "threshold_weights": threshold.calibration_weights,
        **_score_arrays(scoring),
    }
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    return {"facts": _as_bytes(_facts(scoring, labels)), **tensors}


def _facts(scoring: Scoring, labels: bool) -> dict[str, Any]:
    parts, threshold = [part for part, _, _ in scoring.standards], scoring.threshold
    if unknown := sorted(set(parts) - PARTS):
        raise ExportError(
            f"the score has the parts {unknown}, which no process without torch could compute; "
            "choose another `score`"
        )
    return {
        "format": FORMAT,
        "labels": labels,
        "root": scoring.root,
        "temperature": scoring.temperature,
        "standards": [list(standard) for standard in scoring.standards],
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


def _score_arrays(scoring: Scoring) -> dict[str, np.ndarray]:
    """What the parts of the score need."""
    parts = {part for part, _, _ in scoring.standards}
    distances, found = scoring.distances, {}
    if parts & {"mahalanobis", "relative"}:
        found |= {
            "center": distances.center,
            "covectors": distances.covectors,
            "offsets": distances.offsets,
        }
    if "mahalanobis" in parts:
        found |= {"base": np.float64(distances.base), "axes": distances.axes}
    if "knn" in parts:
        found["reference"] = np.rint(scoring.neighbors.features * GRID).astype(np.int16)
    return found
