"""What the classifier says of images it has not learned: the ground for thresholds and confidence.

Validation images are such; of remembered images, the closed-form leave-one-out values are. Where a
class has neither, images are drawn from the fitted distribution, and the result says so.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from learnkit.continual.closed_form.linear import LeaveOneOut, LinearClassifier
from learnkit.continual.closed_form.loo_samples import Prior, prior_weights, spread_evenly
from learnkit.continual.drawn import draw_images
from learnkit.continual.held_ridge import held_out_mahalanobis
from learnkit.continual.judged import judge
from learnkit.continual.memory import FeatureMemory
from learnkit.continual.score_parts import Reference, nearest_other, thinned
from learnkit.continual.statistics import ClassStatistics


@dataclass(frozen=True, eq=False)
class Honest:
    """Honest judgements of R images: none of them has taught what judges it.

    `logits (R,P)` before the temperature, `labels (R,)` places of their classes, `weights (R,)`
    summing to 1, and the raw scores (R,) of `Judged` (those of what is remembered infinite where
    nothing else is). `source` is "validation", "leave-one-out" or "parametric".
    `n_validated` counts the classes judged by validation images.
    """

    logits: Tensor
    labels: Tensor
    weights: Tensor
    mahalanobis: Tensor
    relative: Tensor
    knn: Tensor
    source: str
    n_validated: int

    def __len__(self) -> int:
        return len(self.labels)


def collect_honest(
    stats: ClassStatistics,
    validation: FeatureMemory,
    linear: LinearClassifier,
    reference: Reference,
    prior: Prior,
) -> Honest:
    """Honest judgements: of validation images where a class has them, else by leave-one-out.

    Args:
        stats: The statistics, in the order of names and without empty classes.
        validation: Validation features of the same classes.
        linear: The classifier of these statistics.
        reference: Remembered features.
        prior: "training" weighs classes by their images, "uniform" all alike.
    """
    fresh, fresh_labels = validation.all()
    covered = torch.bincount(fresh_labels, minlength=stats.n_classes) > 0
    rows = thinned(torch.nonzero(~covered[linear.loo.labels])[:, 0], reference)
    if not len(fresh) and not len(rows):
        return _drawn(stats, linear, reference, prior)
    judged = judge(linear, fresh, reference)
    loo = linear.loo
    single = rows < loo.n_single
    mass = prior_weights(stats.counts.to(torch.float64), prior)
    weights = torch.cat(
        [spread_evenly(mass, fresh_labels), _loo_weights(mass, stats, loo, rows, single, covered)]
    )
    return Honest(
        logits=_followed(judged.logits, loo.logits, rows),
        labels=torch.cat([fresh_labels, loo.labels[rows]]),
        weights=weights / weights.sum(),
        mahalanobis=torch.cat([judged.mahalanobis, held_out_mahalanobis(linear)[rows]]),
        relative=torch.cat([judged.relative, loo.relative[rows]]),
        knn=torch.cat([judged.knn, nearest_other(loo, rows, reference)]),
        source="validation" if bool(covered.all()) else "leave-one-out",
        n_validated=int(covered.sum()),
    )


def _followed(first: Tensor, second: Tensor, rows: Tensor) -> Tensor:
    """`first` and these rows of `second`, which come as they are if they are all there is."""
    if not len(first) and len(rows) == len(second):
        return second
    return torch.cat([first, second[rows]])


def _loo_weights(
    mass: Tensor,
    stats: ClassStatistics,
    loo: LeaveOneOut,
    rows: Tensor,
    single: Tensor,
    covered: Tensor,
) -> Tensor:
    """Weights of leave-one-out rows; rows that play a class of one image carry those classes."""
    labels = loo.labels[rows]
    weights = torch.zeros(len(rows), dtype=torch.float64)
    weights[single] = spread_evenly(mass, labels[single])
    if not bool(single.all()):
        left_out = torch.zeros(stats.n_classes, dtype=torch.bool)
        left_out[loo.labels[: loo.n_single]] = True
        alone = float(mass[~left_out & ~covered].sum())
        share = spread_evenly(torch.ones_like(mass), labels[~single])
        weights[~single] = max(alone, 1e-9) * share / share.sum()
    return weights


def _drawn(
    stats: ClassStatistics, linear: LinearClassifier, reference: Reference, prior: Prior
) -> Honest:
    """Judgements of images drawn from the fitted distribution."""
    features, places = draw_images(linear.geometry)
    judged = judge(linear, features, reference)
    return Honest(
        judged.logits,
        places,
        spread_evenly(prior_weights(stats.counts.to(torch.float64), prior), places),
        judged.mahalanobis,
        judged.relative,
        judged.knn,
        "parametric",
        0,
    )
