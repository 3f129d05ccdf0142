"""The splits of a dataset: making them, checking them, counting them. The arithmetic is `split.py`.

`Splitting` is a base of `ImageDataset`.
"""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from learnkit.data.labels import Label
from learnkit.data.split import SPLITS, assign_splits, check_shares
from learnkit.errors import DataError, SplitError

if TYPE_CHECKING:
    from typing_extensions import Self


class Splitting:
    """`split`, `train`, `valid`, `test`, `check_split` and `counts` of `ImageDataset`."""

    @property
    def splits(self) -> list[str]:
        """The splits that hold images, in the order train, valid, test."""
        present = set(self._frame["split"])
        return [name for name in SPLITS if name in present]

    @property
    def train(self) -> "Self":
        """The training images. SplitError if there are none."""
        return self._split_named("train")

    @property
    def valid(self) -> "Self":
        """The validation images. SplitError if there are none."""
        return self._split_named("valid")

    @property
    def test(self) -> "Self":
        """The test images. SplitError if there are none."""
        return self._split_named("test")

    def split(
        self,
        train: float = 0.7,
        valid: float = 0.15,
        test: float | None = None,
        *,
        seed: int = 42,
        stratify: bool = True,
        group: str | Sequence[object] | None = None,
        overwrite: bool = False,
    ) -> "Self":
        """The same images, each assigned to train, valid or test.

        The result depends on the set of images, not on the order of rows. Multi-label images are
        stratified by the rarest of their labels.

        Args:
            train: Share in 0..1.
            valid: Share in 0..1.
            test: Share in 0..1; None is the rest.
            seed: Of the shuffle.
            stratify: Give every class these shares; False gives them to the whole only.
            group: Column, or one value per row: images of one group stay together (one part seen
                from several sides, one patient).
            overwrite: Replace a split there already is.

        Raises:
            SplitError: A share is wrong, there is a split already, or one asked for stays empty.
        """
        shares = check_shares(train, valid, test)
        if self.splits and not overwrite:
            raise SplitError(
                f"the dataset is split already ({self!r}); pass `overwrite=True` to split it anew"
            )
        order = np.argsort(self._frame["path"].to_numpy(dtype=object), kind="stable")
        strata = np.array(self._strata() if stratify else [""] * len(self), dtype=object)
        groups = None if group is None else self._groups(group)
        groups = groups and [groups[i] for i in order]
        assigned = np.empty(len(self), dtype=np.int64)
        assigned[order] = assign_splits(strata[order], shares, seed=seed, groups=groups)
        for name, share, n in zip(SPLITS, shares, np.bincount(assigned, minlength=3), strict=True):
            if share > 0 and n == 0:
                raise SplitError(
                    f"no image falls to {name!r}: its share of {len(self)} images is {share:.3g}; "
                    "raise the share, or set it to 0"
                )
        names = pd.Series([SPLITS[i] for i in assigned], dtype=object)
        return self._with(self._frame.assign(split=names))

    def check_split(self) -> None:
        """Return if a classifier can be trained on this split and judged by it.

        Raises:
            SplitError: There is no train or no valid.
            DataError: Train has one class only, or another split has a label train lacks.
        """
        learned = Counter(names_in(self.train.labels))
        if len(learned) < 2 and not self._multi_label:
            raise DataError(
                f"all {len(self.train)} training images are {next(iter(learned))!r}; telling "
                "classes apart needs at least two. Add images of another class"
            )
        for name in [split for split in self.splits if split != "train"] or ["valid"]:
            seen = Counter(names_in(self._split_named(name).labels))
            if unknown := {label: n for label, n in sorted(seen.items()) if label not in learned}:
                shown = ", ".join(f"{label!r} ({n} images)" for label, n in unknown.items())
                raise DataError(
                    f"{name!r} has classes that 'train' lacks: {shown}; move some of their images "
                    "to train, or drop them with `filter`"
                )
        self._split_named("valid")

    def counts(self) -> pd.DataFrame:
        """Number of images, classes x splits (`unassigned` for none); zeros included."""
        columns = [*self.splits, *(["unassigned"] if (self._frame["split"] == "").any() else [])]
        table = pd.DataFrame(0, index=pd.Index(self._classes, name="class"), columns=columns)
        named = self._frame["split"].replace("", "unassigned")
        pairs = Counter(
            (name, split)
            for label, split in zip(self.labels, named, strict=True)
            for name in names_in([label])
        )
        for (name, split), n in pairs.items():
            table.loc[name, split] = n
        return table

    def _split_named(self, name: str) -> "Self":
        if name not in self.splits:
            raise SplitError(
                f"the dataset has no {name!r} images (it has {self.splits or 'no split'}); "
                "make them with `split(train, valid, test)`"
            )
        return self.filter((self._frame["split"] == name).to_numpy(dtype=bool))

    def _strata(self) -> list[str]:
        """The label of each image, or the rarest of its labels."""
        if not self._multi_label:
            return self.labels
        frequency = Counter(names_in(self.labels))
        return [min(label, key=lambda n: (frequency[n], n), default="") for label in self.labels]

    def _groups(self, group: str | Sequence[object]) -> list[object]:
        if isinstance(group, str) and group not in self._frame:
            raise SplitError(f"`group` is {group!r}; columns are {list(self._frame)}")
        values = self._frame[group].tolist() if isinstance(group, str) else list(group)
        if len(values) != len(self) or pd.isna(pd.Series(values, dtype=object)).any():
            raise SplitError(
                f"`group` has {len(values)} values for {len(self)} images, or some are missing; "
                "give one per image"
            )
        return values


def names_in(labels: Sequence[Label]) -> list[str]:
    """Every class name in `labels`, multi-labels unrolled."""
    return [name for label in labels for name in ((label,) if isinstance(label, str) else label)]
