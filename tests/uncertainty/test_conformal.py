import json
import math

import numpy as np
import pytest
import torch
from scipy import stats

from learnkit.errors import EvaluationError, UncertaintyError
from learnkit.uncertainty import conformal
from learnkit.uncertainty.conformal import conformal_quantile, fit_prediction_sets, prediction_sets


def draw(n, n_classes=4, seed=0, miscalibrated=2.0):
    """Probabilities that are too sure of themselves, and the truth."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, n_classes)) * 1.5
    true_probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    cumulative = true_probs.cumsum(1)
    targets = (rng.uniform(size=(n, 1)) > cumulative).sum(1).clip(max=n_classes - 1)
    return torch.from_numpy(logits * miscalibrated).softmax(1), targets


def slow_aps(row, truth):
    return sum(p for p in row if p >= row[truth])


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
    rule = fit_prediction_sets(np.zeros((0, 3)), [], alpha=0.1)
    assert rule([[0.9, 0.1, 0.0]]).all()
    assert rule.statement == "0 images are too few for 0.9: sets hold every class"


def test_lac_is_the_probability_missing_and_aps_what_is_at_least_as_likely():
    probs, targets = draw(50)
    assert conformal.lac_scores(probs, targets).tolist() == pytest.approx(
        [1 - row[t] for row, t in zip(probs.tolist(), targets, strict=True)]
    )
    expected = [slow_aps(row, t) for row, t in zip(probs.tolist(), targets, strict=True)]
    assert conformal.aps_scores(probs, targets).tolist() == pytest.approx(expected)


def test_equally_likely_classes_have_equal_scores_whatever_their_order():
    probs = [[0.25, 0.5, 0.25], [1 / 3] * 3]
    for target in (0, 2):
        assert conformal.aps_scores(probs, [target] * 2).tolist() == pytest.approx([1.0, 1.0])
    assert prediction_sets(probs, 0.7, method="aps").tolist() == [
        [False, True, False],
        [True, False, False],
    ]


@pytest.mark.parametrize("method", ["lac", "aps"])
@pytest.mark.parametrize(("n", "alpha"), [(19, 0.1), (60, 0.2)])
def test_coverage_is_at_least_what_is_promised(method, n, alpha):
    """For continuous scores the share covered is ceil((n + 1)(1 - alpha)) / (n + 1) on average.

    The likeliest class always being in the set can only add to it.
    """
    rounds, covered, exact = 800, 0, 0
    probs, targets = draw((n + 1) * rounds)
    scores = conformal._of_targets(conformal._table(method), probs, targets)
    for i in range(rounds):
        part = slice(i * (n + 1), i * (n + 1) + n)
        rule = fit_prediction_sets(probs[part], targets[part], alpha=alpha, method=method)
        covered += bool(rule(probs[part.stop][None])[0, targets[part.stop]])
        exact += scores[part.stop].item() <= rule.quantile
    share = math.ceil(round((n + 1) * (1 - alpha), 9)) / (n + 1)
    assert stats.binomtest(covered, rounds, share, alternative="less").pvalue > 0.001
    if method == "lac":  # the sums of aps pile up at 1, where scores tie
        assert stats.binomtest(exact, rounds, share).pvalue > 0.001
    assert exact <= covered


@pytest.mark.parametrize("method", ["lac", "aps"])
def test_sets_grow_with_the_promise_and_hold_the_likeliest_class(method):
    probs, targets = draw(300)
    before = torch.zeros_like(probs, dtype=torch.bool)
    for alpha in (0.9, 0.5, 0.2, 0.05):
        sets = fit_prediction_sets(probs, targets, alpha=alpha, method=method)(probs)
        assert sets.gather(1, probs.argmax(1, keepdim=True)).all()
        assert (sets >= before).all()
        before = sets
    assert prediction_sets(probs, -1.0).sum(1).tolist() == [1] * 300


def test_weights_and_the_rule_as_data():
    probs, targets = draw(100)
    plain = fit_prediction_sets(probs, targets)
    assert fit_prediction_sets(probs, targets, weights=[3.0] * 100) == plain
    assert json.loads(json.dumps(plain.to_dict(), allow_nan=False))["n"] == 100
    assert "at least 0.9 of the images like these 100" in plain.statement
    few = fit_prediction_sets(probs[:5], targets[:5])
    assert few.to_dict()["quantile"] is None


def test_no_images_give_no_sets():
    assert prediction_sets(np.zeros((0, 3)), 0.5).shape == (0, 3)


def test_bad_input_is_named():
    with pytest.raises(UncertaintyError, match=r"`alpha` is 1\.0; give a share between 0 and 1"):
        conformal_quantile([1.0], 1.0)
    with pytest.raises(UncertaintyError, match="`scores` holds nan in row 0"):
        conformal_quantile([math.nan], 0.1)
    with pytest.raises(UncertaintyError, match="`method` is 'raps'; choose from lac, aps"):
        fit_prediction_sets([[0.5, 0.5]], [0], method="raps")
    with pytest.raises(UncertaintyError, match="`quantile` is nan"):
        prediction_sets([[0.5, 0.5]], math.nan)
    with pytest.raises(EvaluationError, match=r"pass `logits.softmax\(dim=1\)`"):
        fit_prediction_sets([[3.0, 0.5]], [0])
