"""Contexts of a pass over a model: what it changes for a while is put back whatever happens."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from learnkit.errors import InterpretationError
from learnkit.interpret.checks import detached


@contextmanager
def pooled_features(model: nn.Module, wanted: bool) -> Iterator[list[Tensor]]:
    """Yield a list that receives the pooled output of the body at each forward pass."""
    seen: list[Tensor] = []
    if not wanted:
        yield seen
        return
    if not isinstance(model, nn.Sequential) or len(model) < 2:
        raise InterpretationError(
            f"`with_features=True` needs a model nn.Sequential(body, head), this one is a"
            f" {type(model).__name__}"
        )

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
        pooled = output.mean((2, 3)) if output.ndim == 4 else output.flatten(1)
        seen.append(detached(pooled).float().cpu())

    handle = model[0].register_forward_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


@contextmanager
def randomness_kept() -> Iterator[None]:
    """Restore the random states of torch, numpy and `random`: loaders draw from them."""
    plain_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(plain_state)
        np.random.set_state(numpy_state)  # noqa: NPY002  # fastai draws from the global state
