"""The file of a checkpoint: written atomically, read without executing anything in it."""

import os
import textwrap
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch

from learnkit.errors import CheckpointError
from learnkit.storage.filesystem import write_file

FORMAT = 1
ENTRIES = frozenset(
    ["format", "seed", "every", "phase", "epoch", "n_epochs", "run", "train_iter"]
    + ["model", "optimizer", "records", "recorder", "history"]
)


def read_checkpoint(file: str | os.PathLike) -> dict[str, Any]:
    """Content of a checkpoint, with its tensors on the CPU.

    Raises:
        CheckpointError: the file is missing, truncated, damaged, or of a newer format.
    """
    path = Path(file)
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {str(path)!r}; train without resuming first")
    try:
        _check_checksums(path)
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, LookupError, EOFError, UnpicklingError) as error:
        raise _damaged(path, str(error).splitlines()[0]) from error
    return _checked(path, saved)


def _check_checksums(path: Path) -> None:
    """Raise unless every record has its checksum, which `torch.load` does not check."""
    try:
        with zipfile.ZipFile(path) as archive:
            flipped = archive.testzip()
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise ValueError(str(error)) from error
    if flipped is not None:
        raise ValueError(f"wrong checksum of {flipped!r}")


def _checked(path: Path, saved: Any) -> dict[str, Any]:
    """`saved`, if it is what `write_checkpoint` writes."""
    if not isinstance(saved, dict) or not isinstance(saved.get("format"), int):
        raise CheckpointError(
            f"{str(path)!r} is not a checkpoint of a learnkit training; choose another file"
        )
    if saved["format"] > FORMAT:
        raise CheckpointError(
            f"checkpoint {str(path)!r} has format {saved['format']}, this learnkit reads up to "
            f"{FORMAT}; update learnkit"
        )
    if missing := sorted(ENTRIES - set(saved)):
        raise _damaged(path, f"{', '.join(missing)} missing")
    return saved


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"checkpoint {str(path)!r} is damaged ({why}); remove it and train without resuming"
    )


def write_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Replace `path` by a file of `state`, or raise and leave it as it was.

    Raises:
        CheckpointError: the disk refused.
    """
    try:
        write_file(path, lambda file: torch.save(plain_tree({"format": FORMAT, **state}), file))
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        raise CheckpointError(
            f"checkpoint {str(path)!r} could not be written ({_reason(error)}); the one before it "
            "is intact: free space, then resume"
        ) from error


def check_writable(path: Path) -> None:
    """Make the folder of `path` and raise unless files can be written into it."""
    trial = path.with_name(f".{path.name}.trial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(trial, lambda file: file.write(b"learnkit"))
        trial.unlink()
    except OSError as error:
        raise CheckpointError(
            f"checkpoint {str(path)!r} cannot be written ({_reason(error)}); choose another folder"
        ) from error


def check_same_run(path: Path, there: Mapping[str, str], here: Mapping[str, str]) -> None:
    """Raise with the first difference between the run that wrote `path` and this one."""
    for name in [*there, *(n for n in here if n not in there)]:
        if there.get(name) != here.get(name):
            raise CheckpointError(
                f"checkpoint {str(path)!r} belongs to another run: {name} is "
                f"{_short(there.get(name))} there and {_short(here.get(name))} here; repeat the "
                "run it came from, or start again with another file"
            )


def plain_tree(value: Any) -> Any:
    """The same tree of plain Python and torch objects, as `torch.load(weights_only=True)` wants it.

    >>> plain_tree({"lr": np.float64(0.5), "sizes": (1, np.int64(2))})
    {'lr': 0.5, 'sizes': (1, 2)}
    """
    if isinstance(value, torch.Tensor):
        return value.detach().as_subclass(torch.Tensor)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {plain_tree(k): plain_tree(v) for k, v in value.items()}
    if isinstance(value, tuple):
        return tuple(map(plain_tree, value))
    if value is None or isinstance(value, str | int | float):
        return value
    return [plain_tree(v) for v in value]  # a list, or fastcore's L


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error).splitlines()[0]


def _short(text: str | None) -> str:
    return "absent" if text is None else repr(textwrap.shorten(text, 60, placeholder=" ..."))
