"""Serialization of class statistics and settings: strict, because files are not to be trusted."""

import hashlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from sys import float_info
from typing import Any

import numpy as np
import torch
from torch import Tensor

from learnkit.continual.embedding import EXACT, LARGEST
from learnkit.continual.fingerprints import (
    NONE,
    Fingerprints,
    feature_hashes,
    less_one_of_each,
)
from learnkit.continual.memory import Cell, FeatureMemory, Forgotten, in_order
from learnkit.continual.names import check_distinct, clean_name
from learnkit.continual.settings import Settings
from learnkit.errors import (
    DataError,
    NewerStateError,
    OodInsufficientDataError,
    StatisticsError,
)
from learnkit.uncertainty.checks import Array
from learnkit.uncertainty.scoring import GRID

_TYPES = {
    "counts": torch.int64,
    "sums": torch.float64,
    "gram": torch.float64,
    "forgotten_counts": torch.int64,
    "forgotten_sums": torch.float64,
}
_MEMORY_TYPES = {
    "memory": torch.int16,
    "memory_sizes": torch.int64,
    "memory_copies": torch.int64,
}
_VALIDATION = "validation"

_ORIGINS, _ORIGIN = 1000, 300  # at most: in number, and in letters
# Of the state of a whole classifier; 1 had none of what is optional below, 2 no `blend`, 3 no
# `near_copies`, 4 no `rules`, 5 no `rules` above 2, 6 none above 3.
FORMAT = 7
# All that a state may lack, because it was written before there was such a thing, and what it then
# means. Nothing else is missing or unknown in a sound state.
OPTIONAL_CONFIG: dict[str, Any] = {"former_names": {}, "origins": []}
OPTIONAL_SETTINGS = dict.fromkeys(["per_class", "case_sensitive", "blend", "near_copies"], False)
OPTIONAL_SETTINGS |= {"rules": 1}
# Without fingerprints those of the remembered features are all that are known.
OPTIONAL_TENSORS = dict.fromkeys(
    ["fingerprints", "fingerprint_sizes", "memory_groups", "validation_groups"], torch.int64
)

TENSOR_TYPES = {
    **_TYPES,
    **_MEMORY_TYPES,
    **{name.replace("memory", _VALIDATION): dtype for name, dtype in _MEMORY_TYPES.items()},
    **OPTIONAL_TENSORS,
}
_CONFIG = {"format", "settings", "class_names", "forgotten_names", "threshold", *OPTIONAL_CONFIG}


def statistics_tensors(
    counts: Tensor,
    sums: Tensor,
    gram: Tensor,
    forgotten: Sequence[Forgotten],
    memory: FeatureMemory,
    learned: Fingerprints,
) -> dict[str, Tensor]:
    """All numbers of class statistics, each tensor with memory of its own kind and none shared.

    `counts (C,)`, `sums (C,D)`, `gram (D,D)`, `forgotten_counts (F,)`, `forgotten_sums (F,D)`,
    `memory_tensors` of the memory; and, unless all images are remembered, `fingerprints (L,)`, the
    bits of numbers without a sign, class after class and then what is forgotten, and how many each
    has, `fingerprint_sizes (C+F,)`.
    """
    left = [one.total[None] for one in forgotten]
    codes = [*learned.classes, *(one.fingerprints for one in forgotten)]
    optional = {
        "fingerprints": torch.from_numpy(np.concatenate([NONE, *codes]).view(np.int64)),
        "fingerprint_sizes": torch.tensor(list(map(len, codes)), dtype=torch.int64),
    }
    if len(optional["fingerprints"]) == memory.n_copies:
        optional = {}  # the features say it all; so does the file of an earlier version, as it was
    return {
        "counts": counts,
        "sums": sums,
        "gram": gram,
        "forgotten_counts": torch.tensor([one.count for one in forgotten], dtype=torch.int64),
        # `sums[:0]` keeps the width where no class is forgotten
        "forgotten_sums": torch.cat([sums[:0], *left]),
        **memory_tensors(memory),
        **optional,
    }


def memory_tensors(memory: FeatureMemory, prefix: str = "memory") -> dict[str, Tensor]:
    """The features `(M,D)` int16, `_sizes (C,)` rows per class, `_copies (M,)`.

    And, if there are any, codes of groups, `_groups (M,)`.
    """
    empty = torch.empty(0, memory.n_features, dtype=torch.int16)
    sizes = [len(cell.hashes) for cell in memory.cells]
    groups = memory.given()
    return {
        prefix: torch.cat([empty, *[cell.features for cell in memory.cells]]),
        f"{prefix}_sizes": torch.tensor(sizes, dtype=torch.int64),
        f"{prefix}_copies": memory.copies(),
        **({f"{prefix}_groups": groups} if groups.any() else {}),
    }


def read_statistics(
    tensors: Mapping[str, Tensor],
    class_names: Sequence[str],
    root: bool,
    memory_size: int,
    forgotten_names: Sequence[str] = (),
    case_sensitive: bool = False,
) -> dict[str, Any]:
    """The fields of the class statistics these tensors were made from.

    Raises:
        StatisticsError: Names, shapes, types or values cannot be those of class statistics.
    """
    if not isinstance(root, bool):
        raise StatisticsError(f"`root` is {root!r}; it is true or false")
    names = _read_names(class_names, case_sensitive)
    forgotten_names = _read_list(forgotten_names)
    own = {name: dtype for name, dtype in TENSOR_TYPES.items() if not name.startswith(_VALIDATION)}
    _check_tensors(tensors, own)
    counts, sums, gram = (tensors[name] for name in ("counts", "sums", "gram"))
    if gram.dim() != 2 or not gram.shape[0]:
        raise StatisticsError(f"`gram` has shape {tuple(gram.shape)}; it is a square; {DAMAGED}")
    n_features = gram.shape[0]
    shapes = {
        "counts": (len(names),),
        "sums": (len(names), n_features),
        "gram": (n_features, n_features),
        "forgotten_counts": (len(forgotten_names),),
        "forgotten_sums": (len(forgotten_names), n_features),
    }
    _check_shapes(tensors, shapes)
    for name, least in (("counts", 0), ("forgotten_counts", 1)):
        # Python's sum: that of int64 in a damaged file could wrap around
        if (tensors[name] < least).any() or sum(tensors[name].tolist()) >= EXACT:
            raise StatisticsError(f"`{name}` are not all from {least} to 2^53, added up; {DAMAGED}")
    memory = read_memory(tensors, names, n_features, memory_size, counts)
    _check_sums("sums", sums, counts)
    _check_sums("forgotten_sums", tensors["forgotten_sums"], tensors["forgotten_counts"])
    _check_gram(gram, int(counts.sum() + tensors["forgotten_counts"].sum()))
    codes = _read_fingerprints(tensors, memory)
    return {
        "class_names": names,
        "counts": counts.clone(),
        "sums": sums.clone(),
        "gram": gram.clone(),
        "memory": memory,
        "learned": Fingerprints(codes[: len(names)]),
        "root": root,
        "case_sensitive": case_sensitive,
        "forgotten": _read_forgotten(tensors, forgotten_names, codes[len(names) :]),
    }


def read_former(former: Any, statistics: Mapping[str, Any]) -> dict[str, str]:
    """Names that classes had before -> names they have now, as stored.

    Raises:
        StatisticsError: They are no names, lead to no class, or a class has images under one.
    """
    if not isinstance(former, Mapping):
        raise StatisticsError(f"`former_names` is a {type(former).__name__}; {DAMAGED}")
    known, counts = statistics["class_names"], statistics["counts"].tolist()
    present = {name for name, n in zip(known, counts, strict=True) if n}
    for old, now in former.items():
        if _read_name(old) in present or _read_name(now) not in known:
            raise StatisticsError(f"`former_names` leads {old!r} to {now!r}; {DAMAGED}")
    return dict(former)


def read_origins(origins: Any) -> tuple[str, ...]:
    """Origins of features as stored.

    Raises:
        StatisticsError: They are no lines of text, not in order, or too many.
    """
    sound = isinstance(origins, list | tuple) and len(origins) <= _ORIGINS
    sound = sound and all(isinstance(one, str) and one.isprintable() for one in origins)
    if not sound or any(not 0 < len(one) <= _ORIGIN for one in origins):
        raise StatisticsError(f"`origins` are no lines of text; {DAMAGED}")
    if list(origins) != sorted({*origins}):
        raise StatisticsError(f"`origins` are not in order; {DAMAGED}")
    return tuple(origins)


def _read_forgotten(
    tensors: Mapping[str, Tensor], names: Sequence[str], codes: Sequence[Array]
) -> tuple[Forgotten, ...]:
    numbers, totals = tensors["forgotten_counts"].tolist(), tensors["forgotten_sums"]
    return in_order(
        Forgotten(_read_name(name), n, total.clone(), own)
        for name, n, total, own in zip(names, numbers, totals, codes, strict=True)
    )


def _read_fingerprints(tensors: Mapping[str, Tensor], memory: FeatureMemory) -> tuple[Array, ...]:
    """Fingerprints of every class and of what is left of every forgotten one, as stored.

    Raises:
        StatisticsError: They are more than there are images, not sorted, or lack those remembered.
    """
    remembered = [cell.fingerprints for cell in memory.cells]
    codes, sizes = (tensors.get(name) for name in ("fingerprints", "fingerprint_sizes"))
    if codes is sizes is None:
        return (*remembered, *[NONE] * len(tensors["forgotten_counts"]))
    if codes is None or sizes is None:
        raise StatisticsError(f"`fingerprints` or `fingerprint_sizes` is missing; {DAMAGED}")
    owners = torch.cat([tensors["counts"], tensors["forgotten_counts"]])
    _check_shapes(tensors, {"fingerprint_sizes": tuple(owners.shape)})
    n = int(sizes.sum())
    if (sizes < 0).any() or (sizes > owners).any() or codes.shape != (n,):
        raise StatisticsError(
            f"`fingerprints` has shape {tuple(codes.shape)} and `fingerprint_sizes` adds up to {n} "
            f"for {int(owners.sum())} images; {DAMAGED}"
        )
    found = np.split(codes.numpy().view(np.uint64), sizes.cumsum(0)[:-1].tolist())
    if any((own[1:] < own[:-1]).any() for own in found):
        raise StatisticsError(f"`fingerprints` are not in order; {DAMAGED}")
    # strict=False: what is left of forgotten classes has no memory beside it
    if any(len(less_one_of_each(*both)[1]) for both in zip(found, remembered, strict=False)):
        raise StatisticsError(f"`fingerprints` lack images that are remembered; {DAMAGED}")
    return tuple(own.copy() for own in found)


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
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= EXACT:
        raise StatisticsError(f"`memory_size` is {size!r}; it is a whole number of 0 or more")
    _check_shapes(tensors, {f"{prefix}_sizes": (len(names),)})
    if (sizes < 0).any() or (sizes > size).any():
        raise StatisticsError(f"`{prefix}_sizes` are not all from 0 to {size}; {DAMAGED}")
    n_rows = int(sizes.sum())
    _check_shapes(tensors, {prefix: (n_rows, n_features), f"{prefix}_copies": (n_rows,)})
    # -32768 fits 16 bits, and no feature on the grid is below -32767
    if (copies < 1).any() or (copies > EXACT).any() or (rows == -GRID).any():
        raise StatisticsError(f"`{prefix}` holds what no feature gives; {DAMAGED}")
    cells = _read_cells(rows, sizes.tolist(), copies, prefix)
    if counts is not None and any(
        cell.n_copies > n for cell, n in zip(cells, counts.tolist(), strict=True)
    ):
        raise StatisticsError(f"`{prefix}` remembers more images than there are; {DAMAGED}")
    memory, groups = FeatureMemory(size, n_features, names, tuple(cells)), f"{prefix}_groups"
    if groups in tensors:
        _check_shapes(tensors, {groups: (n_rows,)})
        memory = memory.with_given(tensors[groups].tolist())
    return memory


def _read_cells(rows: Tensor, sizes: list[int], copies: Tensor, prefix: str) -> list[Cell]:
    hashes, empty = tuple(feature_hashes(rows.numpy())), Cell(rows[:0].clone())
    cells, stop = [], 0
    for n in sizes:
        start, stop = stop, stop + n
        if not n:
            cells.append(empty)
            continue
        if any(a >= b for a, b in itertools.pairwise(hashes[start:stop])):
            raise StatisticsError(f"`{prefix}` is not in the order of its hashes; {DAMAGED}")
        own = tuple(copies[start:stop].tolist())
        # cloned: a view would hold the table of all classes as long as it lives
        cells.append(Cell(rows[start:stop].clone(), hashes[start:stop], own))
    return cells


def _read_names(class_names: Sequence[str], case_sensitive: bool) -> tuple[str, ...]:
    """Class names as stored, which must be clean and distinct already.

    Raises:
        StatisticsError: They are not.
    """
    names = tuple(map(_read_name, _read_list(class_names)))
    try:
        check_distinct(names, case_sensitive=case_sensitive)
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


DAMAGED = "the statistics are damaged: read them from another copy"


def _check_tensors(tensors: Mapping[str, Tensor], types: Mapping[str, torch.dtype]) -> None:
    """Raise StatisticsError unless these are the tensors of `types`, and their numbers finite.

    Those that are optional may be missing.
    """
    missing = sorted(set(types) - set(OPTIONAL_TENSORS) - set(tensors))
    extra = sorted(set(tensors) - set(types))
    if missing or extra:
        raise StatisticsError(f"tensors missing: {missing}, unexpected: {extra}; {DAMAGED}")
    for name, tensor in tensors.items():
        dtype = types[name]
        if not isinstance(tensor, Tensor) or tensor.dtype != dtype:
            seen = getattr(tensor, "dtype", type(tensor).__name__)
            raise StatisticsError(f"`{name}` is {seen} and not {dtype}; {DAMAGED}")
        if dtype.is_floating_point and not torch.isfinite(tensor).all():
            raise StatisticsError(f"`{name}` holds NaN or infinity; {DAMAGED}")


def _check_shapes(tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise StatisticsError at the first tensor of another shape."""
    for name, shape in shapes.items():
        if tuple(tensors[name].shape) != shape:
            raise StatisticsError(
                f"`{name}` has shape {tuple(tensors[name].shape)} and not {shape}; {DAMAGED}"
            )


def _check_sums(name: str, sums: Tensor, counts: Tensor) -> None:
    """Raise StatisticsError unless rows (C,D) can be sums of so many features on the grid.

    These are whole numbers, and no longer than that many vectors of length 1 and their rounding.
    """
    longest = counts.to(torch.float64) * (GRID + math.sqrt(sums.shape[1]))
    if (sums != sums.round()).any() or (sums.norm(dim=1) > longest).any():
        raise StatisticsError(f"`{name}` are not sums of that many features; {DAMAGED}")


def _check_gram(gram: Tensor, n: int) -> None:
    """Raise StatisticsError unless a square (D,D) can be the products of `n` features on the grid.

    These are whole numbers, symmetric, within Cauchy-Schwarz, and no larger in all than those of
    `n` vectors of length 1.
    """
    diagonal = gram.diagonal()
    # embedded features have length 1, but for their rounding to the grid
    smallest, largest = (n * (GRID + off * math.sqrt(len(gram))) ** 2 for off in (-1, 1))
    wrong = (
        (gram != gram.round()).any()
        or not torch.equal(gram, gram.T)
        or (diagonal < 0).any()
        or (diagonal > min(n * float(LARGEST) ** 2, EXACT - 1)).any()
        or not smallest <= diagonal.sum() <= largest
    )
    root = diagonal.clamp_min(0).sqrt()
    # 1e-9 for the rounding of the roots
    if wrong or (gram.abs() > torch.outer(root, root) * (1 + 1e-9)).any():
        raise StatisticsError(f"`gram` is no sum of products of {n} features; {DAMAGED}")


def parted_tensors(
    tensors: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(tensors of the statistics, those of the validation memory) of a state.

    Raises:
        StatisticsError: Tensors are missing or unexpected, or of another type.
    """
    _check_tensors(tensors, TENSOR_TYPES)
    validation = {name for name in tensors if name.startswith(_VALIDATION)}
    own = {name: tensor for name, tensor in tensors.items() if name not in validation}
    return own, {name: tensors[name] for name in validation}


def check_width(n_features: int, settings: Settings) -> None:
    """Raise StatisticsError unless statistics of this width belong to the settings."""
    if n_features != settings.n_features:
        raise StatisticsError(
            f"`gram` is {n_features} wide and the settings say {settings.n_features}; "
            "the state is damaged"
        )


def read_config(config: Any) -> dict[str, Any]:
    """The configuration of a state with all its keys, those included that later formats brought.

    Raises:
        StatisticsError: It is none, or of a format that is not read here.
        NewerStateError: It is of a newer one.
    """
    number = config.get("format", FORMAT) if isinstance(config, Mapping) else FORMAT
    if isinstance(number, bool) or number not in range(1, FORMAT + 1):
        kind = NewerStateError if type(number) is int and number > FORMAT else StatisticsError
        raise kind(
            f"the state is of format {number!r}; this learnkit reads 1 to {FORMAT}: use a newer "
            "learnkit"
        )
    whole = {**OPTIONAL_CONFIG, **config} if isinstance(config, Mapping) else {}
    if set(whole) != _CONFIG:
        seen = sorted(map(str, config)) if isinstance(config, Mapping) else type(config).__name__
        raise StatisticsError(f"the configuration has {seen}; it must have {sorted(_CONFIG)}")
    return whole


def in_this_format(config: Any) -> Any:
    """A configuration as one of this format would say it, to compare it with others."""
    if not isinstance(config, Mapping) or not isinstance(config.get("settings"), Mapping):
        return config
    settings = {**OPTIONAL_SETTINGS, **config["settings"]}
    return {**OPTIONAL_CONFIG, **config, "settings": settings, "format": FORMAT}


def read_settings(values: Any) -> Settings:
    """Settings as stored, or StatisticsError."""
    try:
        whole = {**OPTIONAL_SETTINGS, **values} if isinstance(values, Mapping) else values
        return Settings.from_dict(whole)
    except OodInsufficientDataError as error:
        raise StatisticsError(str(error)) from error


def read_threshold(value: Any) -> float | None:
    """A threshold set by hand as stored, or StatisticsError."""
    if value is None:
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not abs(value) <= float_info.max:  # `isfinite` raises for a huge int
        raise StatisticsError(f"`threshold` is {value!r:.80}; it is a finite number or null")
    return float(value)


def state_digest(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) of a state."""
    found = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        # names, types and shapes between zeros: no two states run together into the same bytes
        found.update(f"\0{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        found.update(tensor.contiguous().numpy())
    return found.hexdigest()
