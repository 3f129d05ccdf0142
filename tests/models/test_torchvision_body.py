import pytest
import torch
import torchvision.models as tv
from torch import nn

from learnkit.errors import InputSizeError
from learnkit.models.body import create_body
from learnkit.models.create import create_cnn_model
from learnkit.models.param_groups import param_groups
from learnkit.models.torchvision_body import convert_input

# One network of every torchvision family, with the width of its feature map.
FAMILIES = {
    "alexnet": 256,
    "convnext_tiny": 768,
    "densenet121": 1024,
    "efficientnet_b0": 1280,
    "googlenet": 1024,
    "inception_v3": 2048,
    "maxvit_t": 512,
    "mnasnet0_5": 1280,
    "mobilenet_v2": 1280,
    "mobilenet_v3_small": 576,
    "regnet_y_400mf": 440,
    "resnet18": 512,
    "resnext50_32x4d": 2048,
    "shufflenet_v2_x0_5": 1024,
    "squeezenet1_1": 512,
    "swin_t": 768,
    "vgg11": 512,
    "vit_b_32": 768,
    "wide_resnet50_2": 2048,
}
NOT_ON_META = {"regnet_y_400mf"}  # torchvision computes its widths with tensors


def family(name):
    return name.rstrip("0123456789").partition("_")[0].rstrip("0123456789")


def test_every_torchvision_family_is_tried():
    assert {family(name) for name in tv.list_models(module=tv)} == {family(n) for n in FAMILIES}


@pytest.mark.parametrize("arch", FAMILIES)
def test_every_torchvision_family_works_by_default(arch):
    with torch.device("cpu" if arch in NOT_ON_META else "meta") as device:
        model = create_cnn_model(f"torchvision:{arch}", 3, pretrained=False)
        size = 299 if arch == "inception_v3" else 224
        logits = model.eval()(torch.empty(2, 3, size, size, device=device))
    assert logits.shape == (2, 3)
    assert model[0].n_features == FAMILIES[arch]
    assert len(param_groups(model)) >= 3
    assert model.spec.to_dict()["arch"] == arch


def test_keys_are_fastais_and_every_parameter_has_a_gradient():
    model = create_cnn_model("torchvision:resnet18", 3, pretrained=False)
    assert list(model.state_dict())[:2] == ["0.0.weight", "0.1.weight"]
    model(torch.rand(2, 3, 64, 64)).square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_the_transformers_map_is_its_encoders_patch_tokens():
    body = create_body("torchvision:vit_b_32", pretrained=False, img_size=64).eval()
    whole = body.model
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        patches = whole.conv_proj(x).flatten(2).transpose(1, 2)
        tokens = whole.encoder(torch.cat([whole.class_token, patches], 1))
        assert torch.allclose(body(x)[0, :, 1, 0], tokens[0, 3], atol=1e-5)


def test_weights_made_for_minus_one_to_one_keep_that_normalisation():
    with torch.device("meta"):
        assert create_body("torchvision:googlenet", False).mean == (0.5, 0.5, 0.5)
        assert create_body("torchvision:resnet18", False).mean == (0.485, 0.456, 0.406)


def first_conv(bias=True):
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=bias), nn.ReLU())


@pytest.mark.parametrize("n_in", [1, 2, 4])
def test_converted_filters_keep_the_response_and_the_bias(n_in):
    model, converted = first_conv(), first_conv()
    convert_input(converted, n_in, pretrained=True)
    old, new = model[0], converted[0]
    assert torch.equal(new.bias, old.bias)
    assert (new.in_channels, new.stride, new.padding) == (n_in, (2, 2), (1, 1))
    grey = torch.rand(1, 1, 8, 8)
    if n_in == 1:
        assert torch.allclose(new(grey), old(grey.expand(1, 3, 8, 8)), atol=1e-6)
    elif n_in == 2:
        assert torch.allclose(new.weight, old.weight[:, :2] * 1.5)
    else:
        extra = torch.cat([grey.expand(1, 3, 8, 8), torch.rand(1, 1, 8, 8)], 1)
        assert torch.allclose(new(extra), old(grey.expand(1, 3, 8, 8)), atol=1e-6)


def test_random_filters_are_drawn_anew():
    model = first_conv(bias=False)
    convert_input(model, 1, pretrained=False)
    assert model[0].bias is None
    assert not torch.allclose(model[0].weight, first_conv(False)[0].weight.sum(1, keepdim=True))


@pytest.mark.parametrize("model", [nn.Linear(3, 2), nn.Sequential(nn.Conv2d(3, 3, 1, groups=3))])
def test_networks_without_an_ordinary_first_convolution_are_refused(model):
    with pytest.raises(InputSizeError, match="no ordinary first Conv2d"):
        convert_input(model, 1, pretrained=True)
