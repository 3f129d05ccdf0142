"""Measures of out-of-distribution (OOD) detection; the OOD images are the positive class."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from learnkit.uncertainty.checks import Array, check_rate, check_scores


def auroc(scores_in: Any, scores_out: Any) -> float:
    """Probability in 0..1 that an OOD image scores higher than a known one, ties counting half.

    The area under the ROC curve with the out-of-distribution images as the positive class; .5 is
    chance. NaN if either side is empty.

    >>> auroc([0.1, 0.2, 0.3], [0.25, 0.9])
    0.8333333333333334
    """
    known, ood = _both_sides(scores_in, scores_out)
    if not len(known) or not len(ood):
        return math.nan
    known = np.sort(known)
    below, up_to = np.searchsorted(known, ood), np.searchsorted(known, ood, side="right")
    return float((below + up_to).mean() / (2 * len(known)))


def fpr_at_tpr(scores_in: Any, scores_out: Any, *, tpr: float = 0.95) -> float:
    """Share of known images flagged when at least `tpr` of the OOD ones are; lower is better.

    The out-of-distribution images are the positive class. (Part of the literature swaps the
    classes and reports the OOD images passed when 95 % of the known ones pass.) NaN if either
    side is empty.

    >>> fpr_at_tpr([0.1, 0.2, 0.3, 0.4], [0.25, 0.9])
    0.5
    """
    known, ood = _both_sides(scores_in, scores_out)
    tpr = 1.0 if tpr == 1 else check_rate(tpr, name="tpr")
    if not len(known) or not len(ood):
        return math.nan
    n_caught = math.ceil(tpr * len(ood) - 1e-9)
    cut = np.sort(ood)[len(ood) - n_caught]
    return float((known >= cut).mean())


@dataclass(frozen=True)
class OodEvaluation:
    """OOD detection by scores and a threshold, measured.

    Attributes:
        auroc: area under the ROC curve, OOD images positive.
        fpr_at_95_tpr: share of known images flagged when 95 % of the OOD ones are.
        false_alarm_rate: share of known images above the threshold.
        detection_rate: share of OOD images above the threshold.
        n_in: number of known images.
        n_out: number of OOD images.
        reason: why some of the numbers are NaN; empty if none is.
    """

    auroc: float
    fpr_at_95_tpr: float
    false_alarm_rate: float
    detection_rate: float
    n_in: int
    n_out: int
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, NaN as None: `json.dumps` takes it as it is."""
        values = asdict(self)
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in values.items()}


def evaluate_ood(scores_in: Any, scores_out: Any, threshold: float | None = None) -> OodEvaluation:
    """AUROC, FPR at 95 % TPR and, given a threshold, the realised rates of `score > threshold`.

    One-sided input is no error: what has no answer is NaN, and `reason` says why.
    """
    known, ood = _both_sides(scores_in, scores_out)
    sides = {"known": known, "out-of-distribution": ood}
    missing = [f"no {name} images" for name, scores in sides.items() if not len(scores)]
    if threshold is None:
        missing.append("no threshold")
    cut = math.nan if threshold is None else float(threshold)
    rates = [
        math.nan if math.isnan(cut) or not len(scores) else float((scores > cut).mean())
        for scores in (known, ood)
    ]
    sizes = len(known), len(ood)
    measured = auroc(known, ood), fpr_at_tpr(known, ood)
    return OodEvaluation(*measured, *rates, *sizes, reason=", ".join(missing))


def _both_sides(scores_in: Any, scores_out: Any) -> tuple[Array, Array]:
    return check_scores(scores_in, name="scores_in"), check_scores(scores_out, name="scores_out")
