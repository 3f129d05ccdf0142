import io
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from deploy_helpers import CLASSES, IMAGENET, make_model, make_predictor
from helpers import write_image_folder
from PIL import Image
from torch import nn

from learnkit.data.dataset import ImageDataset
from learnkit.data.preprocess import Preprocessing
from learnkit.deploy.predictor import Predictor, load_learner
from learnkit.deploy.runtime_predictor import load_runtime
from learnkit.errors import (
    BackendUnavailableError,
    BundleError,
    BundleWriteError,
    DataError,
    ImageReadError,
    InputSizeError,
    OptimizeError,
    PredictionError,
    UnreadableImagesError,
)


def picture(seed=0, size=(48, 40)):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def by_hand(predictor, image):
    """The published recipe, step by step."""
    with torch.no_grad():
        logits = predictor.model(predictor.preprocessing(image)[None])
    # in float64 as the scoring does: processors differ in the last bit of a float32 softmax
    return logits.double().softmax(1)[0].float()


def test_every_kind_of_source_gives_the_hand_written_answer(predictor, tmp_path):
    array = picture()
    Image.fromarray(array).save(tmp_path / "x.png")
    expected = by_hand(predictor, tmp_path / "x.png")
    sources = [
        tmp_path / "x.png",
        str(tmp_path / "x.png"),
        (tmp_path / "x.png").read_bytes(),
        io.BytesIO((tmp_path / "x.png").read_bytes()),
        Image.fromarray(array),
        array,
        torch.from_numpy(array).permute(2, 0, 1),
    ]
    for source in sources:
        label, index, probs = predictor.predict(source)
        assert torch.equal(probs, expected)
        assert index == int(expected.argmax())
        assert label == CLASSES[index]
        assert probs.sum().item() == pytest.approx(1, abs=1e-6)
    assert type(probs) is torch.Tensor
    probs[0] = 0  # a plain tensor of the caller's own, not one of inference mode


def test_images_differ_in_what_is_predicted(predictor):
    probs = torch.stack([p.probs for p in predictor.predict_batch([picture(i) for i in range(6)])])
    assert probs.std(0).max() > 0.01  # else the tests here would compare constants


@pytest.mark.parametrize("bs", [1, 2, 7, 64])
@pytest.mark.parametrize("n_workers", [0, 3])
def test_batches_answer_in_order_like_single_images(predictor, bs, n_workers):
    images = [picture(i, size=(30 + i, 50 - i)) for i in range(7)]
    found = predictor.predict_batch(iter(images), bs=bs, n_workers=n_workers)
    for image, prediction in zip(images, found, strict=True):
        torch.testing.assert_close(
            prediction.probs, by_hand(predictor, image), atol=1e-5, rtol=1e-4
        )


def test_fastais_batches_are_the_probabilities_of_predict_batch(predictor):
    images = [picture(i) for i in range(5)]
    probs, targets = predictor.get_preds(images)
    assert targets is None
    assert torch.equal(probs, torch.stack([p.probs for p in predictor.predict_batch(images)]))
    assert predictor.get_preds([])[0].shape == (0, len(CLASSES))
    label, index, _ = predictor.predict(images[0])
    assert predictor.vocab[index] == label


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("dls", r"no loaders: it takes files, `predict_batch\(files\)`"),
        ("test_dl", r"`get_preds\(files\)`"),
        ("export", r"`save\(path\)`"),
        ("fine_tune", "does not train: .*ImageLearner"),
        ("cuda", "load_learner.path, device='cuda'."),
        ("colour", "'Predictor' object has no attribute 'colour'$"),
    ],
)
def test_what_a_learner_has_and_a_predictor_has_not_names_the_way(predictor, name, remedy):
    assert not hasattr(predictor, name)
    with pytest.raises(AttributeError, match=remedy):
        getattr(predictor, name)


def test_no_images_give_no_predictions(predictor):
    assert predictor.predict_batch([]) == []
    assert predictor.logits(torch.zeros(0, 3, 32, 32, dtype=torch.uint8)).shape == (0, 3)
    table = predictor.predict_files([], progress=False)
    assert list(table.columns)[:5] == ["path", "verdict", "label", "confidence", "error"]
    assert len(table) == 0


def test_a_batch_without_images_per_pass_is_refused(predictor):
    with pytest.raises(PredictionError, match="`bs`=0"):
        predictor.predict_batch([picture()], bs=0)


@pytest.fixture
def folder(tmp_path):
    write_image_folder(tmp_path / "in", {"b": 3, "a": 4})
    (tmp_path / "in" / "a" / "000.png").write_bytes(b"not an image")
    (tmp_path / "in" / "zero.jpg").write_bytes(b"")
    Image.fromarray(picture()).save(tmp_path / "in" / "top.png")
    (tmp_path / "in" / "notes.txt").write_text("no image by its name", encoding="utf-8")
    return tmp_path / "in"


@pytest.mark.parametrize("n_workers", [0, 2])
def test_a_folder_gives_a_row_per_image_and_unreadable_ones_an_error(predictor, folder, n_workers):
    table = predictor.predict_folder(folder, bs=2, n_workers=n_workers, progress=False)
    names = [os.path.relpath(path, folder) for path in table["path"]]
    assert names == sorted(names)
    assert len(names) == 9
    bad = table[table["error"].notna()]
    assert [os.path.relpath(p, folder) for p in bad["path"]] == ["a/000.png", "zero.jpg"]
    assert bad["label"].isna().all()
    assert bad["confidence"].isna().all()
    assert bad[[f"p({name})" for name in CLASSES]].isna().all().all()
    assert "zero.jpg" in bad["error"].iloc[1]
    for row in table[table["error"].isna()].to_dict("records"):
        prediction = predictor.predict(row["path"])
        assert row["label"] == prediction.label
        assert row["confidence"] == pytest.approx(prediction.confidence, abs=1e-5)
        assert [row[f"p({n})"] for n in CLASSES] == pytest.approx(
            prediction.probs.tolist(), abs=1e-5
        )


def test_a_folder_can_be_read_flat_and_without_class_columns(predictor, folder):
    table = predictor.predict_folder(folder, recursive=False, progress=False, probs=False)
    assert [os.path.basename(path) for path in table["path"]] == ["top.png", "zero.jpg"]
    assert list(table.columns) == ["path", "verdict", "label", "confidence", "error"]
    with pytest.raises(DataError, match="nowhere"):
        predictor.predict_folder(folder / "nowhere")


def test_a_folder_of_unreadable_files_only_is_a_table_of_errors(predictor, tmp_path):
    for i in range(5):
        (tmp_path / f"{i}.png").write_bytes(b"x")
    table = predictor.predict_folder(tmp_path, bs=2, progress=False)
    assert table["error"].notna().all()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("owns_model", [False, True])
def test_eight_threads_answer_like_one(owns_model, training):
    model = make_model(ps=0.5)  # a head with batch norm and dropout
    predictor = make_predictor(model, owns_model=owns_model)
    images = [picture(i) for i in range(24)]
    expected = [predictor.predict(image).probs for image in images]
    if training and not owns_model:
        model.train()
        model[0].eval()
    modes = [m.training for m in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    # another predictor of the same model, as each call of a learner's predict makes one
    predictors = [predictor, make_predictor(model, owns_model=owns_model)]
    jobs = [(predictors[i % 2], image) for i, image in enumerate(images)] * 3
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda job: job[0].predict(job[1]).probs, jobs))
    for probs, wanted in zip(found, expected * 3, strict=True):
        assert torch.equal(probs, wanted)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_shared_network_can_be_trained_after_predicting():
    class Caching(nn.Module):
        """Keeps a tensor from its first pass, as networks with position tables do."""

        def __init__(self):
            super().__init__()
            self.linear, self.table = nn.Linear(3, 2), None

        def forward(self, x):
            self.table = x.mean() if self.table is None else self.table
            return self.linear(x.mean((2, 3))) * self.table

    model = Caching().train()
    recipe = Preprocessing(8, **IMAGENET)
    Predictor(model, recipe, ["a", "b"]).predict(picture())
    model(torch.rand(2, 3, 8, 8)).sum().backward()
    assert model.linear.weight.grad is not None
    assert model.training


def test_labels_of_a_multi_label_model_follow_the_threshold():
    predictor = make_predictor(multi_label=True, threshold=0.5)
    logits = predictor.logits(predictor.preprocessing.load(picture())[None])[0]
    prediction = predictor.predict(picture())
    torch.testing.assert_close(prediction.probs, logits.sigmoid(), rtol=0, atol=1e-6)
    for threshold in (0.01, 0.5, 0.99):
        found = predictor.set(threshold=threshold).predict(picture()).label
        assert found == tuple(
            n for n, p in zip(CLASSES, logits.sigmoid(), strict=True) if p > threshold
        )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_output_that_is_not_finite_is_an_error_never_a_label(bad):
    class Overflowing(nn.Module):
        def forward(self, x):
            bright = x.mean((1, 2, 3), keepdim=False)[:, None] > 0.5
            return torch.where(bright, torch.tensor(bad), torch.tensor(0.0)).expand(-1, 2)

    predictor = Predictor(Overflowing(), Preprocessing(8), ["a", "b"])
    dark, white = np.zeros((8, 8, 3), "uint8"), np.full((8, 8, 3), 255, "uint8")
    assert predictor.predict(dark).label == "a"
    with pytest.raises(PredictionError, match=r"not finite.*guess"):
        predictor.predict(white)
    with pytest.raises(PredictionError, match="not finite"):
        predictor.predict_batch([dark, white])
    table = predictor.predict_files([dark, white, dark], progress=False)
    assert list(table["error"].notna()) == [False, True, False]
    assert list(table["label"])[::2] == ["a", "a"]


def test_unreadable_images_are_named(predictor, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG nonsense")
    with pytest.raises(ImageReadError, match=r"broken\.png"):
        predictor.predict(tmp_path / "broken.png")
    with pytest.raises(ImageReadError, match=r"broken\.png"):
        predictor.predict_batch([picture(), tmp_path / "broken.png"])
    with pytest.raises(ImageReadError, match=r"missing\.png.*no such file"):
        predictor.predict(tmp_path / "missing.png")


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (np.zeros((8, 8, 5), "uint8"), r"\(8, 8, 5\)"),
        (torch.zeros(5, 8, 8, dtype=torch.uint8), r"\(5, 8, 8\)|\(8, 8, 5\)"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), r"\(2, 3, 8, 8\)|\(2, 8, 8, 3\)"),
        (torch.zeros(3, 8, 8), "float"),
        (np.zeros((8, 8, 3), "int64"), "int64"),
        (7, "int"),
    ],
)
def test_wrong_channels_types_and_objects_are_named(predictor, image, reason):
    with pytest.raises(ImageReadError, match=reason):
        predictor.predict(image)


@pytest.mark.parametrize("setting", [{"device": "cpu"}, {"threads": 2}, {"size": 3}])
def test_what_weights_as_trained_have_no_setting_for_is_refused_and_nothing_set(predictor, setting):
    with pytest.raises(TypeError, match=f"unexpected keyword argument {next(iter(setting))!r}"):
        predictor.set(class_names={"ok": "good"}, metadata={"line": 4}, **setting)
    assert (predictor.classes[0], predictor.metadata) == ("ok", {})


def test_former_names_work_and_say_the_new_ones(predictor):
    with pytest.warns(DeprecationWarning, match="`tells_unusual` is called `detects_ood` now"):
        assert predictor.tells_unusual is predictor.detects_ood
    prediction = predictor.predict(picture())
    with pytest.warns(DeprecationWarning, match="`misfits` is called `nonconformity` now"):
        assert prediction.misfits is prediction.nonconformity


def test_wrong_batches_and_networks_are_named(predictor):
    with pytest.raises(InputSizeError, match=r"\(2, 1, 32, 32\)"):
        predictor.logits(torch.zeros(2, 1, 32, 32, dtype=torch.uint8))
    wrong = Predictor(predictor.model, predictor.preprocessing, ["a", "b"])
    with pytest.raises(PredictionError, match=r"shape \(1, 3\) for 1 image and 2 classes"):
        wrong.predict(picture())


@pytest.mark.parametrize(
    ("classes", "reason"),
    [(["a", "a"], "'a' twice"), ([], "not empty"), (["a", ""], "not empty"), (["a", 3], "strings")],
)
def test_class_names_are_different_strings(predictor, classes, reason):
    with pytest.raises(PredictionError, match=reason):
        Predictor(predictor.model, predictor.preprocessing, classes)


def test_class_names_and_threshold_can_be_set_and_are_saved(predictor, tmp_path):
    assert predictor.set(class_names={"ok": "good"}) is predictor
    assert predictor.classes == ("good", "NO", "ß/<b>")
    predictor.set(class_names=["x", "y", "z"]).save(tmp_path / "model")
    assert load_learner(tmp_path / "model").classes == ("x", "y", "z")
    for names, reason in [
        (
            ["x\x1b[31m", "y", "z"],
            "of 6 characters; a class name has 200 at most, all of which can",
        ),
        ({"x": "=1+1"}, r"`class_names`: '=1\+1' begins with '=': spreadsheets would compute"),
        ({"x": "a" * 201}, "of 201 characters; a class name has 200 at most"),
        (["x"], "1 name for 3"),
        ({"q": "r"}, r"\['q'\]"),
        ({"x": "y"}, "'y' twice"),
        ("xyz", r"is 'xyz' \(str\); give a list"),
    ]:
        with pytest.raises(PredictionError, match=reason):
            predictor.set(class_names=names)
    with pytest.raises(PredictionError, match="exactly one label"):
        predictor.set(threshold=0.3)
    with pytest.raises(PredictionError, match="between 0 and 1"):
        make_predictor(multi_label=True).set(threshold=1.5)
    assert predictor.classes == ("x", "y", "z")


def test_evaluation_counts_what_predict_says(tmp_path):
    write_image_folder(tmp_path, {"NO": 5, "ok": 4})
    data = ImageDataset.from_folder(tmp_path)
    predictor = make_predictor()
    found = predictor.evaluate(data, bs=4, progress=False)
    labels = [predictor.predict(path).label for path in data.paths]
    right = sum(a == b for a, b in zip(labels, data.labels, strict=True))
    assert found.summary["accuracy"] == pytest.approx(right / 9)
    assert found.classes == CLASSES
    assert found.confusion.to_numpy().sum(1).tolist() == [4, 5, 0]
    for i, name in enumerate(CLASSES):
        assert found.confusion[name].sum() == labels.count(CLASSES[i])


def test_evaluation_refuses_labels_the_model_does_not_know(predictor, tmp_path):
    write_image_folder(tmp_path, {"ok": 2, "cat": 2})
    with pytest.raises(DataError, match=r"labels \['cat'\] that this model does not know"):
        predictor.evaluate(ImageDataset.from_folder(tmp_path), progress=False)


def test_an_unreadable_image_stops_an_evaluation_by_name(predictor, tmp_path):
    write_image_folder(tmp_path, {"ok": 2, "NO": 2})
    (tmp_path / "ok" / "001.png").write_bytes(b"x")
    with pytest.raises(ImageReadError, match=r"001\.png") as caught:
        predictor.evaluate(ImageDataset.from_folder(tmp_path), progress=False)
    (tmp_path / "ok" / "001.png").unlink()
    others = predictor.evaluate(ImageDataset.from_folder(tmp_path), progress=False)
    assert caught.value.evaluation.to_dict() == others.to_dict()
    assert [*caught.value.failures] == [str(tmp_path / "ok" / "001.png")]
    for file in (tmp_path / "ok" / "000.png", *(tmp_path / "NO").iterdir()):
        file.write_bytes(b"x")
    with pytest.raises(UnreadableImagesError, match="3 of 3 images cannot be read") as caught:
        predictor.evaluate(ImageDataset.from_folder(tmp_path), progress=False)
    assert caught.value.evaluation.summary["n"] == 0


def test_html_escapes_names_and_repr_says_what_it_is(predictor):
    assert "<b>" not in predictor._repr_html_().removeprefix("<code>")
    assert repr(predictor) == "Predictor(test_efficientnet, 32x32 px, 3 classes: ok, NO, ß/<b>)"


def test_a_given_device_is_where_it_runs(predictor):
    assert make_predictor(device="cpu").device == torch.device("cpu")


def test_evaluate_takes_labelled_images_in_every_form_and_names_the_rest(predictor, tmp_path):
    predictor.set(class_names={CLASSES[2]: "third"})
    root = write_image_folder(tmp_path / "images", dict.fromkeys(predictor.classes, 3))
    data = ImageDataset.from_folder(root)
    known = predictor.evaluate(data, progress=False).summary
    for form in (root, str(root), data.to_halcon()):
        assert predictor.evaluate(form, progress=False).summary.equals(known)
    for wrong in ([root], None, 3, data.split(seed=0).dataloaders(size=32, bs=4).valid):
        with pytest.raises(DataError, match=r"^`dataset` is a \w+; give labelled images: an Image"):
            predictor.evaluate(wrong, progress=False)
    with pytest.raises(DataError, match="a dictionary with the keys 'a'"):
        predictor.evaluate({"a": 1}, progress=False)


@pytest.mark.parametrize("name", ["bs", "n_workers"])
@pytest.mark.parametrize("value", [-1, 2.0, "8", None, True])
def test_counts_of_a_pass_are_whole_numbers(predictor, tmp_path, name, value):
    images, message = [picture()] * 2, f"^`{name}`( is |=){value!r}; .*whole number"
    write_image_folder(tmp_path, {"a": 2})
    files = sorted(tmp_path.rglob("*.png"))
    for verb in (predictor.predict_batch, predictor.get_preds, predictor.features):
        with pytest.raises((PredictionError, DataError), match=message):
            verb(images, **{name: value})
    with pytest.raises((PredictionError, DataError), match=message):
        predictor.predict_files(files, out=tmp_path / "t.csv", progress=False, **{name: value})
    assert not list(tmp_path.glob("t.csv*"))


def test_one_path_or_a_folder_is_no_list_of_characters(predictor, tmp_path):
    write_image_folder(tmp_path, {"a": 2})
    files = sorted(tmp_path.rglob("*.png"))
    expected = [one.label for one in predictor.predict_batch(files)]
    assert [one.label for one in predictor.predict_batch(str(tmp_path))] == expected
    assert [one.label for one in predictor.predict_batch(str(files[0]))] == expected[:1]
    assert len(predictor.predict_files(tmp_path, progress=False)) == 2
    with pytest.raises(DataError, match="a dictionary with the keys 'a'"):
        predictor.predict_batch({"a": files})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"precision": "int3"}, "`precision` is 'int3'"),
        ({"backend": "tensorrt"}, "tensorrt"),
        ({"speed": 3}, "no backend has a parameter speed"),
    ],
)
def test_what_cannot_be_converted_is_refused_before_files_are_made(
    predictor, monkeypatch, given, message
):
    made = []
    monkeypatch.setattr("learnkit.deploy.predictor.base_files", made.append)
    with pytest.raises(OptimizeError, match=message):
        predictor.optimize(**given, progress=False)
    assert made == []


@pytest.mark.parametrize("device", ["foo", "cuda:63", "meta", "None"])
def test_a_device_that_is_not_there_is_named_with_those_that_are(predictor, tmp_path, device):
    predictor.save(tmp_path / "model")
    for use in (
        lambda: load_learner(tmp_path / "model", device=device),
        lambda: load_learner(predictor.to_bytes(), device=device),
        lambda: Predictor(
            predictor.model, predictor.preprocessing, predictor.classes, device=device
        ),
    ):
        with pytest.raises(BackendUnavailableError, match=f"`device` is '{device}'.*is 'cpu'"):
            use()
    assert {str(p.device) for p in predictor.model.parameters()} == {"cpu"}


@pytest.mark.parametrize("path", [None, 5, ["model"]])
def test_a_path_that_is_none_is_named(predictor, path):
    for use, error in (
        (load_learner, BundleError),
        (load_runtime, BundleError),
        (predictor.save, BundleWriteError),
    ):
        with pytest.raises(error, match=r"`path` is .*\); give a path, as a text or a Path"):
            use(path)
    if path is not None:
        with pytest.raises(BundleError, match=r"`file` is .*\); give a path, as a text or a Path"):
            load_learner("model", path)


def test_an_array_of_file_names_is_a_list_of_files(predictor, tmp_path):
    names = []
    for seed in range(3):
        Image.fromarray(picture(seed)).save(tmp_path / f"{seed}.png")
        names.append(str(tmp_path / f"{seed}.png"))
    expected = [one.probs.tolist() for one in predictor.predict_batch(names)]
    paths = [tmp_path / f"{seed}.png" for seed in range(3)]
    for array in (np.array(names), np.array(names, dtype=object), np.array(names, "S"), paths):
        found = predictor.predict_batch(np.asarray(array))
        assert [one.probs.tolist() for one in found] == expected
        assert len(predictor.suggest(np.asarray(array), 2, progress=False)) == 2
        assert len(predictor.features(np.asarray(array), progress=False)) == 3
