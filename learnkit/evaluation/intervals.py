"""Intervals of 95 % confidence: of counts in closed form, of other measures by the bootstrap.

Rates, their means over classes and the area under a curve have theirs from counts alone, and none
is empty: of 10 right among 10 the interval goes down.

For the others 1,000 times as many samples as there are of each class are drawn from those of the
class, by a fixed seed, so that the same samples always give the same bounds. A class of n gives
n - 1 draws that count n / (n - 1) times each, which makes up for its own spread that it hides;
classes of one sample are drawn together.

Source: Efron and Tibshirani, "An introduction to the bootstrap", 1993, chapter 12.5 for means; Rao
and Wu, "Resampling inference with complex survey data", 1988, for the draws within classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from learnkit.evaluation.measures import (
    Z95,
    bin_numbers,
    class_counts,
    log_losses,
    precision_recall_f1,
    squared_errors,
    wilson_interval,
)

Array = np.ndarray
Interval = tuple[float, float]
N_RESAMPLES, N_BINS = 1000, 15
_ENDS = (0.025, 0.975)
_BLOCK = 2**20  # numbers held of the resamples at once
_NOTHING = (float("nan"), float("nan"))
_LEAST_SPREAD = 0.05  # of a resample, in shares of the samples' own


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
    # a hit counts in both totals, a sample that is missed or wrongly called in one
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
    # a grid finds the bounds to 5e-5; method 5 puts `mid` in the place of n - 1 and m - 1
    areas, mid = np.linspace(0, 1, 20_001), (n + m) / 2 - 1
    parts = (1 - areas) / (2 - areas) + areas / (1 + areas)
    spread = Z95 * np.sqrt(areas * (1 - areas) / (n * m) * (1 + mid * parts))
    inside = areas[np.abs(areas - auroc) <= spread + 1e-12]
    return float(inside.min()), float(inside.max())


@dataclass(frozen=True, eq=False)
class SampleValues:
    """What each sample adds to the measures of probabilities.

    Attributes:
        strata: class numbers (N,); all 0 where a sample may have several labels.
        losses: their log losses (N,).
        squares: their squared errors (N,).
        gaps: of each sample confidence less rightness, in the columns of the confidences' bins
            (N, 15).
    """

    strata: Array
    losses: Array
    squares: Array
    gaps: Array

    @classmethod
    def of(cls, probs: Array, targets: Array) -> SampleValues:
        """Of checked probabilities (N, C) and class numbers (N,), or flags (N, C)."""
        if targets.ndim == 2:
            confidence, right = probs, targets
            strata = np.zeros(len(targets), np.int64)
        else:
            confidence = probs.max(1, keepdims=True) if len(probs) else np.zeros((0, 1))
            right = (probs.argmax(1) == targets)[:, None] if len(probs) else confidence
            strata = targets
        gaps = np.zeros((len(targets), N_BINS))
        rows = np.arange(len(targets))[:, None]
        # several labels of a sample may share a bin, and `+=` would count them once
        np.add.at(gaps, (rows, bin_numbers(confidence, N_BINS)), confidence - right.astype(float))
        gaps /= max(confidence.shape[1], 1)
        return cls(
            strata.astype(np.int32),
            log_losses(probs, targets).astype(np.float32),
            squared_errors(probs, targets).astype(np.float32),
            gaps.astype(np.float32),
        )

    def intervals(self) -> dict[str, Interval]:
        """Bounds of `log_loss`, `brier_score` and `ece`; NaN of fewer than two samples.

        Those of the means are of Student's kind: each resample counts by its own spread. The
        calibration error is a sum of absolute gaps, so that chance always adds to it, twice in a
        resample: its lower bound takes off what chance adds in bins whose gaps might be nothing.
        All are widened to hold the measure itself.

        Source: Fang and Santos, "Inference on directionally differentiable functions", 2019, for
        the calibration error.
        """
        means = np.stack([self.losses, self.squares], 1).astype(np.float64)
        if len(means) < 2:
            return dict.fromkeys(("log_loss", "brier_score", "ece"), _NOTHING)
        draws = _Draws(self.strata)
        sums = np.stack([np.bincount(draws.numbers, column) for column in means.T], 1)
        mean_of_stratum = (sums / draws.sizes[:, None])[draws.numbers]
        spreads = np.square(means - mean_of_stratum) * draws.scale[:, None]
        # two means, their two variances, then the gaps of 15 bins
        columns = np.concatenate([means, spreads, self.gaps], 1)
        n, found = len(means), columns.mean(0)
        resamples = draws.sums(columns) / n
        loss, brier = (
            _of_resampled_mean(found[[k, 2 + k]], resamples[:, [k, 2 + k]], n) for k in (0, 1)
        )
        return {
            "log_loss": loss,
            "brier_score": brier,
            "ece": _of_resampled_gaps(found[4:], resamples[:, 4:], n),
        }


def _of_resampled_mean(found: Array, resamples: Array, n: int) -> Interval:
    """Bounds of a mean from (mean, variance) of the samples (2,) and of resamples (R, 2)."""
    mean, spread = found[0], np.sqrt(found[1] / n)
    # a resample of one value has no spread of its own to divide by
    least = max(_LEAST_SPREAD * spread, 1e-12)
    own = np.maximum(np.sqrt(np.maximum(resamples[:, 1], 0) / n), least)
    # bootstrap-t: the upper quantile gives the lower bound, and the lower one the upper
    low, high = np.quantile((resamples[:, 0] - mean) / own, _ENDS)
    return max(0.0, min(mean, mean - high * spread)), max(mean, mean - low * spread)


def _of_resampled_gaps(gaps: Array, resamples: Array, n: int) -> Interval:
    """Bounds of a sum of absolute gaps (B,), from those of resamples (R, B)."""
    error, apart = float(np.abs(gaps).sum()), resamples - gaps
    # grows without bound, and slower than sqrt(n): what the source asks of such a cut
    sure = np.abs(gaps) > np.sqrt(2 * np.log(n)) * apart.std(0)
    # the directional derivative of the absolute value: linear beside 0, and itself at 0
    change = (apart * np.sign(gaps))[:, sure].sum(1) + np.abs(apart[:, ~sure]).sum(1)
    low = error - float(np.quantile(change, _ENDS[1]))
    high = float(np.quantile(np.abs(resamples).sum(1), _ENDS[1]))
    return max(0.0, min(low, error)), min(max(high, error), 1.0)


class _Draws:
    """Draws within strata, of samples (N,) in whatever order."""

    def __init__(self, strata: Array):
        self.numbers = _without_single(strata)
        self.order = np.argsort(self.numbers, kind="stable")
        self.sizes = np.bincount(self.numbers)
        self.scale = (self.sizes / np.maximum(self.sizes - 1, 1))[self.numbers]

    def sums(self, columns: Array) -> Array:
        """Sums (N_RESAMPLES, K) of each resample of the rows (N, K)."""
        rng, n = np.random.default_rng(0), len(columns)
        weighted = (columns * self.scale[:, None])[self.order]
        n_draws = self.sizes - 1
        first = np.repeat(np.cumsum(self.sizes) - self.sizes, n_draws)
        size, found = np.repeat(self.sizes, n_draws), []
        step = max(1, _BLOCK // n)
        for start in range(0, N_RESAMPLES, step):
            rows = min(step, N_RESAMPLES - start)
            places = first + (rng.random((rows, len(first))) * size).astype(np.int64)
            places += n * np.arange(rows)[:, None]
            times = np.bincount(places.ravel(), minlength=rows * n).reshape(rows, n)
            found.append(times @ weighted)
        return np.concatenate(found)


def _without_single(strata: Array) -> Array:
    """Numbers (N,) of strata of two samples or more: those of one are joined, if need be to one."""
    numbers, sizes = np.unique(strata, return_inverse=True, return_counts=True)[1:]
    single = sizes == 1
    # a lone one has none to be drawn with, and joins the smallest stratum
    if single.sum() == 1 and len(sizes) > 1:
        single[np.where(single, len(strata), sizes).argmin()] = True
    joined = np.where(single, len(sizes), np.arange(len(sizes)))
    return np.unique(joined[numbers], return_inverse=True)[1]


def fpr_interval(
    known: Any, targets: Any, ood: Any, *, tpr: float = 0.95, measured: float
) -> Interval:
    """Bounds of the share of known images flagged when `tpr` of the OOD images are.

    The threshold varies with the OOD images, the share above it with the known ones, class by
    class. Resampling never sees what did not occur, so that the bounds are at least Wilson's of the
    share: perfect separation has an upper bound above 0.

    Args:
        known: OOD scores of known images (N,).
        targets: their class numbers (N,); flags (N, C) are one class.
        ood: OOD scores of images of no class (M,).
        tpr: share of these that is flagged at least.
        measured: the share of known images that are flagged then.
    """
    known, ood, targets = (
        np.asarray(known, float),
        np.sort(np.asarray(ood, float)),
        np.array(targets),
    )
    n, m = len(known), len(ood)
    if not n or not m or np.isnan(measured):
        return _NOTHING
    rng, rank = np.random.default_rng(0), m - int(np.ceil(tpr * m - 1e-9))
    # the k-th lowest of m draws with replacement: a uniform order statistic, times m
    cuts = ood[(rng.beta(rank + 1, m - rank, N_RESAMPLES) * m).astype(np.int64).clip(0, m - 1)]
    total = np.zeros(N_RESAMPLES, np.int64)
    numbers = np.zeros(n, np.int64) if targets.ndim == 2 else targets
    for number in np.unique(numbers):
        own = np.sort(known[numbers == number])
        above = len(own) - np.searchsorted(own, cuts)
        total += rng.binomial(len(own), above / len(own))
    low, high = np.quantile(total / n, _ENDS)
    least, most = wilson_interval(round(measured * n), n)
    return float(min(low, least)), float(max(high, most))
