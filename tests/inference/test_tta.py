"""Predictions over views: the mean that a loop by hand gives, in every predictor and bundle."""

import numpy as np
import pytest
import torch
from deploy_helpers import make_continual, make_predictor, shades, strange
from PIL import Image

from learnkit.deploy.predictor import load_learner
from learnkit.errors import OptimizedModelError, PredictionError

QUIET = {"n_workers": 0}
IMAGES = [*shades("ok", 3, seed=4), *strange(2)]


def by_hand(image, number):
    """A view of an array (H, W, 3), with Pillow alone."""
    found = Image.fromarray(image)
    width, height = found.size
    if number >= 2:
        where = ["middle", "top left", "bottom right", "top right", "bottom left"][number // 2 - 1]
        x = {"middle": width / 16}.get(where, width / 8 * ("right" in where))
        y = {"middle": height / 16}.get(where, height / 8 * ("bottom" in where))
        box = (x, y, x + width * 7 / 8, y + height * 7 / 8)
        found = found.resize((width, height), Image.Resampling.BILINEAR, box=box)
    return np.asarray(found.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if number % 2 else found)


@pytest.mark.parametrize("n", [1, 2, 3, 10])
@pytest.mark.parametrize("multi_label", [False, True])
def test_probabilities_are_the_mean_over_views(n, multi_label):
    predictor = make_predictor(multi_label=multi_label)
    images = [predictor.load(image) for image in IMAGES]
    for image, found in zip(images, predictor.predict_batch(images, tta=n, **QUIET), strict=True):
        views = [predictor.predict(by_hand(image, number)).probs for number in range(n)]
        assert torch.allclose(found.probs, torch.stack(views).mean(0), atol=1e-5)
        if not multi_label:
            assert found.index == int(found.probs.argmax())
    table = predictor.predict_files(images, tta=n, progress=False)
    expected = [one.confidence for one in predictor.predict_batch(images, tta=n)]
    assert table["confidence"].tolist() == pytest.approx(expected)


def test_scores_are_those_of_the_image_itself():
    predictor = make_continual({"ok": 9, "bad": 7})
    plain, found = (predictor.predict_batch(IMAGES, tta=n, **QUIET) for n in (1, 4))
    for name in ("ood_score", "ood_threshold", "p_value", "is_ood", "class_ids"):
        assert [getattr(one, name) for one in found] == [getattr(one, name) for one in plain]
    assert any(not torch.equal(a.probs, b.probs) for a, b in zip(plain, found, strict=True))


def test_what_is_set_counts_in_every_verb_and_travels(tmp_path):
    predictor = make_continual({"ok": 9, "bad": 7})
    wanted = [one.probs.tolist() for one in predictor.predict_batch(IMAGES, tta=3, **QUIET)]
    predictor.set(metadata={"camera": 3}, tta=3).save(tmp_path / "model")
    for model in (predictor, load_learner(tmp_path / "model")):
        assert model.tta == 3
        assert model.metadata["camera"] == 3
        assert [p.probs.tolist() for p in model.predict_batch(IMAGES, **QUIET)] == wanted
        assert np.allclose([model.predict(image).probs for image in IMAGES], wanted, atol=1e-6)
        assert model.get_preds(IMAGES, **QUIET)[0].tolist() == wanted
    assert predictor.set(tta=1).tta == 1
    assert predictor.metadata == {"camera": 3}


@pytest.mark.parametrize("n", [0, 11, 2.0, "4", True])
def test_another_number_of_views_is_refused_and_nothing_is_set(predictor, n):
    message = f"^`tta` is {n!r}; give from how many views"
    for call in (
        lambda: predictor.predict_batch(IMAGES, tta=n),
        lambda: predictor.predict_files(IMAGES, tta=n, progress=False),
        lambda: predictor.set(tta=n),
    ):
        with pytest.raises(PredictionError, match=message):
            call()
    assert predictor.tta == 1
    with pytest.raises((AttributeError, OptimizedModelError), match=r"call set\(tta=...\)"):
        predictor.tta = 2


def test_a_table_goes_on_with_as_many_views_as_it_began_with(predictor, tmp_path):
    Image.fromarray(shades("ok", 1, seed=4)[0]).save(tmp_path / "x.png")
    run = {"out": tmp_path / "t.jsonl", "progress": False}
    report = predictor.predict_files([tmp_path / "x.png"], tta=2, **run)
    assert report.model.endswith(" tta=2")
    assert predictor.predict_files([tmp_path / "x.png"], tta=2, **run).n_resumed == 1
    with pytest.raises(PredictionError, match="of another model"):
        predictor.predict_files([tmp_path / "x.png"], **run)


def test_evaluate_measures_what_is_predicted(tmp_path):
    predictor = make_continual({"ok": 9, "bad": 7})
    for name in ("ok", "bad"):
        (tmp_path / name).mkdir()
        for number, image in enumerate(shades(name, 3, seed=9)):
            Image.fromarray(image).save(tmp_path / name / f"{number}.png")
    files = sorted(tmp_path.rglob("*.png"))
    wanted = predictor.predict_batch(files, tta=4, **QUIET)
    right = [
        one.probs[one.classes.index(file.parent.name)].item()
        for file, one in zip(files, wanted, strict=True)
    ]
    found = predictor.set(tta=4).evaluate(tmp_path, progress=False).summary["log_loss"]
    assert found == pytest.approx(-np.log(right).mean(), rel=1e-5)
