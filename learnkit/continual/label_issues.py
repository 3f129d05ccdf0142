"""Label issues: what is odd about new images to a classifier that has not learned them yet.

Many images of known classes that are flagged as OOD mean that something has changed: the camera,
the light, the labels. A new class that looks like a known one may be that class under another name.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from learnkit.continual.fingerprints import NONE
from learnkit.uncertainty.checks import Array
from learnkit.uncertainty.scoring import Scoring
from learnkit.uncertainty.threshold import Threshold

if TYPE_CHECKING:
    from learnkit.continual.memory import FeatureMemory
    from learnkit.continual.statistics import ClassStatistics

_LOOKED, _PER_CLASS = 512, 32  # images looked at, in all and of a class
_LEAST_FLAGGED = 0.25  # share flagged that is worth a word, however many images there are
_LEAST_SCORES = 20  # what a threshold rests on before its false-alarm rate can be held against it
_CHANCE = 1e-3
_LEAST_IMAGES, _ALIKE, _SURE = 3, 0.8, 0.8  # of a new class; share and confidence that count


def label_issues(
    scoring: Scoring, stats: ClassStatistics, features: Tensor, labels: Sequence[str]
) -> tuple[str, ...]:
    """Notes on new images, as the classifier saw them before it learned them; mostly none.

    Args:
        scoring: What follows from the statistics so far, the threshold as fitted.
        stats: These statistics.
        features: Pooled features of the new images (N, D), none of them blank.
        labels: A class name per image.
    """
    rows = _spread(labels)
    labels = [labels[row] for row in rows]
    seen = features[rows].numpy()
    flagged = scoring.threshold.is_ood(scoring.ood_scores(seen)).tolist()
    known = {name for name, n in zip(stats.class_names, stats.counts.tolist(), strict=True) if n}
    probs = scoring.probs(seen)
    likeness = [
        stats.class_names[place] if prob >= _SURE and not out else None
        for place, prob, out in zip(probs.argmax(1), probs.max(1), flagged, strict=True)
    ]
    of_known = [out for out, name in zip(flagged, labels, strict=True) if name in known]
    return (*_drift(scoring.threshold, of_known), *_twins(labels, likeness, known))


def optimism(
    stats: ClassStatistics, validation: FeatureMemory, fingerprints: Array
) -> tuple[str, ...]:
    """Notes where images to evaluate on, by their fingerprints (N,), have had a part in a model.

    Args:
        stats: What it learned.
        validation: Images that decide its threshold and temperature.
        fingerprints: Of the images.
    """
    n, kept = len(fingerprints), [NONE, *(cell.fingerprints for cell in validation.cells)]
    least = "at least " if stats.n_unseen else ""
    notes = learned_notes(int(stats.learned.know(fingerprints).sum()), n, least)
    if decide := int(np.isin(fingerprints, np.concatenate(kept)).sum()):
        notes += (
            f"{decide} of {n} images decide threshold and temperature of this model: false alarms "
            "and calibration error are optimistic",
        )
    return notes


def learned_notes(n_learned: int, n: int, least: str = "") -> tuple[str, ...]:
    """A note where a model has learned images to evaluate on."""
    if not n_learned:
        return ()
    return (
        f"{least}{n_learned} of {n} images were learned by this model: the numbers are optimistic",
    )


def not_learned_before(
    stats: ClassStatistics, features: Tensor, labels: Sequence[str]
) -> tuple[Tensor, list[str], tuple[str, ...]]:
    """(features, labels, notes) of the images that their classes have not learned yet.

    Of those that come twice the first is one.
    """
    repeated = stats.repeated(features, labels)
    elsewhere = int((stats.knows(features) & ~repeated).sum())
    notes, n, rows = [], len(labels), np.flatnonzero(~repeated)
    if len(rows) < n:
        notes.append(
            f"already learned: {n - len(rows)} of {n} images, which count once; `again=True` "
            "counts them once more"
        )
    if elsewhere:
        notes.append(
            f"{elsewhere} of {n} images were learned under another name before, and speak for both "
            "classes now; `subtract` them from the wrong one"
        )
    return features[rows], [labels[row] for row in rows], tuple(notes)


def _spread(labels: Sequence[str]) -> list[int]:
    """Rows to look at: evenly spaced ones of each class."""
    rows: dict[str, list[int]] = {}
    for row, label in enumerate(labels):
        rows.setdefault(label, []).append(row)
    most = max(1, min(_PER_CLASS, _LOOKED // len(rows)))
    chosen = [row for own in rows.values() for row in own[:: -(-len(own) // most)]]
    return chosen[:: -(-len(chosen) // _LOOKED)]


def _drift(threshold: Threshold, flagged: list[bool]) -> tuple[str, ...]:
    """A note if more images of known classes are flagged than the threshold lets one expect."""
    n, k = len(flagged), sum(flagged)
    rate = threshold.false_alarm_rate
    if not n or rate is None or threshold.n < _LEAST_SCORES or k < _LEAST_FLAGGED * n:
        return ()
    if _at_least(k, n, rate) > _CHANCE:
        return ()
    return (
        f"{k} of {n} new images of known classes were flagged as out-of-distribution before they "
        f"were learned, where {rate:.0%} would be expected: have camera, light or parts changed, "
        "or are labels wrong?",
    )


def _twins(
    labels: Sequence[str], likeness: Sequence[str | None], known: set[str]
) -> tuple[str, ...]:
    """A note for every new class whose images were taken for one known class."""
    notes = []
    for name in dict.fromkeys(label for label in labels if label not in known):
        seen = [other for label, other in zip(labels, likeness, strict=True) if label == name]
        ((other, n),) = Counter(seen).most_common(1)
        if other is not None and len(seen) >= _LEAST_IMAGES and n >= _ALIKE * len(seen):
            notes.append(
                f"{n} of {len(seen)} images of the new class {name!r} were taken for {other!r}, "
                "and none of these was flagged as out-of-distribution: if both are one, join them "
                "with merge_classes"
            )
    return tuple(notes)


def _at_least(k: int, n: int, rate: float) -> float:
    """Probability of `k` or more of `n` at this rate.

    >>> round(_at_least(2, 3, 0.5), 6)
    0.5
    """
    return sum(math.comb(n, i) * rate**i * (1 - rate) ** (n - i) for i in range(k, n + 1))
