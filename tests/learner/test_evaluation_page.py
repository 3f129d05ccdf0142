"""The page of a learner's evaluation: the same numbers, files, strange images and heat."""

import base64
import json

import numpy as np
import pytest
from helpers import tiny_learner, write_image_folder

from learnkit.data.dataset import ImageDataset
from learnkit.errors import EvaluationError
from learnkit.interpret.gradcam import grad_cam


@pytest.fixture(scope="module")
def learn(tmp_path_factory):
    root = write_image_folder(tmp_path_factory.mktemp("learner") / "set", {"a": 14, "b": 14})
    return tiny_learner(ImageDataset.from_folder(root).split(0.5, 0.5, seed=0))


def data_of(evaluation, **about):
    return evaluation.page.data(evaluation, **about)


def test_an_interpretation_is_evaluated_without_another_pass(learn, monkeypatch):
    interp = learn.interpret()
    wanted = learn.evaluate()
    monkeypatch.setattr(type(learn.model), "forward", None)
    found = learn.evaluate(interp)
    assert found.summary.to_dict() == wanted.summary.to_dict()
    assert found.notes == wanted.notes


def test_the_page_lists_the_files_of_the_learner(learn):
    interp = learn.interpret()
    evaluation = learn.evaluate(interp)
    data = data_of(evaluation)
    assert [row["p"] for row in data["images"]] == [
        path.relative_to(learn.dls.image_dataset.root).as_posix() for path in interp.outputs.items
    ]
    assert data["pictures_left_out"] == 0
    assert "/tmp" not in json.dumps(data)
    probs = [row["pa"] if "pa" in row else dict(row["t"])[row["a"]] for row in data["images"]]
    np.testing.assert_allclose(-np.log(probs), interp.losses, rtol=1e-3)


def test_heat_is_that_of_the_network_for_both_classes(learn):
    evaluation = learn.evaluate(ds_idx=0)
    rows = [row for row in data_of(evaluation)["images"] if row["a"] != row["y"]]
    assert rows
    recipe = learn.predictor().preprocessing
    for row in rows:
        x = recipe(learn.dls.image_dataset.root / row["p"])[None]
        heat = grad_cam(learn.model, x, row["a"])[0].numpy()
        told = np.frombuffer(base64.b64decode(row["ha"]), np.uint8).reshape(row["hs"])
        np.testing.assert_allclose(told, heat / max(heat.max(), 1e-30) * 255, atol=1)


def test_images_that_were_trained_on_are_told_and_others_are_not(tmp_path):
    root = write_image_folder(tmp_path / "set", {"a": 10, "b": 10})
    learn = tiny_learner(ImageDataset.from_folder(root).split(0.5, 0.5, seed=0))
    fresh = data_of(learn.evaluate(ds_idx=0), pictures=False)
    assert not any("has learned" in one["text"] for one in fresh["summary"])
    learn.fit(1)
    trained = data_of(learn.evaluate(ds_idx=0), pictures=False)
    assert any("has learned 10 of these 10 images" in one["text"] for one in trained["summary"])
    assert all(row["k"] for row in trained["images"])
    others = data_of(learn.evaluate(), pictures=False)
    assert not any("has learned" in one["text"] for one in others["summary"])


@pytest.mark.parametrize("continual", [True, False])
def test_strange_images_come_with_answers_and_scores(tmp_path, continual):
    root = write_image_folder(tmp_path / "set", {"a": 14, "b": 14})
    other = write_image_folder(tmp_path, {"other": 4}, seed=9)
    data = ImageDataset.from_folder(root).split(0.5, 0.5, seed=0)
    learn = tiny_learner(data)
    if continual:
        learn.init_continual(data)
    else:
        learn.fit_ood()
    evaluation = learn.evaluate(ood=other / "other", good=["a"])
    told = data_of(evaluation, pictures=False)
    strange = [row for row in told["images"] if row.get("o")]
    assert [row["p"] for row in strange] == [f"other/00{i}.png" for i in range(4)]
    predicted = learn.predict_batch(sorted((other / "other").iterdir()))
    for row, one in zip(strange, predicted, strict=True):
        assert row["y"] == one.index
        assert row["t"][0][1] == pytest.approx(one.confidence, rel=1e-3)
        assert row["s"] == pytest.approx(one.ood_score, rel=1e-3)
        assert row.get("u", False) == one.is_ood
    assert {"escape_rate", "false_reject_rate", "detection_rate"} <= set(evaluation.summary.index)


def test_measures_are_checked_before_a_pass(learn, monkeypatch):
    monkeypatch.setattr(type(learn), "interpret", None)
    with pytest.raises(EvaluationError, match="`measures` names 'auroc', which needs a model that"):
        learn.evaluate(measures=["auroc"])


def test_pictures_of_bare_tensors_are_shown_too():
    import torch
    from fastai.data.core import DataLoaders
    from helpers import tiny_cnn

    from learnkit.learner.learner import ImageLearner

    x = torch.rand(12, 3, 16, 16)
    pairs = torch.utils.data.TensorDataset(x, torch.arange(12) % 2)
    loader = torch.utils.data.DataLoader(pairs, batch_size=4)
    loss = torch.nn.CrossEntropyLoss()
    learn = ImageLearner(DataLoaders(loader, loader), tiny_cnn(2), loss_func=loss)
    data = data_of(learn.evaluate())
    assert [row["p"] for row in data["images"]][:2] == ["image 1", "image 2"]
    assert data["pictures_left_out"] == 0
    wrong = [row for row in data["images"] if row["a"] != row["y"]]
    assert wrong
    assert all(row["hs"] for row in wrong)


def test_an_interpretation_saves_the_page_of_its_evaluation(learn, tmp_path):
    interp = learn.interpret()
    one = interp.save_html(tmp_path / "one.html", created="2026-11-25T22:50Z")
    other = learn.evaluate().save_html(tmp_path / "other.html", created="2026-11-25T22:50Z")
    assert one.read_bytes() == other.read_bytes()


def test_beside_mistakes_are_images_that_the_learner_was_trained_on(tmp_path):
    root = write_image_folder(tmp_path / "set", {"a": 10, "b": 10})
    learn = tiny_learner(ImageDataset.from_folder(root).split(0.5, 0.5, seed=0))
    untrained = data_of(learn.evaluate(), pictures=False)
    assert not any("m" in row for row in untrained["images"])  # it has learned none yet
    learn.fit(1)
    data = data_of(learn.evaluate())
    wrong = [row for row in data["images"] if row["a"] != row["y"]]
    trained = {path.relative_to(root).as_posix() for path in learn.dls.image_dataset.train.paths}
    assert wrong
    for row in wrong:
        assert len({k for *_, k in row["m"]}) == 3
        for number, _, k in row["m"]:
            assert data["kin"][k]["p"] in trained
            assert data["kin"][k]["p"].startswith("ab"[number])
    assert data["n_kin"] == [10, 10]
