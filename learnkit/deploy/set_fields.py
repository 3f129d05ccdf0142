"""The fields of a predictor that may be set: all of them checked first, then set at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from learnkit.continual.classifier import check_detects_ood
from learnkit.deploy.settable import check_settable
from learnkit.errors import warned_after
from learnkit.inference.class_names import (
    check_one_threshold,
    check_several_labels,
    checked_threshold,
    renamed,
)
from learnkit.inference.tta import with_views


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
        ood.statistics.rename(in_ood)  # refuses names before anything has changed
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
        changes["metadata"] = dict(metadata)
    if tta is not None:
        changes["metadata"] = with_views(changes.get("metadata", predictor.metadata), tta)
    if ood_threshold is not None or false_alarm_rate is not None:
        fit = {"false_alarm_rate": false_alarm_rate}
        check_detects_ood(ood).set_threshold(ood_threshold, **fit)
    if in_ood:
        ood.rename(in_ood)
    if renames and predictor.continual is None:
        changes |= {"names": names, "knew_more": predictor.variant is not None}
    predictor.record = predictor.record.replace(**changes)  # at once: no thread sees a half of it
