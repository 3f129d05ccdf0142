"""What a person should know about how threshold and temperature came about."""

from collections.abc import Sequence

from learnkit.continual.held_out import Honest
from learnkit.continual.scorer import Scorer
from learnkit.continual.settings import Settings
from learnkit.continual.statistics import ClassStatistics
from learnkit.uncertainty.threshold import Threshold


def notes_on(
    stats: ClassStatistics,
    honest: Honest,
    threshold: Threshold,
    scorer: Scorer,
    settings: Settings,
) -> tuple[str, ...]:
    """Notes on judgements, threshold and score; mostly few."""
    notes = []
    alone = [
        n for n, count in zip(stats.class_names, stats.counts.tolist(), strict=True) if count < 2
    ]
    if alone and honest.source != "validation":
        notes.append(
            f"one image each of {_some(alone)}: threshold and confidence for them are guessed "
            "from the other classes; more images will help"
        )
    if 0 < honest.n_validated < stats.n_classes:
        notes.append(
            f"{honest.n_validated} of {stats.n_classes} classes have validation images; for the "
            "others, remembered images were left out one by one"
        )
    parts = {part for part, _, _ in scorer.standards}
    if settings.score in ("combined", "knn") and "knn" not in parts:
        notes.append("too few remembered features: Mahalanobis distances alone make the score")
    if threshold.source == "parametric":
        notes.append(f"the threshold {threshold.statement}")
    return tuple(notes)


def warning_on(honest: Honest, settings: Settings) -> str:
    """The one thing a person must know, or ""."""
    if honest.source != "parametric":
        return ""
    if settings.memory:
        why, remedy = "no class has two images that differ", " or more images of a class"
    else:
        why, remedy = "no features are remembered (memory=0)", ""
    return (
        f"{why}, and there are no validation images: the threshold and the temperature rest on an "
        f"assumed distribution, not on images; give validation images{remedy}"
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
