import pytest
import torch
import torchvision.models as tv
from torch import nn

from learnkit.errors import SplitterError
from learnkit.models.body import create_body
from learnkit.models.create import create_cnn_model
from learnkit.models.meta import boundary_at, model_meta
from learnkit.models.param_groups import as_splitter, param_groups
from learnkit.models.rebuild import build_model


def meta_model(arch, **options):
    with torch.device("meta"):
        return create_cnn_model(arch, 2, pretrained=False, **options)


def names(model, groups):
    by_id = {id(p): name for name, p in model.named_parameters()}
    return [[by_id[id(p)] for p in group] for group in groups]


def small():
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3)),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)),
    )


def test_timm_groups_are_stem_stages_and_head():
    model = meta_model("resnet18")
    stem, stages, head = names(model, param_groups(model))
    assert stem == ["0.model.conv1.weight", "0.model.bn1.weight", "0.model.bn1.bias"]
    assert all(name.startswith("0.model.layer") for name in stages)
    assert all(name.startswith("1.") for name in head)


@pytest.mark.parametrize(
    ("arch", "starts"),
    [
        ("resnet18", ["0.6.0.conv1.weight"]),
        ("squeezenet1_1", ["0.0.6.squeeze.weight", "0.0.9.squeeze.weight"]),
        ("densenet121", ["0.0.transition2.norm.weight"]),
        ("vgg16_bn", ["0.0.24.weight"]),
        ("alexnet", ["0.0.6.weight"]),
        ("mobilenet_v2", ["0.0.10.conv.0.0.weight"]),
    ],
)
def test_torchvision_groups_start_where_fastai_v1s_do(arch, starts):
    model = meta_model(f"torchvision:{arch}")
    groups = names(model, param_groups(model))
    assert [group[0] for group in groups[1:-1]] == starts
    assert groups[-1][0].startswith("1.")


@pytest.mark.parametrize("cut", [-3, 6])
def test_a_shorter_cut_still_gives_groups_of_the_real_body(cut):
    for arch in ("torchvision:resnet18", "timm:resnet18"):
        model = meta_model(arch, cut=cut)
        groups = param_groups(model)
        assert len(groups) == 3
        assert sum(map(len, groups)) == len(list(model.parameters()))


def test_home_made_networks_have_two_groups():
    model = small()
    groups = names(model, param_groups(model))
    assert [group[0].partition(".")[0] for group in groups] == ["0", "1"]


V1_AND_V2 = {
    "boundary modules": lambda m: (m[0][2], m[1]),
    "one boundary": lambda m: m[1],
    "lists of modules": lambda m: [[m[0][0], m[0][1]], [m[0][2]], [m[1]]],
    "lists of parameters": lambda m: [list(m[0].parameters()), list(m[1].parameters())],
    "generators": lambda m: (part.parameters() for part in m),
}


@pytest.mark.parametrize("shape", V1_AND_V2)
def test_splitters_of_both_fastai_generations_work_as_functions_and_as_results(shape):
    model = small()
    split = V1_AND_V2[shape]
    expected = {
        "boundary modules": [4, 2, 2],
        "lists of modules": [4, 2, 2],
    }.get(shape, [6, 2])
    assert [len(group) for group in as_splitter(split)(model)] == expected
    assert [len(group) for group in as_splitter(split(model))(model)] == expected


def test_fastai_lists_are_taken():
    fastcore = pytest.importorskip("fastcore.foundation")
    model = small()
    split = lambda m: fastcore.L(m[0], m[1:]).map(lambda part: list(part.parameters()))
    assert [len(group) for group in as_splitter(split)(model)] == [6, 2]


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (lambda m: [[m[0]]], r"missing 2 \['1.2.weight', '1.2.bias'\], twice 0"),
        (lambda m: [[m[0]], [m[0][2], m[1]]], r"missing 0 \[\], twice 2 \['0.2.weight'"),
        (lambda m: [[m[0]], [m[1], nn.Linear(2, 2)]], "not of this model 2"),
        (lambda m: (nn.Linear(2, 2),), "modules the model does not hold: Linear"),
        (lambda m: [["0.0.weight"]], "a parameter group holds str"),
        (lambda m: 3, "`split_on` gives int"),
    ],
)
def test_groups_that_miss_or_repeat_a_parameter_are_refused(split, message):
    with pytest.raises(SplitterError, match=message):
        as_splitter(split)(small())


def test_a_shared_parameter_is_in_the_group_that_meets_it_first():
    shared = nn.Linear(4, 4)
    model = nn.Sequential(nn.Sequential(nn.Linear(3, 4), shared), nn.Sequential(shared, nn.ReLU()))
    model[1].append(nn.Linear(4, 2))
    groups = names(model, as_splitter(lambda m: (m[1][2],))(model))
    assert groups == [
        ["0.0.weight", "0.0.bias", "0.1.weight", "0.1.bias"],
        ["1.2.weight", "1.2.bias"],
    ]


@pytest.fixture
def registered():
    keys = []

    def register(key, entry):
        model_meta[key] = entry
        keys.append(key)

    before = dict(model_meta)
    yield register
    model_meta.clear()
    model_meta.update(before)


@pytest.mark.parametrize("key", ["split", "split_on"])
def test_users_may_enter_cut_and_split_under_both_names(registered, key):
    def tiny_net(pretrained=False):
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.MaxPool2d(2), nn.Flatten())

    registered(tiny_net, {"cut": -2, key: lambda m: (m[0][1], m[1]), "stats": ([0.1], [0.2])})
    model = create_cnn_model(tiny_net, 2, pretrained=False)
    assert len(model[0]) == 2
    assert model[0].mean == (0.1,)
    assert [len(group) for group in param_groups(model)] == [2, 2, 8]


def test_a_cut_entered_for_a_name_counts_and_is_written_into_the_spec(registered):
    registered("resnet18", {"cut": -3})
    model = meta_model("resnet18")
    assert model[0].n_features == 256
    assert model.spec.cut == -3


def test_a_spec_means_the_same_whatever_is_entered_meanwhile(registered):
    spec = meta_model("resnet18").spec
    registered("resnet18", {"cut": -3})
    with torch.device("meta"):
        assert build_model(spec)[0].n_features == 512


def test_an_entry_changed_for_torchvisions_function_counts(registered):
    registered(tv.resnet18, {"cut": -3})
    with torch.device("meta"):
        body = create_body(tv.resnet18, pretrained=False)
    assert (body.n_features, body.mean) == (256, (0.485, 0.456, 0.406))


def test_boundaries_beyond_the_body_fall_in_its_middle():
    model = small()
    assert boundary_at(99)(model) == (model[0][1], model[1])
