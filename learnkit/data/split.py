"""Train, valid and test: dividing a table by class or by group, the same for any row order."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd

from learnkit.data.arguments import check_seed
from learnkit.data.labels import names_in
from learnkit.errors import DataError, SplitError, first_few, number_of, warn_user

SPLITS = ("train", "valid", "test")


def check_shares(train: float, valid: float, test: float | None) -> np.ndarray:
    """Shares of train, valid and test as float64 (3,) with sum 1; `test=None` is the rest.

    Raises:
        SplitError: A share is no number in 0..1, train has none, or they do not sum to 1.

    >>> check_shares(0.5, 0.25, None)
    array([0.5 , 0.25, 0.25])
    """
    shares = {"train": train, "valid": valid, "test": 0.0 if test is None else test}
    for name, share in shares.items():
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
            raise SplitError(f"`{name}` is {share!r}; it must be a share in 0..1, such as 0.7")
    if train == 0:
        raise SplitError("`train` is 0; something must be left to learn from")
    total = sum(shares.values())
    if total > 1 + 1e-9 or (test is not None and total < 1 - 1e-9):
        raise SplitError(
            f"`train` + `valid` + `test` is {total:g}; it must be 1 (leave `test` out for the rest)"
        )
    values = np.array([train, valid, max(0.0, 1 - train - valid) if test is None else test])
    # 1 - .7 - .3 is 5.6e-17, and a split of that share would be refused as empty
    values[values < 1e-9] = 0
    return values / values.sum()


def assign_splits(
    strata: Sequence[str],
    shares: np.ndarray,
    *,
    seed: int = 42,
    groups: Sequence[object] | None = None,
) -> np.ndarray:
    """Split number of every image, int64 (N,): 0 train, 1 valid, 2 test.

    Every stratum (class) is divided by `shares`, each part rounded up or down so that the totals
    come out right too. A stratum of two or more has an image in train, and in valid when its share
    is half an image or more. Groups stay whole and then come as near to the shares as they can.

    Args:
        strata: One name per image, in an order that does not depend on the caller's rows.
        shares: float64 (3,) with sum 1.
        seed: Of the shuffle within each stratum.
        groups: One hashable value per image, or None.
    """
    names, codes = np.unique(np.asarray(strata, dtype=object), return_inverse=True)
    rng = np.random.default_rng(seed)
    if groups is not None:
        numbers = {group: i for i, group in enumerate(dict.fromkeys(groups))}
        numbered = np.array([numbers[group] for group in groups], dtype=np.int64)
        return _assign_groups(names, codes, numbered, shares, rng)
    singles = [repr(name) for name in names[np.bincount(codes, minlength=len(names)) == 1]]
    if len(names) > 1 and singles:
        warn_user(
            f"classes with a single image, which goes to train: {first_few(singles, 10)}; nothing "
            "will be known about how well they are recognised"
        )
    assigned = np.zeros(len(codes), dtype=np.int64)
    carry = np.zeros(len(SPLITS))
    for code in range(len(names)):
        members = rng.permutation(np.flatnonzero(codes == code))
        counts = _stratum_counts(len(members), shares, carry)
        # What rounding took from a part here it gets back in the next class, so that the totals
        # of many small classes come out right.
        carry += len(members) * shares - counts
        assigned[members] = np.repeat(np.arange(len(SPLITS)), counts)
    return assigned


def _stratum_counts(n: int, shares: np.ndarray, carry: np.ndarray) -> np.ndarray:
    """int64 (3,) with sum `n`: its quotas rounded by largest remainder, owed parts first."""
    if n == 1:
        return np.array([1, 0, 0])
    quotas = n * shares
    counts = np.floor(quotas + 1e-9).astype(np.int64)  # 100 * 0.29 is 28.999...
    counts[0] = max(counts[0], 1)
    if quotas[1] >= 0.5 and counts.sum() < n:
        counts[1] = max(counts[1], 1)
    wish = np.where(counts < quotas - 1e-9, quotas - counts + carry, -np.inf)
    for split in np.argsort(-wish, kind="stable")[: n - counts.sum()]:
        counts[split] += 1
    return counts


def _assign_groups(
    names: np.ndarray,
    codes: np.ndarray,
    groups: np.ndarray,
    shares: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """As `assign_splits` with whole groups: largest first, each to the split lacking it most."""
    order = np.argsort(groups, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)
    # before the sort, which is stable: groups of one size stay in the order drawn
    members = [members[i] for i in rng.permutation(len(members))]
    members.sort(key=len, reverse=True)
    totals = np.bincount(codes, minlength=len(names))
    missing = shares[:, None] * totals
    assigned = np.zeros(len(codes), dtype=np.int64)
    for rows in members:
        present, counts = np.unique(codes[rows], return_counts=True)
        of_classes = (missing[:, present] * (counts / totals[present])).sum(1)
        need = of_classes + missing.sum(1) * (len(rows) / len(codes))
        split = int(np.argmax(np.where(shares > 0, need, -np.inf)))
        missing[split, present] -= counts
        assigned[rows] = split
    _give_train_every_class(assigned, codes, members, len(names))
    n_groups = np.bincount(np.concatenate([np.unique(codes[rows]) for rows in members]))
    singles = [repr(name) for name in names[n_groups == 1]]
    if len(names) > 1 and singles:
        warn_user(f"classes with a single group, which goes to train: {first_few(singles, 10)}")
    return assigned


def _give_train_every_class(
    assigned: np.ndarray, codes: np.ndarray, members: list[np.ndarray], n_classes: int
) -> None:
    """Move the smallest group of each class that train lacks into train, in place."""
    for code in range(n_classes):
        if not (codes[assigned == 0] == code).any():
            smallest = min((rows for rows in members if (codes[rows] == code).any()), key=len)
            assigned[smallest] = 0


def split_column(
    frame: pd.DataFrame,
    shares: np.ndarray,
    *,
    seed: int,
    stratify: bool,
    groups: Sequence[object] | None,
) -> pd.Series:
    """The split of every row, as `ImageDataset.split` says: "train", "valid" or "test".

    Raises:
        SplitError: A split asked for stays empty.
    """
    # By path, so that the same images are divided alike however their rows are sorted.
    order = np.argsort(frame["path"].to_numpy(dtype=object), kind="stable")
    strata = np.array(_strata(frame) if stratify else [""] * len(frame), dtype=object)
    if groups is not None:
        groups = [groups[i] for i in order]
    assigned = np.empty(len(frame), dtype=np.int64)
    assigned[order] = assign_splits(strata[order], shares, seed=seed, groups=groups)
    for name, share, n in zip(SPLITS, shares, np.bincount(assigned, minlength=3), strict=True):
        if share > 0 and n == 0:
            raise SplitError(
                f"no image falls to {name!r}: its share of {number_of(len(frame), 'image')} is "
                f"{share:.3g}; "
                "raise the share, or set it to 0"
            )
    return pd.Series([SPLITS[i] for i in assigned], dtype=object)


def rows_drawn(
    frame: pd.DataFrame, n: int | None, fraction: float | None, *, seed: int, stratify: bool
) -> np.ndarray:
    """Whether each row is one of those drawn without replacement, bool (N,).

    With `stratify` every class has its share of them, rounded by the largest remainder.

    Raises:
        DataError: Neither or both of `n` and `fraction`, or one out of its range.
    """
    check_seed(seed)
    if (n is None) == (fraction is None):
        raise DataError(f"`n` is {n!r} and `fraction` {fraction!r}; give one of them")
    if fraction is not None:
        if isinstance(fraction, bool) or not 0 <= fraction <= 1:
            raise DataError(f"`fraction` is {fraction!r}; it must lie in 0..1")
        n = round(fraction * len(frame))
    if isinstance(n, bool) or not isinstance(n, int) or not 0 <= n <= len(frame):
        raise DataError(f"`n` is {n!r}; it must be an integer from 0 to {len(frame)}")
    rng, drawn = np.random.default_rng(seed), np.zeros(len(frame), dtype=bool)
    if not stratify:
        drawn[rng.permutation(len(frame))[:n]] = True
        return drawn
    names, codes = np.unique(np.array(_strata(frame), dtype=object), return_inverse=True)
    quotas = np.bincount(codes, minlength=len(names)) * (n / max(1, len(frame)))
    counts = np.floor(quotas + 1e-9).astype(np.int64)
    counts[np.argsort(counts - quotas, kind="stable")[: n - counts.sum()]] += 1
    for code, count in enumerate(counts):
        drawn[rng.permutation(np.flatnonzero(codes == code))[:count]] = True
    return drawn


def splits_in(frame: pd.DataFrame) -> list[str]:
    """The splits that hold images, in the order train, valid, test."""
    present = set(frame["split"])
    return [name for name in SPLITS if name in present]


def in_split(frame: pd.DataFrame, name: str) -> np.ndarray:
    """Whether each row belongs to split `name`, bool (N,); a SplitError if none does."""
    splits = splits_in(frame)
    if name not in splits:
        raise SplitError(
            f"the dataset has no {name!r} images (it has {splits or 'no split'}); "
            "make them with `split(train, valid, test)`"
        )
    return (frame["split"] == name).to_numpy(dtype=bool)


def check_unsplit(frame: pd.DataFrame, shown: str) -> None:
    """Raise SplitError if images are in a split already; `shown` is the dataset in the message."""
    if splits_in(frame):
        raise SplitError(
            f"the dataset is split already ({shown}); pass `overwrite=True` to split it anew"
        )


def check_training_splits(
    frame: pd.DataFrame, *, multi_label: bool, validated: bool = True
) -> None:
    """Return if a classifier can be trained and, if `validated`, evaluated by `frame`'s splits.

    Raises:
        SplitError: There is no train, or no valid for one that is `validated`.
        DataError: Train has one class only, or another split has a label train lacks.
    """
    train = frame[in_split(frame, "train")]
    learned = set(names_in(train["label"]))
    if len(learned) < 2 and not multi_label:
        raise DataError(
            f"every training image ({len(train)}) is {next(iter(learned))!r}; telling "
            "classes apart needs at least two. Add images of another class"
        )
    for name in [split for split in splits_in(frame) if split != "train"]:
        seen = Counter(names_in(frame["label"][in_split(frame, name)]))
        if unknown := {label: n for label, n in sorted(seen.items()) if label not in learned}:
            shown = ", ".join(
                f"{label!r} ({number_of(n, 'image')})" for label, n in unknown.items()
            )
            raise DataError(
                f"{name!r} has classes that 'train' lacks: {shown}; move some of their images "
                "to train, or drop them with `filter`"
            )
    if validated:
        in_split(frame, "valid")


def split_counts(frame: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """Number of images, classes x splits (`unassigned` for none); zeros included."""
    named = frame["split"].replace("", "unassigned")
    columns = [name for name in (*SPLITS, "unassigned") if (named == name).any()]
    table = pd.DataFrame(0, index=pd.Index(classes, name="class"), columns=columns)
    pairs = Counter(
        (name, split)
        for label, split in zip(frame["label"], named, strict=True)
        for name in names_in([label])
    )
    for (name, split), n in pairs.items():
        table.loc[name, split] = n
    return table


def _strata(frame: pd.DataFrame) -> list[str]:
    """The label of each image, or the rarest of its labels ("" if it has none)."""
    labels = frame["label"].tolist()
    frequency = Counter(names_in(labels))
    return [
        label if isinstance(label, str) else min(label, key=lambda n: (frequency[n], n), default="")
        for label in labels
    ]
