"""Rows of a conversion report: gates, changes, speeds and images as a document shows them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from learnkit.errors import number_of
from learnkit.optimize.gates import Verdict, ratio_text
from learnkit.optimize.quality import Candidate, ChangedImage, Images, Latency, Quality, Speed
from learnkit.report.document import (
    ARROW,
    DASH,
    Bar,
    BarRow,
    Bars,
    Items,
    Lines,
    Mark,
    Picture,
    Span,
    Table,
    value_text,
)

EAGER = "eager torch"
_STILL_WRONG = "still wrong"
_FATES = {"now wrong": False, "now right": True, "label changed": False}
_SHOWN_CLASSES = 6
_BRIEF = 24  # characters of an outcome that says it all

Row = tuple[str, str, str, str]  # name, before, after, a note


def gates_table(verdicts: Sequence[Verdict]) -> Table:
    """A row per gate, failed ones first: what was found and what is asked."""
    ranked = sorted(verdicts, key=lambda one: one.passed is not False)
    rows = [
        (
            Mark(one.word, one.passed),
            Span(one.gate, "strong"),
            Lines((one.found, *([Span(one.note, "faint")] if one.note else []))),
            one.rule,
        )
        for one in ranked
    ]
    return Table(rows, ("", "", "found", "asked"))


def changes_table(rows: Sequence[Row]) -> Table:
    """Rows before and after, without those of what was not measured."""
    told = [(name, was, Span(now, "strong"), note) for name, was, now, note in rows if now != DASH]
    return Table(told, ("", "before", "after", ""), "lrrl")


def time_row(one: Latency, float32_name: str) -> Row:
    """Milliseconds at one batch size; `float32_name` is of float32 on the same backend."""
    note = f"{ratio_text(one.vs_eager)} as fast, p95 {one.p95:.2f} ms"
    if float32_name:
        note += f"; {ratio_text(one.vs_float32)} of {float32_name}"
    return (f"time, batch {one.batch}", f"{one.eager_best:.2f} ms", f"{one.best:.2f} ms", note)


def answer_rows(found: Quality) -> list[Row]:
    """What became of the answers."""
    points = lambda value: DASH if math.isnan(value) else f"{100 * value:+.2f}"
    kept = _interval(*found.agreement_interval, percent)
    change = _interval(*found.accuracy_interval, points)
    unknown = f"{number_of(found.n_strange, 'image')} of no known class"
    rows = [
        ("labels kept", "", percent(found.agreement), kept),
        (
            "accuracy",
            percent(found.accuracy_before),
            percent(found.accuracy),
            f"{points(found.accuracy_change)} points, {change}",
        ),
        ("calibration, ECE", value_text(found.ece_before), value_text(found.ece), ""),
        ("OOD, AUROC", value_text(found.auroc_before), value_text(found.auroc), unknown),
        ("false alarms", percent(found.false_alarms_before), percent(found.false_alarms), ""),
    ]
    if (worst := found.worst_class) is not None:
        note = f"{worst.name} ({number_of(worst.n, 'image')})"
        rows.append(("worst class", percent(worst.before), percent(worst.after), note))
    return rows


def number_rows(found: Quality) -> list[Row]:
    """How far the network's numbers moved."""
    least, share = value_text(found.feature_cosine_min), percent(found.logit_rms_share)
    return [
        ("logits, RMS", "", value_text(found.logit_rms), f"{share} of the logits' own"),
        ("logits, largest", "", value_text(found.logit_max), ""),
        ("probabilities, mean", "", value_text(found.prob_mean), ""),
        ("probabilities, largest", "", value_text(found.prob_max), ""),
        ("cosine of features", "", value_text(found.feature_cosine), f"smallest {least}"),
    ]


def tried_speed(one: Candidate, eager: dict[int, float], chosen: str) -> Speed:
    """The speed of a variant that was tried, and what became of it."""
    is_brief, failed = len(one.outcome) <= _BRIEF, "failed" if one.times else "not possible"
    return speed_of(
        one.variant,
        {int(batch): ms for batch, ms in one.times.items()},
        eager,
        agreement=one.agreement,
        outcome=one.outcome if is_brief else failed,
        why="" if is_brief else one.outcome,
        is_chosen=one.variant == chosen,
    )


def speed_of(name: str, times: dict[int, float], eager: dict[int, float], **more: Any) -> Speed:
    """Milliseconds beside those of eager torch."""
    ratios = {batch: eager[batch] / ms for batch, ms in times.items() if batch in eager}
    return Speed(name, times, ratios, **more)


def speed_bars(speeds: Sequence[Speed]) -> list[Bars | Items]:
    """A bar per variant and batch size, and at length why some were not taken."""
    batches = [*speeds[0].ratios] if speeds else []
    rows = [
        BarRow(
            one.name,
            [_bar(one, batch) for batch in batches],
            (
                "" if math.isnan(one.agreement) else percent(one.agreement),
                one.outcome.split(",")[0],
            ),
            one.is_chosen,
        )
        for one in speeds
    ]
    series = [f"batch {batch}" for batch in batches]
    whys = [(Span(one.name, "strong"), f": {one.why}") for one in speeds if one.why]
    return [Bars(rows, series, ("kept", ""), "rl", reference=1.0), Items(whys)]


def picture_of(one: ChangedImage) -> Picture:
    """The image with what became of its label and both answers."""
    fate = _fate(one)
    after = () if one.before == one.after else (Span(one.after, "name"), " ")
    answers = (
        *(Span(one.before, "name"), f" {one.confidence_before:.2f}", ARROW),
        *(*after, f"{one.confidence_after:.2f}"),
    )
    truth = [("it is ", Span(one.truth, "name"))] if fate == _STILL_WRONG else []
    mark = Mark(fate, _FATES.get(fate))
    return Picture(one.name, mark, Lines((answers, *truth)), one.thumbnail or None)


def images_text(images: Images | None) -> str:
    """How many images of which classes something rests on."""
    if images is None:
        return "none: there are no activation ranges to set"
    counted = list(images.per_class.items())
    classes = ", ".join(f"{n} {name}" for name, n in counted[:_SHOWN_CLASSES])
    more = ", ..." if len(counted) > _SHOWN_CLASSES else ""
    counts = f" ({classes}{more})" if classes else ""
    return f"{images.n} {images.what}{counts}, sha256 {images.digest[:12]}"


def percent(value: float) -> str:
    """A share in percent, or a dash for what was not measured."""
    return DASH if math.isnan(value) else f"{value:.2%}"


def _interval(low: float, high: float, show) -> str:
    return "" if math.isnan(low) else f"95 % interval {show(low)} to {show(high)}"


def _bar(one: Speed, batch: int) -> Bar | None:
    if batch not in one.ratios:
        return None
    ratio = "" if one.name == EAGER else f" ({ratio_text(one.ratios[batch])})"
    return Bar(one.ratios[batch], f"{one.times[batch]:.2f} ms{ratio}")


def _fate(image: ChangedImage) -> str:
    """What became of the label of one image, in words."""
    if image.truth is None:
        return "label kept" if image.before == image.after else "label changed"
    was, now = (label == image.truth for label in (image.before, image.after))
    return {
        (True, True): "still right",
        (True, False): "now wrong",
        (False, True): "now right",
        (False, False): _STILL_WRONG,
    }[was, now]
