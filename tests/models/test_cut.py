import pytest
import torch
import torchvision.models as tv
from torch import nn

from learnkit.errors import CutError
from learnkit.models.body import create_body
from learnkit.models.create import create_cnn_model
from learnkit.models.cut import automatic_cut
from learnkit.models.torchvision_body import children_body


def on_meta(arch, **options):
    with torch.device("meta"):
        return create_body(arch, pretrained=False, **options)


@pytest.mark.parametrize("arch", ["timm:resnet18", "torchvision:resnet18"])
@pytest.mark.parametrize(("cut", "n_features"), [(-2, 512), (-3, 256), (6, 128)])
def test_an_int_keeps_that_many_children_in_both_libraries(arch, cut, n_features):
    body = on_meta(arch, cut=cut)
    assert (body.n_features, body.cut) == (n_features, cut)


def test_a_cut_timm_network_keeps_its_own_names_and_gives_the_same_map():
    body = create_body("test_resnet", pretrained=False, cut=-2).eval()
    whole = create_body("test_resnet", pretrained=False).eval()
    whole.load_state_dict(body.state_dict())
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(body(x), whole(x))


def test_a_cut_network_of_another_layout_is_permuted_too():
    body = on_meta("swin_tiny_patch4_window7_224", cut=-1)
    assert body.n_features == 768
    assert body.reduction == 32


@pytest.mark.parametrize("arch", ["timm:resnet18", "torchvision:resnet18"])
def test_a_function_receives_the_network_and_is_trusted(arch):
    body = on_meta(arch, cut=lambda m: nn.Sequential(*list(m.children())[:1]))
    assert (body.n_features, body.reduction) == (64, 2)


def test_a_function_may_return_the_whole_network_as_in_fastai_v1():
    body = create_body(tv.resnet18, pretrained=False, cut=lambda m: m)
    assert isinstance(body, tv.ResNet)
    assert (body.n_features, body.reduction) == (1000, None)
    with torch.device("meta"):
        with pytest.raises(CutError, match="the head pools a feature map; cut"):
            create_cnn_model(tv.resnet18, 3, pretrained=False, cut=lambda m: m)
        model = create_cnn_model(tv.resnet18, 3, pretrained=False, cut=lambda m: m, pool=False)
        assert model(torch.empty(2, 3, 64, 64)).shape == (2, 3)


@pytest.mark.parametrize("cut", [1.0, "layer4", True, [1]])
def test_other_kinds_of_cut_are_refused_also_as_a_name_error(cut):
    for kind in (CutError, NameError, ValueError):
        with pytest.raises(kind, match="cut must be an int"):
            on_meta("resnet18", cut=cut)


@pytest.mark.parametrize(
    ("arch", "cut", "message"),
    [
        ("timm:resnet18", 1, "truncates it: it ends at stride 2; cut later"),
        ("torchvision:resnet18", 5, "truncates it: it ends at stride 4; cut later"),
        ("torchvision:resnet18", 9, "keeps the global pooling, which leaves no map; cut earlier"),
        ("timm:resnet18", 10, r"not a feature map \(N,D,H,W\); cut earlier"),
        ("torchvision:resnet18", 10, "fails on an input"),
        ("timm:resnet18", 0, "leaves nothing of the network"),
        ("vit_tiny_patch16_224", 1, "not a feature map"),
    ],
)
def test_a_cut_that_leaves_no_map_is_refused_with_the_children_named(arch, cut, message):
    with pytest.raises(CutError, match=message) as caught:
        on_meta(arch, cut=cut)
    children = "7: layer3" if "resnet" in arch else "1: patch_embed"
    assert children in str(caught.value)
    assert "cut=N keeps the first N children" in str(caught.value)


def test_a_network_without_a_pool_says_what_to_pass():
    def no_pool():
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())

    with pytest.raises(CutError, match=r"no pooling layer to cut at; pass `cut=`.*1: 0 \(Conv2d\)"):
        create_body(no_pool, pretrained=False)


def test_an_automatic_cut_that_truncates_is_refused():
    # without learnkit's own entry, fastai's rule finds shufflenet's first pool: 24 channels remain
    shufflenet = tv.shufflenet_v2_x0_5(weights=None)
    assert automatic_cut(shufflenet) == 1
    for library, message in (
        (True, "ends at stride 2"),
        (False, r"keeps .* convolutional weights"),
    ):
        with pytest.raises(CutError, match=f"truncates it: it {message}"):
            children_body(shufflenet, None, None, (1, 3, 64, 64), library=library)


def test_pools_are_found_at_any_depth():
    without = nn.Sequential(nn.Conv2d(3, 3, 1))
    for pooling in (
        nn.Sequential(nn.Sequential(nn.AdaptiveAvgPool2d(1))),
        create_cnn_model("test_resnet", nc=2, pretrained=False),
    ):
        assert automatic_cut(nn.Sequential(without, pooling, without)) == 1
    with pytest.raises(CutError, match="no pooling layer"):
        automatic_cut(nn.Sequential(without))
