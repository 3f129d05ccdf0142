"""Validation images: not learned ones, which decide threshold and temperature; up to 64 a class.

An image counts once, and no image is both: one that has been learned says nothing of fresh ones.
Which are learned is known by their fingerprints, thus by what they show and not by their files.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from learnkit.continual.checks import check_labelled_features, without_blank
from learnkit.continual.closed_form.near_copies import (
    fresh_beside,
    of_no_learned_group,
    rows_by_class,
)
from learnkit.continual.embedding import features_on_grid
from learnkit.continual.fingerprints import fingerprints_of, group_codes
from learnkit.continual.memory import FeatureMemory
from learnkit.continual.names import check_all_known, index_tensor
from learnkit.continual.statistics import ClassStatistics
from learnkit.errors import DataError
from learnkit.uncertainty.checks import Array

# features (N, D), labels, and, where somebody said them, groups
Validation = tuple[Tensor, Sequence[Any]] | tuple[Tensor, Sequence[Any], Sequence[Any] | None]
Kept = tuple[FeatureMemory, tuple[str, ...]]
VALIDATION_SIZE = 64


def with_validation(
    kept: FeatureMemory,
    validation: Validation,
    statistics: ClassStatistics,
    class_names: Sequence[str] | None = None,
    *,
    alone: bool = False,
) -> Kept:
    """(validation images with more, notes); blank ones and those learned are left out.

    Raises:
        DataError: Features or labels break a rule, a class is not known, or all are blank; or, if
            they come `alone`, all were learned.
    """
    grid, index, notes = _on_grid(validation, statistics, class_names)
    codes = fingerprints_of(grid)
    learned = statistics.learned.know(codes)
    if alone and learned.all():
        raise DataError(
            f"every image to calibrate by ({len(codes)} given) was learned by this model, and says "
            "nothing of fresh ones; give labelled images that it has not learned"
        )
    notes += note_on_learned(learned)
    if known := int(np.isin(codes[~learned], kept.fingerprints).sum()):
        notes += (f"{known} of {len(codes)} validation images had come before, and count once",)
    fresh = torch.from_numpy(~learned)
    kept = kept.add(grid[fresh], index[fresh]).once()
    if (groups := _groups_of(validation)) is not None:
        # all that were given: groups may be said of images that came before
        given = check_labelled_features(*validation[:2], class_names, statistics.n_features)
        every = features_on_grid(given[0], root=statistics.root)
        places = index_tensor(statistics.class_names, given[1])
        kept = kept.grouped(every, places, group_codes(groups, len(places)))
    return kept, notes


def note_on_learned(learned: Array) -> tuple[str, ...]:
    """A note if some of the validation images were `learned`, bool (N,)."""
    if not learned.any():
        return ()
    return (
        f"{learned.sum()} of {len(learned)} validation images were learned by this model: they say "
        "nothing of fresh ones, and do not count",
    )


def fresh_images(
    validation: Validation, statistics: ClassStatistics, strays: int | None = 1
) -> Array:
    """Which validation images tell of fresh ones, bool (N,): no learned ones, nor their copies.

    An image counts once, and of near copies of each other the first does: see `fresh_rows`. None
    does of a group of which the class has learned images.

    Args:
        validation: (features (N, D), clean labels, and groups if there are any); of a class
            that is not among those of `statistics`, nothing is learned.
        statistics: Of the learned images.
        strays: See `FeatureMemory.fresh_beside`.
    """
    features, labels = validation[:2]
    grid = features_on_grid(features, root=statistics.root)
    codes, fresh = fingerprints_of(grid), np.zeros(len(grid), bool)
    fresh[np.unique(codes, return_index=True)[1]] = True
    fresh &= ~statistics.learned.know(codes)
    memory, counts = statistics.memory, statistics.counts.tolist()
    learned = dict(zip(statistics.class_names, zip(memory.cells, counts, strict=True), strict=True))
    groups = _groups_of(validation)
    given = group_codes([None] * len(labels) if groups is None else groups, len(labels))
    for name, rows in rows_by_class(labels, np.flatnonzero(fresh).tolist()).items():
        cell, n = learned.get(name, (memory.empty_cell(), 0))
        about = {"all_remembered": cell.n_copies >= n}
        fresh[rows] = of_no_learned_group(given[rows], cell.given, **about)
        if strays is not None:
            own, known = grid[rows].to(torch.int16).numpy(), cell.features.numpy()
            fresh[rows] &= fresh_beside(own, known, strays=strays, **about)
    return fresh


def _groups_of(validation: Validation) -> Sequence[Any] | None:
    """What each is said to be of, None where nobody said it."""
    return next(iter(validation[2:]), None)


def note_on_copies(n: int, of: int) -> tuple[str, ...]:
    """A note where `n` of so many validation images do not count, as they are near copies."""
    if not n:
        return ()
    return (
        f"{n} of {of} validation images do not count: they are near copies of learned ones, or of "
        "others of them (bursts, augmented files, files saved again), or cannot be told from such; "
        "`group=` of `split` keeps together what belongs together",
    )


def note_on_groups(n: int, of: int) -> tuple[str, ...]:
    """A note where `n` of so many validation images do not count, as their groups are learned."""
    if not n:
        return ()
    return (
        f"{n} of {of} validation images do not count: others of the groups they are said to be of "
        "are learned, or may have been; `group=` of `split` keeps together what belongs together",
    )


def without_learned(kept: FeatureMemory, statistics: ClassStatistics) -> Kept:
    """(validation images less those that have been learned, notes)."""
    # of the many learned none is looked for where there is nothing to be found
    less = kept.without(statistics.learned.union()) if len(kept) else kept
    if gone := len(kept) - len(less):
        return less, (
            "validation images that are learned now no longer decide threshold and temperature: "
            f"{gone}",
        )
    return kept, ()


def less_validation(
    kept: FeatureMemory, validation: Validation, statistics: ClassStatistics
) -> Kept:
    """(validation images without these, notes)."""
    grid, index, notes = _on_grid(validation, statistics)
    less = kept.named(statistics.class_names).once().remove(grid, index)
    if others := len(grid) - (len(kept) - len(less)):
        notes += (
            f"{others} of {len(grid)} validation images to subtract are not among those kept: "
            f"they never came, or the first {VALIDATION_SIZE} of their class are others",
        )
    return less, notes


def _on_grid(
    validation: Validation,
    statistics: ClassStatistics,
    class_names: Sequence[str] | None = None,
) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """(features on the grid, places of their classes, notes) of validation images."""
    features, labels, blank = without_blank(
        *check_labelled_features(*validation[:2], class_names, statistics.n_features)
    )
    statistics.check_current(labels)
    check_all_known(labels, statistics.class_names)
    if not labels:
        raise DataError("all images of `validation` are blank; leave it out, or give others")
    notes = (f"{len(blank)} blank validation images were left out",) if blank else ()
    grid = features_on_grid(features, root=statistics.root)
    return grid, index_tensor(statistics.class_names, labels), notes
