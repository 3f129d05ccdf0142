"""A model written as a bundle: a folder of data, whole or not there."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from learnkit._version import versions
from learnkit.bundle.schema import PACKAGES, SCHEMA
from learnkit.bundle.siblings import siblings_in, with_siblings
from learnkit.bundle.write_float32 import float32_files
from learnkit.bundle.write_variant import bundle_with_variants
from learnkit.continual.knowledge import UNDO_LEVELS
from learnkit.errors import ExportError, warned_after
from learnkit.inference.model import Model
from learnkit.storage.write_folder import write_folder


class Written(NamedTuple):
    """The digest of a bundle, and what a model in it is to remember of its other files."""

    digest: str
    siblings: Any


@warned_after
def write(
    path: str | os.PathLike,
    model: Model,
    *,
    card: Mapping[str, Any] | None = None,
    probes: Tensor | None = None,
    others: Sequence[Model] = (),
    variants: bool = True,
    history: int = UNDO_LEVELS,
) -> Written:
    """SHA-256 (hex) of the manifest of the bundle written to `path`, and the model's siblings.

    Args:
        path: absent, an empty folder or an earlier bundle, which is replaced as a whole.
        model: what the bundle opens as: weights as trained, or a converted network.
        card: see `model_card`; for weights as trained.
        probes: see `float32_files`; for weights as trained.
        others: further variants of the same model.
        variants: also those of the bundle that the model came from.
        history: states before the last changes that go along, 0 to 3.

    Raises:
        ExportError: something cannot travel as data, a weight is not finite, the network that is
            rebuilt from the data computes something else, `others` are of another model, or
            `history` is no number from 0 to 3.
        BundleError: the float32 weights of a converted network are not where they were.
        BundleWriteError: the folder could not be written; what stood there still does.
    """
    if type(history) is not int or not 0 <= history <= UNDO_LEVELS:
        raise ExportError(
            f"`history`={history!r}; of the states before the last changes 0 to {UNDO_LEVELS} go "
            "along"
        )
    along = {"variants": variants, "history": history}
    if model.variant is not None:
        given, base = (*others, model), model.siblings
        files = bundle_with_variants(base, given, default=model, **along)
        return Written(_written(path, files), base)
    own = float32_files(model, card=card, probes=probes, history=history)
    base = with_siblings(own, model.siblings)
    if others or model.siblings is not None:
        files = bundle_with_variants(base, others, default=None, **along)
    else:
        files = base.read()
    return Written(_written(path, files), siblings_in(path, files))


def _written(path: str | os.PathLike, files: Mapping[str, bytes]) -> str:
    return write_folder(path, files, about={"schema": SCHEMA, "versions": versions(*PACKAGES)})
