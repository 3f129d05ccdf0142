"""The preprocessed store: the same pixels as from the files, whatever happens to it or to them."""

import multiprocessing
import os
import signal
import sys

import numpy as np
import pytest
import torch
from fastai.torch_core import TensorCategory, TensorImage, TensorImageBW, TensorMultiCategory
from fastai.vision.augment import Flip, FlipItem, aug_transforms
from helpers import quiet, write_image_folder
from PIL import Image

from learnkit.callback.frozen_features import FrozenFeatures
from learnkit.data.dataset import ImageDataset
from learnkit.data.preprocess import Preprocessing
from learnkit.data.store import ImageStore
from learnkit.errors import DataError, UnreadableImagesError
from learnkit.learner.dataloaders import StoreLoader
from learnkit.learner.factory import cnn_learner
from learnkit.learner.transforms import preprocessing_of

SIZE = (24, 20)
QUIET = {"progress": False, "n_workers": 0}


@pytest.fixture
def data(tmp_path):
    folder = write_image_folder(tmp_path / "images", {"a": 9, "b": 7, "c": 5}, size=(60, 50))
    return ImageDataset.from_folder(folder).split(0.6, 0.2, seed=0)


def epochs(dls, n=2):
    torch.manual_seed(0)
    return [batch for _ in range(n) for dl in dls.loaders for batch in dl]


def assert_same_batches(dls, others):
    for one, other in zip(epochs(dls), epochs(others), strict=True):
        assert list(map(type, one)) == list(map(type, other))
        assert all(map(torch.equal, one, other))


@pytest.mark.parametrize("augment", [None, [Flip(p=1.0)], True], ids=["plain", "flip", "all"])
@pytest.mark.parametrize("channels", [3, 1])
def test_batches_are_those_of_the_files_to_the_bit(data, tmp_path, augment, channels):
    kwargs = {"size": SIZE, "channels": channels, "method": "squish"}
    stored = data.preprocess(tmp_path / "store", **kwargs, **QUIET)
    loading = {"bs": 4, "augment": augment, "seed": 7}
    ours = stored.dataloaders(**loading)
    assert isinstance(ours.train, StoreLoader)
    assert_same_batches(ours, data.dataloaders(**kwargs, **loading))
    assert type(epochs(ours)[0][0]) is (TensorImage if channels == 3 else TensorImageBW)
    assert type(epochs(ours)[0][1]) is TensorCategory


def test_several_labels_balance_and_workers_too(data, tmp_path):
    labels = [[name, "all"] if i % 3 else [] for i, name in enumerate(data.labels)]
    several = ImageDataset(data.frame.assign(label=labels), data.root)
    stored = several.preprocess(tmp_path / "store", SIZE, **QUIET)
    dls = stored.dataloaders(bs=4)
    assert_same_batches(dls, several.dataloaders(SIZE, bs=4))
    assert type(epochs(dls)[0][1]) is TensorMultiCategory
    one = data.preprocess(tmp_path / "store", SIZE, **QUIET)
    assert_same_batches(
        one.dataloaders(bs=4, balance=True), data.dataloaders(SIZE, bs=4, balance=True)
    )
    assert_same_batches(
        one.dataloaders(bs=4, num_workers=2), data.dataloaders(SIZE, bs=4, num_workers=0)
    )


def test_the_loaders_option_fills_the_store_and_a_dataset_keeps_it_through_its_verbs(
    data, tmp_path
):
    dls = data.dataloaders(SIZE, bs=4, store=tmp_path / "store")
    assert_same_batches(dls, data.dataloaders(SIZE, bs=4))
    stored = data.preprocess(tmp_path / "store", SIZE, **QUIET)
    part = stored.filter(stored.frame["label"] != "c").split(0.5, 0.5, overwrite=True)
    assert isinstance(part.dataloaders().train, StoreLoader)
    assert part.dataloaders().preprocessing.size == SIZE
    assert preprocessing_of(part.dataloaders()) == preprocessing_of(part.dataloaders(SIZE))


@pytest.mark.filterwarnings("ignore:the training images are not augmented")
def test_a_learner_trains_to_the_same_weights_and_measures_the_same(data, tmp_path):
    found = []
    for loading in ({}, {"store": tmp_path / "store"}):
        for cbs in ([], [FrozenFeatures()]):
            dls = data.dataloaders(32, bs=4, **loading)
            torch.manual_seed(0)
            learn = quiet(cnn_learner(dls, "test_resnet", False, train_bn=False, cbs=cbs))
            assert isinstance(learn.dls.train, StoreLoader) is bool(loading)
            learn.freeze()
            with learn.no_logging():
                torch.manual_seed(1)
                learn.fit(2, 0.01)
            assert not cbs or learn.frozen_features.reason is None
            weights = torch.cat([p.flatten() for p in learn.model.parameters()])
            found.append((weights, learn.evaluate().summary, learn.tta()[0]))
    for weights, summary, views in found[2:]:
        assert torch.equal(weights, found[0][0]) or torch.allclose(weights, found[1][0])
        assert (
            summary.to_dict() == found[0][1].to_dict() or summary.to_dict() == found[1][1].to_dict()
        )
        assert views.shape == found[0][2].shape
    assert torch.equal(found[2][0], found[0][0])


def test_other_images_are_read_from_their_files(data, tmp_path):
    stored = data.preprocess(tmp_path / "store", SIZE, **QUIET).dataloaders(bs=4)
    new = write_image_folder(tmp_path / "new", {"a": 2}, size=(60, 50), seed=9)
    files = sorted(new.rglob("*.png"))
    plain = data.dataloaders(SIZE, bs=4)
    assert torch.equal(stored.test_dl(files).one_batch()[0], plain.test_dl(files).one_batch()[0])


def test_only_what_is_new_or_changed_is_read_again(data, tmp_path, monkeypatch):
    read = []
    real = Preprocessing.read
    monkeypatch.setattr(Preprocessing, "read", lambda self, f: read.append(f) or real(self, f))
    data.preprocess(tmp_path / "store", SIZE, **QUIET)
    assert sorted(read) == sorted(data.paths)
    read.clear()
    stored = data.preprocess(tmp_path / "store", SIZE, **QUIET)
    assert read == []
    changed, touched, *_ = data.train.paths
    Image.new("RGB", (60, 50), (9, 8, 7)).save(changed)
    os.utime(touched, ns=(1, 1))
    dls = stored.dataloaders(bs=4)  # sees it by itself
    assert read == [changed]
    pixels = dls.train_ds[stored.train.paths.index(changed)][0]
    assert np.array_equal(np.asarray(pixels), np.full((*SIZE, 3), (9, 8, 7)))
    read.clear()
    stored.dataloaders(bs=4)
    assert read == []  # the other time of the touched one was noted
    assert_same_batches(stored.dataloaders(bs=4), data.dataloaders(SIZE, bs=4))


def test_a_moved_dataset_is_known_by_its_content(data, tmp_path, monkeypatch):
    data.preprocess(tmp_path / "store", SIZE, **QUIET)
    data.root.rename(tmp_path / "moved")
    moved = ImageDataset(data.frame, tmp_path / "moved")
    monkeypatch.setattr(Preprocessing, "read", None)  # nothing is decoded
    moved.preprocess(tmp_path / "store", SIZE, **QUIET)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"size": 16}, r"size \[24, 20\] there, \[16, 16\] here"),
        ({"size": SIZE, "channels": 1}, "channels 3 there, 1 here"),
        ({"size": SIZE, "method": "pad"}, "method 'crop' there, 'pad' here"),
        ({"size": SIZE, "draft": False}, "draft True there, False here"),
    ],
    ids=["size", "channels", "method", "draft"],
)
def test_another_recipe_is_noticed(data, tmp_path, other, message):
    stored = data.preprocess(tmp_path / "store", SIZE, **QUIET)
    for call in (data.preprocess, stored.dataloaders):
        folder = {"folder": tmp_path / "store"} if call == data.preprocess else {}
        with pytest.raises(DataError, match=f"made by another recipe .*{message}"):
            call(**folder, **other)


def test_parts_of_a_recipe_change_that_of_the_store(data, tmp_path):
    stored = data.preprocess(tmp_path / "store", SIZE, crop=0.5, **QUIET)
    with pytest.raises(DataError, match=r"made by another recipe .*method 'crop' there, 'squish'"):
        stored.dataloaders(method="squish")
    same = stored.dataloaders(method="crop", mean=(0.5,) * 3, std=(0.2,) * 3).preprocessing
    assert (same.size, same.crop, same.mean) == (SIZE, 0.5, (0.5,) * 3)


def test_mean_and_std_are_no_part_of_what_is_stored(data, tmp_path):
    recipe = Preprocessing(SIZE, mean=(0.5,) * 3, std=(0.2,) * 3)
    stored = data.preprocess(tmp_path / "store", preprocessing=recipe, **QUIET)
    assert_same_batches(
        stored.dataloaders(bs=4, preprocessing=recipe),
        data.dataloaders(bs=4, preprocessing=recipe),
    )


def test_unreadable_images_are_all_named_and_the_others_stored(data, tmp_path, monkeypatch):
    broken = data.paths[3], data.paths[8]
    for path in broken:
        path.write_bytes(b"no image")
    data.paths[5].unlink()
    with pytest.raises(
        UnreadableImagesError, match=r"3 of 21 images .* the others are stored"
    ) as e:
        data.preprocess(tmp_path / "store", SIZE, **QUIET)
    assert set(e.value.failures) == {str(p) for p in (*broken, data.paths[5])}
    rest = data.filter([path not in (*broken, data.paths[5]) for path in data.paths])
    monkeypatch.setattr(Preprocessing, "read", None)
    rest.preprocess(tmp_path / "store", SIZE, **QUIET)


def test_item_transforms_are_refused(data, tmp_path):
    with pytest.raises(DataError, match="`item_tfms` see images in their original size, and a sto"):
        data.dataloaders(SIZE, store=tmp_path / "store", item_tfms=FlipItem())


def test_item_transforms_of_a_later_pass_see_the_stored_images(data, tmp_path):
    ours = data.preprocess(tmp_path / "store", SIZE, **QUIET).dataloaders(bs=4)
    theirs = data.dataloaders(SIZE, bs=4)
    for dls in (ours, theirs):
        dls.valid = dls.valid.new(after_item=[FlipItem(p=1.0), *dls.valid.after_item.fs])
    assert not ours.valid._whole
    assert_same_batches(ours, theirs)


def _fill(folder, root, frame, barrier=None):
    if barrier is not None:
        barrier.wait()
    ImageDataset(frame, root).preprocess(folder, SIZE, **QUIET)


@pytest.mark.skipif(sys.platform == "win32", reason="forks and kills")
class TestProcesses:
    @pytest.mark.parametrize("share", [0.05, 0.4, 0.8])
    def test_after_a_kill_the_same_call_goes_on(self, data, tmp_path, share, monkeypatch):
        from learnkit.data import store

        monkeypatch.setattr(store, "_TOGETHER", 2)
        n_before = int(share * len(data))
        child = os.fork()
        if not child:
            real, seen = Preprocessing.read, []

            def dying(self, file):
                seen.append(file)
                if len(seen) > n_before:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(self, file)

            Preprocessing.read = dying
            _fill(tmp_path / "store", data.root, data.frame)
            os._exit(0)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
        read, real = [], Preprocessing.read
        monkeypatch.setattr(Preprocessing, "read", lambda self, f: read.append(f) or real(self, f))
        stored = data.preprocess(tmp_path / "store", SIZE, **QUIET)
        assert len(data) - n_before <= len(read) <= len(data) - n_before + 2
        assert_same_batches(stored.dataloaders(bs=4), data.dataloaders(SIZE, bs=4))

    def test_processes_share_a_store(self, data, tmp_path):
        context = multiprocessing.get_context("fork")
        barrier = context.Barrier(3)
        arguments = (tmp_path / "store", data.root, data.frame, barrier)
        children = [context.Process(target=_fill, args=arguments) for _ in range(3)]
        for child in children:
            child.start()
        for child in children:
            child.join(60)
        assert [child.exitcode for child in children] == [0, 0, 0]
        store = ImageStore(tmp_path / "store", data.dataloaders(SIZE).preprocessing)
        assert len(store._rows) == len(data)  # each image once
        stored = data.preprocess(tmp_path / "store", SIZE, **QUIET)
        assert_same_batches(stored.dataloaders(bs=4), data.dataloaders(SIZE, bs=4))


def test_augmentation_draws_what_it_draws_without_a_store(data, tmp_path):
    ours = data.dataloaders(SIZE, bs=4, augment=aug_transforms(), store=tmp_path / "store")
    assert_same_batches(ours, data.dataloaders(SIZE, bs=4, augment=aug_transforms()))
