"""From an `ImageDataset` to fastai DataLoaders, and from any DataLoaders back to a recipe.

`image_dataloaders` makes the loaders a learner trains on. `preprocessing_of` goes the other way:
it reads the validation transforms of any fastai image DataLoaders as data, so that training,
validation and deployment share one `Preprocessing`; a transform that is code is refused by name.
"""

import copy
import random
from collections.abc import Iterable
from typing import Any

import learnkit._torchvision  # noqa: F401  # before fastai

from fastai.data.core import DataLoaders, Datasets, TfmdDL
from fastai.data.transforms import (
    Categorize,
    IntToFloatTensor,
    MultiCategorize,
    Normalize,
    OneHotEncode,
    ToTensor,
)
from fastai.vision.augment import Resize, aug_transforms
from fastai.vision.core import PILBase, PILImage, PILImageBW
from fasttransform import Pipeline, Transform

from learnkit.data.dataset import ImageDataset
from learnkit.data.preprocess import Preprocessing
from learnkit.errors import DataError, ExportError

_SPLITS = ("train", "valid", "test")


class ReadImage(Transform):
    """File -> PIL image by the dataset's one recipe; with `resize=False` in its original size."""

    def __init__(self, preprocessing: Preprocessing, *, resize: bool = True):
        self.preprocessing, self.resize = preprocessing, resize

    def encodes(self, path):  # noqa: D102  # fastai's name for a transform's body
        p = self.preprocessing
        image = p.read(path) if self.resize else p.decode(path)
        return (PILImage if p.channels == 3 else PILImageBW)(image)


class ResizeLikeRecipe(Transform):
    """The recipe's own resize, after item-level augmentation: validation never differs."""

    order = 3  # after item-level augmentation (1), before ToTensor (5)

    def __init__(self, preprocessing: Preprocessing):
        self.preprocessing = preprocessing

    def encodes(self, image: PILBase):  # noqa: D102
        return type(image)(self.preprocessing.resize(image))


class LabelOf(Transform):
    """Path -> label by look-up: labels come from the table, a path is never parsed again."""

    def __init__(self, labels: dict):
        self.labels = labels

    def encodes(self, path):  # noqa: D102
        label = self.labels[path]
        return list(label) if isinstance(label, tuple) else label


def image_dataloaders(
    dataset: ImageDataset,
    *,
    size: int | tuple[int, int] = 224,
    bs: int = 64,
    augment: bool | Iterable | None = None,
    item_tfms: Iterable | None = None,
    channels: int = 3,
    method: str = "crop",
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
        augment: Batch transforms for training; True means fastai's `aug_transforms()`.
        item_tfms: Transforms of single training images in their original size, before the resize.
        channels: 3 (RGB) or 1 (grey).
        method: "crop", "squish" or "pad"; see `Preprocessing`.
        preprocessing: The whole recipe instead of `size`, `channels`, `method` and `recipe`.
        seed: Seeds the order of the training images.
        num_workers: Reading processes; 0 is fastest for small images.
        device: As in fastai; its default device when None.
        **recipe: Further fields of `Preprocessing`, such as `crop` or `bit_depth`.

    Raises:
        DataError: Too few images, or a label of valid or test does not occur in train.
        SplitError: The dataset is not split.
    """
    dataset.check_trainable()
    fields = {"size": size, "channels": channels, "method": method, **recipe}
    preprocessing = preprocessing or Preprocessing(**fields)
    splits = [[i for i, s in enumerate(dataset.frame["split"]) if s == name] for name in _SPLITS]
    datasets = _datasets(
        dataset, dataset.classes, preprocessing, [s for s in splits if s], resize=not item_tfms
    )
    n_train = len(datasets.train)
    bs = min(bs, n_train)
    dls = datasets.dataloaders(
        bs=bs,
        # A last batch of one image would break batch norm; every other image is used each epoch.
        drop_last=n_train % bs == 1,
        after_item=[*_item_transforms(item_tfms, preprocessing), ToTensor()],
        after_batch=[IntToFloatTensor(), *_batch_transforms(augment)],
        num_workers=num_workers,
        device=device,
    )
    for offset, dl in enumerate(dls.loaders):
        dl.rng = random.Random(seed + offset)
    dls.preprocessing, dls.image_dataset = preprocessing, dataset
    return dls


def loader_of(dataset: ImageDataset, dls: DataLoaders) -> TfmdDL:
    """Return an unshuffled loader of all images of `dataset`, read like the validation images of `dls`.

    Raises:
        DataError: `dataset` has a label that is no class of `dls`.
        ExportError: A validation transform of `dls` is code (see `preprocessing_of`).
    """
    classes = list(dls.vocab)
    if unknown := sorted(set(dataset.classes_present) - set(classes)):
        raise DataError(
            f"the dataset has labels {unknown} that the learner does not know; its classes are "
            f"{classes}: drop those images or train with them"
        )
    everything = list(range(len(dataset)))
    datasets = _datasets(dataset, classes, preprocessing_of(dls), [[], everything], resize=True)
    return dls.valid.new(datasets.subset(1))


def _datasets(
    dataset: ImageDataset,
    classes: list[str],
    preprocessing: Preprocessing,
    splits: list[list[int]],
    *,
    resize: bool,
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
        [MultiCategorize(vocab=classes), OneHotEncode()]
        if dataset.multi_label
        else [Categorize(vocab=classes, sort=False)]
    )
    pipelines = [[ReadImage(preprocessing, resize=resize)], [LabelOf(labels), *encoders]]
    return Datasets(paths, pipelines, splits=splits, n_inp=1)


def _item_transforms(item_tfms: Iterable | None, preprocessing: Preprocessing) -> list[Transform]:
    """Return the training-only item transforms followed by the recipe's resize, or nothing."""
    if not item_tfms:
        return []
    transforms = [copy.copy(tfm) for tfm in item_tfms]
    for tfm in transforms:
        tfm.split_idx = 0
    return [*transforms, ResizeLikeRecipe(preprocessing)]


def _batch_transforms(augment: bool | Iterable | None) -> list[Transform]:
    """Return the training-only batch transforms that `augment` stands for."""
    if augment is True:
        return aug_transforms()
    return list(augment or [])


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


def preprocessing_of(dls: DataLoaders) -> Preprocessing:
    """Return the recipe of the validation images, read off the transforms of any image DataLoaders.

    Training-only transforms are left out: they are no part of what a deployed model does. fastai's
    `PILImage.create` ignores EXIF orientation, and so does the recipe read off it.

    Raises:
        ExportError: A validation transform is code, or has no counterpart in `Preprocessing`.
    """
    valid = dls.valid
    fields: dict[str, Any] = {}
    opened = False
    for tfm in valid.dataset.tls[0].tfms.fs:
        opened = opened or isinstance(tfm, ReadImage) or _image_class(tfm) is not None
        if opened:
            fields |= _fields_of(tfm, "type_tfms")
    if not opened:
        raise ExportError(
            "`dls` does not open its images with PILImage.create or an ImageDataset; learnkit "
            "cannot tell how a file becomes a tensor. Make them with ImageDataset.dataloaders()"
        )
    for stage in ("after_item", "before_batch", "after_batch"):
        for tfm in getattr(valid, stage).fs:
            if tfm.split_idx != 0:
                fields |= _fields_of(tfm, stage)
    if "size" not in fields:
        fields |= {"size": tuple(valid.one_batch()[0].shape[-2:]), "method": "squish"}
    return Preprocessing(**fields)


def _image_class(tfm: Transform) -> type | None:
    """Return the fastai image class whose `create` this transform is, or None."""
    methods = getattr(tfm.encodes, "methods", [])
    owners = (getattr(method.implementation, "__self__", None) for method in methods)
    return next((o for o in owners if isinstance(o, type) and issubclass(o, PILBase)), None)


def _fields_of(tfm: Transform, stage: str) -> dict[str, Any]:
    """Return the fields of `Preprocessing` that one validation transform stands for."""
    if isinstance(tfm, ReadImage | ResizeLikeRecipe):
        return {k: v for k, v in vars(tfm.preprocessing).items() if k not in ("mean", "std")}
    if image_class := _image_class(tfm):
        channels = 1 if issubclass(image_class, PILImageBW) else 3
        return {"exif_transpose": False, "channels": channels}
    if type(tfm) is ToTensor or (type(tfm) is IntToFloatTensor and tfm.div == 255):
        return {}
    if type(tfm) is Normalize:
        return {
            "mean": tuple(tfm.mean.flatten().tolist()),
            "std": tuple(tfm.std.flatten().tolist()),
        }
    if type(tfm) is Resize:
        width, height = tfm.size
        fields = {"size": (height, width), "method": tfm.method, "pad_mode": tfm.pad_mode}
        return {**fields, "interpolation": tfm.mode.name.lower()}
    raise ExportError(
        f"the validation transform `{tfm.name}` ({stage}) is code and cannot travel as data; use "
        "Resize, ToTensor, IntToFloatTensor and Normalize, or ImageDataset.dataloaders(), or mark "
        "it as training-only with `split_idx = 0`"
    )
