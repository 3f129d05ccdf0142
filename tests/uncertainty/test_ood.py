import json
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score, roc_curve

from learnkit.errors import UncertaintyError
from learnkit.uncertainty import ood

BLANK = ood.BLANK_SCORE


def normal(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def unit(rows):
    return rows / rows.norm(dim=1, keepdim=True)


SCORES = {
    "msp": lambda x: ood.max_softmax_score(x @ W),
    "energy": lambda x: ood.energy_score(x @ W),
    "knn": lambda x: ood.nearest_neighbor_score(unit(x), unit(KNOWN)),
    "mahalanobis": lambda x: ood.mahalanobis_score(x, MEANS, [40, 40], 4.0),
    "relative": lambda x: ood.relative_mahalanobis_score(x, MEANS, [40, 40], 4.0, [0.0] * 4),
}
W = torch.tensor([[2.0, 0, 0, 0], [0, 2.0, 0, 0]]).double().T
MEANS = torch.tensor([[6.0, 0, 0, 0], [0, 6.0, 0, 0]]).double()
KNOWN = normal(80, 4) + MEANS.repeat(40, 1)
STRANGE = normal(80, 4, seed=1) - torch.tensor([3.0, 3.0, 0, 0])


@pytest.mark.parametrize("name", SCORES)
def test_every_score_is_plain_double_one_per_image_and_higher_for_the_strange(name):
    known, strange = SCORES[name](KNOWN), SCORES[name](STRANGE)
    assert type(known) is torch.Tensor
    assert known.dtype == torch.float64
    assert known.shape == (80,)
    assert known.isfinite().all()
    assert strange.mean() > known.mean()


@pytest.mark.parametrize("name", SCORES)
def test_no_images_give_no_scores(name):
    assert SCORES[name](KNOWN[:0]).shape == (0,)


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_value_that_is_not_finite_is_refused_with_its_row(name, bad):
    x = KNOWN.clone()
    x[3, 0] = bad
    with pytest.raises(UncertaintyError, match="row 3; "):
        SCORES[name](x)


def test_energy_is_the_free_energy():
    logits = normal(20, 5)
    expected = [-2.5 * math.log(sum(math.exp(v / 2.5) for v in row)) for row in logits.tolist()]
    assert ood.energy_score(logits, 2.5).tolist() == pytest.approx(expected)


def test_classes_without_images_change_no_score_of_logits():
    logits = normal(20, 5)
    padded = torch.cat([logits, torch.full((20, 2), -math.inf)], 1)
    for score in (ood.max_softmax_score, ood.energy_score):
        torch.testing.assert_close(score(padded), score(logits))
    with pytest.raises(UncertaintyError, match="row 1; no class has any images"):
        ood.energy_score([[0.0, 1.0], [-math.inf, -math.inf]])


@pytest.mark.parametrize("k", [1, 3])
def test_the_nearest_neighbour_equals_a_slow_loop(k, monkeypatch):
    x, memory = normal(17, 6), normal(11, 6, seed=1)
    expected = [sorted((row - other).norm().item() for other in memory)[k - 1] for row in x]
    assert ood.nearest_neighbor_score(x, memory, k).tolist() == pytest.approx(expected)
    monkeypatch.setattr(ood, "_CHUNK", 30)  # two rows at a time
    assert ood.nearest_neighbor_score(x, memory, k).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("k", [1, 2])
def test_looking_past_oneself_is_leaving_one_out(k):
    memory = normal(9, 3)
    expected = [
        ood.nearest_neighbor_score(memory[i : i + 1], memory[torch.arange(9) != i], k).item()
        for i in range(9)
    ]
    own = ood.nearest_neighbor_score(memory, memory, k, own=range(9))
    assert own.tolist() == pytest.approx(expected)
    assert ood.nearest_neighbor_score(memory, memory).amax() < 1e-7


def test_too_little_memory_is_refused():
    with pytest.raises(UncertaintyError, match="`k` is 1 and there are 0 remembered vectors"):
        ood.nearest_neighbor_score(normal(2, 3), normal(1, 3), own=[0, 0])
    with pytest.raises(UncertaintyError, match="`k` is 3 and there are 2"):
        ood.nearest_neighbor_score(normal(2, 3), normal(2, 3), 3)
    with pytest.raises(UncertaintyError, match="`embedded` is 3 wide, `memory` 4"):
        ood.nearest_neighbor_score(normal(2, 3), normal(2, 4))


def test_mahalanobis_equals_a_slow_loop_and_empty_classes_never_are_the_nearest():
    x, means, n = normal(7, 3), normal(4, 3, seed=1), torch.tensor([5, 0, 1, 9])
    x[0] = means[1]
    expected = [
        min(((row - means[c]) ** 2).sum().item() - 2.5 / n[c].item() for c in (0, 2, 3))
        for row in x
    ]
    assert ood.mahalanobis_score(x, means, n, 2.5).tolist() == pytest.approx(expected)
    center = normal(3, seed=2)
    relative = ood.relative_mahalanobis_score(x, means, n, 2.5, center)
    background = ((x - center) ** 2).sum(1)
    torch.testing.assert_close(relative, torch.tensor(expected).double() - background)
    with pytest.raises(UncertaintyError, match="counts no image of any class"):
        ood.mahalanobis_score(x, means, [0] * 4, 2.5)


def test_debiasing_makes_small_and_large_classes_equally_usual():
    # E |z - mean of n|^2 = d + d / n, so that without the debt one image would cost twice d
    d, rng = 50, np.random.default_rng(0)
    z = rng.normal(size=(4000, d))
    scores = {
        n: np.mean(
            [
                ood.mahalanobis_score(
                    z[i : i + 1], z[i + 1 : i + 1 + n].mean(0)[None], [n], d
                ).item()
                for i in range(0, 3900, 5)
            ]
        )
        for n in (1, 50)
    }
    assert scores[1] == pytest.approx(d, rel=0.03)
    assert scores[50] == pytest.approx(d, rel=0.03)


def test_standardised_scores_have_mean_zero_and_spread_one_under_the_weights():
    scores, weights = normal(30) * 7 + 40, torch.arange(1, 31)
    loc, scale = ood.location_scale(scores, weights)
    expected = np.average(scores, weights=weights)
    assert loc == pytest.approx(expected)
    assert scale == pytest.approx(np.average((scores - expected) ** 2, weights=weights) ** 0.5)
    z = ood.standardize(scores, loc, scale)
    assert np.average(z, weights=weights) == pytest.approx(0, abs=1e-12)
    assert np.average(z**2, weights=weights) == pytest.approx(1)


@pytest.mark.parametrize("scores", [[3.0], [0.1] * 7, [1e9 / 3] * 3])
def test_scores_all_alike_have_a_spread_to_divide_by(scores):
    loc, scale = ood.location_scale(scores)
    assert loc == pytest.approx(scores[0])
    assert scale == 1.0
    with pytest.raises(UncertaintyError, match=r"`scale` is 0.0; a spread is finite and above 0"):
        ood.standardize(scores, loc, 0.0)


def test_a_blank_frame_stays_above_everything_and_spoils_no_average():
    features = torch.cat([normal(3, 8), torch.zeros(1, 8), torch.full((1, 8), 1e-9)])
    assert ood.is_blank(features).tolist() == [False, False, False, True, True]
    marked = ood.mark_blank([1.0, 2.0, 3.0, math.nan, -9.0], features)
    assert marked.tolist() == [1.0, 2.0, 3.0, BLANK, BLANK]
    assert ood.location_scale(marked) == pytest.approx((2.0, np.sqrt(2 / 3)))
    z = ood.standardize(marked, 2.0, 1e-3)
    assert z.tolist() == [-1000.0, 0.0, 1000.0, BLANK, BLANK]
    assert ood.combine(z, z).tolist() == [-1.0, 0.0, 1000.0, BLANK, BLANK]
    assert ood.combine(z, torch.zeros(5))[3:].tolist() == [BLANK, BLANK]
    assert torch.tensor(BLANK, dtype=torch.float32).isfinite()
    with pytest.raises(UncertaintyError, match="none of an image that shows something"):
        ood.location_scale([BLANK, BLANK])


def test_no_score_of_several_says_less_than_one_spread_below_the_mean():
    assert ood.combine([-7.0, -7.0], [4.0, -1.0]).tolist() == [1.5, -1.0]
    assert ood.combine([-7.0, 2.0]).tolist() == [-7.0, 2.0]
    assert ood.combine([-7.0], [-9.0], method="max").tolist() == [-7.0]


def test_combining_takes_the_mean_or_the_larger():
    assert ood.combine([1.0, 5.0], [3.0, 1.0], method="max").tolist() == [3.0, 5.0]
    assert ood.combine([1.0, 5.0], [3.0, 1.0]).tolist() == [2.0, 3.0]
    with pytest.raises(UncertaintyError, match="`method` is 'sum'; choose from mean, max"):
        ood.combine([1.0], method="sum")
    with pytest.raises(UncertaintyError, match="`standardized` is empty"):
        ood.combine()


@pytest.mark.parametrize("decimals", [1, 8])  # with and without ties
def test_the_area_under_the_curve_equals_scikit_learns(decimals):
    known, strange = (
        normal(57).round(decimals=decimals),
        (normal(43, seed=1) + 1).round(decimals=decimals),
    )
    positive = np.r_[np.zeros(57), np.ones(43)]
    both = torch.cat([known, strange])
    assert ood.auroc(known, strange) == pytest.approx(roc_auc_score(positive, both))
    fpr, tpr, _ = roc_curve(positive, both, drop_intermediate=False)
    for wanted in (0.5, 0.95, 1.0):
        assert ood.fpr_at_tpr(known, strange, tpr=wanted) == fpr[np.argmax(tpr >= wanted - 1e-12)]


def test_scores_all_alike_tell_nothing():
    assert ood.auroc([1.0] * 3, [1.0] * 5) == 0.5
    assert ood.fpr_at_tpr([1.0] * 3, [1.0] * 5) == 1.0


@pytest.mark.parametrize(
    ("known", "strange", "threshold", "reason"),
    [
        ([1.0], [], 0.0, "no out-of-distribution images"),
        ([], [1.0], 0.0, "no known images"),
        ([1.0], [2.0], None, "no threshold"),
        ([], [], None, "no known images, no out-of-distribution images, no threshold"),
    ],
)
def test_one_sided_input_gives_nan_and_the_reason(known, strange, threshold, reason):
    result = ood.evaluate_ood(known, strange, threshold)
    assert result.reason == reason
    if not (known and strange):
        assert math.isnan(result.auroc)
        assert math.isnan(result.fpr_at_95_tpr)
        assert math.isnan(ood.auroc(known, strange))
    assert None in json.loads(json.dumps(result.to_dict(), allow_nan=False)).values()


def test_the_realised_rates_count_what_lies_strictly_above():
    result = ood.evaluate_ood([1.0, 2.0, 3.0, 4.0], [3.0, 5.0], 3.0)
    assert (result.false_alarm_rate, result.detection_rate) == (0.25, 0.5)
    assert (result.n_in, result.n_out, result.reason) == (4, 2, "")
    with pytest.raises(UncertaintyError, match="`scores_out` holds nan in row 1"):
        ood.evaluate_ood([1.0], [1.0, math.nan])
