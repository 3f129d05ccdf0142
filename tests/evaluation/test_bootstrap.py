"""Bootstrap intervals: against slow loops, and how often they hold the truth."""

import tracemalloc

import numpy as np
import pytest

from learnkit.evaluation import intervals
from learnkit.evaluation.evaluate import evaluate
from learnkit.evaluation.intervals import SampleValues, fpr_interval
from learnkit.evaluation.measures import (
    brier_score,
    expected_calibration_error,
    log_loss,
)
from learnkit.inference.evaluation import with_ood_scores
from learnkit.uncertainty.ood import fpr_at_tpr

MEASURES = ["log_loss", "brier_score", "ece"]


def answers(rng, counts, overconfidence=1.0):
    """Probabilities that are true where `overconfidence` is 1, and the labels, by class."""
    targets = np.repeat(np.arange(len(counts)), counts)
    seen = rng.normal(size=(len(targets), len(counts)))
    seen[np.arange(len(targets)), targets] += 1.5
    logits = 1.5 * seen * overconfidence + np.log(np.array(counts) / sum(counts))
    odds = np.exp(logits - logits.max(1, keepdims=True))
    return odds / odds.sum(1, keepdims=True), targets


def resampled(rng, probs, targets):
    """One resample as a loop draws it: n - 1 of each class, each of weight n / (n - 1)."""
    places, weights = [], []
    for c in np.unique(targets):
        own = np.flatnonzero(targets == c)
        places += [own[rng.integers(len(own))] for _ in own[1:]]
        weights += [len(own) / (len(own) - 1)] * (len(own) - 1)
    return probs[places], targets[places], np.array(weights)


def test_means_are_those_of_a_slow_loop_of_students_kind():
    rng = np.random.default_rng(5)
    probs, targets = answers(rng, [25, 15, 9], 3.0)
    found = SampleValues.of(probs, targets).intervals()["log_loss"]
    losses = np.array([log_loss(p[None], [t]) for p, t in zip(probs, targets, strict=True)])

    def error(losses, targets):
        variance = sum(
            (targets == c).sum() * losses[targets == c].var(ddof=1) for c in np.unique(targets)
        )
        return np.sqrt(variance) / 49

    ratios = []
    for _ in range(4000):
        drawn, its, weights = resampled(rng, losses, targets)
        own = sum(
            weights[its == c][0]
            * (25, 15, 9)[c]
            / ((25, 15, 9)[c] - 1)
            * np.square(drawn[its == c] - losses[targets == c].mean()).sum()
            for c in range(3)
        )
        ratios.append(((weights * drawn).sum() / 49 - losses.mean()) / (np.sqrt(own) / 49))
    low, high = np.quantile(ratios, [0.025, 0.975])
    own = error(losses, targets)
    wanted = losses.mean() - high * own, losses.mean() - low * own
    np.testing.assert_allclose(found, wanted, rtol=0.06)
    assert found[1] - losses.mean() > 1.3 * 1.96 * own  # a few large losses: no even interval


def test_the_calibration_error_is_that_of_a_slow_loop():
    rng = np.random.default_rng(6)
    probs, targets = answers(rng, [60, 40, 50], 3.0)
    found = SampleValues.of(probs, targets).intervals()["ece"]
    errors = [
        expected_calibration_error(p, t, weights=w)
        for p, t, w in (resampled(rng, probs, targets) for _ in range(2000))
    ]
    assert found[1] == pytest.approx(np.quantile(errors, 0.975), rel=0.03)
    assert found[0] < expected_calibration_error(probs, targets) < found[1]
    # where all gaps are clear, the lower bound is the reverse of the upper one; it is lower here
    assert found[0] <= 2 * expected_calibration_error(probs, targets) - found[1] + 0.01


@pytest.mark.parametrize("overconfidence", [1.0, 2.0])
@pytest.mark.parametrize("counts", [[32, 24, 16], [150, 80, 30]])
def test_nine_of_ten_intervals_at_least_hold_the_truth(counts, overconfidence, monkeypatch):
    monkeypatch.setattr(intervals, "N_RESAMPLES", 400)
    rng = np.random.default_rng(11)
    probs, targets = answers(rng, [1000 * n for n in counts], overconfidence)
    truth = [log_loss(probs, targets), brier_score(probs, targets)]
    truth.append(expected_calibration_error(probs, targets))
    held = np.zeros(3)
    for _ in range(200):
        found = SampleValues.of(*answers(rng, counts, overconfidence)).intervals()
        held += [low <= t <= high for t, (low, high) in zip(truth, found.values(), strict=True)]
    assert list(found) == MEASURES
    assert (held / 200 >= 0.9).all(), held


def test_several_labels_have_intervals_around_their_measures():
    rng = np.random.default_rng(2)
    probs = rng.random((120, 4))
    flags = (rng.random((120, 4)) < probs).astype(int)
    evaluation = evaluate(probs, flags, list("abcd"), multi_label=True)
    for name in MEASURES:
        low, high = evaluation.intervals.loc[name]
        assert 0 <= low <= evaluation.summary[name] <= high < 2
        assert high - low < 0.3


def test_the_gaps_add_up_to_the_calibration_error():
    rng = np.random.default_rng(3)
    probs, targets = answers(rng, [50, 30])
    values = SampleValues.of(probs, targets)
    wanted = expected_calibration_error(probs, targets)
    assert np.abs(values.gaps.mean(0)).sum() == pytest.approx(wanted, abs=1e-6)
    assert values.losses.mean() == pytest.approx(log_loss(probs, targets), rel=1e-5)
    flags = (rng.random(probs.shape) < probs).astype(int)
    values = SampleValues.of(probs, flags)
    wanted = expected_calibration_error(probs, flags)
    assert np.abs(values.gaps.mean(0)).sum() == pytest.approx(wanted, abs=1e-6)
    assert values.squares.mean() == pytest.approx(brier_score(probs, flags), rel=1e-5)


@pytest.mark.parametrize("counts", [[1] * 40, [30, 1], [2, 1], [1, 1, 5]])
def test_classes_of_one_image_are_not_certain(counts):
    rng = np.random.default_rng(4)
    probs, targets = answers(rng, counts)
    found = SampleValues.of(probs, targets).intervals()
    for name, measure in zip(MEASURES[:2], (log_loss, brier_score), strict=True):
        low, high = found[name]
        assert low < measure(probs, targets) < high < 20


def test_one_image_or_none_gives_nan_and_the_same_images_the_same_bounds():
    for n in (0, 1):
        found = SampleValues.of(np.full((n, 2), 0.5), np.zeros(n, int)).intervals()
        assert np.isnan(list(found.values())).all()
    one, other = (
        SampleValues.of(*answers(np.random.default_rng(8), [20, 30])).intervals() for _ in "ab"
    )
    assert one == other


def test_answers_that_are_all_alike_have_no_spread():
    low, high = SampleValues.of(np.full((9, 2), 0.5), np.zeros(9, int)).intervals()["log_loss"]
    assert (low, high) == pytest.approx((np.log(2), np.log(2)))


def test_fifty_thousand_images_need_little_memory():
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 10, 50_000)
    values = SampleValues.of(rng.dirichlet(np.ones(10), 50_000).astype(np.float32), targets)
    tracemalloc.start()
    values.intervals()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 150e6  # all resamples at once would be 400 MB of places alone


def test_false_alarms_are_resampled_as_a_loop_does_image_by_image():
    rng = np.random.default_rng(1)
    targets = np.repeat([0, 1], [60, 40])
    known, ood = rng.normal(size=100) + targets, rng.normal(3, 1, 30)
    measured = fpr_at_tpr(known, ood)
    rates = []
    for _ in range(3000):
        drawn = [rng.choice(known[targets == c], (targets == c).sum()) for c in (0, 1)]
        rates.append(fpr_at_tpr(np.concatenate(drawn), rng.choice(ood, 30)))
    found = fpr_interval(known, targets, ood, measured=measured)
    np.testing.assert_allclose(found, np.quantile(rates, [0.025, 0.975]), atol=0.03)


def test_false_alarms_lie_inside_in_nine_of_ten_draws():
    from scipy.stats import norm

    rng, truth = np.random.default_rng(2), norm.sf(norm.ppf(0.05, 2, 1))
    held, targets = 0, np.repeat([0, 1, 2], [40, 30, 30])
    for _ in range(200):
        known, ood = rng.normal(size=100), rng.normal(2, 1, 60)
        low, high = fpr_interval(known, targets, ood, measured=fpr_at_tpr(known, ood))
        held += low <= truth <= high
    assert held >= 180


def test_no_false_alarm_among_twenty_is_no_certainty():
    known, ood = np.linspace(0, 1, 20), np.linspace(5, 6, 8)
    low, high = fpr_interval(known, np.zeros(20, int), ood, measured=0.0)
    assert low == 0
    assert 0.1 < high < 0.2  # as Wilson's
    assert np.isnan(fpr_interval(known, np.zeros(20, int), [], measured=np.nan)).all()


def test_they_stand_in_the_table_and_in_its_text():
    probs, targets = answers(np.random.default_rng(9), [40, 30, 20])
    evaluation = evaluate(probs, targets, list("abc"))
    low, high = evaluation.intervals.loc["ece"]
    assert f"{low:.3f} - {high:.3f}" in repr(evaluation)
    assert f"{low:.3f} - {high:.3f}" in evaluation._repr_html_()
    assert evaluation.to_dict()["intervals"]["ece"] == [low, high]
    chosen = evaluate(probs, targets, list("abc"), measures=["log_loss"])
    assert list(chosen.intervals.index) == ["log_loss"]


def test_false_alarms_at_95_percent_have_an_interval_of_an_evaluation():
    rng = np.random.default_rng(3)
    probs, targets = answers(rng, [40, 30])
    known, ood = rng.normal(size=70), rng.normal(2, 1, 25)
    evaluation = with_ood_scores(evaluate(probs, targets, ["a", "b"]), known, ood, 1.5, targets)
    assert set(evaluation.summary.index) - set(evaluation.intervals.index) == {
        *("n", "accuracy_low", "accuracy_high")
    }
    wanted = fpr_interval(known, targets, ood, measured=fpr_at_tpr(known, ood))
    assert tuple(evaluation.intervals.loc["fpr_at_95_tpr"]) == wanted
