"""The knowledge of a continual classifier: its whole state as one unchanging value."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from learnkit.continual.change_report import (
    AuditLog,
    ChangeReport,
    note_on_origins,
    note_on_remainder,
    note_on_return,
    note_on_unseen,
    renamed_classes,
)
from learnkit.continual.checks import check_labelled_features, check_some_count, shown_images
from learnkit.continual.closed_form.threads import same_bits
from learnkit.continual.derivation import Derived, derive
from learnkit.continual.label_issues import label_issues, not_learned_before
from learnkit.continual.memory import FeatureMemory
from learnkit.continual.names import clean_name, name_list
from learnkit.continual.serialization import (
    FORMAT,
    check_width,
    memory_tensors,
    parted_tensors,
    read_config,
    read_memory,
    read_settings,
    read_threshold,
    state_digest,
)
from learnkit.continual.settings import Settings
from learnkit.continual.statistics import ClassStatistics
from learnkit.continual.validation_images import (
    VALIDATION_SIZE,
    Validation,
    fresh_images,
    less_validation,
    with_validation,
    without_learned,
)
from learnkit.errors import (
    ContinualPredictionError,
    ContinualStateError,
    DataError,
    number_of,
)
from learnkit.uncertainty.scoring import Scoring
from learnkit.uncertainty.threshold import manual_threshold

Change = tuple["Knowledge", tuple[str, ...]]
UNDO_LEVELS = 3
MAX_SNAPSHOTS, MAX_NAME = 8, 100
_SMALL = 2**20  # numbers so few that a former state keeps what can be derived again


@dataclass(frozen=True, eq=False)
class Knowledge:
    """Statistics, validation features, settings, and what follows from them.

    Every change returns (new knowledge, notes) and derives nothing: `derive` does.
    """

    settings: Settings
    statistics: ClassStatistics
    validation: FeatureMemory
    manual_threshold: float | None = None
    derived: Derived | None = None
    # whether it was said that an earlier version learned images without noting which
    told_unseen: bool = False
    # weights by device, made when first asked for; they follow from `derived`, so nothing changes
    _affine: dict[torch.device, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    @classmethod
    def empty(cls, settings: Settings, names: Sequence[str] = ()) -> "Knowledge":
        """Knowledge of no image, with places for classes whose names are taken as they are."""
        none = ClassStatistics.empty(settings.n_features, **settings.of_statistics)
        statistics = none.with_classes(names, known=names)
        memory = FeatureMemory(VALIDATION_SIZE, settings.n_features)
        return cls(settings, statistics, memory.named(statistics.class_names))

    @property
    def n_images(self) -> dict[str, int]:
        """Images per class."""
        stats = self.statistics
        return dict(zip(stats.class_names, stats.counts.tolist(), strict=True))

    @property
    def warning(self) -> str:
        """The one thing a person must know, or ""."""
        return self.derived.warning if self.derived else ""

    @cached_property
    def scoring(self) -> Scoring:
        """Logits and OOD scores of features, with the threshold in force.

        Raises:
            ContinualPredictionError: No class is known.
        """
        scoring, manual = self._derived().scoring, self.manual_threshold
        return scoring if manual is None else scoring.with_threshold(manual)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of all that cannot be derived, classes in the order of their names.

        Remembered features enter by their hashes.
        """
        known, names = self.statistics.canonical(), self.statistics.class_names
        kept = self.validation.named(names).picked(self.statistics.places()).hashed()
        # nothing is known by its origins
        known = replace(known, memory=known.memory.hashed(), origins=())
        config, tensors = replace(self, statistics=known, validation=kept).to_state()
        return state_digest(config, tensors)

    def to_state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """(configuration for JSON, tensors) of what cannot be derived."""
        config = {
            "format": FORMAT,
            "settings": self.settings.to_dict(),
            "class_names": list(self.statistics.class_names),
            "forgotten_names": [one.name for one in self.statistics.forgotten],
            "former_names": dict(sorted(self.statistics.former_names.items())),
            "origins": list(self.statistics.origins),
            "threshold": self.manual_threshold,
        }
        return config, {
            **self.statistics.to_tensors(),
            **memory_tensors(self.validation, "validation"),
        }

    @classmethod
    def from_state(cls, config: Any, tensors: Mapping[str, Tensor]) -> "Knowledge":
        """The knowledge `to_state` was asked of, nothing derived yet.

        Raises:
            StatisticsError: Keys, shapes, types or values cannot have come from `to_state`.
        """
        config = read_config(config)
        own, validation = parted_tensors(tensors)
        settings = read_settings(config["settings"])
        statistics = ClassStatistics.from_tensors(
            own,
            config["class_names"],
            forgotten_names=config["forgotten_names"],
            former_names=config["former_names"],
            origins=config["origins"],
            **settings.of_statistics,
        )
        check_width(statistics.n_features, settings)
        names, width = statistics.class_names, settings.n_features
        kept = read_memory(validation, names, width, VALIDATION_SIZE, prefix="validation")
        return cls(settings, statistics, kept, read_threshold(config["threshold"]))

    def affine_on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """(weight (C, D), bias (C,)) of the calibrated classifier on a device, float64.

        Raises:
            ContinualPredictionError: No class is known.
        """
        if device not in self._affine:
            derived = self._derived()
            self._affine[device] = derived.weight.to(device), derived.bias.to(device)
        return self._affine[device]

    def _derived(self) -> Derived:
        if self.derived is None:
            raise ContinualPredictionError(
                "the classifier knows no class yet; `extend` it with images and labels"
            )
        return self.derived

    def same_as(self, other: "Knowledge") -> bool:
        """Whether both are the same to the bit in all that cannot be derived."""
        if not torch.equal(self.statistics.counts, other.statistics.counts):
            return False  # most changes, and soon told
        return (self.digest, self.statistics.origins) == (other.digest, other.statistics.origins)

    def derive(self, before: "Knowledge | None") -> "Knowledge":
        """With everything that follows; what follows from the same statistics is not done again."""
        same = before is not None and before.statistics is self.statistics
        same = same and before.settings.rule == self.settings.rule
        if same and before.settings == self.settings and before.validation is self.validation:
            return replace(self, derived=before.derived, _affine=before._affine)
        reused = before.derived if same else None
        # with more threads the last bits of sums and decompositions are others
        with same_bits():
            derived = derive(self.statistics, self.validation, self.settings, reused)
        return replace(self, derived=derived, _affine={})

    def lightened(self) -> "Knowledge":
        """The same to go back to: what is large and can be derived again is let go."""
        stats = self.statistics
        if (stats.n_classes + stats.n_features) * stats.n_features < _SMALL:
            return self
        return replace(self, derived=None, _affine={})

    def extend(
        self,
        features: Tensor,
        labels: Sequence[Any],
        class_names: Sequence[str] | None,
        validation: Validation | None,
        *,
        reuse_names: bool = False,
        origin: str = "",
        case_sensitive: bool = False,
        again: bool = False,
        groups: Sequence[Any] | None = None,
    ) -> Change:
        """With more images; blank ones are left out, and those learned before unless `again`."""
        given = check_labelled_features(features, labels, class_names, self.settings.n_features)
        features, labels, notes = shown_images(*given, known=self.statistics.present())
        # first what forgotten classes left of these images, which would count twice in the scatter
        known, _ = self.statistics.told_apart(case_sensitive).recalled(features)
        if not again:
            features, labels, more = not_learned_before(known, features, labels)
            notes += more
        grown = known.with_classes(name_list("class_names", class_names or ()))
        if labels:
            if self.derived is not None:
                notes += label_issues(self.derived.scoring, self.statistics, features, labels)
            grown = known.update(features, labels, class_names, reuse_names=reuse_names)
        grown = replace(grown, origins=tuple(sorted({*grown.origins, origin} - {""})))
        if groups is not None:
            # all that were given: groups may be said of images that were learned before
            grown = grown.grouped(*given, groups)
        if not self.told_unseen:
            notes += note_on_unseen(known.n_unseen, int(known.counts.sum()))
        new = replace(self._with(grown), told_unseen=True)
        notes += self._notes_on(grown)
        if grown.case_sensitive != self.statistics.case_sensitive:
            notes += ("names of classes are told apart by case from now on",)
        kept, more = without_learned(new.validation, grown)
        notes += more
        if validation is not None:
            kept, more = with_validation(kept, validation, grown, class_names)
            notes += more
        return replace(new, validation=kept), notes

    def validate(self, validation: Validation) -> Change:
        """With more validation images; blank ones and those learned are left out.

        Raises:
            DataError: None counts, or see `with_validation`.
        """
        kept, notes = with_validation(self.validation, validation, self.statistics, alone=True)
        given = check_labelled_features(*validation[:2], None, self.settings.n_features)
        fresh = fresh_images((*given, *validation[2:]), self.statistics, self.settings.fresh_rule)
        before = self.validation.places_of(self.statistics.fingerprints(given[0]))
        check_some_count(fresh, before)
        return replace(self, validation=kept), notes

    def subtract(
        self,
        features: Tensor | None,
        labels: Sequence[Any] | None,
        validation: Validation | None = None,
    ) -> Change:
        """Without these images; blank ones never came in.

        Validation images go with a class of which nothing is left.
        """
        if features is None and validation is None:
            raise DataError("no images to subtract; give features and labels, or `validation`")
        new, notes = self, ()
        if validation is not None:
            less, notes = less_validation(self.validation, validation, self.statistics)
            new = replace(self, validation=less)
        if features is None:
            return new, notes
        given = check_labelled_features(features, labels, None, self.settings.n_features)
        features, labels, blank = shown_images(*given, known=self.statistics.present())
        less, forgotten = self.statistics.recalled(features, labels)
        left = np.flatnonzero(~forgotten)
        if len(left):
            less = less.subtract(features[left], [labels[row] for row in left])
        new = new._with(less)
        emptied = ((self.statistics.counts > 0) & (new.statistics.counts == 0)).nonzero()[:, 0]
        kept = new.validation.emptied(emptied.tolist()) if len(emptied) else new.validation
        if gone := new.validation.n_copies - kept.n_copies:
            notes += (f"{number_of(gone, 'validation image')} went with their classes",)
        return replace(new, validation=kept), (*blank, *notes)

    def forget(self, name: str | Sequence[str]) -> Change:
        """Without a class, or several."""
        names = dict.fromkeys([name] if isinstance(name, str) else name_list("name", name))
        if not names:
            raise DataError("`name` is empty; name the class to forget, or several")
        less, notes = self, ()
        for one in names:
            less, more = less._without(one)
            notes += more
        return less, notes

    def _without(self, name: str) -> Change:
        less = self._with(self.statistics.forget(name))
        place = less.statistics.class_names.index(clean_name(name))
        n = int(self.statistics.counts[place])
        left = less.statistics.n_images - self.statistics.n_images + n
        is_noted = len(self.statistics.learned.classes[place]) == n
        notes = note_on_remainder(clean_name(name), left, n, is_noted=is_noted)
        return replace(less, validation=less.validation.emptied([place])), notes

    def _notes_on(self, grown: ClassStatistics, *, merged: bool = False) -> tuple[str, ...]:
        """Notes on classes forgotten earlier that have images again, and on other origins."""
        new = grown.present() - self.statistics.present()
        back = [one for one in grown.forgotten if one.name in new]
        said = note_on_return(back, merged=merged)
        return said + note_on_origins(self.statistics.origins, grown.origins)

    def rename(self, names: Mapping[str, str]) -> Change:
        """With classes called otherwise."""
        return self._with(self.statistics.rename(names)), ()

    def merge_classes(self, names: Sequence[str], into: str) -> Change:
        """With classes joined."""
        before, names = self.statistics, name_list("names", names)
        joined = before.merge_classes(names, into)
        target = joined.class_names.index(clean_name(into))
        places = sorted({before.class_names.index(name) for name in names} - {target})
        new = self._with(joined)
        return replace(new, validation=new.validation.joined(places, target)), ()

    def merge(self, other: ClassStatistics, *, reuse_names: bool = False) -> Change:
        """With other statistics added."""
        merged = self.statistics.merge(other, reuse_names=reuse_names)
        both = len(np.intersect1d(*(one.learned.union() for one in (self.statistics, other))))
        notes = self._notes_on(merged, merged=True)
        if both:
            said = f"learned on both sides, so that it counts twice now: {number_of(both, 'image')}"
            notes = (f"{said}; `subtract` once what is there twice", *notes)
        new = self._with(merged)
        kept, more = without_learned(new.validation, merged)
        return replace(new, validation=kept), (*notes, *more)

    def with_threshold(
        self,
        value: float | None,
        false_alarm_rate: float | None,
        guarantee: str | None,
        per_class: bool | None,
    ) -> Change:
        """With another threshold."""
        names = "false_alarm_rate", "guarantee", "per_class"
        values = (false_alarm_rate, guarantee, per_class)
        given = {name: to for name, to in zip(names, values, strict=True) if to is not None}
        settings = replace(self.settings, **given)
        if value is not None:
            value = manual_threshold(value).value
        return replace(self, settings=settings, manual_threshold=value), ()

    def report(
        self, what: str, before: "Knowledge", notes: Sequence[str], started: float
    ) -> ChangeReport:
        """Report of what this knowledge has that `before` had not."""
        renamed = renamed_classes(before.statistics, self.statistics)
        was = {renamed.get(name, name): n for name, n in before.n_images.items()}
        now = self.n_images
        more = {name: now.get(name, 0) - was.get(name, 0) for name in {**was, **now}}
        derived_notes = self.derived.notes if self.derived else ()
        stays = self.manual_threshold is not None and what not in ("set_threshold", "set")
        kept = ("the threshold stays as it was set by hand",) if stays else ()
        return ChangeReport(
            what=what,
            # of places that were given names before the first image, all are
            classes_added=tuple(
                name for name, n in now.items() if n and (name not in was or not any(was.values()))
            ),
            images={name: n for name, n in more.items() if n},
            n_images=now,
            n_classes=sum(n > 0 for n in now.values()),
            n_validation=len(self.validation) - len(before.validation),
            threshold=(before._threshold(), self._threshold()),
            temperature=(before._temperature(), self._temperature()),
            seconds=time.perf_counter() - started,
            notes=(*notes, *derived_notes, *kept),
            renamed=renamed or None,
        )

    def _threshold(self) -> float | None:
        if self.derived is None:
            return None
        manual = self.manual_threshold
        return self.derived.scoring.threshold.value if manual is None else manual

    def _temperature(self) -> float | None:
        return self.derived.calibration.temperature if self.derived else None

    def _with(self, statistics: ClassStatistics) -> "Knowledge":
        """With other statistics, the validation features under the same names."""
        validation = self.validation
        if validation.class_names != statistics.class_names:
            validation = validation.named(statistics.class_names)
        settings = replace(self.settings, case_sensitive=statistics.case_sensitive)
        known = {"settings": settings, "statistics": statistics, "validation": validation}
        return replace(self, **known, derived=None, _affine={})


@dataclass(frozen=True, eq=False)
class History:
    """All that a classifier knew: now, before its last changes, and when it was named.

    Attributes:
        states: the knowledge now, then before the last change, and so on; 1 and `UNDO_LEVELS`.
        snapshots: the knowledge by the name it was kept under.
        audit: the log of changes.
    """

    states: tuple[Knowledge, ...]
    snapshots: Mapping[str, Knowledge] = field(default_factory=dict)
    audit: AuditLog = field(default_factory=AuditLog)

    def changed(self, new: Knowledge, report: ChangeReport, *, undo: bool = False) -> "History":
        """After a change to other knowledge, or by `undo` to that before the last change."""
        now, *older = self.states
        if new is now:
            return self
        states = older[1:] if undo else (now.lightened(), *older[: UNDO_LEVELS - 1])
        audit = self.audit.with_change(report, new.digest)
        return History((new, *states), self.snapshots, audit)

    def with_snapshot(self, name: str) -> "History":
        """With the knowledge now kept under a name.

        Raises:
            ContinualStateError: A name that is none, or too many of them.
        """
        if not isinstance(name, str) or not is_snapshot_name(name):
            raise ContinualStateError(
                f"`name` is {name!r}; a snapshot's has 1 to {MAX_NAME} characters that can be "
                "printed"
            )
        if name not in self.snapshots and len(self.snapshots) >= MAX_SNAPSHOTS:
            raise ContinualStateError(
                f"there are {len(self.snapshots)} snapshots, which is as many as are kept: "
                f"{', '.join(map(repr, self.snapshots))}; take one of these names again, or "
                "`drop_snapshot` one"
            )
        return replace(self, snapshots={**self.snapshots, name: self.states[0].lightened()})

    def without_snapshot(self, name: str) -> "History":
        """Without the knowledge kept under a name; ContinualStateError if there is none."""
        self.snapshot(name)
        left = {known: kept for known, kept in self.snapshots.items() if known != name}
        return replace(self, snapshots=left)

    def snapshot(self, name: str) -> Knowledge:
        """The knowledge kept under a name; ContinualStateError if there is none."""
        if not isinstance(name, str) or name not in self.snapshots:
            known = ", ".join(map(repr, self.snapshots)) or "none"
            raise ContinualStateError(f"there is no snapshot {name!r}; there are: {known}")
        return self.snapshots[name]


def is_snapshot_name(name: str) -> bool:
    """Whether a snapshot may be called so."""
    return 0 < len(name) <= MAX_NAME and name.isprintable() and not name.isspace()
