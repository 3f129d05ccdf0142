"""Promises with few validation images and with imbalance: false alarms, ECE, sets, rare classes."""

from collections.abc import Iterator, Sequence
from itertools import product

import learnkit._torchvision  # noqa: F401  # before timm

import numpy as np
import torch
from _features import Split

from learnkit.continual.classifier import ContinualClassifier
from learnkit.evaluation import measures

ALPHA = 0.1
# learned and validation images of each class; the first of a line is what the others are held to
FEW = {
    8: (0, 1, 3, 8, 30),
    20: (0, 1, 3, 6, 30),
    40: (0, 1, 6, 20, 60),
    80: (0, 1, 5, 20, 40),
}
RATIOS = (10, 30)
RAREST = (5, 10)


def rows(features_by_name: dict[str, dict[str, Split]], draws: int) -> Iterator[dict]:
    """Rows of all cases: few validation images, then imbalance."""
    for name, data in features_by_name.items():
        for draw in range(draws):
            yield from _few(name, data, draw)
            yield from _imbalanced(name, data, draw)


def _few(name: str, data: dict[str, Split], draw: int) -> Iterator[dict]:
    """Validation images added to the same learned ones, and split off from them."""
    order, classes = _shuffled(data["train"], draw)
    for learned, counts in FEW.items():
        for extra in counts:
            if learned + extra > min(map(len, order.values())):
                continue
            train = {c: rows[:learned] for c, rows in order.items()}
            fresh = {c: rows[learned : learned + extra] for c, rows in order.items()}
            head = _fit(data, train, fresh)
            yield from _measured(head, data, classes, name, f"{learned}+{extra}", "few", draw)
    for whole, extra in ((8, 1), (20, 3), (40, 6)):
        if whole > min(map(len, order.values())):
            continue
        train = {c: rows[: whole - extra] for c, rows in order.items()}
        fresh = {c: rows[whole - extra : whole] for c, rows in order.items()}
        head = _fit(data, train, fresh)
        yield from _measured(head, data, classes, name, f"{whole - extra}+{extra}", "split", draw)


def _imbalanced(name: str, data: dict[str, Split], draw: int) -> Iterator[dict]:
    """Classes of unlike size, without validation images."""
    order, classes = _shuffled(data["train"], draw)
    most = min(map(len, order.values()))
    names = sorted(order)
    turned = names[draw % len(names) :] + names[: draw % len(names)]
    for ratio, rarest in product(RATIOS, RAREST):
        if rarest * ratio > max(most, 120):
            continue
        steps = np.geomspace(rarest * ratio, rarest, len(names)).round().astype(int)
        train = {c: order[c][:n] for c, n in zip(turned, steps, strict=True)}
        head = _fit(data, train, {})
        case, weights = (
            f"{ratio}:1 from {rarest}",
            dict(zip(turned, steps / steps.sum(), strict=True)),
        )
        yield from _measured(head, data, classes, name, case, "imbalance", draw, weights)


def _shuffled(split: Split, draw: int) -> tuple[dict[str, np.ndarray], list[str]]:
    """(rows of each class in an order of this draw, class names)."""
    generator = np.random.default_rng(draw)
    classes = sorted(set(split.labels.tolist()))
    return {c: generator.permutation(np.flatnonzero(split.labels == c)) for c in classes}, classes


def _fit(data: dict[str, Split], train: dict, fresh: dict, **settings) -> ContinualClassifier:
    """A classifier of these rows, with validation images."""
    split = data["train"]

    def taken(rows: dict) -> tuple[torch.Tensor, list[str]]:
        index = np.concatenate([*rows.values()])
        return split.features[index], split.labels[index].tolist()

    head = ContinualClassifier(split.features.shape[1], **settings)
    has_fresh = sum(map(len, fresh.values()))
    head.extend(*taken(train), validation=taken(fresh) if has_fresh else None)
    return head


def _measured(
    head: ContinualClassifier,
    data: dict[str, Split],
    classes: Sequence[str],
    name: str,
    case: str,
    promise: str,
    draw: int,
    weights: dict | None = None,
) -> Iterator[dict]:
    """Rows of what test images say, weighted like the classes of the images to come."""
    test = data["test"]
    place = {c: i for i, c in enumerate(head.classes)}
    targets = np.array([place[c] for c in test.labels.tolist()])
    scoring = head.scoring
    probs = scoring.probs(test.features.numpy()).astype("float64")
    share = np.array([(weights or {}).get(c, 1 / len(classes)) for c in test.labels.tolist()])
    share = share / np.array([(test.labels == c).sum() for c in test.labels.tolist()])
    share /= share.sum()
    flagged = head.is_ood(test.features).numpy()
    sets = head.prediction_sets(test.features, ALPHA).numpy()
    right = probs.argmax(1) == targets
    found = {
        "false alarms": share @ flagged,
        "ECE": measures.expected_calibration_error(probs, targets, weights=share),
        "accuracy": share @ right,
        "confidence": share @ probs.max(1),
        "set size": share @ sets.sum(1),
        "coverage": share @ sets[np.arange(len(targets)), targets],
        "worst class": max(flagged[targets == i].mean() for i in range(len(classes))),
    }
    for metric, value in found.items():
        yield {
            "promise": promise,
            "data": name,
            "case": case,
            "metric": metric,
            "value": float(value),
            "draw": draw,
        }
