"""McNemar's test against scipy, closed forms and a simulation."""

import numpy as np
import pytest
from scipy.stats import binomtest

from learnkit.errors import EvaluationError
from learnkit.evaluation.comparison import Comparison
from learnkit.evaluation.evaluate import evaluate


def probs(labels, n_classes=3):
    return np.eye(n_classes)[labels] * 0.8 + 0.2 / n_classes


TRUTH = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2, 2])
FIRST = np.array([0, 0, 1, 1, 1, 2, 2, 2, 0, 0])  # wrong at 2, 5, 8, 9
SECOND = np.array([0, 0, 0, 1, 1, 1, 2, 0, 2, 0])  # wrong at 7, 9
NAMES = ["a", "b", "c"]


def test_counts_are_those_of_the_images():
    found = evaluate(probs(FIRST), TRUTH, NAMES).compare(evaluate(probs(SECOND), TRUTH, NAMES))
    assert found == Comparison(both=5, only_first=1, only_second=3, neither=1)
    assert found.n == 10
    assert found.difference == pytest.approx(0.2)


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (1, 0), (0, 6), (5, 5), (3, 14), (40, 61)])
def test_the_p_value_is_the_exact_binomial_one(lost, gained):
    found = Comparison(both=7, only_first=lost, only_second=gained, neither=2)
    n = lost + gained
    assert found.p_value == pytest.approx(binomtest(lost, n).pvalue if n else 1.0)


def test_the_interval_is_that_of_the_paper():
    found = Comparison(both=50, only_first=3, only_second=14, neither=33)
    p12, p21 = 15 / 102, 4 / 102
    half = 1.959964 * np.sqrt((p12 + p21 - (p12 - p21) ** 2) / 102)
    assert found.interval == pytest.approx((p12 - p21 - half, p12 - p21 + half))


def test_the_interval_holds_the_difference_as_often_as_it_says():
    rng, cells = np.random.default_rng(0), [0.7, 0.05, 0.15, 0.1]
    draws = (Comparison(*map(int, rng.multinomial(120, cells))) for _ in range(2000))
    hit = np.mean([low <= 0.1 <= high for low, high in (one.interval for one in draws)])
    assert 0.93 < hit < 0.98


def test_bounds_stay_within_all_differences():
    assert Comparison(0, 0, 3, 0).interval[1] == 1.0
    assert Comparison(0, 3, 0, 0).interval[0] == -1.0


def test_the_other_way_round_is_the_opposite():
    one, other = Comparison(5, 1, 9, 2), Comparison(5, 9, 1, 2)
    assert one.p_value == other.p_value
    assert one.interval == pytest.approx(tuple(-x for x in reversed(other.interval)))


def test_the_verdict_says_which_is_better_or_that_nobody_can_tell():
    assert str(Comparison(80, 3, 17, 0)) == (
        "The second is better: the second is right for 17 images that the first gets wrong, and "
        "wrong for 3 that it gets right (+14.0 points, 95 % interval +5.1 to +22.3, p = 0.0026)."
    )
    assert Comparison(80, 17, 3, 0).verdict.startswith("The second is worse: ")
    assert Comparison(80, 3, 5, 12).verdict.startswith("No difference can be told on 100 images: ")
    assert "second wrong" in Comparison(80, 3, 5, 12)._repr_html_()


def test_classes_are_compared_by_name():
    turned = evaluate(probs(2 - SECOND), 2 - TRUTH, NAMES[::-1])
    found = evaluate(probs(FIRST), TRUTH, NAMES).compare(turned)
    assert (found.only_first, found.only_second) == (1, 3)
    more = evaluate(probs(SECOND, 4), TRUTH, [*NAMES, "new"])
    assert evaluate(probs(FIRST), TRUTH, NAMES).compare(more) == found


def test_several_labels_count_where_all_are_right():
    truth = np.array([[1, 0], [1, 1], [0, 0]])
    first, second = np.array([[0.9, 0.1], [0.9, 0.2], [0.1, 0.6]]), np.abs(truth - 0.1)
    one, other = (evaluate(p, truth, ["a", "b"], multi_label=True) for p in (first, second))
    assert one.compare(other) == Comparison(1, 0, 2, 0)


@pytest.mark.parametrize("labels", [TRUTH[:-1], TRUTH[::-1], (TRUTH + 1) % 3])
def test_other_samples_are_refused(labels):
    one, other = evaluate(probs(FIRST), TRUTH, NAMES), evaluate(probs(labels), labels, NAMES)
    with pytest.raises(EvaluationError, match="the evaluations are of other samples: 10 and "):
        one.compare(other)


def test_what_is_no_evaluation_is_refused():
    one = evaluate(probs(FIRST), TRUTH, NAMES)
    with pytest.raises(EvaluationError, match="does not say which samples are right; compare two"):
        one.compare(FIRST)
    with pytest.raises(EvaluationError, match="of 0 and 0 images; compare two of the same ones, a"):
        Comparison.of(np.zeros(0, bool), np.zeros(0, bool))
