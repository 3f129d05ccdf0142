"""Networks of fastai's own factory, exported as data."""

import learnkit._torchvision  # noqa: F401  # before fastai

import numpy as np
import pytest
import torch
import torchvision.models as tv
from fastai.vision.all import CrossEntropyLossFlat, ImageDataLoaders, Resize, vision_learner
from helpers import write_image_folder
from torch import nn

from learnkit import ImageLearner, cnn_learner, load_learner
from learnkit.errors import BundleError, ExportError, ModelSpecError, WeightsError
from learnkit.models.head import create_head, head_options

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def label_of(path):
    """The class of a file, by its folder; pickled by name."""
    return path.parent.name


@pytest.fixture(scope="module")
def loaders(tmp_path_factory):
    """fastai's loaders of images of a size."""
    root = write_image_folder(tmp_path_factory.mktemp("images"), {"a": 6, "b": 6})
    files = sorted(root.rglob("*.png"))
    return lambda size: ImageDataLoaders.from_path_func(
        root, files, label_of, valid_pct=0.3, seed=1, item_tfms=Resize(size), bs=4, num_workers=0
    )


def fastais(dls, arch, **options):
    """fastai's learner, every weight and running mean of its own."""
    loss = CrossEntropyLossFlat()
    learn = vision_learner(dls, arch, pretrained=False, normalize=False, loss_func=loss, **options)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in learn.model.state_dict().items():
            if value.is_floating_point():
                noise = torch.randn(value.shape, generator=generator)
                value += noise.abs() / 10 if name.endswith("running_var") else noise / 20
    return learn


def probs_of(learn, files):
    with learn.no_bar():
        return np.stack([learn.predict(file)[2].numpy() for file in files])


def check_answers_alike(foreign, path):
    """The bundle of a learner of fastai's gives fastai's own probabilities."""
    learn = ImageLearner.from_learner(foreign)
    with learn.no_bar():
        model = load_learner(learn.export(path))
    files = foreign.dls.valid_ds.items
    found = np.stack([model.predict(file).probs for file in files])
    np.testing.assert_allclose(found, probs_of(foreign, files), atol=1e-6)


HEADS = {
    "plain": {},
    "no hidden layer": {"lin_ftrs": [], "concat_pool": False, "ps": 0.0},
    "linear first": {"lin_first": True},
    "linear first, no first norm": {"lin_first": True, "first_bn": False},
    "no first norm": {"first_bn": False},
    "last norm": {"bn_final": True},
    "two hidden layers without dropout": {"lin_ftrs": [24, 16], "ps": 0.0},
    "a dropout for each layer": {"lin_ftrs": [24], "ps": [0.1, 0.3]},
    "range": {"y_range": (-1, 3)},
}


@pytest.mark.parametrize("options", HEADS.values(), ids=HEADS)
def test_every_head_of_fastais_answers_as_before(loaders, tmp_path, options):
    foreign = fastais(loaders(32), "test_resnet", **options)
    check_answers_alike(foreign, tmp_path / "bundle")


# an unused norm, an unused convolution after the pool, tokens that timm itself pools, and a cut of
# torchvision's that is another than fastai's default
@pytest.mark.parametrize(
    ("arch", "size"),
    [
        ("convnext_atto", 32),
        ("mobilenetv3_small_050", 32),
        ("edgenext_xx_small", 64),
        ("test_vit", 160),
        (tv.mobilenet_v3_small, 32),
        (tv.squeezenet1_1, 64),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_networks_with_parts_that_fastai_does_not_use_travel_without_them(
    loaders, tmp_path, arch, size
):
    foreign = fastais(loaders(size), arch)
    check_answers_alike(foreign, tmp_path / "bundle")


def test_tokens_pooled_by_timm_learn_on_in_the_learner_and_in_the_bundle(loaders, tmp_path):
    learn = ImageLearner.from_learner(fastais(loaders(160), "test_vit"))
    with learn.no_bar():
        learn.init_continual(learn.dls)
        model = load_learner(learn.export(tmp_path / "bundle"))
    files = learn.dls.train_ds.items[:2]
    model.extend(files, "new", progress=False)
    with learn.no_bar():
        learn.extend(files, "new")
        found = [learn.predict(file) for file in files]
    assert model.classes == ("a", "b", "new")
    assert [one.ood_score for one in map(model.predict, files)] == [one.ood_score for one in found]
    assert model.continual.statistics.equals(learn.continual.statistics)


class TestExportPkl:
    @pytest.fixture
    def export(self, loaders, tmp_path):
        foreign = fastais(loaders(32), "test_resnet", path=tmp_path)
        files = foreign.dls.valid_ds.items
        foreign.export("export.pkl")
        return tmp_path / "export.pkl", files, probs_of(foreign, files)

    def test_becomes_a_bundle_that_answers_alike(self, export, tmp_path):
        path, files, expected = export
        learn = ImageLearner.from_learner(load_learner(path, allow_pickle=True))
        model = load_learner(learn.export(tmp_path / "bundle"))
        found = np.stack([model.predict(file).probs for file in files])
        np.testing.assert_allclose(found, expected, atol=1e-6)
        assert "measures" not in model.metadata["card"]

    def test_what_is_not_there_to_unpickle_is_named(self, export, monkeypatch):
        monkeypatch.delattr(f"{__name__}.label_of")
        with pytest.raises(
            BundleError, match=r"cannot be unpickled here: .*label_of.*define or im"
        ):
            load_learner(export[0], allow_pickle=True)


def test_a_network_of_other_layers_is_refused_in_a_sentence(loaders, tmp_path):
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 2), nn.Tanh())
    learn = ImageLearner.from_learner(fastais(loaders(32), "test_resnet", custom_head=head))
    with pytest.raises(ExportError, match=r"none of `create_head`: its layers are .*Linear, Tanh"):
        learn.export(tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_a_body_changed_afterwards_is_refused(loaders, tmp_path):
    learn = ImageLearner.from_learner(fastais(loaders(32), "test_resnet"))
    learn.model[0].model.act1 = nn.Tanh()
    with pytest.raises(ExportError, match="gives other logits"):
        learn.export(tmp_path / "bundle")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lin_ftrs": [], "ps": 0.0},
        {"first_bn": False},
        {"lin_first": True, "lin_ftrs": [8, 4]},
        {"lin_first": True, "first_bn": False},
        {"bn_final": True, "lin_bias": False, "y_range": [0, 1]},
        {"pool": False, "ps": [0.1, 0.2]},
    ],
)
def test_the_options_of_a_head_give_its_layers_again(options):
    head = create_head(6, n_out=3, **options)
    again = create_head(6, n_out=3, **head_options(head))
    assert str(again) == str(head)
    assert again.state_dict().keys() == head.state_dict().keys()


def test_a_head_without_a_linear_layer_has_no_options():
    with pytest.raises(ModelSpecError, match="its layers are Flatten"):
        head_options(nn.Sequential(nn.Flatten()))


def test_weights_of_fastais_factory_load_into_a_head_without_biases(loaders, tmp_path):
    dls = loaders(32)
    foreign = fastais(dls, "test_resnet", path=tmp_path)
    foreign.save("mine", with_opt=False)
    same = {"pretrained": False, "normalize": False, "path": tmp_path}
    with pytest.raises(WeightsError, match="that were saved, lin_bias=False if fastai v2 built it"):
        cnn_learner(dls, "test_resnet", **same).load("mine")
    learn = cnn_learner(dls, "test_resnet", lin_bias=False, **same).load("mine")
    files = dls.valid_ds.items
    found = np.stack([learn.predict(file).probs for file in files])
    np.testing.assert_allclose(found, probs_of(foreign, files), atol=1e-6)
