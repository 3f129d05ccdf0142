"""The conversion report: what an optimised model costs and brings, measured, with verdicts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from learnkit.errors import OptimizeError, number_of
from learnkit.optimize import report_rows as rows
from learnkit.optimize.gates import Verdict, failures, passes, ratio_text
from learnkit.optimize.quality import Candidate, Images, Latency, Quality, Speed
from learnkit.report.document import Document, Gallery, Headline, Items, Mark, Section, pairs
from learnkit.report.notebook import Shown
from learnkit.storage.formats import from_plain, to_plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_CHOSEN, _OTHER = ("#0072B2", "#80b8d8"), ("#767676", "#bdbdbd")  # first batch size, others
_HEIGHT = 0.8  # of the bars of one variant together; 1 is the way to the next
_PHRASES = {
    "passed": "passes its gates",
    "refused": "is refused",
    "forced": "fails a gate and was made all the same",
}


@dataclass(frozen=True, eq=False, repr=False)
class ConversionReport(Shown):
    """An optimised model: what it was made from, what it cost, and how much faster it is here.

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
        test: the images it was tested on.
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
    def is_disturbed(self) -> bool:
        """Whether others used the machine while it was timed."""
        return any(verdict.is_disturbed for verdict in self.verdicts)

    @property
    def passed(self) -> bool:
        """Whether no gate failed."""
        return passes(self.verdicts)

    @property
    def failures(self) -> str:
        """What failed, in one line; empty if nothing did."""
        return failures(self.verdicts)

    @property
    def word(self) -> str:
        """The verdict in a word: "passed", "refused" or "forced"."""
        if self.passed:
            return "passed"
        return "forced" if self.forced else "refused"

    def plot(self, ax: Axes | None = None) -> Axes:
        """Matplotlib axes with a bar per variant and batch size: times as fast as eager torch.

        Beside the bars stand milliseconds, labels kept, and what became of each variant.

        Args:
            ax: axes to draw on; None makes a figure.

        Raises:
            OptimizeError: nothing was timed.
        """
        return plot_speeds(speeds_of(self), f"{self.variant} {self.word}", ax)

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

    def document(self) -> Document:
        """Sections of gates, changes, speeds, images, notes, and what all of it rests on."""
        found = self.quality
        tested = f"{number_of(found.n, 'test image')}, {found.n_labelled} labelled"
        float32_name = "" if self.precision == "float32" else f"{self.backend}-float32"
        sizes = (f"{n / 1e6:.2f} MB" for n in (self.n_bytes_float32, self.n_bytes))
        changes = [
            *(rows.time_row(one, float32_name) for one in self.latency),
            ("size on disk", *sizes, f"{_share(self)} of the float32 weights"),
            *rows.answer_rows(found),
        ]
        mark = Mark(self.word, self.passed)
        return Document(
            [
                Headline(self.variant, mark, _PHRASES[self.word], _reason(self)),
                Section("Gates", [rows.gates_table(self.verdicts)]),
                Section(f"Before and after ({tested})", [rows.changes_table(changes)]),
                Section("Times as fast as eager torch", rows.speed_bars(speeds_of(self))),
                Section(
                    "Images that changed most",
                    [Gallery([*map(rows.picture_of, found.worst_images)])],
                ),
                Section("Notes", [Items(self.notes)]),
                Section(
                    "How far its numbers moved",
                    [rows.changes_table(rows.number_rows(found))],
                    is_open=False,
                ),
                Section("What it rests on", [pairs(_basis(self))], is_open=False),
            ]
        )

    def __str__(self) -> str:
        from learnkit.report.text import as_text

        return as_text(self.document())

    __repr__ = __str__


def speeds_of(report: ConversionReport) -> list[Speed]:
    """Eager torch, float32 of the same backend, and all that was tried; the slowest first."""
    eager = {one.batch: one.eager_best for one in report.latency}
    if not eager:
        return []
    tried = [rows.tried_speed(one, eager, report.variant) for one in report.candidates]
    if not tried:
        tried = [
            rows.speed_of(
                report.variant,
                {one.batch: one.best for one in report.latency},
                eager,
                agreement=report.quality.agreement,
                outcome=report.word,
                is_chosen=True,
            )
        ]
    found = [rows.speed_of(rows.EAGER, eager, eager), *tried]
    name = f"{report.backend}-float32"
    if name not in {one.name for one in found}:
        plain = {one.batch: one.float32_best for one in report.latency}
        found.append(rows.speed_of(name, plain, eager))
    # eager torch first, what could not be made last
    key = lambda one: (one.name != rows.EAGER, not one.ratios, math.prod(one.ratios.values()))
    return sorted(found, key=key)


def _reason(report: ConversionReport) -> str:
    """What speaks for the variant, or the gates it fails, in one line."""
    if not report.passed:
        failed = [verdict for verdict in report.verdicts if verdict.passed is False]
        return "; ".join(f"{one.gate} {one.found} (asked: {one.rule})" for one in failed)
    found = []
    if report.latency:
        ratios = " / ".join(ratio_text(one.vs_eager) for one in report.latency)
        batches = " / ".join(str(one.batch) for one in report.latency)
        busy = " while others used the machine, so not judged by speed"
        meanwhile = busy if report.is_disturbed else ""
        found.append(f"{ratios} as fast as {rows.EAGER} (batch {batches}){meanwhile}")
    found.append(f"{_share(report)} of the size")
    decided = {verdict.gate for verdict in report.verdicts if verdict.passed is not None}
    kept = rows.percent(report.quality.agreement)
    found.append(f"{kept} of labels kept" if "agreement" in decided else "labels not judged")
    return ", ".join(found)


def _share(report: ConversionReport) -> str:
    full = report.n_bytes_float32
    return f"{report.n_bytes / full:.0%}" if full else "–"


def _basis(report: ConversionReport) -> dict[str, str]:
    """Images, machine, settings and versions behind the numbers."""
    threads = number_of(report.threads, "thread")
    name, flags = (report.processor.get(key, "") for key in ("name", "flags"))
    machine = f"{name} ({flags})" if flags else name
    found = {
        "knowledge": report.state,
        "samples": rows.images_text(report.samples),
        "test": rows.images_text(report.test),
        "measured on": f"{report.device}, {threads}: {machine}",
        "settings": ", ".join(f"{k}={v}" for k, v in report.params.items()),
        "versions": ", ".join(f"{k} {v}" for k, v in report.versions.items()),
    }
    return {name: said for name, said in found.items() if said}


def plot_speeds(speeds: Sequence[Speed], title: str, ax: Axes | None = None) -> Axes:
    """Axes with a bar per batch size for each of `speeds`, the first on top.

    Raises:
        OptimizeError: nothing was timed.
    """
    speeds = [one for one in speeds if one.ratios]
    if not speeds:
        raise OptimizeError("the report has no times to plot: nothing was timed")
    batches = list(speeds[0].ratios)
    ax = _new_axes(len(speeds), len(batches)) if ax is None else ax
    for i, batch in enumerate(batches):
        _bars(ax, speeds, batch, (i + 0.5) / len(batches) - 0.5, _HEIGHT / len(batches), i)
    kept = ["" if math.isnan(one.agreement) else f"{one.agreement:.1%} kept, " for one in speeds]
    names = [f"{one.name}\n{k}{one.outcome}".strip() for one, k in zip(speeds, kept, strict=True)]
    ax.set_yticks(range(len(speeds)), names, parse_math=False)
    ax.invert_yaxis()
    # room for the text behind the longest bar
    ax.set_xlim(0, 1.45 * max(ratio for one in speeds for ratio in one.ratios.values()))
    ax.axvline(1, color="#767676", linewidth=0.8, linestyle=":")
    ax.set_xlabel(f"times as fast as {rows.EAGER}")
    ax.set_title(title, parse_math=False)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _bars(
    ax: Axes, speeds: Sequence[Speed], batch: int, shift: float, height: float, shade: int
) -> None:
    """The bars of one batch size, `shift` beside the middle."""
    places = [i + _HEIGHT * shift for i in range(len(speeds))]
    colours = [(_CHOSEN if one.is_chosen else _OTHER)[min(shade, 1)] for one in speeds]
    bars = ax.barh(places, [one.ratios[batch] for one in speeds], 0.92 * height, color=colours)
    digits = lambda ms: f"{ms:.0f}" if ms >= 100 else f"{ms:.3g}"
    labels = [
        f"{ratio_text(one.ratios[batch])}  {digits(one.times[batch])} ms, batch {batch}"
        for one in speeds
    ]
    ax.bar_label(bars, labels, padding=4, fontsize="small")


def _new_axes(n: int, n_batches: int) -> Axes:
    import matplotlib.pyplot as plt

    size = (7.5, 0.9 + n * max(0.45, 0.24 * n_batches))
    return plt.subplots(figsize=size, layout="constrained")[1]
