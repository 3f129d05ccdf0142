import numpy as np
import pytest
import torch
from deploy_helpers import CLASSES, make_model, make_predictor
from helpers import write_image_folder
from torch import nn

from learnkit.data.dataset import ImageDataset
from learnkit.data.preprocess import Preprocessing
from learnkit.deploy.predictor import Predictor
from learnkit.errors import ImageReadError, PredictionError, UnreadableImagesError

QUIET = {"progress": False}


def pictures(n, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (30 + i, 44, 3), dtype=np.uint8) for i in range(n)]


def test_features_are_the_bodys_map_averaged(predictor):
    images = pictures(5)
    x = torch.stack([predictor.preprocessing(image) for image in images])
    with torch.no_grad():
        expected = predictor.model[0](x).mean((2, 3))
    features = predictor.features(images, **QUIET)
    assert (features.dtype, features.shape) == (torch.float32, expected.shape)
    torch.testing.assert_close(features, expected)
    assert type(features) is torch.Tensor
    assert not features.is_inference()


@pytest.mark.parametrize("arch", ["test_efficientnet", "resnet10t", "test_vit"])
def test_the_company_of_an_image_does_not_change_a_bit_of_its_features(arch):
    size = 160 if arch == "test_vit" else 32
    predictor = make_predictor(make_model(arch, size=size), size=size)
    images = pictures(6)
    together = predictor.features(images, bs=4, **QUIET)
    alone = torch.cat([predictor.features(image, bs=4, **QUIET) for image in images])
    backwards = predictor.features(images[::-1], bs=4, **QUIET).flip(0)
    assert torch.equal(together, alone)
    assert torch.equal(together, backwards)
    assert len(together.unique(dim=0)) == 6


@pytest.mark.parametrize("n_workers", [0, 2])
def test_files_folders_and_datasets_are_read_in_their_order(predictor, tmp_path, n_workers):
    data = ImageDataset.from_folder(write_image_folder(tmp_path, {"a": 3, "b": 4}))
    expected = predictor.features(data.paths, n_workers=n_workers, **QUIET)
    assert expected.shape[0] == 7
    assert torch.equal(predictor.features(data, **QUIET), expected)
    assert torch.equal(predictor.features(str(tmp_path), **QUIET), expected)


def test_no_images_have_no_features_but_a_width(predictor):
    assert predictor.features([], **QUIET).shape == (0, predictor.model[0].n_features)


def test_all_unreadable_images_are_named_at_once(predictor, tmp_path):
    write_image_folder(tmp_path, {"a": 30})
    broken = [tmp_path / "a" / f"{i:03d}.png" for i in (2, 19, 28)]
    for path in broken:
        path.write_bytes(b"no image")
    with pytest.raises(UnreadableImagesError, match=r"3 of 30 images cannot be read") as caught:
        predictor.features(tmp_path, bs=4, **QUIET)
    assert list(caught.value.failures) == [str(path) for path in broken]
    assert all(path.name in str(caught.value) for path in broken)
    assert isinstance(caught.value, ImageReadError)


def test_each_reason_is_said_once_with_its_files(predictor, tmp_path):
    write_image_folder(tmp_path, {"a": 12})
    files = sorted((tmp_path / "a").iterdir())
    for path in files[:5]:
        path.write_bytes(b"no image")
    for path in files[5:8]:
        path.unlink()
    with pytest.raises(UnreadableImagesError) as caught:
        predictor.features(files, bs=4, **QUIET)
    text = str(caught.value)
    listed = [", ".join(repr(str(path)) for path in group) for group in (files[:5], files[5:8])]
    assert text.startswith(f"8 of 12 images cannot be read, and nothing was changed: {listed[0]}: ")
    assert f"; {listed[1]}: there is no such file" in text or f"; {listed[1]}: no such file" in text
    assert (text.count("it begins with b'no image'"), text.count("no such file")) == (1, 1)
    assert caught.value.evaluation is None


def test_of_very_many_unreadable_images_the_message_names_a_hundred(predictor):
    with pytest.raises(UnreadableImagesError, match="and 20 more") as caught:
        predictor.features([f"{i}.png" for i in range(120)], **QUIET)
    assert len(caught.value.failures) == 120


def test_images_whose_features_are_not_finite_are_named(predictor):
    class Overflowing(nn.Module):
        def forward(self, x):
            return torch.where(x.mean((1, 2, 3), keepdim=True) > 0.5, torch.inf, x)

    predictor = Predictor(nn.Sequential(Overflowing(), nn.Identity()), Preprocessing(8), CLASSES)
    dark, white = np.zeros((8, 8, 3), "uint8"), np.full((8, 8, 3), 255, "uint8")
    assert predictor.features([dark], **QUIET).tolist() == [[0, 0, 0]]
    with pytest.raises(PredictionError, match="image 1 "):
        predictor.features([dark, white], **QUIET)


def test_networks_without_a_feature_map_are_refused(predictor):
    flat = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    with pytest.raises(PredictionError, match="read off a map"):
        Predictor(flat, Preprocessing(8), CLASSES).features(pictures(1), **QUIET)
    with pytest.raises(PredictionError, match="without a body"):
        Predictor(nn.Flatten(), Preprocessing(8), CLASSES).features(pictures(1), **QUIET)
    with pytest.raises(PredictionError, match="`bs`=0"):
        predictor.features(pictures(1), bs=0, **QUIET)
