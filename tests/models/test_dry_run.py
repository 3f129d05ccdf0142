import pytest
import torch
from torch import nn

from learnkit.models.dry_run import Removed, drop_unused, dry_run, meta_copy


class Partly(nn.Module):
    """Uses `first` and `scale`, calls `idle` in vain, never calls `last`, loses `token`."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 1)
        self.idle = nn.Conv2d(4, 4, 1)
        self.last = nn.Sequential(nn.Linear(4, 2), nn.ReLU())
        self.token = nn.Parameter(torch.ones(1))
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        x = self.first(x)
        self.idle(x)
        torch.cat([x.flatten(), self.token])
        return x * self.scale


class NeedsValues(nn.Module):
    """Cannot run on the meta device."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 2, 1)

    def forward(self, x):
        assert x.sum().item() == 0
        return self.layer(x)


def forward(net, x):
    return net(x)


def test_probe_tells_shape_calls_and_influence_without_touching_the_network():
    model = Partly().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    seen = dry_run(model, forward, (1, 3, 5, 6))
    assert seen.output.shape == (1, 4, 5, 6)
    assert seen.reached == {"first.weight", "first.bias", "scale"}
    assert seen.called == {"", "first", "idle"}
    assert model.training
    assert not model._forward_pre_hooks
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_unused_modules_go_and_unused_parameters_become_buffers_of_the_same_name():
    model = Partly()
    x = torch.rand(1, 3, 2, 2)
    before = model(x)
    dropped = drop_unused(model, dry_run(model, forward, (1, 3, 2, 2)))
    assert sorted(dropped) == ["idle.bias", "idle.weight", "last", "token"]
    assert isinstance(model.last, Removed)
    assert {n for n, _ in model.named_parameters()} == {"first.weight", "first.bias", "scale"}
    assert {"token", "idle.weight"} <= set(dict(model.named_buffers()))
    assert torch.equal(model(x), before)


def test_networks_that_read_values_are_run_for_real_and_left_without_hooks():
    model = NeedsValues()
    seen = dry_run(model, forward, (1, 3, 4, 4))
    assert seen.output.shape == (1, 2, 4, 4)
    assert seen.reached == {"layer.weight", "layer.bias"}
    assert not any(m._forward_pre_hooks for m in model.modules())
    assert model.training


def test_the_networks_own_error_comes_out():
    with pytest.raises(RuntimeError, match=r"expected input.*to have 3 channels"):
        dry_run(nn.Conv2d(3, 2, 1), forward, (1, 4, 4, 4))


def test_frozen_parameters_are_kept():
    model = nn.Sequential(nn.Conv2d(3, 2, 1).requires_grad_(False), nn.Conv2d(2, 2, 1))
    assert drop_unused(model, dry_run(model, forward, (1, 3, 4, 4))) == []
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True]


def test_frozen_parameters_without_influence_become_buffers_too():
    model = Partly()
    model.token.requires_grad_(False)
    assert "token" in drop_unused(model, dry_run(model, forward, (1, 3, 2, 2)))


def test_a_meta_copy_holds_no_data_and_shares_none():
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
    shadow = meta_copy(model)
    assert {v.device.type for v in shadow.state_dict().values()} == {"meta"}
    assert {v.device.type for v in model.state_dict().values()} == {"cpu"}
    assert list(shadow.state_dict()) == list(model.state_dict())
