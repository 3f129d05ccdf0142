import pickle
import re

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from learnkit.errors import WeightsError, WeightsUnavailableError
from learnkit.models.body import create_body
from learnkit.models.weights import (
    load_file_into,
    load_weights_file,
    wanted_weights,
    weight_mismatch,
)


def net():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


@pytest.fixture
def state():
    return {k: v.clone() for k, v in net().state_dict().items()}


def test_safetensors_and_torch_files_give_the_same_float32_tensors(tmp_path, state):
    halved = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    save_file(halved, tmp_path / "a.safetensors")
    torch.save(halved, tmp_path / "a.pth")
    for path in (tmp_path / "a.safetensors", tmp_path / "a.pth"):
        loaded = load_weights_file(path)
        assert loaded["0.weight"].dtype == torch.float32
        assert loaded["1.num_batches_tracked"].dtype == torch.int64
        assert all(torch.equal(loaded[k], v.to(loaded[k].dtype)) for k, v in halved.items())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda sd: {"state_dict": sd, "epoch": 3},
        lambda sd: {"model": {f"module.{k}": v for k, v in sd.items()}},
        lambda sd: {f"_orig_mod.module.{k}": v for k, v in sd.items()},
        lambda sd: {"state_dict_ema": sd, "state_dict": {}},
    ],
)
def test_wrappers_and_prefixes_are_removed(tmp_path, state, wrap):
    torch.save(wrap(state), tmp_path / "w.pth")
    assert set(load_weights_file(tmp_path / "w.pth")) == set(state)


class Evil:
    def __reduce__(self):
        return print, ("executed",)


def test_a_file_that_would_execute_code_is_refused_unexecuted(tmp_path, capsys):
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Evil(), protocol=2))
    torch.save({"state_dict": Evil()}, tmp_path / "evil.bin")
    for name in ("evil.pth", "evil.bin"):
        with pytest.raises(WeightsError, match="could execute code and is refused"):
            load_weights_file(tmp_path / name)
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["cut.safetensors", "cut.pth", "empty.safetensors", "empty.pth"])
def test_damaged_files_are_refused_by_name(tmp_path, state, name):
    path = tmp_path / name
    if name.startswith("cut"):
        (save_file if name.endswith("tensors") else torch.save)(state, path)
        path.write_bytes(path.read_bytes()[:-40])
    else:
        path.touch()
    with pytest.raises(WeightsError, match=re.escape(name)):
        load_weights_file(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": torch.ones(2), "lr": 0.1}, "lr are not tensors"),
        ({}, "holds no tensors by name"),
        ([torch.ones(2)], "holds no tensors by name"),
        ({"a": torch.tensor([1.0, float("nan")])}, "a hold NaN or infinity"),
    ],
)
def test_files_of_anything_but_finite_tensors_are_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=message):
        load_weights_file(tmp_path / "x.pth")


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(WeightsUnavailableError, match=r"'.*none\.safetensors' does not exist"):
        load_weights_file(tmp_path / "none.safetensors")
    with pytest.raises(WeightsUnavailableError, match="is a folder, a file is needed"):
        load_weights_file(tmp_path)
    with pytest.raises(OSError, match="does not exist"):
        create_body("test_resnet", pretrained=str(tmp_path / "none.pth"))


def test_mismatches_are_counted_by_kind_and_the_first_named(tmp_path, state):
    state["extra"] = torch.ones(1)
    state["0.weight"] = torch.ones(5, 3, 3, 3)
    del state["1.weight"], state["1.running_mean"], state["1.num_batches_tracked"]
    save_file(state, tmp_path / "w.safetensors")
    expected = (
        "2 missing (1.weight, 1.running_mean); 1 unexpected (extra);"
        " 1 wrong shape (0.weight (5, 3, 3, 3) instead of (4, 3, 3, 3))"
    )
    assert str(weight_mismatch(net(), state)) == expected
    with pytest.raises(WeightsError, match=re.escape(f"does not fit my net: {expected}")):
        load_file_into(net(), tmp_path / "w.safetensors", "my net")


def test_long_lists_are_shortened():
    given = {f"x{i}": torch.ones(1) for i in range(9)}
    assert "9 unexpected (x0, x1, x2, and 6 more)" in str(weight_mismatch(net(), given))


def test_optional_prefixes_may_be_missing_unexpected_or_of_another_shape(state):
    state["2.weight"] = torch.ones(1)
    state["1.weight"] = torch.ones(9)
    del state["1.bias"]
    assert not weight_mismatch(net(), state, ("1.", "2."))


def test_nothing_is_loaded_from_a_file_that_does_not_fit(tmp_path, state):
    del state["1.weight"]
    save_file(state, tmp_path / "w.safetensors")
    model = net()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(WeightsError):
        load_file_into(model, tmp_path / "w.safetensors", "net")
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_module_is_filled_from_a_file(tmp_path):
    source = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2))
    torch.save(source.state_dict(), tmp_path / "w.pth")
    target = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2))
    body = create_body(target, pretrained=tmp_path / "w.pth")
    assert torch.equal(body[0].weight, source[0].weight)


def test_what_is_wanted_follows_from_both_arguments(tmp_path):
    assert not wanted_weights(False).pretrained
    assert not wanted_weights(None).pretrained
    assert wanted_weights(True).hub
    assert wanted_weights(True, "a1_in1k").tag == "a1_in1k"
    assert wanted_weights(None, "IMAGENET1K_V1").hub
    assert wanted_weights("x.pth").file.name == "x.pth"
    assert wanted_weights(True, "x.safetensors").file.name == "x.safetensors"
    assert wanted_weights(True, tmp_path / "x").file == tmp_path / "x"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3,), "expected True, False or the path of a file"),
        (("a.pth", "b.pth"), "give one"),
        ((False, "a1_in1k"), "leave one of them out"),
    ],
)
def test_contradictions_are_refused(arguments, message):
    with pytest.raises(WeightsError, match=message):
        wanted_weights(*arguments)


def test_codes_of_terminals_in_names_are_shown_not_obeyed(tmp_path):
    torch.save({"\x1b[31mred\x07": torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(WeightsError) as caught:
        create_body("test_resnet", tmp_path / "w.pth")
    assert r"\x1b[31mred\x07" in str(caught.value)
    assert str(caught.value).isprintable()


def test_keys_of_another_architecture_are_named_as_that(tmp_path):
    save_file(timm.create_model("test_vit2").state_dict(), tmp_path / "test_vit2.safetensors")
    told = r"does not fit test_vit: .*; these keys are those of test_vit2: pass `arch='test_vit2'`$"
    with pytest.raises(WeightsError, match=told):
        create_body("test_vit", pretrained=tmp_path / "test_vit2.safetensors")
    with pytest.raises(
        WeightsError, match=r"does not fit torchvision:resnet18: .*those of test_vit2"
    ):
        create_body("torchvision:resnet18", pretrained=tmp_path / "test_vit2.safetensors")
