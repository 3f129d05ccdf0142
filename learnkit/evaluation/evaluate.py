"""`Evaluation`: every measure of a classifier's predictions, computed once."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from learnkit.errors import EvaluationError, number_of
from learnkit.evaluation.comparison import Comparison
from learnkit.evaluation.confusion import confusion_matrix, multilabel_confusion
from learnkit.evaluation.inputs import (
    LabelThreshold,
    check_flags,
    check_labels,
    check_probs,
    check_same_length,
    label_threshold,
    labels_above,
)
from learnkit.evaluation.intervals import (
    Interval,
    SampleValues,
    auroc_interval,
    class_intervals,
    mean_intervals,
)
from learnkit.evaluation.measures import (
    Inspection,
    accuracy,
    asked_measures,
    balanced_accuracy,
    brier_score,
    class_counts,
    expected_calibration_error,
    good_classes,
    inspection,
    log_loss,
    precision_recall_f1,
    ratio,
    top_k_accuracy,
    top_k_of,
    wilson_interval,
)
from learnkit.evaluation.verdict import COLUMNS, meaning, verdict_sentences
from learnkit.report.document import (
    Document,
    Items,
    Paragraph,
    Span,
    Table,
    frame_table,
    interval_text,
)
from learnkit.report.notebook import Shown

if TYPE_CHECKING:
    import pandas as pd

# Share of near copies from which on they are no chance: healthy images that are all alike, parts of
# circuit boards, come to a tenth, and in one of 300 small sets to a quarter.
_MANY_COPIES = 0.25
_RESAMPLED = frozenset({"log_loss", "brier_score", "ece"})


@dataclass(frozen=True, eq=False)
class Evaluation(Shown):
    """How good a classifier is on a set of samples.

    Attributes:
        summary: one float per measure, `n` first; those asked for by `measures`, if any were.
        all_measures: one float per measure, whatever was asked for.
        per_class: one row per class: n, precision, recall, f1, predicted.
        confusion: rows are the truth, columns the prediction; with several labels per sample one
            row per class with the columns tn, fp, fn, tp.
        multi_label: whether a sample may have several labels.
        threshold: a label counts as predicted above this probability, or these, one per class
            (multi-label only).
        class_ids: the ids of the classes, in their order, where they are not simply their numbers.
        notes: for a person to know, such as that the model has learned some of the samples.
        n_ood: out-of-distribution images that were shown beside the samples.
        promised: share of known images that the model's threshold may call unknown.
        targets: the truth, as it was given: class numbers (N,), or flags (N, C).
        right: which samples are right, bool (N,).
        predicted: class numbers (N,), or flags (N, C).
        asked: names of the measures that were asked for; None for all.
        good: names of the classes that mean a part is good.
        inspection: escapes and false rejects, where there are such classes.
        values: what each sample adds to the measures of probabilities; None if nobody kept it.
        bounds: 95 % intervals of measures that came from elsewhere, by name.
        n_counted: how many samples they tell as much as, where many are near copies of others; None
            for every one.
        page: what was answered to each image and where it is, for `save_html`; None of arrays.

    Measures without an answer, such as the recall of a class without samples, are NaN.
    """

    all_measures: pd.Series
    per_class: pd.DataFrame
    confusion: pd.DataFrame
    multi_label: bool = False
    threshold: LabelThreshold | None = None
    class_ids: tuple[int, ...] | None = None
    notes: tuple[str, ...] = ()
    n_ood: int = 0
    promised: float | None = None
    targets: np.ndarray | None = None
    right: np.ndarray | None = None
    predicted: np.ndarray | None = None
    asked: tuple[str, ...] | None = None
    good: tuple[str, ...] = ()
    inspection: Inspection | None = None
    values: SampleValues | None = None
    bounds: Mapping[str, Interval] = field(default_factory=dict)
    n_counted: float | None = None
    page: Any = None

    @property
    def summary(self) -> pd.Series:
        """One float per measure, `n` first; those asked for, if any were."""
        if self.asked is None:
            return self.all_measures
        return self.all_measures[[name for name in self.asked if name in self.all_measures]]

    @property
    def classes(self) -> list[str]:
        """Class names, in the order of the class numbers."""
        return list(self.per_class.index)

    @property
    def verdict(self) -> tuple[str, ...]:
        """Sentences: how many are right, what misleads, the worst class, the unknown noticed."""
        return verdict_sentences(
            self.all_measures,
            self.per_class,
            self.confusion,
            multi_label=self.multi_label,
            n_ood=self.n_ood,
            promised=self.promised,
            inspection=self.inspection,
            gone=None if self.page is None else self.page.images.gone(self.classes),
            n_counted=self.n_counted,
        )

    @cached_property
    def intervals(self) -> pd.DataFrame:
        """Bounds of 95 % confidence, columns low and high, of every measure.

        Shares of samples have Wilson's, that of `accuracy` of as many samples as `with_copies`
        counts; means over classes have those of `mean_intervals`, and `auroc` its own.
        `log_loss`, `brier_score`, `ece` and `fpr_at_95_tpr` are bootstrapped: 1,000 resamples
        within each class, by a fixed seed.
        """
        import pandas as pd

        n, found = int(self.all_measures["n"]), dict(self.bounds)
        found["accuracy"] = tuple(self.all_measures[["accuracy_low", "accuracy_high"]])
        if self.values is not None and not _RESAMPLED.isdisjoint(self.summary.index):
            found |= self.values.intervals()
        found |= mean_intervals(self._matrix)
        found["balanced_accuracy"] = found["macro_recall"]
        totals = {"label_accuracy": n * len(self.classes), "detection_rate": self.n_ood}
        if self.inspection is not None:
            totals |= {
                "escape_rate": self.inspection.n_defects,
                "false_reject_rate": self.inspection.n_good,
            }
        for name, value in self.summary.items():
            if name == "auroc":
                found[name] = auroc_interval(value, n, self.n_ood)
            elif name.endswith(("accuracy", "_rate")) and name not in found:
                found[name] = _of_share(value, totals.get(name, n))
        rows = {name: found[name] for name in self.summary.index if name in found}
        return pd.DataFrame.from_dict(rows, "index", columns=["low", "high"])

    @property
    def class_intervals(self) -> pd.DataFrame:
        """Bounds of 95 % confidence by class: precision_low, precision_high, recall_low, ..."""
        import pandas as pd

        found = class_intervals(self._matrix)
        columns = {
            f"{name}_{end}": bounds[:, side]
            for name, bounds in found.items()
            for side, end in enumerate(("low", "high"))
        }
        return pd.DataFrame(columns, index=self.per_class.index)

    def save_html(self, path: str | os.PathLike, **options: Any) -> Path:
        """Write a page that shows how good the model is and where it errs; return its path.

        One file that opens anywhere, with pictures of the mistakes and where the network looked.

        Args:
            path: the file; one that is there is replaced if it is a page of learnkit's.
            **options: `good`, names of the classes that mean a part is good; `max_mb=25`, size that
                pictures may fill; `pictures=False` for none; `force=True` replaces any file;
                `title`; `command`, which it says it was made by; `created`, when, as
                "2026-11-25T22:50Z"; `progress=True` shows a bar.

        Raises:
            EvaluationError: it is of arrays, without images; or `good` names no class.
            UsageError: another file stands there, or the name does not end in .html.
        """
        if self.page is None:
            raise EvaluationError(
                "this evaluation is of arrays, so there are no images to show; evaluate a model on "
                "images: `learn.evaluate(...)`, `predictor.evaluate(...)`"
            )
        return self.page.save_html(self, path, **options)

    @property
    def _matrix(self) -> np.ndarray:
        """The confusion matrix (C, C), or (C, 2, 2) of several labels per image."""
        cells = self.confusion.to_numpy()
        return cells.reshape(-1, 2, 2) if self.multi_label else cells

    def inspected(self, good: Sequence[str], flagged: Any = None) -> Evaluation:
        """This evaluation with `escape_rate` and `false_reject_rate`, see `inspection`.

        Args:
            good: names of the classes that mean a part is good; without any nothing changes.
            flagged: which images are taken for unknown (N,), and go to a person.

        Raises:
            EvaluationError: `good` names no class, or all; or an image may have several labels.
        """
        if not len(good):
            return self
        if self.multi_label:
            raise EvaluationError(
                "`good` is for parts of one class each; here an image may have several labels"
            )
        names = (good,) if isinstance(good, str) else tuple(good)
        is_good = good_classes(names, self.classes)
        found = inspection(self.targets, self.predicted, is_good, flagged)
        with_rates = replace(self, good=names, inspection=found)
        return with_rates.with_measures(
            escape_rate=ratio(found.n_escapes, found.n_defects),
            false_reject_rate=ratio(found.n_rejects, found.n_good),
        )

    def with_measures(self, **values: float) -> Evaluation:
        """This evaluation with more measures, or others of the same names."""
        import pandas as pd

        kept = self.all_measures.drop(index=[n for n in values if n in self.all_measures])
        found = pd.concat([kept, pd.Series(values, dtype=float)])
        # `concat` drops a name that not all parts have
        return replace(self, all_measures=found.rename(self.all_measures.name))

    def with_copies(self, groups: np.ndarray | None) -> Evaluation:
        """This evaluation, the interval of its accuracy counting near copies as about one sample.

        A note says so. Where few samples are near copies, nothing changes.

        Args:
            groups: numbers of the groups of near copies, int (N,); None if nobody knows them.
        """
        n = 0 if groups is None else len(groups)
        sizes = np.bincount(groups) if n else np.zeros(0, int)
        n_copies = n - np.count_nonzero(sizes)
        if n_copies <= _MANY_COPIES * n:
            return self
        # Kish, "Survey sampling", 1965: the effective number at a correlation of 1 within groups
        counted = n**2 / float(np.square(sizes).sum())
        low, high = wilson_interval(self.all_measures["accuracy"] * counted, counted)
        note = (
            f"{n_copies} of {n} images are near copies of others of them (bursts, augmented files, "
            "files saved again) and tell hardly more than these: the interval of the accuracy "
            f"counts {number_of(round(counted), 'image')}; all other intervals count every one, "
            f"and are up to {math.sqrt(n / counted):.1f} times too narrow; evaluate one image of "
            "each burst"
        )
        measures = self.all_measures.copy()
        measures[["accuracy_low", "accuracy_high"]] = low, high
        new = {"all_measures": measures, "notes": (*self.notes, note), "n_counted": counted}
        return replace(self, **new)

    def compare(self, other: Evaluation) -> Comparison:
        """How `other` differs from this one on the same samples: McNemar's test.

        Classes may stand in another order, and one may know more of them than the other.

        Raises:
            EvaluationError: evaluations of other samples, or without their samples.
        """
        for one in (self, other):
            if not isinstance(one, Evaluation) or one.right is None:
                raise EvaluationError(
                    f"{one!r:.60} does not say which samples are right; compare two results of "
                    "`evaluate`"
                )
        if not np.array_equal(self._truth(), other._truth()):
            raise EvaluationError(
                f"the evaluations are of other samples: {len(self.right)} and {len(other.right)} "
                "of them, or other labels, or another order; evaluate both on the same images"
            )
        return replace(Comparison.of(self.right, other.right), n_counted=self.n_counted)

    def _truth(self) -> np.ndarray:
        """The truth by name: class names (N,), or for several labels their names joined."""
        names = np.array(self.classes, dtype=object)
        if not self.multi_label:
            return names[self.targets]
        return np.array([tuple(sorted(names[row])) for row in self.targets == 1], dtype=object)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain Python values, NaN as None: `json.dumps` takes it as it is."""
        summary = {name: json_value(value) for name, value in self.summary.items()}
        rows = self.per_class.to_dict("records")
        per_class = [
            {"class": name} | {key: json_value(value) for key, value in row.items()}
            for name, row in zip(self.classes, rows, strict=True)
        ]
        ids = {} if self.class_ids is None else {"class_ids": list(self.class_ids)}
        return {
            "classes": self.classes,
            **ids,
            "multi_label": self.multi_label,
            "threshold": self.threshold,
            "summary": summary | ({"n": int(summary["n"])} if "n" in summary else {}),
            "intervals": {
                name: [json_value(low), json_value(high)]
                for name, low, high in self.intervals.itertuples()
            },
            "per_class": per_class,
            "confusion": self.confusion.to_numpy().tolist(),
            "notes": list(self.notes),
            "verdict": list(self.verdict),
        }

    def __repr__(self) -> str:
        import pandas as pd

        # four digits, `n` whole, NaN as a dash
        show = lambda x: "–" if _is_nan(x) else f"{x:.4g}" if x % 1 else f"{x:.0f}"
        rows = {name: (show(value), bounds) for name, value, bounds in self.with_intervals()}
        summary = pd.DataFrame.from_dict(rows, "index", columns=["value", "95 % interval"])
        tables = (table.to_string() for table in (summary, self.per_class.map(show)))
        return "\n\n".join([" ".join(self.verdict), *tables, *self.notes])

    def with_intervals(self) -> list[tuple[str, float, str]]:
        """(measure, value, its interval as a text, "" where it has none) of the summary.

        Without the bounds of the accuracy, which its interval tells.
        """
        bounds = {name: interval_text(*pair) for name, *pair in self.intervals.itertuples()}
        told = self.summary.drop(["accuracy_low", "accuracy_high"], errors="ignore")
        return [(name, value, bounds.get(name, "")) for name, value in told.items()]

    def per_class_shown(self) -> pd.DataFrame:
        """`per_class` for reading, an interval behind each of precision, recall and F1."""
        frame, bounds = self.per_class.copy(), self.class_intervals
        for name in ("f1", "recall", "precision"):
            pairs = zip(bounds[f"{name}_low"], bounds[f"{name}_high"], strict=True)
            at = frame.columns.get_loc(name) + 1
            frame.insert(at, f"{name} 95 %", [interval_text(*pair) for pair in pairs])
        if "false_alarm_rate" in frame:
            counts = zip(frame["false_alarm_rate"], frame["n"], strict=True)
            bounds = [_of_share(share, int(n)) for share, n in counts]
            frame["false_alarm_rate 95 %"] = [interval_text(*pair) for pair in bounds]
        return frame

    def document(self) -> Document:
        """The verdict, the measures over all samples, those of each class, and the notes."""
        rows = [
            (name, value, interval, meaning(name))
            for name, value, interval in self.with_intervals()
        ]
        blocks = [
            Paragraph(" ".join(self.verdict)),
            Table(rows, ("", "value", "95 % interval", "meaning"), "lrrl"),
            frame_table(self.per_class_shown(), "class", rest="classes"),
            Paragraph(Span(COLUMNS, "faint")),
            Items(self.notes),
        ]
        return Document([block for block in blocks if block.content])


def evaluate(
    probs: Any,
    targets: Any,
    classes: Sequence[str],
    *,
    multi_label: bool = False,
    threshold: LabelThreshold = 0.5,
    class_ids: Sequence[int] | None = None,
    measures: Sequence[str] | None = None,
    good: Sequence[str] = (),
) -> Evaluation:
    """Every measure of one set of predictions, from one confusion matrix and the probabilities.

    Args:
        probs: probabilities (N, C), numpy or torch; rows sum to 1 unless `multi_label`.
        targets: class numbers (N,), or zeros and ones (N, C) if `multi_label`.
        classes: C names.
        multi_label: a sample may have several labels, or none.
        threshold: a label is predicted when its probability is above this; one for all classes, or
            a list of one per class (multi-label only).
        class_ids: C ids, if the classes have others than their numbers.
        measures: names of the measures wanted, in the order wanted; default all. Of the truth among
            the k likeliest, "top_k_accuracy" with any number k: "top_3_accuracy".
        good: names of the classes that mean a part is good; the summary then holds `escape_rate`,
            defects that pass as good, and `false_reject_rate`, good parts that do not.

    Returns:
        An `Evaluation`. Its summary holds `accuracy` with its 95 % Wilson interval,
        `top_5_accuracy` (k = C - 1 below six classes, left out for two), `balanced_accuracy`,
        `macro_precision`, `macro_recall`, `macro_f1`, `log_loss`, `brier_score`, `ece` (15 bins).
        With several labels per sample `accuracy` asks for the whole set of labels to be right,
        and `label_accuracy` counts every label.

    Raises:
        EvaluationError: logits instead of probabilities, values that are not finite, lengths that
            differ, class numbers outside `classes`, or an unknown measure.

    >>> evaluate([[.9, .1], [.2, .8], [.6, .4]], [0, 1, 1], ["cat", "dog"]).confusion
    predicted  cat  dog
    actual
    cat          1    0
    dog          1    1
    """
    classes = [str(name) for name in classes]
    asked = asked_measures(measures, multi_label=multi_label, good=good)
    probs = check_probs(probs, multi_label=multi_label, n_classes=len(classes))
    check = check_flags if multi_label else check_labels
    targets = check(targets, len(classes))
    check_same_length(probs=probs, targets=targets)
    if multi_label:
        threshold = label_threshold(threshold, len(classes), ends=True)
        preds = labels_above(probs, threshold)
        right, matrix = (preds == targets).all(1), multilabel_confusion(targets, preds)
        shares = {"label_accuracy": accuracy(matrix)}
    else:
        preds, matrix, shares = _count_labels(probs, targets, asked or ())
        right = preds == targets
    evaluation = Evaluation(
        all_measures=_summary(probs, targets, matrix, int(right.sum()), shares),
        per_class=_per_class(matrix, classes),
        confusion=_confusion_frame(matrix, classes),
        multi_label=multi_label,
        threshold=threshold if multi_label else None,
        class_ids=None if class_ids is None else tuple(class_ids),
        targets=targets,
        right=right,
        predicted=preds,
        asked=asked,
        values=SampleValues.of(probs, targets),
    )
    return evaluation.inspected(good)


def _count_labels(probs: np.ndarray, targets: np.ndarray, asked: Sequence[str]) -> tuple:
    """Return (predictions, confusion matrix, the measures only this kind of data has)."""
    n_classes = probs.shape[1]
    pred_labels = probs.argmax(1) if len(probs) else targets
    matrix = confusion_matrix(targets, pred_labels, n_classes)
    k = min(5, n_classes - 1)  # the k = C likeliest of C classes always hold the truth
    names = [f"top_{k}_accuracy"] if k > 1 else []
    names += [name for name in asked if top_k_of(name)]
    shares = {name: top_k_accuracy(probs, targets, top_k_of(name)) for name in names}
    shares["balanced_accuracy"] = balanced_accuracy(matrix)
    return pred_labels, matrix, shares


def _summary(
    probs: np.ndarray,
    targets: np.ndarray,
    matrix: np.ndarray,
    n_right: int,
    shares: dict[str, float],
) -> pd.Series:
    import pandas as pd

    n = len(targets)
    low, high = wilson_interval(n_right, n)
    macro = precision_recall_f1(matrix).macro()
    values = {
        "n": float(n),
        "accuracy": ratio(n_right, n),
        "accuracy_low": low,
        "accuracy_high": high,
        **shares,
        **{f"macro_{name}": value for name, value in macro._asdict().items()},
        "log_loss": log_loss(probs, targets),
        "brier_score": brier_score(probs, targets),
        "ece": expected_calibration_error(probs, targets),
    }
    return pd.Series(values, name="value", dtype=float)


def _per_class(matrix: np.ndarray, classes: list[str]) -> pd.DataFrame:
    import pandas as pd

    _, n, predicted = class_counts(matrix)
    rates = precision_recall_f1(matrix)._asdict()
    return pd.DataFrame({"n": n, **rates, "predicted": predicted}, index=_named(classes, "class"))


def _confusion_frame(matrix: np.ndarray, classes: list[str]) -> pd.DataFrame:
    import pandas as pd

    if matrix.ndim == 3:
        cells = matrix.reshape(len(classes), 4)
        return pd.DataFrame(cells, _named(classes, "class"), columns=["tn", "fp", "fn", "tp"])
    return pd.DataFrame(
        matrix, index=_named(classes, "actual"), columns=_named(classes, "predicted")
    )


def _named(classes: list[str], name: str) -> pd.Index:
    import pandas as pd

    return pd.Index(classes, name=name, dtype=object)


def _of_share(share: float, n: int) -> Interval:
    """Wilson's bounds of a share of `n`; NaN of one that is not known."""
    return (share, share) if _is_nan(share) else wilson_interval(round(share * n), n)


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def json_value(value: Any) -> Any:
    """Return a numpy or Python scalar as what JSON knows; NaN becomes None."""
    value = value.item() if hasattr(value, "item") else value
    return None if _is_nan(value) else value
