"""In which memory layout a body measures: by its layers, kept by copies, and not in training."""

import copy
import pickle

import learnkit._torchvision  # noqa: F401  # before timm

import numpy as np
import pytest
import timm
import torch
from torch import nn

from learnkit.errors import ModelSpecError
from learnkit.models.eval_mode import (
    gains_by_channels_last,
    in_channels_last,
    is_channels_last,
    set_channels_last,
)
from learnkit.models.rebuild import build_body
from learnkit.models.spec import ModelSpec

CONVOLUTIONS = ("resnet18", "mobilenetv2_100", "mobilenetv3_small_100", "efficientnet_b0")
CONVOLUTIONS += ("regnety_002", "densenet121", "vgg11")
OTHERS = ("vit_tiny_patch16_224", "convnext_atto", "swin_tiny_patch4_window7_224")


@pytest.fixture
def body():
    """A small one whose layers all have one memory layout or the other."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3, groups=4)]
    return nn.Sequential(*layers).eval()


@pytest.mark.parametrize("arch", [*CONVOLUTIONS, *OTHERS])
def test_bodies_of_convolutions_gain_and_those_that_normalise_over_channels_do_not(arch):
    with torch.device("meta"):
        network = timm.create_model(arch, num_classes=0)
    assert gains_by_channels_last(network) == (arch in CONVOLUTIONS)


def seen_by(layer):
    """A list that receives whether each input of a layer lies pixel by pixel."""
    found = []
    layer.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].stride(1) == 1))
    return found


@pytest.mark.parametrize("n", [1, 3])
def test_it_measures_in_the_layout_and_trains_in_that_of_the_images(body, n):
    images = torch.randn(n, 1, 9, 9)  # of one channel: torch tells no layout of it
    plain, seen = copy.deepcopy(body), seen_by(body[1])
    set_channels_last(body, True)
    with torch.no_grad():
        expected = plain(torch.empty_strided(images.shape, (81, 1, 9, 1)).copy_(images))
        found = body(images)
    assert torch.equal(found, expected)
    assert torch.equal(body(images), plain(images))  # where gradients are asked for
    with torch.inference_mode():
        body(images)
    set_channels_last(set_channels_last(body, True), False)
    with torch.no_grad():
        assert torch.equal(body(images), plain(images))
    assert seen == [True, False, True, False]
    assert not body._forward_pre_hooks


def test_copies_and_pickles_keep_the_layout(body):
    set_channels_last(body, True)
    for again in (copy.deepcopy(body), pickle.loads(pickle.dumps(body))):
        assert is_channels_last(again)
        assert not is_channels_last(set_channels_last(again, False))
    assert is_channels_last(body)


@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (2, 1, 5, 4), (1, 1, 1, 1), (0, 3, 4, 4)])
def test_images_are_laid_out_pixel_by_pixel_whatever_their_number_of_channels(shape):
    images = torch.randn(shape)
    found = in_channels_last(images)
    assert torch.equal(found, images)
    assert found.permute(0, 2, 3, 1).is_contiguous()
    assert in_channels_last(found).data_ptr() == found.data_ptr()
    assert found.stride()[1:] == (1, shape[3] * shape[1], shape[1])


def test_a_single_image_is_laid_out_whatever_the_stride_to_the_next(body):
    set_channels_last(body, True)
    image = np.random.default_rng(0).random((9, 9, 1), np.float32)
    views = [torch.from_numpy(one).permute(0, 3, 1, 2) for one in (image[None], image[None].copy())]
    assert views[0].stride(0) != views[1].stride(0)
    with torch.no_grad():
        one, other = map(body, views)
    assert torch.equal(one, other)


def test_the_description_of_a_network_says_it_and_one_that_does_not_means_torchs_own():
    spec = ModelSpec("timm", "test_resnet", 3, 2)
    assert "channels_last" not in spec.to_dict()
    assert not is_channels_last(build_body(ModelSpec.from_dict(spec.to_dict())))
    said = ModelSpec.from_dict({**spec.to_dict(), "channels_last": True})
    assert said.to_dict()["channels_last"] is True
    assert is_channels_last(build_body(said))
    with pytest.raises(ModelSpecError, match="`channels_last`=1: expected true or false"):
        ModelSpec.from_dict({**spec.to_dict(), "channels_last": 1})
