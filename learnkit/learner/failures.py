"""Failures of torch that say little, raised again with what they mean and what to do."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from learnkit.errors import WeightsError, WorkerError


@contextmanager
def explained_workers(learn: Any) -> Iterator[None]:
    """Raise WorkerError, naming the ways out, when a reading process has died."""
    try:
        yield
    except RuntimeError as error:
        if not re.search(r"DataLoader worker .*(exited unexpectedly|killed by signal)", str(error)):
            raise
        raise WorkerError(
            f"a reading process died in a pass of {len(learn.dl)} batches: {error}. Usually "
            "memory ran out, or the shared memory in /dev/shm: use a smaller `bs` or fewer "
            "`num_workers`; with num_workers=0 an unreadable image is named"
        ) from error


@contextmanager
def explained_mismatch(model: nn.Module, file: Any) -> Iterator[None]:
    """Raise WeightsError with the first difference when a state dict does not fit `model`."""
    try:
        yield
    except RuntimeError as error:
        if "Error(s) in loading state_dict" not in str(error):
            raise
        lines = [line.strip() for line in str(error).splitlines()[1:]]
        raise WeightsError(
            f"{str(file)!r} does not fit this network ({len(lines)} kinds of differences, first: "
            f"{lines[0][:200]}); build the learner with the architecture, head and number of "
            "classes that were saved"
        ) from error
