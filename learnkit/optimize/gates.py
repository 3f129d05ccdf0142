"""Gates that a converted model must pass: arithmetic on counts and times, no model and no files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from learnkit.errors import OptimizeError, number_of
from learnkit.evaluation.measures import paired_interval, wilson_interval

PROVING = 500  # test images recommended: enough to prove the default gates, with some to spare
BUSY = "others used the machine while it was timed"


@dataclass(frozen=True)
class Gates:
    """What a converted model must reach; None switches a gate off.

    Attributes:
        agreement: smallest share of test images that keep their label, in 0..1.
        accuracy_drop: largest loss of accuracy on labelled test images, as a share in 0..1.
        speed: how many times as fast as its reference it must be, at every batch size measured.

    Raises:
        OptimizeError: a value outside its range.
    """

    agreement: float | None = 0.99
    accuracy_drop: float | None = 0.005
    speed: float | None = 1.1

    def __post_init__(self) -> None:
        for name, top in (("agreement", 1.0), ("accuracy_drop", 1.0), ("speed", math.inf)):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= top:
                raise OptimizeError(
                    f"`gates.{name}` is {value}; it must be from 0 to {top:g}, or None for no gate"
                )


@dataclass(frozen=True)
class Verdict:
    """What one gate says.

    Attributes:
        gate: "agreement", "accuracy", "speed" or "finite".
        passed: whether it is passed; None where nothing could be measured or decided, or nothing
            is asked.
        found: the number measured, in words.
        rule: what is asked, in words.
        note: what else there is to know, such as that too few images were at hand to prove it.
    """

    gate: str
    passed: bool | None
    found: str
    rule: str
    note: str = ""

    @property
    def word(self) -> str:
        """The verdict in a word."""
        asked = not self.rule.startswith("nothing")
        unknown = "not decided" if asked and self.is_disturbed else "not judged"
        return {True: "passed", False: "FAILED", None: unknown}[self.passed]

    @property
    def is_disturbed(self) -> bool:
        """Whether it was measured, but others used the machine meanwhile."""
        return self.passed is None and self.note.startswith(BUSY)

    def __str__(self) -> str:
        note = f"; {self.note}" if self.note else ""
        return f"{self.gate}: {self.word} ({self.found}; asked: {self.rule}{note})"


def agreement_verdict(n_same: int, n: int, gates: Gates) -> Verdict:
    """The verdict on labels that stayed the same for `n_same` of `n` test images."""
    rule = "nothing" if gates.agreement is None else f"at least {gates.agreement:.1%}"
    if n == 0:
        return Verdict("agreement", None, "no test images", rule, "give `test` to have it judged")
    low, high = wilson_interval(n_same, n)
    found = f"{n_same / n:.2%} of {number_of(n, 'image')}, 95 % interval {low:.1%} to {high:.1%}"
    if gates.agreement is None:
        return Verdict("agreement", None, found, rule)
    passed = n_same / n >= gates.agreement
    note = ""
    if passed and low < gates.agreement:
        more = f"{PROVING} or more" if n < PROVING else "more"
        note = f"{number_of(n, 'image')} cannot prove it: give {more}"
    return Verdict("agreement", passed, found, rule, note)


def accuracy_verdict(n_lost: int, n_gained: int, n: int, gates: Gates) -> Verdict:
    """The verdict on accuracy: `n_lost` answers turned wrong and `n_gained` right, of `n`."""
    limit = gates.accuracy_drop
    rule = "nothing" if limit is None else f"a drop of at most {100 * limit:g} points"
    if n == 0:
        note = "give labelled `test` images to have it judged"
        return Verdict("accuracy", None, "no labelled test images", rule, note)
    change, (low, high) = (n_gained - n_lost) / n, paired_interval(n_lost, n_gained, n)
    found = (
        f"{100 * change:+.2f} points on {number_of(n, 'image')}, 95 % interval {100 * low:+.2f} to "
        f"{100 * high:+.2f}"
    )
    if limit is None:
        return Verdict("accuracy", None, found, rule)
    passed = n_lost - n_gained <= limit * n + 1e-9
    note = ""
    if not passed and limit * n < 1:
        note = f"one image of {n} is {100 / n:.2f} points: give {PROVING} or more"
    elif passed and low < -limit:
        may_be = f"the drop may be up to {-100 * low:.2f} points"
        note = f"{number_of(n, 'image')} cannot prove it: {may_be}"
    return Verdict("accuracy", passed, found, rule, note)


def ratio_text(ratio: float) -> str:
    """A ratio with the two digits that timing bears, rounded down: it is no less than it says.

    >>> [ratio_text(one) for one in (0.957, 1.099, 6, 13.9, 1777.4)]
    ['0.95x', '1.0x', '6.0x', '13x', '1700x']
    """
    if not (math.isfinite(ratio) and ratio > 0):
        return f"{ratio:g}x"
    digits = 1 - math.floor(math.log10(ratio))
    # .29 * 100 is 28.999999999999996
    kept = math.floor(ratio * 10**digits + 1e-9) / 10**digits
    return f"{kept:.{max(digits, 0)}f}x"


def speed_verdict(
    ratios: Mapping[int, float], reference: str, gates: Gates, disturbed: str = ""
) -> Verdict:
    """The verdict on speed; none where others used the machine meanwhile, which its note says.

    Args:
        ratios: times as fast as the reference, by batch size.
        reference: what it is compared with, in words; empty if no gain is expected of it, as of
            weights that are only stored in half precision.
        gates: the limits.
        disturbed: what tells that others used the machine; empty if nothing does.
    """
    shown = ", ".join(f"{ratio_text(ratio)} at batch {batch}" for batch, ratio in ratios.items())
    rule = "nothing" if gates.speed is None else f"at least {gates.speed:g}x of {reference}"
    if not ratios:
        return Verdict("speed", None, "not measured", rule)
    note = f"{BUSY} ({disturbed}): optimise again when it is idle" if disturbed else ""
    if not reference:
        return Verdict("speed", None, shown, "nothing: it saves space, not time", note)
    if disturbed or gates.speed is None:
        return Verdict("speed", None, shown, rule, note)
    return Verdict("speed", min(ratios.values()) >= gates.speed, shown, rule)


def finite_verdict(n_broken: int, n: int) -> Verdict:
    """The verdict on outputs that are not finite for `n_broken` of `n` images."""
    found = f"{n_broken} of {number_of(n, 'image')} with outputs that are NaN or infinite"
    return Verdict("finite", n_broken == 0, found, "none")


def passes(verdicts: Sequence[Verdict]) -> bool:
    """Whether no gate failed."""
    return all(verdict.passed is not False for verdict in verdicts)


def failures(verdicts: Sequence[Verdict]) -> str:
    """What failed, in one line; empty if nothing did."""
    return "; ".join(str(verdict) for verdict in verdicts if verdict.passed is False)
