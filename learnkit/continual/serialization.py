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
    check_keys(tensors, {**_TYPES, **MEMORY_TYPES})
    counts, sums, gram = (tensors[name] for name in ("counts", "sums", "gram"))
    n_features = width_of(gram)
    shapes = {
        "counts": (len(names),),
        "sums": (len(names), n_features),
        "gram": (n_features, n_features),
        "forgotten_counts": (len(forgotten_names),),
        "forgotten_sums": (len(forgotten_names), n_features),
    }
    check_shapes(tensors, shapes)
    check_counts(counts, tensors["forgotten_counts"])
    memory = read_memory(tensors, names, n_features, memory_size, counts)
    check_sums("sums", sums, counts)
    check_sums("forgotten_sums", tensors["forgotten_sums"], tensors["forgotten_counts"])
    check_gram(gram, int(counts.sum() + tensors["forgotten_counts"].sum()))
    return ClassStatistics(
        names,
        counts.clone(),
        sums.clone(),
        gram.clone(),
        memory,
        _flag(root),
        _read_forgotten(tensors, forgotten_names),
    )


def _read_forgotten(tensors: Mapping[str, Tensor], names: Sequence[str]) -> tuple[Forgotten, ...]:
    numbers, totals = tensors["forgotten_counts"].tolist(), tensors["forgotten_sums"]
    return in_order(
        Forgotten(_read_name(name), n, total.clone())
        for name, n, total in zip(names, numbers, totals, strict=True)
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
    check_shapes(tensors, {f"{prefix}_sizes": (len(names),)})
    if (sizes < 0).any() or (sizes > size).any():
        raise StatisticsError(f"`{prefix}_sizes` are not all from 0 to {size}; {DAMAGED}")
    n_rows = int(sizes.sum())
    check_shapes(tensors, {prefix: (n_rows, n_features), f"{prefix}_copies": (n_rows,)})
    if (copies < 1).any() or (copies > LIMIT).any() or (rows == -GRID).any():
        raise StatisticsError(f"`{prefix}` holds what no feature gives; {DAMAGED}")
    cells = _read_cells(rows, sizes.tolist(), copies, prefix)
    if counts is not None and any(
        cell.n_copies > n for cell, n in zip(cells, counts.tolist(), strict=True)
    ):
        raise StatisticsError(f"`{prefix}` remembers more images than there are; {DAMAGED}")
    return FeatureMemory(size, n_features, names, tuple(cells))


def _read_cells(rows: Tensor, sizes: list[int], copies: Tensor, prefix: str) -> list[Cell]:
    hashes, empty = feature_hashes(rows), Cell(rows[:0].clone())
    cells, stop = [], 0
    for n in sizes:
        start, stop = stop, stop + n
        if not n:
            cells.append(empty)
            continue
        if any(a >= b for a, b in itertools.pairwise(hashes[start:stop])):
            raise StatisticsError(f"`{prefix}` is not in the order of its hashes; {DAMAGED}")
        own = tuple(copies[start:stop].tolist())
        cells.append(Cell(rows[start:stop].clone(), hashes[start:stop], own))
    return cells


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


def _read_name(name: str) -> str:
    try:
        clean = clean_name(name)
    except DataError as error:
        raise StatisticsError(str(error)) from error
    if clean != name:
        raise StatisticsError(f"class name {name!a} is not in composed form; {DAMAGED}")
    return clean


def _read_list(names: Sequence[str]) -> Sequence[str]:
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise StatisticsError(f"class names are a list, not {type(names).__name__}")
    return names


def _flag(root: bool) -> bool:
    if not isinstance(root, bool):
        raise StatisticsError(f"`root` is {root!r}; it is true or false")
    return root


DAMAGED = "the statistics are damaged: read them from another copy"


def check_keys(tensors: Mapping[str, Tensor], types: Mapping[str, torch.dtype]) -> None:
    """Raise StatisticsError unless there are exactly these tensors, as `check_types` wants them."""
    if set(tensors) != set(types):
        missing, extra = sorted(set(types) - set(tensors)), sorted(set(tensors) - set(types))
        raise StatisticsError(f"tensors missing: {missing}, unexpected: {extra}; {DAMAGED}")
    check_types(tensors, types)


def check_types(tensors: Mapping[str, Tensor], types: Mapping[str, torch.dtype]) -> None:
    """Raise StatisticsError at what is no tensor of its type, or not finite."""
    for name, dtype in types.items():
        tensor = tensors[name]
        if not isinstance(tensor, Tensor) or tensor.dtype != dtype:
            seen = getattr(tensor, "dtype", type(tensor).__name__)
            raise StatisticsError(f"`{name}` is {seen} and not {dtype}; {DAMAGED}")
        if dtype.is_floating_point and not torch.isfinite(tensor).all():
            raise StatisticsError(f"`{name}` holds NaN or infinity; {DAMAGED}")


def check_shapes(tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise StatisticsError at the first tensor of another shape."""
    for name, shape in shapes.items():
        if tuple(tensors[name].shape) != shape:
            raise StatisticsError(
                f"`{name}` has shape {tuple(tensors[name].shape)} and not {shape}; {DAMAGED}"
            )


def width_of(gram: Tensor) -> int:
    """Width D of a matrix of products; a StatisticsError if it is no matrix."""
    if gram.dim() != 2 or not gram.shape[0]:
        raise StatisticsError(f"`gram` has shape {tuple(gram.shape)}; it is a square; {DAMAGED}")
    return gram.shape[0]


def check_counts(*counts: Tensor) -> None:
    """Raise StatisticsError unless these are numbers of images whose products add up exactly."""
    if any((n < 0).any() or (n > LIMIT).any() for n in counts):
        raise StatisticsError(f"`counts` are not all from 0 to {LIMIT:,}; {DAMAGED}")
    if sum(int(n.sum()) for n in counts) > LIMIT:
        raise StatisticsError(f"`counts` add up to more than {LIMIT:,}; {DAMAGED}")


def check_sums(name: str, sums: Tensor, counts: Tensor) -> None:
    """Raise StatisticsError unless rows (C,D) can be sums of so many features on the grid.

    These are whole numbers, and no longer than that many vectors of length 1 and their rounding.
    """
    longest = counts.to(torch.float64) * (GRID + math.sqrt(sums.shape[1]))
    if (sums != sums.round()).any() or (sums.norm(dim=1) > longest).any():
        raise StatisticsError(f"`{name}` are not sums of that many features; {DAMAGED}")


def check_gram(gram: Tensor, n: int) -> None:
    """Raise StatisticsError unless a square (D,D) can be the products of `n` features on the grid.

    These are whole numbers, symmetric, within Cauchy-Schwarz, and no larger in all than those of
    `n` vectors of length 1.
    """
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
        raise StatisticsError(f"`gram` is no sum of products of {n} features; {DAMAGED}")
