"""A conversion report for a notebook, on light pages and dark ones.

Colours of text and page are the page's own. What has a colour says the same in a word or a sign.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

from learnkit.optimize import report_rows as rows
from learnkit.optimize.report_speeds import Speed, speeds_of

if TYPE_CHECKING:
    from learnkit.optimize.conversion_report import ConversionReport
    from learnkit.optimize.quality import ChangedImage

_GREEN, _RED, _GREY, _BLUE = "#1a7f37", "#cf222e", "#6e7781", "#4c72b0"
_MARKS = {True: ("✓", _GREEN), False: ("✗", _RED), None: ("–", _GREY)}
_VERDICTS = {"passed": True, "refused": False, "forced": False}
_FATES = {"now wrong": False, "now right": True, "label changed": False}
_CELL = "text-align:left;vertical-align:top;padding:.25em 1em .25em .3em"
_NUMBER = f"{_CELL};text-align:right;white-space:nowrap"
_TABLE = "margin:.2em 0 .6em;border-collapse:collapse"
_PILL = "color:#fff;padding:.05em .5em;border-radius:.6em;white-space:nowrap"
_NAME = 24  # characters of a name below a picture
_WHOLE = '<span style="white-space:nowrap">'
_BAR = 140  # pixels of the longest bar


def as_html(report: ConversionReport) -> str:
    """The report as HTML; everything from outside is escaped."""
    badge = _badge(_VERDICTS[rows.word(report)], rows.word(report))
    found = report.quality
    what = f"{found.n} test images, {found.n_labelled} labelled"
    parts = [
        f'<p style="margin:0 0 .6em">{badge} <b>{escape(report.variant)}</b>: '
        f"{escape(rows.why(report))}</p>",
        _gates(report),
        _section(f"Before and after ({what})", _changes(rows.changes(report))),
        _section("Times as fast as eager torch", _speeds(report)),
        _section("Images that changed most", _images(found.worst_images)),
        _section("Notes", "".join(f"<div>• {escape(note)}</div>" for note in report.notes)),
        _section("How far its numbers moved", _changes(rows.moves(report)), is_open=False),
        _section("What it rests on", _basis(report), is_open=False),
    ]
    return f'<div style="max-width:64em;line-height:1.35">{"".join(parts)}</div>'


def _gates(report: ConversionReport) -> str:
    """A row per gate: sign and word, what was found, what is asked."""
    lines = []
    for one in rows.by_weight(report.verdicts):
        note = f"<br><small>{escape(one.note)}</small>" if one.note else ""
        lines.append(
            f"<tr>{_cell(_badge(one.passed, one.word))}{_cell(f'<b>{escape(one.gate)}</b>')}"
            f"{_cell(escape(one.found) + note)}{_cell(f'asked: {escape(one.rule)}')}</tr>"
        )
    return f'<table style="{_TABLE}">{"".join(lines)}</table>'


def _changes(changes: Sequence[rows.Change]) -> str:
    if not changes:
        return ""
    lines = [_row(("", "before", "after", ""), head=True)]
    lines += [_row(tuple(map(escape, change))) for change in changes]
    return f'<table style="{_TABLE}">{"".join(lines)}</table>'


def _row(cells: Sequence[str], *, head: bool = False) -> str:
    """Four cells: name, two numbers, a note."""
    tag = "th" if head else "td"
    styles = (_CELL, _NUMBER, f"{_NUMBER};font-weight:bold", _CELL)
    inner = "".join(
        f'<{tag} style="{style}">{cell}</{tag}>' for style, cell in zip(styles, cells, strict=True)
    )
    return f"<tr>{inner}</tr>"


def _speeds(report: ConversionReport) -> str:
    """A bar per batch size for all that was timed; a sentence for what could not be made."""
    speeds = speeds_of(report)
    top = max((ratio for one in speeds for ratio in one.ratios.values()), default=1.0)
    lines = []
    for one in speeds:
        bars = "".join(_bar(one, batch, top) for batch in one.ratios)
        name = f"<b>{escape(one.name)}</b>" if one.is_chosen else escape(one.name)
        kept = "" if math.isnan(one.agreement) else f"{rows.percent(one.agreement)} kept, "
        why = f"<br><small>{escape(one.why)}</small>" if one.why else ""
        said = escape(kept + one.outcome) + why
        lines.append(f"<tr>{_cell(f'{_WHOLE}{name}</span>')}{_cell(bars)}{_cell(said)}</tr>")
    return f'<table style="{_TABLE}">{"".join(lines)}</table>' if lines else ""


def _bar(one: Speed, batch: int, top: float) -> str:
    width = max(1, round(_BAR * one.ratios[batch] / top))
    colour = _BLUE if one.is_chosen else _GREY
    strip = f"display:inline-block;height:.7em;width:{width}px;background:{colour}"
    said = f"{one.ratios[batch]:.2f}x, {one.medians[batch]:.2f} ms at batch {batch}"
    return (
        f'<div style="white-space:nowrap"><span style="{strip}"></span> <small>{said}</small></div>'
    )


def _images(images: Iterable[ChangedImage]) -> str:
    cards = "".join(_card(one) for one in images)
    return f'<div style="display:flex;flex-wrap:wrap;gap:.8em">{cards}</div>' if cards else ""


def _card(one: ChangedImage) -> str:
    """One image: picture, what became of its label, both answers, its name."""
    picture = ""
    if one.thumbnail:
        data = base64.b64encode(one.thumbnail).decode()
        picture = f'<img src="data:image/jpeg;base64,{data}" alt="" style="height:64px"><br>'
    fate = rows.fate(one)
    truth = f"<br>it is {_short(one.truth)}" if fate == rows.STILL_WRONG else ""
    after = "" if one.before == one.after else f"{_short(one.after)} "
    return (
        f'<div style="width:10em;font-size:.85em;overflow-wrap:anywhere">{picture}'
        f"{_badge(_FATES.get(fate), fate)}<br>{_short(one.before)} {one.confidence_before:.2f} → "
        f"{after}{one.confidence_after:.2f}{truth}"
        f'<br><span style="opacity:.75">{_short(one.name)}</span></div>'
    )


def _short(name: str) -> str:
    """The end of a long name; all of it shows under the mouse."""
    if len(name) <= _NAME:
        return f"<bdi>{escape(name)}</bdi>"
    return f'<bdi title="{escape(name)}">…{escape(name[1 - _NAME :])}</bdi>'


def _basis(report: ConversionReport) -> str:
    lines = (
        f"<tr>{_cell(escape(name))}{_cell(escape(said))}</tr>" for name, said in rows.basis(report)
    )
    return f'<table style="{_TABLE}">{"".join(lines)}</table>'


def _badge(passed: bool | None, text: str) -> str:
    """A sign and a word on their own ground, which reads the same on every page."""
    sign, colour = _MARKS[passed]
    style = (
        f"background:{colour};color:#fff;padding:.05em .5em;border-radius:.6em;white-space:nowrap"
    )
    return f'<span style="{style}">{sign} {escape(text)}</span>'


def _section(title: str, body: str, *, is_open: bool = True) -> str:
    if not body:
        return ""
    head = f'<summary style="cursor:pointer"><b>{escape(title)}</b></summary>'
    return f'<details{" open" * is_open} style="margin:.3em 0">{head}{body}</details>'


def _cell(inner: str) -> str:
    return f'<td style="{_CELL}">{inner}</td>'
