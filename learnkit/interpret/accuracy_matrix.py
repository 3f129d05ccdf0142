"""The accuracy matrix of continual learning: steps x classes, and the forgetting it shows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from learnkit.data.labelled_images import labelled_dataset
from learnkit.errors import EvaluationError, number_of
from learnkit.evaluation.measures import wilson_interval
from learnkit.interpret.plots import new_axes
from learnkit.report.document import Document, Items, Paragraph, frame_table, share_text
from learnkit.report.figure_text import figure_names
from learnkit.report.notebook import Shown

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

_CELLS = 32  # classes up to which the cells hold numbers


class AccuracyMatrix(Shown):
    """How many held-out images of each class a model gets right after each step of learning.

    Row i, class j: the share of the images of j that are right after step i. NaN before the model
    knows j.

    Args:
        images: held-out images of all classes, those to come included: anything with labels that
            `evaluate` takes. None of them may be learned.

    Raises:
        DataError: `images` have no labels.
        EvaluationError: they have several labels per image.

    Source: Lopez-Paz and Ranzato, "Gradient episodic memory for continual learning", 2017, where
    each task is one class here; Chaudhry et al., "Riemannian walk", 2018, for forgetting.
    """

    def __init__(self, images: Any):
        self.images = labelled_dataset(images, "images")
        if getattr(self.images, "multi_label", False):
            raise EvaluationError(
                "`images` have several labels each; an accuracy by class needs one label per image"
            )
        labels = list(self.images.labels)
        self.classes = sorted(set(labels), key=list(self.images.classes).index)
        self._n = np.array([labels.count(name) for name in self.classes])
        self._steps: list[str] = []
        self._hits: list[np.ndarray] = []

    def measure(self, model: Any, step: str | None = None) -> AccuracyMatrix:
        """Evaluate a learner or predictor as it is now, as one more row; return this matrix.

        Args:
            model: anything with `evaluate` and `classes`; nothing of it changes.
            step: name of the row; default its number.

        Raises:
            EvaluationError: it knows none of the classes, or has learned some of the images.
        """
        known = [name for name in self.classes if name in model.classes]
        if not known:
            raise EvaluationError(
                f"the model knows none of the classes of the held-out images; it knows "
                f"{', '.join(list(model.classes)[:5]) or 'no class yet'}"
            )
        images = self.images.filter([label in known for label in self.images.labels])
        found = model.evaluate(images)
        page = found.page
        if page is not None and page.images.learned is not None and page.images.learned.any():
            n = int(page.images.learned.sum())
            raise EvaluationError(
                f"the model has learned {n} of the held-out images, of which its accuracy says "
                "nothing; hold others out"
            )
        rows = found.per_class["recall"].reindex(self.classes).to_numpy(float)
        # the recall times the images is the count again, up to rounding
        self._hits.append(np.rint(rows * self._n))  # NaN stays
        self._steps.append(str(len(self._steps) + 1) if step is None else str(step))
        return self

    def extend(self, model: Any, *args: Any, step: str | None = None, **how: Any) -> Any:
        """`model.extend(...)`, then `measure`; return what `extend` does.

        Before the first step the model is measured as it is, if it knows any of the classes.
        """
        if not self._hits and set(self.classes) & set(model.classes):
            self.measure(model, "before")
        change = model.extend(*args, **how)
        self.measure(model, step)
        return change

    @property
    def frame(self) -> pd.DataFrame:
        """Accuracies 0..1, a row per step and a column per class; NaN before it is known."""
        return self._table(self._values)

    @property
    def intervals(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """(lower, upper) bounds of 95 % confidence of `frame`, by Wilson."""
        nan = (float("nan"), float("nan"))
        bounds = [
            [
                wilson_interval(int(k), int(n)) if k == k else nan  # NaN is not itself
                for k, n in zip(row, self._n, strict=True)
            ]
            for row in self._hits
        ]
        both = np.array(bounds, float).reshape(len(self._hits), len(self.classes), 2)
        return self._table(both[..., 0]), self._table(both[..., 1])

    @property
    def average_accuracy(self) -> float:
        """Mean over the classes that are known after the last step; NaN without a step."""
        return _mean(self._values[-1]) if self._hits else float("nan")

    @property
    def backward_transfer(self) -> float:
        """Mean over earlier classes of the accuracy in the end less that when they were learned.

        Below 0 is forgetting; NaN where no class was known before the last step.
        """
        values, earlier, first = self._values, *self._earlier()
        return _mean(values[-1, earlier] - values[first, earlier]) if len(earlier) else float("nan")

    @property
    def forgetting(self) -> pd.Series:
        """By class the best accuracy of earlier steps less that in the end; NaN for new ones."""
        import pandas as pd

        found = np.full(len(self.classes), np.nan)
        earlier, _ = self._earlier()
        if len(earlier):
            values = self._values[:, earlier]
            # of the classes known before: of a column of NaN alone numpy would warn
            found[earlier] = np.nanmax(values[:-1], 0) - values[-1]
        return pd.Series(found, index=self.classes, name="forgetting")

    def plot(self, *, ax: Axes | None = None, cmap: str = "Blues") -> Axes:
        """Draw the matrix, a row per step; blank before a class is known. Returns the Axes.

        Raises:
            EvaluationError: no step is measured yet.
        """
        if not self._hits:
            raise EvaluationError(
                "there is nothing to plot: no step is measured yet; let the model learn by "
                "extend(model, data) of this matrix, or call measure(model)"
            )
        values, n = self._values, len(self.classes)
        size = (1.8 + 0.55 * min(n, _CELLS), 1.4 + 0.4 * len(values))
        ax = ax or new_axes(size)
        ax.imshow(np.ma.masked_invalid(values), cmap=cmap, vmin=0, vmax=1, aspect="auto")
        names, style = figure_names([*self.classes, *self._steps])
        ax.set_xticks(range(n), names[:n], rotation=45, ha="right", rotation_mode="anchor", **style)
        ax.set_yticks(range(len(values)), names[n:], **style)
        ax.set(xlabel="class", ylabel="after step")
        ax.set_title("Accuracy on held-out images")
        if n <= _CELLS:
            for (i, j), value in np.ndenumerate(values):
                if value == value:
                    colour = "white" if value > 0.5 else "black"
                    ax.text(j, i, f"{value:.2f}", ha="center", va="center", color=colour)
        return ax

    def __repr__(self) -> str:
        return "\n".join([self._sentence, self.frame.round(4).to_string()])

    def document(self) -> Document:
        """The sentence, the matrix, and what was forgotten of each class."""
        lost = [f"{name}: {value:.3f} lost" for name, value in self.forgetting.items() if value > 0]
        table = frame_table(self.frame, "after step", rest="steps")
        return Document([Paragraph(self._sentence), table, Items(lost)])

    @property
    def _sentence(self) -> str:
        if not self._hits:
            return "No step is measured yet."
        transfer, lost = self.backward_transfer, self.forgetting
        steps = number_of(len(self._hits), "step")
        said = f"{share_text(self.average_accuracy)} right after {steps}, mean of classes"
        if transfer != transfer:
            return f"{said}; nothing was learned before the last."
        return (
            f"{said}; backward transfer {transfer:+.3f}, forgetting {_mean(lost.to_numpy()):.3f}."
        )

    @property
    def _values(self) -> np.ndarray:
        hits = np.array(self._hits, float).reshape(len(self._hits), len(self.classes))
        return hits / self._n

    def _earlier(self) -> tuple[np.ndarray, np.ndarray]:
        """(places of the classes known before the last step and still, step each was learned)."""
        known = ~np.isnan(self._values)
        if len(known) < 2:
            return np.zeros(0, int), np.zeros(0, int)
        earlier = np.flatnonzero(known[:-1].any(0) & known[-1])
        return earlier, known[:, earlier].argmax(0)

    def _table(self, values: np.ndarray) -> pd.DataFrame:
        import pandas as pd

        return pd.DataFrame(values, pd.Index(self._steps, name="step"), self.classes)


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
