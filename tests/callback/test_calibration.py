"""After a training the confidences of the trained head are calibrated on the validation images."""

import pytest
import torch
from helpers import tiny_learner, write_image_folder

from learnkit.callback.after_fit import Calibration
from learnkit.data.dataset import ImageDataset


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = write_image_folder(tmp_path_factory.mktemp("images"), dict.fromkeys("abc", 12))
    data = ImageDataset.from_folder(root).split(0.5, 0.25, seed=0)
    labels = data.labels
    for row in [i for i, split in enumerate(data.frame["split"]) if split == "valid"][::4]:
        labels[row] = "a" if labels[row] != "a" else "b"  # a few mistakes to be unsure about
    return ImageDataset(data.frame.assign(label=labels), root)


def test_divides_the_logits_of_the_trained_head_and_changes_no_answer(data):
    one, two = tiny_learner(data, cbs=Calibration()), tiny_learner(data, cbs=None)
    for learn in (one, two):
        torch.manual_seed(1)
        learn.fit_one_cycle(3, 1e-2)
    fitted = one.calibration.report
    calibrated, raw = one.outputs(), two.outputs()
    assert fitted.is_fitted
    assert torch.allclose(calibrated.logits, raw.logits / fitted.temperature, atol=1e-4)
    assert torch.equal(calibrated.pred_labels, raw.pred_labels)
    before, after = two.evaluate().summary["log_loss"], one.evaluate().summary["log_loss"]
    assert (before, after) == pytest.approx((fitted.log_loss_before, fitted.log_loss_after))


def test_lr_find_leaves_confidences_alone(data, tmp_path):
    learn = tiny_learner(data, cbs=Calibration())
    learn.path = tmp_path
    before = learn.outputs().logits
    learn.lr_find(num_it=3, show_plot=False, suggest_funcs=None)
    learn.validate()
    assert torch.equal(learn.outputs().logits, before)
    assert learn.calibration.report is None
