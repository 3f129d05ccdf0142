"""Class names and thresholds: what a predictor calls its outputs, and datasets their labels."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any

from learnkit.data.labels import name_problem
from learnkit.errors import PredictionError, number_of
from learnkit.evaluation.inputs import LabelThreshold, label_threshold
from learnkit.storage.formats import to_json

if TYPE_CHECKING:
    from learnkit.continual.classifier import ContinualClassifier


def checked_classes(classes: Sequence[str], what: str = "classes") -> tuple[str, ...]:
    """The names that argument `what` gives, as a tuple.

    Raises:
        PredictionError: They are no different names, or one is empty.
    """
    if isinstance(classes, str):  # letter by letter it would be a list of names
        raise PredictionError(f"`{what}` is the text {classes!r}; give a list of class names")
    names = tuple(classes)
    if not names or not all(isinstance(name, str) and name for name in names):
        raise PredictionError(f"`{what}`={list(names)[:5]}; they are strings that are not empty")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise PredictionError(f"`{what}` has {twice!r} twice; every name belongs to one class")
    return names


def checked_metadata(metadata: Any) -> dict[str, Any]:
    """`metadata` as a dictionary of its own; PredictionError unless it is None or JSON holds it."""
    if metadata is not None and not isinstance(metadata, Mapping):
        raise PredictionError(
            f"`metadata` is {metadata!r:.100} ({type(metadata).__name__}); give a dictionary"
        )
    found = dict(metadata or {})
    try:
        to_json(found)
    except (TypeError, ValueError, RecursionError) as error:
        raise PredictionError(
            f"`metadata` is {found!r:.100}, which is no JSON: {error}; give texts, finite numbers, "
            "booleans, None, lists, and dictionaries of these"
        ) from error
    return found


def checked_class_ids(ids: Iterable[int] | None) -> tuple[int, ...]:
    """`ids` as a tuple, empty where they are the places of the classes anyhow.

    Raises:
        PredictionError: they are no different whole numbers from 0 on.
    """
    found = tuple(ids or ())
    if not all(type(one) is int and one >= 0 for one in found) or len({*found}) < len(found):
        raise PredictionError(
            f"`class_ids`={list(found)[:5]}; give a whole number from 0 on for each class, all "
            "different"
        )
    return () if found == tuple(range(len(found))) else found


def head_classes(
    head: ContinualClassifier | None, classes: Sequence[str] | None, multi_label: bool
) -> tuple[str, ...]:
    """The class names a predictor is made with; those given must be the head's, if it has any."""
    if head is None:
        if classes is None:
            raise PredictionError("`classes` is missing; give the names of the network's outputs")
        return checked_classes(classes)
    if multi_label:
        raise PredictionError(
            "`multi_label`=True and a head in the continual state exclude each other: such a head "
            "gives every image one label"
        )
    if classes is not None and tuple(classes) != head.classes:
        raise PredictionError(
            f"`classes`={list(classes)[:5]} are not what its head knows: {list(head.classes)[:5]}; "
            "leave them out, and rename with set(class_names=)"
        )
    return head.classes


def checked_threshold(threshold: Any, n_classes: int) -> LabelThreshold:
    """`threshold` as a float, or one per class; PredictionError unless all lie in (0, 1)."""
    return label_threshold(threshold, n_classes, error=PredictionError)


def check_one_threshold(ood_threshold: float | None, false_alarm_rate: float | None) -> None:
    """Raise PredictionError if both are given."""
    if ood_threshold is not None and false_alarm_rate is not None:
        raise PredictionError(
            f"`ood_threshold`={ood_threshold} and `false_alarm_rate`={false_alarm_rate} both say "
            "when an image is flagged; give one of them"
        )


def check_several_labels(multi_label: bool) -> None:
    """PredictionError unless a label counts above a threshold."""
    if not multi_label:
        raise PredictionError(
            "`threshold` decides which labels of a multi-label model count; this model gives "
            "exactly one label"
        )


def renamed(classes: tuple[str, ...], names: Sequence[str] | Mapping[str, str]) -> tuple[str, ...]:
    """All new names in order, or `classes` with some replaced by `{old: new}`; checked."""
    if isinstance(names, Mapping):
        if unknown := [name for name in names if name not in classes]:
            raise PredictionError(f"`class_names` renames {unknown}, which are no classes here")
        names = [names.get(name, name) for name in classes]
    if isinstance(names, str | bytes | Set) or not isinstance(names, Collection):
        raise PredictionError(
            f"`class_names` is {names!r:.100} ({type(names).__name__}); give a list with one name "
            "per class, in their order, or {old: new}"
        )
    if len(names) != len(classes):
        raise PredictionError(
            f"`class_names` has {number_of(len(names), 'name')} for "
            f"{number_of(len(classes), 'class')}; give one each, or "
            "{old: new}"
        )
    for one in names:
        if isinstance(one, str) and one not in classes and (reason := name_problem(one, "of")):
            raise PredictionError(f"`class_names`: {reason}")
    return checked_classes(names, "class_names")
