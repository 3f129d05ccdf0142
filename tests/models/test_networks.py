import json

import helpers
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from learnkit.errors import WeightsError, WeightsUnavailableError
from learnkit.models.body import create_body
from learnkit.models.create import create_cnn_model
from learnkit.models.rebuild import build_model

MOBILENET = helpers.SHARED / "weights" / "mobilenetv2_100.tf_in1k.safetensors"


@pytest.fixture(scope="module")
def resnet_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "test_resnet.safetensors"
    save_file(timm.create_model("test_resnet").state_dict(), path)
    return path


@pytest.fixture(scope="module")
def vit_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    torch.manual_seed(3)
    model = timm.create_model("vit_tiny_patch16_224", depth=1)
    save_file(model.state_dict(), path)
    return path


def test_a_file_fills_the_body_exactly(resnet_file):
    body = create_body("test_resnet", pretrained=resnet_file)
    state = load_file(resnet_file)
    assert all(torch.equal(v, state[k]) for k, v in body.model.state_dict().items())
    random = create_body("test_resnet", pretrained=False)
    assert list(random.state_dict()) == list(body.state_dict())


def test_weights_by_path_mean_the_same(resnet_file):
    body = create_body("test_resnet", weights=str(resnet_file))
    assert torch.equal(body.model.conv1[0].weight, load_file(resnet_file)["conv1.0.weight"])


def test_a_file_for_three_channels_is_converted(resnet_file):
    first = load_file(resnet_file)["conv1.0.weight"]
    body = create_body("test_resnet", pretrained=resnet_file, n_in=1)
    assert torch.allclose(body.model.conv1[0].weight, first.sum(1, keepdim=True))
    assert "state_dict" not in body.model.pretrained_cfg


def test_a_file_made_for_the_channels_of_the_data_is_taken_as_it_is(tmp_path):
    state = timm.create_model("test_resnet", in_chans=1).state_dict()
    save_file(state, tmp_path / "grey.safetensors")
    body = create_body("test_resnet", pretrained=tmp_path / "grey.safetensors", n_in=1)
    assert torch.equal(body.model.conv1[0].weight, state["conv1.0.weight"])


def test_positions_are_interpolated_to_another_image_size(vit_file):
    body = create_body("vit_tiny_patch16_224", pretrained=vit_file, img_size=96, depth=1)
    state = load_file(vit_file)
    assert body.model.pos_embed.shape == (1, 6 * 6 + 1, 192)
    assert torch.equal(body.model.pos_embed[:, 0], state["pos_embed"][:, 0])
    assert torch.equal(body.model.blocks[0].attn.qkv.weight, state["blocks.0.attn.qkv.weight"])


@pytest.mark.parametrize("change", ["missing", "unexpected", "wrong shape"])
def test_files_are_strict_both_ways(tmp_path, resnet_file, change):
    state = load_file(resnet_file)
    name = "layer1.0.conv1.weight"
    if change == "missing":
        del state[name]
    elif change == "unexpected":
        state["layer9.weight"] = torch.ones(1)
    else:
        state[name] = torch.ones(2, 2)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=rf"w\.safetensors does not fit test_resnet: 1 {change}"):
        create_body("test_resnet", pretrained=tmp_path / "w.safetensors")


def test_a_file_that_fits_nowhere_is_refused_at_any_size_and_number_of_channels(
    vit_file, monkeypatch
):
    monkeypatch.setattr(timm, "list_models", lambda: ["vit_tiny_patch16_224", "resnet18"])
    with pytest.raises(WeightsError, match=r"does not fit vit_tiny_patch16_224: 12 missing"):
        create_body("vit_tiny_patch16_224", pretrained=vit_file, img_size=96, depth=2, n_in=1)


@pytest.mark.parametrize(
    ("n_classes", "message"), [(7, "has 7 classes; it is not used"), (0, "is missing; it is not")]
)
def test_another_classifier_is_allowed_and_mentioned(tmp_path, n_classes, message):
    state = timm.create_model("test_resnet", num_classes=n_classes).state_dict()
    save_file(state, tmp_path / "w.safetensors")
    with pytest.warns(UserWarning, match=message):
        body = create_body("test_resnet", pretrained=tmp_path / "w.safetensors")
    assert all(torch.equal(v, state[k]) for k, v in body.model.state_dict().items())


def test_batch_norm_counters_may_be_missing(tmp_path, resnet_file):
    state = {k: v for k, v in load_file(resnet_file).items() if "num_batches" not in k}
    save_file(state, tmp_path / "w.safetensors")
    assert create_body("test_resnet", pretrained=tmp_path / "w.safetensors").n_features == 96


@pytest.fixture
def folder(tmp_path, resnet_file):
    """A folder in timm's layout, with its own normalisation and an extra argument."""
    config = {
        "architecture": "test_resnet",
        "num_classes": 1000,
        "model_args": {"drop_path_rate": 0.1},
        "pretrained_cfg": {"mean": [0.1] * 3, "std": [0.2] * 3, "input_size": [3, 96, 96]},
    }
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "model.safetensors").write_bytes(resnet_file.read_bytes())
    return tmp_path


def test_local_folders_are_opened_with_their_settings(folder, resnet_file):
    model = create_cnn_model(f"local-dir:{folder}", 2)
    body, state = model[0], load_file(resnet_file)
    assert (body.arch, body.mean, body.arch_kwargs) == (
        "test_resnet",
        (0.1, 0.1, 0.1),
        {"drop_path_rate": 0.1},
    )
    assert all(torch.equal(v, state[k]) for k, v in body.model.state_dict().items())
    again = build_model(model.spec)
    assert again[0].mean == (0.1, 0.1, 0.1)
    assert list(again.state_dict()) == list(model.state_dict())


def test_a_folder_without_settings_is_named(tmp_path):
    with pytest.raises(WeightsUnavailableError, match="Config file not found"):
        create_body(f"local-dir:{tmp_path}")


@pytest.mark.skipif(not MOBILENET.is_file(), reason="the real ImageNet weights are not here")
def test_real_imagenet_weights_load_with_their_padding_and_normalisation():
    options = {"mean": [0.5] * 3, "std": [0.5] * 3, "arch_kwargs": {"pad_type": "same"}}
    model = create_cnn_model("mobilenetv2_100", 2, pretrained=MOBILENET, **options)
    state, body = load_file(MOBILENET), model[0]
    assert type(body.model.conv_stem).__name__ == "Conv2dSame"
    for name, value in body.model.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(value, state[name].float()), name
    assert (body.mean, body.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    spec = model.spec
    assert (spec.arch_kwargs, spec.mean) == ({"pad_type": "same"}, (0.5, 0.5, 0.5))
    assert type(build_model(spec)[0].model.conv_stem).__name__ == "Conv2dSame"
    told = (
        r"does not fit mobilenetv2_050: .* wrong shape.*these keys are those of mobilenetv2_100: "
    )
    with pytest.raises(WeightsError, match=told):
        create_body("mobilenetv2_050", pretrained=MOBILENET)
