"""`Evaluation`: every measure of a classifier's predictions, computed once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from learnkit.errors import EvaluationError
from learnkit.evaluation import measures
from learnkit.evaluation.comparison import Comparison
from learnkit.evaluation.confusion import confusion_matrix, multilabel_confusion
from learnkit.evaluation.inputs import check_flags, check_labels, check_probs, check_same_length
from learnkit.evaluation.intervals import auroc_interval, class_intervals, mean_intervals
from learnkit.evaluation.label_threshold import LabelThreshold, label_threshold, labels_above
from learnkit.evaluation.verdict import COLUMNS, meaning, verdict_sentences
from learnkit.report.document import Document, Items, Paragraph, Span, Table, frame_table
from learnkit.report.notebook import Shown

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Evaluation(Shown):
    """How good a classifier is on a set of samples.

    Attributes:
        summary: one float per measure, `n` first.
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
        page: what was answered to each image and where it is, for the page; None of arrays.

    Measures without an answer, such as the recall of a class without samples, are NaN.
    """

    summary: pd.Series
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
    page: Any = None

    @property
    def classes(self) -> list[str]:
        """Class names, in the order of the class numbers."""
        return list(self.per_class.index)

    @property
    def verdict(self) -> tuple[str, ...]:
        """Sentences: how many are right, what misleads, the worst class, the unknown noticed."""
        return verdict_sentences(
            self.summary,
            self.per_class,
            self.confusion,
            multi_label=self.multi_label,
            n_ood=self.n_ood,
            promised=self.promised,
        )

    @property
    def intervals(self) -> pd.DataFrame:
        """Bounds of 95 % confidence, columns low and high, of every measure that is a share.

        Shares of samples have Wilson's, means over classes `mean_intervals`, and `auroc` its own.
        """
        import pandas as pd

        n, found = int(self.summary["n"]), {}
        matrix = self.confusion.to_numpy()
        if self.multi_label:
            matrix = matrix.reshape(-1, 2, 2)
        found |= mean_intervals(matrix)
        found["balanced_accuracy"] = found["macro_recall"]
        counts = {"label_accuracy": n * len(self.classes), "detection_rate": self.n_ood}
        for name, value in self.summary.items():
            if name.endswith(("accuracy", "_rate")) and name not in found:
                total = counts.get(name, n)
                right = 0 if _is_nan(value) else round(value * total)
                found[name] = measures.wilson_interval(right, total)
            elif name == "auroc":
                found[name] = auroc_interval(value, n, self.n_ood)
        rows = {name: found[name] for name in self.summary.index if name in found}
        return pd.DataFrame.from_dict(rows, "index", columns=["low", "high"])

    @property
    def class_intervals(self) -> pd.DataFrame:
        """Bounds of 95 % confidence by class: precision_low, precision_high, recall_low, ..."""
        import pandas as pd

        matrix = self.confusion.to_numpy()
        found = class_intervals(matrix.reshape(-1, 2, 2) if self.multi_label else matrix)
        columns = {
            f"{name}_{end}": bounds[:, side]
            for name, bounds in found.items()
            for side, end in enumerate(("low", "high"))
        }
        return pd.DataFrame(columns, index=self.per_class.index)

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
        return Comparison.of(self.right, other.right)

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
            "summary": summary | {"n": int(self.summary["n"])},
            "per_class": per_class,
            "confusion": self.confusion.to_numpy().tolist(),
            "notes": list(self.notes),
            "verdict": list(self.verdict),
        }

    def __repr__(self) -> str:
        # four digits, `n` whole, NaN as a dash
        show = lambda x: "–" if _is_nan(x) else f"{x:.4g}" if x % 1 else f"{x:.0f}"
        tables = (table.map(show).to_string() for table in (self.summary, self.per_class))
        return "\n\n".join([" ".join(self.verdict), *tables, *self.notes])

    def document(self) -> Document:
        """The verdict, the measures over all samples, those of each class, and the notes."""
        rows = [(name, value, meaning(name)) for name, value in self.summary.items()]
        blocks = [
            Paragraph(" ".join(self.verdict)),
            Table(rows, ("", "value", "meaning"), "lrl"),
            frame_table(self.per_class, "class", rest="classes"),
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

    Returns:
        An `Evaluation`. Its summary holds `accuracy` with its 95 % Wilson interval,
        `top_5_accuracy` (k = C - 1 below six classes, left out for two), `balanced_accuracy`,
        `macro_precision`, `macro_recall`, `macro_f1`, `log_loss`, `brier_score`, `ece` (15 bins).
        With several labels per sample `accuracy` asks for the whole set of labels to be right,
        and `label_accuracy` counts every label.

    Raises:
        EvaluationError: logits instead of probabilities, values that are not finite, lengths that
            differ, or class numbers outside `classes`.

    >>> evaluate([[.9, .1], [.2, .8], [.6, .4]], [0, 1, 1], ["cat", "dog"]).confusion
    predicted  cat  dog
    actual
    cat          1    0
    dog          1    1
    """
    classes = [str(name) for name in classes]
    probs = check_probs(probs, multi_label=multi_label, n_classes=len(classes))
    check = check_flags if multi_label else check_labels
    targets = check(targets, len(classes))
    check_same_length(probs=probs, targets=targets)
    if multi_label:
        threshold = label_threshold(threshold, len(classes), ends=True)
        preds = labels_above(probs, threshold)
        right, matrix = (preds == targets).all(1), multilabel_confusion(targets, preds)
        shares = {"label_accuracy": measures.accuracy(matrix)}
    else:
        right, matrix, shares = _count_labels(probs, targets)
    return Evaluation(
        summary=_summary(probs, targets, matrix, int(right.sum()), shares),
        per_class=_per_class(matrix, classes),
        confusion=_confusion_frame(matrix, classes),
        multi_label=multi_label,
        threshold=threshold if multi_label else None,
        class_ids=None if class_ids is None else tuple(class_ids),
        targets=targets,
        right=right,
    )


def _count_labels(probs: np.ndarray, targets: np.ndarray) -> tuple:
    """Return (right per sample, confusion matrix, the measures only this kind of data has)."""
    n_classes = probs.shape[1]
    pred_labels = probs.argmax(1) if len(probs) else targets
    matrix = confusion_matrix(targets, pred_labels, n_classes)
    k = min(5, n_classes - 1)  # the k = C likeliest of C classes always hold the truth
    shares = {f"top_{k}_accuracy": measures.top_k_accuracy(probs, targets, k)} if k > 1 else {}
    shares["balanced_accuracy"] = measures.balanced_accuracy(matrix)
    return pred_labels == targets, matrix, shares


def _summary(
    probs: np.ndarray,
    targets: np.ndarray,
    matrix: np.ndarray,
    n_right: int,
    shares: dict[str, float],
) -> pd.Series:
    import pandas as pd

    n = len(targets)
    low, high = measures.wilson_interval(n_right, n)
    macro = measures.precision_recall_f1(matrix).macro()
    values = {
        "n": float(n),
        "accuracy": measures.ratio(n_right, n),
        "accuracy_low": low,
        "accuracy_high": high,
        **shares,
        **{f"macro_{name}": value for name, value in macro._asdict().items()},
        "log_loss": measures.log_loss(probs, targets),
        "brier_score": measures.brier_score(probs, targets),
        "ece": measures.expected_calibration_error(probs, targets),
    }
    return pd.Series(values, name="value", dtype=float)


def _per_class(matrix: np.ndarray, classes: list[str]) -> pd.DataFrame:
    import pandas as pd

    _, n, predicted = measures.class_counts(matrix)
    rates = measures.precision_recall_f1(matrix)._asdict()
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


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def json_value(value: Any) -> Any:
    """Return a numpy or Python scalar as what JSON knows; NaN becomes None."""
    value = value.item() if hasattr(value, "item") else value
    return None if _is_nan(value) else value
