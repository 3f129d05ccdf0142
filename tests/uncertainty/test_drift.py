import bisect
import json
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from scipy import integrate

from learnkit.errors import UncertaintyError
from learnkit.uncertainty import drift
from learnkit.uncertainty.drift import N_BETS, DriftTest, add_evidence, bets


def run(scores, test=None):
    test = DriftTest() if test is None else test
    for score in scores:
        test = test.update(score)
    return test


def n_to_alarm(test, scores, bound):
    """How many images until the evidence reaches `bound`; the number of all if it does not."""
    for n, score in enumerate(scores, 1):
        test = test.update(score)
        if test.level >= bound:
            return n
    return len(scores)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def mean_over_p_values(value, above):
    """The mean of value(p) over uniform p, by quadrature."""
    edges = np.unique([0.0, 1e-12, 1e-9, 1e-6, 1e-3, drift._ZONE, *above, 1 - 1e-6, 1.0])
    return sum(integrate.quad_vec(value, *pair)[0] for pair in pairwise(edges))


def one_bet(above, before, p_value):
    return bets(np.array([p_value]), above, before)[0]


@pytest.mark.parametrize("n", [0, 60, 1000, 8000])
def test_every_bet_is_fair_wherever_the_marks_came_to_lie(n, rng):
    before = drift.shares_above(n)
    for above in (before, np.sort(rng.random(len(before)) ** 3), np.full(len(before), 0.3)):
        mean = mean_over_p_values(partial(one_bet, above, before), above)
        assert mean == pytest.approx(np.ones(N_BETS), abs=2e-4)
        assert (bets(rng.random(100), above, before) > 0).all()


def test_alarms_over_a_million_images_without_drift_are_at_most_as_many_as_promised(rng):
    n_runs, n_images, bound = 200, 5_000, 1_000
    evidence, n_alarms = np.zeros((n_runs, N_BETS)), 0
    before = drift.shares_above(1000)
    for _ in range(n_images):
        above = np.sort(rng.random(len(before)) ** 4)
        evidence = add_evidence(evidence, bets(rng.random(n_runs), above, before))
        over = evidence.mean(1) >= bound
        n_alarms += over.sum()
        evidence[over] = 0
    promised = n_runs * n_images / bound
    assert 0.1 * promised < n_alarms <= promised


def test_within_a_run_alarms_are_as_rare_as_promised_though_the_scores_are_few():
    bound, n_images, n_alarms = 300, 150, 0
    for seed in range(20):
        scores = np.random.default_rng(seed).exponential(size=60 + n_images)
        n_alarms += n_to_alarm(DriftTest.of(scores[:60], seed=seed), scores[60:], bound) < n_images
    # at most 150 / 300 of the runs on average
    assert n_alarms <= 20 * n_images / bound


def test_evidence_less_the_number_of_images_is_a_martingale(rng):
    evidence, marked = rng.random(N_BETS) * 50, drift.shares_above(1000)
    above = np.sort(rng.random(len(marked)))
    after = mean_over_p_values(
        lambda p: add_evidence(evidence, bets(np.array([p]), above, marked)[0]).mean(), above
    )
    assert after == pytest.approx(evidence.mean() + 1, rel=1e-4)


def test_bets_on_new_kinds_go_by_the_marks_a_score_lies_above(rng):
    test = DriftTest.of(rng.normal(size=200))
    stream = rng.normal(1, size=300)
    for score in stream:
        marks, n, scores = test.marks, test.n_marked, test.scores
        before, test = test, test.update(score)
        if np.isin(score, marks):
            continue
        # by hand: the share of scores in the zone now, and what the density makes of it as it was
        edges = [1.0, *(share_above(scores, mark) for mark in marks[::-1]), 0.0]
        then = [1.0, *((int(share * n) + 1) / (n + 1) for share in drift._ABOVE[::-1]), 0.0]
        zone = int((score > marks).sum())
        zones = zip(pairwise(then), pairwise(edges), strict=True)
        total = sum(a**0.1 - b**0.1 for (a, b), (x, y) in zones if x > y)
        density = (then[zone] ** 0.1 - then[zone + 1] ** 0.1) / total
        density /= edges[zone] - edges[zone + 1]
        p_value = np.array([before.p_value(score)])
        found = bets(p_value, before._above_marks(), drift.shares_above(n))[0, :3]
        assert found == pytest.approx([1 + share * (density - 1) for share in (0.01, 0.03, 0.1)])
    assert test.n_marked == 400


def share_above(scores, mark):
    return ((scores > mark).sum() + 1) / (len(scores) + 1)


def test_marks_lie_by_weight_and_stay_among_the_scores():
    heavy = DriftTest.of(np.arange(100.0), np.where(np.arange(100) < 50, 1e-6, 1.0))
    # the weights count 2 for each of the upper half: 12 of 100 are six scores
    assert heavy.marks[[0, -1]].tolist() == [99.0, 93.0]
    light = DriftTest.of(np.arange(100.0), np.where(np.arange(100) < 1, 1.0, 1e-9))
    assert light.marks[-1] == 0.0
    assert run([100.0, 5.0], light).n_images == 2


def test_p_values_are_ranks_among_all_before(rng):
    known, stream = rng.normal(size=30), rng.normal(size=50)
    test, bag = DriftTest.of(known), sorted(known)
    for score in stream:
        above = len(bag) - bisect.bisect_right(bag, score)
        low, high = above / (len(bag) + 1), (above + 1) / (len(bag) + 1)
        assert low <= test.p_value(score) <= high
        test = test.update(score)
        bisect.insort(bag, score)
    assert test.scores.tolist() == bag
    assert test.n_images == 50


def test_p_values_of_images_drawn_alike_are_uniform_though_the_scores_are_few_and_tied():
    found = []
    for draw in range(200):
        scores = np.random.default_rng(draw).integers(0, 4, 12).astype(float)
        test = run(scores[3:-1], DriftTest.of(scores[:3], seed=draw))
        found.append(test.p_value(scores[-1]))
    grid = np.linspace(0.05, 0.95, 19)
    share = (np.array(found)[:, None] <= grid).mean(0)
    assert np.abs(share - grid).max() < 1.63 / 200**0.5  # Kolmogorov's bound at 1 %


def test_ties_lie_anywhere_among_themselves():
    test = DriftTest.of(np.zeros(9))
    found = [DriftTest.of(np.zeros(9), seed=seed).p_value(0.0) for seed in range(200)]
    assert min(found) < 0.05
    assert max(found) > 0.95
    assert test.p_value(1.0) < 0.1
    assert test.p_value(-1.0) > 0.9


def test_weights_count_and_a_new_image_weighs_as_their_mean():
    test = DriftTest.of([0.0, 1.0, 2.0], [2.0, 2.0, 8.0])
    low, high = 8 / 4 / 4, (8 / 4 + 1) / 4
    assert low <= test.p_value(1.5) <= high


def test_a_shift_of_all_scores_is_found_within_tens_of_images():
    found = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        test = run(rng.normal(size=300), DriftTest.of(rng.normal(size=200)))
        found.append(n_to_alarm(test, rng.normal(2, size=300), 20_000))
    assert np.median(found) < 30


def test_a_new_kind_at_two_percent_is_found_within_500_images_after_1000_without():
    found = []
    for seed in range(9):
        rng = np.random.default_rng(seed)
        test = DriftTest.of(rng.normal(size=1000))
        stream = rng.normal(size=1000) + 6 * (rng.random(1000) < 0.02)
        found.append(n_to_alarm(test, stream, 10_000))
    assert np.median(found) < 500


def test_images_that_became_too_usual_are_found_too(rng):
    test = DriftTest.of(rng.normal(size=500))
    assert n_to_alarm(test, rng.normal(-2, size=200), 20_000) < 60


def test_a_test_that_was_written_goes_on_as_if_it_had_not_been_interrupted(rng):
    stream = rng.normal(size=700)
    begun = run(stream[:350], DriftTest.of(rng.normal(size=20), seed=3))
    again = DriftTest.from_dict(json.loads(json.dumps(begun.to_dict())))
    one, other = run(stream[350:], begun), run(stream[350:], again)
    assert one.to_dict() == other.to_dict()
    assert one.stride == 4
    assert len(one.trace) == 175


def test_the_trace_holds_the_highest_evidence_of_every_stride(rng):
    test, levels = DriftTest(), []
    for score in rng.normal(size=600):
        test = test.update(score)
        levels.append(test.level)
    wanted = [max(levels[i : i + test.stride]) for i in range(0, 600, test.stride)]
    assert list(test.trace) == wanted


def test_of_many_scores_a_bounded_number_is_kept_each_alike(rng, monkeypatch):
    monkeypatch.setattr(drift, "MOST_SCORES", 40)
    kept = np.zeros(120)
    for seed in range(20):
        kept[run(np.arange(120.0), DriftTest(seed=seed)).scores.astype(int)] += 1
    assert kept.sum() == 20 * 40
    assert kept[:40].sum() == pytest.approx(20 * 40 / 3, rel=0.2)
    assert len(DriftTest.of(rng.normal(size=90)).scores) == 40


def test_evidence_stays_a_number():
    test = run(np.arange(400.0))  # every score above all before
    assert np.isfinite(test.evidence).all()
    assert test.level > 1e9


def test_the_sign_says_what_became_of_the_images(rng):
    known = DriftTest.of(rng.normal(size=600))
    assert run(rng.normal(1, size=60), known).sign == "images look other than before"
    assert run(rng.normal(-2, size=60), known).sign == "images are more alike than before"
    mixed = rng.normal(size=200) + 9 * (np.arange(200) % 25 == 0)
    assert run(mixed, known).sign == "some images are unlike those before"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": [2.0, 1.0], "weights": [1, 1]}, "`scores` must be sorted, and 8192 at most"),
        ({"weights": [1.0]}, "`weights` has 1 value for 2 rows"),
        ({"evidence": [1.0]}, f"`evidence` must be {N_BETS} numbers of 0 or more"),
        ({"evidence": [-1.0] * N_BETS}, f"`evidence` must be {N_BETS} numbers of 0 or more"),
        ({"n_images": 1.5}, "`n_images` is 1.5; it must be a whole number from 0 on"),
        ({"seed": -1}, "`seed` is -1; it must be a whole number from 0 on"),
        ({"stride": 0}, "`stride` is 0; it must be a whole number from 1 on"),
        ({"marks": [1.0]}, "`marks` must be 10 scores, or none yet"),
        ({"trace": [1.0]}, "`trace` must have one number for every `stride` images"),
        ({"scores": [1.0, float("nan")]}, "`scores` holds nan in row 1"),
        ({"more": 1}, "a drift test needs exactly its own keys; look at ['more']"),
    ],
)
def test_a_damaged_description_is_refused(change, message):
    values = DriftTest.of([1.0, 2.0]).to_dict() | change
    with pytest.raises(UncertaintyError) as caught:
        DriftTest.from_dict(values)
    assert message in str(caught.value)


def test_a_description_that_is_no_dictionary_is_refused():
    with pytest.raises(UncertaintyError, match="look at list"):
        DriftTest.from_dict([])


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_are_refused(score):
    with pytest.raises(UncertaintyError, match="it must be finite: look at that image"):
        DriftTest().update(score)
