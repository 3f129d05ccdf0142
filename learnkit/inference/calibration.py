"""Calibration of a deployed trained head: threshold and prediction sets from fresh images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from learnkit.continual.change_report import ChangeReport
from learnkit.data.labelled_images import Labelled
from learnkit.inference.batch import BATCH
from learnkit.inference.features import feature_rows
from learnkit.inference.model import Model
from learnkit.uncertainty.ood import softmax


def calibrate_detector(
    model: Model, images: Labelled, *, bs: int = BATCH, n_workers: int = 2, progress: bool = True
) -> ChangeReport:
    """What fresh images changed of the detector of `model` and the sets of its trained head.

    Both rest on these images beside those there were.

    Args:
        model: a trained head, and a detector beside it.
        images: not learned, of classes the detector knows.
        bs: images per forward pass.
        n_workers: decoding threads; 0 decodes between the passes.
        progress: show a progress bar.

    Raises:
        DataError: a class the detector does not know, or no image counts.
        UnreadableImagesError: images cannot be read; all of them are named.
    """
    detector, n_classes = model.detector, len(model.names)
    read = lambda pixels: np.concatenate(model.network.run(pixels), 1)
    run = {"read": read, "bs": bs, "n_workers": n_workers, "progress": progress}
    both = feature_rows(model.network, model.preprocessing, images.items, **run)
    features, logits = both[:, :-n_classes], both[:, -n_classes:].double().numpy()
    probs = torch.from_numpy(softmax(logits).astype(np.float32))
    numbers = {name: i for i, name in enumerate(model.names)}
    targets = torch.tensor([numbers.get(label, -1) for label in images.labels])
    known = detector.knowledge
    kept = known.validation
    places = kept.places_of(detector.statistics.fingerprints(features))
    before = [{kept.class_names[place] for place in were} for were in places]
    each = list(zip(before, images.labels, strict=True))
    held_out = features, images.labels, images.groups
    fresh = detector.are_fresh(*held_out) & [were != {label} for were, label in each]
    report = detector.validate(*held_out)
    # under another label they joined the sets before
    former = [next((numbers.get(one, -1) for one in were - {label}), -1) for were, label in each]
    if detector.knowledge is not known:
        detector.extend_sets(probs[fresh], targets[fresh], (probs, torch.tensor(former)))
    notes = ("confidences stay as they are: the trained head holds its own temperature",)
    return replace(report, notes=(*report.notes, *notes))
