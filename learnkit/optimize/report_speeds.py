"""All that was timed for a conversion, side by side: the numbers behind its bars."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from learnkit.optimize.report_rows import EAGER, word

if TYPE_CHECKING:
    from learnkit.optimize.conversion_report import ConversionReport
    from learnkit.optimize.quality import Candidate

_BRIEF = 24  # characters of an outcome that says it all


class Speed(NamedTuple):
    """What one way to run the network reached, and what became of it.

    Attributes:
        name: of the variant, or "eager torch".
        medians: milliseconds per call by batch size; empty if it could not be made.
        ratios: times as fast as eager torch by batch size.
        agreement: share of labels kept; NaN if it was not judged.
        outcome: what became of it, in a word or two.
        why: the same at length, if there is more to say.
        is_chosen: whether the report is about it.
    """

    name: str
    medians: dict[int, float]
    ratios: dict[int, float]
    agreement: float = math.nan
    outcome: str = ""
    why: str = ""
    is_chosen: bool = False


def speeds_of(report: ConversionReport) -> list[Speed]:
    """Torch as it is, float32 of the same backend, and all that was tried; the slowest first."""
    eager = {one.batch: one.eager_median for one in report.latency}
    if not eager:
        return []
    plain = {one.batch: one.float32_median for one in report.latency}
    tried = [_tried(report, one, eager) for one in report.candidates] or [_own(report, eager)]
    found = [_speed(EAGER, eager, eager), *tried]
    name = f"{report.backend}-float32"
    if name not in {one.name for one in found}:
        found.append(_speed(name, plain, eager))
    return sorted(found, key=_how_fast)


def _speed(name: str, medians: dict[int, float], eager: dict[int, float], **more: Any) -> Speed:
    ratios = {batch: eager[batch] / ms for batch, ms in medians.items() if batch in eager}
    return Speed(name, medians, ratios, **more)


def _tried(report: ConversionReport, one: Candidate, eager: dict[int, float]) -> Speed:
    medians = {int(batch): ms for batch, ms in one.medians.items()}
    return _speed(
        one.variant,
        medians,
        eager,
        agreement=one.agreement,
        outcome=_brief(one),
        why=one.outcome if len(one.outcome) > _BRIEF else "",
        is_chosen=one.variant == report.variant,
    )


def _brief(one: Candidate) -> str:
    if len(one.outcome) <= _BRIEF:
        return one.outcome
    return "failed" if one.medians else "not possible"


def _own(report: ConversionReport, eager: dict[int, float]) -> Speed:
    medians = {one.batch: one.median for one in report.latency}
    kept = report.quality.agreement
    return _speed(
        report.variant, medians, eager, agreement=kept, outcome=word(report), is_chosen=True
    )


def _how_fast(one: Speed) -> tuple[bool, bool, float]:
    """Eager torch first, what could not be made last."""
    return one.name != EAGER, not one.ratios, math.prod(one.ratios.values())
