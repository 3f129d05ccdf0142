"""Measurements of a conversion: counts of changed outputs, milliseconds, images, candidates."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from learnkit.evaluation.measures import paired_interval, wilson_interval
from learnkit.storage.formats import NOT_STORED


@dataclass(frozen=True)
class ChangedImage:
    """One test image before and after; `change` is the largest change of a probability.

    `thumbnail` is a small JPEG of what the network saw, as long as the report is in memory.
    """

    name: str
    truth: str | None
    before: str
    after: str
    confidence_before: float
    confidence_after: float
    change: float
    # never written: an image may be nobody else's business
    thumbnail: bytes = field(default=b"", repr=False, compare=False, metadata=NOT_STORED)


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
class Latency:
    """Milliseconds per call at one batch size; `float32` is the same backend's, `eager` torch's.

    The calls of the three take turns, so that whatever else the machine does hits them alike, and
    the fastest of each, which it hits least, are compared (in earlier reports the medians).
    """

    batch: int
    best: float = field(metadata={"formerly": "median"})
    p95: float
    float32_best: float = field(metadata={"formerly": "float32_median"})
    eager_best: float = field(metadata={"formerly": "eager_median"})

    @property
    def vs_float32(self) -> float:
        """Times as fast as float32 of the same backend."""
        return self.float32_best / self.best

    @property
    def vs_eager(self) -> float:
        """Times as fast as eager torch."""
        return self.eager_best / self.best


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
    """A variant that was tried: milliseconds by batch size, and what became of it."""

    variant: str
    times: dict[str, float] = field(metadata={"formerly": "medians"})
    agreement: float
    outcome: str


@dataclass(frozen=True)
class Speed:
    """One way to run the network, its speed, and what became of it.

    Attributes:
        name: of the variant, or "eager torch".
        times: milliseconds per call by batch size; empty if it could not be made.
        ratios: times as fast as eager torch by batch size.
        agreement: share of labels kept; NaN if it was not tested.
        outcome: what became of it, in a word or two.
        why: the same at length, if there is more to say.
        is_chosen: whether the report is about it.
    """

    name: str
    times: dict[int, float]
    ratios: dict[int, float]
    agreement: float = math.nan
    outcome: str = ""
    why: str = ""
    is_chosen: bool = False
