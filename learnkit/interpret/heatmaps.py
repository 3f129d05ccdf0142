"""Heatmaps and titles of images: evidence laid over them, losses written above."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from learnkit.errors import InterpretationError
from learnkit.interpret.canvas import shorten
from learnkit.interpret.gradcam import grad_cam
from learnkit.interpret.outputs import Outputs
from learnkit.interpret.tables import label_text

if TYPE_CHECKING:
    pass

SUPTITLE = "prediction / actual\nloss / probability of actual"
_BATCH = 32


def loss_title(outputs: Outputs, position: int) -> str:
    """Return `prediction / actual`, and below `loss / probability of actual`, of one sample."""
    predicted = shorten(label_text(outputs, outputs.pred_labels[position]), 18)
    actual = shorten(label_text(outputs, outputs.targets[position]), 18)
    prob = outputs.probability_of(outputs.targets)[position].item()
    names = f"{predicted} / {actual}"
    if len(names) > 26:
        names = f"{predicted} /\n{actual}"
    return f"{names}\n{outputs.losses[position].item():.2f} / {prob:.2f}"


def explained_classes(outputs: Outputs, positions: Sequence[int], explain: str) -> Tensor:
    """Return the class whose evidence is drawn for each sample, int64 (n,).

    Where a sample may have several labels, it is the one whose probability is furthest from truth.

    Raises:
        InterpretationError: `explain` is neither "actual" nor "predicted".
    """
    if explain not in ("actual", "predicted"):
        raise InterpretationError(f'`explain` is {explain!r}; choose "actual" or "predicted"')
    chosen = torch.tensor(list(positions), dtype=torch.int64)
    if outputs.multi_label:
        return (outputs.probs - outputs.targets)[chosen].abs().argmax(1)
    return (outputs.targets if explain == "actual" else outputs.pred_labels)[chosen]


def evidence(
    model: nn.Module, inputs: Tensor, classes: Tensor, *, min_cells: int = 16
) -> list[np.ndarray] | None:
    """Return one Grad-CAM map (h, w) per input (n, C, H, W), None with a warning if too coarse."""
    device = next((p.device for p in model.parameters()), inputs.device)
    maps: list[np.ndarray] = []
    for x, class_idx in zip(inputs.split(_BATCH), classes.split(_BATCH), strict=True):
        cam = grad_cam(model, x.to(device), class_idx.to(device))
        h, w = cam.shape[1:]
        if h * w < min_cells:
            warnings.warn(
                f"No heatmap is drawn: for images of {x.shape[2]} x {x.shape[3]} pixels the feature"
                f" map has {h} x {w} cells, fewer than `heatmap_thresh`={min_cells}. Train on"
                " larger images, or lower `heatmap_thresh`",
                stacklevel=3,
            )
            return None
        maps += list(cam.cpu().numpy())
    return maps
