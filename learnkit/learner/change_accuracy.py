"""Accuracy per class before and after a change of the continual state."""

from __future__ import annotations

from learnkit.continual.change_report import ChangeReport
from learnkit.continual.knowledge import Knowledge

Accuracies = dict[str, tuple[float | None, float]]


def accuracy_of_classes(
    report: ChangeReport, before: Knowledge | None, now: Knowledge
) -> Accuracies:
    """Share of right answers per class, (before, after), on the validation images of now.

    None before of a class that was not there, or whose images were another class's, too.
    """
    renamed = report.renamed or {}
    was = _accuracy(before, now, renamed)
    other = set() if before is None else _other_images(report, before, now)
    return {
        name: (None if name in other else was.get(name), share)
        for name, share in _accuracy(now, now, {}).items()
    }


def _accuracy(
    knowledge: Knowledge | None, images: Knowledge, renamed: dict[str, str]
) -> dict[str, float]:
    """Share of the validation images of each class that `knowledge` recognises, by names of now."""
    if knowledge is None or knowledge.derived is None or images.derived is None:
        return {}
    embedded, labels = images.validation.all()
    logits = embedded @ knowledge.derived.weight.T + knowledge.derived.bias
    names = [renamed.get(name, name) for name in knowledge.statistics.class_names]
    hits: dict[str, list[bool]] = {}
    for place, label in zip(logits.argmax(1).tolist(), labels.tolist(), strict=True):
        name = images.validation.class_names[label]
        hits.setdefault(name, []).append(names[place] == name)
    counts = zip(names, knowledge.n_images.values(), strict=True)
    known = {name for name, n in counts if n} & {name for name, n in images.n_images.items() if n}
    return {name: sum(found) / len(found) for name, found in hits.items() if name in known}


def _other_images(report: ChangeReport, before: Knowledge, now: Knowledge) -> set[str]:
    """Classes that were merged by the change, or parted again."""
    if report.what in ("extend", "merge"):  # a former name given anew, or one of the other side
        return set()
    sides = (one.statistics.former_names.items() for one in (before, now))
    changed = set.symmetric_difference(*map(set, sides))
    return {name for _, name in changed} - set((report.renamed or {}).values())
