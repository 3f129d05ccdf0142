"""Files read by fastai's own loaders: `predict` and the bundle see them as training did."""

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.transforms import get_image_files, parent_label
from fastai.metrics import accuracy
from fastai.vision.augment import CropPad, RandomResizedCrop, Resize, aug_transforms
from fastai.vision.core import PILImage, PILImageBW
from fastai.vision.data import ImageBlock, ImageDataLoaders
from helpers import quiet, write_image_folder
from PIL import Image

from learnkit.data.dataset import ImageDataset
from learnkit.data.image import read_image
from learnkit.deploy.predictor import load_learner
from learnkit.errors import DataError, ExportError, PredictionError, UnreadableImagesError
from learnkit.learner import export
from learnkit.learner.factory import cnn_learner
from learnkit.learner.transforms import preprocessing_of

DATA = {"a": 6, "b": 6}


def rgba(pixels, path):
    Image.fromarray(pixels).save(path)


def grey_alpha(pixels, path):
    Image.fromarray(pixels).convert("LA").save(path)


def sixteen_bits(pixels, path):
    Image.fromarray(pixels[..., 0].astype("uint16") * 40).save(path)


def palette(pixels, path):
    Image.fromarray(pixels[..., :3]).quantize(8).save(path, transparency=3)


def colour_key(pixels, path):
    pixels = pixels[..., :3].copy()
    pixels[::2] = (10, 20, 30)
    Image.fromarray(pixels).save(path, transparency=(10, 20, 30))


def grey_key(pixels, path):
    grey = pixels[..., 0] // 32 * 32
    Image.fromarray(grey).save(path, transparency=int(grey[0, 0]))


def bilevel(pixels, path):
    Image.fromarray(pixels[..., 0] > 128).save(path)


def animation(pixels, path):
    frames = [Image.fromarray(frame[..., :3]) for frame in (pixels, 255 - pixels)]
    frames[0].save(path, format="GIF", save_all=True, append_images=frames[1:])


KINDS = [rgba, grey_alpha, sixteen_bits, palette, colour_key, grey_key, bilevel, animation]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for name in "ab":
        (root / name).mkdir()
        for kind in KINDS:
            for i in range(2):
                pixels = rng.integers(0, 256, (20, 24, 4), dtype="uint8")
                kind(pixels, root / name / f"{kind.__name__}{i}.png")
    return root


def loaders(folder, image=PILImage, *, without="*", **kwargs):
    block = DataBlock(
        (ImageBlock(image), CategoryBlock),
        get_y=parent_label,
        splitter=lambda files: (list(range(len(files))), list(range(len(files)))),
        item_tfms=Resize(16, method="squish"),
        **kwargs,
    )
    files = [file for file in sorted(get_image_files(folder)) if without not in str(file)]
    return block.dataloaders(files, bs=8, num_workers=0, device="cpu")


@pytest.mark.parametrize("image", [PILImage, PILImageBW], ids=["colour", "grey"])
def test_every_kind_of_image_is_predicted_as_get_preds_does(folder, image, tmp_path):
    torch.manual_seed(0)
    learn = quiet(cnn_learner(loaders(folder, image), "test_resnet", False, metrics=accuracy))
    files = list(learn.dls.valid.items)
    expected = learn.get_preds()[0]
    assert float(expected.std(0).max()) > 0.01  # files are told apart
    path = learn.export(tmp_path / "model")
    for model in (learn, load_learner(path)):
        found = [p.probs for p in model.predict_batch(files)]
        np.testing.assert_allclose(np.stack([np.asarray(p) for p in found]), expected, atol=1e-5)
    card = load_learner(path).metadata["card"]["measures"]
    data = ImageDataset.from_folder(folder)
    assert load_learner(path).evaluate(data).summary.accuracy == card["accuracy"]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_plain_conversion_is_fastais(folder, kind, channels):
    path = folder / "a" / f"{kind.__name__}0.png"
    expected = (PILImage if channels == 3 else PILImageBW).create(path)
    found = read_image(path, channels=channels, plain_convert=True)
    assert found.mode == expected.mode
    assert np.array_equal(np.asarray(found), np.asarray(expected))


def test_datasets_of_our_own_keep_the_whole_image(folder):
    data = ImageDataset.from_folder(folder).split(0.5, 0.5, seed=0)
    data = data.filter(["animation" not in path.name for path in data.paths])
    recipe = preprocessing_of(data.dataloaders(size=16))
    assert not recipe.plain_convert
    assert preprocessing_of(loaders(folder)).plain_convert


def test_files_the_recipe_reads_otherwise_are_named_before_anything_is_written(
    folder, tmp_path, monkeypatch
):
    learn = quiet(cnn_learner(loaders(folder, without="animation"), "test_resnet", False))
    other = lambda dls: preprocessing_of(dls).replace(plain_convert=False)
    monkeypatch.setattr(export, "preprocessing_of", other)
    with pytest.raises(ExportError, match=r"png' is another picture to the loaders than to the"):
        learn.export(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_one_file_of_a_rare_kind_is_found(tmp_path, monkeypatch):
    root = write_image_folder(tmp_path / "images", {"a": 20, "b": 20})
    rgba(np.random.default_rng(0).integers(0, 256, (20, 24, 4), dtype="uint8"), root / "a/z.png")
    learn = quiet(cnn_learner(loaders(root), "test_resnet", False))
    learn.export(tmp_path / "model")
    other = lambda dls: preprocessing_of(dls).replace(plain_convert=False)
    monkeypatch.setattr(export, "preprocessing_of", other)
    with pytest.raises(ExportError, match=r"z\.png' is another picture"):
        learn.export(tmp_path / "model")


@pytest.mark.parametrize(
    ("items", "batches"),
    [
        (RandomResizedCrop(24, min_scale=0.5), aug_transforms()),
        (Resize(40), aug_transforms(size=24, min_scale=0.75)),
        (CropPad(24), None),
    ],
    ids=["random resized crop", "presizing", "crop or pad"],
)
def test_pipelines_that_fastai_teaches_are_exported(tmp_path, items, batches):
    root = write_image_folder(tmp_path / "images", {"a": 8, "b": 8}, size=(50, 36))
    dls = ImageDataLoaders.from_folder(
        root, valid_pct=0.5, seed=0, item_tfms=items, batch_tfms=batches, bs=4, num_workers=0
    )
    learn = quiet(cnn_learner(dls, "test_resnet", False, metrics=accuracy))
    expected = learn.get_preds()[0]
    model = load_learner(learn.export(tmp_path / "model"))
    for one in (learn, model):
        found = torch.stack([p.probs for p in one.predict_batch(dls.valid.items)])
        assert torch.allclose(found, expected, atol=2e-3)  # pixels of 8 bits
    learn.fit_ood()
    learn.clear_ood().init_continual(dls)
    assert set(learn.continual.classes) == {"a", "b"}


class Inverted(PILImage):
    """Opens images in a way of its own."""

    @classmethod
    def create(cls, fn, **kwargs):
        image = PILImage.create(fn, **kwargs)
        return cls(Image.fromarray(255 - np.asarray(image)))


class Hue(PILImage):
    """Opens images in a mode of its own."""

    _open_args = {"mode": "HSV"}


@pytest.mark.parametrize("image", [Inverted, Hue])
def test_openers_of_the_users_are_refused_by_name(folder, image):
    with pytest.raises(ExportError, match=f"`{image.__name__}` opens images in a way of its own"):
        preprocessing_of(loaders(folder, image))


def turned(image: PILImage):
    return PILImage(image.transpose(Image.Transpose.ROTATE_90))


@pytest.fixture(scope="module")
def both_ways(tmp_path_factory):
    """Learners of one network: files turned by a transform that is code, and files lying turned."""
    root = write_image_folder(tmp_path_factory.mktemp("files"), DATA | {"new": 4})
    twin = tmp_path_factory.mktemp("turned")
    for path in sorted(root.rglob("*.png")):
        (twin / path.parent.name).mkdir(exist_ok=True)
        with Image.open(path) as image:
            image.transpose(Image.Transpose.ROTATE_90).save(twin / path.relative_to(root))
    torch.manual_seed(0)
    learners = [_of_table(root, [turned, Resize(32)]), _of_table(twin, [Resize(32)])]
    learners[1].model.load_state_dict(learners[0].model.state_dict())
    return root, twin, *learners


def _of_table(root, item_tfms):
    names = [f"{name}/{i:03d}.png" for name in DATA for i in range(6)]
    table = pd.DataFrame({"name": names, "label": [name[0] for name in names]})
    table["is_valid"] = [i % 3 == 0 for i in range(len(table))]
    dls = ImageDataLoaders.from_df(table, root, valid_col="is_valid", item_tfms=item_tfms, bs=4)
    return quiet(cnn_learner(dls, "test_resnet", False, normalize=False))


@pytest.mark.filterwarnings("ignore:this learner trains and predicts, but")
def test_where_transforms_are_code_all_but_export_learns_through_them(both_ways):
    root, twin, code, plain = both_ways
    folders = {code: root, plain: twin}

    def images_of(learn, name):
        return sorted((folders[learn] / name).glob("*.png"))

    said = []
    for learn in (code, plain):
        threshold = learn.fit_ood(learn.dls).value
        suggested = [one.name for one in learn.suggest(folders[learn] / "new", 2).items]
        learn.clear_ood().init_continual(learn.dls)
        learn.extend(images_of(learn, "new"), "new")
        again = learn.extend(images_of(learn, "new"), "new")
        assert "already learned: 4 of 4 images" in str(again)  # features are the same to the bit
        learn.subtract(images_of(learn, "a")[1:2], "a")
        found = learn.predict_batch(images_of(learn, "b") + images_of(learn, "new"))
        scores = [one.ood_score for one in found]
        said.append((threshold, suggested, torch.stack([one.probs for one in found]), scores))
        with Image.open(images_of(learn, "b")[0]) as picture:
            assert torch.allclose(learn.predict(picture).probs, found[0].probs, atol=1e-6)
    (one, names, probs, scores), (other, same_names, same_probs, same_scores) = said
    assert one == pytest.approx(other, rel=1e-4)
    assert names == same_names
    assert torch.allclose(probs, same_probs, atol=1e-4)
    assert scores == pytest.approx(same_scores, rel=1e-4)
    with pytest.raises(ExportError, match=r"`turned` .* is code and cannot travel"):
        code.export(root / "model")
    with pytest.raises(DataError, match="`data` is an ImageDataset, and no recipe"):
        code.refit(ImageDataset.from_folder(root).split(seed=0))


@pytest.mark.filterwarnings("ignore:this learner trains and predicts, but")
def test_unreadable_files_are_named_and_nothing_is_learned_through_code(both_ways, tmp_path):
    root, _, code, _ = both_ways
    (tmp_path / "x.png").write_bytes(b"no image")
    before = code.continual and code.continual.n_images
    if before is None:
        code.init_continual(code.dls)
        before = code.continual.n_images
    with pytest.raises(UnreadableImagesError, match=r"^1 of 2 images cannot be read.*x\.png"):
        code.extend([tmp_path / "x.png", root / "a" / "000.png"], "a")
    assert code.continual.n_images == before
    with pytest.raises(PredictionError, match="cannot be read by the learner's loaders"):
        code.extend([3.5], "a")
