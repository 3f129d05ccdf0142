"""A conversion report for people: the same rows as plain text and as HTML."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from learnkit.deploy.conversion.quality import Quality
    from learnkit.deploy.conversion.report import ConversionReport, Images

_COLOURS = {True: "#1a7f37", False: "#cf222e", None: "#6e7781"}
_SHOWN_IDS = 6


class Block(NamedTuple):
    """A table with a title; the first row of cells is its header, empty for none."""

    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]


def as_text(report: ConversionReport) -> str:
    """The report as plain text, tables in columns."""
    lines = [headline(report), ""]
    lines += [f"  {verdict.word:<10} {verdict.gate:<9} {verdict.found}" for verdict in _by(report)]
    lines += [f"{'':13}{verdict.gate}: {verdict.note}" for verdict in _by(report) if verdict.note]
    for block in blocks(report):
        lines += ["", block.title, *_columns([block.header, *block.rows])]
    return "\n".join([*lines, *_titled("Notes", [f"- {note}" for note in report.notes])])


def as_html(report: ConversionReport) -> str:
    """The report as HTML; everything from outside is escaped."""
    verdicts = "".join(
        f'<tr><td style="text-align:left;color:{_COLOURS[verdict.passed]};font-weight:bold">'
        f"{escape(verdict.word)}</td>{_cells((verdict.gate, verdict.found, verdict.rule))}"
        f"{_cells((verdict.note,))}</tr>"
        for verdict in _by(report)
    )
    tables = "".join(
        f'<details open><summary><b>{escape(block.title)}</b></summary><table style="margin:0">'
        f"{_header(block.header)}{''.join(f'<tr>{_cells(row)}</tr>' for row in block.rows)}"
        "</table></details>"
        for block in blocks(report)
    )
    notes = "".join(f"<li>{escape(note)}</li>" for note in report.notes)
    return (
        f"<p><b>{escape(headline(report))}</b></p>"
        f'<table style="margin:0">{_header(("", "gate", "found", "asked", ""))}{verdicts}</table>'
        f"{tables}{f'<ul>{notes}</ul>' if notes else ''}"
    )


def headline(report: ConversionReport) -> str:
    """The report in one line."""
    outcome = "passes its gates" if report.passed else "fails its gates"
    outcome += " and was made all the same" if report.forced and not report.passed else ""
    speed = ", ".join(f"{one.vs_eager:.1f}x at batch {one.batch}" for one in report.latency)
    return f"{report.variant} {outcome}" + (f"; of eager torch {speed}" if speed else "")


def blocks(report: ConversionReport) -> list[Block]:
    """The tables of the report."""
    found = [_latency(report), _quality(report.quality), _basis(report)]
    if report.quality.worst_images:
        found.insert(2, _images(report.quality))
    if report.candidates:
        found.insert(1, _candidates(report))
    return found


def _by(report: ConversionReport) -> Sequence:
    """Verdicts, the failed ones first."""
    return sorted(report.verdicts, key=lambda verdict: verdict.passed is not False)


def _latency(report: ConversionReport) -> Block:
    header = ("batch", "median ms", "p95 ms", "float32 ms", "eager ms", "of float32", "of eager")
    rows = [
        (
            str(one.batch),
            *(f"{ms:.2f}" for ms in (one.median, one.p95, one.float32_median, one.eager_median)),
            f"{one.vs_float32:.2f}x",
            f"{one.vs_eager:.2f}x",
        )
        for one in report.latency
    ]
    threads = f"{report.threads} thread{'s' * (report.threads != 1)}"
    return Block(f"Speed on {report.device}, {threads}", header, rows)


def _candidates(report: ConversionReport) -> Block:
    batches = list(dict.fromkeys(batch for one in report.candidates for batch in one.medians))
    header = ("variant", *(f"ms at {batch}" for batch in batches), "agreement", "outcome")
    rows = [
        (
            one.variant,
            *(_number(one.medians.get(batch, math.nan)) for batch in batches),
            _percent(one.agreement),
            one.outcome,
        )
        for one in report.candidates
    ]
    return Block("Tried", header, rows)


def _quality(found: Quality) -> Block:
    low, high = found.agreement_interval
    worst, lost = found.worst_class, found.accuracy_interval
    rows = [
        ("labels kept", "", _percent(found.agreement), _between(low, high, _percent)),
        (
            "accuracy",
            _percent(found.accuracy_before),
            _percent(found.accuracy),
            f"{_points(found.accuracy_change)} points{_between(*lost, _points)}",
        ),
        ("calibration error (ECE)", _number(found.ece_before), _number(found.ece), ""),
        ("AUROC of unknown images", _number(found.auroc_before), _number(found.auroc), ""),
        ("false alarms", _percent(found.false_alarms_before), _percent(found.false_alarms), ""),
        ("worst class", *_worst(worst)),
        ("logits, RMS change", "", _number(found.logit_rms), _percent(found.logit_rms_share)),
        ("logits, largest change", "", _number(found.logit_max), ""),
        ("probabilities, mean change", "", _number(found.prob_mean), ""),
        ("probabilities, largest change", "", _number(found.prob_max), ""),
        ("cosine of features", "", _number(found.feature_cosine), _least(found)),
    ]
    shown = [row for row in rows if row[2] != "–"]
    what = f"{found.n} test images, {found.n_labelled} labelled"
    what += f", {found.n_strange} of no known class" * bool(found.n_strange)
    return Block(f"Outputs on {what}", ("", "float32", "converted", ""), shown)


def _least(found: Quality) -> str:
    least = _number(found.feature_cosine_min)
    return "" if least == "–" else f"smallest {least}"


def _worst(worst: object) -> tuple[str, str, str]:
    if worst is None:
        return "", "–", ""
    return _percent(worst.before), _percent(worst.after), f"{worst.name} ({worst.n} images)"


def _images(found: Quality) -> Block:
    header = ("image", "truth", "float32", "converted", "largest change")
    rows = [
        (
            one.name,
            one.truth or "",
            f"{one.before} {one.confidence_before:.3f}",
            f"{one.after} {one.confidence_after:.3f}",
            f"{one.change:.3f}",
        )
        for one in found.worst_images
    ]
    return Block("Images that changed most", header, rows)


def _basis(report: ConversionReport) -> Block:
    size, full = report.n_bytes, report.n_bytes_float32
    share = f" ({size / full:.0%} of the float32 weights)" if full else ""
    rows = [
        ("size on disk", f"{size / 1e6:.2f} MB{share}"),
        ("knowledge", report.state),
        ("samples", _shown(report.samples)),
        ("test", _shown(report.test)),
        ("settings", ", ".join(f"{k}={v}" for k, v in report.params.items())),
        ("processor", ", ".join(f"{v}" for v in report.processor.values() if v)),
        ("versions", ", ".join(f"{k} {v}" for k, v in report.versions.items())),
    ]
    return Block("What it rests on", (), [row for row in rows if row[1]])


def _shown(images: Images | None) -> str:
    if images is None:
        return "none: nothing is calibrated"
    classes = ", ".join(f"{n} {name}" for name, n in list(images.per_class.items())[:_SHOWN_IDS])
    more = ", ..." if len(images.per_class) > _SHOWN_IDS else ""
    counts = f" ({classes}{more})" if classes else ""
    return f"{images.n} {images.what}{counts}, sha256 {images.digest[:12]}"


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.4g}"


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2%}"


def _points(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:+.2f}"


def _between(low: float, high: float, show) -> str:
    return "" if math.isnan(low) else f" [{show(low)}, {show(high)}]"


def _titled(title: str, lines: list[str]) -> list[str]:
    return ["", title, *lines] if lines else []


def _columns(rows: list[tuple[str, ...]]) -> list[str]:
    """Rows padded to columns; the first to the left, numbers to the right."""
    rows = [row for row in rows if row]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))] if rows else []
    last = len(widths) - 1
    return [
        "  "
        + "  ".join(
            cell if i == last and i else cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _header(names: Sequence[str]) -> str:
    cells = "".join(f'<th style="text-align:left">{escape(name)}</th>' for name in names)
    return f"<tr>{cells}</tr>" if names else ""


def _cells(row: Sequence[str]) -> str:
    return "".join(f'<td style="text-align:left">{escape(cell)}</td>' for cell in row)
