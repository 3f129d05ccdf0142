"""Class statistics as named tensors, and back: strict, because files come from strangers."""

import itertools
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from learnkit.continual.embedding import GRID, LARGEST
from learnkit.continual.memory import Cell, FeatureMemory, feature_hashes
from learnkit.continual.names import check_distinct, clean_name
from learnkit.continual.statistics import LIMIT, ClassStatistics
from learnkit.continual.sums import Forgotten, in_order
from learnkit.errors import DataError, StatisticsError

_TYPES = {
    "counts": torch.int64,
    "sums": torch.float64,
    "gram": torch.float64,
    "forgotten_counts": torch.int64,
    "forgotten_sums": torch.float64,
}
MEMORY_TYPES = {
    "memory": torch.int16,
    "memory_sizes": torch.int64,
    "memory_copies": torch.int64,
}


def to_tensors(stats: ClassStatistics) -> dict[str, Tensor]:
    """All numbers of `stats`, each tensor with memory of its own kind and none shared.

    `counts (C,)`, `sums (C,D)`, `gram (D,D)`, `forgotten_counts (F,)`, `forgotten_sums (F,D)`, and
    `memory_tensors` of its memory.
    """
    left = [one.total[None] for one in stats.forgotten]
    return {
        "counts": stats.counts,
        "sums": stats.sums,
        "gram": stats.gram,
        "forgotten_counts": torch.tensor([one.count for one in stats.forgotten], dtype=torch.int64),
        "forgotten_sums": torch.cat([stats.sums[:0], *left]),
        **memory_tensors(stats.memory),
    }


def memory_tensors(memory: FeatureMemory, prefix: str = "memory") -> dict[str, Tensor]:
    """The features `(M,D)` int16, `_sizes (C,)` rows per class, `_copies (M,)`."""
    empty = torch.empty(0, memory.n_features, dtype=torch.int16)
    sizes = [len(cell.hashes) for cell in memory.cells]
    return {
        prefix: torch.cat([empty, *[cell.features for cell in memory.cells]]),
        f"{prefix}_sizes": torch.tensor(sizes, dtype=torch.int64),
        f"{prefix}_copies": memory.copies(),
    }


def from_tensors(
    tensors: Mapping[str, Tensor],
    class_names: Sequence[str],
    root: bool,
    memory_size: int,
    forgotten_names: Sequence[str] = (),
) -> ClassStatistics:
    """The statistics these tensors were made from.

    Raises:
        StatisticsError: Names, shapes, types or values cannot be those of class statistics.
    """
    names, forgotten_names = read_names(class_names), _read_list(forgotten_names)
    _check_keys(tensors, {**_TYPES, **MEMORY_TYPES})
    n_classes, n_features = len(names), _width(tensors["gram"])
    n_left = len(forgotten_names)
    _check_shape(tensors, "counts", (n_classes,))
    _check_shape(tensors, "sums", (n_classes, n_features))
    _check_shape(tensors, "gram", (n_features, n_features))
    _check_shape(tensors, "forgotten_counts", (n_left,))
    _check_shape(tensors, "forgotten_sums", (n_left, n_features))
    counts = tensors["counts"]
    left = tensors["forgotten_counts"]
    _check_counts(counts, left)
    memory = read_memory(tensors, names, n_features, memory_size, counts)
    _check_sums("sums", tensors["sums"], counts)
    _check_sums("forgotten_sums", tensors["forgotten_sums"], left)
    _check_gram(tensors["gram"], int(counts.sum() + left.sum()))
    forgotten = [
        Forgotten(_read_name(name), count, total.clone())
        for name, count, total in zip(
            forgotten_names, left.tolist(), tensors["forgotten_sums"], strict=True
        )
    ]
    return ClassStatistics(
        names,
        counts.clone(),
        tensors["sums"].clone(),
        tensors["gram"].clone(),
        memory,
        _flag(root),
        in_order(forgotten),
    )


def read_memory(
    tensors: Mapping[str, Tensor],
    names: tuple[str, ...],
    n_features: int,
    size: int,
    counts: Tensor | None = None,
    prefix: str = "memory",
) -> FeatureMemory:
    """The memory `memory_tensors` was given; `counts` bounds the images it may stand for.

    Raises:
        StatisticsError: The tensors cannot be those of a memory.
    """
    rows, sizes, copies = (tensors[f"{prefix}{end}"] for end in ("", "_sizes", "_copies"))
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= LIMIT:
        raise StatisticsError(f"`memory_size` is {size!r}; it is a whole number of 0 or more")
    _check_shape(tensors, f"{prefix}_sizes", (len(names),))
    if (sizes < 0).any() or (sizes > size).any():
        raise StatisticsError(f"`{prefix}_sizes` are not all from 0 to {size}; {_DAMAGED}")
    n_rows = int(sizes.sum())
    _check_shape(tensors, prefix, (n_rows, n_features))
    _check_shape(tensors, f"{prefix}_copies", (n_rows,))
    if (copies < 1).any() or (copies > LIMIT).any() or (rows == -GRID).any():
        raise StatisticsError(f"`{prefix}` holds what no feature gives; {_DAMAGED}")
    hashes, stop = feature_hashes(rows), 0
    cells = [FeatureMemory(size, n_features).empty_cell()] * len(names)
    filled = torch.nonzero(sizes)[:, 0]
    for place, n in zip(filled.tolist(), sizes[filled].tolist(), strict=True):
        start, stop = stop, stop + n
        if any(a >= b for a, b in itertools.pairwise(hashes[start:stop])):
            raise StatisticsError(f"`{prefix}` is not in the order of its hashes; {_DAMAGED}")
        own = tuple(copies[start:stop].tolist())
        cells[place] = Cell(rows[start:stop].clone(), hashes[start:stop], own)
    memory = FeatureMemory(size, n_features, names, tuple(cells))
    if counts is not None and any(
        cell.n_copies > n for cell, n in zip(cells, counts.tolist(), strict=True)
    ):
        raise StatisticsError(f"`{prefix}` remembers more images than there are; {_DAMAGED}")
    return memory


def read_names(class_names: Sequence[str]) -> tuple[str, ...]:
    """Class names as stored, which must be clean and distinct already.

    Raises:
        StatisticsError: They are not.
    """
    names = tuple(map(_read_name, _read_list(class_names)))
    try:
        check_distinct(names)
    except DataError as error:
        raise StatisticsError(str(error)) from error
    return names


_DAMAGED = "the statistics are damaged: read them from another copy"


def _read_name(name: str) -> str:
    try:
        clean = clean_name(name)
    except DataError as error:
        raise StatisticsError(str(error)) from error
    if clean != name:
        raise StatisticsError(f"class name {name!a} is not in composed form; {_DAMAGED}")
    return clean


def _read_list(names: Sequence[str]) -> Sequence[str]:
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise StatisticsError(f"class names are a list, not {type(names).__name__}")
    return names


def _flag(root: bool) -> bool:
    if not isinstance(root, bool):
        raise StatisticsError(f"`root` is {root!r}; it is true or false")
    return root


def _check_keys(tensors: Mapping[str, Tensor], types: Mapping[str, torch.dtype]) -> None:
    if set(tensors) != set(types):
        missing, extra = sorted(set(types) - set(tensors)), sorted(set(tensors) - set(types))
        raise StatisticsError(f"tensors missing: {missing}, unexpected: {extra}; {_DAMAGED}")
    check_types(tensors, types)


def check_types(tensors: Mapping[str, Tensor], types: Mapping[str, torch.dtype]) -> None:
    """Refuse what is no tensor of its type, or not finite.

    Raises:
        StatisticsError: The message names the tensor.
    """
    for name, dtype in types.items():
        tensor = tensors[name]
        if not isinstance(tensor, Tensor) or tensor.dtype != dtype:
            seen = getattr(tensor, "dtype", type(tensor).__name__)
            raise StatisticsError(f"`{name}` is {seen} and not {dtype}; {_DAMAGED}")
        if dtype.is_floating_point and not torch.isfinite(tensor).all():
            raise StatisticsError(f"`{name}` holds NaN or infinity; {_DAMAGED}")


def _check_shape(tensors: Mapping[str, Tensor], name: str, shape: tuple[int, ...]) -> None:
    if tuple(tensors[name].shape) != shape:
        raise StatisticsError(
            f"`{name}` has shape {tuple(tensors[name].shape)} and not {shape}; {_DAMAGED}"
        )


def _width(gram: Tensor) -> int:
    if gram.dim() != 2 or not gram.shape[0]:
        raise StatisticsError(f"`gram` has shape {tuple(gram.shape)}; it is a square; {_DAMAGED}")
    return gram.shape[0]


def _check_counts(*counts: Tensor) -> None:
    if any((n < 0).any() or (n > LIMIT).any() for n in counts):
        raise StatisticsError(f"`counts` are not all from 0 to {LIMIT:,}; {_DAMAGED}")
    if sum(int(n.sum()) for n in counts) > LIMIT:
        raise StatisticsError(f"`counts` add up to more than {LIMIT:,}; {_DAMAGED}")


def _check_sums(name: str, sums: Tensor, counts: Tensor) -> None:
    """Whole numbers, and no sum longer than that many vectors of length 1 (and their rounding)."""
    longest = counts.to(torch.float64) * (GRID + math.sqrt(sums.shape[1]))
    if (sums != sums.round()).any() or (sums.norm(dim=1) > longest).any():
        raise StatisticsError(f"`{name}` are not sums of that many features; {_DAMAGED}")


def _check_gram(gram: Tensor, n: int) -> None:
    """Whole numbers, symmetric, within Cauchy-Schwarz, and no larger in all than n lengths of 1."""
    diagonal = gram.diagonal()
    largest = n * (GRID + math.sqrt(len(gram))) ** 2
    wrong = (
        (gram != gram.round()).any()
        or not torch.equal(gram, gram.T)
        or (diagonal < 0).any()
        or (diagonal > n * float(LARGEST) ** 2).any()
        or diagonal.sum() > largest
    )
    root = diagonal.clamp_min(0).sqrt()
    if wrong or (gram.abs() > torch.outer(root, root) * (1 + 1e-9)).any():
        raise StatisticsError(f"`gram` is no sum of products of {n} features; {_DAMAGED}")
