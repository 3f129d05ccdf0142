"""Promises of two classes without validation images, by the first rules and by those of today.

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

COUNTS = (3, 5, 8, 20, 40)
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
            fresh = _drawn(data["test"], pair, _MOST, rng)
            for n in COUNTS:
                learned = _drawn(data["train"], pair, n, rng)
                for rules in range(1, RULES + 1):
                    head = ContinualClassifier(learned[0].shape[1], root=True, rules=rules)
                    head.extend(*learned)
                    where = {"promise": f"{n} images of two classes", "data": name, "draw": draw}
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
    found = {
        "false alarms": float(head.is_ood(features).double().mean()),
        "accuracy": float((probs.argmax(1) == targets).mean()),
        "confidence": float(probs.max(1).mean()),
        "ECE": measures.expected_calibration_error(probs, targets),
    }
    if strangers:
        found["detected"] = float(head.is_ood(torch.cat(strangers)).double().mean())
    return found
