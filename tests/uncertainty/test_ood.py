import json
import math
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from learnkit.errors import UncertaintyError
from learnkit.uncertainty import ood
from learnkit.uncertainty.ood import ClassDistances, Neighbors
from learnkit.uncertainty.scoring import Scoring, unit_rows
from learnkit.uncertainty.threshold import manual_threshold

BLANK = ood.BLANK_SCORE


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def distances(means, n, d_eff, center=None):
    """Distances where the covariance is the identity, to the means of classes of n images."""
    means, n = np.asarray(means, float), np.asarray(n, float)
    center = np.zeros(means.shape[1]) if center is None else center
    away = means - center
    offsets = np.square(away).sum(1) - d_eff / n
    return ClassDistances(center, away, offsets, 1.0, np.zeros((len(center), 0)))


W = 2 * np.eye(4)[:2]
MEANS = 6 * np.eye(4)[:2]
KNOWN = normal(80, 4) + np.tile(MEANS, (40, 1))
FAR = normal(80, 4, seed=1) - np.array([3.0, 3.0, 0, 0])
PARTS = ["msp", "energy", "knn", "mahalanobis", "relative"]


def scoring(*parts):
    """Of classes around the means, the standards of the score's parts being those of the known."""
    plain = Scoring(
        labels=True,
        root=False,
        temperature=1.0,
        standards=(),
        threshold=manual_threshold(0.0),
        weight=W,
        bias=np.zeros(2),
        nonconformity=(np.zeros(0), np.zeros(0)),
        distances=distances(unit_rows(MEANS, root=False), [40, 40], 0.1),
        neighbors=Neighbors(unit_rows(KNOWN, root=False)),
    )
    if len(parts) == 1:
        return replace(plain, standards=((parts[0], 0.0, 1.0),))
    single = {part: replace(plain, standards=((part, 0.0, 1.0),)) for part in parts}
    standards = ((p, *ood.location_scale(s.ood_scores(KNOWN))) for p, s in single.items())
    return replace(plain, standards=tuple(standards))


@pytest.mark.parametrize("parts", [*[(part,) for part in PARTS], tuple(PARTS)])
def test_every_score_is_double_one_per_image_and_higher_out_of_distribution(parts):
    known, far = (scoring(*parts).ood_scores(x) for x in (KNOWN, FAR))
    assert known.dtype == np.float64
    assert known.shape == (80,)
    assert np.isfinite(known).all()
    assert far.mean() > known.mean()


@pytest.mark.parametrize("part", PARTS)
def test_no_images_give_no_scores(part):
    assert scoring(part).ood_scores(KNOWN[:0]).shape == (0,)


def test_several_parts_are_combined_as_each_is_standardised():
    several = scoring("mahalanobis", "relative", "knn")
    single = {part: scoring(part).ood_scores(FAR) for part, _, _ in several.standards}
    expected = ood.combine(
        *((single[part] - loc) / spread for part, loc, spread in several.standards)
    )
    np.testing.assert_allclose(several.ood_scores(FAR), expected, rtol=1e-12)


@pytest.mark.parametrize("score", [ood.max_softmax_score, ood.energy_score])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_value_that_is_not_finite_is_refused_with_its_row(score, bad):
    logits = KNOWN @ W.T
    logits[3, 0] = bad
    with pytest.raises(UncertaintyError, match="row 3; "):
        score(logits)


def test_energy_is_the_free_energy():
    logits = normal(20, 5)
    expected = [-2.5 * math.log(sum(math.exp(v / 2.5) for v in row)) for row in logits.tolist()]
    assert ood.energy_score(logits, 2.5).tolist() == pytest.approx(expected)


def test_classes_without_images_change_no_score_of_logits():
    logits = normal(20, 5)
    padded = np.concatenate([logits, np.full((20, 2), -math.inf)], axis=1)
    for score in (ood.max_softmax_score, ood.energy_score):
        np.testing.assert_allclose(score(padded), score(logits))
    with pytest.raises(UncertaintyError, match="row 1; no class has any images"):
        ood.energy_score([[0.0, 1.0], [-math.inf, -math.inf]])


def test_the_nearest_neighbour_equals_a_slow_loop(monkeypatch):
    x, memory = normal(17, 6), normal(11, 6, seed=1)
    expected = [min(np.linalg.norm(row - other) for other in memory) for row in x]
    assert Neighbors(memory).nearest(x).tolist() == pytest.approx(expected)
    monkeypatch.setattr(ood, "_BLOCK", 30)  # two rows at a time
    assert Neighbors(memory).nearest(x).tolist() == pytest.approx(expected)


def test_looking_past_oneself_is_leaving_one_out():
    memory = normal(9, 3)
    expected = [
        Neighbors(np.delete(memory, i, axis=0)).nearest(memory[i : i + 1]).item() for i in range(9)
    ]

    def hide(table, part):
        table[np.arange(len(table)), np.arange(9)[part]] = math.inf

    assert Neighbors(memory).nearest(memory, hide).tolist() == pytest.approx(expected)
    assert Neighbors(memory).nearest(memory).max() < 1e-7


def test_without_memory_everything_is_infinitely_far():
    assert Neighbors(np.zeros((0, 3))).nearest(normal(2, 3)).tolist() == [math.inf] * 2


def test_distances_equal_a_slow_loop():
    x, means, n = normal(7, 3), normal(3, 3, seed=1), [5, 1, 9]
    expected = [min(((row - means[c]) ** 2).sum() - 2.5 / n[c] for c in range(3)) for row in x]
    center = normal(3, seed=2)
    found = distances(means, n, 2.5, center)
    assert found.mahalanobis(x).tolist() == pytest.approx(expected)
    background = ((x - center) ** 2).sum(1)
    np.testing.assert_allclose(found.relative(x), expected - background)
    np.testing.assert_allclose(found.from_center(x), background)


def test_lengths_by_few_axes_are_those_by_all():
    x, scale = normal(7, 3), np.array([0.5, 2.0, 2.0])  # of the axes
    few = replace(distances(MEANS[:, :3], [4, 4], 1.0), base=4.0, axes=np.eye(3)[:, :1] * 3.75**0.5)
    every = replace(few, base=0.0, axes=np.eye(3) * scale)
    np.testing.assert_allclose(few.from_center(x), np.square(x * scale).sum(1))
    np.testing.assert_allclose(every.from_center(x), few.from_center(x))


def test_debiasing_makes_small_and_large_classes_equally_usual():
    # E |z - mean of n|^2 = d + d / n, so that without the debt one image would cost twice d
    d, rng = 50, np.random.default_rng(0)
    z = rng.normal(size=(4000, d))
    scores = {
        n: np.mean(
            [
                distances(z[i + 1 : i + 1 + n].mean(0)[None], [n], d)
                .mahalanobis(z[i : i + 1])
                .item()
                for i in range(0, 3900, 5)
            ]
        )
        for n in (1, 50)
    }
    assert scores[1] == pytest.approx(d, rel=0.03)
    assert scores[50] == pytest.approx(d, rel=0.03)


def test_standardised_scores_have_mean_zero_and_spread_one_under_the_weights():
    scores, weights = normal(30) * 7 + 40, np.arange(1, 31)
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
    features = np.concatenate([normal(3, 8), np.zeros((1, 8)), np.full((1, 8), 1e-9)])
    assert ood.is_blank(features).tolist() == [False, False, False, True, True]
    marked = np.where(ood.is_blank(features), BLANK, [1.0, 2.0, 3.0, math.nan, -9.0])
    empty = np.zeros((1, 4))
    assert scoring("mahalanobis", "knn").ood_scores(np.concatenate([KNOWN, empty])).argmax() == 80
    assert scoring("msp").ood_scores(empty).tolist() == [BLANK]
    assert ood.location_scale(marked) == pytest.approx((2.0, np.sqrt(2 / 3)))
    z = ood.standardize(marked, 2.0, 1e-3)
    assert z.tolist() == [-1000.0, 0.0, 1000.0, BLANK, BLANK]
    assert ood.combine(z, z).tolist() == [-1.0, 0.0, 1000.0, BLANK, BLANK]
    assert ood.combine(z, np.zeros(5))[3:].tolist() == [BLANK, BLANK]
    assert np.isfinite(np.float32(BLANK))
    with pytest.raises(UncertaintyError, match="none of an image that shows something"):
        ood.location_scale([BLANK, BLANK])


def test_no_score_of_several_says_less_than_one_spread_below_the_mean():
    assert ood.combine([-7.0, -7.0], [4.0, -1.0]).tolist() == [1.5, -1.0]
    assert ood.combine([-7.0, 2.0]).tolist() == [-7.0, 2.0]


def test_combining_takes_the_mean():
    assert ood.combine([1.0, 5.0], [3.0, 1.0]).tolist() == [2.0, 3.0]
    with pytest.raises(UncertaintyError, match="`standardized` is empty"):
        ood.combine()


@pytest.mark.parametrize("decimals", [1, 8])  # with and without ties
def test_the_area_under_the_curve_equals_scikit_learns(decimals):
    known, far = (
        normal(57).round(decimals=decimals),
        (normal(43, seed=1) + 1).round(decimals=decimals),
    )
    positive = np.r_[np.zeros(57), np.ones(43)]
    both = np.concatenate([known, far])
    assert ood.auroc(known, far) == pytest.approx(roc_auc_score(positive, both))
    fpr, tpr, _ = roc_curve(positive, both, drop_intermediate=False)
    for wanted in (0.5, 0.95, 1.0):
        assert ood.fpr_at_tpr(known, far, tpr=wanted) == fpr[np.argmax(tpr >= wanted - 1e-12)]


def test_scores_all_alike_tell_nothing():
    assert ood.auroc([1.0] * 3, [1.0] * 5) == 0.5
    assert ood.fpr_at_tpr([1.0] * 3, [1.0] * 5) == 1.0


@pytest.mark.parametrize(
    ("known", "far", "threshold", "reason"),
    [
        ([1.0], [], 0.0, "no out-of-distribution images"),
        ([], [1.0], 0.0, "no known images"),
        ([1.0], [2.0], None, "no threshold"),
        ([], [], None, "no known images, no out-of-distribution images, no threshold"),
    ],
)
def test_one_sided_input_gives_nan_and_the_reason(known, far, threshold, reason):
    result = ood.evaluate_ood(known, far, threshold)
    assert result.reason == reason
    if not (known and far):
        assert math.isnan(result.auroc)
        assert math.isnan(result.fpr_at_95_tpr)
        assert math.isnan(ood.auroc(known, far))
    assert None in json.loads(json.dumps(result.to_dict(), allow_nan=False)).values()


def test_the_realised_rates_count_what_lies_strictly_above():
    result = ood.evaluate_ood([1.0, 2.0, 3.0, 4.0], [3.0, 5.0], 3.0)
    assert (result.false_alarm_rate, result.detection_rate) == (0.25, 0.5)
    assert (result.n_in, result.n_out, result.reason) == (4, 2, "")
    with pytest.raises(UncertaintyError, match="`scores_out` holds nan in row 1"):
        ood.evaluate_ood([1.0], [1.0, math.nan])
