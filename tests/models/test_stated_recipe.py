"""What a weights file, or a configuration beside it, says of the images it was trained on."""

import json

import pytest
import timm
import torch
from safetensors.torch import save_file

from learnkit.errors import WeightsError
from learnkit.models.body import create_body
from learnkit.models.weights import StatedRecipe, stated_recipe

HALF, ODD = (0.5, 0.5, 0.5), (0.1, 0.2, 0.3)
NOTHING = StatedRecipe()


@pytest.fixture(scope="module")
def state():
    return timm.create_model("test_resnet").state_dict()


@pytest.fixture
def file(tmp_path, state):
    save_file(state, tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors"


def beside(file, config, name="config.json"):
    text = config if isinstance(config, str | bytes) else json.dumps(config)
    (file.parent / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return file


def test_a_file_that_says_nothing_leaves_everything_to_the_architecture(file):
    assert stated_recipe(file, "test_resnet") == NOTHING
    body = create_body("test_resnet", file)
    assert body.mean == timm.get_pretrained_cfg("test_resnet").mean
    assert (body.weights_file, body.recipe_source) == ("w.safetensors", "")
    assert create_body("test_resnet", False).weights_file == ""


@pytest.mark.parametrize(
    "metadata",
    [
        {"mean": "[0.5, 0.5, 0.5]", "std": "[0.1, 0.2, 0.3]", "format": "pt"},
        {"mean": "0.5", "std": "[0.1, 0.2, 0.3]"},
        {"pretrained_cfg": '{"mean": [0.5, 0.5, 0.5], "std": [0.1, 0.2, 0.3]}'},
    ],
)
def test_metadata_of_safetensors_are_read(tmp_path, state, metadata):
    save_file(state, tmp_path / "w.safetensors", metadata)
    body = create_body("test_resnet", tmp_path / "w.safetensors")
    assert (body.mean, body.std) == (HALF, ODD)
    assert "its metadata" in body.recipe_source


@pytest.mark.parametrize(
    "wrap",
    [
        lambda sd: {"state_dict": sd, "mean": [0.5] * 3, "std": list(ODD)},
        lambda sd: {"model": {"state_dict": sd, "pretrained_cfg": {"mean": HALF, "std": ODD}}},
        lambda sd: {"model_ema": sd, "mean": torch.full((3,), 0.5), "std": torch.tensor(ODD)},
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_entries_of_a_checkpoint_are_read(tmp_path, state, wrap, zipped):
    torch.save(wrap(state), tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    body = create_body("test_resnet", tmp_path / "w.pth")
    assert body.mean == HALF
    assert body.std == pytest.approx(ODD)


@pytest.mark.parametrize(
    "config",
    [
        {"architecture": "test_resnet", "pretrained_cfg": {"mean": HALF, "std": ODD}},
        {"architecture": "test_resnet.r160_in1k", "mean": HALF, "std": ODD},
        {"mean": [127.5] * 3, "std": [25.5, 51, 76.5]},  # of pixels in 0..255
    ],
)
def test_a_configuration_beside_the_file_is_read(file, config):
    found = stated_recipe(beside(file, config), "test_resnet")
    assert found.mean == pytest.approx(HALF)
    assert found.std == pytest.approx(ODD)
    assert found.source == "config.json beside it"


# transformers: x * rescale_factor if do_rescale, then (x - mean) / std if do_normalize.
@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("factor", [1 / 255, 1 / 127.5])
def test_a_preprocessor_of_transformers_gives_the_same_pixels(file, rescale, normalize, factor):
    config = {"image_mean": HALF, "image_std": ODD, "rescale_factor": factor}
    config |= {"do_rescale": rescale, "do_normalize": normalize}
    found = stated_recipe(beside(file, config, "preprocessor_config.json"), "test_resnet")
    pixels = torch.arange(0, 256, 15.0)
    expected = pixels * factor if rescale else pixels
    expected = (expected - 0.5) / ODD[1] if normalize else expected
    got = (pixels / 255 - found.mean[1]) / found.std[1]
    assert torch.allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_arguments_of_the_architecture_are_followed_unless_given(tmp_path):
    save_file(timm.create_model("test_efficientnet").state_dict(), tmp_path / "w.safetensors")
    args = {"pad_type": "same", "num_classes": 7, "in_chans": 1}
    file = beside(tmp_path / "w.safetensors", {"model_args": args})
    body = create_body("test_efficientnet", file)
    assert body.arch_kwargs == {"pad_type": "same"}
    assert type(body.model.conv_stem).__name__ == "Conv2dSame"
    body = create_body("test_efficientnet", file, pad_type="")
    assert type(body.model.conv_stem).__name__ == "Conv2d"


def test_the_image_size_is_read(file):
    config = {"pretrained_cfg": {"input_size": [3, 160, 192]}}
    assert stated_recipe(beside(file, config), "test_resnet").size == (160, 192)


def test_a_configuration_of_another_architecture_is_not_about_this_file(file):
    config = {"architecture": "resnet50", "mean": HALF, "std": ODD}
    assert stated_recipe(beside(file, config), "test_resnet") == NOTHING


def test_what_is_given_needs_no_saying(file):
    beside(file, {"mean": ["a"], "std": ODD})
    beside(file, {"mean": HALF}, "preprocessor_config.json")
    body = create_body("test_resnet", beside(file, {"mean": HALF}), mean=ODD, std=HALF)
    assert (body.mean, body.std, body.recipe_source) == (ODD, HALF, "")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "beside the weights file, config.json is not strict JSON"),
        ("[]", "config.json holds a JSON list, not an object"),
        (
            '{"mean": [NaN, 0, 0], "std": [1, 1, 1]}',
            r"says mean \[nan, 0, 0\]: expected",
        ),
        (
            '{"mean": [1e999, 0, 0], "std": [1, 1, 1]}',
            r"says mean \[inf, 0, 0\]: expected",
        ),
        ("[" * 100_000, "config.json is not strict JSON: maximum recursion depth"),
        (b"\xff\xfe", "config.json is not strict JSON"),
        ({"mean": HALF}, "config.json beside it says mean and no std; add it"),
        ({"std": HALF}, "config.json beside it says std and no mean"),
        (
            {"mean": HALF[:2], "std": HALF[:2]},
            r"^weights file w.safetensors: config.json beside it says mean .*, 2 numbers for 3",
        ),
        ({"mean": HALF, "std": 0}, "says std 0: expected positive numbers"),
        ({"mean": HALF, "std": [1, 1, -1]}, "expected positive numbers"),
        ({"mean": "half", "std": HALF}, "says mean 'half': expected finite numbers"),
        ({"mean": [True] * 3, "std": HALF}, "expected finite numbers"),
        ({"mean": [10**400] * 3, "std": HALF}, "expected finite numbers"),
        ({"mean": [[0.5]], "std": HALF}, "expected finite numbers"),
        (
            {"mean": HALF, "std": HALF, "pretrained_cfg": {"mean": ODD, "std": HALF}},
            r"config.json beside it says mean \(0.5, 0.5, 0.5\), pretrained_cfg in config.json "
            r"beside it says \(0.1, 0.2, 0.3\); remove one of them, or pass `normalize=",
        ),
        ({"model_args": {"checkpoint_path": "evil.pth"}}, "`arch_kwargs` has 'checkpoint_path'"),
        (
            {"model_args": {"pad_type": "same"}},
            r"says pad_type='same', which timm:test_resnet does",
        ),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(file, config, message):
    with pytest.raises(WeightsError, match=message):
        create_body("test_resnet", beside(file, config))


def test_metadata_and_configuration_that_differ_are_refused(tmp_path, state):
    metadata = {"mean": "[0.5, 0.5, 0.5]", "std": "[0.5, 0.5, 0.5]"}
    save_file(state, tmp_path / "w.safetensors", metadata)
    file = beside(tmp_path / "w.safetensors", {"mean": ODD, "std": HALF})
    with pytest.raises(WeightsError, match=r"its metadata says mean \(0.5, 0.5, 0.5\), con"):
        stated_recipe(file, "test_resnet")
    assert stated_recipe(file, "test_resnet", decided=True) == NOTHING


def test_a_huge_configuration_is_not_read(file, monkeypatch):
    beside(file, b" " * 1_000_001)
    monkeypatch.setattr("pathlib.Path.read_bytes", lambda path: pytest.fail(f"{path} was read"))
    with pytest.raises(WeightsError, match="has 1,000,001 bytes, more than 1,000,000"):
        stated_recipe(file, "test_resnet")
