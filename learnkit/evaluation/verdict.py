"""The verdict on a classifier in sentences, and each measure in a few words."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from learnkit.evaluation.measures import wilson_interval
from learnkit.report.document import interval_ends, share_text

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from learnkit.evaluation.measures import Inspection

_NAMED = 5  # classes that a sentence names
# Accuracy is that of the large classes where the largest has this many times its even share, and
# the mean over the classes is lower by this much.
_UNEVEN, _GAP = 1.5, 0.05
MEANINGS = {
    "n": "images",
    "accuracy": "share of the images that are right",
    "accuracy_low": "from here, with 95 % confidence",
    "accuracy_high": "to here",
    "label_accuracy": "share of the single labels that are right",
    "balanced_accuracy": "mean recall: every class counts alike",
    "macro_precision": "right among those called a class, mean",
    "macro_recall": "found among those of a class, mean",
    "macro_f1": "harmonic mean of both, mean over classes",
    "log_loss": "surprise at the truth; 0 is best",
    "brier_score": "squared error of probabilities; 0 is best",
    "ece": "gap of confidence and accuracy; 0 is best",
    "false_alarm_rate": "known images that are called unknown",
    "detection_rate": "unknown images that are noticed",
    "auroc": "unknown scored above known; 1 is best",
    "fpr_at_95_tpr": "false alarms at 95 % of the unknown noticed",
    "escape_rate": "defects that pass as good and are not flagged",
    "false_reject_rate": "good parts that are rejected or flagged",
}
COLUMNS = (
    "n: images of the class; precision: right among those called it; recall: found among its "
    "images; f1: harmonic mean of both; predicted: images called it"
)


def meaning(name: str) -> str:
    """What a measure of `Evaluation.summary` is, in a few words.

    >>> meaning("top_5_accuracy")
    'truth is among the 5 likeliest'
    """
    if name.startswith("top_"):
        return f"truth is among the {name.split('_')[1]} likeliest"
    return MEANINGS.get(name, "")


def verdict_sentences(
    summary: pd.Series,
    per_class: pd.DataFrame,
    confusion: pd.DataFrame,
    *,
    multi_label: bool = False,
    n_ood: int = 0,
    promised: float | None = None,
    inspection: Inspection | None = None,
    gone: np.ndarray | None = None,
    n_counted: float | None = None,
) -> tuple[str, ...]:
    """How many are right, what misleads, the worst class, and what is noticed of the unknown.

    Args:
        summary: see `Evaluation`.
        per_class: see `Evaluation`.
        confusion: see `Evaluation`.
        multi_label: whether an image may have several labels.
        n_ood: out-of-distribution images that were shown.
        promised: share of the known images that may be called unknown.
        inspection: escapes and false rejects, where good classes are told.
        n_counted: how many images all of them tell as much as; None for every one.
        gone: which classes, bool (C,), are no answer any more, and thus not missed.
    """
    n = int(summary["n"])
    if not n:
        return ("No images, nothing to judge.",)
    right = "images with all labels right" if multi_label else "images right"
    bounds = summary[["accuracy_low", "accuracy_high"]]
    said = [f"{_counted(round(summary['accuracy'] * n), n, right, bounds)}."]
    if multi_label:
        said += [f"{share_text(summary['label_accuracy'])} of the single labels right."]
        said += _worst_label(per_class, confusion)
    else:
        said += _imbalance(summary, per_class, gone)
        said += _worst_class(per_class, confusion)
    said += [] if inspection is None else _inspected(inspection)
    said += _absent(per_class if gone is None else per_class[~gone])
    return *said, *_unknown(summary, (n, n_counted or n), n_ood, promised)


def _imbalance(summary: pd.Series, per_class: pd.DataFrame, gone: np.ndarray | None) -> list[str]:
    """What accuracy hides: one class that is most of the images."""
    counts = per_class["n"][per_class["n"] > 0]
    n, name = int(counts.max()), counts.idxmax()
    share, said = n / summary["n"], []
    if share == 1:
        return [f"All images are of one class, {name}."]
    low = summary["balanced_accuracy"] < summary["accuracy"] - _GAP
    if low and share * len(counts) > _UNEVEN:
        said.append(
            f"Accuracy misleads here: {n} of {summary['n']:.0f} images are {name}; averaged over "
            f"the classes {share_text(summary['balanced_accuracy'])} are right."
        )
    # what is no answer cannot be said of every image
    if gone is not None and gone[per_class.index.get_loc(name)]:
        return said
    if summary["accuracy_low"] <= share:
        said.append(
            f"To call every image {name} would be right for {share_text(share)}: this is not "
            "clearly better."
        )
    return said


def _worst_class(per_class: pd.DataFrame, confusion: pd.DataFrame) -> list[str]:
    """The class of the lowest recall, and what it is taken for; of equals the larger one."""
    known = per_class[per_class["n"] > 0].sort_values("n", ascending=False, kind="stable")
    place = per_class.index.get_indexer_for([known["recall"].idxmin()])[0]
    row = confusion.to_numpy()[place].copy()
    n, n_right = int(row.sum()), int(row[place])
    if n == n_right:
        return []
    row[place] = 0
    other = int(row.argmax())
    called = f"{row[other]} called {per_class.index[other]}"
    return [f"Worst class: {per_class.index[place]}, {n_right} of {n} right, {called}."]


def _worst_label(per_class: pd.DataFrame, confusion: pd.DataFrame) -> list[str]:
    """The label of the lowest F1, which misses and false finds lower alike."""
    known = per_class[per_class["n"] > 0]
    if known.empty or known["f1"].min() == 1:
        return []
    name = known["f1"].idxmin()
    _, extra, missed, found = map(int, confusion.loc[name, ["tn", "fp", "fn", "tp"]])
    return [f"Worst label: {name}, {found} of {found + missed} found, {extra} found wrongly."]


def _inspected(found: Inspection) -> list[str]:
    """Defects that passed, and good parts that did not."""
    kinds = (
        (found.n_escapes, found.n_defects, "defects passed as good"),
        (found.n_rejects, found.n_good, "good parts rejected"),
    )
    return [f"{_counted(k, n, what)}." for k, n, what in kinds if n]


def _absent(per_class: pd.DataFrame) -> list[str]:
    """Classes of which nothing is known, since there are no images of them."""
    names = list(per_class.index[per_class["n"] == 0])
    if not names:
        return []
    more = f" and {len(names) - _NAMED} more classes" if len(names) > _NAMED else ""
    return [f"No images, so nothing is known, of {', '.join(names[:_NAMED])}{more}."]


def _unknown(
    summary: pd.Series, known: tuple[int, float], n_ood: int, promised: float | None
) -> list[str]:
    """What is noticed of unknown images, and how often a known one is taken for one.

    `known` is how many known images there are, and how many they count as.
    """
    said = []
    if n_ood and summary.get("detection_rate") == summary.get("detection_rate"):
        n_noticed = round(summary["detection_rate"] * n_ood)
        said.append(f"{_counted(n_noticed, n_ood, 'unknown images noticed')}.")
    rate = summary.get("false_alarm_rate")
    if rate is None or rate != rate:  # NaN
        return said
    n, counted = known
    k = round(rate * n)
    beyond = promised is not None and wilson_interval(rate * counted, counted)[0] > promised
    promise = "" if promised is None else f", {promised * 100:.3g} % promised"
    more = ": more than chance is likely to give" if beyond else ""
    return [*said, f"{k} of {n} known images called unknown ({share_text(rate)}{promise}){more}."]


def _counted(k: int, n: int, what: str, bounds: Iterable[float] | None = None) -> str:
    """`k` of `n`, as a share with its interval: `bounds`, or Wilson's."""
    low, high = interval_ends(*(wilson_interval(k, n) if bounds is None else bounds), percent=True)
    interval = f"95 % interval {low.removesuffix(' %')} to {high}"
    return f"{k} of {n} {what} ({share_text(k / n)}, {interval})"
