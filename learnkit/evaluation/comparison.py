"""McNemar's test: two classifiers on the same images, judged by those that only one gets right."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from learnkit.errors import EvaluationError, number_of
from learnkit.evaluation.measures import paired_interval
from learnkit.report.document import Document, Paragraph, Table
from learnkit.report.notebook import Shown

if TYPE_CHECKING:
    import numpy as np

_LEVEL = 0.05


@dataclass(frozen=True, repr=False)
class Comparison(Shown):
    """A second classifier beside a first one on the same images.

    Attributes:
        both: images that both get right.
        only_first: images that only the first gets right: what the second loses.
        only_second: images that only the second gets right: what it gains.
        neither: images that neither gets right.
        n_counted: how many images all of them tell as much as, where many are near copies of
            others: `interval` and `p_value` count so many; None for every one.
    """

    both: int
    only_first: int
    only_second: int
    neither: int
    n_counted: float | None = None

    @classmethod
    def of(cls, first: np.ndarray, second: np.ndarray) -> Comparison:
        """Return the comparison of which images (N,) each of two classifiers gets right.

        Raises:
            EvaluationError: no images, or another number of them.
        """
        if len(first) != len(second) or not len(first):
            raise EvaluationError(
                f"the evaluations are of {len(first)} and {number_of(len(second), 'image')}; "
                "compare two of the "
                "same ones, at least one"
            )
        counts = [(first == a) & (second == b) for a in (True, False) for b in (True, False)]
        return cls(*(int(one.sum()) for one in counts))

    @property
    def n(self) -> int:
        """Number of images."""
        return self.both + self.only_first + self.only_second + self.neither

    @property
    def difference(self) -> float:
        """Accuracy of the second less that of the first, -1..1."""
        return (self.only_second - self.only_first) / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """Bounds that hold the true difference with about 95 % confidence: `paired_interval`."""
        share = self._share
        return paired_interval(*(share * k for k in (self.only_first, self.only_second, self.n)))

    @property
    def p_value(self) -> float:
        """Probability of a split at least as uneven if both are equally good, 0..1; exact.

        Source: McNemar, "Note on the sampling error of the difference between correlated
        proportions or percentages", 1947, by the binomial distribution.
        """
        counts = [round(self._share * k) for k in (self.only_first, self.only_second)]
        n, least = sum(counts), min(counts)
        return min(1.0, 2 * sum(math.comb(n, k) for k in range(least + 1)) / 2**n)

    @property
    def _share(self) -> float:
        """As how much of an image each counts."""
        return 1.0 if self.n_counted is None else self.n_counted / self.n

    @property
    def verdict(self) -> str:
        """Whether one is better, in a sentence."""
        low, high = self.interval
        told = (
            f"the second is right for {number_of(self.only_second, 'image')} that the first gets "
            f"wrong, and wrong for {self.only_first} that it gets right"
        )
        size = (
            f"{self.difference * 100:+.1f} points, 95 % interval {low * 100:+.1f} to "
            f"{high * 100:+.1f}, p = {self.p_value:.2g}"
        )
        if self.n_counted is not None:
            size += f", near copies counted as {number_of(round(self.n_counted), 'image')}"
        if self.p_value >= _LEVEL:
            return f"No difference can be told on {number_of(self.n, 'image')}: {told} ({size})."
        better = "better" if self.difference > 0 else "worse"
        return f"The second is {better}: {told} ({size})."

    def __repr__(self) -> str:
        return self.verdict

    def document(self) -> Document:
        """The verdict, and the four counts."""
        rows = [
            ("first right", self.both, self.only_first),
            ("first wrong", self.only_second, self.neither),
        ]
        return Document(
            [Paragraph(self.verdict), Table(rows, ("", "second right", "second wrong"), "lrr")]
        )
