import numpy as np
import pytest
import sklearn.metrics as skm
import torch

from learnkit.errors import EvaluationError
from learnkit.evaluation import measures
from learnkit.evaluation.confusion import confusion_matrix


def random_probs(n, n_classes, seed=0, sharpness=2.0):
    logits = np.random.default_rng(seed).normal(size=(n, n_classes)) * sharpness
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


@pytest.mark.parametrize("k", [1, 2, 3, 7])
def test_top_k_equals_scikit_learns(k):
    probs = random_probs(200, 8)
    targets = np.random.default_rng(1).integers(0, 8, 200)
    expected = skm.top_k_accuracy_score(targets, probs, k=k, labels=range(8))
    assert measures.top_k_accuracy(probs, targets, k) == pytest.approx(expected)


def test_top_1_is_the_accuracy_even_with_ties():
    probs = np.full((4, 4), 0.25)
    targets = np.arange(4)
    assert measures.top_k_accuracy(probs, targets, 1) == np.mean(probs.argmax(1) == targets) == 0.25
    assert measures.top_k_accuracy(probs, targets, 2) == 0.5


def test_k_above_the_number_of_classes_is_that_number():
    assert measures.top_k_accuracy(random_probs(9, 3), np.zeros(9, int), 50) == 1.0


def test_log_loss_equals_scikit_learns():
    probs = random_probs(300, 5)
    targets = np.random.default_rng(1).integers(0, 5, 300)
    expected = skm.log_loss(targets, probs, labels=range(5))
    assert measures.log_loss(probs, targets) == pytest.approx(expected)


def test_a_confident_error_costs_what_the_clip_allows():
    probs = torch.tensor([[0.0, 1.0]])
    assert measures.log_loss(probs, [0]) == pytest.approx(-np.log(np.finfo(np.float32).eps))
    assert measures.log_loss(probs, [1]) == 0.0


def test_multilabel_log_loss_is_the_mean_of_the_columns():
    probs = np.random.default_rng(0).uniform(0.01, 0.99, (40, 3))
    flags = np.random.default_rng(1).integers(0, 2, (40, 3))
    expected = np.mean([skm.log_loss(flags[:, c], probs[:, c]) for c in range(3)])
    assert measures.log_loss(probs, flags) == pytest.approx(expected)


def test_brier_sums_the_squares_over_the_classes():
    assert measures.brier_score([[0.7, 0.2, 0.1]], [0]) == pytest.approx(0.09 + 0.04 + 0.01)
    assert measures.brier_score([[1.0, 0.0]], [1]) == 2.0
    assert measures.brier_score([[1.0, 0.0]], [0]) == 0.0


def test_brier_is_twice_scikit_learns_two_class_form():
    probs = random_probs(100, 2)
    targets = np.random.default_rng(1).integers(0, 2, 100)
    expected = 2 * skm.brier_score_loss(targets, probs[:, 1], scale_by_half=True)
    assert measures.brier_score(probs, targets) == pytest.approx(expected)


def test_multilabel_brier_equals_a_slow_loop():
    probs = np.random.default_rng(0).uniform(size=(20, 3)).astype("float32")
    flags = np.random.default_rng(1).integers(0, 2, (20, 3))
    rows = [sum((float(probs[i, c]) - flags[i, c]) ** 2 for c in range(3)) for i in range(20)]
    assert measures.brier_score(probs, flags) == pytest.approx(np.mean(rows))


def test_ece_of_a_predictor_right_seven_times_in_ten_at_nine_tenths_is_a_fifth():
    probs = np.tile([0.9, 0.1], (10, 1))
    assert measures.expected_calibration_error(probs, [0] * 7 + [1] * 3) == pytest.approx(0.2)


def test_ece_weighs_the_bins_by_their_samples():
    # 30 samples at 0.95, all right (gap 0.05); 10 at 0.55, none right (gap 0.55)
    probs = np.array([[0.95, 0.05]] * 30 + [[0.55, 0.45]] * 10)
    expected = 0.75 * 0.05 + 0.25 * 0.55
    error = measures.expected_calibration_error(probs, [0] * 30 + [1] * 10)
    assert error == pytest.approx(expected)


def test_bins_are_closed_on_the_right():
    probs = [[0.6, 0.4], [0.6 + 1e-9, 0.4 - 1e-9], [1.0, 0.0]]
    bins = measures.calibration_bins(probs, [0, 0, 0], n_bins=5)
    assert bins.n.tolist() == [0, 0, 1, 1, 1]  # 0.6 belongs to (0.4, 0.6], 1.0 to (0.8, 1.0]
    assert np.isnan(bins.accuracy[0])


def test_the_first_bin_holds_zero():
    bins = measures.calibration_bins(np.array([[0.0, 0.2, 1.0]]), np.array([[0, 1, 1]]), n_bins=5)
    assert bins.n.tolist() == [2, 0, 0, 0, 1]
    assert bins.accuracy[0] == 0.5
    assert bins.confidence[0] == pytest.approx(0.1)


def test_ece_equals_a_slow_loop_over_fifteen_bins():
    probs = random_probs(500, 4)
    targets = np.random.default_rng(1).integers(0, 4, 500)
    confidence, right = probs.max(1), probs.argmax(1) == targets
    error = 0.0
    for i in range(15):
        inside = (confidence > i / 15) & (confidence <= (i + 1) / 15)
        if inside.any():
            error += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    assert measures.expected_calibration_error(probs, targets) == pytest.approx(error)


@pytest.mark.parametrize("n_right", [0, 1, 37, 50])
def test_the_wilson_interval_solves_its_defining_equation(n_right):
    # its ends are the shares p for which n_right lies exactly z standard errors away
    for p in measures.wilson_interval(n_right, 50, z=1.96):
        if 0 < p < 1:
            assert abs(n_right / 50 - p) == pytest.approx(1.96 * np.sqrt(p * (1 - p) / 50))


def test_a_class_without_samples_has_no_rates_and_no_share_in_the_mean():
    matrix = confusion_matrix([0, 0, 1, 1], [0, 1, 1, 2], 3)
    rates = measures.precision_recall_f1(matrix)
    assert np.isnan([rates.precision[2], rates.recall[2], rates.f1[2]]).all()
    assert rates.macro().recall == 0.5
    assert measures.balanced_accuracy(matrix) == 0.5


def test_a_class_never_predicted_has_precision_zero():
    rates = measures.precision_recall_f1(confusion_matrix([0, 1], [0, 0], 2))
    assert rates.precision.tolist() == [0.5, 0.0]
    assert rates.f1[1] == 0.0


def test_no_samples_give_nan_everywhere():
    empty = np.zeros((0, 3))
    for measure in (measures.log_loss, measures.brier_score, measures.top_k_accuracy):
        assert np.isnan(measure(empty, []))
    assert np.isnan(measures.expected_calibration_error(empty, []))
    assert np.isnan(measures.accuracy(np.zeros((3, 3))))
    assert np.isnan(measures.wilson_interval(0, 0)).all()


@pytest.mark.parametrize(
    ("probs", "message"),
    [
        ([[0.5, 0.5], [3.0, -1.0]], r"row 1 sums to 2; .* `logits.softmax\(dim=1\)`"),
        ([[2.0, -1.0]], r"`probs` holds 2 in row 0; probabilities lie in 0..1"),
        ([[0.5, 0.5], [np.nan, 1.0]], "`probs` holds nan in row 1; every value must be finite"),
        ([[0.5, 0.5], [np.inf, 1.0]], "`probs` holds inf in row 1"),
        ([0.5, 0.5], r"`probs` has shape \(2,\); give one row per sample"),
        ([[0.5, 0.5]] * 3, "`probs` has 3, `targets` has 2 rows"),
    ],
)
def test_what_is_not_a_probability_is_refused(probs, message):
    with pytest.raises(EvaluationError, match=message):
        measures.log_loss(probs, [0, 1])


@pytest.mark.parametrize("several_labels", [False, True])
def test_a_sample_of_weight_three_counts_like_three(several_labels):
    probs = random_probs(50, 4)
    rng = np.random.default_rng(1)
    targets = rng.integers(0, 2, (50, 4)) if several_labels else rng.integers(0, 4, 50)
    weights = np.array([3] * 10 + [1] * 40)
    repeated = np.repeat(probs, weights, 0), np.repeat(targets, weights, 0)
    for measure in (
        measures.log_loss,
        measures.brier_score,
        measures.expected_calibration_error,
    ):
        assert measure(probs, targets, weights=weights) == pytest.approx(measure(*repeated))
        assert measure(probs, targets, weights=weights / 7) == pytest.approx(measure(*repeated))


@pytest.mark.parametrize("weights", [[1.0], [1.0, 0.0], [[1.0, 1.0]], [1.0, np.nan]])
def test_weights_are_one_above_zero_per_row(weights):
    with pytest.raises(EvaluationError, match="for 2 rows; give one above 0 per row"):
        measures.log_loss([[0.5, 0.5]] * 2, [0, 1], weights=weights)
