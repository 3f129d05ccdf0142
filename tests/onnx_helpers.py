"""Small networks, exported once for all tests that need them."""

from functools import cache

import torch
from deploy_helpers import IMAGENET, make_model
from torch import nn

from learnkit.backends.onnx_export import export_onnx
from learnkit.data.preprocess import Preprocessing
from learnkit.models.head import create_head

RECIPE = Preprocessing(32, **IMAGENET)
GREY = Preprocessing((24, 40), channels=1, mean=(0.4,), std=(0.3,))


@cache
def network():
    """timm's smallest efficientnet below learnkit's default head (concat pool), three classes."""
    return make_model("test_efficientnet")


@cache
def exported():
    """The same as ONNX."""
    return export_onnx(network(), RECIPE, continual=False)


@cache
def grey_network():
    """A network of ours for grey images that are not square, without biases to hide mistakes."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        body = nn.Sequential(nn.Conv2d(1, 8, 3, 2, padding=1), nn.BatchNorm2d(8), nn.Hardswish())
        head = create_head(8, n_out=5, lin_ftrs=[], concat_pool=False, ps=0.0)
    return nn.Sequential(body, head).eval()


@cache
def exported_grey():
    """The same as ONNX, without its head."""
    return export_onnx(grey_network(), GREY, continual=True)


def noise(n, recipe=RECIPE, *, seed=0):
    """`n` images of noise uint8 (n, channels, H, W), of any brightness."""
    generator = torch.Generator().manual_seed(seed)
    shape = (n, recipe.channels, *recipe.size)
    dark = torch.rand(n, 1, 1, 1, generator=generator)
    return (torch.rand(shape, generator=generator) * dark * 256).to(torch.uint8)


def channels_last(images):
    """The same as an array (N, H, W, C), as sessions take them."""
    return images.permute(0, 2, 3, 1).contiguous().numpy()
