"""What can be done to classes by their names alone, without any image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from learnkit.continual.names import check_distinct, check_known, clean_name
from learnkit.continual.sums import ClassSums, Forgotten, in_order
from learnkit.errors import DataError

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True, eq=False)
class RelabelledSums(ClassSums):
    """Sums whose classes can be forgotten, renamed and joined; every operation returns new ones."""

    def forget(self, name: str) -> "Self":
        """With class `name` unknown again: no count, no mean, no memory, but its place kept.

        The spread of its images stays in the pooled scatter, which one class more or less hardly
        changes and which cannot be taken apart without the images; `subtract` them for that.

        Raises:
            DataError: There is no such class, or it has no images.
        """
        name = check_known(name, self.class_names)
        place = self.class_names.index(name)
        if not self.counts[place]:
            raise DataError(f"class {name!r} has no images: there is nothing to forget")
        left = Forgotten(name, int(self.counts[place]), self.sums[place].clone())
        at = torch.tensor([place])
        return replace(
            self,
            counts=self.counts.index_fill(0, at, 0),
            sums=self.sums.index_fill(0, at, 0.0),
            memory=self.memory.emptied([place]),
            forgotten=in_order([*self.forgotten, left]),
        )

    def rename(self, names: Mapping[str, str]) -> "Self":
        """With classes called otherwise, `{old: new}`; names may be swapped.

        Raises:
            DataError: There is no such class, or a new name looks like another class's.
        """
        new = {check_known(old, self.class_names): clean_name(to) for old, to in names.items()}
        class_names = tuple(new.get(name, name) for name in self.class_names)
        check_distinct(class_names)
        return replace(
            self,
            class_names=class_names,
            memory=self.memory.named(class_names),
            forgotten=_renamed(self.forgotten, new),
        )

    def merge_classes(self, names: Sequence[str], into: str) -> "Self":
        """With all images of `names` counted to class `into`, as if they had been labelled so.

        `into` may be one of them, another class, or a new name, which then takes the place of the
        first of them. The other names keep their places, without images.

        Raises:
            DataError: There is no such class, fewer than two are merged, or names look alike.
        """
        if isinstance(names, str):
            raise DataError(f"`names` is the text {names!r}; give a list of class names")
        names = list(dict.fromkeys(check_known(name, self.class_names) for name in names))
        into = clean_name(into)
        if len({*names, into} & set(self.class_names)) < 2:
            raise DataError(
                f"merging {names} into {into!r} joins fewer than two classes; to call a class "
                "otherwise, use `rename`"
            )
        known = self if into in self.class_names else self.rename({names[0]: into})
        return known._joined(
            [into if name not in known.class_names else name for name in names], into
        )

    def _joined(self, names: Sequence[str], into: str) -> "Self":
        """All images of `names` and `into`, classes that exist, in `into`."""
        target = self.class_names.index(into)
        places = sorted({self.class_names.index(name) for name in names} - {target})
        at = torch.tensor(places, dtype=torch.int64)
        counts, sums = self.counts.index_fill(0, at, 0), self.sums.index_fill(0, at, 0.0)
        counts[target] += self.counts[at].sum()
        sums[target] += self.sums[at].sum(0)
        return replace(
            self,
            counts=counts,
            sums=sums,
            memory=self.memory.joined(places, target),
            forgotten=_renamed(self.forgotten, dict.fromkeys(names, into)),
        )


def _renamed(forgotten: Sequence[Forgotten], names: Mapping[str, str]) -> tuple[Forgotten, ...]:
    return in_order([replace(one, name=names.get(one.name, one.name)) for one in forgotten])
