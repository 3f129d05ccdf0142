"""The measures, each in one place: arrays in, floats out, NaN where a question has no answer.

Counting measures are functions of a confusion matrix: (C, C) for one label per sample, (C, 2, 2)
for several. Measures of probabilities take `probs` (N, C) and `targets`: class numbers (N,), or
zeros and ones (N, C) when a sample may have several labels. Where `weights` (N,) are taken, a
sample of weight 2 counts like two samples.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from learnkit.errors import EvaluationError, first_few, number_of
from learnkit.evaluation.inputs import (
    as_array,
    check_flags,
    check_labels,
    check_probs,
    check_same_length,
)

LOG_CLIP = float(np.finfo(np.float32).eps)  # 1.19e-7: what single precision resolves next to 1


_OF_ALL = (
    *("n", "accuracy", "accuracy_low", "accuracy_high", "macro_precision", "macro_recall"),
    *("macro_f1", "log_loss", "brier_score", "ece"),
)
_OF_OOD = ("false_alarm_rate", "detection_rate", "auroc", "fpr_at_95_tpr")


def asked_measures(
    names: Sequence[str] | None, *, multi_label: bool = False, good: Any = (), n_ood: int = -1
) -> tuple[str, ...] | None:
    """The names of the measures wanted, checked; None for all.

    Args:
        names: as a caller gave them.
        multi_label: an image may have several labels.
        good: classes that mean a part is good.
        n_ood: sets of images that OOD scores are there for: -1 none, 0 of known ones, 1 of both.

    Raises:
        EvaluationError: one is unknown, or cannot be measured here.
    """
    if names is None:
        return None
    names = (names,) if isinstance(names, str) else tuple(names)
    possible = [*_OF_ALL, "label_accuracy" if multi_label else "balanced_accuracy"]
    possible += ["escape_rate", "false_reject_rate"] if len(good) else []
    possible += {-1: (), 0: _OF_OOD[:1]}.get(n_ood, _OF_OOD)
    for name in names:
        if name in possible or (not multi_label and top_k_of(name)):
            continue
        needs = _NEEDS.get(name, "which is unknown")
        top = "" if multi_label else ", and top_k_accuracy with a number k, as top_3_accuracy"
        raise EvaluationError(
            f"`measures` names {name!r}, {needs}; there are {', '.join(possible)}{top}"
        )
    return names


_NEEDS = {
    **dict.fromkeys(("escape_rate", "false_reject_rate"), "which needs `good=[...]`"),
    **dict.fromkeys(_OF_OOD, "which needs a model that detects unknown images, and `ood=`"),
    "false_alarm_rate": "which needs a model that detects unknown images",
    "balanced_accuracy": "which is for one label per image",
    "label_accuracy": "which is for several labels per image",
}


def top_k_of(name: Any) -> int:
    """The k of a measure called "top_k_accuracy"; 0 of any other.

    >>> top_k_of("top_12_accuracy"), top_k_of("accuracy")
    (12, 0)
    """
    found = re.fullmatch(r"top_([1-9]\d*)_accuracy", name) if isinstance(name, str) else None
    return int(found[1]) if found else 0


def class_counts(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (hits, samples, predictions) per class, each (C,)."""
    if confusion.ndim == 3:
        return confusion[:, 1, 1], confusion[:, 1].sum(1), confusion[:, :, 1].sum(1)
    return np.diagonal(confusion), confusion.sum(1), confusion.sum(0)


def accuracy(confusion: np.ndarray) -> float:
    """Share of right answers in 0..1; for a (C, 2, 2) matrix, over all (sample, label) pairs."""
    if confusion.ndim == 3:
        return ratio(confusion[:, 0, 0].sum() + confusion[:, 1, 1].sum(), confusion.sum())
    return ratio(np.trace(confusion), confusion.sum())


Z95 = 1.959964  # of the normal distribution, for 95 % confidence


def wilson_interval(n_right: float, n: float, *, z: float = Z95) -> tuple[float, float]:
    """Bounds in 0..1 that hold the true share with 95 % confidence, given `n_right` of `n`.

    >>> wilson_interval(10, 10)
    (0.722, 1.0)
    """
    if n == 0:
        return float("nan"), float("nan")
    # Wilson, "Probable inference, the law of succession, and statistical inference", 1927.
    share, spread = n_right / n, z**2 / n
    centre = (share + spread / 2) / (1 + spread)
    half = z * np.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def paired_interval(n_lost: float, n_gained: float, n: float) -> tuple[float, float]:
    """Bounds that hold the change of a share with about 95 % confidence, from paired answers.

    Args:
        n_lost: images right before and wrong after.
        n_gained: images wrong before and right after.
        n: all images.

    >>> paired_interval(0, 0, 500)
    (-0.0055, 0.0055)
    """
    if n == 0:
        return float("nan"), float("nan")
    # Bonett and Price, "Adjusted Wald confidence interval for a difference of binomial proportions
    # based on paired data", 2012
    lost, gained = (n_lost + 1) / (n + 2), (n_gained + 1) / (n + 2)
    change = gained - lost
    half = Z95 * np.sqrt((lost + gained - change**2) / (n + 2))
    return max(-1.0, float(change - half)), min(1.0, float(change + half))


class ClassRates(NamedTuple):
    """Precision, recall and F1, float64 (C,) each in 0..1; NaN for a class without samples."""

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray

    def macro(self) -> ClassRates:
        """Return the plain means over the classes that have samples."""
        return ClassRates(*(mean_of_known(values) for values in self))


def precision_recall_f1(confusion: np.ndarray) -> ClassRates:
    """Precision, recall and F1 of every class; `.macro()` averages them.

    A class without samples gets NaN in all three and takes no part in the macro mean. A class with
    samples that is never predicted has precision 0, as in scikit-learn.

    >>> precision_recall_f1(np.array([[3, 1], [0, 4]])).recall
    array([0.75, 1.  ])
    """
    hits, n, predicted = class_counts(confusion)
    known = n > 0

    def rate(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
        safe = np.maximum(denominator, 1)
        return np.where(known, numerator / safe, np.nan)

    return ClassRates(rate(hits, predicted), rate(hits, n), rate(2 * hits, n + predicted))


def balanced_accuracy(confusion: np.ndarray) -> float:
    """Mean recall over the classes that have samples, in 0..1."""
    return mean_of_known(precision_recall_f1(confusion).recall)


def top_k_accuracy(probs: Any, targets: Any, k: int = 5) -> float:
    """Share of samples whose true class is among the `k` likeliest, in 0..1.

    `k` above the number of classes counts as that number. Equal probabilities rank the lower class
    number first, as argmax does, so that `k=1` is the accuracy.

    >>> top_k_accuracy([[.5, .3, .2], [.5, .3, .2]], [1, 2], k=2)
    0.5
    """
    probs = check_probs(probs)
    targets = check_labels(targets, probs.shape[1])
    check_same_length(probs=probs, targets=targets)
    true_prob = np.take_along_axis(probs, targets[:, None], axis=1)
    earlier = np.arange(probs.shape[1]) < targets[:, None]
    rank = ((probs > true_prob) | ((probs == true_prob) & earlier)).sum(1)
    return ratio((rank < k).sum(), len(targets))


def log_loss(probs: Any, targets: Any, *, weights: Any = None) -> float:
    """Mean of `-log p(truth)` in nats, 0 or more; lower is better.

    Probabilities are clipped at 1.19e-7 from below (single precision's epsilon), so that one
    confident error costs at most 15.9 and not infinity. With several labels per sample it is the
    binary log loss, averaged over samples and classes.
    """
    return mean(log_losses(*_checked(probs, targets)), weights)


def log_losses(probs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The log loss of each sample (N,), of checked arrays; of several labels their mean."""
    if targets.ndim == 1:
        truth = np.take_along_axis(probs, targets[:, None], axis=1)
    else:
        truth = np.where(targets, probs, 1 - probs)
    return -np.log(np.clip(truth.astype(np.float64), LOG_CLIP, 1)).mean(1)


def brier_score(probs: Any, targets: Any, *, weights: Any = None) -> float:
    """Mean over samples of the squared error summed over classes; lower is better.

    Between 0 and 2 with one label per sample (Brier's own definition; twice the one-column form
    that is common for two classes), between 0 and C with several.
    """
    # Brier, "Verification of forecasts expressed in terms of probability", 1950.
    return mean(squared_errors(*_checked(probs, targets)), weights)


def squared_errors(probs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The squared error of each sample, summed over classes (N,), of checked arrays."""
    # einsum casts a buffer at a time: no float64 copy of the probabilities
    squares = np.einsum("ij,ij->i", probs, probs, dtype=np.float64)
    if targets.ndim == 1:  # the sum without an (N, C) array of differences
        truth = np.take_along_axis(probs, targets[:, None], axis=1)[:, 0].astype(np.float64)
        # rounding takes a perfect answer a little below 0
        return np.maximum(squares - 2 * truth + 1, 0)
    return np.square(probs.astype(np.float64) - targets).sum(1)


class CalibrationBins(NamedTuple):
    """Cases (or their weight), mean confidence and share of right answers per bin, (n_bins,) each.

    The means of an empty bin are NaN.
    """

    n: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray


def calibration_bins(
    probs: Any, targets: Any, *, n_bins: int = 15, weights: Any = None
) -> CalibrationBins:
    """Confidence beside accuracy in `n_bins` bins of equal width.

    Bin i holds confidences in (i/n_bins, (i+1)/n_bins]; the first also holds 0. The confidence of
    a sample is its largest probability. With several labels per sample every (sample, class) pair
    is a case of its own: its confidence is the probability, it is right when the label is there.
    """
    probs, targets = _checked(probs, targets)
    if targets.ndim == 1:
        right = (probs.argmax(1) == targets) if len(targets) else np.zeros(0)
        confidence = probs.max(1) if len(targets) else np.zeros(0)
    else:
        right, confidence = targets.ravel(), probs.ravel()
    confidence = confidence.astype(np.float64)
    bins = bin_numbers(confidence, n_bins)
    w = None if weights is None else _per_case(weights, len(bins), len(targets))
    n = np.bincount(bins, w, minlength=n_bins)
    sums = (
        np.bincount(bins, x if w is None else w * x, minlength=n_bins) for x in (confidence, right)
    )
    # the inner `where`: numpy would warn of the 0 / 0 of an empty bin
    confidence, share = (np.where(n > 0, s / np.where(n > 0, n, 1), np.nan) for s in sums)
    return CalibrationBins(n, confidence, share)


def bin_numbers(confidence: np.ndarray, n_bins: int) -> np.ndarray:
    """The bin of each confidence, as `calibration_bins` counts them; of the same shape."""
    edges = np.arange(1, n_bins) / n_bins
    return np.searchsorted(edges, confidence, side="left")  # "left" closes the bins on the right


def expected_calibration_error(
    probs: Any, targets: Any, *, n_bins: int = 15, weights: Any = None
) -> float:
    """Mean distance between confidence and accuracy over the bins, weighted by cases, in 0..1.

    Lower is better. Bins as in `calibration_bins`: equal width, closed on the right.

    >>> expected_calibration_error([[.9, .1]] * 10, [0] * 7 + [1] * 3)  # right 7 times in 10
    0.2
    """
    # Naeini et al., "Obtaining well calibrated probabilities using Bayesian binning", 2015.
    n, confidence, share = calibration_bins(probs, targets, n_bins=n_bins, weights=weights)
    # an empty bin has no accuracy and weighs nothing
    return ratio((n * np.nan_to_num(np.abs(confidence - share))).sum(), n.sum())


class Inspection(NamedTuple):
    """Counts of an inspection that passes what is of a good class and not flagged.

    `n_flagged` is None where nothing can be flagged: no part goes to a person then.
    """

    n_defects: int
    n_escapes: int
    n_good: int
    n_rejects: int
    n_flagged: int | None


def inspection(targets: Any, predicted: Any, good: Any, flagged: Any = None) -> Inspection:
    """The counts of one inspection: escapes are defects predicted good and not flagged.

    False rejects are good parts predicted defect, or flagged.

    Args:
        targets: class numbers (N,).
        predicted: class numbers (N,).
        good: which classes mean that a part is good, bool (C,).
        flagged: which images are taken for unknown (N,), and so go to a person.

    >>> inspection([0, 0, 1, 1], [0, 1, 0, 1], [True, False])
    Inspection(n_defects=2, n_escapes=1, n_good=2, n_rejects=1, n_flagged=None)
    """
    good = np.asarray(good, bool)
    is_good = good[np.asarray(targets, np.int64)]
    unsure = np.zeros(len(is_good), bool) if flagged is None else np.asarray(flagged, bool)
    passed = good[np.asarray(predicted, np.int64)] & ~unsure
    return Inspection(
        n_defects=int((~is_good).sum()),
        n_escapes=int((~is_good & passed).sum()),
        n_good=int(is_good.sum()),
        n_rejects=int((is_good & ~passed).sum()),
        n_flagged=None if flagged is None else int(unsure.sum()),
    )


def good_classes(good: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """Which classes are good, bool (C,), by their names.

    Raises:
        EvaluationError: one is no class, or none is left for defects.
    """
    names = [good] if isinstance(good, str) else list(good)
    if unknown := [name for name in names if name not in classes]:
        raise EvaluationError(
            f"`good` names {unknown[0]!r}, which is no class; the classes are "
            f"{first_few(list(map(repr, classes)))}"
        )
    if names and set(classes) <= set(names):
        raise EvaluationError(
            "`good` names every class, so that nothing would be a defect; leave the defects out"
        )
    return np.array([name in names for name in classes], bool)


def ratio(numerator: float, denominator: float) -> float:
    """Return the quotient as a float, NaN over zero."""
    return float(numerator) / float(denominator) if denominator else float("nan")


def mean(values: np.ndarray, weights: Any = None) -> float:
    """Return the mean of all values as a float, each row weighted; NaN of nothing."""
    if weights is None:
        return ratio(values.sum(), values.size)
    weights = _per_case(weights, values.size, len(values))
    return ratio((values.ravel() * weights).sum(), weights.sum())


def mean_of_known(values: np.ndarray) -> float:
    """Return the mean of the values that are not NaN, NaN if none is."""
    return mean(values[~np.isnan(values)])


def _checked(probs: Any, targets: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return both checked; two-dimensional targets mean several labels per sample."""
    multi_label = np.ndim(targets) == 2
    probs = check_probs(probs, multi_label=multi_label)
    check = check_flags if multi_label else check_labels
    targets = check(targets, probs.shape[1])
    check_same_length(probs=probs, targets=targets)
    return probs, targets


def _per_case(weights: Any, n_cases: int, n_rows: int) -> np.ndarray:
    """Return the weights of the rows as float64, each for all cases of its row."""
    weights = as_array(weights).astype(np.float64)
    if weights.shape != (n_rows,) or not (weights > 0).all():
        raise EvaluationError(
            f"`weights` has shape {weights.shape} for {number_of(n_rows, 'row')}; give one above "
            "0 per row"
        )
    return np.repeat(weights, n_cases // max(n_rows, 1))
