"""From an `ImageDataset` to the fastai DataLoaders a learner trains on."""

import copy
import io
import os
import random
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import learnkit._torchvision  # noqa: F401  # before fastai

import numpy as np
import torch
from fastai.data.core import DataLoaders, Datasets, TfmdDL
from fastai.data.transforms import (
    Categorize,
    EncodedMultiCategorize,
    MultiCategorize,
    Normalize,
    OneHotEncode,
    RegressionSetup,
    ToTensor,
)
from fastai.torch_core import TensorCategory, TensorImage, TensorImageBW, TensorMultiCategory
from fastai.vision.core import PointScaler
from fasttransform import Pipeline, Transform
from PIL import Image

from learnkit.continual.classifier import continual_head
from learnkit.data.arguments import check_number
from learnkit.data.labels import check_balance
from learnkit.data.preprocess import Preprocessing
from learnkit.data.split import check_training_splits
from learnkit.data.store import ImageStore, recipe_of
from learnkit.errors import DataError, first_few, warn_user, warned_after
from learnkit.interpret.learner_state import loaders_text, names_of, names_text
from learnkit.interpret.normalization import (
    network_classes,
    network_normalization,
    normalization_of,
    note_conventions,
)
from learnkit.learner.arguments import check_keywords, check_workers
from learnkit.learner.augmentation import batch_augmentation, item_augmentation
from learnkit.learner.transforms import (
    BytesToFloat,
    LabelOf,
    ReadImage,
    ResizeLikeRecipe,
    TensorPlanes,
)
from learnkit.report.document import Document, Paragraph, Span, pairs
from learnkit.report.notebook import Shown

_SPLITS = ("train", "valid", "test")
_NO_VALIDATION = (
    "the dataset has no validation images: training shows no measures, no best epoch can be kept, "
    "and nothing but the training images tells of overfitting. For continual learning they are not "
    "needed: thresholds and confidence come from learned images left out. "
    "`split(..., overwrite=True)` makes some"
)


class ShownLoaders(DataLoaders, Shown):
    """fastai's DataLoaders that say what they hold, in a line and in notebooks; nothing is read."""

    def __repr__(self) -> str:
        return f"DataLoaders({loaders_text(self)}; {names_text(names_of(self) or ())})"

    def document(self) -> Document:
        """Images, sizes, batches and classes."""
        facts = {"images": loaders_text(self), "classes": names_text(names_of(self) or ())}
        return Document([Paragraph(Span("DataLoaders", "strong")), pairs(facts)])


class PlainNamesDL(TfmdDL):
    """fastai's loader whose pictures have class names as they are: `$` begins no formula."""

    def show_batch(self, *args: Any, **options: Any) -> Any:
        """Draw a batch, as in fastai."""
        with _no_formulas():
            return super().show_batch(*args, **options)

    def show_results(self, *args: Any, **options: Any) -> Any:
        """Draw a batch with what was predicted, as in fastai."""
        with _no_formulas():
            return super().show_results(*args, **options)


def _no_formulas() -> AbstractContextManager[None]:
    import matplotlib.pyplot as plt

    return plt.rc_context({"text.parse_math": False})


class BalancedLoader(PlainNamesDL):
    """A loader that, where it shuffles, draws its images by weight, with replacement.

    Copies that do not shuffle, and those over other images, go through every image once.

    Args:
        dataset: As fastai's.
        weights: One number per image, in proportion to which it is drawn; None for all alike.
        **kwargs: As fastai's.
    """

    def __init__(
        self, dataset: Any = None, *, weights: Sequence[float] | None = None, **kwargs: Any
    ):
        super().__init__(dataset, **kwargs)
        self.weights = weights

    def new(self, dataset: Any = None, cls: Any = None, **kwargs: Any) -> TfmdDL:
        """A copy, of another kind or over other images, as fastai's."""
        same = dataset is None or dataset is self.dataset
        if not same or not issubclass(cls or BalancedLoader, BalancedLoader):
            return super().new(dataset, cls or PlainNamesDL, **kwargs)
        return super().new(dataset, cls, **{"weights": self.weights, **kwargs})

    def shuffle_fn(self, idxs: list[int]) -> list[int]:
        """As many places as there are, drawn by weight."""
        if self.weights is None:
            return super().shuffle_fn(idxs)
        return self.rng.choices(idxs, weights=self.weights, k=len(idxs))


class StoredPixels:
    """Pixels and targets of the images of one split, by their places in it.

    Args:
        store: Has the images.
        files: The images, in their order.
        targets: Class numbers (N,), or 0 and 1 (N, C) of several labels per image.
    """

    def __init__(self, store: ImageStore, files: Sequence[Path], targets: np.ndarray):
        self.store, self.rows = store, store.row_numbers(files)
        # flags are floats, as fastai's OneHotEncode makes them
        self.targets = torch.from_numpy(targets if targets.ndim == 1 else targets.astype("float32"))

    def batch(self, places: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """The uncached loader's batch of these images, before its batch transforms."""
        pixels = torch.from_numpy(self.store.pixels(self.rows[list(places)]))
        of_image = {1: TensorImageBW, 3: TensorImage}.get(pixels.shape[1], TensorPlanes)
        targets = self.targets[list(places)]
        of_target = TensorCategory if targets.ndim == 1 else TensorMultiCategory
        return of_image(pixels), of_target(targets)


class StoreLoader(BalancedLoader):
    """A loader that takes its batches whole from a store, not image by image.

    It does so while nothing is done to single images but making tensors of them; else, and in
    copies over other images, it is an ordinary loader, whose dataset reads from the store, too.

    Args:
        dataset: As fastai's.
        stored: Pixels and targets of its items.
        **kwargs: As `BalancedLoader`.
    """

    def __init__(self, dataset: Any = None, *, stored: StoredPixels | None = None, **kwargs: Any):
        super().__init__(dataset, **kwargs)
        self.stored = stored

    def new(self, dataset: Any = None, cls: Any = None, **kwargs: Any) -> TfmdDL:
        """A copy, of another kind or over other images, as fastai's."""
        stays = dataset is None or dataset is self.dataset
        kept = {"stored": self.stored} if stays and (cls or StoreLoader) is StoreLoader else {}
        return super().new(dataset, cls, **{**kept, **kwargs})

    @property
    def _whole(self) -> bool:
        """Whether a batch can be taken as it is."""
        plain = all(type(tfm) is ToTensor for tfm in self.after_item.fs)
        return self.stored is not None and plain and not self.before_batch.fs

    def do_item(self, s: int | None) -> Any:
        """The item at a place; the place itself where batches are whole."""
        # fastai's `create_item` takes None for 0, too
        return (s or 0) if self._whole else super().do_item(s)

    def do_batch(self, b: Sequence[Any]) -> Any:
        """The batch of items, or of places."""
        return self.stored.batch(b) if self._whole else super().do_batch(b)


@warned_after
def image_dataloaders(
    dataset: Any,
    *,
    size: int | tuple[int, int] | None = None,
    bs: int = 64,
    augment: bool | Iterable | None = None,
    item_tfms: Iterable | None = None,
    channels: int | None = None,
    method: str | None = None,
    preprocessing: Preprocessing | None = None,
    balance: bool | str = False,
    store: str | os.PathLike[str] | None = None,
    seed: int = 42,
    num_workers: int = 0,
    device: Any = None,
    **recipe: Any,
) -> DataLoaders:
    """Return fastai DataLoaders: train (shuffled), valid, and test when the dataset has one.

    All three read files through one `Preprocessing`, kept as `dls.preprocessing`. Where it has no
    mean and std, `cnn_learner` normalises with those of the network. The dataset is kept as
    `dls.image_dataset`.

    Warns where there are no validation images, which only continual learning does without.

    Args:
        dataset: An ImageDataset that is split, with at least two training images.
        size: Height and width in pixels; an int means a square, None 224.
        bs: Images per batch; lowered to the number of training images if that is smaller.
        augment: Batch transforms for training alone, one or many; True means fastai's
            `aug_transforms()`.
        item_tfms: Transforms of single training images in their original size, before the resize;
            all images are then decoded in full.
        channels: 3 (RGB), 1 (grey), or another number up to 16, of .npy and TIFF files that have
            just so many; None is 3.
        method: "crop", "squish" or "pad"; see `Preprocessing`. None is "crop", with a warning where
            that cuts off more than a fifth of the images' area. Measured, "crop" is 1 to 9 points
            of accuracy better than "squish" where the object is in the middle of a photograph or
            small on its ground, and 3 to 17 worse where what matters reaches to the edges
            (benchmarks/README.md).
        preprocessing: The whole recipe, in the place of `size`, `channels`, `method` and `recipe`.
        balance: True draws the training images of every epoch, as many as there are, so that every
            class comes equally often; "sqrt" in proportion to the root of its images. Drawn with
            replacement, by `seed`. Only training epochs are: passes that measure or learn
            statistics see every image once.
        store: Folder of a store, which is filled first where images are new or have changed; the
            loaders read pixels from it, the same ones; see `ImageDataset.preprocess`.
        seed: Seeds the order of the training images.
        num_workers: Reading processes; 0 is fastest for small images.
        device: As in fastai; its default device when None.
        **recipe: Further fields of `Preprocessing`, such as `crop` or `bit_depth`; `draft` is True
            unless said otherwise.

    Raises:
        TypeError: An argument is unknown; what is named nearly so is suggested. Or `preprocessing`
            comes with parts of a recipe.
        DataError: Too few images, or a label of valid or test does not occur in train; an argument
            is wrong, or `augment` has a transform that has to be for all images.
        SplitError: The dataset has no training images.
    """
    check_keywords(recipe)
    check_number("bs", bs, least=1)
    check_number("seed", seed, least=0)
    check_workers(num_workers)
    _check_device(device)
    check_balance(balance)
    if balance and dataset.multi_label:
        raise DataError(
            "`balance` draws images by their class, and these have several labels each; weigh the "
            "labels in the loss instead: cnn_learner(dls, arch, class_weights=True)"
        )
    check_training_splits(dataset.frame, multi_label=dataset.multi_label, validated=False)
    if "valid" not in dataset.splits:
        warn_user(_NO_VALIDATION)
    recipe = {"channels": channels, "method": method, "preprocessing": preprocessing, **recipe}
    preprocessing = recipe_of(dataset.paths, size, **recipe)
    batch_tfms = batch_augmentation(augment, preprocessing.size)
    if store is not None and item_tfms:
        raise DataError(
            "`item_tfms` see images in their original size, and a store has them resized; use "
            "`augment`, which sees batches, or leave `store` out"
        )
    if item_tfms and preprocessing.channels not in (1, 3):
        raise DataError(
            f"`item_tfms` are for grey and colour images, and `channels` is "
            f"{preprocessing.channels}; use `augment`, which sees batches"
        )
    if item_tfms := item_augmentation(item_tfms):
        preprocessing = preprocessing.replace(draft=False)  # they see the original size
        item_tfms = [*item_tfms, ResizeLikeRecipe(preprocessing)]
    splits = [[i for i, s in enumerate(dataset.frame["split"]) if s == name] for name in _SPLITS]
    splits = [*splits[:2], *([splits[2]] if splits[2] else [])]  # fastai has a valid, always
    stored = None
    if store is not None:
        files = dict(zip(dataset.frame["path"], dataset.paths, strict=True))
        stored = ImageStore(store, preprocessing).fill(files)
    datasets = _datasets(dataset, preprocessing, splits, stored, resize=not item_tfms)
    n_train = len(datasets.train)
    bs = min(bs, n_train)
    dls = datasets.dataloaders(
        bs=bs,
        # A last batch of one image would break batch norm; every other image is used each epoch.
        drop_last=n_train % bs == 1,
        after_item=[*item_tfms, ToTensor()],
        after_batch=[BytesToFloat(), *batch_tfms],
        # Not the training pipeline: fastai's affine transforms resample validation images too.
        dl_kwargs=[{}] + [{"after_batch": [BytesToFloat()]}] * (datasets.n_subsets - 1),
        num_workers=num_workers,
        device=device,
    )
    if stored is not None:
        for place, rows in enumerate(splits):
            pixels = StoredPixels(stored, [dataset.paths[i] for i in rows], dataset.targets[rows])
            dls.loaders[place] = dls.loaders[place].new(cls=StoreLoader, stored=pixels)
    if balance:
        weights = dataset.class_weights(balance)
        of_images = [weights[label] for label in dataset.train.labels]
        kind = BalancedLoader if stored is None else StoreLoader
        dls.train = dls.train.new(cls=kind, weights=of_images)
    for offset, dl in enumerate(dls.loaders):
        dl.rng = random.Random(seed + offset)
    if preprocessing.mean is not None:
        dls = with_normalization(dls, preprocessing.mean, preprocessing.std)
    dls.preprocessing, dls.image_dataset, dls.balance = preprocessing, dataset, balance
    dls.store = None if stored is None else stored.folder
    return dls


def _check_device(device: Any) -> None:
    """Raise DataError unless torch knows the device and this machine has it."""
    try:
        # a torch without CUDA raises AssertionError for it
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        told = str(error).splitlines()[0]
        raise DataError(
            f"`device` is {device!r}, which cannot be used here: {told:.200}; give 'cpu', 'cuda' "
            "where there is a GPU, or None for fastai's choice"
        ) from error


def empty_dataloaders(
    preprocessing: Preprocessing, classes: Sequence[str], *, multi_label: bool = False
) -> DataLoaders:
    """Return DataLoaders, train and valid, without an image: they say how images are read.

    Args:
        preprocessing: The recipe, with its mean and std.
        classes: What targets are called; fastai has one, so "nothing yet" if there is none.
        multi_label: Whether an image may have several labels.
    """
    black = io.BytesIO()  # fastai learns the types of a batch from one image
    if preprocessing.channels in (1, 3):
        Image.new("L", (8, 8)).save(black, "PNG")
    else:
        np.save(black, np.zeros((8, 8, preprocessing.channels), np.uint8))
    item, classes = black.getvalue(), classes or ["nothing yet"]
    label = [classes[0]] if multi_label else classes[0]
    pipelines = [
        [ReadImage(preprocessing)],
        [LabelOf({item: label}), *_encoders(classes, multi_label)],
    ]
    datasets = _for_any_item(Datasets([item], pipelines, splits=[[0], [0]], n_inp=1))
    one = datasets.dataloaders(
        num_workers=0,
        drop_last=False,
        after_item=[ToTensor()],
        after_batch=[BytesToFloat()],
    )
    dls = one.new_empty()
    if preprocessing.mean is not None:
        dls = with_normalization(dls, preprocessing.mean, preprocessing.std)
    dls.preprocessing = preprocessing
    return dls


def _encoders(classes: Sequence[str], multi_label: bool) -> list[Transform]:
    """Return what makes a target of a label, the classes numbered as they stand."""
    if multi_label:
        return [MultiCategorize(vocab=classes), OneHotEncode()]
    return [Categorize(vocab=classes, sort=False)]


def _datasets(
    dataset: Any,
    preprocessing: Preprocessing,
    splits: list[list[int]],
    stored: ImageStore | None,
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
    encoders = _encoders(dataset.classes, dataset.multi_label)
    pipelines = [[ReadImage(preprocessing, stored, resize=resize)], [LabelOf(labels), *encoders]]
    return _for_any_item(Datasets(paths, pipelines, splits=splits, n_inp=1))


def _for_any_item(datasets: Datasets) -> Datasets:
    """Return `datasets` whose `test_dl` takes whatever an image is read from, not paths alone."""
    for tl in datasets.tls:  # fastai notes what the first item was, and begins there
        tl.types[0] = object
    datasets._dbunch_type, datasets._dl_type = ShownLoaders, PlainNamesDL
    return datasets


def is_multi_label(dls: DataLoaders) -> bool:
    """Return True if a target is one 0 or 1 per class."""
    return any(
        isinstance(tfm, MultiCategorize | EncodedMultiCategorize | OneHotEncode)
        for tl in getattr(dls.valid.dataset, "tls", ())[-1:]
        for tfm in tl.tfms.fs
    )


def check_class_labels(dls: DataLoaders) -> None:
    """Raise DataError for one loader alone, or labels that are numbers or points, not classes."""
    if not hasattr(dls, "loaders"):
        raise DataError(
            f"`dls` is a {type(dls).__name__}; it must be DataLoaders of training and validation "
            "images, as ImageDataset.dataloaders() gives them, or DataLoaders(train, valid) of two "
            "loaders"
        )
    tls = getattr(getattr(dls.train, "dataset", None), "tls", None) or ()
    of_items = getattr(getattr(dls.train, "after_item", None), "fs", ())  # torch's have none
    for tfm in [*(tfm for tl in tls for tfm in tl.tfms.fs), *of_items]:
        if isinstance(tfm, RegressionSetup | PointScaler):
            raise DataError(
                "the labels of `dls` are numbers or points, not classes (its transforms have "
                f"{type(tfm).__name__}); learnkit classifies images: use fastai's vision_learner "
                "for regression, or label the images with classes"
            )


def is_normalized(dls: DataLoaders) -> bool:
    """Return True if a `Normalize` already runs on the validation batches."""
    return _normalizes(dls.valid)


def _normalizes(dl: TfmdDL) -> bool:
    return any(isinstance(tfm, Normalize) for tfm in dl.after_batch.fs)


def with_normalization(
    dls: DataLoaders, mean: Iterable[float], std: Iterable[float]
) -> DataLoaders:
    """Return DataLoaders that also normalise batches; the given ones stay as they are.

    Args:
        dls: DataLoaders; those of them that have `Normalize` are taken over.
        mean: One value per channel, of pixels in 0..1.
        std: One value per channel.
    """
    # else fastai puts them on its default device, wherever the batches are
    normalize = Normalize.from_stats(tuple(mean), tuple(std), cuda=False)
    new = copy.copy(dls)
    new.loaders = [dl if _normalizes(dl) else _normalized(dl, normalize) for dl in dls.loaders]
    return new


def agreeing_loaders(model: Any, dls: DataLoaders) -> DataLoaders:
    """Return `dls`, or a copy that normalises as the network's pixels were when it was trained.

    Raises:
        DataError: They normalise otherwise, have classes the network has no output for, or labels
            that are no classes.
    """
    check_class_labels(dls)
    _check_classes(network_classes(model), names_of(dls))
    wanted = network_normalization(model)
    found = [normalization_of(dl) for dl in dls.loaders]
    if wanted is None or None in found or all(one.is_like(wanted) for one in found):
        return dls  # of loaders that do not tell, each pass looks at the pixels
    others = [one for one in found if one.mean is not None and not one.is_like(wanted)]
    if others:
        raise DataError(
            f"`dls` has {others[0]}, and the network was built for {wanted}; leave Normalize out "
            "of the loaders: what the network needs is added"
        )
    return with_normalization(dls, wanted.mean, wanted.std)


def note_loaders(model: Any, dls: DataLoaders) -> None:
    """Let a network that does not say so yet say what it is trained on: the pixels of `dls`."""
    names = None if continual_head(model) is not None else names_of(dls)
    note_conventions(model, normalization_of(dls.loaders[:2][-1]), names)


def _check_classes(known: Sequence[str] | None, names: Sequence[str] | None) -> None:
    """Raise DataError where loaders have classes that are no outputs of the network."""
    if known is None or names is None or not (others := sorted(set(names) - set(known))):
        return
    raise DataError(
        f"`dls` has classes the network has no output for: {first_few(map(repr, others))}; it has "
        f"{len(known)} outputs: {first_few(map(repr, known))}. Build a new learner for them with "
        "cnn_learner(dls, arch), or learn them in the continual state with learn.extend(data)"
    )


def _normalized(dl: TfmdDL, normalize: Normalize) -> TfmdDL:
    """Return a copy of one loader, with its own place in the shuffling, that normalises."""
    state = random.getstate()  # a new loader draws its seed from the caller's generator
    new = dl.new(after_batch=Pipeline([*dl.after_batch.fs, normalize]))
    random.setstate(state)
    new.rng.setstate(dl.rng.getstate())
    # fastai's setter also brings the statistics of Normalize there
    new.device = dl.device
    return new
