"""Loaders that are not the learner's own: its pixels, its class numbers, whoever made them."""

import warnings

import matplotlib as mpl
import numpy as np
import pytest
import torch
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.core import DataLoaders
from fastai.data.transforms import Normalize, parent_label
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from fastai.vision.augment import Resize
from fastai.vision.data import ImageBlock
from helpers import quiet, tiny_learner, write_image_folder
from torch.utils.data import DataLoader, Subset

from learnkit.callback.frozen_features import FrozenFeatures
from learnkit.data.dataset import ImageDataset
from learnkit.data.preprocess import Preprocessing
from learnkit.deploy.predictor import load_learner
from learnkit.errors import DataError, InterpretationError
from learnkit.learner.dataloaders import with_normalization
from learnkit.learner.factory import cnn_learner
from learnkit.learner.learner import ImageLearner
from learnkit.learner.transforms import preprocessing_of

# plain passes are all these tests need
pytestmark = pytest.mark.filterwarnings("ignore:the training images are not augmented")

mpl.use("Agg")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = write_image_folder(tmp_path_factory.mktemp("images"), dict.fromkeys("abc", 12))
    return ImageDataset.from_folder(root).split(0.5, 0.25, seed=0)


@pytest.fixture(scope="module")
def dls(data):
    """The user's own loaders, which `cnn_learner` normalises a copy of."""
    return data.dataloaders(size=32, bs=6)


@pytest.fixture(scope="module")
def learn(dls):
    torch.manual_seed(0)
    learn = quiet(cnn_learner(dls, "test_resnet", False, metrics=accuracy))
    with learn.no_logging():
        learn.fit_one_cycle(2, 1e-2)
    return learn


def only(data, names):
    return ImageDataset(data.frame[data.frame["label"].isin(list(names))], data.root)


class Files(torch.utils.data.Dataset):
    """Images (C, H, W) of files, as one of torch's datasets gives them, and what they show."""

    def __init__(self, data, pixels, classes=None):
        self.paths, self.labels, self.pixels = data.paths, data.labels, pixels
        self.classes = classes or sorted(set(data.labels))

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        return self.pixels(self.paths[i]), self.classes.index(self.labels[i])


def of_fastai(data, **kwargs):
    block = DataBlock(
        (ImageBlock, CategoryBlock),
        get_y=parent_label,
        splitter=lambda files: (list(range(len(files))), list(range(len(files)))),
        item_tfms=Resize(32),
        **kwargs,
    )
    return block.dataloaders(list(data.paths), bs=5, num_workers=0)[1]


def of_torch(data, **kwargs):
    recipe = Preprocessing(32)
    return DataLoader(Files(data, lambda path: recipe.load(path) / 255, **kwargs), batch_size=5)


def in_bytes(data):
    return DataLoader(Files(data, Preprocessing(32).load), batch_size=5)


def of_itself(data):
    return data.dataloaders(size=32, bs=5)


SOURCES = {
    "a dataset's": lambda data: of_itself(data)[1],
    "of other statistics": lambda data: with_normalization(of_itself(data), [0.2] * 3, [3.0] * 3)[
        1
    ],
    "fastai's": lambda data: of_fastai(data.valid),
    "fastai's, normalised": lambda data: of_fastai(
        data.valid, batch_tfms=Normalize.from_stats([0.3] * 3, [0.5] * 3, cuda=False)
    ),
    "torch's": lambda data: of_torch(data.valid),
    "a part of torch's": lambda data: DataLoader(
        Subset(of_torch(data.valid).dataset, range(len(data.valid))), batch_size=4
    ),
    "in bytes": lambda data: in_bytes(data.valid),
}


@pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES)
@pytest.mark.parametrize("names", ["abc", "bc"])
def test_every_pass_gives_the_value_of_data(learn, data, make, names):
    some = only(data, names)
    dl, expected = make(some), learn.outputs(data=some.valid)
    found = learn.outputs(dl=dl)
    assert torch.allclose(found.logits, expected.logits, atol=1e-4)
    assert torch.equal(found.targets, expected.targets)
    right = learn.evaluate(data=some.valid).summary.accuracy
    assert learn.evaluate(dl).summary.accuracy == right
    assert learn.validate(dl=dl)[1] == pytest.approx(right)
    probs, targets = learn.get_preds(dl=dl)
    assert torch.allclose(probs, expected.probs, atol=1e-4)
    assert torch.equal(targets.long(), expected.targets)
    interp = learn.interpret(dl=dl)
    assert interp.confusion_matrix().tolist() == (
        learn.interpret(data=some.valid).confusion_matrix().tolist()
    )


def test_files_of_the_users_loaders_are_seen_as_the_learner_sees_them(learn, dls, data):
    files = list(data.valid.paths)
    expected = learn.outputs(data=data.valid).probs
    for test_dl in (dls.test_dl(files), learn.dls.test_dl(files), of_fastai(data.valid)):
        assert torch.allclose(learn.get_preds(dl=test_dl)[0], expected, atol=1e-6)
    labelled = dls.test_dl(files, with_labels=True)
    assert list(learn.validate(dl=labelled)) == pytest.approx(list(learn.validate()))
    assert torch.allclose(learn.tta(dl=dls.valid, beta=1.0)[0], expected, atol=1e-6)


def test_batches_at_hand_are_seen_so_too(learn, dls):
    expected = learn.get_preds()[0][:6]
    for batch in (dls.valid.one_batch(), learn.dls.valid.one_batch()):
        assert torch.allclose(learn.get_preds(dl=[batch])[0], expected, atol=1e-6)
        assert torch.allclose(learn.outputs(dl=[batch]).probs, expected, atol=1e-6)


def test_pixels_that_do_not_tell_are_taken_for_plain_ones_with_a_warning(learn, data):
    recipe = Preprocessing(32)
    halves = Files(data.valid, lambda path: recipe.load(path) / 255 * 0.5 + 0.123)
    with pytest.warns(UserWarning, match=r"does not tell whether .* lie in 0\.\.1, so they"):
        found = learn.outputs(dl=DataLoader(halves, batch_size=9)).logits
    mean, std = (torch.tensor(s).view(-1, 1, 1) for s in learn_statistics(learn))
    normal = Files(data.valid, lambda path: (recipe.load(path) / 255 * 0.5 + 0.123 - mean) / std)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = learn.outputs(dl=DataLoader(normal, batch_size=9)).logits
    assert torch.allclose(found, expected, atol=1e-5)


def learn_statistics(learn):
    recipe = preprocessing_of(learn.dls)
    return recipe.mean, recipe.std


def test_pictures_are_drawn_with_the_answers_of_the_learner(learn, dls, data):
    axes = [mpl.figure.Figure().subplots() for _ in range(4)]
    learn.show_results(dl=dls.valid, max_n=4, ctxs=axes)
    answers = learn.predict_batch(data.valid.paths[:4])
    expected = [f"{a}\n{b.label}" for a, b in zip(data.valid.labels, answers, strict=False)]
    assert [ax.get_title() for ax in axes] == expected


def test_heatmaps_are_those_of_the_learners_pixels(learn, dls):
    def drawn(dl):
        axes = learn.interpret(dl=dl).plot_top_losses(3, heatmap=True, heatmap_thresh=1)
        return [np.asarray(image.get_array()) for ax in axes.ravel() for image in ax.images]

    for ours, theirs in zip(drawn(learn.dls.valid), drawn(dls.valid), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=0.01)  # pictures are decoded to 1/255


def test_calibration_and_ood_scores_come_from_the_learners_pixels(dls, data):
    learn = tiny_learner(data)
    fitted, again = (tiny_learner(data).calibrate(dl) for dl in (None, dls.valid))
    assert again.temperature == pytest.approx(fitted.temperature)
    learn.fit_ood()
    own = [line.get_xdata() for line in learn.plot_ood().lines]
    other = [line.get_xdata() for line in learn.plot_ood(dl=dls.valid).lines]
    for a, b in zip(own, other, strict=True):
        np.testing.assert_allclose(a, b)
    learn.clear_ood().init_continual(data)
    ours, theirs = learn.evaluate().summary, learn.evaluate(dls.valid).summary
    assert ours.false_alarm_rate == theirs.false_alarm_rate
    assert list(learn.validate(dl=dls.valid)) == pytest.approx(list(learn.validate()))


def test_images_without_files_are_learned_from_the_learners_pixels(data):
    learn, other = tiny_learner(data), tiny_learner(data)
    learn.init_continual(data.train)
    other.init_continual(of_torch(data.train))
    images = data.valid.paths
    assert learn.predict_batch(images)[0].label == other.predict_batch(images)[0].label
    ours, theirs = (one.continual.statistics.sums for one in (learn, other))
    np.testing.assert_allclose(ours, theirs, atol=len(data.train) * 2)  # units of 2^-15


class TestNewLoaders:
    """`learn.dls = loaders`, as for progressive resizing, and learners over a given network."""

    def test_are_normalised_as_the_former_ones_and_stay_as_they_were(self, data):
        learn = tiny_learner(data)
        before = preprocessing_of(learn.dls)
        larger = data.dataloaders(size=48, bs=6)
        learn.dls = larger
        assert preprocessing_of(learn.dls) == before.replace(size=48)
        assert preprocessing_of(larger).mean is None
        learn.dls = learn.dls
        assert sum(isinstance(t, Normalize) for t in learn.dls.valid.after_batch.fs) == 1
        with learn.no_logging():
            learn.fit(1)

    def test_of_other_statistics_are_refused_and_nothing_changes(self, data):
        learn = tiny_learner(data)
        own = learn.dls
        other = with_normalization(data.dataloaders(size=32, bs=6), [0.2] * 3, [0.3] * 3)
        with pytest.raises(DataError, match=r"mean \[0\.2.*built for .*leave Normalize out"):
            learn.dls = other
        assert learn.dls is own
        plain = tiny_learner(data, normalize=False)
        with pytest.raises(DataError, match=r"mean \[0\.2.*built for pixels in 0\.\.1; leave"):
            plain.dls = other
        assert torch.allclose(  # a mere pass takes them back to what they were
            plain.outputs(dl=other.valid).logits, plain.outputs().logits, atol=1e-4
        )

    def test_may_have_their_classes_in_another_order(self, data):
        learn = tiny_learner(data, metrics=accuracy)
        expected, answers = learn.evaluate().confusion, learn.predict_batch(data.paths)
        turned = ImageDataset(data.frame, data.root, classes=["c", "a", "b"])
        learn.dls = turned.dataloaders(size=32, bs=6)
        assert learn.evaluate().confusion.equals(expected)
        assert [p.label for p in learn.predict_batch(data.paths)] == [p.label for p in answers]
        assert learn.validate()[1] == pytest.approx(learn.evaluate().summary.accuracy)

    def test_with_classes_the_network_cannot_say_are_refused(self, data):
        learn = tiny_learner(only(data, "ab"))
        with pytest.raises(DataError, match=r"no output for: 'c'; it has 2 outputs: 'a', 'b'\. B"):
            learn.dls = data.dataloaders(size=32, bs=6)
        assert learn.dls.vocab == ["a", "b"]
        with pytest.raises(DataError, match="no output for: 'c'"):
            ImageLearner(data.dataloaders(size=32), learn.model)

    def test_a_new_head_may_have_new_classes(self, data):
        learn = tiny_learner(only(data, "ab"))
        learn.model[1] = tiny_learner(data).model[1]
        learn.dls = data.dataloaders(size=32, bs=6)
        assert learn.outputs().classes == ["a", "b", "c"]

    def test_of_a_network_that_was_loaded_are_normalised_as_it_was(self, data, learn, tmp_path):
        path = learn.export(tmp_path / "model")
        q = load_learner(path)
        loss = CrossEntropyLossFlat()
        for loaders in (
            data.dataloaders(preprocessing=q.preprocessing),
            data.dataloaders(size=32),
            of_itself(ImageDataset(data.frame, data.root, classes=["c", "b", "a"])),
        ):
            again = quiet(ImageLearner(loaders, q.model, loss))
            assert torch.allclose(again.outputs().logits, learn.outputs().logits, atol=1e-5)
            assert again.evaluate().confusion.equals(learn.evaluate().confusion)

    def test_the_recipe_of_loaders_is_whole(self, data):
        recipe = Preprocessing(32, mean=(0.4,) * 3, std=(0.2,) * 3)
        dls = data.dataloaders(preprocessing=recipe)
        assert dls.preprocessing == recipe
        assert preprocessing_of(dls).std == pytest.approx(recipe.std)
        expected = torch.stack([recipe(path) for path in data.valid.paths])
        assert torch.allclose(dls.valid.one_batch()[0], expected, atol=1e-6)

    def test_stored_features_are_no_pixels(self, data, dls):
        learns = [tiny_learner(data, train_bn=False, cbs=cbs) for cbs in ([FrozenFeatures()], [])]
        for learn in learns:
            learn.freeze()
            learn.dls = dls
            torch.manual_seed(0)
            learn.fit(1)
        assert learns[0].frozen_features.nbytes > 0
        ours, theirs = (one.get_preds()[0] for one in learns)
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_labels_of_no_class_are_named_from_torchs_loaders_too(learn, data):
    wider = of_torch(data.valid, classes=["a", "b", "x", "c"])
    assert learn.evaluate(wider).summary.accuracy == learn.evaluate().summary.accuracy
    known = tiny_learner(only(data, "ab"))
    with pytest.raises(InterpretationError, match="does not know: c; train on images of them"):
        known.evaluate(of_torch(data.valid))


def test_a_pass_over_the_learners_own_loaders_changes_no_bit(learn):
    for ds_idx in (0, 1):
        dl = learn.dls[ds_idx].new(shuffle=False, drop_last=False)
        with torch.no_grad():  # as passes run; where gradients are asked for, last bits differ
            plain = [learn.model.eval()(batch[0]) for batch in dl]
        assert torch.equal(learn.get_preds(ds_idx, act=lambda x: x)[0], torch.cat(plain))


# -- what is no DataLoaders of images ----------------------------------------------------------


@pytest.mark.parametrize("kind", ["DataLoader", "PlainNamesDL", "list", "ImageDataset"])
def test_one_loader_or_a_dataset_in_the_place_of_loaders_is_refused(data, dls, learn, kind):
    one = {
        "DataLoader": of_torch(data),
        "PlainNamesDL": dls.train,
        "list": list(dls.loaders),
        "ImageDataset": data,
    }[kind]
    said = f"`dls` is a {kind}; it must be DataLoaders .* or DataLoaders\\(train, valid\\) of two"
    with pytest.raises(DataError, match=said):
        cnn_learner(one, "test_resnet", False)
    with pytest.raises(DataError, match=said):
        ImageLearner(one, learn.model)


@pytest.mark.parametrize(
    ("item", "kind"),
    [
        ({"image": torch.zeros(3, 8, 8), "label": 0}, "dict"),
        ((0, torch.zeros(3, 8, 8)), "list"),
        ((torch.zeros(8, 8), 0), "list"),
        (torch.zeros(3, 8, 8), "Tensor"),
    ],
    ids=["dict", "label first", "no channels", "no label"],
)
def test_batches_that_do_not_begin_with_images_are_refused(item, kind):
    loaders = DataLoaders(*[DataLoader([item] * 6, 3)] * 2)
    said = f"a batch of `dls` is a {kind} that does not begin with images; it must be"
    with pytest.raises(DataError, match=said):
        cnn_learner(loaders, "test_resnet", False, n_out=3)


def test_an_architecture_left_out_is_asked_for_without_data_too():
    with pytest.raises(TypeError, match="cnn_learner needs `dls` and `arch`"):
        cnn_learner(None, size=32)
