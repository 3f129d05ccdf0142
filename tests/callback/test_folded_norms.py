"""Folded batch norms stay the identity they are while the rest of the network trains."""

import pytest
import torch
from fastai.callback.core import Callback
from helpers import write_image_folder
from safetensors.torch import save_file
from torch import nn

from learnkit.callback.folded_norms import FoldedNorms, folded_norms
from learnkit.data.dataset import ImageDataset
from learnkit.learner.factory import cnn_learner
from learnkit.models.eval_mode import evaluating


@pytest.fixture
def dls(tmp_path):
    root = write_image_folder(tmp_path / "images", {"a": 8, "b": 8})
    return ImageDataset.from_folder(root).split(0.5, 0.5, 0, seed=0).dataloaders(size=32, bs=4)


def weights_file(tmp_path, *, folded):
    import timm

    torch.manual_seed(0)
    model = timm.create_model("test_resnet", pretrained=False)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_var.fill_(1 - 1e-5)
            if not folded:
                m.running_mean.normal_()
    half = "[0.5, 0.5, 0.5]"  # as said by the file: nothing is to be assumed
    save_file(model.state_dict(), tmp_path / "weights.safetensors", {"mean": half, "std": half})
    return tmp_path / "weights.safetensors"


class Difference(Callback):
    """Largest change of the body's features by being in training mode."""

    def before_batch(self):
        if self.training and self.iter == 0:
            self.head_trains = all(m.training for m in self.model[1].modules())
            x = self.x.as_subclass(torch.Tensor)
            with torch.no_grad():
                training = self.model[0](x)
                with evaluating(self.model):
                    self.value = (training - self.model[0](x)).abs().max().item()


@pytest.mark.parametrize("unfrozen", [False, True])
def test_folded_network_gives_the_same_features_in_training(dls, tmp_path, unfrozen):
    watch = Difference()
    learn = cnn_learner(dls, "test_resnet", weights_file(tmp_path, folded=True), cbs=watch)
    if unfrozen:
        learn.unfreeze()
    before = {name: b.clone() for name, b in learn.model[0].named_buffers()}
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
    assert watch.value == 0
    assert all(torch.equal(b, before[name]) for name, b in learn.model[0].named_buffers())
    assert watch.head_trains  # its own batch norm is new, not folded


def test_a_network_with_statistics_trains_as_fastai_trains_it(dls, tmp_path):
    watch = Difference()
    learn = cnn_learner(dls, "test_resnet", weights_file(tmp_path, folded=False), cbs=watch)
    assert not any(isinstance(cb, FoldedNorms) for cb in learn.cbs)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
    assert watch.value > 0


def test_random_weights_are_not_taken_for_folded_ones(dls):
    learn = cnn_learner(dls, "test_resnet", pretrained=False)
    assert len(folded_norms(learn.model)) > 0
    assert not any(isinstance(cb, FoldedNorms) for cb in learn.cbs)


@pytest.mark.parametrize(("eps", "var"), [(1e-5, 1.0), (1e-3, 1 - 1e-3), (1e-3, 1.0), (1e-2, 0.99)])
def test_what_a_layer_divides_by_may_be_1_in_either_way(eps, var):
    norm = nn.BatchNorm2d(4, eps=eps)
    norm.running_var.fill_(var)
    assert folded_norms(norm) == [norm]


def test_a_layer_of_another_variance_is_not_folded():
    norm = nn.BatchNorm2d(4, eps=1e-3)
    norm.running_var.fill_(0.99)
    assert folded_norms(norm) == []
