"""After a training the continual state begins by itself, and only then."""

import copy
import itertools
import pickle

import pytest
import torch
from fastai.learner import Learner
from helpers import tiny_learner, write_image_folder

from learnkit.callback.after_fit import AfterFit, Calibration, ContinualLearning, OutOfDistribution
from learnkit.data.dataset import ImageDataset
from learnkit.errors import ContinualStateError


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = write_image_folder(tmp_path_factory.mktemp("images"), dict.fromkeys("abc", 12))
    return ImageDataset.from_folder(root).split(0.5, 0.25, seed=0)


def weights(learn):
    return copy.deepcopy(learn.model[0].state_dict())


def equal(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def test_a_fit_ends_in_the_state_the_verb_makes(data):
    learn = tiny_learner(data, cbs=ContinualLearning(memory=8, classifier="prototype"))
    learn.fit(1)
    found = learn.continual
    learn.drop_continual().init_continual(data, memory=8, classifier="prototype")
    assert found.statistics.equals(learn.continual.statistics)
    assert found.threshold.value == learn.continual.threshold.value
    assert learn.continual_learning.report.what == "init_continual"


def test_the_network_is_trained_as_without_it(data):
    one, two = tiny_learner(data, cbs=ContinualLearning()), tiny_learner(data, cbs=None)
    for learn in (one, two):
        torch.manual_seed(1)
        learn.fit_one_cycle(1)
    assert equal(weights(one), weights(two))
    assert equal(one.drop_continual().model[1].state_dict(), two.model[1].state_dict())


def test_fine_tune_trains_twice_and_begins_once(data, monkeypatch):
    learn = tiny_learner(data, cbs=ContinualLearning())
    calls = count(monkeypatch, "learnkit.learner.continual.features_of")
    learn.fine_tune(1)
    assert len(learn.history) == 2
    assert learn.continual is not None
    assert [n for n in calls if n] == [len(data.train), len(data.valid)]  # one pass over each


def test_training_goes_on_from_the_trained_head(data):
    learn = tiny_learner(data, cbs=ContinualLearning())
    learn.fit(1)
    trained, before = learn.state.record.trained_head, learn.continual.statistics
    learn.fit(1)
    assert learn.state.record.trained_head is trained
    assert not learn.continual.statistics.equals(before)  # of the network as it is now


def test_a_learner_that_was_extended_is_not_trained_on(data):
    learn = tiny_learner(data, cbs=ContinualLearning())
    learn.fit(1)
    learn.extend(data.test)
    before = learn.continual.statistics
    with pytest.raises(ContinualStateError, match="refit"):
        learn.fit(1)
    assert learn.continual.statistics is before


def test_lr_find_and_inference_neither_begin_nor_end_the_state(data, tmp_path):
    learn = tiny_learner(data, cbs=ContinualLearning(), path=tmp_path)
    learn.lr_find(num_it=3, show_plot=False, suggest_funcs=None)
    learn.validate()
    learn.get_preds()
    assert learn.continual is None
    learn.fit(1)
    head, body = learn.continual, weights(learn)
    learn.lr_find(num_it=3, show_plot=False, suggest_funcs=None)
    assert learn.continual is head
    assert equal(body, weights(learn))


def test_given_to_one_fit_it_leaves_the_state_behind(data):
    learn = tiny_learner(data, cbs=None)
    learn.fine_tune(1, cbs=ContinualLearning())
    assert learn.continual is not None
    with pytest.raises(ContinualStateError):
        learn.fit(1)


def test_a_training_that_breaks_off_leaves_the_trained_head(data, monkeypatch):
    learn = tiny_learner(data, cbs=ContinualLearning())
    learn.fit(1)
    monkeypatch.setattr(Learner, "one_batch", interrupt)
    body = weights(learn)
    with pytest.raises(KeyboardInterrupt):
        learn.fit(1)
    assert equal(body, weights(learn))
    assert learn.continual is not None  # nothing was trained, so the statistics still hold


def interrupt(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.parametrize("order", list(itertools.permutations(range(3)))[1:])
def test_the_order_of_the_callbacks_does_not_matter(data, order):
    def kinds():
        return [ContinualLearning(memory=4), OutOfDistribution(score="knn"), Calibration()]

    learners = []
    for places in ((0, 1, 2), order):
        cbs = kinds()
        learners.append(tiny_learner(data, cbs=[cbs[i] for i in places]))
        torch.manual_seed(1)
        learners[-1].fit(1)
    one, two = (learn.continual for learn in learners)
    assert one.settings == two.settings
    assert one.settings.score == "knn"
    assert one.threshold.value == two.threshold.value
    assert one.statistics.equals(two.statistics)


def test_the_state_survives_save_and_load(data, tmp_path):
    learn = tiny_learner(data, cbs=ContinualLearning(), path=tmp_path)
    learn.fit(1)
    learn.save("m")
    other = tiny_learner(data, cbs=ContinualLearning(), path=tmp_path)
    other.load("m")
    assert other.continual.statistics.equals(learn.continual.statistics)
    with pytest.raises(ContinualStateError):  # what the file holds is not this callback's to renew
        other.fit(1)


@pytest.mark.parametrize("kind", [ContinualLearning, OutOfDistribution, Calibration])
def test_pickles_without_what_it_derived(kind):
    callback = kind()
    callback.made = callback.report = object()
    again = pickle.loads(pickle.dumps(callback))
    assert isinstance(again, AfterFit)
    assert again.options == callback.options
    assert again.made is None


def count(monkeypatch, name):
    """Numbers of images of the passes that go through a function."""
    import importlib

    module, function = name.rsplit(".", 1)
    original = getattr(importlib.import_module(module), function)
    calls = []

    def counted(learn, items, *how):
        calls.append(len(items))
        return original(learn, items, *how)

    monkeypatch.setattr(name, counted)
    return calls
