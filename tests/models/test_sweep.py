"""One architecture of every timm module, without data; timm's tiny test networks for real."""

import copy
import csv
import functools
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from learnkit.models.create import create_cnn_model
from learnkit.models.dry_run import _reached
from learnkit.models.param_groups import param_groups
from learnkit.models.rebuild import build_model
from learnkit.models.spec import ModelSpec
from learnkit.models.timm_body import TimmBody

# The smallest network of each timm module, found by building all of them without data.
TABLE = Path(__file__).with_name("timm_networks.csv")
with open(TABLE, newline="", encoding="utf-8") as table:
    SMALLEST = {row["module"]: row["arch"] for row in csv.DictReader(table)}
# Modules whose smallest network has over 30 million parameters are swept where that is quick.
EXCLUDED = {
    "gemma4_vit",  # 167 million; its forward reads values, which meta tensors lack
    *("beit", "deepseek_vit", "qwen3_vit"),  # 87 million and more, dozens of attention blocks
    *("inception_resnet_v2", "inception_v4", "nasnet", "pnasnet"),  # hundreds of branches
    "mobilenetv5",  # 83 million
}
SIZES = {"sequencer2d_s": 28}  # an LSTM over rows takes seconds to trace at 224 pixels
# `num_features` counts all branches or stages together, the map is the last one's.
NARROWER = {"crossvit_tiny_240", "coat_tiny", "efficientvim_m1"}
TINY = timm.list_models("test_*")


def test_every_timm_module_has_a_row_of_its_own():
    assert set(SMALLEST) == set(timm.list_modules())
    defined_in = {arch: timm.model_entrypoint(arch).__module__ for arch in SMALLEST.values()}
    assert all(defined_in[arch] == f"timm.models.{module}" for module, arch in SMALLEST.items())


def test_only_modules_of_large_networks_are_excluded():
    with open(TABLE, newline="", encoding="utf-8") as table:
        parameters = {row["module"]: int(row["parameters"]) for row in csv.DictReader(table)}
    assert min(parameters[module] for module in EXCLUDED) > 30_000_000


@pytest.mark.parametrize("arch", [SMALLEST[m] for m in SMALLEST if m not in EXCLUDED])
def test_one_architecture_of_every_timm_module_builds_and_runs(arch):
    size = SIZES.get(arch, timm.get_pretrained_cfg(arch).input_size[-1])
    with torch.device("meta"):
        model = create_cnn_model(arch, 7, pretrained=False, img_size=size)
        x = torch.empty(2, 3, size, size)
        body, head = model.eval()
        feature_map = body(x)
        logits = head(feature_map)
    height = feature_map.shape[2]
    assert feature_map.shape[:2] == (2, body.n_features)
    assert logits.shape == (2, 7)
    assert body.reduction == round(size / height) or height < 4
    assert body.n_features == body.model.num_features or arch in NARROWER
    assert unreached(model, logits) == []
    check_groups(model)


@pytest.mark.parametrize("arch", TINY)
def test_tiny_networks_train_and_are_rebuilt_from_their_spec(arch):
    model = copy.deepcopy(tiny_model(arch))
    check_groups(model)
    x = torch.rand(2, 3, 96, 96)
    model(x).square().mean().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in model.parameters())
    again = build_model(ModelSpec.from_dict(model.spec.to_dict()))
    assert shapes(again) == shapes(model)
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(again.eval()(x), model.eval()(x))


@pytest.mark.parametrize("arch", TINY)
def test_frozen_by_fastai_only_the_norms_and_the_head_go_on_learning(arch):
    fastai = pytest.importorskip("fastai.vision.all")
    model = copy.deepcopy(tiny_model(arch))
    batch = [(torch.rand(3, 96, 96), 0)] * 2
    dls = fastai.DataLoaders.from_dsets(batch, batch, bs=2)
    loss = fastai.CrossEntropyLossFlat()
    fastai.Learner(dls, model, loss_func=loss, splitter=param_groups).freeze()
    norms = [m for m in model[0].modules() if isinstance(m, fastai.norm_types)]
    expected = [p for m in norms for p in m.parameters()] + list(model[1].parameters())
    assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for p in expected}


@functools.cache
def tiny_model(arch):
    return create_cnn_model(arch, 3, pretrained=False, img_size=96)


def unreached(model, logits):
    leaves = _reached(logits)
    return [name for name, p in model.named_parameters() if id(p) not in leaves]


def check_groups(model):
    """Stem, stages, head: every parameter once, the last group the head's and only the head's."""
    groups = param_groups(model)
    held = [id(p) for group in groups for p in group]
    assert len(held) == len(set(held))
    assert set(held) == {id(p) for p in model.parameters()}
    assert len(groups) == 3
    assert {id(p) for p in groups[-1]} == {id(p) for p in model[1].parameters()}


def shapes(model):
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def test_bodies_are_wrapped_by_what_their_layout_needs():
    layouts = {
        "test_resnet": "TimmBody",
        "test_mambaout": "TimmNhwcBody",
        "test_vit": "TimmMapBody",
        "vit_tiny_patch16_224": "TimmTokenBody",
    }
    with torch.device("meta"):
        models = {arch: create_cnn_model(arch, 2, pretrained=False) for arch in layouts}
    assert {arch: type(model[0]).__name__ for arch, model in models.items()} == layouts
    assert all(isinstance(model[0], TimmBody) for model in models.values())
    assert all(isinstance(model, nn.Sequential) for model in models.values())
