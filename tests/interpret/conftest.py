"""Learners with random weights on tiny images, one per test."""

import fastai.callback.progress  # noqa: F401  # learners made from here on have bars
import helpers
import pytest
from fastai.data.block import DataBlock, MultiCategoryBlock
from fastai.data.transforms import Normalize, RandomSplitter, get_image_files
from fastai.learner import Learner
from fastai.losses import BCEWithLogitsLossFlat
from fastai.vision.augment import Resize, aug_transforms
from fastai.vision.data import ImageBlock, ImageDataLoaders
from helpers import quiet, tiny_cnn


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory):
    return helpers.write_image_folder(
        tmp_path_factory.mktemp("images"), {"ant": 9, "bee": 6, "cat": 10}
    )


@pytest.fixture
def dls(image_folder):
    return ImageDataLoaders.from_folder(
        image_folder,
        valid_pct=0.5,
        seed=1,
        item_tfms=Resize(16),
        batch_tfms=[*aug_transforms(), Normalize.from_stats([0.5] * 3, [0.25] * 3, cuda=False)],
        bs=4,
        num_workers=0,
    )


@pytest.fixture
def learn(dls):
    return quiet(Learner(dls, tiny_cnn(3)))


@pytest.fixture
def multi_learn(image_folder):
    """A learner whose images have none, one or both of the labels `early` and `warm`."""

    def labels(path):
        early, warm = int(path.stem) % 2 == 0, path.parent.name != "bee"
        return [name for name, there in (("early", early), ("warm", warm)) if there]

    block = DataBlock(
        (ImageBlock, MultiCategoryBlock(vocab=["early", "warm"])),
        get_items=get_image_files,
        get_y=labels,
        splitter=RandomSplitter(0.5, seed=1),
        item_tfms=Resize(16),
    )
    dls = block.dataloaders(image_folder, bs=4, num_workers=0)
    return quiet(Learner(dls, tiny_cnn(2), loss_func=BCEWithLogitsLossFlat(thresh=0.4)))
