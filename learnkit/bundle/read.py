"""A bundle read as a model: the variant that is meant, checked before use."""

from __future__ import annotations

import os

from learnkit.bundle.read_float32 import read_float32
from learnkit.bundle.read_variant import load_variant, which_variant
from learnkit.bundle.schema import newer_is_told
from learnkit.bundle.variant import FLOAT32, warn_behind
from learnkit.inference.model import Model


def read(
    path: str | os.PathLike,
    *,
    variant: str | None = None,
    sha256: str | None = None,
    device: str = "cpu",
    threads: int | None = None,
) -> Model:
    """The model in the bundle at `path`; arguments and errors as of `load_learner`."""
    opened = which_variant(path, variant, sha256)
    with newer_is_told(opened.section):
        if opened.name == FLOAT32:
            model = read_float32(path, sha256=sha256, device=device)
        else:
            model = load_variant(path, opened, device=device, threads=threads)
    warn_behind(path, opened.section, opened.name)
    return model
