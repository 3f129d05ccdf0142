"""From an `ImageDataset` to the fastai DataLoaders a learner trains on."""

import copy
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import learnkit._torchvision  # noqa: F401  # before fastai

import numpy as np
from fastai.data.core import DataLoaders, Datasets, TfmdDL
from fastai.data.transforms import (
    Categorize,
    EncodedMultiCategorize,
    IntToFloatTensor,
    MultiCategorize,
    Normalize,
    OneHotEncode,
    ToTensor,
)
from fasttransform import Pipeline, Transform

from learnkit.data.arguments import check_number
from learnkit.data.dataset import ImageDataset
from learnkit.data.image import image_size
from learnkit.data.preprocess import Preprocessing
from learnkit.errors import DataError, ImageReadError, warn_user
from learnkit.learner.augmentation import batch_augmentation, item_augmentation
from learnkit.learner.transforms import LabelOf, ReadImage, ResizeLikeRecipe

_SPLITS = ("train", "valid", "test")
_MOST_CUT = 0.2  # share of the images' area
_N_SIZES = 200  # files whose headers are read to know it


def image_dataloaders(
    dataset: ImageDataset,
    *,
    size: int | tuple[int, int] = 224,
    bs: int = 64,
    augment: bool | Iterable | None = None,
    item_tfms: Iterable | None = None,
    channels: int = 3,
    method: str | None = None,
    preprocessing: Preprocessing | None = None,
    seed: int = 42,
    num_workers: int = 0,
    device: Any = None,
    **recipe: Any,
) -> DataLoaders:
    """Return fastai DataLoaders: train (shuffled), valid, and test when the dataset has one.

    All three read files through one `Preprocessing`, kept as `dls.preprocessing`; its mean and std
    are filled in by `cnn_learner` from the network. The dataset is kept as `dls.image_dataset`.

    Args:
        dataset: Split, with at least two training images and one validation image.
        size: Height and width in pixels; an int means a square.
        bs: Images per batch; lowered to the number of training images if that is smaller.
        augment: Batch transforms for training alone, one or many; True means fastai's
            `aug_transforms()`.
        item_tfms: Transforms of single training images in their original size, before the resize.
        channels: 3 (RGB) or 1 (grey).
        method: "crop", "squish" or "pad"; see `Preprocessing`. None is "crop", with a warning where
            that cuts off more than a fifth of the images' area.
        preprocessing: The whole recipe instead of `size`, `channels`, `method` and `recipe`.
        seed: Seeds the order of the training images.
        num_workers: Reading processes; 0 is fastest for small images.
        device: As in fastai; its default device when None.
        **recipe: Further fields of `Preprocessing`, such as `crop` or `bit_depth`.

    Raises:
        DataError: Too few images, or a label of valid or test does not occur in train; an argument
            is wrong, or `augment` has a transform that has to be for all images.
        SplitError: The dataset is not split.
    """
    check_number("bs", bs, least=1)
    check_number("seed", seed, least=0)
    if num_workers is not None:
        check_number("num_workers", num_workers, least=0)
    dataset.check_split()
    if preprocessing is None:
        fields = {"size": size, "channels": channels, "method": method or "crop", **recipe}
        preprocessing = Preprocessing(**fields)
        if method is None:
            _warn_of_cut(dataset.paths, preprocessing)
    batch_tfms = batch_augmentation(augment, preprocessing.size)
    item_tfms = _item_transforms(item_tfms, preprocessing)
    splits = [[i for i, s in enumerate(dataset.frame["split"]) if s == name] for name in _SPLITS]
    datasets = _datasets(dataset, preprocessing, [s for s in splits if s], resize=not item_tfms)
    n_train = len(datasets.train)
    bs = min(bs, n_train)
    dls = datasets.dataloaders(
        bs=bs,
        # A last batch of one image would break batch norm; every other image is used each epoch.
        drop_last=n_train % bs == 1,
        after_item=[*item_tfms, ToTensor()],
        after_batch=[IntToFloatTensor(), *batch_tfms],
        # Not the training pipeline: fastai's affine transforms resample validation images too.
        dl_kwargs=[{}] + [{"after_batch": [IntToFloatTensor()]}] * (datasets.n_subsets - 1),
        num_workers=num_workers,
        device=device,
    )
    for offset, dl in enumerate(dls.loaders):
        dl.rng = random.Random(seed + offset)
    dls.preprocessing, dls.image_dataset = preprocessing, dataset
    return dls


def _warn_of_cut(paths: Sequence[Path], preprocessing: Preprocessing) -> None:
    """Warn where a centred cut loses much of the images, by the headers of some of them."""
    places = np.linspace(0, len(paths) - 1, min(len(paths), _N_SIZES)).astype(int)
    shares = [_share_cut(paths[place], preprocessing) for place in places]
    shares = [share for share in shares if share is not None]
    cut = sum(shares) / max(1, len(shares))
    if cut > _MOST_CUT:
        height, width = preprocessing.size
        warn_user(
            f"fitting the images to {width} x {height} pixels cuts off {cut:.0%} of their area, by "
            'a centred crop: what lies there is not seen. `method="squish"` and '
            '`method="pad"` keep all of it; `method="crop"` goes on as now without this warning'
        )


def _share_cut(path: Path, preprocessing: Preprocessing) -> float | None:
    """Share of the image that is cut off; None if it cannot be read, which reading it will tell."""
    try:
        size = image_size(path, exif_transpose=preprocessing.exif_transpose)
    except ImageReadError:
        return None
    return preprocessing.share_cut(size)


def _datasets(
    dataset: ImageDataset, preprocessing: Preprocessing, splits: list[list[int]], *, resize: bool
) -> Datasets:
    """Return fastai Datasets of (image, encoded label) with one subset per split."""
    paths = list(dataset.paths)
    labels = dict(zip(paths, dataset.labels, strict=True))
    if len(labels) < len(paths):
        raise DataError(
            f"{len(paths) - len(labels)} files occur more than once in the dataset; a file has one "
            "label and one split: drop the repeated rows"
        )
    encoders = (
        [MultiCategorize(vocab=dataset.classes), OneHotEncode()]
        if dataset.multi_label
        else [Categorize(vocab=dataset.classes, sort=False)]
    )
    pipelines = [[ReadImage(preprocessing, resize=resize)], [LabelOf(labels), *encoders]]
    return Datasets(paths, pipelines, splits=splits, n_inp=1)


def _item_transforms(item_tfms: Any, preprocessing: Preprocessing) -> list[Transform]:
    """Return the training-only item transforms followed by the recipe's resize, or nothing."""
    transforms = item_augmentation(item_tfms)
    return [*transforms, ResizeLikeRecipe(preprocessing)] if transforms else []


def is_multi_label(dls: DataLoaders) -> bool:
    """Return True if a target is one 0 or 1 per class."""
    return any(
        isinstance(tfm, MultiCategorize | EncodedMultiCategorize | OneHotEncode)
        for tfm in dls.valid.dataset.tls[-1].tfms.fs
    )


def is_normalized(dls: DataLoaders) -> bool:
    """Return True if a `Normalize` already runs on the validation batches."""
    return any(isinstance(tfm, Normalize) for tfm in dls.valid.after_batch.fs)


def with_normalization(
    dls: DataLoaders, mean: Iterable[float], std: Iterable[float]
) -> DataLoaders:
    """Return DataLoaders that also normalise batches; the given ones stay as they are.

    Args:
        dls: DataLoaders without `Normalize`.
        mean: One value per channel, of pixels in 0..1.
        std: One value per channel.
    """
    new = copy.copy(dls)
    new.loaders = [_normalized(dl, tuple(mean), tuple(std)) for dl in dls.loaders]
    return new


def _normalized(dl: TfmdDL, mean: tuple, std: tuple) -> TfmdDL:
    """Return a copy of one loader, with its own place in the shuffling, that normalises."""
    state = random.getstate()  # a new loader draws its seed from the caller's generator
    normalize = Normalize.from_stats(mean, std, cuda=False)
    new = dl.new(after_batch=Pipeline([*dl.after_batch.fs, normalize]))
    random.setstate(state)
    new.rng.setstate(dl.rng.getstate())
    new.device = dl.device
    return new
