"""What of a predictor or learner can be set, how, and what to do for all that cannot.

All fields are checked first, then set at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from learnkit.errors import OptimizedModelError, warned_after
from learnkit.inference.class_names import (
    check_one_threshold,
    check_several_labels,
    checked_metadata,
    checked_threshold,
    renamed,
)
from learnkit.inference.tta import with_views

if TYPE_CHECKING:
    from learnkit.continual.classifier import ContinualClassifier
    from learnkit.continual.knowledge import Change, Knowledge

_OPTIMIZED = ("device", "threads", "metadata", "class_names", "ood_threshold", "tta")
_AS_TRAINED = ("class_names", "threshold", "ood_threshold", "false_alarm_rate", "metadata", "tta")
_READING = ("bs", "n_workers", "progress")
_SAID_BY = {"classes": "class_names", "vocab": "class_names"}  # by what name `set` knows them

_CHANGES = {
    "audit": "every change writes its line there: extend(...), forget(...) and their kin",
    "snapshots": "snapshot(name) adds one, drop_snapshot(name) drops one",
}
_DETECTS = "learn.fit_ood() or learn.init_continual() before the export makes what detects"
_OPENS = "load_learner(path, variant=...) opens another one, optimize(...) makes one"
_FACTS = {
    **_CHANGES,
    "continual": "learn.init_continual() makes that head before the export",
    **dict.fromkeys(("detects_ood", "tells_unusual", "ood"), _DETECTS),
    "has_learned": "it follows from what was learned since; undo() takes a change back",
    "is_changed": "it follows from what was learned or set since; save(path) writes that",
    "is_monitored": "monitor() begins to monitor",
    "knows_classes": "extend(images, labels) teaches a first class",
    "report": "optimize(...) returns it",
    "state": "every change makes another one: extend(...), set(...) and their kin",
    **dict.fromkeys(("network", "variant"), _OPENS),
    "session": "load_runtime(path, variant=...) opens another one",
}
# Verbs that a predictor without torch has not are those of the one `load_learner` opens.
_WITH_TORCH = "it is read from the bundle, which load_learner(path) opens to change it"
_RUNTIME = {
    **dict.fromkeys(("audit", "continual", "has_learned", "knows_classes", "report"), _WITH_TORCH),
    **dict.fromkeys(("is_changed", "snapshots", "state"), _WITH_TORCH),
    **dict.fromkeys(("network", "variant"), "load_runtime(path, variant=...) opens another one"),
}
_MAKES = "another one is made by Predictor(model, preprocessing, classes"
_WEIGHTS = {
    "device": "weights as trained run where they were loaded: load_learner(path, device=...)",
    "threads": "weights as trained run with torch's threads: torch.set_num_threads(...)",
    **dict.fromkeys(("model", "preprocessing"), f"{_MAKES})"),
    **{name: f"{_MAKES}, {name}=...)" for name in ("class_ids", "multi_label")},
}
_LEARNER = {
    **_CHANGES,
    "classes": "they are those of its data; in the continual state rename({old: new}) renames them",
    "continual": "init_continual() makes that head, drop_continual() drops it",
    "data": "assign the loaders to `dls`",
    "history": "training writes it, a row per epoch",
    "ood": "fit_ood() makes it, clear_ood() drops it",
}


@warned_after
def set_fields(
    predictor: Any,
    unknown: Mapping[str, Any],
    *,
    class_names: Sequence[str] | Mapping[str, str] | None,
    threshold: Any,
    ood_threshold: float | None,
    false_alarm_rate: float | None,
    metadata: Mapping[str, Any] | None,
    device: Any,
    threads: int | None,
    tta: int | None,
) -> None:
    """Set what is given, or nothing if one of it is refused; see `Predictor.set`."""
    if predictor.variant is None:
        check_settable({"device": device, "threads": threads, **unknown})
    else:
        fixed = {"threshold": threshold, "false_alarm_rate": false_alarm_rate}
        check_settable({**fixed, **unknown}, optimized=True)
    check_one_threshold(ood_threshold, false_alarm_rate)
    classes, changes, ood = predictor.classes, {}, predictor.ood
    names = classes if class_names is None else renamed(classes, class_names)
    renames = {old: new for old, new in zip(classes, names, strict=True) if old != new}
    # a detector may know other classes than the trained head beside it
    in_ood = {old: new for old, new in renames.items() if ood is not None and old in ood.classes}
    if in_ood:
        ood.statistics.rename(in_ood)  # refuses names before anything is opened
    if threshold is not None:
        check_several_labels(predictor.multi_label)
        changes["threshold"] = checked_threshold(threshold, len(classes))
    if device is not None or threads is not None:
        changes["network"] = predictor.record.converted.open(
            predictor.preprocessing,
            threads=predictor.threads if threads is None else threads,
            device=str(predictor.device if device is None else device),
        )
    if metadata is not None:
        changes["metadata"] = checked_metadata(metadata)
    if tta is not None:
        changes["metadata"] = with_views(changes.get("metadata", predictor.metadata), tta)
    _change_detector(ood, in_ood, ood_threshold, false_alarm_rate)
    if renames and predictor.continual is None:
        changes |= {"names": names, "knew_more": predictor.variant is not None}
    predictor.record = predictor.record.replace(**changes)  # at once: no thread sees a half of it


def _change_detector(
    ood: ContinualClassifier | None,
    names: Mapping[str, str],
    threshold: float | None,
    false_alarm_rate: float | None,
) -> None:
    """Other names and another threshold, as one change that `undo` takes back; or an error."""
    fits = threshold is not None or false_alarm_rate is not None
    if fits:
        from learnkit.continual.classifier import check_detects_ood  # torch is here, then

        check_detects_ood(ood)
    if names or fits:
        what = "set" if names and fits else "rename" if names else "set_threshold"

        def make(known: Knowledge) -> Change:
            known = known.rename(names)[0] if names else known
            return (
                known.with_threshold(threshold, false_alarm_rate, None, None)
                if fits
                else (known, ())
            )

        ood.change(what, make)


def check_settable(refused: Mapping[str, Any], *, optimized: bool = False) -> None:
    """Raise if one of these settings, which cannot be set, is given."""
    names = [name for name, value in refused.items() if value is not None]
    if names and optimized:
        raise OptimizedModelError(_not_settable(names[0]))
    if names:
        how = _WEIGHTS.get(names[0], f"it takes {', '.join(_AS_TRAINED)}")
        raise TypeError(f"Predictor.set() got an unexpected keyword argument {names[0]!r}; {how}")


def checked_reading(verb: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """`options` of a verb that reads images; TypeError if there are others, as Python says it."""
    if others := [name for name in options if name not in _READING]:
        raise TypeError(
            f"Predictor.{verb}() got an unexpected keyword argument {others[0]!r}; how images are "
            f"read is said by {', '.join(_READING)}"
        )
    return dict(options)


def check_assigned(predictor: Any, name: str) -> None:
    """Raise if a predictor's attribute is assigned to that something else changes, or nothing.

    Raises:
        OptimizedModelError: of a converted network; the message has what changes it.
        AttributeError: of weights as trained; likewise.
    """
    fixed = _is_fixed(type(predictor), name)
    optimized = predictor.variant is not None or not predictor.needs_torch
    how = _SAID_BY.get(name, name)
    ways = _FACTS if predictor.needs_torch else _FACTS | _RUNTIME
    if how != "metadata" and how in (_OPTIMIZED if optimized else _AS_TRAINED):
        text = f"`{name}` cannot be assigned to; call set({how}=...), which checks it"
    elif fixed and (way := (ways if optimized else ways | _WEIGHTS).get(name)):
        text = f"`{name}` cannot be assigned to; {way}"
    elif fixed and optimized:
        text = _not_settable(name)
    else:
        return
    raise (OptimizedModelError if optimized else AttributeError)(text)


def check_assigned_to_learner(learner: Any, name: str) -> None:
    """AttributeError, with what changes it, if a learner's attribute only follows from others."""
    if name in _LEARNER and _is_fixed(type(learner), name):
        raise AttributeError(f"`{name}` cannot be assigned to; {_LEARNER[name]}")


def _is_fixed(kind: type, name: str) -> bool:
    """Whether a class has it as a property without a setter."""
    known = getattr(kind, name, None)
    return isinstance(known, property) and known.fset is None


def _not_settable(name: str) -> str:
    """Why a setting of an optimised model cannot be set, and what to do."""
    return (
        f"`{name}` cannot be set: after optimisation only {', '.join(_OPTIMIZED)} may be set; "
        "change the float32 model (load_learner(path, variant='float32')) and optimise it again"
    )
