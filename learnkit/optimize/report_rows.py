"""What a conversion report shows, whatever it is shown in: rows of text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from learnkit.optimize.conversion_report import ConversionReport
    from learnkit.optimize.gates import Verdict
    from learnkit.optimize.quality import ChangedImage, Images, Quality

EAGER, STILL_WRONG = "eager torch", "still wrong"
_SHOWN_CLASSES = 6


class Change(NamedTuple):
    """One thing before and after, in words; empty where there is nothing to say."""

    name: str
    before: str
    after: str
    note: str = ""


def word(report: ConversionReport) -> str:
    """What became of the variant: "passed", "refused" or "forced"."""
    if report.passed:
        return "passed"
    return "forced" if report.forced else "refused"


def why(report: ConversionReport) -> str:
    """What speaks for the variant, or the gates it fails, in one line."""
    if not report.passed:
        failed = [verdict for verdict in report.verdicts if verdict.passed is False]
        return "; ".join(f"{one.gate} {one.found} (asked: {one.rule})" for one in failed)
    found = []
    if report.latency:
        ratios = " / ".join(f"{one.vs_eager:.1f}x" for one in report.latency)
        batches = " / ".join(str(one.batch) for one in report.latency)
        found.append(f"{ratios} as fast as {EAGER} (batch {batches})")
    found.append(f"{_share(report)} of the size")
    judged = {verdict.gate for verdict in report.verdicts if verdict.passed is not None}
    kept = percent(report.quality.agreement)
    found.append(f"{kept} of labels kept" if "agreement" in judged else "labels not judged")
    return ", ".join(found)


def by_weight(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """The verdicts, failed ones first."""
    return sorted(verdicts, key=lambda verdict: verdict.passed is not False)


def changes(report: ConversionReport) -> list[Change]:
    """What people ask for first: times, size, and what became of the answers."""
    found, sizes = report.quality, (report.n_bytes_float32, report.n_bytes)
    low, high = found.agreement_interval
    share = f"{_share(report)} of the float32 weights"
    rows = [
        *_times(report),
        Change("size on disk", *(f"{n / 1e6:.2f} MB" for n in sizes), share),
        Change("labels kept", "", percent(found.agreement), _interval(low, high, percent)),
        Change(
            "accuracy",
            percent(found.accuracy_before),
            percent(found.accuracy),
            f"{_points(found.accuracy_change)} points, "
            f"{_interval(*found.accuracy_interval, _points)}",
        ),
        Change("calibration, ECE", number(found.ece_before), number(found.ece)),
        Change(
            "unknowns, AUROC",
            number(found.auroc_before),
            number(found.auroc),
            f"{found.n_strange} images of no known class",
        ),
        Change("false alarms", percent(found.false_alarms_before), percent(found.false_alarms)),
        *_worst(found),
    ]
    return [row for row in rows if row.after != "–"]


def moves(report: ConversionReport) -> list[Change]:
    """How far the network's numbers moved."""
    found = report.quality
    least, share = number(found.feature_cosine_min), percent(found.logit_rms_share)
    rows = [
        Change("logits, RMS", "", number(found.logit_rms), f"{share} of the logits' own"),
        Change("logits, largest", "", number(found.logit_max)),
        Change("probabilities, mean", "", number(found.prob_mean)),
        Change("probabilities, largest", "", number(found.prob_max)),
        Change("cosine of features", "", number(found.feature_cosine), f"smallest {least}"),
    ]
    return [row for row in rows if row.after != "–"]


def basis(report: ConversionReport) -> list[tuple[str, str]]:
    """What the report rests on."""
    threads = f"{report.threads} thread{'s' * (report.threads != 1)}"
    name, flags = (report.processor.get(key, "") for key in ("name", "flags"))
    rows = [
        ("knowledge", report.state),
        ("samples", _shown(report.samples)),
        ("test", _shown(report.test)),
        ("measured on", f"{report.device}, {threads}: {name}" + f" ({flags})" * bool(flags)),
        ("settings", ", ".join(f"{k}={v}" for k, v in report.params.items())),
        ("versions", ", ".join(f"{k} {v}" for k, v in report.versions.items())),
    ]
    return [row for row in rows if row[1]]


def fate(image: ChangedImage) -> str:
    """What became of the label of one image, in words."""
    if image.truth is None:
        return "label kept" if image.before == image.after else "label changed"
    was, now = (label == image.truth for label in (image.before, image.after))
    return {
        (True, True): "still right",
        (True, False): "now wrong",
        (False, True): "now right",
        (False, False): STILL_WRONG,
    }[was, now]


def number(value: float) -> str:
    """Four digits, or a dash for what was not measured."""
    return "–" if math.isnan(value) else f"{value:.4g}"


def percent(value: float) -> str:
    """A share in percent, or a dash for what was not measured."""
    return "–" if math.isnan(value) else f"{value:.2%}"


def _times(report: ConversionReport) -> list[Change]:
    """A row per batch size."""
    rows = []
    for one in report.latency:
        note = f"{one.vs_eager:.2f}x as fast, p95 {one.p95:.2f} ms"
        if report.precision != "float32":
            note += f"; {one.vs_float32:.2f}x of {report.backend}-float32"
        before, after = f"{one.eager_median:.2f} ms", f"{one.median:.2f} ms"
        rows.append(Change(f"time, batch {one.batch}", before, after, note))
    return rows


def _worst(found: Quality) -> list[Change]:
    worst = found.worst_class
    if worst is None:
        return []
    note = f"{worst.name} ({worst.n} images)"
    return [Change("worst class", percent(worst.before), percent(worst.after), note)]


def _shown(images: Images | None) -> str:
    if images is None:
        return "none: nothing is calibrated"
    counted = list(images.per_class.items())
    classes = ", ".join(f"{n} {name}" for name, n in counted[:_SHOWN_CLASSES])
    more = ", ..." if len(counted) > _SHOWN_CLASSES else ""
    counts = f" ({classes}{more})" if classes else ""
    return f"{images.n} {images.what}{counts}, sha256 {images.digest[:12]}"


def _share(report: ConversionReport) -> str:
    full = report.n_bytes_float32
    return f"{report.n_bytes / full:.0%}" if full else "–"


def _points(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:+.2f}"


def _interval(low: float, high: float, show) -> str:
    return "" if math.isnan(low) else f"95 % interval {show(low)} to {show(high)}"
