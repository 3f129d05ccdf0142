"""The steps from a folder of images to a model that predicts, shared by the commands.

Plain functions over the parts: each takes what the one before returned. Nothing here prints, and
fastai is imported by the functions that train, so that predicting goes without it.
"""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from learnkit.data.image import find_images
from learnkit.errors import CheckpointError, DataError, warn_user

if TYPE_CHECKING:
    from learnkit.callback.checkpoint import Checkpoint
    from learnkit.data.dataset import ImageDataset
    from learnkit.interpret.classification import ClassificationInterpretation
    from learnkit.learner.learner import ImageLearner

_MOST_WATCHED = 200  # training images whose error is measured each epoch; a pass of its own


@dataclass(frozen=True)
class TrainingPlan:
    """Everything that decides what a training on given images results in.

    Attributes:
        arch: name of the architecture.
        pretrained: True for published weights, False for random ones, or a weights file.
        size: height and width of the images in pixels.
        epochs: over the whole network; pretrained ones train the head alone for one epoch before.
        head_only: leave a pretrained body as it is, norm layers included, and train the head.
        bs: images per batch.
        lr: highest learning rate; None for 0.002 (pretrained) or 0.01.
        seed: of everything random.
        channels: 3 for colour, 1 for grey, or what the files have, up to 16.
        augment: vary the training images as fastai does by default.
        method: how images become square: "crop", "squish" or "pad"; None crops and tells of it.
        arch_kwargs: further arguments of the architecture.
        mean: normalisation of the images, one value per channel; None for that of the weights.
        std: see `mean`.
        check_weights: compare the likely ways to normalise and pad, and take the best.
        precision: of training steps, see `cnn_learner`.
        balance: draw training images by class, see `ImageDataset.dataloaders`.
        class_weights: weigh classes inversely to their numbers of images, in training losses.
        group: what it finds in a path belongs together and is not split; None splits every image.
        store: folder that decoded images are kept in; it changes no result.
    """

    arch: str = "resnet18"
    pretrained: bool | str = True
    size: int = 224
    epochs: int = 3
    head_only: bool = False
    bs: int = 64
    lr: float | None = None
    seed: int = 42
    channels: int = 3
    augment: bool = False
    method: str | None = None
    arch_kwargs: dict[str, Any] = field(default_factory=dict)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    check_weights: bool = False
    precision: str = "auto"
    balance: bool | str = False
    class_weights: bool = False
    group: str | None = None
    store: Path | None = None

    @property
    def max_lr(self) -> float:
        """The highest learning rate, decided."""
        return self.lr or (0.002 if self.pretrained else 0.01)

    @property
    def n_epochs(self) -> int:
        """Epochs in all, that of the head alone included."""
        return self.epochs + (bool(self.pretrained) and not self.head_only)


def read_dataset(
    folder: str | Path,
    *,
    seed: int = 42,
    group: str | None = None,
    case_sensitive: bool = False,
) -> ImageDataset:
    """The images below `folder`, split as its folders say, else 70/15/15 by class and by group.

    Groups that the folders put into several splits are told of.

    Raises:
        DataError: no such folder, no images, nothing to validate on, or no group for an image.
    """
    from learnkit.data.dataset import ImageDataset  # here: predicting needs no pandas
    from learnkit.data.groups import note_on_split_groups

    data = ImageDataset.from_folder(folder, case_sensitive=case_sensitive)
    if not data.splits:
        return data.split(0.7, 0.15, 0.15, seed=seed, group=group)
    if group is not None:
        note = note_on_split_groups(data.groups(group), data.labels, data.frame["split"].tolist())
        if note:
            warn_user(note)
    return data


def held_out(data: ImageDataset) -> tuple[str, ImageDataset]:
    """Name and images a model is evaluated on: the test images, else the validation images."""
    if not data.splits:
        return "all", data
    name = next((name for name in ("test", "valid") if name in data.splits), data.splits[0])
    return name, getattr(data, name)


def size_of_weights(arch: str, weights: Path | None) -> int:
    """Height and width that a weights file says its network was trained with; 224 without."""
    from learnkit.models.weights import stated_recipe

    if weights is None or not weights.is_file():
        return TrainingPlan.size
    height, width = stated_recipe(weights, arch, decided=True).size or (0, 0)
    # a plan has one number for both sides
    return height if height == width > 0 else TrainingPlan.size


def build_learner(data: ImageDataset, plan: TrainingPlan) -> ImageLearner:
    """An untrained learner; the same plan and images give the same weights."""
    import learnkit._torchvision  # noqa: F401  # before fastai

    import torch
    from fastai.metrics import accuracy, accuracy_multi

    from learnkit.callback.frozen_features import FrozenFeatures
    from learnkit.callback.history import TrainingHistory
    from learnkit.learner.factory import cnn_learner

    n_watched = max(20, min(_MOST_WATCHED, len(data.train) // 5))
    history = TrainingHistory(None if plan.head_only else n_watched, seed=plan.seed)
    # before the network, whose first weights are drawn
    random.seed(plan.seed)
    np.random.seed(plan.seed % 2**32)  # noqa: NPY002  # fastai draws from the global state
    torch.manual_seed(plan.seed)
    dls = data.dataloaders(
        size=plan.size,
        bs=plan.bs,
        augment=plan.augment,
        method=plan.method,
        channels=plan.channels,
        balance=plan.balance,
        store=plan.store,
        seed=plan.seed,
    )
    with warnings.catch_warnings():
        # `input_said` says it, with what to do on the command line
        warnings.filterwarnings("ignore", "weights file .* does not say how|`check_weights`: ")
        return cnn_learner(
            dls,
            plan.arch,
            plan.pretrained,
            normalize=True if plan.mean is None else (plan.mean, plan.std),
            check_weights=plan.check_weights,
            arch_kwargs=dict(plan.arch_kwargs),
            metrics=accuracy_multi if data.multi_label else accuracy,
            train_bn=not plan.head_only,
            precision=plan.precision,
            class_weights=plan.class_weights,
            cbs=[history, FrozenFeatures()] if plan.head_only else history,
        )


def input_said(learn: ImageLearner, plan: TrainingPlan) -> str:
    """How a weights file's images are normalised, and who says so; "" where there is none."""
    from learnkit.inference.weights_check import InputRecipe, assumption_of, stated

    body = learn.model[0]
    if learn.weights_check is not None:
        return str(learn.weights_check)
    if plan.mean is None and body.recipe_source:
        recipe = InputRecipe("", body.mean, body.std, body.arch_kwargs)
        return stated(recipe, body.recipe_source)
    assumed = "" if plan.mean else assumption_of(body)
    how = "; --weights-check compares the likely ones, --mean and --std say it"
    return f"{assumed}{how}" if assumed else ""


def precision_said(learn: ImageLearner, checkpoint: Checkpoint) -> str:
    """Which precision "auto" is in this training, and why; "" where another one was asked for."""
    from learnkit.callback.training_precision import precision_said

    checkpoint.resume_precision(learn)
    return precision_said(learn)


def checkpoint_of(file: Path, plan: TrainingPlan, *, resume: bool) -> Checkpoint:
    """A checkpoint in `file`: of a new training, or the one to go on from.

    Raises:
        CheckpointError: nothing to resume, or another training stands there unfinished.
    """
    from learnkit.callback.checkpoint import Checkpoint

    # A checkpoint notes which precision "auto" was; from a store come the same pixels.
    left_out = {"epochs", "precision", "store"}
    config = {k: v for k, v in asdict(plan).items() if k not in left_out}
    if resume:
        # What a plan did not say yet was as it is by default now.
        return Checkpoint.resume(file, config=config, unsaid=asdict(TrainingPlan()))
    if file.exists():
        raise CheckpointError(
            f"an unfinished training stands in {str(file)!r}; go on with it by --resume, or remove "
            "the file to start anew"
        )
    return Checkpoint(file, seed=plan.seed, config=config)


def train(learn: ImageLearner, plan: TrainingPlan, *, cbs: Any = None) -> None:
    """Train by `plan`: pretrained networks are fine-tuned, others trained whole in one cycle."""
    if plan.pretrained and not plan.head_only:
        learn.fine_tune(plan.epochs, plan.max_lr, cbs=cbs)
    else:
        learn.fit_one_cycle(plan.epochs, plan.max_lr, cbs=cbs)


def watch(
    learn: ImageLearner, plan: TrainingPlan, write: Callable[[str], None]
) -> AbstractContextManager[None]:
    """While it is open, epochs of the plan are lines to `write`, and show progress within."""
    from learnkit.callback.history import watch_epochs

    return watch_epochs(learn, write, plan.n_epochs)


def interpret(learn: ImageLearner, images: ImageDataset) -> ClassificationInterpretation:
    """What the learner answers to `images`, after one pass."""
    from learnkit.interpret.classification import ClassificationInterpretation

    return ClassificationInterpretation.from_learner(learn, data=images)


def save_pictures(interp: ClassificationInterpretation, folder: Path) -> list[Path]:
    """Files written: confusion_matrix.png, top_losses.png (Grad-CAM), training_curve.png."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {
        "confusion_matrix.png": interp.plot_confusion_matrix(),
        "top_losses.png": _worst(interp),
        "training_curve.png": interp.learn.plot_history(),
    }
    return [save_figure(axes, folder / name) for name, axes in pictures.items()]


def _worst(interp: ClassificationInterpretation) -> Any:
    """The Axes of the nine worst mistakes; of the largest losses where there is no mistake."""
    how: dict[str, Any] = {"heatmap": True, "alpha": 0.45}
    if bool(interp.outputs.correct.all()):
        return interp.plot_top_losses(9, **how)
    return interp.plot_multi_top_losses(9, **how)


def images_for(predictor: Any, folder: Path) -> ImageDataset:
    """The images of a folder by class, which letters tell apart as they do for the model."""
    from learnkit.data.dataset import ImageDataset

    settings = getattr(getattr(predictor, "ood", None), "settings", None)
    return ImageDataset.from_folder(
        folder, case_sensitive=bool(settings and settings.case_sensitive)
    )


def images_at(paths: Iterable[str | os.PathLike]) -> list[Path]:
    """The files meant by `paths`: files as they are, folders by the images below them.

    Raises:
        DataError: a path does not exist, or a folder holds no image.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if not path.exists():
            raise DataError(f"there is no file or folder {str(path)!r}; check the spelling")
        below = find_images(path) if path.is_dir() else [path]
        if not below:
            raise DataError(f"the folder {str(path)!r} holds no images; choose another")
        found += below
    return found


def save_figure(axes: Any, path: Path) -> Path:
    """The file written with the figure that `axes` are part of; the figure is closed."""
    import matplotlib.pyplot as plt

    figure = np.ravel(axes)[0].figure
    figure.savefig(path, dpi=110, bbox_inches="tight", facecolor="white")
    # pyplot keeps what nobody closes
    plt.close(figure)
    return path
