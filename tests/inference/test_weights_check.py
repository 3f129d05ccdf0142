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
from learnkit.uncertainty.scoring import unit_rows

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
    assert "as config.json beside it says: " in str(check)
    several = compared(said_by="its metadata and config.json beside it")
    assert "as its metadata and config.json beside it say: " in str(several)


def check_of(gained, said_by="", n_recipes=2):
    """A check whose second recipe gains so much log loss; the others are far behind."""
    losses = np.stack([gained + 5, np.full(len(gained), 5.0), *[np.full(len(gained), 9.0)] * 9])
    recipes = likely_recipes(IMAGENET, [{"p": i} for i in range(3)])
    labels = np.arange(len(gained)) % 2
    return WeightsCheck(tuple(recipes[:n_recipes]), *[losses[:n_recipes]] * 2, labels, said_by)


def gains(standard_errors, n=30):
    """Gains of n images whose mean lies so many of its standard errors above 0."""
    noise = np.random.default_rng(0).standard_normal(n)
    return (noise - noise.mean()) / noise.std(ddof=1) + standard_errors / np.sqrt(n)


@pytest.mark.parametrize(("standard_errors", "taken"), [(0.9, False), (1.1, True)])
def test_an_assumption_stays_within_one_standard_error_of_the_best(standard_errors, taken):
    check = check_of(gains(standard_errors))
    assert check.best is check.recipes[1]
    assert (check.chosen is check.best) == check.is_better == taken
    assert ("none is better by a standard error than mean (0.485" in str(check)) != taken


def test_equal_recipes_leave_the_first():
    check = check_of(np.zeros(10))
    assert check.best is check.chosen is check.recipes[0]
    assert not check.is_better
    assert "the best is mean (0.485" in str(check)


def test_what_is_said_is_doubted_beyond_chance_however_many_are_compared():
    # one-sided p of t = 2.2 with 29 degrees of freedom: 0.018, below 0.05 and above 0.05 / 9
    assert check_of(gains(2.2), "`normalize`", 2).is_better
    doubted = check_of(gains(2.2), "`normalize`", 10)
    assert not doubted.is_better
    assert "none is better beyond chance than" in str(doubted)
    assert check_of(gains(3.2), "`normalize`", 10).is_better  # 0.0017
    assert check_of(gains(2.2), "", 10).is_better


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
        apart = geometry.squares(geometry.spectrum.turn(point) - geometry.spectrum.means)
        logits = (geometry.d_eff / geometry.counts - apart) / 2 / fitted.temperature
        assert (int(logits.argmax()) == labels[i]) == right[i]
        slow.append(float(-logits.log_softmax(0)[labels[i]]))
    # nearly: in closed form, the ridge and the dimension stay those of all images
    assert slow == pytest.approx(losses, rel=0.3, abs=0.02)
    # all are right by far: their margins, of which small losses are exponentials, differ
    assert np.corrcoef(np.log(slow), np.log(losses))[0, 1] > 0.99


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
