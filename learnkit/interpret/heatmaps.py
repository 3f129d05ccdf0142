"""Heatmaps and titles of images: evidence laid over them, losses written above."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from learnkit.errors import InterpretationError
from learnkit.interpret.gradcam import grad_cam
from learnkit.interpret.outputs import Outputs
from learnkit.report.figure_text import figure_names

SUPTITLE = "prediction / actual\nloss / probability of actual"
_BATCH = 32
_WIDTH = 24  # characters of a name
_LABELS = 2  # of an image that has several


def loss_titles(
    outputs: Outputs, positions: Sequence[int]
) -> tuple[list[str], list[str], dict[str, Any]]:
    """(titles of samples, names of all classes, keywords to write both with).

    A title says `prediction / actual`, below it `loss / probability of actual`, and the file.
    """
    names, style = figure_names([*outputs.classes, *_file_names(outputs, positions)], _WIDTH)
    names, files = names[: len(outputs.classes)], names[len(outputs.classes) :]
    probs = outputs.probability_of(outputs.targets)
    titles = []
    for i, position in enumerate(positions):
        predicted = _label(names, outputs, outputs.pred_labels[position])
        actual = _label(names, outputs, outputs.targets[position])
        between = " / " if len(predicted) + len(actual) <= 23 else " /\n"
        numbers = f"{outputs.losses[position].item():.2f} / {probs[position].item():.2f}"
        titles.append("\n".join([f"{predicted}{between}{actual}", numbers, *files[i : i + 1]]))
    return titles, names, style


def heat_titles(classes: Sequence[str], maps: Sequence[np.ndarray]) -> list[str]:
    """What is said below each title: whose evidence the map shows, if there is any."""
    return [
        f"heat: {name}" if heat.max() > 0 else f"no evidence of {name}"
        for name, heat in zip(classes, maps, strict=True)
    ]


def _file_names(outputs: Outputs, positions: Sequence[int]) -> list[str]:
    """Names of the samples' files, with the folder where names are there twice; none if unknown."""
    if not outputs.items:
        return []
    paths = [Path(outputs.items[i]) for i in positions]
    alike = len({path.name for path in paths}) < len(set(paths))
    return ["/".join(path.parts[-2:]) if alike else path.name for path in paths]


def _label(names: Sequence[str], outputs: Outputs, label: Tensor) -> str:
    """The name of a class number, or those of the first flags (C,); a dash if none is set."""
    if not outputs.multi_label:
        return names[int(label)]
    found = [names[i] for i in torch.nonzero(label)[:, 0].tolist()]
    more = [f"{len(found) - _LABELS} more"] if len(found) > _LABELS else []
    return "; ".join([*found[:_LABELS], *more]) or "–"


def file_at(outputs: Outputs, image: Any) -> Any:
    """The file of a sample by its place; anything but a whole number as it is.

    Raises:
        InterpretationError: There is no sample at this place, or its file is not known.
    """
    if not isinstance(image, int | np.integer):
        return image
    files, n = outputs.items, len(outputs)
    if files is not None and -n <= image < n:
        return files[image]
    why = "their files are not known" if files is None else f"there are {n}"
    raise InterpretationError(
        f"`image` is {image}, a place among these images, and {why}; give another place, or a file "
        "or picture"
    )


def mistakes_among(outputs: Outputs, positions: Sequence[int]) -> str:
    """How many of the samples are mistakes, where not all are; else nothing."""
    n_wrong, n = int((~outputs.correct[list(positions)]).sum()), len(positions)
    if n_wrong == n:
        return ""
    return f"{n_wrong or 'none'} of these {n} {'is' if n_wrong < 2 else 'are'} wrong"


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
