import math

import numpy as np
import pytest
from scipy import stats

from learnkit.errors import EvaluationError, UncertaintyError
from learnkit.uncertainty.conformal import conformal_quantile, lac_scores, prediction_sets
from learnkit.uncertainty.ood import softmax


def draw(n, n_classes=4, seed=0, miscalibrated=2.0):
    """Probabilities that are too sure of themselves, and the truth."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, n_classes)) * 1.5
    true_probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    cumulative = true_probs.cumsum(1)
    targets = (rng.uniform(size=(n, 1)) > cumulative).sum(1).clip(max=n_classes - 1)
    return softmax(logits * miscalibrated), targets


def sets_of(probs, targets, new, alpha):
    """The quantile of calibration images, and the sets of new ones by it."""
    quantile = conformal_quantile(lac_scores(probs, targets), alpha)
    return quantile, prediction_sets(new, quantile)


@pytest.mark.parametrize("n", [1, 8, 9, 10, 99, 100])
@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.5])
def test_the_quantile_is_the_sorted_score_of_that_rank(n, alpha):
    scores = np.random.default_rng(n).uniform(size=n)
    rank = math.ceil(round((n + 1) * (1 - alpha), 9))
    expected = sorted(scores)[rank - 1] if rank <= n else math.inf
    assert conformal_quantile(scores, alpha) == expected


def test_the_next_score_counts_as_the_heaviest():
    scores, weights = np.arange(100.0), np.r_[np.ones(99), 4]
    assert conformal_quantile(scores, 0.1, weights=weights) == 96.0  # 2 + 4 above, of 0.1 * 107 - 4
    assert conformal_quantile(scores, 0.1) == 90.0


def test_no_scores_leave_every_class_in():
    assert conformal_quantile([], 0.1) == math.inf
    _, sets = sets_of(np.zeros((0, 3)), [], [[0.9, 0.1, 0.0]], 0.1)
    assert sets.all()


def test_nonconformity_is_the_probability_missing_from_the_truth():
    probs, targets = draw(50)
    assert lac_scores(probs, targets).tolist() == pytest.approx(
        [1 - row[t] for row, t in zip(probs.tolist(), targets, strict=True)]
    )


@pytest.mark.parametrize(("n", "alpha"), [(19, 0.1), (60, 0.2)])
def test_coverage_is_at_least_what_is_promised(n, alpha):
    """For continuous scores the share covered is ceil((n + 1)(1 - alpha)) / (n + 1) on average.

    The likeliest class always being in the set can only add to it.
    """
    rounds, covered, exact = 800, 0, 0
    probs, targets = draw((n + 1) * rounds)
    scores = lac_scores(probs, targets)
    for i in range(rounds):
        part = slice(i * (n + 1), i * (n + 1) + n)
        quantile, sets = sets_of(probs[part], targets[part], probs[part.stop][None], alpha)
        covered += bool(sets[0, targets[part.stop]])
        exact += scores[part.stop].item() <= quantile
    share = math.ceil(round((n + 1) * (1 - alpha), 9)) / (n + 1)
    assert stats.binomtest(covered, rounds, share, alternative="less").pvalue > 0.001
    assert stats.binomtest(exact, rounds, share).pvalue > 0.001
    assert exact <= covered


def test_sets_grow_with_the_promise_and_hold_the_likeliest_class():
    probs, targets = draw(300)
    before = np.zeros_like(probs, dtype=bool)
    for alpha in (0.9, 0.5, 0.2, 0.05):
        _, sets = sets_of(probs, targets, probs, alpha)
        assert np.take_along_axis(sets, probs.argmax(1)[:, None], axis=1).all()
        assert (sets >= before).all()
        before = sets
    assert prediction_sets(probs, -1.0).sum(1).tolist() == [1] * 300


def test_weights_that_are_all_alike_change_nothing():
    scores = lac_scores(*draw(100))
    assert conformal_quantile(scores, 0.1, weights=[3.0] * 100) == conformal_quantile(scores, 0.1)


def test_no_images_give_no_sets():
    assert prediction_sets(np.zeros((0, 3)), 0.5).shape == (0, 3)


def test_bad_input_is_named():
    with pytest.raises(UncertaintyError, match=r"`alpha` is 1\.0; give a share between 0 and 1"):
        conformal_quantile([1.0], 1.0)
    with pytest.raises(UncertaintyError, match="`scores` holds nan in row 0"):
        conformal_quantile([math.nan], 0.1)
    with pytest.raises(UncertaintyError, match="`quantile` is nan"):
        prediction_sets([[0.5, 0.5]], math.nan)
    with pytest.raises(EvaluationError, match=r"pass `logits.softmax\(dim=1\)`"):
        lac_scores([[3.0, 0.5]], [0])
