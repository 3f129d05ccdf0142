"""Which input recipe a network's weights were trained with, by what its features tell."""

import numpy as np
import pytest
import torch
from torch import nn

from learnkit.continual.closed_form.lda import fit_lda
from learnkit.continual.statistics import ClassStatistics
from learnkit.errors import DataError
from learnkit.inference import weights_check
from learnkit.inference.weights_check import (
    InputRecipe,
    WeightsCheck,
    channel_stats,
    compare_recipes,
    likely_recipes,
    stratified_draw,
)
from learnkit.report.html import as_html
from learnkit.uncertainty.embedding import unit_rows

IMAGENET = InputRecipe("as before", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Eye(nn.Module):
    """Sees how far pixels lie from 0, up to 1: at its best with pixels in -1..1."""

    def forward(self, x):
        clipped = x.clamp(-1, 1)
        return torch.cat([clipped.relu(), (-clipped).relu(), 0 * x[:, :1] + 0.1], 1)


def pictures(n=40, seed=0):
    """Images whose classes are shades between black and white, and their labels."""
    shades, labels = torch.linspace(0.02, 0.98, 4), torch.arange(n) % 4
    noise = torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) - 0.5
    return (shades[labels].view(-1, 1, 1, 1) + 0.3 * noise).clamp(0, 1), labels.tolist()


def compared(first=IMAGENET, said_by="", paddings=({},), n=40):
    images, labels = pictures(n)
    recipes = likely_recipes(first, paddings)
    return compare_recipes(recipes, lambda options: Eye(), lambda: images.split(7), labels, said_by)


def test_the_recipe_that_the_network_is_made_for_is_found_and_taken():
    check = compared()
    assert check.best.name == check.chosen.name == "-1..1"
    assert check.frame["input"][0] == "-1..1"
    assert check.frame["log_loss"].is_monotonic_increasing
    assert "the best is mean (0.5, 0.5, 0.5), std (0.5, 0.5, 0.5): " in str(check)
    assert "it is used from here on. mean (0.485, 0.456, 0.406)" in str(check)
    assert "as was assumed: " in str(check)


def test_what_is_said_is_doubted_and_kept():
    check = compared(said_by="config.json beside it")
    assert check.best.name == "-1..1"
    assert check.chosen is check.recipes[0]
    assert "it is not used: check what is said" in str(check)
    assert "as config.json beside it says" in str(check)


def test_differences_within_chance_change_nothing():
    rng = np.random.default_rng(0)
    losses = np.stack([np.full(50, 0.5), 0.49 + 0.3 * rng.standard_normal(50)])
    recipes = tuple(likely_recipes(IMAGENET, [{}])[:2])
    check = WeightsCheck(recipes, losses < 0.5, losses, np.arange(50) % 2)
    assert (check.best, check.chosen) == (recipes[1], recipes[0]) or check.best is recipes[0]
    assert not check.is_better
    same = WeightsCheck(recipes, losses < 0.5, losses[[0, 0]], np.arange(50) % 2)
    assert same.best is recipes[0]
    assert not same.is_better
    assert "the best is mean (0.485" in str(same)


def test_ten_times_the_recipes_need_ten_times_the_evidence():
    gained = np.random.default_rng(1).normal(0.4, 1, 30)  # p = 0.017, one-sided
    losses = np.stack([gained + 5, np.full(30, 5.0)])
    labels = np.arange(30) % 2
    recipes = likely_recipes(IMAGENET, [{"p": i} for i in range(3)])
    assert WeightsCheck(tuple(recipes[:2]), losses > 0, losses, labels).is_better
    many = np.concatenate([losses, np.full((8, 30), 9.0)])
    assert not WeightsCheck(tuple(recipes[:10]), many > 0, many, labels).is_better


def test_left_out_verdicts_are_those_of_a_classifier_fitted_without_the_image():
    images, labels = pictures(60)
    features = Eye()((images - 0.5) / 0.5).mean((2, 3))
    right, losses = weights_check._left_out(features, np.array(labels))
    names = [f"{label:09d}" for label in labels]
    empty = ClassStatistics.empty(features.shape[1], root=False, memory_size=200)
    fitted = fit_lda(empty.update(features, names).canonical().moments())
    slow = []
    for i in range(len(labels)):
        rest = [j for j in range(len(labels)) if j != i]
        stats = empty.update(features[rest], [names[j] for j in rest]).canonical()
        geometry = fit_lda(stats.moments(), shrinkage=fitted.shrinkage).geometry
        point = torch.from_numpy(unit_rows(features[[i]].double().numpy(), root=False))
        away = geometry.spectrum.turn(point) * geometry.scale - geometry.means
        logits = (geometry.d_eff / geometry.counts - away.square().sum(1)) / 2 / fitted.temperature
        assert (int(logits.argmax()) == labels[i]) == right[i]
        slow.append(float(-logits.log_softmax(0)[labels[i]]))
    # nearly: in closed form, the ridge and the dimension stay those of all images
    assert slow == pytest.approx(losses, rel=0.3, abs=0.02)
    assert np.corrcoef(slow, losses)[0, 1] > 0.99


def test_balanced_accuracy_counts_classes_alike():
    labels = np.array([0, 0, 0, 0, 1])
    right = np.array([[1, 1, 1, 1, 0], [0, 0, 1, 1, 1]], dtype=bool)
    check = WeightsCheck((IMAGENET, IMAGENET), right, right * 1.0, labels)
    assert check.accuracies == [0.5, 0.75]


def test_features_that_are_not_finite_lose():
    class Broken(Eye):
        def forward(self, x):
            return super().forward(x) / (x.abs().amax() < 100)  # of 0..255, division by 0

    images, labels = pictures()
    recipes = likely_recipes(IMAGENET, [{}])
    check = compare_recipes(recipes, lambda options: Broken(), lambda: [images], labels)
    assert check.frame["input"].iloc[-1] == "0..255"
    assert check.frame["balanced_accuracy"].iloc[-1] == 0


def test_recipes_are_compared_once_and_the_first_stays_first():
    half = InputRecipe("as before", (0.5,) * 3, (0.5,) * 3)
    found = likely_recipes(half, [{}, {"pad_type": "same"}])
    assert found[0] is half
    assert len(found) == len({str(recipe) for recipe in found}) == 8
    assert "pad_type='same'" in str(found[-1])
    grey = likely_recipes(InputRecipe("as before", (0.4,), (0.2,)), [{}])
    assert {len(recipe.mean) for recipe in grey} == {1}
    assert channel_stats((0.1, 0.2, 0.3), 1) == pytest.approx((0.2,))


def test_a_draw_is_stratified_small_and_always_the_same():
    labels = ["a"] * 500 + ["b"] * 30 + ["c"] + ["d"] * 500
    drawn = stratified_draw(labels)
    assert drawn == sorted(drawn) == stratified_draw(labels)
    counts = {name: sum(labels[i] == name for i in drawn) for name in "abcd"}
    assert counts == {"a": 66, "b": 30, "c": 0, "d": 66}
    many = stratified_draw([i // 10 for i in range(10_000)])
    assert len(many) == 200
    assert len({i // 10 for i in many}) == 50


@pytest.mark.parametrize("labels", [[], ["a"] * 9, ["a", "a", "b"]])
def test_one_class_cannot_be_compared(labels):
    with pytest.raises(DataError, match="two classes or more of two images or more"):
        stratified_draw(labels)


def test_it_shows_itself_in_terminals_and_notebooks():
    check = compared()
    assert repr(check).startswith("WeightsCheck(of 4 input recipes on 40 images")
    assert "balanced accuracy" in as_html(check.document())
