import pytest
import timm
import torch
import torchvision.models as tv
from torch import nn

from learnkit.errors import UnknownArchitectureError
from learnkit.models.arch import architectures_of, resolve_arch


@pytest.mark.parametrize(
    ("given", "label"),
    [
        ("resnet18", "timm:resnet18"),
        ("torchvision:resnet18", "torchvision:resnet18"),
        ("timm:resnet18", "timm:resnet18"),
        ("resnet18.a1_in1k", "timm:resnet18.a1_in1k"),
        ("shufflenet_v2_x0_5", "torchvision:shufflenet_v2_x0_5"),
        (tv.resnet18, "torchvision:resnet18"),
        (timm.models.resnet18, "timm:resnet18"),
        (nn.Identity(), "Identity"),
        (nn.Identity, "Identity"),
    ],
)
def test_names_functions_and_modules_are_told_apart(given, label):
    assert resolve_arch(given).label == label


def test_a_function_that_only_shares_a_name_is_home_made():
    def resnet18():
        return nn.Identity()

    assert resolve_arch(resnet18).source == "custom"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("resnet81", "timm and torchvision have no architecture of this name; nearest: resnet18,"),
        ("torchvision:resnet81", "torchvision has no architecture.*nearest: resnet"),
        ("resnet18.a9_in1k", "timm has no such weights for resnet18; it has resnet18.a1_in1k"),
        ("keras:resnet18", "unknown library 'keras', expected 'timm:' or 'torchvision:'"),
        ("torchvision:test_resnet", "torchvision has no architecture of this name"),
        ("qqqqqqqqqq", r"see timm\.list_models"),
        ("../resnet18", "no architecture of this name"),
        (3, "`arch`=3 of type int: expected a timm or torchvision name"),
    ],
)
def test_unknown_architectures_are_refused_with_the_nearest_names(given, message):
    with pytest.raises(UnknownArchitectureError, match=message):
        resolve_arch(given)


def test_detectors_and_segmenters_of_torchvision_are_no_classifiers():
    with pytest.raises(UnknownArchitectureError):
        resolve_arch("fasterrcnn_resnet50_fpn")


class TestArchitecturesOf:
    @pytest.fixture(autouse=True)
    def few(self, monkeypatch):
        """All architectures take seconds: what must be told apart is among these."""
        names = ["resnet18", "test_efficientnet", "test_resnet", "test_vit", "efficientnet_b0"]
        names += ["deit_tiny_patch16_224", "vit_tiny_patch16_224", "resnet26d", "mobilenetv3_rw"]
        monkeypatch.setattr(timm, "list_models", lambda: names)

    @pytest.mark.parametrize("name", ["test_resnet", "torchvision:shufflenet_v2_x0_5"])
    def test_weights_without_a_name_are_recognised(self, name):
        arch = resolve_arch(name)
        state = arch.build(weights=None) if arch.source == "torchvision" else arch.build()
        given = {key: tuple(value.shape) for key, value in state.state_dict().items()}
        assert architectures_of(given) == [name]
        headless = {k: v for k, v in given.items() if not k.startswith(("fc.", "head."))}
        assert architectures_of(headless, f"{arch.name}.r160.safetensors") == [name]

    def test_a_hint_decides_between_architectures_of_the_same_weights(self):
        with torch.device("meta"):
            state = timm.create_model("deit_tiny_patch16_224").state_dict()
        given = {key: tuple(value.shape) for key, value in state.items()}
        for name in ("deit_tiny_patch16_224", "vit_tiny_patch16_224"):
            assert architectures_of(given, f"{name}.fb_in1k") == [name]

    def test_unknown_weights_are_nobodys_and_leave_no_hook(self):
        before = dict(torch.nn.modules.module._global_parameter_registration_hooks)
        assert architectures_of({f"a.{i}.weight": (3, 3) for i in range(20)}, "resnet18") == []
        assert dict(torch.nn.modules.module._global_parameter_registration_hooks) == before

    def test_layers_made_in_passing_do_not_hide_an_architecture(self):
        state = timm.create_model("efficientnet_b0").state_dict()
        assert architectures_of({k: tuple(v.shape) for k, v in state.items()})[0] == (
            "efficientnet_b0"
        )

    def test_random_states_are_left_alone(self):
        before = torch.get_rng_state()
        given = {"conv1.weight": (64, 3, 7, 7), "bn1.weight": (64,)}
        architectures_of(given | {f"layer{i}": (1,) for i in range(20)}, "resnet18.pth")
        assert torch.equal(torch.get_rng_state(), before)
