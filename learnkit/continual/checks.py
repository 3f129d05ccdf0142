"""Checks of features and labels as a caller gives them."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import torch
from torch import Tensor

from learnkit.continual.names import label_names
from learnkit.errors import DataError, InsufficientDiversityError, StatisticsError, number_of
from learnkit.uncertainty.checks import Array
from learnkit.uncertainty.ood import is_blank
from learnkit.uncertainty.scoring import GRID


def check_features(features: Any, n_features: int) -> Tensor:
    """`features` as a detached float64 tensor (N, n_features) on the CPU.

    Raises:
        DataError: It is no table of finite numbers of this width; the message names the rows.
    """
    try:
        table = torch.as_tensor(features)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"`features` is no table of numbers: {error}") from error
    if table.is_complex() or table.dtype == torch.bool:
        raise DataError(f"`features` holds {table.dtype}; give real numbers")
    if table.dim() != 2 or table.shape[1] != n_features:
        raise DataError(
            f"`features` has shape {tuple(table.shape)}; give one row of {n_features} numbers per "
            "image, as the network these statistics belong to makes them"
        )
    # also away from subclasses such as fastai's
    table = table.detach().as_subclass(Tensor).to("cpu", torch.float64).contiguous()
    if found := what_is_not_finite(table):
        raise DataError(
            f"{found}; leave these images out, or look for what the network makes of them"
        )
    return table


def what_is_not_finite(features: Tensor) -> str:
    """Which rows of (N, D) hold NaN or infinity, as the beginning of a message; "" if none does."""
    # one number first: tables of truth take several times the memory of the features
    if torch.isfinite(features.sum()) or (finite := torch.isfinite(features)).all():
        return ""
    rows = torch.nonzero(~finite.all(dim=1)).flatten().tolist()
    shown = ", ".join(map(str, rows[:10])) + (", ..." if len(rows) > 10 else "")
    return f"features of {len(rows)} of {len(features)} images are NaN or infinite (rows {shown})"


def check_labelled_features(
    features: Any, labels: Sequence[Any], class_names: Sequence[str] | None, n_features: int
) -> tuple[Tensor, list[str]]:
    """(features as `check_features` gives them, one clean class name per row); at least one row.

    Raises:
        DataError: Features or labels break a rule, or their numbers differ.
    """
    features = check_features(features, n_features)
    if isinstance(labels, str):
        raise DataError(f"`labels` is the text {labels!r:.100}; give one class name per image")
    if isinstance(labels, bytes) or not isinstance(labels, Iterable):
        raise DataError(
            f"`labels` is {labels!r:.100} ({type(labels).__name__}); give one class name per image"
        )
    if isinstance(labels, Mapping | Set):  # a set would give its names to rows by chance
        raise DataError(
            f"`labels` is a {type(labels).__name__}, whose order says nothing about the rows of "
            "`features`; give a list with one class name per row"
        )
    labels = label_names(labels, class_names)
    if len(labels) != len(features):
        raise DataError(
            f"{number_of(len(features), 'row')} of features come with "
            f"{number_of(len(labels), 'label')}; "
            "give one label per row"
        )
    if not labels:
        raise DataError("`features` has no rows; give at least one image")
    return features, labels


def without_blank(features: Tensor, labels: Sequence[str]) -> tuple[Tensor, list[str], list[str]]:
    """(features, labels, labels of blank images) with the blank ones taken out."""
    blank = torch.from_numpy(is_blank(features))
    if not blank.any():  # no copy of all of them
        return features, list(labels), []
    flags = blank.tolist()
    kept = [label for label, out in zip(labels, flags, strict=True) if not out]
    left = [label for label, out in zip(labels, flags, strict=True) if out]
    return features[~blank], kept, left


def shown_images(
    features: Tensor, labels: Sequence[str], *, known: Set[str]
) -> tuple[Tensor, list[str], tuple[str, ...]]:
    """(features, labels, notes) of the images that show something.

    Raises:
        InsufficientDiversityError: A class that is not yet `known` has none.
    """
    shown, kept, blank = without_blank(features, labels)
    if not blank:
        return shown, kept, ()
    nothing = sorted(set(blank) - set(kept) - known)
    if nothing or not kept:
        raise InsufficientDiversityError(
            f"all images of {nothing[:5] or sorted(set(blank))[:5]} are blank (features of "
            "length 0): there is nothing to learn from; look at the images and the camera"
        )
    counts = ", ".join(f"{n} of {name}" for name, n in sorted(Counter(blank).items()))
    return shown, kept, (f"blank images were left out: {counts}",)


def check_mergeable(here: Any, other: Any) -> None:
    """Refuse to merge anything but class statistics of the same network and settings.

    Raises:
        DataError: `other` is no class statistics.
        StatisticsError: A setting differs.
    """
    if not isinstance(other, type(here)):
        shown = " ".join(f"{other!r:.100}".split())  # a module's is of many lines
        raise DataError(
            f"`other` is {shown} ({type(other).__name__}); give class statistics of the "
            "same network: `statistics` of a classifier, which is `continual` of a predictor"
        )
    for what in ("n_features", "root", "memory_size"):
        mine, its = (
            one.memory.size if what == "memory_size" else getattr(one, what)
            for one in (here, other)
        )
        if mine != its:
            raise StatisticsError(
                f"`{what}` is {mine} here and {its} there; only statistics of one network, "
                "collected with the same settings, can be merged"
            )


def check_enough(names: Sequence[str], before: Tensor, after: Tensor) -> None:
    """Raise StatisticsError if a class would have fewer than no images, (C,) each."""
    for place in torch.nonzero(after < 0).flatten().tolist():
        raise StatisticsError(
            f"class {names[place]!r} has {number_of(int(before[place]), 'image')}; "
            f"{int(before[place] - after[place])} cannot be subtracted from it"
        )


def check_subtracted(names: Sequence[str], counts: Tensor, sums: Tensor, gram: Tensor) -> None:
    """Raise StatisticsError for counts (C,), sums (C,D) and products that no set of images has."""
    emptied = counts == 0
    wrong = emptied & (sums != 0).any(dim=1)
    # no entry of a feature on the grid is above 32,767
    wrong |= sums.abs().amax(dim=1) > counts * float(GRID)
    found = [names[place] for place in torch.nonzero(wrong).flatten().tolist()]
    if found or (gram.diagonal() < 0).any():
        raise StatisticsError(
            f"the features subtracted{f' from {found[:5]}' if found else ''} are not those "
            "that were added; subtract the same images, read by the same network"
        )


def check_some_count(fresh: Array, before: Sequence[Set[int]]) -> None:
    """Refuse images to calibrate by of which none counts, as they drive out those that do.

    Args:
        fresh: Which of them tell of fresh ones, bool (N,).
        before: The classes for which each was kept before: for another one, or in a group, now.
    """
    if not fresh.any() and not any(before):
        raise DataError(
            f"none of the images to calibrate by ({len(fresh)} given) counts: they are learned, "
            "near copies of learned ones (bursts, augmented files, files saved again), of groups "
            "that are learned, or cannot be told from such; give labelled images taken anew"
        )
