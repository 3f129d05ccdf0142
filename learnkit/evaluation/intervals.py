"""Intervals of 95 % confidence around rates, their means over classes, and the area under a curve.

Every one comes from counts alone and is never empty: of 10 right among 10 the interval goes down.
"""

from __future__ import annotations

import numpy as np

from learnkit.evaluation.measures import Z95, class_counts, precision_recall_f1, wilson_interval

Array = np.ndarray
Interval = tuple[float, float]


def class_intervals(confusion: Array) -> dict[str, Array]:
    """Bounds (C, 2) of precision, recall and F1 of every class; NaN where there is nothing to know.

    That of F1 is the interval of Jaccard's index TP / (TP + FP + FN), a share of counts, turned
    into F1, of which it is a growing function.

    Source: Wilson 1927; Takahashi et al., "Confidence interval for micro-averaged F1 and
    macro-averaged F1 scores", 2022, for the variance that this one agrees with to first order.
    """
    hits, n, predicted = class_counts(confusion)
    jaccard = _bounds(hits, n + predicted - hits)
    found = {
        "precision": _bounds(hits, predicted),
        "recall": _bounds(hits, n),
        "f1": 2 * jaccard / (1 + jaccard),
    }
    absent = n == 0
    for bounds in found.values():
        bounds[absent] = np.nan
    # a class that is never predicted has precision 0 by convention, of no sample
    found["precision"][~absent & (predicted == 0)] = 0.0, 1.0
    return found


def _bounds(k: Array, n: Array) -> Array:
    return np.array([wilson_interval(int(a), int(b)) for a, b in zip(k, n, strict=True)])


def mean_intervals(confusion: Array) -> dict[str, Interval]:
    """Bounds of the means over the classes that have samples: macro precision, recall and F1.

    The distances of each class's bounds from its rate are combined as squares are: the method of
    variance estimates recovery. Recalls of classes are independent, and so are precisions; F1s go
    up and down together where classes are taken for each other.

    Source: Zou and Donner, "Construction of confidence limits about effect measures: a general
    approach", 2008, eq. 3; with correlations as in Zou, "Toward using confidence intervals to
    compare correlations", 2007.
    """
    rates, bounds = precision_recall_f1(confusion)._asdict(), class_intervals(confusion)
    found = {}
    for name in bounds:
        known = ~np.isnan(rates[name])
        together = _f1_correlation(confusion) if name == "f1" else np.eye(len(known))
        together = together[np.ix_(known, known)]
        found[f"macro_{name}"] = _of_mean(rates[name][known], bounds[name][known], together)
    return found


def _of_mean(rates: Array, bounds: Array, correlation: Array) -> Interval:
    if not len(rates):
        return float("nan"), float("nan")
    down, up = (
        float(np.sqrt(apart @ correlation @ apart)) / len(rates)
        for apart in np.abs(bounds - rates[:, None]).T
    )
    mean = float(rates.mean())
    return max(0.0, mean - down), min(1.0, mean + up)


def _f1_correlation(confusion: Array) -> Array:
    """Correlations (C, C) of the classes' F1 by the delta method; 0 where one does not vary.

    A sample of class i that is called j lowers the F1 of both.
    """
    if confusion.ndim == 3:  # labels of their own
        return np.eye(len(confusion))
    hits, n, predicted = (part.astype(np.float64) for part in class_counts(confusion))
    total = np.maximum(n + predicted, 1)
    lost, gained = 2 * hits / total**2, 2 / total  # of F1 by one more sample, and by one more hit
    shared = (confusion + confusion.T) * np.outer(lost, lost)
    variance = hits * (gained - 2 * lost) ** 2 + (n + predicted - 2 * hits) * lost**2
    scale = np.sqrt(np.outer(variance, variance))
    found = np.where(scale > 0, shared / np.where(scale > 0, scale, 1), 0.0)
    np.fill_diagonal(found, 1.0)
    return found


def auroc_interval(auroc: float, n: int, m: int) -> Interval:
    """Bounds of the area under a ROC curve of `n` negative and `m` positive samples.

    Where the true area would lie for which this one is just 1.96 standard errors away.

    Source: Hanley and McNeil, "The meaning and use of the area under a ROC curve", 1982; Newcombe,
    "Confidence intervals for an effect size measure based on the Mann-Whitney statistic", 2006,
    method 5.
    """
    if not n or not m or np.isnan(auroc):
        return float("nan"), float("nan")
    areas, mid = np.linspace(0, 1, 20_001), (n + m) / 2 - 1
    parts = (1 - areas) / (2 - areas) + areas / (1 + areas)
    spread = Z95 * np.sqrt(areas * (1 - areas) / (n * m) * (1 + mid * parts))
    inside = areas[np.abs(areas - auroc) <= spread + 1e-12]
    return float(inside.min()), float(inside.max())
