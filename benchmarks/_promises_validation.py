"""Promises with few validation images and with imbalance: false alarms, ECE, sets, rare classes."""

import inspect
from collections.abc import Iterator
from itertools import product

import learnkit._torchvision  # noqa: F401  # before timm

import numpy as np
import torch
from _features import Split

from learnkit.continual.classifier import ContinualClassifier
from learnkit.evaluation import measures
from learnkit.uncertainty.calibration import fit_temperature

_HAS_PER_CLASS = "per_class" in inspect.signature(ContinualClassifier).parameters
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
    order = _shuffled(data["train"], draw)
    most = min(map(len, order.values()))
    added = [("few", n, extra) for n, counts in FEW.items() for extra in counts]
    split_off = [("split", whole - extra, extra) for whole, extra in ((8, 1), (20, 3), (40, 6))]
    for promise, learned, extra in [*added, *split_off]:
        if learned + extra > most:
            continue
        train = {c: rows[:learned] for c, rows in order.items()}
        fresh = {c: rows[learned : learned + extra] for c, rows in order.items()}
        head = _fit(data, train, fresh)
        where = {"promise": promise, "data": name, "case": f"{learned}+{extra}", "draw": draw}
        yield from _rows(where, _measured(head, data, dict.fromkeys(order, 1.0)))


def _imbalanced(name: str, data: dict[str, Split], draw: int) -> Iterator[dict]:
    """Classes of unlike size, without validation images; of many, two are strangers."""
    order = _shuffled(data["train"], draw)
    names = sorted(order)
    turned = names[draw % len(names) :] + names[: draw % len(names)]
    known = turned[:-2] if len(turned) > 4 else turned
    for ratio, rarest in product(RATIOS, RAREST):
        steps = np.geomspace(rarest * ratio, rarest, len(known)).round().astype(int)
        if any(n > 0.9 * len(order[c]) for c, n in zip(known, steps, strict=True)):
            continue
        train = {c: order[c][:n] for c, n in zip(known, steps, strict=True)}
        rest = {c: order[c][n:] for c, n in zip(known, steps, strict=True)}
        mass = dict(zip(known, (steps / steps.sum()).tolist(), strict=True))
        for per_class in (False, True)[: 1 + _HAS_PER_CLASS]:
            head = _fit(data, train, {}, **({"per_class": True} if per_class else {}))
            case = f"{ratio}:1 from {rarest}" + (", per class" if per_class else "")
            where = {"promise": "imbalance", "data": name, "case": case, "draw": draw}
            yield from _rows(where, _measured(head, data, mass, rest))


def _shuffled(split: Split, draw: int) -> dict[str, np.ndarray]:
    """Rows of each class in an order of this draw."""
    generator = np.random.default_rng(draw)
    classes = sorted(set(split.labels.tolist()))
    return {c: generator.permutation(np.flatnonzero(split.labels == c)) for c in classes}


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
    mass: dict[str, float],
    validation: dict | None = None,
) -> dict[str, float]:
    """What test images say, weighted by the mass of their classes; others are strangers.

    With validation images, also the ECE of temperature scaling on them (Guo et al., 2017).
    """
    test = data["test"]
    known = np.isin(test.labels, [*mass])
    targets, share = _encoded(head, test.labels[known], mass)
    logits = head(test.features[known]).double().numpy()
    probs = _softmax(logits)
    flagged = head.is_ood(test.features).numpy()
    sets = head.prediction_sets(test.features[known], ALPHA).numpy()
    ece = measures.expected_calibration_error
    own = flagged[known]
    found = {
        "false alarms": share @ own,
        "ECE": ece(probs, targets, weights=share),
        "accuracy": share @ (probs.argmax(1) == targets),
        "confidence": share @ probs.max(1),
        "set size": share @ sets.sum(1),
        "coverage": share @ sets[np.arange(len(targets)), targets],
        "worst class": max(own[targets == i].mean() for i in set(targets.tolist())),
    }
    if not known.all():
        found["strangers found"] = flagged[~known].mean()
    if validation is not None:
        rows = np.concatenate([*validation.values()])
        labels, weights = _encoded(head, data["train"].labels[rows], mass)
        fresh = head(data["train"].features[rows]).double().numpy()
        temperature = fit_temperature(fresh, labels, weights=weights).temperature
        found["ECE by validation"] = ece(_softmax(logits / temperature), targets, weights=share)
    return {metric: float(value) for metric, value in found.items()}


def _encoded(
    head: ContinualClassifier, labels: np.ndarray, mass: dict[str, float]
) -> tuple[np.ndarray, np.ndarray]:
    """(places of the classes, weights summing to 1) of some images."""
    n = {c: (labels == c).sum() for c in mass}
    weights = np.array([mass[c] / n[c] for c in labels.tolist()])
    return np.array([head.classes.index(c) for c in labels.tolist()]), weights / weights.sum()


def _softmax(logits: np.ndarray) -> np.ndarray:
    return torch.from_numpy(logits).softmax(1).numpy()


def _rows(where: dict, found: dict[str, float]) -> Iterator[dict]:
    """One row a measure."""
    for metric, value in found.items():
        yield {**where, "metric": metric, "value": value}
