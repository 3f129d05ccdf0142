"""Samples that suffice, and that have no part in what they are judged by."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence

from learnkit.errors import OptimizeError, warn_user
from learnkit.optimize.samples import Pictures

FEW = 10  # images of a class below which ranges are a guess
PER_CLASS = 20  # images of a class that are enough


def check_samples(samples: Pictures, classes: Sequence[str]) -> Pictures:
    """`samples`, each picture once; warn where they are few, refuse them where they tell nothing.

    Raises:
        OptimizeError: all of them show the same.
    """
    found = samples.distinct()
    if len(found) == 1 and len(samples) > 1:
        raise OptimizeError(
            f"the {len(samples)} images of `samples` all show the same; ranges come from images "
            f"that differ: give {FEW} to {PER_CLASS} of each class, as they come in use"
        )
    if repeated := len(samples) - len(found):
        warn_user(f"{repeated} images of `samples` are there twice; each counts once")
    if found.labels is None:
        if len(found) < FEW * len(classes):
            warn_user(
                f"`samples` has {len(found)} images for {len(classes)} classes; {FEW} to "
                f"{PER_CLASS} of each make the ranges of an int8 model sound"
            )
        return found
    counts = Counter(n for one in found.labels for n in (one if isinstance(one, tuple) else (one,)))
    if few := [f"{counts[name]} of {name!r}" for name in classes if counts[name] < FEW]:
        more = f" and of {len(few) - 5} more classes" if len(few) > 5 else ""
        warn_user(
            f"`samples` has only {', '.join(few[:5])}{more}; {FEW} to {PER_CLASS} images of each "
            "class make the ranges of an int8 model sound"
        )
    return found


def kept_apart(samples: Pictures, test: Pictures) -> tuple[Pictures, Pictures, str]:
    """(samples, test, what was done) so that nothing is judged by what it was converted by.

    What is in both is taken out of the larger one. If nothing is left of it, a third of the samples
    is set apart as in `set_apart`.
    """
    both = set(samples.digests) & set(test.digests)
    if not both:
        return samples, test, ""
    said = f"{len(both)} images are both in `samples` and in `test`"
    if len(samples) > len(test):
        return samples.without(both), test, f"{said}; the samples go without them"
    if rest := test.without(both):
        return samples, rest, f"{said}; the test goes without them"
    samples, test = set_apart(samples)
    return samples, test, f"{said}: {len(test)} of them are set apart for the test"


def set_apart(samples: Pictures) -> tuple[Pictures, Pictures]:
    """(two thirds, one third) of the images, of every class; digests choose, so always the same.

    Raises:
        OptimizeError: fewer than three images.
    """
    if len(samples) < 3:
        raise OptimizeError(
            f"`samples` has {len(samples)} of the 3 images that are the least: two to convert by "
            f"and another to judge by; {FEW} to {PER_CLASS} of each class are sound"
        )
    by_class: dict[Hashable, list[int]] = defaultdict(list)
    for i in sorted(range(len(samples)), key=samples.digests.__getitem__):
        by_class[None if samples.labels is None else samples.labels[i]].append(i)
    test = [i for places in by_class.values() for i in places[2::3]]
    test = sorted(test) or [min(range(len(samples)), key=samples.digests.__getitem__)]
    return samples.picked(i for i in range(len(samples)) if i not in set(test)), samples.picked(
        test
    )
