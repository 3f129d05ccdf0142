"""After a training the trained head can detect out-of-distribution images."""

import numpy as np
import pytest
from helpers import tiny_learner, write_image_folder

from learnkit.callback.after_fit import Calibration, OutOfDistribution
from learnkit.data.dataset import ImageDataset
from learnkit.errors import OodLockedError


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = write_image_folder(tmp_path_factory.mktemp("images"), dict.fromkeys("abc", 12))
    return ImageDataset.from_folder(root).split(0.5, 0.25, seed=0)


def test_does_what_the_verb_does(data):
    learn = tiny_learner(data, cbs=OutOfDistribution(score="mahalanobis", false_alarm_rate=0.1))
    learn.fit(1)
    found = learn.ood.threshold
    assert learn.out_of_distribution.report == found
    again = learn.clear_ood().fit_ood(score="mahalanobis", false_alarm_rate=0.1)
    assert again.value == pytest.approx(found.value, rel=1e-3)
    assert learn.continual is None
    assert learn.predict(np.zeros((24, 20, 3), np.uint8)).is_ood


def test_training_on_renews_it(data):
    learn = tiny_learner(data, cbs=OutOfDistribution())
    learn.fit(1)
    before = learn.ood.statistics
    learn.fit(1)
    assert not learn.ood.statistics.equals(before)
    learn.remove_cb(OutOfDistribution)
    with pytest.raises(OodLockedError, match="clear_ood"):
        learn.fit(1)


def test_with_calibration_one_pass_over_the_training_images_is_enough(data, monkeypatch):
    import learnkit.learner.uncertainty as home

    passes, original = [], home.features_of
    monkeypatch.setattr(
        home, "features_of", lambda learn, x: passes.append(len(x)) or original(learn, x)
    )
    learn = tiny_learner(data, cbs=[Calibration(), OutOfDistribution()])
    learn.fit(1)
    assert passes == [len(data.train)]
    assert learn.ood.threshold.n == len(data.valid) + len(data.train)


def test_the_former_name_of_its_step_warns():
    with pytest.warns(DeprecationWarning, match="`task` is called `step` now"):
        assert OutOfDistribution().task == "ood"
