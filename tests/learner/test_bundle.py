"""From a bundle back to a learner: the same answers, and everything goes on."""

import shutil

import numpy as np
import pytest
import torch
from fastai.metrics import accuracy
from helpers import quiet, tiny_learner, write_image_folder

from learnkit.data.dataset import ImageDataset
from learnkit.deploy.predictor import load_learner
from learnkit.errors import (
    BundleCorruptError,
    BundleWriteError,
    DataError,
    InterpretationError,
)
from learnkit.learner.factory import cnn_learner
from learnkit.learner.learner import ImageLearner
from learnkit.learner.transforms import preprocessing_of

# few tiny images, validation and learned ones unlike
pytestmark = pytest.mark.filterwarnings("ignore:.* are more unusual than 95% of")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = write_image_folder(tmp_path_factory.mktemp("images"), dict.fromkeys("abc", 12))
    return ImageDataset.from_folder(root).split(0.5, 0.25, seed=0)


def only(data, names):
    return ImageDataset(data.frame[data.frame["label"].isin(list(names))], data.root)


@pytest.fixture(scope="module")
def trained(data):
    torch.manual_seed(0)
    dls = data.dataloaders(size=(30, 34), bs=6, method="squish")
    learn = quiet(cnn_learner(dls, "test_resnet", False, metrics=accuracy))
    with learn.no_logging():
        learn.fit_one_cycle(2, 1e-2)
    learn.fit_ood()
    return learn


@pytest.fixture(scope="module")
def bundle(trained, tmp_path_factory):
    return trained.export(tmp_path_factory.mktemp("bundle") / "model")


def again(path, data=None, **kwargs):
    learn = quiet(ImageLearner.from_bundle(path, data, **kwargs))
    learn.logger = lambda *_: None
    return learn


def answers(model, data):
    return [(p.label, p.is_ood, p.ood_score, *p.probs) for p in model.predict_batch(data.paths)]


def check_alike(one, other, data):
    for a, b in zip(answers(one, data), answers(other, data), strict=True):
        assert a[:2] == b[:2]
        np.testing.assert_allclose(a[2:], b[2:], atol=1e-5)


@pytest.mark.parametrize("with_data", [False, True], ids=["without data", "with data"])
def test_it_answers_as_the_learner_did_and_is_written_again(
    trained, bundle, data, with_data, tmp_path
):
    learn = again(bundle, data if with_data else None, metrics=accuracy)
    check_alike(learn, trained, data)
    summary = learn.evaluate(data=data.valid).summary
    np.testing.assert_allclose(summary, trained.evaluate().summary, atol=1e-5)
    assert preprocessing_of(learn.dls) == preprocessing_of(trained.dls)
    assert learn.ood.threshold == trained.ood.threshold
    assert learn.history.equals(trained.history)
    assert learn.outputs(data=data.valid).classes == ["a", "b", "c"]
    path = learn.export(tmp_path / "again")
    check_alike(load_learner(path), load_learner(bundle), data)
    assert load_learner(path).metadata["card"]["training"]["epochs"] == 2
    check_alike(again(path), trained, data)


def test_training_goes_on(trained, bundle, data):
    learn = again(bundle, data, metrics=accuracy).clear_ood()
    before = [p.clone() for p in learn.model.parameters()]
    learn.fit_one_cycle(1, 1e-3)
    assert any(not torch.equal(a, b) for a, b in zip(before, learn.model.parameters(), strict=True))
    assert list(learn.history["epoch"]) == [1, 2, 3]
    assert list(learn.history["fit"]) == [1, 1, 2]
    learn.fine_tune(1)
    learn.freeze()
    assert not all(p.requires_grad for p in learn.model[0].parameters())
    assert all(p.requires_grad for p in learn.model[1].parameters())


def test_a_continual_state_begins_from_it(trained, bundle, data):
    learn = again(bundle, data)
    learn.clear_ood().init_continual(data)
    expected = tiny_like(trained)
    expected.clear_ood().init_continual(data)
    check_alike(learn, expected, data)
    assert learn.drop_continual().continual is None
    learn.fit_ood()
    assert learn.ood.threshold.value == pytest.approx(trained.ood.threshold.value)


def tiny_like(learn):
    import copy

    return copy.deepcopy(learn)


class TestContinual:
    @pytest.fixture(scope="class")
    @classmethod
    def learner(cls, data):
        learn = tiny_learner(only(data, "ab"))
        learn.init_continual(only(data, "ab"))
        learn.extend(only(data, "c"))
        learn.rename({"a": "z"})
        return learn

    @pytest.fixture(scope="class")
    @classmethod
    def path(cls, learner, tmp_path_factory):
        return learner.export(tmp_path_factory.mktemp("continual") / "model")

    @pytest.mark.parametrize("with_data", [False, True], ids=["without data", "with data"])
    def test_state_names_and_steps_to_undo_come_along(self, learner, path, data, with_data):
        learn = again(path, data if with_data else None, metrics=accuracy)
        check_alike(learn, learner, data)
        assert learn.continual.classes == learner.continual.classes == ("z", "b", "c")
        dl = data.dataloaders(size=32, bs=4).valid  # says a, b, c
        assert learn.evaluate(dl).summary.equals(learner.evaluate(dl).summary)
        assert learn.validate(dl=dl)[1] == pytest.approx(learner.evaluate(dl).summary.accuracy)
        learn.undo()
        assert learn.continual.classes == ("a", "b", "c")
        assert learn.evaluate(dl).summary.equals(learner.evaluate(dl).summary)
        learn.undo()
        assert learn.continual.n_images == {"a": 6, "b": 6}

    def test_it_learns_on_to_the_same_bits(self, learner, path, data, tmp_path):
        new = ImageDataset(only(data, "c").frame.assign(label="d"), data.root)
        learn = again(path)
        learn.extend(new)
        other = tiny_like(learner)
        other.extend(new)
        assert torch.equal(learn.continual.statistics.gram, other.continual.statistics.gram)
        check_alike(learn, other, data)
        check_alike(load_learner(learn.export(tmp_path / "more")), other, data)

    def test_refit_trains_with_a_new_head(self, path, data):
        renamed = data.frame.assign(label=["z" if n == "a" else n for n in data.labels])
        learn = again(path)
        learn.refit(ImageDataset(renamed, data.root))
        assert set(learn.continual.classes) == {"b", "c", "z"}
        assert len(learn.history) == 2  # frozen and unfrozen


def test_several_labels_keep_loss_and_threshold(data, tmp_path):
    several = data.frame.assign(label=[(n, "d") if n == "a" else (n,) for n in data.labels])
    several = ImageDataset(several, data.root)
    first = tiny_learner(several)
    learn = again(first.export(tmp_path / "model"))
    check = lambda one: [(p.label, *p.probs) for p in one.predict_batch(data.paths)]
    for a, b in zip(check(learn), check(first), strict=True):
        assert a[0] == b[0]
        np.testing.assert_allclose(a[1:], b[1:], atol=1e-5)
    assert learn.loss_func.thresh == 0.5
    assert again(tmp_path / "model", several).validate()[0] == pytest.approx(first.validate()[0])
    with pytest.raises(DataError, match=r"one label per image, and the model .* several labels"):
        ImageLearner.from_bundle(tmp_path / "model", data)


@pytest.mark.parametrize("made", ["from it", "and exported"])
def test_what_another_changed_in_it_since_is_not_exported_over(bundle, data, tmp_path, made):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    path = tmp_path / "model"
    shutil.copytree(bundle, path)
    learn = again(path) if made == "from it" else again(bundle)
    for _ in range(2):  # what only the learner has written is replaced
        learn.export(path, evaluate=False)
    other = load_learner(path)
    other.optimize("float16", force=True)[0].save(path)  # nothing is changed
    learn.export(path, evaluate=False)
    assert not (path / "variants").exists()  # of the former weights
    other = load_learner(path)
    other.set(ood_threshold=5.0)
    theirs = other.save(path)
    with pytest.raises(BundleWriteError, match=r"since this learner.*: something else changed it,"):
        learn.export(path, evaluate=False)
    assert load_learner(path, sha256=theirs)
    learn.export(tmp_path / "elsewhere", evaluate=False)
    path.rename(tmp_path / "theirs")
    learn.export(path, evaluate=False)


def test_what_does_not_fit_is_refused(bundle, data):
    named = ["d" if name == "a" else name for name in data.labels]
    other = ImageDataset(data.frame.assign(label=named), data.root)
    with pytest.raises(DataError, match="no output for: 'd'; it has 3 outputs: 'a', 'b', 'c'"):
        ImageLearner.from_bundle(bundle, other)
    with pytest.raises(DataError, match="`data` is a str; give a split ImageDataset, DataLoaders"):
        ImageLearner.from_bundle(bundle, "photos/")
    with pytest.raises(BundleCorruptError, match="sha256"):
        ImageLearner.from_bundle(bundle, sha256="0" * 64)
    with pytest.raises(InterpretationError, match="no samples"):
        again(bundle).evaluate()


def test_loaders_of_another_size_are_taken_and_normalised(bundle, data):
    loaders = data.dataloaders(size=48, bs=6)
    learn = again(bundle, loaders)
    assert preprocessing_of(learn.dls).mean == pytest.approx(
        load_learner(bundle).preprocessing.mean
    )
    assert preprocessing_of(learn.dls).size == (48, 48)
    assert preprocessing_of(loaders).mean is None
