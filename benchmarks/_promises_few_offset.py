"""Offsets of a class of few images set by held-out images of the others, in draws of their own.

The logits of the new class are lowered (or raised) by the offset at which a share of the held-out
images of the others would be lost, their leads over the new class taken for normal: leave-one-out
gives the leads without an image more. "discriminant" is `fit_lda` without its blend, "blend" as it
is.

Balanced accuracy against the discriminant, of 1 / 2 / 3 / 5 images (standard errors):

* blend: ants and bees 0 / .015 (.002) / .009 (.002) / .003 (.002) in 40 draws, CIFAR-10 .005 / .008
  / .008 / .007 (.001 to .002) in 12. With two images and more the others lose .007 to .009 more of
  ants and bees, with all 0 to .005 less of CIFAR-10.
* blend, quarter offset: -.002 (.003) / .021 (.005) / .013 (.003) / .005 (.003), CIFAR-10 .007 to
  .010, of which the others lose .013 to .016 in the place of .023 to .025.
* blend, whole offset: .001 to .022 (.010), CIFAR-10 .003 to .007, of which they lose .005 to .006;
  of ants and bees .045 to .048.

No offset is in the package: log loss grows with each, by up to .1 (a quarter) and .3 (all of it),
and where many classes have few images balanced accuracy falls by up to .01 and .07.
"""

from collections.abc import Iterator
from statistics import NormalDist

import learnkit._torchvision  # noqa: F401  # before timm

import numpy as np
from _features import Split
from _promises_few import FEW, drawn

from learnkit.continual.closed_form.lda import fit_lda
from learnkit.continual.closed_form.whitening import Moments
from learnkit.continual.embedding import embed
from learnkit.continual.statistics import ClassStatistics

FIRST_DRAW = 1000
COST = 0.02  # of the held-out images of the others
SHARES = {"": 0.0, ", quarter offset": 0.25, ", whole offset": 1.0}


def rows(features_by_name: dict[str, dict[str, Split]], draws: int) -> Iterator[dict]:
    """Rows of one new class beside many, a class after the other over the draws."""
    for name, data in features_by_name.items():
        n_classes = len(set(data["train"].labels))
        for draw in range(FIRST_DRAW, FIRST_DRAW + draws):
            for few, case, found in _measured(data, draw % n_classes, draw):
                where = {"promise": f"one few: {few}", "data": name, "case": case}
                for metric, value in found.items():
                    yield {**where, "metric": metric, "value": float(value), "draw": draw}


def _measured(
    data: dict[str, Split], rare: int, draw: int
) -> Iterator[tuple[int, str, dict[str, float]]]:
    """What every rule finds, and what the others lose against never learning the new class."""
    labels, truth, order, many, old = drawn(data, [rare], draw)
    features, fresh = data["train"].features, embed(data["test"].features, root=False)
    names = np.array([f"{c:03}" for c in range(len(order))])
    empty = ClassStatistics.empty(features.shape[1], root=False).with_classes(list(names))
    alone = empty.update(features[old], list(names[labels[old]]))
    before = _recalls(fit_lda(alone.moments()).logits(fresh).numpy(), truth)[many].mean()
    for few in FEW:
        new = order[rare][:few]
        moments = alone.update(features[new], list(names[labels[new]])).moments()
        for case, logits in _rules(moments, fresh, rare, many):
            recall = _recalls(logits, truth)
            found = {"balanced accuracy": recall.mean(), "few": recall[rare]}
            yield few, case, {**found, "many lose": before - recall[many].mean()}


def _rules(moments: Moments, fresh, rare: int, many: list[int]) -> Iterator[tuple[str, np.ndarray]]:
    """(name, logits of fresh images) of every rule."""
    for start, blend in (("discriminant", False), ("blend", True)):
        head = fit_lda(moments, blend=blend)
        logits = (head.logits(fresh) / head.temperature).numpy()
        kept = np.isin(head.loo.labels[: head.loo.n_single], many)
        held = (head.loo.logits[: head.loo.n_single][kept] / head.temperature).numpy()
        leads = held[:, many].max(1) - held[:, rare]
        offset = leads.mean() + NormalDist().inv_cdf(COST) * leads.std()
        for name, part in SHARES.items():
            moved = logits.copy()
            moved[:, rare] += part * offset
            yield start + name, moved


def _recalls(logits: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Recall of every class."""
    return np.bincount(truth, logits.argmax(1) == truth) / np.bincount(truth)
