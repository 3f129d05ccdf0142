"""What a conversion cost and what it brought, measured: numbers, verdicts, and how they came."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from learnkit.optimize.gates import Verdict, failures, passes
from learnkit.optimize.quality import Candidate, Images, Latency, Quality
from learnkit.report.html import as_html
from learnkit.report.text import as_text
from learnkit.storage.records import from_plain, to_plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False)
class ConversionReport:
    """What an optimised model was made from, what it cost, and how much faster it is here.

    Attributes:
        variant: its name, backend and precision.
        backend: what runs it.
        precision: of its numbers.
        device: where it was measured.
        threads: threads it was measured with.
        params: further settings of the backend.
        versions: of every package that decides the numbers.
        processor: name and flags that matter of the processor it was measured on.
        samples: the images its ranges were set by; None where none were needed.
        test: the images it was judged by.
        n_bytes: its size on disk.
        n_bytes_float32: that of the portable float32 weights.
        latency: by batch size.
        quality: what happened to its outputs.
        verdicts: one per gate.
        state: what became of class statistics, threshold and temperature.
        notes: what else there is to know.
        candidates: all variants that were tried, where there was a choice.
        forced: whether failed gates were overridden.
    """

    variant: str
    backend: str
    precision: str
    device: str
    threads: int
    params: dict[str, Any]
    versions: dict[str, str]
    processor: dict[str, str]
    samples: Images | None
    test: Images
    n_bytes: int
    n_bytes_float32: int
    latency: tuple[Latency, ...]
    quality: Quality
    verdicts: tuple[Verdict, ...]
    state: str
    notes: tuple[str, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    forced: bool = False

    @property
    def passed(self) -> bool:
        """Whether no gate failed."""
        return passes(self.verdicts)

    @property
    def failures(self) -> str:
        """What failed, in one line; empty if nothing did."""
        return failures(self.verdicts)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Matplotlib axes with a bar per variant and batch size: times as fast as eager torch.

        Beside the bars stand milliseconds, labels kept, and what became of each variant.

        Args:
            ax: axes to draw on; None makes a figure.

        Raises:
            OptimizeError: nothing was timed.
        """
        from learnkit.optimize.report_plot import plot_report

        return plot_report(self, ax)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values but pictures; what was not measured is null."""
        return to_plain(self)

    @classmethod
    def from_dict(cls, values: Any, where: str = "the report") -> ConversionReport:
        """The report `to_dict` wrote.

        Raises:
            BundleCorruptError: a field is missing, unknown or of another type.
        """
        return from_plain(cls, values, where)

    def __str__(self) -> str:
        return as_text(self)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return as_html(self)
