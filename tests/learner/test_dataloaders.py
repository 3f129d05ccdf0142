"""Loaders read files through one recipe, and any DataLoaders can be read back as one."""

import copy
import json
import os
import pickle
import random
import re
import subprocess
import sys
import warnings
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from fastai.data.block import CategoryBlock, DataBlock, TransformBlock
from fastai.data.core import TfmdDL
from fastai.data.transforms import (
    IntToFloatTensor,
    Normalize,
    ToTensor,
    get_image_files,
    parent_label,
)
from fastai.metrics import accuracy
from fastai.torch_core import TensorImage
from fastai.vision.augment import (
    AffineCoordTfm,
    Brightness,
    Contrast,
    CropPad,
    Dihedral,
    Flip,
    Hue,
    RandomCrop,
    RandomErasing,
    RandomResizedCrop,
    RandomResizedCropGPU,
    RandTransform,
    RatioResize,
    Resize,
    Rotate,
    Saturation,
    Warp,
    Zoom,
    aug_transforms,
)
from fastai.vision.core import PILImage, PILImageBW
from fastai.vision.data import ImageBlock, ImageDataLoaders
from fasttransform import Transform
from helpers import quiet, write_image_folder
from PIL import Image
from scipy.stats import chisquare

from learnkit.callback.frozen_features import FrozenFeatures
from learnkit.data import preprocess
from learnkit.data.dataset import ImageDataset
from learnkit.data.geometry import Resizing
from learnkit.data.preprocess import Preprocessing
from learnkit.errors import DataError, ExportError, InterpretationError, SplitError
from learnkit.learner import dataloaders
from learnkit.learner.dataloaders import image_dataloaders, with_normalization
from learnkit.learner.factory import cnn_learner
from learnkit.learner.transforms import BytesToFloat, preprocessing_of

# (item transforms, batch transforms): fastai's course and its page on augmentation, and neighbours
PIPELINES = {
    "random resized crop": (RandomResizedCrop(16, min_scale=0.5), []),
    "wide random resized crop": (RandomResizedCrop((14, 30), val_xtra=0.4), aug_transforms()),
    "random resized crop without more": (RandomResizedCrop(16, val_xtra=0), []),
    "presizing": (Resize(24), aug_transforms(size=16)),
    "presizing by far": (Resize(60), aug_transforms(size=16, min_scale=0.75)),
    "squished presizing": (Resize((30, 24), method="squish"), aug_transforms(size=(16, 13))),
    "enlarging": (Resize(12), aug_transforms(size=20)),
    "crop of batches": (Resize(40), [RandomResizedCropGPU(16, min_scale=0.5, valid_scale=0.8)]),
    "wide crop of batches": (Resize((20, 50)), [RandomResizedCropGPU(16)]),
    "crop or pad": (CropPad(22), []),
    "crop or pad by reflection": (CropPad((30, 14), pad_mode="reflection"), []),
    "resized, then cut": ([Resize(24), CropPad(16)], []),
    "resized, then cut anywhere": ([Resize(24), RandomCrop(16)], []),
    "of one size as they are": ([], aug_transforms(size=16)),
}
STATS = ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


@pytest.fixture
def folder(tmp_path):
    return write_image_folder(tmp_path / "images", {"a": 10, "b": 8, "c": 7})


@pytest.fixture
def data(folder):
    return ImageDataset.from_folder(folder).split(0.6, 0.2, seed=0)


def all_inputs(dl):
    return torch.cat([torch.Tensor(batch[0]) for batch in dl])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("method", ["crop", "squish", "pad"])
def test_validation_batches_equal_the_recipe_file_by_file(data, channels, method):
    stats = [values[:channels] for values in STATS]
    dls = data.dataloaders(size=(16, 18), bs=4, channels=channels, method=method)
    dls = with_normalization(dls, *stats)
    recipe = preprocessing_of(dls)
    assert recipe.size == (16, 18)
    expected = torch.stack([recipe(path) for path in dls.valid.items])
    assert torch.allclose(all_inputs(dls.valid), expected, atol=1e-6)


def test_classes_keep_the_dataset_order_and_targets_match_it(data):
    dls = data.dataloaders(size=16, bs=4)
    assert list(dls.vocab) == data.classes
    names = [path.parent.name for path in dls.valid.items]
    targets = torch.cat([torch.Tensor(batch[1]) for batch in dls.valid]).long()
    assert [dls.vocab[i] for i in targets.tolist()] == names


def test_test_split_becomes_the_third_loader(data):
    dls = data.dataloaders(size=16)
    sizes = [len(dl.dataset) for dl in dls.loaders]
    assert sizes == [len(data.train), len(data.valid), len(data.test)]


def test_same_seed_gives_the_same_order_whatever_was_drawn_before(data):
    def order(seed):
        random.seed(random.random())
        dls = data.dataloaders(size=16, seed=seed)
        return all_inputs(dls.train)

    assert torch.equal(order(1), order(1))
    assert not torch.equal(order(1), order(2))


def test_batch_size_is_lowered_to_the_number_of_training_images(data):
    dls = data.dataloaders(size=16, bs=1000)
    assert len(dls.train) == 1
    assert len(all_inputs(dls.train)) == len(data.train)


def test_a_last_batch_of_one_image_is_dropped_and_no_other(data):
    n_train = len(data.train)
    lengths = [len(batch[1]) for batch in data.dataloaders(size=16, bs=n_train - 1).train]
    assert lengths == [n_train - 1]
    lengths = [len(batch[1]) for batch in data.dataloaders(size=16, bs=n_train - 2).train]
    assert lengths == [n_train - 2, 2]


def test_augmentation_touches_training_images_only(data):
    plain = data.dataloaders(size=16)
    augmented = data.dataloaders(size=16, augment=[Flip(p=1.0)])
    assert torch.equal(all_inputs(augmented.valid), all_inputs(plain.valid))
    flipped, image = augmented.train.one_batch()[0], plain.train.one_batch()[0]
    assert torch.allclose(flipped, image.flip(-1), atol=1e-5)


class Darker(Transform):
    order = 20

    def encodes(self, x: torch.Tensor):
        return x / 2 if x.is_floating_point() else x


def halve(x):
    return x / 2 if x.ndim == 4 else x


TO_HALVES = Normalize.from_stats([0.5] * 3, [0.5] * 3, cuda=False)


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        ([Flip(), TO_HALVES], "`augment` has Normalize, which is for all images; leave it out:"),
        (TO_HALVES, "normalises all images as the network was trained, or by its `normalize=("),
        ([IntToFloatTensor()], "`augment` has IntToFloatTensor, which is for all images; leave it"),
        ([IntToFloatTensor], "`augment` has IntToFloatTensor, which is for all images"),
        ([Darker()], "`augment` has Darker, which does not say that it is for training images alo"),
        (Darker(split_idx=1), "`augment` has Darker, which does not say"),
        ([halve], "`augment` has halve, which does not say .* Transform(function, split_idx=0)"),
        ("light", "`augment` is or has 'light'; give True for fastai's aug_transforms(), trans"),
        (1, "`augment` is or has 1; give True"),
        ([None], "`augment` is or has None; give True"),
        ([Darker, RandomResizedCropGPU], "`augment` has the class RandomResizedCropGPU, which ne"),
    ],
)
def test_what_is_not_for_training_images_alone_is_no_augmentation(data, augment, message):
    with pytest.raises(DataError, match=re.escape(message).replace(r"\ \.\*\ ", " .* ")):
        data.dataloaders(size=16, augment=augment)


@pytest.mark.parametrize(
    "augment", [Darker(split_idx=0), [Darker(split_idx=0)], Transform(halve, split_idx=0)]
)
def test_what_says_that_it_is_for_training_images_changes_these_alone(data, augment):
    plain, darker = data.dataloaders(size=16), data.dataloaders(size=16, augment=augment)
    assert torch.equal(all_inputs(darker.valid), all_inputs(plain.valid))
    assert torch.allclose(darker.train.one_batch()[0], plain.train.one_batch()[0] / 2)


def test_every_augmentation_of_fastai_is_taken(data):
    kinds = [Flip, Dihedral, Zoom, Rotate, Warp, Brightness, Contrast, Saturation, Hue]
    every = [kind() for kind in kinds] + [RandomErasing(), RandomResizedCropGPU(16)]
    dls = data.dataloaders(size=16, augment=every)
    assert torch.equal(all_inputs(dls.valid), all_inputs(data.dataloaders(size=16).valid))
    data.dataloaders(size=16, augment=Flip).train.one_batch()


@pytest.mark.parametrize("tfm", [TO_HALVES, IntToFloatTensor(), [ToTensor(), TO_HALVES]])
def test_item_transforms_are_for_training_images_too(data, tfm):
    with pytest.raises(DataError, match=r"`item_tfms` has .*, which is for all images; leave it"):
        data.dataloaders(size=16, item_tfms=tfm)


def test_a_function_among_item_transforms_leaves_validation_and_itself_alone(data):
    def black(image):
        return image.point(lambda _: 0) if isinstance(image, Image.Image) else image

    plain, dark = data.dataloaders(size=16), data.dataloaders(size=16, item_tfms=black)
    assert torch.equal(all_inputs(dark.valid), all_inputs(plain.valid))
    assert not dark.train.one_batch()[0].any()
    assert not hasattr(black, "split_idx")


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [("bs", value, "from 1 on") for value in (0, -1, 2.0, "8", True, None)]
    + [("num_workers", value, "from 0 on") for value in (-1, 1.5, "2")]
    + [("seed", value, "from 0 on") for value in (None, -1, 0.5, "x")],
)
def test_counts_and_seeds_are_whole_numbers(data, name, value, rule):
    message = re.escape(f"`{name}` is {value!r}; give a whole number {rule}")
    with pytest.raises(DataError, match=message):
        data.dataloaders(size=16, **{name: value})


def test_item_transforms_see_the_original_size_and_leave_validation_alone(data):
    class RecordSize(RandTransform):
        sizes = set()

        def encodes(self, x: Image.Image):
            self.sizes.add(x.size)
            return x

    dls = data.dataloaders(size=16, item_tfms=[RecordSize(p=1.0), RandomResizedCrop(16)])
    dls.train.one_batch()
    assert RecordSize.sizes == {(20, 24)}
    plain = data.dataloaders(size=16)
    assert torch.equal(all_inputs(dls.valid), all_inputs(plain.valid))


def test_augment_true_means_fastais_default(data):
    names = [type(t).__name__ for t in data.dataloaders(size=16, augment=True).train.after_batch.fs]
    assert {type(t).__name__ for t in aug_transforms()} <= set(names)


def test_augmentation_that_resizes_to_another_size_is_refused(data):
    with pytest.raises(DataError, match=r"resizes training images to \(12, 12\), but `size` is"):
        data.dataloaders(size=16, augment=aug_transforms(size=12))


def test_unsplit_dataset_is_refused_with_the_remedy(folder):
    with pytest.raises(SplitError, match="split"):
        ImageDataset.from_folder(folder).dataloaders(size=16)


@pytest.mark.parametrize("test", [0, 0.25])
def test_without_validation_images_all_else_goes_on_and_what_is_lost_is_said(folder, test):
    data = ImageDataset.from_folder(folder).split(1 - test, 0, test, seed=0)
    with pytest.warns(UserWarning, match="no validation images: .* thresholds and confidence come"):
        dls = data.dataloaders(size=32, bs=8)
    sizes = [len(dl.dataset) for dl in dls.loaders]
    assert sizes == [len(data.train), 0, *([len(data.test)] if test else [])]
    learn = quiet(cnn_learner(dls, "test_resnet", pretrained=False, metrics=accuracy))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Your generator is empty", UserWarning)  # fastprogress
        learn.fit(1)
    assert learn.recorder.values[-1][1:] == [None, None]
    learn.init_continual(data)
    assert learn.continual.threshold.source != "validation"
    assert learn.continual.classes == ("a", "b", "c")
    with pytest.raises(InterpretationError, match="no samples in the loader"):
        learn.evaluate()
    assert len(learn.outputs(data=data.train)) == len(data.train)
    with pytest.raises(SplitError, match="no 'valid' images"):
        data.check_split()


def test_label_of_valid_not_in_train_is_refused_by_name(data):
    frame = data.frame.copy()
    frame.loc[frame["label"] == "c", "split"] = "valid"
    with pytest.raises(DataError, match="c"):
        ImageDataset(frame, data.root).dataloaders(size=16)


def test_normalization_leaves_the_given_loaders_and_the_rng_alone(data):
    dls = data.dataloaders(size=16)
    before, state = all_inputs(dls.valid), random.getstate()
    normalized = with_normalization(dls, *STATS)
    assert random.getstate() == state
    assert torch.equal(all_inputs(dls.valid), before)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in STATS)
    assert torch.allclose(all_inputs(normalized.valid), (before - mean) / std, atol=1e-6)


def test_normalization_keeps_the_place_in_the_shuffling(data):
    first, second = (data.dataloaders(size=16, seed=3) for _ in range(2))
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in STATS)
    normalized = all_inputs(with_normalization(first, *STATS).train)
    assert torch.allclose(normalized, (all_inputs(second.train) - mean) / std, atol=1e-6)


def test_multi_label_targets_are_one_hot(folder):
    paths = sorted(folder.rglob("*.png"))
    labels = [("x",) if i % 3 else ("x", "y") for i in range(len(paths))]
    frame = ImageDataset.from_folder(folder).frame.assign(label=labels)
    data = ImageDataset(frame, folder).split(0.6, 0.4, seed=0, stratify=False)
    dls = data.dataloaders(size=16)
    targets = torch.cat([torch.Tensor(batch[1]) for batch in dls.valid])
    expected = [[1.0, float("y" in label)] for label in data.valid.labels]
    assert targets.tolist() == expected


class TestPreprocessingOfFastaiLoaders:
    @pytest.mark.parametrize("method", ["crop", "squish", "pad"])
    def test_equals_fastais_validation_tensors(self, folder, method):
        dls = ImageDataLoaders.from_folder(
            folder,
            valid_pct=0.4,
            seed=1,
            item_tfms=Resize((14, 22), method=method),
            batch_tfms=[*aug_transforms(), Normalize.from_stats(*STATS, cuda=False)],
            bs=4,
            num_workers=0,
        )
        recipe = preprocessing_of(dls)
        expected = torch.stack([recipe(path) for path in dls.valid.items])
        # fastai resamples validation images with the identity, which rounds
        assert torch.allclose(all_inputs(dls.valid), expected, atol=1e-5)

    @pytest.mark.parametrize("name", PIPELINES)
    def test_pipelines_that_fastai_teaches_equal_its_validation_tensors(self, folder, name):
        items, batches = PIPELINES[name]
        dls = ImageDataLoaders.from_folder(
            folder,
            valid_pct=0.4,
            seed=1,
            item_tfms=items,
            batch_tfms=[*batches, Normalize.from_stats(*STATS, cuda=False)],
            bs=4,
            num_workers=0,
        )
        recipe = preprocessing_of(dls)
        assert Preprocessing.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
        expected = torch.stack([recipe(path) for path in dls.valid.items])
        # what batch transforms leave between two of 8 bits is rounded
        rounded = any(getattr(tfm, "cp_size", getattr(tfm, "size", None)) for tfm in batches)
        tolerance = 0.51 / 255 / min(STATS[1]) if rounded else 1e-5
        assert torch.allclose(all_inputs(dls.valid), expected, atol=tolerance)

    @pytest.mark.parametrize(
        "tfm",
        [
            AffineCoordTfm(size=16, mode="nearest", align_corners=True),
            AffineCoordTfm(size=16),
            RandomResizedCropGPU(16, mode="nearest"),
        ],
        ids=["nearest", "other corners", "nearest crop"],
    )
    def test_resampling_without_counterpart_is_refused_by_name(self, folder, tfm):
        dls = ImageDataLoaders.from_folder(
            folder, valid_pct=0.4, item_tfms=Resize(24), batch_tfms=tfm, num_workers=0
        )
        with pytest.raises(ExportError, match=rf"`{type(tfm).__name__}` \(after_batch\) is code"):
            preprocessing_of(dls)

    def test_images_of_any_shape_are_no_data(self, folder):
        dls = ImageDataLoaders.from_folder(
            folder, valid_pct=0.4, item_tfms=RatioResize(16), num_workers=0
        )
        with pytest.raises(ExportError, match=r"`RatioResize` \(after_item\) is code"):
            preprocessing_of(dls)

    def test_grey_images_have_one_channel(self, folder):
        block = DataBlock(
            (ImageBlock(PILImageBW), CategoryBlock),
            get_items=get_image_files,
            get_y=parent_label,
        )
        dls = block.dataloaders(folder, bs=4, num_workers=0)
        recipe = preprocessing_of(dls)
        assert (recipe.channels, recipe.size) == (1, (24, 20))

    def test_exif_orientation_is_ignored_as_fastai_ignores_it(self, folder):
        dls = ImageDataLoaders.from_folder(
            folder, valid_pct=0.4, item_tfms=Resize(8), num_workers=0
        )
        assert preprocessing_of(dls).exif_transpose is False

    def test_code_in_the_validation_path_is_refused_by_name(self, folder):
        def posterize(image: Image.Image):
            return image

        dls = ImageDataLoaders.from_folder(
            folder, valid_pct=0.4, item_tfms=[Resize(8), posterize], num_workers=0
        )
        with pytest.raises(ExportError, match=r"`posterize` \(after_item\) is code"):
            preprocessing_of(dls)

    def test_own_opener_is_refused(self, folder):
        def opened(path):
            return PILImage.create(path)

        blocks = (TransformBlock(type_tfms=opened), CategoryBlock)
        block = DataBlock(blocks, get_items=get_image_files, get_y=parent_label)
        with pytest.raises(ExportError, match="does not open its images"):
            preprocessing_of(block.dataloaders(folder, bs=4, num_workers=0))


def test_recipe_fields_pass_through(data):
    dls = image_dataloaders(data, size=16, crop=0.875, interpolation="bicubic")
    assert preprocessing_of(dls) == Preprocessing(
        16, crop=0.875, interpolation="bicubic", draft=True
    )


@pytest.mark.parametrize(
    ("parts", "named"),
    [
        ({"method": "squish"}, "`method` is given beside it"),
        ({"size": 32}, "`size` is given beside it"),
        ({"size": 16}, "`size` is given beside it"),
        ({"channels": 1, "crop": 0.9}, "`channels`, `crop` are given beside it"),
        ({"bit_depth": None}, "`bit_depth` is given beside it"),
    ],
)
def test_parts_of_a_recipe_beside_a_whole_one_are_refused_by_name(data, tmp_path, parts, named):
    recipe = Preprocessing(16, bit_depth=8)
    change = ", ".join(f"{name}={value!r}" for name, value in parts.items())
    told = re.escape(f"{named}; leave one of the two out, or change the recipe: ")
    for make in (data.dataloaders, partial(data.preprocess, tmp_path / "store")):
        with pytest.raises(TypeError, match=told + re.escape(f"preprocessing.replace({change})")):
            make(preprocessing=recipe, **parts)
    dls = data.dataloaders(preprocessing=recipe.replace(**parts))
    assert dls.preprocessing == recipe.replace(**parts)
    assert data.dataloaders(preprocessing=recipe, method=None).preprocessing == recipe


def test_a_recipe_that_is_none_is_refused(data):
    with pytest.raises(DataError, match="`preprocessing` is 'squish'; it must be a whole recipe"):
        data.dataloaders(preprocessing="squish")


def test_images_are_not_kept_in_memory(data):
    dls = data.dataloaders(size=16)
    all_inputs(dls.train)
    assert not any(isinstance(v, np.ndarray | torch.Tensor) for v in vars(dls.train).values())


class TestCut:
    """Where the centred crop cuts off more than a fifth of the images, it is said once."""

    MESSAGE = r"fitting the images to 16 x 16 pixels cuts off 50% .*`method=\"squish\"`"

    @staticmethod
    def images(folder, *sizes, n=6):
        counts = {"a": n, "b": n}
        for i, size in enumerate(sizes):
            write_image_folder(folder / f"{i}", counts, size=size)
        return ImageDataset.from_folder(folder, splits=False).split(0.5, 0.25, seed=0)

    def warnings_of(self, data, **options):
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            data.dataloaders(**{"size": 16} | options)
        return [str(w.message) for w in found if "cuts off" in str(w.message)]

    def test_it_is_said_once_with_the_share_and_the_ways_out(self, tmp_path):
        data = self.images(tmp_path, (20, 40), (40, 20))
        (message,) = self.warnings_of(data)
        assert re.match(self.MESSAGE, message)
        for method in ("crop", "squish", "pad"):
            assert self.warnings_of(data, method=method) == []
        assert self.warnings_of(data, size=None, preprocessing=Preprocessing(16)) == []

    @pytest.mark.parametrize(
        ("sizes", "size", "cut"),
        [
            ([(40, 50)], 16, None),  # a fifth is not more than a fifth
            ([(40, 51)], 16, 22),
            ([(20, 40)], (16, 32), None),
            ([(20, 40)], (32, 16), 75),
            ([(20, 20), (20, 30), (20, 20)], 16, None),  # 200 of 1,400 pixels
            ([(20, 20), (20, 40), (20, 20)], 16, 25),  # 400 of 1,600
            ([(20, 40), (20, 20), (20, 40)], 16, 40),  # 800 of 2,000
            ([(80, 80), (20, 80)], 16, None),  # 1,200 of 8,000, of the second three quarters
        ],
    )
    def test_the_share_is_that_of_all_images(self, tmp_path, sizes, size, cut):
        found = self.warnings_of(self.images(tmp_path, *sizes), size=size)
        assert [re.search(r"off (\d+)%", text)[1] for text in found] == [str(cut)] * (
            cut is not None
        )

    def test_only_what_works_is_advised(self, tmp_path):
        data = self.images(tmp_path, (20, 40))
        (message,) = self.warnings_of(data, crop=0.5)
        assert re.search(r'`method="squish"` cuts off no more than `crop` says', message)
        assert "pad" not in message
        with pytest.raises(DataError, match="crop"):
            data.dataloaders(16, crop=0.5, method="pad")
        # whose method nothing of the advice changes
        assert self.warnings_of(data, before=(Resizing(32),)) == []

    def test_a_store_says_so_when_it_is_made(self, tmp_path):
        data = self.images(tmp_path / "images", (20, 40))
        with pytest.warns(UserWarning, match=self.MESSAGE):
            stored = data.preprocess(tmp_path / "store", 16, progress=False)
        assert self.warnings_of(stored, size=None) == []

    def test_what_crop_takes_off_all_alike_is_not_counted(self, tmp_path):
        assert self.warnings_of(self.images(tmp_path, (20, 20)), crop=0.5) == []

    def test_files_that_cannot_be_read_are_left_to_the_reader(self, tmp_path):
        data = self.images(tmp_path, (20, 40))
        # one file of each kind is read when loaders are made
        for path in data.train.paths[1:]:
            path.write_bytes(b"")
        assert len(self.warnings_of(data)) == 1

    def test_of_many_files_some_headers_are_read(self, tmp_path, monkeypatch):
        data = self.images(tmp_path, (2, 4), n=120)
        asked = []

        def size_of(path, **options):
            asked.append(path)
            return 40, 20

        monkeypatch.setattr(preprocess, "image_size", size_of)
        assert len(self.warnings_of(data)) == 1
        assert len(set(asked)) == 200
        assert {path.parent.name for path in asked} == {"a", "b"}


class TestNewItems:
    """`test_dl` over images the loaders were not made of."""

    def test_of_every_kind_are_read_alike(self, data):
        dls = data.dataloaders(size=16)
        path = data.paths[0]
        with Image.open(path) as image:
            picture = image.convert("RGB")
        kinds = [path, str(path), path.read_bytes(), np.asarray(picture), picture]
        batches = [dls.test_dl([kind]).one_batch()[0] for kind in kinds]
        assert all(torch.equal(batches[0], batch) for batch in batches)

    def test_are_labelled_by_their_folder_as_the_dataset_is(self, data, tmp_path):
        dls = data.dataloaders(size=16)
        root = write_image_folder(tmp_path, {"b": 1, "a": 1})
        files = [root / "b" / "000.png", str(root / "a" / "000.png"), data.paths[-1]]
        dl = dls.test_dl(files, with_labels=True)
        names = [dls.vocab[i] for i in dl.one_batch()[1]]
        assert names == ["b", "a", data.labels[-1]]

    def test_of_no_known_label_are_named(self, data, folder, tmp_path):
        path = write_image_folder(tmp_path, {"z": 1}) / "z" / "000.png"
        with pytest.raises(DataError, match=r"label of .*000\.png' is not known: .*with_labels"):
            data.dataloaders(size=16).test_dl([path], with_labels=True).one_batch()
        other = data.frame.assign(label=["a" if n == "b" else "b" for n in data.labels])
        dls = ImageDataset(other, data.root).dataloaders(size=16)  # labelled by a table
        path = write_image_folder(tmp_path, {"a": 1}) / "a" / "000.png"
        with pytest.raises(DataError, match="is not known"):
            dls.test_dl([path], with_labels=True).one_batch()


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("batch_size", "did you mean `bs`"),
        ("batch_tfms", "did you mean `augment`"),
        ("numworkers", "did you mean `num_workers`"),
        ("shuffle", "training images are shuffled by `seed`"),
        ("qqq", "there are size, "),
    ],
)
def test_an_unknown_argument_is_named_with_what_was_meant(data, name, remedy):
    with pytest.raises(TypeError, match=f"^dataloaders has no argument `{name}`; {remedy}"):
        data.dataloaders(size=32, **{name: None})


@pytest.mark.parametrize("device", ["gpu", "meta:x", "cpu:a", []])
def test_a_device_that_is_none_is_refused(data, device):
    with pytest.raises(DataError, match=r"^`device` is .*cannot be used here: .*; give 'cpu'"):
        data.dataloaders(size=32, device=device)


class TestBalance:
    """Training images drawn so that classes come alike often, and nothing else changed by it."""

    counts = {"a": 24, "b": 8, "c": 3}

    @pytest.fixture
    def data(self, tmp_path):
        folder = write_image_folder(tmp_path / "images", self.counts)
        write_image_folder(folder.parent / "valid", {"a": 4, "b": 4, "c": 1})
        frame = ImageDataset.from_folder(folder).frame.assign(split="train")
        valid = ImageDataset.from_folder(folder.parent / "valid").frame.assign(split="valid")
        valid["path"] = [str(folder.parent / "valid" / path) for path in valid["path"]]
        return ImageDataset(pd.concat([frame, valid]).drop(columns="image_id"), folder)

    @staticmethod
    def draws(dl, n_epochs):
        """How often each training image comes, in as many epochs; no image is read."""
        drawn = []
        for _ in range(n_epochs):
            dl.randomize()
            drawn += dl.get_idxs()
        return np.bincount(drawn, minlength=dl.n)

    @pytest.mark.parametrize(
        ("balance", "share"), [(True, lambda n: 1.0), ("sqrt", lambda n: n**0.5)]
    )
    def test_frequencies_are_those_wanted(self, data, balance, share):
        dls = data.dataloaders(size=16, bs=8, balance=balance, seed=3)
        times = self.draws(dls.train, 200)
        labels = data.train.labels
        wanted = np.array([share(self.counts[n]) / self.counts[n] for n in labels])
        wanted *= times.sum() / wanted.sum()
        assert times.sum() == 200 * len(labels)
        assert chisquare(times, wanted).pvalue > 0.01
        plain = chisquare(times, np.full(len(labels), 200.0)).pvalue
        assert plain < 1e-6  # it is no uniform draw

    def test_epochs_differ_and_the_seed_gives_them_again(self, data):
        one, same = (data.dataloaders(size=16, balance=True, seed=5) for _ in range(2))
        other = data.dataloaders(size=16, balance=True, seed=6)
        orders = [[dl.get_idxs() for _ in range(2)] for dl in (one.train, same.train, other.train)]
        assert orders[0] == orders[1] != orders[2]
        assert orders[0][0] != orders[0][1]

    def test_batches_hold_the_images_drawn(self, data):
        dl = data.dataloaders(size=16, bs=8, balance=True).train
        state = dl.rng.getstate()
        targets = torch.cat([torch.Tensor(y) for _, y in dl]).long().tolist()
        dl.rng.setstate(state)
        dl.randomize()
        names = data.train.labels
        drawn = [data.classes.index(names[i]) for i in dl.get_idxs()]
        assert targets == drawn

    def test_passes_that_measure_see_every_training_image_once(self, data):
        learn = cnn_learner(data.dataloaders(size=32, bs=8, balance=True), "test_resnet", False)
        learn = quiet(learn)
        assert isinstance(learn.dls.train, dataloaders.BalancedLoader)  # also once normalised
        counts = learn.evaluate(ds_idx=0).per_class["n"]
        assert counts.to_dict() == self.counts
        assert len(learn.get_preds(ds_idx=0)[0]) == sum(self.counts.values())
        with learn.no_bar(), learn.no_logging():
            learn.fit(1)
            learn.init_continual(learn.dls)
        assert dict(learn.continual.n_images) == self.counts
        assert isinstance(learn.dls.train.new(data.valid.paths), TfmdDL)

    def test_of_several_labels_is_refused_with_what_helps(self, data):
        several = ImageDataset(data.frame.assign(label=[[n] for n in data.labels]), data.root)
        with pytest.raises(
            DataError, match=r"`balance` draws images by their class.*class_weights"
        ):
            several.dataloaders(size=16, balance=True)

    def test_twice_evened_out_is_told(self, data):
        dls = data.dataloaders(size=32, balance=True)
        with pytest.warns(UserWarning, match="rare ones count twice"):
            cnn_learner(dls, "test_resnet", False, class_weights=True)

    def test_frozen_features_train_on_the_same_draws(self, data):
        heads = []
        for cbs in ([], [FrozenFeatures()]):
            dls = data.dataloaders(size=32, bs=8, balance=True)
            torch.manual_seed(0)
            learn = quiet(cnn_learner(dls, "test_resnet", False, train_bn=False, cbs=cbs))
            learn.freeze()
            with learn.no_logging():
                torch.manual_seed(1)
                learn.fit(2, 0.01)
            heads.append(torch.cat([p.flatten() for p in learn.model[1].parameters()]))
        assert learn.frozen_features.reason is None
        assert torch.allclose(*heads, rtol=1e-3, atol=1e-5)


def test_class_names_are_drawn_as_they_are(tmp_path):
    # matplotlib takes them for a formula, here one that does not end
    name = "$\\frac{$"
    data = ImageDataset.from_folder(write_image_folder(tmp_path, {name: 6, "b": 6})).split(0.5, 0.5)
    dls = data.dataloaders(size=32, bs=4)
    learn = quiet(cnn_learner(dls, "test_resnet", False))
    draws = [dls.show_batch, dls.valid.show_batch, learn.show_results]
    for draw in [*draws, lambda: dls.test_dl(data.paths, with_labels=True).show_batch()]:
        draw()
        figure = plt.gcf()
        figure.canvas.draw()
        assert any(name in axes.get_title() for axes in figure.axes)
        plt.close(figure)
    assert plt.rcParams["text.parse_math"]


_COUNTED = """
import sys
from learnkit import ImageDataset
if __name__ == "__main__":
    data = ImageDataset.from_folder(sys.argv[1]).split(seed=0)
    dls = data.dataloaders(size=16, bs=2, num_workers=2)
    print(len(dls.train_ds), sum(len(x) for x, _ in dls.train))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="processes hand over by other means there")
def test_no_batch_of_a_reading_process_is_lost_where_temporary_files_lie_deep(tmp_path):
    for name in "ab":
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(6):
            Image.new("RGB", (16, 16), (number, 0, 0)).save(
                tmp_path / "images" / name / f"{number}.png"
            )
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _COUNTED, str(tmp_path / "images")],
        env={**os.environ, "TMPDIR": str(deep)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (found.stdout, "AF_UNIX" in found.stderr) == ("8 8\n", False), found.stderr


class TestMemoryOfBatches:
    BYTES = torch.arange(2 * 3 * 128, dtype=torch.uint8).view(2, 3, 8, 16).as_subclass(TensorImage)

    @pytest.mark.parametrize(
        "copied", [lambda tfm: tfm, copy.deepcopy, lambda tfm: pickle.loads(pickle.dumps(tfm))]
    )
    def test_values_are_fastais_to_the_bit_whatever_came_before(self, copied):
        tfm = BytesToFloat()
        tfm(self.BYTES)
        tfm = copied(tfm)
        for part in (self.BYTES, self.BYTES.flip(0), self.BYTES[:1], self.BYTES):
            found, wanted = tfm(part), IntToFloatTensor()(part)
            assert type(found) is type(wanted) is TensorImage
            assert torch.equal(found, wanted)
            assert found.is_contiguous()

    def test_what_somebody_holds_is_not_written_over(self):
        tfm = BytesToFloat()
        wanted = (self.BYTES.as_subclass(torch.Tensor) / 255).numpy()
        held = tfm(self.BYTES)[1:, 0]  # a view
        array = tfm(self.BYTES).as_subclass(torch.Tensor).numpy()
        detached = tfm(self.BYTES).detach()
        weight = torch.ones((), requires_grad=True)
        product = (tfm(self.BYTES).as_subclass(torch.Tensor) * weight).sum()
        for _ in range(4):
            tfm(torch.zeros_like(self.BYTES))
        assert np.array_equal(held, wanted[1:, 0])
        assert np.array_equal(array, wanted)
        assert np.array_equal(detached, wanted)
        product.backward()
        assert weight.grad == pytest.approx(wanted.sum(), rel=1e-4)

    def test_memory_of_a_batch_that_is_gone_is_used_again(self):
        tfm = BytesToFloat()
        places = {tfm(self.BYTES).data_ptr() for _ in range(5)}
        assert len(places) == 1
        one, other = tfm(self.BYTES), tfm(self.BYTES)
        assert one.data_ptr() != other.data_ptr()
