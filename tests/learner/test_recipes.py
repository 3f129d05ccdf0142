"""What a recipe says of pixels holds from training to both predictors, to the bit."""

import numpy as np
import pytest
import torch
from fastai.losses import CrossEntropyLossFlat
from helpers import quiet
from PIL import Image

from learnkit.data.dataset import ImageDataset
from learnkit.data.preprocess import Preprocessing
from learnkit.deploy.predictor import load_learner
from learnkit.deploy.runtime_predictor import load_runtime
from learnkit.learner.factory import cnn_learner
from learnkit.learner.transforms import preprocessing_of

FIELDS = ("label", "probs", "ood_score", "p_value")


def trained(data, **recipe):
    """A learner in the continual state after a moment's training."""
    torch.manual_seed(0)
    dls = data.dataloaders(32, bs=8, method="squish", **recipe)
    learn = quiet(cnn_learner(dls, "test_resnet", False, loss_func=CrossEntropyLossFlat()))
    with learn.no_logging():
        learn.fit(1, 0.01)
    learn.init_continual(data)
    return learn


def numbers(predictor, items):
    """What it says of each item, comparable by `==`."""
    return [
        [np.asarray(getattr(predictor.predict(item), name)).tolist() for name in FIELDS]
        for item in items
    ]


def assert_one_answer_everywhere(learn, data, tmp_path):
    """Learner, bundle, and the converted model with torch and without say the same of files."""
    paths = data.paths[::4]
    learn.export(tmp_path / "model")
    loaded = load_learner(tmp_path / "model")
    assert loaded.preprocessing == preprocessing_of(learn.dls)
    assert numbers(loaded, paths) == numbers(learn.predictor(), paths)
    fast, _ = loaded.optimize(
        "float32", samples=data.train, backend="onnxruntime", force=True, progress=False
    )
    fast.save(tmp_path / "fast")
    expected = numbers(load_learner(tmp_path / "fast"), paths)
    assert numbers(load_runtime(tmp_path / "fast"), paths) == expected
    for one, other in zip(expected, numbers(loaded, paths), strict=True):
        assert one[0] == other[0]
        assert np.allclose(one[1], other[1], atol=1e-4)


@pytest.fixture(scope="module")
def dim(tmp_path_factory):
    """Textures under light of all strengths, which says nothing of their class."""
    rng, root = np.random.default_rng(0), tmp_path_factory.mktemp("dim")
    for name, period in {"fine": 4, "coarse": 12}.items():
        for i in range(16):
            wave = np.sin(np.arange(48) * 2 * np.pi / period + rng.uniform(0, 6))
            strength, base = rng.uniform(10, 60), rng.uniform(60, 180)
            pixels = base + strength * wave[:, None, None] + rng.normal(0, 1, (48, 48, 3))
            (root / name).mkdir(exist_ok=True)
            Image.fromarray(pixels.clip(0, 255).astype("uint8")).save(root / name / f"{i}.png")
    return ImageDataset.from_folder(root).split(0.7, 0.3, seed=0)


@pytest.mark.parametrize("kind", ["all_channels"])
def test_per_image_contrast_is_the_same_from_training_to_both_predictors(dim, kind, tmp_path):
    learn = trained(dim, per_image=kind)
    stretched = preprocessing_of(learn.dls)
    assert stretched.per_image == kind
    plain = learn.dls.valid_ds[0][0]
    expected = Preprocessing(32, method="squish", per_image=kind).pixels(dim.valid.paths[0])
    assert np.array_equal(np.asarray(plain), expected)
    assert_one_answer_everywhere(learn, dim, tmp_path)


def spectra(root, n_channels, kind):
    """Images that differ in their last channel alone, as `kind` of file."""
    rng = np.random.default_rng(n_channels)
    for name, value in {"dry": 60, "wet": 190}.items():
        (root / name).mkdir(parents=True)
        for i in range(12):
            pixels = rng.integers(0, 256, (40, 36, n_channels)).astype("uint8")
            pixels[..., -1] = (value + rng.normal(0, 9, (40, 36))).clip(0, 255)
            if kind == "npy":
                np.save(root / name / f"{i}.npy", pixels)
                continue
            pages = [
                Image.fromarray(np.ascontiguousarray(one)) for one in np.moveaxis(pixels, 2, 0)
            ]
            pages[0].save(
                root / name / f"{i}.tif",
                save_all=True,
                append_images=pages[1:],
                compression="tiff_adobe_deflate",
            )
    return ImageDataset.from_folder(root).split(0.7, 0.3, seed=0)


@pytest.mark.parametrize(("n_channels", "kind"), [(5, "npy"), (2, "tif")])
def test_any_number_of_channels_is_the_same_from_training_to_both_predictors(
    n_channels, kind, tmp_path
):
    data = spectra(tmp_path / "images", n_channels, kind)
    recipe = {"channels": n_channels, "method": "squish"}
    learn = trained(data, channels=n_channels, store=tmp_path / "store")
    conv = next(m for m in learn.model.modules() if isinstance(m, torch.nn.Conv2d))
    assert conv.in_channels == n_channels
    assert_one_answer_everywhere(learn, data, tmp_path)
    plain = data.dataloaders(32, bs=8, **recipe)
    stored = data.dataloaders(32, bs=8, store=tmp_path / "store", **recipe)
    for one, other in zip(plain.valid, stored.valid, strict=True):
        assert type(one[0]) is type(other[0])
        assert torch.equal(one[0], other[0])
    plain.show_batch(max_n=2)
    assert all(axis.images for axis in data.show(4).flat)
    assert not (data.check(progress=False)["severity"] == "error").any()


@pytest.mark.filterwarnings("ignore:weights file .* does not say how its images were normal")
def test_a_first_layer_for_other_channels_is_timms(tmp_path):
    import timm
    from safetensors.torch import save_model

    weights = tmp_path / "test_resnet.safetensors"
    save_model(timm.create_model("test_resnet", pretrained=False), weights)
    data = spectra(tmp_path / "images", 5, "npy")
    learn = quiet(cnn_learner(data.dataloaders(32, bs=8, channels=5), "test_resnet", str(weights)))
    reference = timm.create_model(
        "test_resnet", pretrained=True, in_chans=5, pretrained_cfg_overlay={"file": str(weights)}
    )
    first = [
        next(m for m in net.modules() if isinstance(m, torch.nn.Conv2d)).weight
        for net in (learn.model, reference)
    ]
    assert torch.equal(*first)


def test_files_of_another_number_of_channels_are_named(tmp_path):
    data = spectra(tmp_path / "images", 5, "npy")
    with pytest.raises(OSError, match=r"\.npy' cannot be read: it has shape .*`channels` is 3"):
        data.dataloaders(32, bs=8).train.one_batch()
