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
    COPY_RULE,
    CopyRule,
    fresh_beside,
    of_no_learned_group,
    rows_by_class,
)
from learnkit.continual.embedding import features_on_grid
from learnkit.continual.fingerprints import codes_of, fingerprints_of, group_codes
from learnkit.continual.memory import FeatureMemory
from learnkit.continual.names import check_all_known, index_tensor
from learnkit.continual.statistics import ClassStatistics
from learnkit.errors import DataError, first_few
from learnkit.uncertainty.checks import Array

# features (N, D), labels, and, where somebody said them, groups
Validation = tuple[Tensor, Sequence[Any]] | tuple[Tensor, Sequence[Any], Sequence[Any] | None]
Kept = tuple[FeatureMemory, tuple[str, ...]]
VALIDATION_SIZE = 64
_OTHER_CLASS = " Label these images so, leave them out, or `extend` it by that class first"


def with_validation(
    kept: FeatureMemory,
    validation: Validation,
    statistics: ClassStatistics,
    class_names: Sequence[str] | None = None,
    *,
    alone: bool = False,
) -> Kept:
    """(validation images with more, notes); blank ones and those learned are left out.

    An image that was kept for another class counts for the one it is given now: a correction.

    Raises:
        DataError: Features or labels break a rule, a class is not known or has no images, or all
            are blank; or, if they come `alone`, all were learned, or one image has two labels.
    """
    grid, index, notes = _on_grid(validation, statistics, class_names)
    _check_learned_classes(index, statistics)
    codes = fingerprints_of(grid)
    learned = statistics.learned.know(codes)
    if alone and learned.all():
        raise DataError(
            f"every image to calibrate by ({len(codes)} given) was learned by this model, and says "
            "nothing of fresh ones; give labelled images that it has not learned"
        )
    unclear, more = _of_two_classes(codes, index, ~learned, statistics.class_names, alone=alone)
    notes += note_on_learned(learned) + more
    rows = np.flatnonzero(~learned & ~unclear)
    kept, more = _added(kept, grid[rows], index[rows], codes[rows], len(codes))
    notes += more
    if (groups := _groups_of(validation)) is not None:
        # all that were given: groups may be said of images that came before
        given = check_labelled_features(*validation[:2], class_names, statistics.n_features)
        every = features_on_grid(given[0], root=statistics.root)
        places = index_tensor(statistics.class_names, given[1])
        kept = kept.grouped(every, places, group_codes(groups, len(places)))
    return kept, notes


def _check_learned_classes(index: Tensor, statistics: ClassStatistics) -> None:
    """Refuse validation images of a class without images: they would decide nothing."""
    for place in index.unique().tolist():
        if not statistics.counts[place]:
            raise DataError(
                f"class {statistics.class_names[place]!r} has no images, so that validation images "
                "of it decide nothing; `extend` the class first, or leave them out"
            )


def _of_two_classes(
    codes: Array, index: Tensor, fresh: Array, names: Sequence[str], *, alone: bool
) -> tuple[Array, tuple[str, ...]]:
    """(which `fresh` images come under two labels at once, bool (N,), notes); refused if `alone`.

    It would be chance for which class they count: they do for none.
    """
    first: dict[int, int] = {}
    twice = [
        row
        for row in np.flatnonzero(fresh)
        if index[first.setdefault(codes[row], row)] != index[row]
    ]
    if not twice:
        return np.zeros(len(codes), bool), ()
    if alone:
        one = first[codes[twice[0]]]
        two_labels = " and ".join(repr(names[index[row]]) for row in (one, twice[0]))
        raise DataError(
            f"images {one} and {twice[0]} of those to calibrate by show the same, and have two "
            f"labels, {two_labels}; an image is of one class: give it the right label alone"
        )
    unclear = fresh & np.isin(codes, codes[twice])
    return unclear, (
        f"{unclear.sum()} of {len(codes)} validation images come under two labels: they count for "
        "no class",
    )


def _added(kept: FeatureMemory, grid: Tensor, index: Tensor, codes: Array, of: int) -> Kept:
    """(validation images with these, notes); `codes` are theirs, and so many were given."""
    own = codes_of([h for cell in kept.cells for h in cell.hashes])
    told = dict(zip(own.tolist(), kept.given().tolist(), strict=True))
    given, before = np.array([told.get(code, 0) for code in codes.tolist()]), kept.places_of(codes)
    each = list(zip(before, index.tolist(), strict=True))
    moved = np.array([bool(were - {now}) for were, now in each], bool)
    notes = ()
    if known := sum(were == {now} for were, now in each):
        notes += (f"{known} of {of} validation images had come before, and count once",)
    if moved.any():
        notes += (
            f"{moved.sum()} of {of} validation images were of another class before: they count for "
            "the class now given",
        )
        kept = kept.without(codes[moved])
    notes += _note_on_left_out(kept, codes, index)
    # what was said of the group of an image stays said
    return kept.add(grid, index).once().grouped(grid, index, given), notes


def _note_on_left_out(kept: FeatureMemory, codes: Array, index: Tensor) -> tuple[str, ...]:
    """A note where more come to those of a class than are `kept`."""
    full = []
    for place in index.unique().tolist():
        own = np.union1d(codes_of(kept.cells[place].hashes), codes[index.numpy() == place])
        if len(own) > kept.size:
            full.append(f"{kept.size} of {len(own)} of {kept.class_names[place]!r}")
    if not full:
        return ()
    return (
        f"up to {kept.size} validation images a class are kept, and decide: {first_few(full)}; the "
        "others count for nothing",
    )


def note_on_learned(learned: Array) -> tuple[str, ...]:
    """A note if some of the validation images were `learned`, bool (N,)."""
    if not learned.any():
        return ()
    return (
        f"{learned.sum()} of {len(learned)} validation images were learned by this model: they say "
        "nothing of fresh ones, and do not count",
    )


def fresh_images(
    validation: Validation, statistics: ClassStatistics, rule: CopyRule | None = COPY_RULE
) -> Array:
    """Which validation images tell of fresh ones, bool (N,): no learned ones, nor their copies.

    An image counts once, and of near copies of each other the first does: see `fresh_rows`. None
    does of a group of which the class has learned images.

    Args:
        validation: (features (N, D), clean labels, and groups if there are any); of a class
            that is not among those of `statistics`, nothing is learned.
        statistics: Of the learned images.
        rule: See `FeatureMemory.fresh_beside`.
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
        if rule is not None:
            own, known = grid[rows].to(torch.int16).numpy(), cell.features.numpy()
            fresh[rows] &= fresh_beside(own, known, rule, **about)
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
    check_all_known(labels, statistics.class_names, _OTHER_CLASS)
    if not labels:
        raise DataError("all images of `validation` are blank; leave it out, or give others")
    notes = (f"{len(blank)} blank validation images were left out",) if blank else ()
    grid = features_on_grid(features, root=statistics.root)
    return grid, index_tensor(statistics.class_names, labels), notes
