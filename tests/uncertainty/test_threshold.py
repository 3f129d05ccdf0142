import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from learnkit.errors import UncertaintyError
from learnkit.uncertainty.ood import BLANK_SCORE
from learnkit.uncertainty.threshold import Threshold, fit_threshold, manual_threshold


def uniform(*shape, seed=0):
    return np.random.default_rng(seed).uniform(size=shape)


@pytest.mark.parametrize(("n", "rate"), [(19, 0.05), (20, 0.05), (99, 0.01), (9, 0.1), (250, 0.03)])
@pytest.mark.parametrize("guarantee", ["loo", "split"])
def test_the_value_is_the_quantile_with_the_new_image_counted_in(n, rate, guarantee):
    scores = np.random.default_rng(n).permutation(n).astype(float)
    threshold = fit_threshold(scores, false_alarm_rate=rate, guarantee=guarantee)
    # ranks start at 0; in exact arithmetic, where (n + 1)(1 - rate) may be whole
    assert threshold.value == -(-(n + 1) * round((1 - rate) * 1000) // 1000) - 1
    assert (threshold.n, threshold.source, threshold.guarantee) == (n, "leave-one-out", guarantee)


def test_split_false_alarms_are_those_of_the_closed_form():
    """For continuous scores the k-th smallest of n is exceeded by (n + 1 - k) / (n + 1) on average.

    The share of one draw is Beta(n + 1 - k, k); the mean of 4000 draws lies within 4 standard
    errors of its mean. n = 30 at 10 %: k = 28, 3 / 31.
    """
    n, rate, k = 30, 0.1, 28
    shares = [
        1 - fit_threshold(row, false_alarm_rate=rate, guarantee="split").value
        for row in uniform(4000, n)
    ]
    beta = stats.beta(n + 1 - k, k)
    assert np.mean(shares) == pytest.approx(beta.mean(), abs=4 * beta.std() / np.sqrt(4000))
    assert beta.mean() <= rate


def test_flagged_images_are_counted_within_a_binomial_bound():
    rng = np.random.default_rng(1)
    draws = rng.standard_t(3, size=(3000, 40))
    flagged = sum(bool(fit_threshold(d[:39], guarantee="split").is_ood(d[39])) for d in draws)
    assert stats.binomtest(flagged, 3000, 2 / 40).pvalue > 0.001  # k = 38 of 39: 2 / 40 = 5 %


@pytest.mark.parametrize(
    ("n", "rate", "delta"), [(59, 0.05, 0.05), (200, 0.05, 0.1), (80, 0.1, 0.2)]
)
def test_pac_thresholds_fail_as_seldom_as_promised_and_not_much_more_seldom(n, rate, delta):
    failures = sum(
        1 - fit_threshold(d, false_alarm_rate=rate, guarantee="pac", delta=delta).value > rate
        for d in uniform(2000, n)
    )
    assert stats.binomtest(failures, 2000, delta, alternative="greater").pvalue > 0.001
    assert failures > 0.3 * delta * 2000


@pytest.mark.parametrize(("n", "attained"), [(58, False), (59, True)])
def test_pac_needs_fifty_nine_scores_for_five_percent(n, attained):
    threshold = fit_threshold(range(n), guarantee="pac")  # .95 ** 59 = .0485
    assert (threshold.source != "parametric") == attained
    assert threshold.delta == (0.05 if attained else None)


def test_weighted_pac_thresholds_fail_as_seldom_as_promised():
    """Two classes; the first is 3 of 4 images to come, but half of the scores."""
    n, rate, delta, rng = 100, 0.1, 0.1, np.random.default_rng(0)
    weights = np.repeat([0.75 / n, 0.25 / n], n)
    failures = 0
    for _ in range(1500):
        scores = np.r_[rng.uniform(size=n), rng.uniform(size=n) + 0.02]
        threshold = fit_threshold(
            scores, false_alarm_rate=rate, guarantee="pac", delta=delta, weights=weights
        )
        t = threshold.value
        failures += 0.75 * max(0, 1 - t) + 0.25 * max(0, 1.02 - t) > rate
        assert threshold.source == "leave-one-out"
    assert 0 < failures < 1500 * delta


def test_weighted_pac_allows_what_the_bound_of_chernoff_does():
    """One weight is a little larger: m = 10, the largest y with m - y + y log(y / m) >= log 20."""
    weights = np.r_[np.ones(199), 1.000001]
    y = next(y for y in np.arange(10, 0, -1e-3) if 10 - y + y * np.log(y / 10) >= np.log(20))
    threshold = fit_threshold(range(200), guarantee="pac", weights=weights)
    assert threshold.value == 199 - math.floor(y) == 196


def test_weights_bring_the_false_alarms_of_the_mix_to_come():
    """19 of 20 scores are of class b, 19 of 20 images to come of class a."""
    rng = np.random.default_rng(0)
    scores = np.r_[rng.uniform(size=200), 1 + rng.uniform(size=3800)]
    weights = np.r_[np.full(200, 0.95 / 200), np.full(3800, 0.05 / 3800)]
    weighted = fit_threshold(scores, false_alarm_rate=0.1, weights=weights).value
    assert 0.95 * (1 - weighted) + 0.05 == pytest.approx(0.1, abs=0.03)
    assert fit_threshold(scores, false_alarm_rate=0.1).value > 1.8


def test_the_scale_of_the_weights_does_not_matter():
    scores, weights = uniform(50), 1 + uniform(50, seed=1)
    values = {fit_threshold(scores, weights=weights * c).value for c in (1e-6, 1, 1e6)}
    assert len(values) == 1
    equal = {fit_threshold(scores, weights=np.full(50, c)).value for c in (1e-6, 1, 3)}
    assert equal == {fit_threshold(scores).value}


def test_a_split_promise_counts_the_next_image_as_the_heaviest():
    scores, weights = np.arange(100.0), np.r_[np.ones(99), 4]
    assert fit_threshold(scores, weights=weights, guarantee="split").value == 99
    assert fit_threshold(scores, weights=weights, guarantee="loo").value == 98


RATES = st.sampled_from([0.05, 0.1, 0.3, 0.5])
SCORES = st.lists(st.integers(-4, 4), min_size=2, max_size=60)


@given(SCORES, RATES, st.sampled_from(["loo", "split"]), st.data())
def test_images_are_flagged_exactly_if_their_p_value_is_up_to_the_rate(scores, rate, promise, data):
    weights = data.draw(st.lists(st.integers(1, 3), min_size=len(scores), max_size=len(scores)))
    threshold = fit_threshold(scores, false_alarm_rate=rate, guarantee=promise, weights=weights)
    new = np.arange(-5, 6, 0.5)
    if threshold.source == "parametric":  # on the line itself rounding decides what p is
        new = new[abs(new - threshold.value) > 1e-6]
    expected = threshold.p_values(new) <= rate + 1e-9
    assert np.array_equal(threshold.is_ood(new), expected)


def test_p_values_of_known_images_are_uniform_or_larger():
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(4000, 20))
    p = np.array([fit_threshold(d[:19]).p_values(d[19]).item() for d in draws])
    assert sorted(set(p.round(10))) == pytest.approx([i / 20 for i in range(1, 21)])
    for level in (0.05, 0.25, 0.5):
        assert stats.binomtest(int((p <= level + 1e-9).sum()), 4000, level).pvalue > 0.001


def test_a_score_equal_to_the_threshold_is_not_flagged():
    threshold = fit_threshold([1.0] * 30 + [2.0] * 70, false_alarm_rate=0.5)
    assert threshold.value == 2.0
    assert threshold.is_ood([2.0, np.nextafter(2.0, 3)]).tolist() == [False, True]
    assert threshold.p_values([2.0]).item() == pytest.approx(71 / 101)


@pytest.mark.parametrize("n", [2, 5, 18])
def test_too_few_scores_get_the_prediction_limit_of_a_normal_distribution(n):
    scores = np.random.default_rng(n).normal(3, 2, n)
    threshold = fit_threshold(scores)
    spread = scores.std(ddof=1) * math.sqrt(1 + 1 / n)
    limit = scores.mean() + stats.t.ppf(0.95, n - 1) * spread
    assert threshold.value == pytest.approx(max(limit, scores.max()))
    assert (threshold.source, threshold.guarantee) == ("parametric", "none")
    assert f"{n} are too few to promise a false-alarm rate of 0.05" in threshold.statement
    above = max(limit, scores.max()) + 1.0
    tail = stats.t.sf((above - scores.mean()) / spread, n - 1)
    assert threshold.p_values([above]).item() == pytest.approx(tail)


def test_four_normal_scores_flag_no_more_than_promised():
    draws = np.random.default_rng(0).normal(size=(3000, 5))
    flagged = sum(bool(fit_threshold(d[:4]).is_ood(d[4])) for d in draws)
    # exactly 5 % by Student's distribution, and fewer where the largest score is beyond the limit
    assert stats.binomtest(flagged, 3000, 0.05, alternative="greater").pvalue > 0.001
    assert flagged > 60


@pytest.mark.parametrize("scores", [[], [4.0]])
def test_without_two_scores_a_distribution_known_beforehand_serves(scores):
    threshold = fit_threshold(scores, model=(1.0, 2.0))
    assert threshold.value == pytest.approx(max(scores + [1 + 2 * stats.norm.ppf(0.95)]))
    assert (threshold.source, threshold.n) == ("parametric", len(scores))
    assert threshold.p_values([9.0]).item() == pytest.approx(stats.norm.sf(4.0))
    with pytest.raises(
        UncertaintyError, match=f"`scores` has {len(scores)} values?; a threshold n"
    ):
        fit_threshold(scores)


def test_scores_all_alike_give_a_finite_threshold_not_below_them():
    assert fit_threshold([2.0] * 100).value == 2.0
    few = fit_threshold([2.0] * 3)
    assert 2.0 < few.value < 10
    assert few.p_values([2.0]).item() == 1.0


def test_blank_images_among_the_scores_are_refused_only_where_they_would_decide():
    scores = np.r_[np.arange(98.0), [BLANK_SCORE] * 2]
    assert fit_threshold(scores).value == 95.0
    with pytest.raises(UncertaintyError, match="2 blank images among 100, more than"):
        fit_threshold(scores, false_alarm_rate=0.01)
    assert fit_threshold([1.0, 2.0, 3.0, BLANK_SCORE]).value < 10
    assert bool(fit_threshold(scores).is_ood(BLANK_SCORE))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"scores": [1.0, math.nan, 2.0, math.nan]}, "`scores` holds nan in rows 1, 3; every"),
        ({"scores": [1.0, math.inf]}, "`scores` holds inf in row 1; "),
        ({"scores": [[1.0]]}, r"`scores` has shape \(1, 1\); give one number per image"),
        ({"false_alarm_rate": 0.0}, "`false_alarm_rate` is 0.0; give a share between 0 and 1"),
        ({"false_alarm_rate": 5}, "`false_alarm_rate` is 5; give a share between 0 and 1"),
        ({"delta": 1.0}, "`delta` is 1.0; "),
        ({"guarantee": "exact"}, "`guarantee` is 'exact'; choose from loo, split, pac"),
        ({"source": "train"}, "`source` is 'train'; choose from validation, leave-one-out"),
        ({"weights": [1.0]}, "`weights` has 1 value for 3 rows; give one per row"),
        ({"weights": [1.0, 0.0, 1.0]}, "`weights` holds 0 in row 1; weights are above 0"),
    ],
)
def test_bad_input_is_named(kwargs, message):
    with pytest.raises(UncertaintyError, match=message):
        fit_threshold(**{"scores": [1.0, 2.0, 3.0]} | kwargs)


def test_a_threshold_set_by_hand_keeps_the_p_values():
    fitted = fit_threshold(uniform(100))
    moved = manual_threshold(7, fitted)
    assert (moved.value, moved.source, moved.false_alarm_rate) == (7.0, "manual", None)
    assert float(moved) == 7.0
    assert np.array_equal(moved.p_values([0.2, 0.9]), fitted.p_values([0.2, 0.9]))
    assert np.isnan(manual_threshold(1.0).p_values([0.0])).all()
    for wrong in (math.nan, math.inf, "3", None, True):
        with pytest.raises(UncertaintyError, match=r"`ood_threshold` is .*; give one finite score"):
            manual_threshold(wrong)


def thresholds():
    weights = 1 + uniform(100)
    return {
        "loo": fit_threshold(uniform(100), weights=weights),
        "pac": fit_threshold(uniform(100), guarantee="pac", source="validation"),
        "parametric": fit_threshold([1.0, 2.0]),
        "model": fit_threshold([], model=(0.0, 1.0)),
        "manual": manual_threshold(3.0),
    }


@pytest.mark.parametrize("name", ["loo", "pac", "parametric", "model", "manual"])
def test_a_threshold_survives_json_to_the_bit(name):
    threshold = thresholds()[name]
    read = Threshold.from_dict(json.loads(json.dumps(threshold.to_dict(), allow_nan=False)))
    assert read == threshold
    new = np.linspace(-1, 5, 7)
    assert np.array_equal(read.is_ood(new), threshold.is_ood(new))
    assert np.array_equal(read.p_values(new), threshold.p_values(new), equal_nan=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": math.nan}, "`threshold` is nan"),
        ({"value": "1"}, "`threshold` is '1'"),
        ({"source": "guess"}, "`source` is 'guess'"),
        ({"guarantee": 3}, "`guarantee` is 3"),
        ({"false_alarm_rate": 2.0}, "`false_alarm_rate` is 2.0"),
        ({"n": 5}, "must be the 5 sorted scores"),
        ({"calibration_scores": [2.0, 1.0]}, "must be the 2 sorted scores"),
        (
            {"calibration_scores": ["a", "b"]},
            "`calibration_scores` holds what is no array",
        ),
        ({"calibration_weights": [1.0, -1.0]}, "`weights` holds -1 in row 1"),
        ({"scale": 0.0}, "`scale` is 0; a spread is above 0"),
        ({"loc": None}, "`loc, scale` holds what is no array"),
        ({"extra": 1}, r"exactly its own keys; look at \['extra'\]"),
    ],
)
def test_a_damaged_threshold_is_refused(change, message):
    values = fit_threshold([1.0, 2.0]).to_dict() | change
    with pytest.raises(UncertaintyError, match=message):
        Threshold.from_dict(values)
    with pytest.raises(UncertaintyError, match="look at list"):
        Threshold.from_dict([])


def test_the_order_of_the_scores_changes_nothing_to_the_bit():
    scores, weights = uniform(200).round(1), 1 + uniform(200, seed=1)
    first = fit_threshold(scores, weights=weights)
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(200)
        again = fit_threshold(scores[order], weights=weights[order])
        assert again == first
        assert np.array_equal(again.calibration_weights, first.calibration_weights)


def test_the_former_name_of_p_values_says_so():
    threshold = fit_threshold(uniform(100))
    with pytest.warns(DeprecationWarning, match="now called `p_values`"):
        former = threshold.p_value([0.2, 0.9])
    assert np.array_equal(former, threshold.p_values([0.2, 0.9]))


@pytest.mark.parametrize("guarantee", ["loo", "split", "pac"])
def test_the_statement_says_what_is_promised(guarantee):
    statement = fit_threshold(range(100), guarantee=guarantee).statement
    words = {"loo": "no proof", "split": "on average", "pac": "with probability 0.95"}[guarantee]
    assert words in statement
    assert "0.05 of the images like these 100" in statement


@pytest.mark.parametrize("guarantee", ["split", "pac"])
def test_nothing_is_proven_of_leave_one_out_scores(guarantee):
    doubt = "as far as leaving one out is like a fresh image"
    of = {
        source: fit_threshold(range(100), guarantee=guarantee, source=source).statement
        for source in ("validation", "leave-one-out")
    }
    assert doubt in of["leave-one-out"]
    assert doubt not in of["validation"]


@pytest.mark.parametrize("scores", [[5.0, 5.0], [0.1 + 0.2, 0.3]])
def test_scores_that_do_not_differ_borrow_their_spread(scores):
    borrowed = fit_threshold(scores, model=(0.0, 2.0))
    assert borrowed.loc == pytest.approx(scores[0])  # of the mean they do tell
    # Student's distribution with one degree of freedom, of the next of two
    expected = scores[0] + 2 * math.sqrt(3) * math.tan(math.pi * 0.45)
    assert borrowed.value == pytest.approx(expected)
    assert fit_threshold([4.0, 6.0], model=(0.0, 9.0)) == fit_threshold([4.0, 6.0])


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.3])
def test_scores_that_go_together_give_the_limit_of_so_many_independent_ones(rate):
    scores = np.array([1.0, 1.2, 2.0, 2.1, 3.0, 3.3])
    found = fit_threshold(scores, false_alarm_rate=rate, guarantee="pac", n_independent=3)
    spread = scores.std() * np.sqrt(4 / 2)
    wanted = max(3.3, scores.mean() + spread * stats.t.ppf(1 - rate, 2))
    assert found.value == pytest.approx(wanted)
    assert found.n == 6
    if found.value > 3.3:
        assert found.p_values([found.value])[0] == pytest.approx(rate)
    alone = fit_threshold(scores, false_alarm_rate=rate, guarantee="pac")
    for n in (None, 6, 60):
        again = fit_threshold(scores, false_alarm_rate=rate, guarantee="pac", n_independent=n)
        assert again == alone
