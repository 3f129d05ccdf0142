"""fastai's `export.pkl`: refused, unless the caller says that its author is trusted.

The one place below the learner that knows fastai, and it imports it by name, when called.
"""

import hashlib
import importlib
import io
import pickle
from pathlib import Path
from typing import Any

import torch

from learnkit.errors import BundleCorruptError, BundleError
from learnkit.storage.read_folder import MANIFEST


def pickle_at(path: Path) -> Path | None:
    """The file that looks like fastai's export, if there is one and no bundle."""
    if path.is_file():
        return path
    inside = path / "export.pkl"
    return inside if inside.is_file() and not (path / MANIFEST).exists() else None


def load_pickle(path: Path, sha256: str | None, device: Any, allow_pickle: bool) -> Any:
    """Fastai's Learner in `path`; fastai is imported by name, nothing else here knows it."""
    if not allow_pickle:
        raise BundleError(
            f"{path} is a file, as fastai's export writes it: a pickle, which runs whatever code "
            "its author put in as soon as it is loaded. Export the model with learn.export(folder) "
            "instead; if you trust who wrote the file, use load_learner(path, allow_pickle=True)"
        )
    file: Any = path
    if sha256 is not None:  # before it is loaded: loading alone runs what is in it
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != sha256:
            raise BundleCorruptError(f"{path} is not the pinned file: its sha256 is not {sha256}")
        file = io.BytesIO(data)  # these very bytes: another file may stand there by now
    load = importlib.import_module("fastai.learner").load_learner
    try:
        # fastai knows the CPU and its default device, and no other
        return load(file, cpu=torch.device(device).type == "cpu")
    except (AttributeError, ImportError, EOFError, pickle.UnpicklingError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise BundleError(
            f"{path} cannot be unpickled here: {reason}. Functions and classes of its author must "
            "be where they were when it was written: define or import them first, in Python, and "
            "load the file there"
        ) from error
