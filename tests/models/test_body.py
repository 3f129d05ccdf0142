import copy

import pytest
import timm
import torch
import torchvision.models as tv
from torch import nn

from learnkit.errors import InputSizeError, WeightsUnavailableError
from learnkit.models.body import create_body
from learnkit.models.timm_body import _last_map


def tiny():
    return nn.Sequential(
        nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), nn.AvgPool2d(1), nn.Flatten(), nn.Linear(5, 5)
    )


def on_meta(arch, **options):
    with torch.device("meta"):
        return create_body(arch, pretrained=False, **options)


def test_a_body_says_what_others_need_to_know():
    body = on_meta("resnet18", img_size=(64, 96), drop_path_rate=0.1)
    known = (body.n_features, body.reduction, body.source, body.arch, body.cut, body.img_size)
    assert known == (512, 32, "timm", "resnet18", None, (64, 96))
    assert body.mean == (0.485, 0.456, 0.406)
    assert body.std == (0.229, 0.224, 0.225)
    assert body.arch_kwargs == {"drop_path_rate": 0.1}
    assert all(name.startswith("model.") for name in body.state_dict())


def test_the_map_equals_timms_own_features():
    body = create_body("test_convnext", pretrained=False).eval()
    whole = timm.create_model("test_convnext").eval()
    missing, unexpected = whole.load_state_dict(body.model.state_dict(), strict=False)
    assert not unexpected
    assert all(name.startswith("head.") for name in missing)
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(body(x), whole.forward_features(x))


def test_maps_of_nhwc_networks_are_permuted():
    body = create_body("test_mambaout", pretrained=False).eval()
    x = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        assert body(x).shape == (1, 64, 2, 3)
        assert torch.equal(body(x), body.model.forward_features(x).permute(0, 3, 1, 2))


@pytest.mark.parametrize(
    "arch", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "vit_tiny_r_s16_p8_224"]
)
def test_tokens_become_the_map_that_timm_itself_gives(arch):
    body = create_body(arch, pretrained=False, img_size=(64, 96)).eval()
    x = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(body(x), _last_map(body.model, x, norm=True))


def test_what_follows_the_map_is_dropped():
    body = on_meta("mobilenetv3_small_050")
    assert not any("conv_head" in name or "classifier" in name for name in body.state_dict())
    vgg = on_meta("vgg11_bn")
    assert sum(p.numel() for p in vgg.parameters()) < 10_000_000


@pytest.mark.parametrize("size", [28, 32, 224])
def test_reduction_does_not_depend_on_the_size_tried(size):
    assert on_meta("resnet18", img_size=size).reduction == 32


def test_reductions_of_known_networks():
    reductions = {"test_vit": 16, "xcit_nano_12_p8_224": 8, "torchvision:vit_b_32": 32}
    assert {arch: on_meta(arch).reduction for arch in reductions} == reductions


def test_fixed_size_networks_are_built_for_the_size_of_the_data():
    body = create_body("vit_tiny_patch16_224", pretrained=False, img_size=64)
    assert body(torch.rand(1, 3, 64, 64)).shape == (1, 192, 4, 4)
    assert body.img_size == (64, 64)
    assert on_meta("vit_tiny_patch16_224").img_size == (224, 224)
    assert on_meta("resnet18").img_size is None


@pytest.mark.parametrize(
    ("arch", "size", "native"),
    [
        ("maxvit_pico_rw_256", 100, 256),
        ("torchvision:vit_b_32", 100, 224),
        ("inception_v3", 32, 299),
        ("torchvision:inception_v3", 32, 299),
    ],
)
def test_a_size_that_does_not_fit_gives_one_clear_error(arch, size, native):
    message = rf"`img_size`=\({size}, {size}\): .* does not take.*it takes \({native}, {native}\)"
    with pytest.raises(InputSizeError, match=message):
        on_meta(arch, img_size=size)


@pytest.mark.parametrize("size", [0, (32,), (32, -1), ("a", "b")])
def test_sizes_that_are_none_are_refused(size):
    with pytest.raises(InputSizeError, match="expected a positive int"):
        on_meta("resnet18", img_size=size)


@pytest.mark.parametrize("n_in", [0, -1, True, 2.0])
def test_channel_counts_that_are_none_are_refused(n_in):
    with pytest.raises(InputSizeError, match="channels must be a positive int"):
        on_meta("resnet18", n_in=n_in)


@pytest.mark.parametrize("n_in", [1, 2, 3, 5])
@pytest.mark.parametrize("arch", ["test_resnet", "torchvision:squeezenet1_1"])
def test_any_number_of_channels_goes_in(arch, n_in):
    body = create_body(arch, pretrained=False, n_in=n_in)
    assert body(torch.rand(1, n_in, 64, 64)).shape[1] == body.n_features


def test_normalisation_may_be_replaced():
    body = on_meta("resnet18", mean=[0.5] * 3, std=[0.25] * 3)
    assert (body.mean, body.std) == ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def test_extra_arguments_reach_timm():
    body = on_meta("mobilenetv2_100", pad_type="same")
    assert type(body.model.conv_stem).__name__ == "Conv2dSame"
    with pytest.raises(TypeError, match="bogus"):
        on_meta("resnet18", bogus=1)


@pytest.mark.parametrize("arch", ["test_resnet", "mobilenetv3_small_050", "test_mambaout"])
def test_bodies_can_still_be_scripted(arch):
    body = create_body(arch, pretrained=False).eval()
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(torch.jit.script(body)(x), body(x), atol=1e-5)


def test_bodies_carry_no_hooks_and_can_be_copied():
    body = create_body("test_vit", pretrained=False)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in body.modules())
    assert copy.deepcopy(body).n_features == body.n_features


def test_functions_of_both_libraries_are_built_by_name():
    assert on_meta(timm.models.resnet18).source == "timm"
    assert on_meta(tv.resnet18).source == "torchvision"


def test_a_module_is_cut_like_fastai_cuts_and_left_as_it_was():
    model = tiny()
    state = copy.deepcopy(model.state_dict())
    body = create_body(model)
    assert len(body) == 2
    assert body[0] is model[0]
    assert len(create_body(model, cut=3)) == 3
    assert create_body(model, cut=lambda m: m[:1]).n_features == 5
    assert len(model) == 5
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_a_module_with_other_channels_is_converted_in_a_copy():
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.MaxPool2d(2), nn.Flatten())
    body = create_body(model, n_in=1)
    assert model[0].in_channels == 3
    assert torch.allclose(body[0].weight, model[0].weight.sum(1, keepdim=True))


@pytest.mark.parametrize("arch", ["test_vit", "test_mambaout", "mobilenetv3_small_050"])
def test_a_timm_network_passed_in_is_copied_and_treated_by_its_layout(arch):
    network = timm.create_model(arch, num_classes=5)
    names = list(network.state_dict())
    body = create_body(network)
    by_name = create_body(arch, pretrained=False)
    assert list(body.state_dict()) == list(by_name.state_dict())
    assert (body.source, body.mean, body.reduction) == ("custom", by_name.mean, by_name.reduction)
    state = network.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in body.model.state_dict().items())
    assert list(state) == names


@pytest.mark.parametrize("arch", ["mobilenet_v2", "shufflenet_v2_x0_5", "swin_t", "vit_b_32"])
def test_a_torchvision_network_passed_in_is_cut_like_its_family(arch):
    with torch.device("meta"):
        network = tv.get_model(arch, weights=None)
        names = list(network.state_dict())
        body = create_body(network)
        by_name = create_body(f"torchvision:{arch}", pretrained=False)
    assert list(body.state_dict()) == list(by_name.state_dict())
    assert (body.source, body.mean) == ("custom", by_name.mean)
    assert list(network.state_dict()) == names


def test_functions_get_the_weights_argument_they_name():
    seen = {}

    def with_pretrained(pretrained=True, width=4):
        seen["pretrained"] = pretrained
        return nn.Sequential(nn.Conv2d(3, width, 3), nn.MaxPool2d(2))

    def with_weights(*, weights=None):
        seen["weights"] = weights
        return with_pretrained()

    assert create_body(with_pretrained, pretrained=False, width=6).n_features == 6
    assert seen == {"pretrained": False}
    create_body(with_weights, pretrained=False)
    assert seen["weights"] is None
    create_body(with_weights, pretrained=True)
    assert seen["weights"] == "DEFAULT"


def test_a_function_that_cannot_be_asked_for_weights_is_never_random_silently():
    def plain():
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2))

    with pytest.raises(WeightsUnavailableError, match="takes neither `pretrained=` nor `weights=`"):
        create_body(plain)
    assert create_body(plain, pretrained=False).n_features == 4


def test_the_first_real_error_of_a_network_is_shown():
    class Broken(nn.Sequential):
        def forward(self, x):
            raise RuntimeError("the real reason")

    def broken():
        return nn.Sequential(Broken(nn.Conv2d(3, 4, 3)), nn.MaxPool2d(2))

    with pytest.raises(ValueError, match="the real reason"):
        create_body(broken, pretrained=False)
