"""fastai's other ways to make loaders, and torch's: training, prediction and export."""

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.core import DataLoaders, TfmdLists
from fastai.data.transforms import ColReader, IntToFloatTensor, RandomSplitter, ToTensor
from fastai.metrics import accuracy
from fastai.torch_core import TensorCategory
from fastai.vision.augment import Resize
from fastai.vision.core import PILImage
from fastai.vision.data import ImageBlock, ImageDataLoaders
from fasttransform import Transform
from helpers import quiet, write_image_folder
from torch.utils.data import DataLoader, Subset
from torchvision import transforms
from torchvision.datasets import ImageFolder

from learnkit.data.dataset import ImageDataset
from learnkit.deploy.predictor import load_learner
from learnkit.errors import ExportError, PredictionError
from learnkit.learner.factory import cnn_learner

OPTIONS = {"bs": 6, "num_workers": 0}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_image_folder(tmp_path_factory.mktemp("images"), {"a": 10, "b": 10})


@pytest.fixture(scope="module")
def files(root):
    return sorted(root.rglob("*.png"))


@pytest.fixture(scope="module")
def table(root, files):
    names = [str(file.relative_to(root)) for file in files]
    frame = pd.DataFrame({"name": names, "label": [file.parent.name for file in files]})
    frame.to_csv(root / "labels.csv", index=False)
    return frame


def blocks(items, **kwargs):
    block = DataBlock(
        (ImageBlock, CategoryBlock),
        splitter=RandomSplitter(0.3, seed=0),
        item_tfms=Resize(24),
        **kwargs,
    )
    return block.dataloaders(items, **OPTIONS)


def factory(make, *args):
    return make(*args, item_tfms=Resize(24), valid_pct=0.3, seed=0, **OPTIONS)


MAKERS = {
    "from_df": lambda root, files, table: factory(ImageDataLoaders.from_df, table, root),
    "from_csv": lambda root, files, table: factory(ImageDataLoaders.from_csv, root, "labels.csv"),
    "from_lists": lambda root, files, table: factory(
        ImageDataLoaders.from_lists, root, files, [file.parent.name for file in files]
    ),
    "from_path_re": lambda root, files, table: factory(
        ImageDataLoaders.from_path_re, root, files, r"/(\w)/\d+.png$"
    ),
    "columns": lambda root, files, table: blocks(
        table, get_x=ColReader("name", pref=f"{root}/"), get_y=ColReader("label")
    ),
    "functions of rows": lambda root, files, table: blocks(
        table, get_x=lambda row: root / row["name"], get_y=lambda row: row["label"]
    ),
    "functions of other files": lambda root, files, table: blocks(
        [file.with_suffix(".json") for file in files],
        get_x=lambda path: path.with_suffix(".png"),
        get_y=lambda path: path.parent.name,
    ),
}


@pytest.mark.parametrize("name", MAKERS)
def test_fastais_factories_go_all_the_way(root, files, table, name, tmp_path):
    dls = MAKERS[name](root, files, table)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learn = quiet(cnn_learner(dls, "test_resnet", False, metrics=accuracy))
    outputs = learn.outputs()
    assert {path.suffix for path in outputs.items} == {".png"}
    expected = [path.parent.name for path in outputs.items]
    assert [outputs.classes[i] for i in outputs.targets] == expected
    same = {"rtol": 0, "atol": 1e-5}
    for model in (learn, load_learner(learn.export(tmp_path / "model"))):
        found = torch.stack([p.probs for p in model.predict_batch(outputs.items)])
        torch.testing.assert_close(found, outputs.probs, **same)
    data = ImageDataset.from_folder(root)
    torch.testing.assert_close(
        learn.outputs(data=data).probs,
        torch.stack([p.probs for p in learn.predict_batch(data.paths)]),
        **same,
    )
    first = learn.dls.valid.items.iloc[0] if hasattr(learn.dls.valid.items, "iloc") else None
    if first is not None:
        np.testing.assert_allclose(learn.predict(first).probs, outputs.probs[0], atol=1e-5)
    assert learn.fit_ood().value > 0
    learn.clear_ood().init_continual(learn.dls)
    learn.extend(files[:3], "c")
    assert learn.continual.classes == ("a", "b", "c")


def folder_loaders(root):
    pixels = [transforms.Resize((24, 24)), transforms.ToTensor()]
    pixels.append(transforms.Normalize([0.5] * 3, [0.25] * 3))
    dataset = ImageFolder(root, transforms.Compose(pixels))
    even, odd = range(0, len(dataset), 2), range(1, len(dataset), 2)
    parts = [Subset(dataset, even), Subset(dataset, odd)]
    return DataLoaders(*(DataLoader(part, batch_size=5) for part in parts))


def test_torchs_loaders_train_evaluate_and_predict(root, files, tmp_path):
    dls = folder_loaders(root)
    with pytest.warns(UserWarning, match=r"trains and predicts, but `export`.* does not open"):
        learn = quiet(cnn_learner(dls, "test_resnet", False, metrics=accuracy))
    learn.logger = lambda *_: None
    learn.fit(1)
    outputs = learn.outputs()
    assert outputs.classes == ["a", "b"]
    assert learn.evaluate().summary.accuracy == pytest.approx(learn.validate()[1])
    probs, _ = learn.get_preds()
    torch.testing.assert_close(torch.Tensor(probs), outputs.probs, rtol=0, atol=1e-5)
    found = torch.stack([p.probs for p in learn.predict_batch(files[1::2])])
    torch.testing.assert_close(found, outputs.probs, rtol=0, atol=1e-5)
    assert learn.predict(files[1]).label == learn.predict(dls.valid.dataset[0][0]).label
    with pytest.raises(ExportError, match="does not open its images"):
        learn.export(tmp_path / "model")
    learn.init_continual(dls)
    assert learn.continual.classes == ("a", "b")


class Labelled(Transform):
    """A file as an image with its label, in one step."""

    def encodes(self, path: Path):
        image = PILImage(PILImage.create(path).resize((24, 24)))
        return image, TensorCategory(int(path.parent.name == "b"))


def test_lists_with_a_transform_of_pairs_predict_through_fastai(files, tmp_path):
    lists = TfmdLists(files, Labelled(), splits=[range(0, 20, 2), range(1, 20, 2)])
    dls = lists.dataloaders(
        after_item=[ToTensor()], after_batch=[IntToFloatTensor()], device="cpu", **OPTIONS
    )
    dls.vocab = ["a", "b"]
    loss = torch.nn.CrossEntropyLoss()
    with pytest.warns(UserWarning, match=r"`export`, `optimize` and `predictor` will refuse it"):
        learn = quiet(cnn_learner(dls, "test_resnet", False, n_out=2, loss_func=loss))
    expected = learn.outputs().probs
    found = torch.stack([p.probs for p in learn.predict_batch(files[1::2])])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    with pytest.raises(ExportError, match="does not open its images"):
        learn.export(tmp_path / "model")


def test_code_among_the_transforms_is_told_before_training_and_predicted_through_fastai(
    root, files, tmp_path
):
    def inverted(image: PILImage):
        return PILImage(image.point(lambda value: 255 - value))

    dls = ImageDataLoaders.from_folder(
        root, valid_pct=0.3, seed=0, item_tfms=[Resize(24), inverted], **OPTIONS
    )
    with pytest.warns(UserWarning, match=r"will refuse it: .*`inverted` \(after_item\) is code"):
        learn = quiet(cnn_learner(dls, "test_resnet", False))
    outputs = learn.outputs()
    for items in (outputs.items, [str(item) for item in outputs.items]):
        found = learn.predict_batch(items)
        torch.testing.assert_close(
            torch.stack([p.probs for p in found]), outputs.probs, rtol=0, atol=1e-5
        )
    assert learn.predict(outputs.items[0]).label == found[0].label
    assert learn.predict_batch([]) == []
    with pytest.raises(PredictionError, match=r"`items` cannot be read .*'float'>.*`inverted`"):
        learn.predict(3.5)
    with pytest.raises(ExportError, match=r"`inverted` \(after_item\) is code"):
        learn.export(tmp_path / "model")
