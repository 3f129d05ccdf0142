"""Label noise: what was put in is found again."""

import numpy as np
import pytest

from learnkit.uncertainty.label_noise import (
    LabelNoise,
    false_discovery_rates,
    fit_label_noise,
    label_noise_bounds,
    label_suspects,
    robust_deviations,
)
from learnkit.uncertainty.ood import softmax


def noisy(rate, *, temperature=2.0, n=20_000, seed=0, shares=(0.5, 0.3, 0.2)):
    """(logits, labels, which are wrong): classes as the logits say, labels as the noise does."""
    rng, shares = np.random.default_rng(seed), np.array(shares)
    logits = 6 * rng.normal(size=(n, len(shares)))
    probs = softmax(logits / temperature + np.log(shares))
    true = (rng.random((n, 1)) > probs.cumsum(1)[:, :-1]).sum(1)
    drawn = rng.choice(len(shares), n, p=shares)
    labels = np.where(rng.random(n) < rate, drawn, true)
    return logits, labels, labels != true, shares


@pytest.mark.parametrize("rate", [0.0, 0.02, 0.1, 0.4])
def test_rate_and_temperature_are_found_again(rate):
    logits, labels, wrong, shares = noisy(rate)
    found = fit_label_noise(logits, labels, shares, temperature=4.0)
    assert found.rate == pytest.approx(rate, abs=0.01)
    assert found.temperature == pytest.approx(2.0, rel=0.05)
    expected = found.wrong(found.probs(logits), labels)
    assert expected.mean() == pytest.approx(wrong.mean(), abs=0.005)


def test_false_discovery_rates_are_those_of_the_list():
    logits, labels, wrong, shares = noisy(0.1)
    found = fit_label_noise(logits, labels, shares, temperature=4.0)
    expected = found.wrong(found.probs(logits), labels)
    order = np.argsort(-expected)
    rates = false_discovery_rates(expected[order])
    for k in (200, 1000, 2000, 5000):
        assert rates[k - 1] == pytest.approx(1 - wrong[order][:k].mean(), abs=0.03)


def test_the_likeliest_rate_is_that_of_a_slow_search():
    logits, labels, _, shares = noisy(0.15, n=500)
    found = fit_label_noise(logits, labels, shares, temperature=4.0)

    def loss(rate, temperature):
        own = softmax(logits / temperature + np.log(shares))[np.arange(500), labels]
        return -np.log((1 - rate) * own + rate * shares[labels]).mean()

    grid = [loss(rate, t) for rate in np.linspace(0, 0.5, 51) for t in np.geomspace(0.5, 5.0, 51)]
    assert loss(found.rate, found.temperature) <= min(grid) + 1e-6


def test_an_image_that_cannot_be_of_its_class_has_a_wrong_label_for_sure():
    noise = LabelNoise(0.1, 1.0, np.array([0.5, 0.5]))
    assert noise.wrong(np.array([[0.0, 1.0]]), np.array([0])).tolist() == [1.0]
    assert noise.wrong(np.array([[1.0, 0.0]]), np.array([0])).tolist() == [0.0]
    none = LabelNoise(0.0, 1.0, np.array([0.5, 0.5]))
    assert none.wrong(np.array([[0.0, 1.0]]), np.array([0])).tolist() == [0.0]


def test_suspects_are_those_of_a_slow_loop():
    rng = np.random.default_rng(3)
    probs, labels = rng.dirichlet(np.ones(4), 300), rng.integers(0, 4, 300)
    usual = [probs[labels == c, c].mean() for c in range(4)]
    expected = np.zeros(300, bool)
    for c in range(4):
        own = [i for i in range(300) if labels[i] == c]
        rule = [
            i for i in own if probs[i].argmax() != c and probs[i].max() >= usual[probs[i].argmax()]
        ]
        for i in sorted(rule, key=lambda i: probs[i, c])[: int(0.2 * len(own))]:
            expected[i] = True
    found = label_suspects(probs, labels)
    assert found.tolist() == expected.tolist()
    assert found.any()
    assert label_suspects(probs, labels, most=1.0).sum() > found.sum()


def test_deviations_are_those_of_the_middle_half():
    values = np.array([1.0, 2.0, 3.0, 4.0, 100.0])
    np.testing.assert_allclose(robust_deviations(values), (values - 3) / 1.4826)
    assert robust_deviations(np.ones(4)).tolist() == [0.0] * 4


def test_log_odds_are_those_of_the_probabilities_as_far_as_these_go():
    logits, labels, _, shares = noisy(0.1, n=200)
    noise = LabelNoise(0.1, 2.0, shares)
    own = noise.probs(logits)[np.arange(200), labels]
    seen = own < 0.999
    np.testing.assert_allclose(noise.log_odds(logits, labels)[seen], np.log(own / (1 - own))[seen])
    sure = np.array([[200.0, 0.0, 0.0], [300.0, 0.0, 0.0]])
    assert np.diff(noise.log_odds(sure, np.zeros(2, int)))[0] == pytest.approx(50)


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.3])
def test_the_bounds_hold_the_true_rate_about_as_often_as_they_say(rate):
    held = 0
    for seed in range(20):
        logits, labels, _, shares = noisy(rate, n=250, seed=seed)
        found = fit_label_noise(logits, labels, shares, temperature=4.0)
        low, high = label_noise_bounds(found, logits, labels, temperature=4.0)
        assert low.rate <= found.rate <= high.rate
        held += low.rate <= rate <= high.rate
    assert held >= 17


def test_bounds_are_where_the_likelihood_ratio_says_so():
    logits, labels, _, shares = noisy(0.1, n=1000, seed=5)
    found = fit_label_noise(logits, labels, shares, temperature=4.0)
    low, high = label_noise_bounds(found, logits, labels, temperature=4.0)

    def loss(rate, temperature):
        own = softmax(logits / temperature + np.log(shares))[np.arange(1000), labels]
        return -np.log((1 - rate) * own + rate * shares[labels]).mean()

    least = loss(found.rate, found.temperature)
    for one in (low, high):
        best = min(loss(one.rate, t) for t in np.geomspace(1.0, 4.0, 200))
        assert 2 * 1000 * (best - least) == pytest.approx(3.841, abs=0.3)  # steps of 12 %
