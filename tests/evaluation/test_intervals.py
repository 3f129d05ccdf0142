"""Intervals: against closed forms, slow solutions, and how often they hold the truth."""

import numpy as np
import pytest

from learnkit.evaluation.confusion import confusion_matrix
from learnkit.evaluation.evaluate import evaluate
from learnkit.evaluation.intervals import auroc_interval, class_intervals, mean_intervals
from learnkit.evaluation.measures import (
    Inspection,
    inspection,
    precision_recall_f1,
    wilson_interval,
)


def test_intervals_of_a_class_are_wilsons_of_its_counts():
    matrix = np.array([[8, 2], [1, 4]])
    found = class_intervals(matrix)
    assert found["recall"][0] == pytest.approx(wilson_interval(8, 10))
    assert found["precision"][1] == pytest.approx(wilson_interval(4, 6))
    low, high = wilson_interval(8, 11)  # TP / (TP + FP + FN)
    assert found["f1"][0] == pytest.approx([2 * low / (1 + low), 2 * high / (1 + high)])


def test_intervals_hold_the_rates_they_are_of():
    rng = np.random.default_rng(0)
    for _ in range(50):
        matrix = rng.integers(0, 9, (4, 4))
        rates = precision_recall_f1(matrix)._asdict()
        for name, bounds in class_intervals(matrix).items():
            known = ~np.isnan(rates[name])
            assert (bounds[known, 0] <= rates[name][known] + 1e-9).all()
            assert (bounds[known, 1] >= rates[name][known] - 1e-9).all()


def test_absent_class_gives_nan_and_takes_no_part():
    matrix = np.array([[5, 1, 0], [0, 4, 0], [0, 0, 0]])
    assert np.isnan(class_intervals(matrix)["recall"][2]).all()
    assert mean_intervals(matrix)["macro_recall"] == pytest.approx(
        mean_intervals(matrix[:2, :2])["macro_recall"]
    )


def test_one_class_of_many_samples_is_wilsons():
    low, high = mean_intervals(np.array([[90, 10], [0, 0]]))["macro_recall"]
    assert (low, high) == pytest.approx(wilson_interval(90, 100))


@pytest.mark.parametrize("name", ["macro_recall", "macro_precision", "macro_f1"])
@pytest.mark.parametrize("n", [60, 400])
def test_means_over_classes_lie_inside_in_19_of_20_draws(name, n):
    rng = np.random.default_rng(7)
    truth = np.array([[0.5, 0.03, 0.02], [0.06, 0.2, 0.04], [0.01, 0.04, 0.1]])
    wanted = getattr(precision_recall_f1(truth * 1e6).macro(), name.removeprefix("macro_"))
    draws = rng.multinomial(n, truth.ravel(), 600).reshape(-1, 3, 3)
    bounds = [mean_intervals(one)[name] for one in draws]
    share = np.mean([low <= wanted <= high for low, high in bounds])
    assert 0.92 <= share <= 0.995


def test_an_area_of_one_has_a_lower_bound_below_one():
    low, high = auroc_interval(1.0, 20, 20)
    assert 0.8 < low < 1
    assert high == 1
    assert np.isnan(auroc_interval(0.7, 0, 5)).all()


@pytest.mark.parametrize("shift", [0.0, 1.0, 2.5])
def test_the_area_lies_inside_in_19_of_20_draws(shift):
    from scipy.stats import mannwhitneyu, norm

    rng, truth = np.random.default_rng(3), norm.cdf(shift / np.sqrt(2))
    held = []
    for _ in range(300):
        known, strange = rng.normal(size=40), rng.normal(shift, 1, 25)
        area = mannwhitneyu(strange, known).statistic / (40 * 25)
        low, high = auroc_interval(area, 40, 25)
        held.append(low <= truth <= high)
    assert np.mean(held) >= 0.92


def test_every_measure_of_an_evaluation_has_an_interval():
    rng = np.random.default_rng(1)
    probs = rng.dirichlet(np.ones(4), 80)
    targets = rng.integers(0, 4, 80)
    evaluation = evaluate(probs, targets, list("abcd"))
    intervals = evaluation.intervals
    assert list(intervals.index) == [
        *("accuracy", "top_3_accuracy", "balanced_accuracy"),
        *("macro_precision", "macro_recall", "macro_f1", "log_loss", "brier_score", "ece"),
    ]
    for name, low, high in intervals.itertuples():
        assert 0 <= low <= evaluation.summary[name] <= high
        assert high <= {"log_loss": 16, "brier_score": 2}.get(name, 1)
    assert tuple(intervals.loc["accuracy"]) == pytest.approx(
        (evaluation.summary["accuracy_low"], evaluation.summary["accuracy_high"])
    )
    own = evaluation.class_intervals
    assert list(own.columns) == [
        f"{name}_{end}" for name in ("precision", "recall", "f1") for end in ("low", "high")
    ]
    matrix = confusion_matrix(targets, probs.argmax(1), 4)
    assert own["recall_low"].iloc[2] == pytest.approx(
        wilson_interval(matrix[2, 2], matrix[2].sum())[0]
    )


def test_inspection_counts_as_a_slow_loop_does():
    rng = np.random.default_rng(0)
    targets, predicted = rng.integers(0, 4, (2, 500))
    flagged, good = rng.random(500) < 0.2, np.array([True, False, True, False])
    escapes = rejects = defects = 0
    for t, p, u in zip(targets, predicted, flagged, strict=True):
        passed = good[p] and not u
        defects += not good[t]
        escapes += not good[t] and passed
        rejects += good[t] and not passed
    wanted = Inspection(defects, escapes, 500 - defects, rejects, int(flagged.sum()))
    assert inspection(targets, predicted, good, flagged) == wanted
