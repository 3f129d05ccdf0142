"""Test-time augmentation: the mean over augmented passes, on every kind of loader."""

import pytest
import torch
from fastai.data.core import DataLoaders
from fastai.data.transforms import IntToFloatTensor, Normalize
from fastai.vision.augment import Brightness, Flip, RandomResizedCrop, Resize, aug_transforms
from fastai.vision.data import ImageDataLoaders
from fasttransform import Transform
from helpers import quiet, write_image_folder

from learnkit.data.dataset import ImageDataset
from learnkit.learner.factory import cnn_learner


class Shift(Transform):
    """Lightens training images by a known amount."""

    split_idx, order = 0, 30

    def __init__(self, by):
        self.by = by

    def encodes(self, x: torch.Tensor):
        return x + self.by if x.is_floating_point() else x


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = write_image_folder(tmp_path_factory.mktemp("images"), dict.fromkeys("ab", 10))
    return ImageDataset.from_folder(root).split(0.5, 0.5, seed=0)


def learner(dls):
    torch.manual_seed(0)
    learn = quiet(cnn_learner(dls, "test_resnet", False))
    learn.model.eval()
    return learn


def shifted(learn, by):
    """Probabilities of the validation images, lightened before they are normalised."""
    normalize = next(t for t in learn.dls.valid.after_batch.fs if isinstance(t, Normalize))
    with torch.no_grad():
        rows = [learn.model(x + by / normalize.std) for x, _ in learn.dls.valid]
    return torch.cat([torch.Tensor(row) for row in rows]).softmax(1)


@pytest.mark.parametrize("given", [False, True], ids=["of the training", "given"])
def test_it_is_the_mean_over_augmented_passes(data, given):
    augment = None if given else [Shift(0.2)]
    learn = learner(data.dataloaders(size=24, bs=4, augment=augment))
    kwargs = {"batch_tfms": [Shift(0.2)]} if given else {}
    plain, light = shifted(learn, 0), shifted(learn, 0.2)
    assert (light - plain).abs().max() > 1e-3
    probs, targets = learn.tta(n=2, **kwargs)
    assert torch.allclose(probs, light + 0.25 * (plain - light), atol=1e-5)
    assert torch.equal(targets, learn.get_preds()[1])
    augmented, as_they_are = learn.tta(n=1, beta=None, **kwargs)[0]
    assert torch.allclose(augmented, light, atol=1e-5)
    assert torch.allclose(as_they_are, plain, atol=1e-5)
    largest = learn.tta(n=2, use_max=True, **kwargs)[0]
    assert torch.allclose(largest, torch.maximum(light, plain), atol=1e-5)
    assert torch.equal(learn.get_preds()[0], learn.get_preds()[0])
    assert torch.allclose(learn.get_preds()[0], plain, atol=1e-6)  # the loaders are as they were


@pytest.mark.parametrize("source", ["own", "the user's", "train", "new files"])
def test_every_loader_is_augmented(data, source):
    dls = data.dataloaders(size=24, bs=4, augment=[Shift(0.3)])
    learn = learner(dls)
    sources = {
        "own": {"dl": learn.dls.valid},
        "the user's": {"dl": dls.valid},
        "train": {"ds_idx": 0},
        "new files": {"dl": dls.test_dl(list(data.valid.paths))},
    }
    augmented, plain = learn.tta(n=1, beta=None, **sources[source])[0]
    assert augmented.shape == plain.shape == (10, 2)
    assert (augmented - plain).abs().max() > 1e-3
    if source != "train":
        assert torch.allclose(augmented, shifted(learn, 0.3), atol=1e-5)


def test_augmentation_of_single_images_is_repeated_too(data):
    dls = data.dataloaders(size=24, bs=4, item_tfms=RandomResizedCrop(24, min_scale=0.2))
    augmented, plain = learner(dls).tta(n=1, beta=None)[0]
    assert (augmented - plain).abs().max() > 1e-4


@pytest.mark.parametrize(
    "tfms",
    [
        aug_transforms(),
        [
            IntToFloatTensor(),
            *aug_transforms(),
            Normalize.from_stats([0.5] * 3, [0.3] * 3, cuda=False),
        ],
        Flip(p=1.0),
        [Brightness(p=1.0)],
    ],
    ids=["fastai's", "whole", "one", "of light"],
)
def test_augmentation_may_be_given_on_fastais_loaders_and_ours(data, tfms):
    root = data.root
    theirs = ImageDataLoaders.from_folder(
        root, valid_pct=0.5, seed=0, item_tfms=Resize(24), bs=4, num_workers=0
    )
    for dls in (data.dataloaders(size=24, bs=4), theirs):
        augmented, plain = learner(dls).tta(n=1, beta=None, batch_tfms=tfms)[0]
        assert (augmented - plain).abs().max() > 1e-5
        assert plain.sum(1).allclose(torch.ones(len(plain)))


def test_fastais_own_loaders_give_fastais_own_answer(data):
    dls = ImageDataLoaders.from_folder(
        data.root,
        valid_pct=0.5,
        seed=0,
        item_tfms=Resize(24, method="squish"),
        batch_tfms=[Shift(0.2)],
        bs=4,
        num_workers=0,
    )
    learn = learner(dls)
    from fastai.learner import Learner

    assert torch.equal(learn.tta(n=1)[0], Learner.tta(learn, n=1)[0])


def test_without_augmentation_it_is_said(data):
    learn = learner(data.dataloaders(size=24, bs=4))
    with pytest.warns(UserWarning, match=r"not augmented, .* give batch_tfms=aug_transforms\(\)"):
        probs = learn.tta(n=1)[0]
    assert torch.allclose(probs, learn.get_preds()[0], atol=1e-6)
    assert isinstance(learn.dls, DataLoaders)
