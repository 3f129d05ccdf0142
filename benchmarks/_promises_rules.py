"""Promises without validation images, by the first rules and by those of today.

Of two classes, and of few images of all classes.

`pcb` and `lamp` are split at random; `lamp` are made: one board with noise, scratches and spots.
"""

from collections.abc import Iterator

import learnkit._torchvision  # noqa: F401  # before timm

import numpy as np
import torch
from _features import Split

from learnkit.continual.classifier import ContinualClassifier
from learnkit.continual.settings import RULES
from learnkit.evaluation import measures

COUNTS = {"two": (2, 3, 5, 8, 20, 40), "all": (2, 3, 5)}
_MOST = 150  # fresh images of each class


def rows(features_by_name: dict[str, dict[str, Split]], draws: int) -> Iterator[dict]:
    """Rows of pairs of classes drawn at random, each learned from so many images."""
    for name, data in features_by_name.items():
        strangers = [
            other["test"].features[:300] for key, other in features_by_name.items() if key != name
        ]
        for draw in range(draws):
            rng = np.random.default_rng(draw)
            pair = rng.choice(np.unique(data["train"].labels), 2, replace=False)
            every = np.unique(data["train"].labels)
            for which, n in ((which, n) for which, counts in COUNTS.items() for n in counts):
                names = pair if which == "two" else every
                fresh = _drawn(data["test"], names, _MOST, rng)
                learned = _drawn(data["train"], names, n, rng)
                for rules in range(1, RULES + 1):
                    head = ContinualClassifier(learned[0].shape[1], root=True, rules=rules)
                    head.extend(*learned)
                    where = {
                        "promise": f"{n} images of {which} classes",
                        "data": name,
                        "draw": draw,
                    }
                    for metric, value in _measured(head, fresh, strangers).items():
                        yield {**where, "case": f"rules {rules}", "metric": metric, "value": value}


def _drawn(
    part: Split, names: np.ndarray, n: int, rng: np.random.Generator
) -> tuple[torch.Tensor, list[str]]:
    """(features, labels) of up to n images of each class."""
    each = [rng.permutation(np.flatnonzero(part.labels == name))[:n] for name in names]
    rows = np.concatenate(each)
    return part.features[rows], part.labels[rows].tolist()


def _measured(
    head: ContinualClassifier, fresh: tuple[torch.Tensor, list[str]], strangers: list[torch.Tensor]
) -> dict[str, float]:
    """What fresh images and strangers get."""
    features, labels = fresh
    probs = head(features).softmax(1).double().numpy()
    targets = np.array([head.classes.index(label) for label in labels])
    sets = head.prediction_sets(features).double()
    found = {
        "false alarms": float(head.is_ood(features).double().mean()),
        "accuracy": float((probs.argmax(1) == targets).mean()),
        "confidence": float(probs.max(1).mean()),
        "ECE": measures.expected_calibration_error(probs, targets),
        "coverage": float(sets[range(len(targets)), targets].mean()),
    }
    if strangers:
        found["detected"] = float(head.is_ood(torch.cat(strangers)).double().mean())
    return found
