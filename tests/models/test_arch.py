import pytest
import timm
import torchvision.models as tv
from torch import nn

from learnkit.errors import UnknownArchitectureError
from learnkit.models.arch import resolve_arch


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
