"""Features of a learner's images: one pass, as its validation reads them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import learnkit._torchvision  # noqa: F401  # before fastai

import numpy as np
import torch
from fastai.data.core import TfmdLists
from fastai.torch_core import to_device
from PIL import Image
from torch import Tensor

from learnkit.backends.session import CHANNELS_LAST, Session, feature_origin
from learnkit.backends.torch_session import Network
from learnkit.data.read_images import image_name, unreadable_images
from learnkit.errors import DataError, ExportError, PredictionError
from learnkit.inference.batch import BATCH, padded
from learnkit.inference.features import ENGINES, feature_rows, learning_session
from learnkit.interpret.learner_state import class_names, detector_of
from learnkit.interpret.normalization import renormalization
from learnkit.interpret.source import Source, detached, n_steps_to_file
from learnkit.learner.transforms import preprocessing_of
from learnkit.models.eval_mode import evaluating, is_channels_last, randomness_kept
from learnkit.report.progress import watched

_PICTURES = str | Path | bytes | Image.Image | np.ndarray | Tensor


def features_of(learn: Any, items: Any, engine: str | None = None) -> Tensor:
    """Pooled features float32 (N, D) of images, in order, as the learner's validation reads them.

    Files and pictures go the way they go in deployment, so that a deployed model and the learner
    learn the same from them. Where no recipe says how they are read, the learner's loaders read
    them.

    Args:
        learn: the learner; its model is left in the modes it is in.
        items: files or pictures, or a `Source` of batches.
        engine: see `learning_session`; that of what the learner knows, without.

    Raises:
        UnreadableImagesError: images cannot be read; all of them are named.
        PredictionError: neither a recipe nor the loaders can read them.
        DataError: there is no such engine, or it cannot read them.
    """
    show = hasattr(learn, "progress")
    if engine not in (None, ENGINES[0]):
        _check_engine(learn, items, engine)
    if isinstance(items, Source):
        return _of_batches(learn, items.batches(), items.template, show)
    if not len(items) and hasattr(learn.model[0], "n_features"):
        return torch.empty(0, learn.model[0].n_features)
    if (problem := unreadable_by_recipe(learn)) is not None:
        return _by_loader(learn, items, problem, show)
    recipe, network = preprocessing_of(learn.dls), _session(learn, engine)
    return feature_rows(network, recipe, items, bs=BATCH, n_workers=2, progress=show)


def _check_engine(learn: Any, items: Any, engine: str) -> None:
    """Raise DataError unless an engine apart from torch can read the images."""
    if engine not in ENGINES:
        raise DataError(f"`engine` is {engine!r}; it must be one of {', '.join(ENGINES)}")
    problem = unreadable_by_recipe(learn)
    if problem is not None or isinstance(items, Source):
        raise DataError(
            f"`engine`={engine!r} reads files by a recipe, and here loaders read the images"
            f"{f' ({problem})' if problem else ''}; give files or an ImageDataset as `data`, or "
            "leave `engine` out"
        )


def _session(learn: Any, engine: str | None) -> Session:
    """What reads features by the learner's recipe."""
    network = Network(learn.model, preprocessing_of(learn.dls), owned=False, continual=True)
    known = detector_of(learn)
    return learning_session(network, () if known is None else known.statistics.origins, engine)


def origin_of(learn: Any, items: Any, engine: str | None = None) -> str:
    """The origin of the features that `features_of` gives, see `feature_origin`."""
    is_source = isinstance(items, Source)
    if not is_source and unreadable_by_recipe(learn) is None:
        return _session(learn, engine).origin(BATCH)
    batch = "a loader's size" if is_source else BATCH
    device = str(next((p.device for p in learn.model.parameters()), "cpu"))
    layout = CHANNELS_LAST if device == "cpu" and is_channels_last(learn.model[0]) else ""
    return feature_origin("torch", "float32", device, batch, layout)


def features_and_logits(learn: Any, items: Any, n_classes: int) -> tuple[Tensor, Tensor]:
    """What `features_of` gives, and the logits (N, n_classes) of the trained head; one pass."""
    show = hasattr(learn, "progress")
    if isinstance(items, Source):
        both = _of_batches(learn, items.batches(), items.template, show, with_logits=True)
    elif (problem := unreadable_by_recipe(learn)) is not None:
        both = _by_loader(learn, items, problem, show, with_logits=True)
    else:
        recipe = preprocessing_of(learn.dls)
        network = Network(learn.model, recipe, owned=False)
        read = lambda images: np.concatenate(network.run(images), 1)
        run = {"bs": BATCH, "n_workers": 2, "progress": show, "read": read}
        both = feature_rows(network, recipe, items, **run)
    return both[:, :-n_classes], both[:, -n_classes:]


def unreadable_by_recipe(learn: Any) -> ExportError | None:
    """Why no recipe says how the learner reads files; None where one does."""
    try:
        preprocessing_of(learn.dls)
    except ExportError as problem:
        return problem
    return None


def loader_over(learn: Any, items: Sequence[Any], bs: int, problem: ExportError) -> Any:
    """Batches of files or pictures without labels, read as the learner's loaders validate.

    Args:
        learn: the learner.
        items: one or more.
        bs: images per batch.
        problem: why no recipe reads them, for the message.

    Raises:
        PredictionError: The loaders cannot read such items.
    """
    valid = learn.dls.valid
    known = getattr(valid.dataset, "items", None)
    first = known[0] if known is not None and not hasattr(known, "iloc") and len(known) else None
    try:
        for item in items:
            if not isinstance(item, _PICTURES | type(first)):
                raise TypeError(f"{type(item)} is no file and no picture")
        if isinstance(valid.dataset, TfmdLists) or hasattr(valid.dataset, "tls"):
            if isinstance(first, Path):
                items = [Path(item) if isinstance(item, str) else item for item in items]
            items = [_as_file(item) if isinstance(item, Image.Image) else item for item in items]
            n_steps = n_steps_to_file(valid.dataset) or 0
            return learn.dls.test_dl(items, rm_type_tfms=n_steps, num_workers=0, bs=bs)
        dataset = valid.dataset
        while not hasattr(dataset, "loader") and hasattr(dataset, "dataset"):
            dataset = dataset.dataset  # a Subset's
        tensors = [
            item if isinstance(item, Tensor) else dataset.transform(dataset.loader(item))
            for item in items
        ]
    except (AssertionError, AttributeError, TypeError) as error:  # fastai's, of items it minds
        told = (str(error) or type(error).__name__).splitlines()[-1].strip()
        raise PredictionError(
            f"`items` cannot be read by the learner's loaders: {told}. No recipe can read them "
            f"either: {problem}"
        ) from error
    return [(torch.stack(tensors[i : i + bs]),) for i in range(0, len(tensors), bs)]


def _as_file(picture: Image.Image) -> bytes:
    """A picture as the bytes of a file, which loaders open as they open files."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def read_by_loader(
    learn: Any, items: Sequence[Any], problem: ExportError
) -> tuple[np.ndarray, np.ndarray]:
    """Features (N, D) and logits (N, C) of items that the learner's loaders read."""
    both = _by_loader(learn, items, problem, show=False, with_logits=True).numpy()
    n_classes = len(class_names(learn) or ())
    return np.split(both, [both.shape[1] - n_classes], 1)


def _by_loader(
    learn: Any, items: Sequence[Any], problem: ExportError, show: bool, with_logits: bool = False
) -> Tensor:
    """Features (and logits) of items that the learner's loaders read.

    Raises:
        UnreadableImagesError: images cannot be read; all of them are named.
    """
    # filled up, so that an image's features do not depend, to the bit, on which others are there
    filled = padded(items, -(-len(items) // BATCH) * BATCH)
    try:
        loader = loader_over(learn, filled, BATCH, problem)
        return _of_batches(learn, loader, loader, show, with_logits)[: len(items)]
    except OSError as error:
        failures = unreadable(learn, items)
        if not failures:
            raise
        raise unreadable_images(failures, len(items), "nothing was changed") from error


def unreadable(learn: Any, items: Sequence[Any]) -> dict[str, str]:
    """Why the learner's loaders cannot read images, by their names."""
    failures, problem = {}, ExportError("no recipe was asked")
    for number, item in enumerate(items):
        try:
            list(loader_over(learn, [item], 1, problem))
        except OSError as error:  # noqa: PERF203  # after a pass has failed
            failures[image_name(item, number)] = str(error)
    return failures


def _of_batches(
    learn: Any, loader: Any, template: Any, show: bool, with_logits: bool = False
) -> Tensor:
    """Features (and logits) of what a loader gives, in its own batches.

    `template` is the loader whose pixels they are.
    """
    device = next((p.device for p in learn.model.parameters()), torch.device("cpu"))
    rows, pixels = [], renormalization(learn, template)
    with randomness_kept(), evaluating(learn.model), torch.no_grad():
        for batch in watched(loader, None, show, "features", "batches"):
            images = batch[0] if isinstance(batch, list | tuple) else batch
            images = images if pixels is None else pixels(images)
            feature_map = learn.model[0](to_device(detached(images), device))
            row = feature_map.to(torch.float32).mean((2, 3))
            if with_logits:
                row = torch.cat([row, learn.model[1](feature_map).to(torch.float32)], 1)
            rows.append(row.cpu())
    if not rows:
        raise DataError("`data` has no images; give a loader over at least one")
    return torch.cat(rows)
