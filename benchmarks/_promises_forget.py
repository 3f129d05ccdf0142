"""Promises of forgetting: classes that are forgotten and learned again flag no more than before.

Cases: "once" learned; "again", all classes forgotten, then learned again; "twice" so; "corrected",
a tenth of the images of two classes learned under the name of the other, then both forgotten and
learned again with the right names; "half", all forgotten and half of the images learned again;
"half alone", those without the others before. With 64 and 16 features remembered of each class.
"""

from typing import Any

import numpy as np
import torch
from _features import Split

from learnkit.continual.classifier import ContinualClassifier

N = 120  # images a class; fewer where a class has fewer
MEMORIES = (64, 16)


def rows(features_by_name: dict[str, dict[str, Split]], draws: int) -> list[dict[str, Any]]:
    """Measured rows: promise, data, case, metric, value, draw."""
    found = []
    for data, splits in features_by_name.items():
        for draw in range(draws):
            chosen = _drawn(splits["train"], draw)
            for memory in MEMORIES:
                for case, head in _cases(chosen, memory):
                    measured = _measured(head, splits["test"])
                    found += [
                        {
                            "promise": "forget",
                            "data": data,
                            "case": f"{case}, memory {memory}",
                            "metric": metric,
                            "value": value,
                            "draw": draw,
                        }
                        for metric, value in measured.items()
                    ]
    return found


def _drawn(train: Split, draw: int) -> Split:
    """At most `N` images of each class, in random order."""
    rng = np.random.default_rng(draw)
    kept = [rng.permutation(np.flatnonzero(train.labels == name))[:N] for name in _names(train)]
    order = np.concatenate(kept)
    return Split(train.features[order], train.labels[order])


def _names(split: Split) -> list[str]:
    return sorted(set(split.labels.tolist()))


def _cases(images: Split, memory: int) -> list[tuple[str, ContinualClassifier]]:
    names = _names(images)
    halves = np.concatenate(
        [at[: len(at) // 2] for at in (np.flatnonzero(images.labels == name) for name in names)]
    )
    half = Split(images.features[halves], images.labels[halves])
    again = _learned(images, memory)
    _forgotten_and_learned(again, images, names)
    twice = _learned(images, memory)
    for _ in range(2):
        _forgotten_and_learned(twice, images, names)
    halved = _learned(images, memory)
    _forgotten_and_learned(halved, half, names)
    first = names[:2]
    corrected = _learned(Split(images.features, _mixed_up(images.labels, *first)), memory)
    _forgotten_and_learned(corrected, images, first)
    return [
        ("once", _learned(images, memory)),
        ("again", again),
        ("twice", twice),
        ("corrected", corrected),
        ("half alone", _learned(half, memory)),
        ("half", halved),
    ]


def _mixed_up(labels: np.ndarray, one: str, other: str) -> np.ndarray:
    """The labels, a tenth of the images of both classes under the name of the other."""
    mixed = labels.copy()
    for name, wrong in ((one, other), (other, one)):
        mixed[np.flatnonzero(labels == name)[::10]] = wrong
    return mixed


def _learned(images: Split, memory: int) -> ContinualClassifier:
    head = ContinualClassifier(images.features.shape[1], memory=memory)
    head.extend(images.features, images.labels.tolist())
    return head


def _forgotten_and_learned(head: ContinualClassifier, images: Split, names: list[str]) -> None:
    """Forget classes, then learn their images at once."""
    for name in names:
        head.forget(name)
    own = np.isin(images.labels, names)
    head.extend(images.features[torch.from_numpy(own)], images.labels[own].tolist())


def _measured(head: ContinualClassifier, test: Split) -> dict[str, float]:
    """Of fresh images: share flagged, accuracy, and share of prediction sets with the truth."""
    places = torch.tensor([head.classes.index(name) for name in test.labels.tolist()])
    sets = head.prediction_sets(test.features, 0.1)
    return {
        "false alarms": float(head.is_ood(test.features).double().mean()),
        "accuracy": float((head(test.features).argmax(1) == places).double().mean()),
        "coverage": float(sets[torch.arange(len(places)), places].double().mean()),
    }
