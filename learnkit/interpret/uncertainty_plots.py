"""Plots of uncertainty: OOD scores and their threshold, confidence before and after calibration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from learnkit.errors import InterpretationError
from learnkit.interpret.plots import BLUE, GREY, VERMILION, ink, lighten, new_axes
from learnkit.uncertainty.checks import check_scores
from learnkit.uncertainty.ood import BLANK_SCORE, evaluate_ood

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from learnkit.evaluation.measures import CalibrationBins

_FEWEST_BINS, _MOST_BINS = 12, 60
_REACH = 2.0  # how many times the known scores' span the axis may show of the others


def plot_ood(
    scores_in: Any,
    threshold: Any,
    scores_out: Any = None,
    *,
    ax: Axes | None = None,
    title: str | None = None,
) -> Axes:
    """Draw OOD scores of known (and unknown) images with the threshold; return the Axes.

    The legend gives the share of each kind that is flagged. Each kind fills the area 1. The last
    bar also holds what lies beyond the axis, so that no blank frame stretches it.

    Args:
        scores_in: scores of images of known classes (N,).
        threshold: a `Threshold`, or the score above which images are flagged.
        scores_out: scores of out-of-distribution images (M,), if there are any.
        ax: where to draw; a new figure if None.
        title: of the Axes; by default how well the scores tell both kinds apart.

    Raises:
        InterpretationError: there is no score at all.
        UncertaintyError: scores that are not finite numbers.
    """
    cut = float(threshold)
    known = check_scores(scores_in, name="scores_in")
    unknown = check_scores([] if scores_out is None else scores_out, name="scores_out")
    if not len(known) + len(unknown):
        raise InterpretationError("`scores_in` and `scores_out` are empty; give scores to draw")
    ax = ax or new_axes((5.4, 3.4))
    edges = _edges(known, unknown, cut)
    for name, scores, color in (("known", known, BLUE), ("unknown", unknown, VERMILION)):
        if len(scores):
            label = f"{name}: {_percent((scores > cut).mean())} of {len(scores)} flagged"
            inside = np.clip(scores, edges[0], edges[-1])
            style = {"color": color, "alpha": 0.45, "edgecolor": "none", "linewidth": 0.4}
            ax.hist(inside, edges, density=True, label=label, **style)
    ax.axvline(cut, color=ink(), linewidth=1.2, linestyle="--", label=_name(threshold, cut))
    ax.set(xlabel="OOD score (higher = further out)", ylabel="density")
    ax.set_title(_separation(known, unknown) if title is None else title, parse_math=False)
    ax.set_xlim(edges[0], edges[-1])
    ax.set_yticks([])
    ax.margins(y=0.12)
    ax.legend(frameon=False, fontsize=8)
    lighten(ax)
    return ax


def plot_calibration(
    before: CalibrationBins,
    after: CalibrationBins,
    *,
    ax: Axes | None = None,
    title: str = "Reliability before and after calibration",
) -> Axes:
    """Draw accuracy over confidence per bin, before and after, and return the Axes.

    The area of a point is the share of the images in its bin; the legend gives the calibration
    errors. Points below the diagonal are too sure of themselves.

    Args:
        before: what `learnkit.evaluation.measures.calibration_bins` returns of the uncalibrated
            probabilities.
        after: the same of the calibrated ones.
        ax: where to draw; a new figure if None.
        title: of the Axes.
    """
    ax = ax or new_axes((4.4, 4.2))
    ax.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--", label="ideal")
    looks = [("before", before, VERMILION, "s"), ("after", after, BLUE, "o")]
    for name, bins, color, marker in looks:
        filled = bins.n > 0
        share = bins.n[filled] / max(bins.n.sum(), 1e-12)
        confidence, accuracy = bins.confidence[filled], bins.accuracy[filled]
        error = (share * np.abs(confidence - accuracy)).sum() if filled.any() else np.nan
        ax.plot(confidence, accuracy, color=color, linewidth=1, alpha=0.4)
        label = f"{name}: ECE {error:.3f}"
        style = {"color": color, "marker": marker, "zorder": 3, "label": label}
        ax.scatter(confidence, accuracy, s=10 + 200 * share, **style)
    ax.set(title=title, xlabel="Confidence", ylabel="Accuracy", xlim=(0, 1), ylim=(0, 1.03))
    ax.set_aspect("equal")
    legend = ax.legend(frameon=False, loc="upper left", fontsize=8)
    # of one size: a point of the legend stands for no bin
    for handle in legend.legend_handles[1:]:
        handle.set_sizes([30])
    lighten(ax)
    return ax


def _separation(known: np.ndarray, unknown: np.ndarray) -> str:
    """Return a title: the measures of the score itself, where there are images of both kinds."""
    if not len(known) or not len(unknown):
        return "Out-of-distribution scores"
    found = evaluate_ood(known, unknown)
    return f"AUROC {found.auroc:.3f}, {100 * found.fpr_at_95_tpr:.1f} % false alarms at 95 % found"


def _edges(known: np.ndarray, unknown: np.ndarray, cut: float) -> np.ndarray:
    """Return bin edges over all scores, one of them at the threshold: no bar is half flagged."""
    both = np.concatenate([known, unknown])
    usual = known if len(known) else unknown
    usual = usual[usual < BLANK_SCORE] if usual.min() < BLANK_SCORE else np.array([cut])
    low, span = min(both.min(), cut), max(np.ptp(usual), abs(cut - usual.min()))
    span = span or max(1.0, abs(cut) * 0.1)
    high = min(both.max(), max(usual.max(), cut) + _REACH * span)
    high = max(high, cut + 0.05 * span)
    quartiles = np.percentile(both, [25, 75])
    width = 2 * np.ptp(quartiles) / len(both) ** (1 / 3)  # Freedman and Diaconis
    width = np.clip(width, (high - low) / _MOST_BINS, (high - low) / _FEWEST_BINS)
    n_below, n_above = np.ceil((cut - low) / width), np.ceil((high - cut) / width)
    return cut + width * np.arange(-max(n_below, 1), max(n_above, 1) + 1)


def _name(threshold: Any, cut: float) -> str:
    """Return what the legend says of the line."""
    rate = getattr(threshold, "false_alarm_rate", None)
    wanted = "" if rate is None else f", {_percent(rate)} wanted"
    return f"threshold {cut:.3g}{wanted}"


def _percent(share: float) -> str:
    """Return a share as text: `4.7 %`."""
    return f"{100 * share:.1f}".removesuffix(".0") + " %"
