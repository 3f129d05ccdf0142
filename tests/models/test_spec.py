import copy
import dataclasses
import json

import pytest
import torch
from torch import nn

from learnkit.errors import LearnkitError, ModelSpecError
from learnkit.models import head as heads
from learnkit.models.create import create_cnn_model
from learnkit.models.rebuild import build_body, build_model
from learnkit.models.spec import ModelSpec


def meta_model(arch, n_out=3, **options):
    with torch.device("meta"):
        return create_cnn_model(arch, n_out, pretrained=False, **options)


def shapes(model):
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


@pytest.mark.parametrize(
    ("arch", "options"),
    [
        ("resnet18", {}),
        ("resnet18.a1_in1k", {"n_in": 1, "img_size": (64, 96), "mean": [0.5], "std": [0.5]}),
        ("resnet18", {"cut": -3, "lin_ftrs": (32, 16), "ps": (0.1, 0, 0.3), "bn_final": True}),
        ("mobilenetv2_100", {"arch_kwargs": {"pad_type": "same", "drop_path_rate": 0.1}}),
        ("vit_tiny_patch16_224", {"img_size": 64, "concat_pool": False}),
        ("convnext_atto", {"arch_kwargs": {"depths": (1, 1, 2, 1)}, "y_range": (0, 1)}),
        ("torchvision:resnet18", {"n_in": 4, "lin_first": True, "first_bn": False}),
        ("torchvision:vit_b_32", {"img_size": 64, "lin_bias": False, "ps": 0}),
    ],
)
def test_a_network_is_rebuilt_from_its_spec_sent_as_json(arch, options):
    model = meta_model(arch, **options)
    assert model.spec_problem is None
    spec = ModelSpec.from_dict(json.loads(json.dumps(model.spec.to_dict(), allow_nan=False)))
    assert spec == model.spec
    with torch.device("meta"):
        again = build_model(spec)
    assert shapes(again) == shapes(model)
    assert again.spec == spec
    assert [str(layer) for layer in again[1]] == [str(layer) for layer in model[1]]
    body, other = model[0], again[0]
    for name in ("n_features", "reduction", "mean", "std", "cut", "img_size", "arch_kwargs"):
        assert _plain(getattr(body, name)) == _plain(getattr(other, name)), name


def _plain(value):
    return json.loads(json.dumps(value))


def test_rebuilt_networks_compute_the_same():
    model = create_cnn_model("test_vit", 3, pretrained=False, img_size=64).eval()
    again = build_model(model.spec)
    again.load_state_dict(model.state_dict())
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(again.eval()(x), model(x))


def test_head_is_initialised_and_body_is_not():
    torch.manual_seed(0)
    model = create_cnn_model("test_resnet", 3, pretrained=False, init=nn.init.zeros_)
    assert model[1][8].weight.abs().sum() == 0
    assert model[0].model.conv1[0].weight.abs().sum() > 0
    kaiming = create_cnn_model("test_resnet", 3, pretrained=False)
    assert kaiming[1][8].bias.abs().sum() == 0
    assert kaiming[1][8].weight.std().item() == pytest.approx((2 / 512) ** 0.5, rel=0.1)
    untouched = create_cnn_model("test_resnet", 3, pretrained=False, init=None)
    assert untouched[1][8].bias.abs().sum() > 0


@pytest.mark.parametrize("counts", [{}, {"n_out": 2, "nc": 2}])
def test_the_number_of_classes_is_given_once(counts):
    with pytest.raises(TypeError, match="give the number of classes once"):
        create_cnn_model("test_resnet", pretrained=False, **counts)


@pytest.mark.parametrize(
    "custom_head",
    [
        lambda nf, n_out: nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(nf, n_out)
        ),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 3)),
    ],
)
def test_custom_heads_are_modules_or_functions_and_have_no_spec(custom_head):
    model = create_cnn_model("test_resnet", 3, pretrained=False, custom_head=custom_head)
    assert model(torch.rand(2, 3, 64, 64)).shape == (2, 3)
    assert model.spec is None
    assert model.spec_problem.startswith("`custom_head` is code")


@pytest.mark.parametrize(
    ("arch", "options", "problem"),
    [
        ("test_resnet", {"cut": lambda m: m.conv1}, "only an int (or None) can be written down"),
        ("test_resnet", {"arch_kwargs": {"act_layer": nn.SiLU}}, "`arch_kwargs['act_layer']` is"),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2)), {}, "`source`='custom': only 'timm'"),
    ],
)
def test_code_has_no_spec_and_the_reason_is_kept(arch, options, problem):
    model = create_cnn_model(arch, 3, pretrained=False, **options)
    assert model.spec is None
    assert problem in model.spec_problem


GOOD = {
    "source": "timm",
    "arch": "test_resnet",
    "n_in": 3,
    "n_out": 2,
    "cut": None,
    "img_size": [32, 32],
    "arch_kwargs": {"drop_path_rate": 0.1},
    "head": {"ps": 0.5, "lin_ftrs": [16]},
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
}


def test_the_good_example_is_good():
    assert ModelSpec.from_dict(GOOD).to_dict() == GOOD


def test_optional_fields_may_be_left_out():
    few = {key: GOOD[key] for key in ("source", "arch", "n_in", "n_out")}
    with torch.device("meta"):
        assert build_model(ModelSpec.from_dict(few))[1][-1].out_features == 2


HOSTILE = {
    "unknown key": {"__class__": "os.system"},
    "another library": {"source": "os"},
    "custom": {"source": "custom"},
    "unregistered": {"arch": "system"},
    "unregistered tag": {"arch": "resnet18.evil"},
    "folder": {"arch": "local-dir:/tmp/evil"},
    "hub": {"arch": "hf-hub:evil/model"},
    "source in the name": {"arch": "timm:resnet18"},
    "path": {"arch": "../evil"},
    "absolute path": {"arch": "/etc/passwd"},
    "name as list": {"arch": ["resnet18"]},
    "newline": {"arch": "resnet18\n"},
    "no channels": {"n_in": 0},
    "no classes": {"n_out": -1},
    "class count as bool": {"n_out": True},
    "class count as text": {"n_out": "2"},
    "class count as float": {"n_out": 2.0},
    "a billion classes": {"n_out": 10**9},
    "a billion channels": {"n_in": 10**9},
    "cut as text": {"cut": "-2"},
    "cut as float": {"cut": 1.5},
    "size as text": {"img_size": "32"},
    "one side": {"img_size": [32]},
    "huge size": {"img_size": [10**6, 10**6]},
    "negative size": {"img_size": [-32, 32]},
    "kwargs as list": {"arch_kwargs": [["a", 1]]},
    "nested dictionary": {"arch_kwargs": {"norm": {"a": 1}}},
    "infinite argument": {"arch_kwargs": {"drop_rate": float("inf")}},
    "argument no identifier": {"arch_kwargs": {"a b": 1}},
    "dunder checkpoint": {"arch_kwargs": {"checkpoint_path": "/tmp/evil.pth"}},
    "pretrained": {"arch_kwargs": {"pretrained": True}},
    "overlay": {"arch_kwargs": {"pretrained_cfg_overlay": []}},
    "configuration": {"arch_kwargs": {"pretrained_cfg": "x"}},
    "cache folder": {"arch_kwargs": {"cache_dir": "/tmp"}},
    "classes twice": {"arch_kwargs": {"num_classes": 3}},
    "torchvision weights": {"arch_kwargs": {"weights": "DEFAULT"}},
    "head as list": {"head": [1]},
    "unknown head key": {"head": {"custom_head": "evil"}},
    "widths as text": {"head": {"lin_ftrs": "512"}},
    "huge width": {"head": {"lin_ftrs": [10**9]}},
    "many layers": {"head": {"lin_ftrs": [8] * 99}},
    "impossible dropout": {"head": {"ps": 7}},
    "dropout as text": {"head": {"ps": "0.5"}},
    "flag as int": {"head": {"concat_pool": 1}},
    "three bounds": {"head": {"y_range": [0, 1, 2]}},
    "mean as text": {"mean": "0.5"},
    "mean not finite": {"mean": [float("nan")] * 3},
    "zero deviation": {"std": [0.0, 1, 1]},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_specs_are_refused(name):
    with pytest.raises(ModelSpecError):
        ModelSpec.from_dict(GOOD | HOSTILE[name])


@pytest.mark.parametrize("values", [None, [], "resnet18", 3])
def test_specs_that_are_no_dictionary_are_refused(values):
    with pytest.raises(ModelSpecError, match="expected a dictionary"):
        ModelSpec.from_dict(values)


@pytest.mark.parametrize("key", ["source", "arch", "n_in", "n_out"])
def test_required_keys_are_named(key):
    with pytest.raises(ModelSpecError, match=f"lacks \\['{key}'\\]"):
        ModelSpec.from_dict({k: v for k, v in GOOD.items() if k != key})


def test_unknown_keys_are_named():
    with pytest.raises(ModelSpecError, match=r"unknown keys \['colour'\]"):
        ModelSpec.from_dict(GOOD | {"colour": 1})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arch_kwargs": {"bogus": 1}}, "test_resnet cannot be built.*bogus"),
        ({"arch_kwargs": {"channels": "many"}}, "test_resnet cannot be built"),
        ({"head": {"ps": [0.5], "lin_ftrs": [4], "y_range": [0, 1]}, "cut": 1}, "truncates it"),
        ({"head": {"ps": [0.1, 0.2, 0.3]}}, "`ps` has 3 values for 2 linear layers"),
    ],
)
def test_specs_that_no_network_fits_give_a_named_error(change, message):
    with torch.device("meta"), pytest.raises(LearnkitError, match=message):
        build_model(ModelSpec.from_dict(GOOD | change))


def test_a_spec_shares_nothing_with_what_it_was_made_from():
    values = copy.deepcopy(GOOD)
    spec = ModelSpec.from_dict(values)
    values["head"]["lin_ftrs"].append(99)
    spec.to_dict()["arch_kwargs"]["drop_path_rate"] = 9
    assert spec.to_dict() == GOOD


def test_a_spec_for_more_classes_is_a_replacement():
    spec = dataclasses.replace(ModelSpec.from_dict(GOOD), n_out=5)
    with torch.device("meta"):
        assert build_model(spec)[1][-1].out_features == 5
    with pytest.raises(ModelSpecError, match="`n_out`=0"):
        dataclasses.replace(spec, n_out=0)


def test_other_kinds_of_heads_are_built_by_who_registered_them(monkeypatch):
    spec = ModelSpec.from_dict(GOOD | {"head": {"kind": "continual", "memory": 3, "root": True}})
    assert ModelSpec.from_dict(spec.to_dict()) == spec
    monkeypatch.setattr(heads, "_BUILDERS", {})
    with pytest.raises(ModelSpecError, match=r"'continual': registered are \[\]"):
        build_model(spec)
    heads.register_head("continual", lambda n, memory, root: nn.Linear(n, memory, bias=root))
    head = build_model(spec)[1]
    assert (head.in_features, head.out_features) == (build_body(spec).n_features, 3)
    with pytest.raises(ModelSpecError, match="cannot be built"):
        build_model(ModelSpec.from_dict(GOOD | {"head": {"kind": "continual", "colour": 1}}))


@pytest.mark.parametrize(
    "head",
    [{"kind": "pickle"}, {"kind": "continual", "memory": [1]}, {"kind": "continual", "a b": 1}],
)
def test_other_kinds_of_heads_are_named_with_scalars_for_options(head):
    with pytest.raises(ModelSpecError, match="`head"):
        ModelSpec.from_dict(GOOD | {"head": head})
