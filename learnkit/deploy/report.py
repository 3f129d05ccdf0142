"""What a conversion cost and what it brought, measured: numbers, verdicts, and how they came."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from learnkit.deploy.gates import Verdict, failures, paired_interval, passes
from learnkit.deploy.records import from_plain, to_plain
from learnkit.deploy.report_view import as_html, as_text
from learnkit.evaluation.measures import wilson_interval


@dataclass(frozen=True)
class Latency:
    """Milliseconds per call at one batch size; `float32` is the same backend's, `eager` torch's.

    The calls of the three take turns, so that whatever else the machine does hits them alike.
    """

    batch: int
    median: float
    p95: float
    float32_median: float
    eager_median: float

    @property
    def vs_float32(self) -> float:
        """Times as fast as float32 of the same backend."""
        return self.float32_median / self.median

    @property
    def vs_eager(self) -> float:
        """Times as fast as torch as it is."""
        return self.eager_median / self.median


@dataclass(frozen=True)
class ChangedImage:
    """One test image before and after; `change` is the largest change of a probability."""

    name: str
    truth: str | None
    before: str
    after: str
    confidence_before: float
    confidence_after: float
    change: float


@dataclass(frozen=True)
class ChangedClass:
    """One class before and after: the share of right answers, or of labels kept (before is 1)."""

    name: str
    n: int
    before: float
    after: float


@dataclass(frozen=True)
class Quality:
    """The outputs for the test images, converted against float32; NaN where nothing was measured.

    Attributes:
        n: test images.
        n_same: those that keep their label.
        n_broken: those with an output that is NaN or infinite.
        logit_rms: root mean square of the logits' changes.
        logit_rms_share: the same, divided by the root mean square of the logits.
        logit_max: largest change of a logit.
        prob_mean: mean over images of the largest change of a probability.
        prob_max: largest change of a probability.
        feature_cosine: mean cosine between the features before and after.
        feature_cosine_min: smallest such cosine.
        n_labelled: test images with a label; what follows is about them.
        n_right: those right before.
        n_lost: right before, wrong after.
        n_gained: wrong before, right after.
        ece_before: expected calibration error in float32.
        ece: the same after.
        n_strange: images of no known class.
        auroc_before: how well they are told from test images in float32.
        auroc: the same after.
        false_alarms_before: share of test images flagged as unknown in float32.
        false_alarms: the same after.
        worst_class: the class that lost most.
        worst_images: the images whose probabilities changed most.
    """

    n: int
    n_same: int
    n_broken: int
    logit_rms: float
    logit_rms_share: float
    logit_max: float
    prob_mean: float
    prob_max: float
    feature_cosine: float
    feature_cosine_min: float
    n_labelled: int
    n_right: int
    n_lost: int
    n_gained: int
    ece_before: float
    ece: float
    n_strange: int
    auroc_before: float
    auroc: float
    false_alarms_before: float
    false_alarms: float
    worst_class: ChangedClass | None
    worst_images: tuple[ChangedImage, ...]

    @property
    def agreement(self) -> float:
        """Share of test images that keep their label."""
        return self.n_same / self.n if self.n else math.nan

    @property
    def agreement_interval(self) -> tuple[float, float]:
        """Its 95 % Wilson interval."""
        return wilson_interval(self.n_same, self.n)

    @property
    def accuracy_before(self) -> float:
        """Share of right answers in float32."""
        return self.n_right / self.n_labelled if self.n_labelled else math.nan

    @property
    def accuracy(self) -> float:
        """Share of right answers after the conversion."""
        return self.accuracy_before + self.accuracy_change

    @property
    def accuracy_change(self) -> float:
        """Change of that share; below zero is a loss."""
        change = self.n_gained - self.n_lost
        return change / self.n_labelled if self.n_labelled else math.nan

    @property
    def accuracy_interval(self) -> tuple[float, float]:
        """The 95 % interval of the change."""
        return paired_interval(self.n_lost, self.n_gained, self.n_labelled)


@dataclass(frozen=True)
class Images:
    """Images something rests on: how many, which, and a digest of what they show.

    Attributes:
        what: where they come from, in words.
        n: how many.
        per_class: how many of each class, where labels are known.
        ids: a name or, for images without one, the start of the digest of what it shows.
        digest: SHA-256 (hex) over what all of them show, whatever their order.
    """

    what: str
    n: int
    per_class: dict[str, int]
    ids: tuple[str, ...]
    digest: str


@dataclass(frozen=True)
class Candidate:
    """A variant that was tried: median milliseconds by batch size, and what became of it."""

    variant: str
    medians: dict[str, float]
    agreement: float
    outcome: str


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

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values; what was not measured is null."""
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
