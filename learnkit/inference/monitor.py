"""The drift monitor: whether the images a model predicts are still like those it knows."""

from __future__ import annotations

import hashlib
import os
import threading
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from learnkit.errors import (
    BundleCorruptError,
    LearnkitError,
    PredictionError,
    PredictionFileError,
    UncertaintyError,
    number_of,
)
from learnkit.inference.prediction import Prediction, Result
from learnkit.report.document import Document, Headline, Mark, Paragraph, Span, Table
from learnkit.report.notebook import Shown
from learnkit.storage.filesystem import write_file
from learnkit.storage.formats import from_plain, parse_json, read_field, to_json
from learnkit.storage.write_folder import check_outside
from learnkit.uncertainty.checks import check_scores
from learnkit.uncertainty.drift import N_BETS, DriftTest

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from learnkit.uncertainty.scoring import Scoring

    Moment = tuple[Scoring | None, tuple[str, ...]]

FORMAT = 2  # 1 had 26 bets of another kind
ALL = "all images"
_SAVED_EVERY = 256  # images that a killed process may forget
_FEWEST = 100  # a false alarm in fewer images than this is no promise worth the name
_LARGEST = 1e300
_LINES = 8  # classes in a picture: those with the most evidence


@dataclass(frozen=True)
class Alarm:
    """A drift that was noticed.

    Attributes:
        image: how many images had been seen then.
        label: the class it is in, as predicted; None if it is in all images.
        sign: what became of the images.
    """

    image: int
    label: str | None
    sign: str

    def __str__(self) -> str:
        where = "" if self.label is None else f"of those taken for {self.label!r}, "
        return f"drift at image {self.image:,}: {where}{self.sign}"


@dataclass(frozen=True, eq=False)
class DriftState:
    """What a monitor has seen, as one unchanging value.

    Attributes:
        origin: digest of the scores the model was calibrated by.
        overall: the test of all images.
        classes: a test of the images taken for each class. It knows no calibration scores, and
            notices changes from the first such image on.
        alarms: the first of each test, in their order.
    """

    origin: str
    overall: DriftTest
    classes: Mapping[str, DriftTest] = field(default_factory=dict)
    alarms: tuple[Alarm, ...] = ()

    @classmethod
    def of(cls, scoring: Scoring) -> DriftState:
        """The beginning, with the scores a model was calibrated by."""
        by = scoring.threshold
        return cls(_origin(scoring), DriftTest.of(by.calibration_scores, by.calibration_weights))

    @property
    def tests(self) -> dict[str | None, DriftTest]:
        """That of all images under None, and those of the classes."""
        return {None: self.overall, **self.classes}

    def update(self, prediction: Prediction, bound: float) -> DriftState:
        """The state after one more image."""
        score = float(np.clip(prediction.ood_score, -_LARGEST, _LARGEST))
        overall = self.overall.update(score)
        new = replace(self, overall=overall)._raised(None, overall, bound)
        label = prediction.label
        if not isinstance(label, str):
            return new
        # not `hash`, which Python salts anew in every process
        test = self.classes.get(label) or DriftTest(seed=zlib.crc32(label.encode()))
        test = test.update(score)
        return replace(new, classes={**self.classes, label: test})._raised(label, test, bound)

    def renamed(self, names: Mapping[str, str]) -> DriftState:
        """The same of classes that are called otherwise, `{old: new}`."""
        classes = {names.get(name, name): test for name, test in self.classes.items()}
        alarms = tuple(replace(one, label=names.get(one.label, one.label)) for one in self.alarms)
        return replace(self, classes=classes, alarms=alarms)

    def _raised(self, label: str | None, test: DriftTest, bound: float) -> DriftState:
        if test.level < bound or any(alarm.label == label for alarm in self.alarms):
            return self
        return replace(self, alarms=(*self.alarms, Alarm(self.overall.n_images, label, test.sign)))

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON types."""
        return {
            "origin": self.origin,
            "overall": self.overall.to_dict(),
            "classes": {name: test.to_dict() for name, test in self.classes.items()},
            "alarms": [vars(alarm) for alarm in self.alarms],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str, version: int = FORMAT) -> DriftState:
        """The state that `to_dict` described, in this or an earlier format.

        Raises:
            BundleCorruptError: a field is missing or unknown, or no state can have its value.
        """
        read = lambda name, kind: read_field(values, name, kind, where)
        alarms = read("alarms", list)
        renewed = _renewed if version == 1 else DriftTest.from_dict
        try:
            overall = renewed(read("overall", dict))
            found = {name: renewed(one) for name, one in read("classes", dict).items()}
        except UncertaintyError as error:
            raise BundleCorruptError(f"{where}: {error}") from error
        told = tuple(from_plain(Alarm, one, f"{where}: `alarms`") for one in alarms)
        return cls(read("origin", str), overall, found, told)


class Monitor(Shown):
    """Watches the images a predictor predicts: are they still like those the model knows?

    A conformal test martingale over their OOD scores, of all images and of those taken for each
    class, see `uncertainty.drift`. As long as images are drawn alike, the probability of any alarm
    within m images is at most `m / images_per_false_alarm`, whatever the number of classes and of
    calibration scores. Images must not depend on each other: of a film, take one in a while.
    Leave-one-out scores stand for those of new images, and weights for the share of each class; to
    the degree that these are others, the promise is not exact.

    Threads may share it. When the model learns, it begins anew, and when `per_class` changes: that
    moves the scores of each class, and those seen before no longer compare. Another threshold or
    false-alarm rate changes nothing, and classes that are called otherwise go on under their new
    names.

    Args:
        scoring: the model's, with the scores it was calibrated by.
        images_per_false_alarm: within a tenth of so many images there is a false alarm with a
            probability of at most a tenth, and so on.
        file: what was seen is kept in this file and goes on from there after a restart; a file
            about another model, or about this one before it has learned, is begun anew.
        now: gives (scoring, class names) of the model at any moment, (None, ()) while it knows no
            class; default those of `scoring` for ever, until `observe` is given others.

    Raises:
        PredictionError: `images_per_false_alarm` below 100, no whole number, or not that of `file`;
            `file` is no path.
        BundleCorruptError: `file` was not written by a monitor.
        PredictionFileError: `file` cannot be read, or its folder is not there.
        BundleWriteError: `file` is inside a bundle.
    """

    def __init__(
        self,
        scoring: Scoring,
        *,
        images_per_false_alarm: int = 10_000,
        file: str | os.PathLike | None = None,
        now: Callable[[], Moment] | None = None,
    ):
        self.images_per_false_alarm = _checked_promise(images_per_false_alarm)
        self.file = None if file is None else _checked_file(file)
        self.save_error: LearnkitError | None = None
        self._lock, self._scores = threading.Lock(), scoring.threshold.calibration_scores
        self._now = now or (lambda: (None, ()))
        self._names = self._now()[1]
        self._begin = self._state = DriftState.of(scoring)
        if self.file is not None and self.file.exists():
            self._go_on(*_read(self.file), _origin(scoring, exact=True))
        self._n_saved = self.n_images

    def _go_on(self, kept: DriftState, promised: int, names: list[str], exact: str) -> None:
        """Take up what a file says, if it is about this model."""
        if kept.origin not in (self._begin.origin, exact):
            return
        if promised != self.images_per_false_alarm:
            raise PredictionError(
                f"`images_per_false_alarm` is {self.images_per_false_alarm:,}, and alarms in "
                f"{str(self.file)!r} were raised by {promised:,}; give "
                f"images_per_false_alarm={promised}, or another file, or remove this one to begin "
                "anew"
            )
        # classes keep their places; older files do not say them, and renamed ones begin anew
        now = dict(zip(names or self._names, self._names, strict=False))
        known = {name: test for name, test in kept.classes.items() if name in now or not now}
        self._state = replace(kept, origin=self._begin.origin, classes=known).renamed(now)

    @property
    def state(self) -> DriftState:
        """What it has seen of the model as it is now, as one unchanging value."""
        with self._lock:
            self._follow(*self._now())
            return self._state

    @property
    def bound(self) -> float:
        """The evidence from which on there is an alarm."""
        # Half of what is promised is for the test of all images, half for all classes together: of
        # m images m_c are taken for class c, whose alarm has a probability of at most m_c / bound.
        return 2.0 * self.images_per_false_alarm

    @property
    def n_images(self) -> int:
        """Images seen since it began."""
        return self.state.overall.n_images

    @property
    def alarms(self) -> tuple[Alarm, ...]:
        """What was noticed, the first alarm of all images and of each class."""
        return self.state.alarms

    @property
    def is_drifting(self) -> bool:
        """Whether there is an alarm; it stays until `reset`."""
        return bool(self.alarms)

    @property
    def statement(self) -> str:
        """What is promised of its alarms."""
        return _promise(self.images_per_false_alarm)

    def observe(self, results: Sequence[Result], scoring: Scoring) -> None:
        """Take note of predictions; errors among them are passed over.

        Args:
            results: predictions, in their order.
            scoring: the model's at this moment.
        """
        with self._lock:
            self._follow(scoring, self._now()[1])
            before = self._state.alarms
            for result in results:
                if isinstance(result, Prediction) and result.ood_score is not None:
                    self._state = self._state.update(result, self.bound)
            n_unsaved = self._state.overall.n_images - self._n_saved
            if n_unsaved >= _SAVED_EVERY or self._state.alarms != before:
                self._try_save()

    def _follow(self, scoring: Scoring | None, names: tuple[str, ...]) -> None:
        """Begin anew if the model knows other things, and take over other names of classes."""
        if scoring is not None and scoring.threshold.calibration_scores is not self._scores:
            self._scores, begin = scoring.threshold.calibration_scores, DriftState.of(scoring)
            if begin.origin != self._begin.origin:
                self._state, self._n_saved = begin, 0
            self._begin = begin
        if names and names != self._names:
            # of the classes in both
            self._state = self._state.renamed(dict(zip(self._names, names, strict=False)))
            self._names = names

    def reset(self) -> None:
        """Begin anew with the scores the model was calibrated by, once what drifted is mended."""
        with self._lock:
            self._follow(*self._now())
            self._state = self._begin
            self._try_save()

    def save(self) -> None:
        """Write what was seen to `file`, if there is one.

        Raises:
            PredictionFileError: it cannot be written; what stood there still does.
        """
        with self._lock:
            self._follow(*self._now())
            self._try_save()
        if self.save_error is not None:
            raise self.save_error

    def _try_save(self) -> None:
        # Predictions go on where the disk is full: `save_error` says so, and it is tried again.
        if self.file is None:
            return
        values = {"format": FORMAT, "images_per_false_alarm": self.images_per_false_alarm}
        content = to_json({**values, "class_names": self._names, **self._state.to_dict()})
        # counted before it is tried: a full disk is not asked again at every image
        self._n_saved = self._state.overall.n_images
        try:
            write_file(self.file, lambda file: file.write(content))
            self.save_error = None
        except OSError as error:
            self.save_error = PredictionFileError(
                f"the drift monitor cannot write {str(self.file)!r}: {error}; make the folder "
                "writable, or choose another file"
            )

    def __str__(self) -> str:
        return sentence(self.state, self.bound)

    def to_dict(self) -> dict[str, Any]:
        """What there is to know of it, as JSON types: for health checks and logs."""
        return {
            "status": "drift" if self.is_drifting else "ok",
            "sentence": str(self),
            "images": self.n_images,
            "evidence": self.state.overall.level,
            "alarm_at": self.bound,
            "images_per_false_alarm": self.images_per_false_alarm,
            "alarms": [vars(alarm) for alarm in self.alarms],
            "save_error": None if self.save_error is None else str(self.save_error),
        }

    def table(self) -> pd.DataFrame:
        """A row for all images and for each class: images, evidence, its bound, and the alarm."""
        import pandas as pd

        # object: no NaN for a missing name
        found = pd.DataFrame(_rows(self.state, self.bound), columns=list(_COLUMNS), dtype=object)
        return found.astype({"images": "int64", "evidence": "float64", "alarm_at": "float64"})

    def plot(self, ax: Axes | None = None) -> Axes:
        """Axes with the evidence over the images seen, and the bound at which there is an alarm.

        Args:
            ax: where to draw; a new figure if None.
        """
        from learnkit.interpret.plots import VERMILION, ink, lighten, new_axes
        from learnkit.report.figure_text import figure_names

        ax = ax or new_axes((6.4, 3.4))
        tests = self.state.tests
        shown = sorted(self.state.classes, key=lambda name: -max(tests[name].trace, default=0))
        names, written = figure_names([ALL, *shown[:_LINES]])
        for name, label in zip((None, *shown[:_LINES]), names, strict=True):
            test = tests[name]
            x = [min((i + 1) * test.stride, test.n_images) for i in range(len(test.trace))]
            style = {"color": ink(), "linewidth": 2} if name is None else {"linewidth": 1}
            ax.plot(x, list(test.trace), label=label, **style)
        legend = {"fontsize": "small", "frameon": False, "loc": "best"}
        # given by hand: matplotlib leaves out what is called `_something`
        for text in ax.legend(list(ax.lines)[-len(names) :], names, **legend).get_texts():
            text.set(**written)
        ax.axhline(self.bound, color=VERMILION, linestyle="--", linewidth=1)
        ax.set_yscale("log")
        ax.set_ylim(1, 3 * max(self.bound, *(y for line in ax.lines for y in line.get_ydata())))
        ax.set_xlabel("images seen (of all, or of a class)")
        ax.set_ylabel("evidence of drift")
        ax.set_title("drift" if self.is_drifting else "no drift", parse_math=False)
        lighten(ax)
        return ax

    def document(self) -> Document:
        """The verdict, what is promised of it, and the evidence of every test."""
        return drift_document(self.state, self.images_per_false_alarm)

    def __repr__(self) -> str:
        return f"<Monitor: {self}>"


_COLUMNS = ("label", "images", "evidence", "alarm_at", "alarm")


def drift_document(state: DriftState, images_per_false_alarm: int) -> Document:
    """What `Monitor.document` gives, of a state at rest."""
    bound, drifting = 2.0 * images_per_false_alarm, bool(state.alarms)
    mark = Mark("drift" if drifting else "no drift", good=not drifting)
    phrase = "are no longer like those the model knows" if drifting else "are like those it knows"
    promise = _promise(images_per_false_alarm).capitalize()
    promise += f"; an alarm is raised at evidence {bound:,.0f}."
    rows = [
        [label or ALL, images, evidence, f"at image {alarm:,}" if alarm else ""]
        for label, images, evidence, _, alarm in _rows(state, bound)
    ]
    table = Table(rows, ("images taken for", "images", "evidence", "alarm"), "lrrl")
    headline = Headline("images", mark, phrase, sentence(state, bound))
    return Document([headline, Paragraph(Span(promise, "faint")), table])


def _promise(images_per_false_alarm: int) -> str:
    return (
        "without drift, the probability of a false alarm within m images is at most "
        f"m / {images_per_false_alarm:,}"
    )


def sentence(state: DriftState, bound: float) -> str:
    """Whether there is drift, in one sentence."""
    images = number_of(state.overall.n_images, "image")
    if not state.alarms:
        highest = max(test.level for test in state.tests.values())
        return f"no drift in {images}; evidence is {highest / bound:.1%} of what an alarm takes"
    others = len(state.alarms) - 1
    more = f", and {number_of(others, 'more alarm')}" if others else ""
    return (
        f"{state.alarms[0]}{more} ({images} seen); look at camera, light and parts, then mend "
        "that, or teach the model what is new, and call reset()"
    )


def read_drift_report(path: Path) -> Document:
    """What a monitor's file says.

    Raises:
        BundleCorruptError: it was not written by a monitor, or by one of a later version.
        PredictionFileError: it cannot be read.
    """
    return drift_document(*_read(path)[:2])


def _checked_promise(n: Any) -> int:
    if isinstance(n, bool) or not isinstance(n, Integral) or n < _FEWEST:
        raise PredictionError(
            f"`images_per_false_alarm` is {n!r}; give a whole number from {_FEWEST} on"
        )
    return int(n)


def _checked_file(file: Any) -> Path:
    """Where to write; an error if nothing could ever be written there."""
    if not isinstance(file, str | os.PathLike):
        raise PredictionError(
            f"`file` is {file!r} ({type(file).__name__}); give the path of a file"
        )
    path = Path(file)
    check_outside(path)
    if not path.absolute().parent.is_dir():
        raise PredictionFileError(
            f"the drift monitor cannot write {str(path)!r}: there is no folder "
            f"{str(path.parent)!r}; make it, or choose another file"
        )
    return path


def _read(path: Path) -> tuple[DriftState, int, list[str]]:
    try:
        return _parsed(path)
    except BundleCorruptError as error:
        raise BundleCorruptError(f"{error}; remove the file to begin anew") from error


def _parsed(path: Path) -> tuple[DriftState, int, list[str]]:
    """(what was seen, the promise, the class names by their places; none in older files)."""
    where = str(path)
    try:
        values = parse_json(path.read_bytes(), where)
    except OSError as error:
        raise PredictionFileError(f"the drift monitor cannot read {where!r}: {error}") from error
    version = read_field(values, "format", int, where)
    if not 1 <= version <= FORMAT:
        raise BundleCorruptError(
            f"{where} has format {version}; this learnkit reads 1 to {FORMAT}: update it"
        )
    n = read_field(values, "images_per_false_alarm", int, where)
    if n < _FEWEST:
        raise BundleCorruptError(f"{where}: `images_per_false_alarm` is {n}, below {_FEWEST}")
    names = read_field(values, "class_names", list, where) if "class_names" in values else []
    if any(not isinstance(name, str) for name in names):
        raise BundleCorruptError(f"{where}: `class_names` is {names!r:.100}, no list of names")
    return DriftState.from_dict(values, where, version), n, names


def _renewed(values: Any) -> DriftTest:
    """A test of format 1: today's bets share the evidence of those it had, marks are set anew."""
    found = values.get("evidence") if isinstance(values, dict) else None
    if isinstance(found, list) and found:
        level = float(check_scores(found, name="evidence").mean())
        values = {**values, "evidence": [level] * N_BETS, "marks": [], "n_marked": 0}
    return DriftTest.from_dict(values)


def drift_file(bundle: str | os.PathLike) -> Path:
    """Where a server keeps what it saw of a bundle's images: beside it, as NAME.drift.json."""
    path = Path(os.path.abspath(bundle))
    return path.with_name(f"{path.name}.drift.json")


def _rows(state: DriftState, bound: float) -> list[tuple[Any, ...]]:
    raised = {alarm.label: alarm.image for alarm in state.alarms}
    return [
        (label, test.n_images, test.level, bound, raised.get(label))
        for label, test in state.tests.items()
    ]


def _origin(scoring: Scoring, *, exact: bool = False) -> str:
    """Digest of the scores a model was calibrated by: another one once it has learned.

    By four digits of each: the last bits follow from the order in which the names put the classes.
    `exact` is by all of them, as in files of earlier versions.
    """
    known = scoring.threshold
    rows = np.stack([known.calibration_scores, known.calibration_weights]).astype("<f8")
    if not exact:
        digits, exponents = np.frexp(rows)
        rows = np.ldexp(np.rint(digits * 2**12), exponents)
        rows = rows[:, np.lexsort(rows[::-1])]
    return hashlib.blake2b(rows.tobytes(), digest_size=16).hexdigest()
