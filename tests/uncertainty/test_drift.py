import bisect
import json

import numpy as np
import pytest

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


def pieces(above):
    """Middles and widths of the intervals in which all bets are constant."""
    edges = np.unique([0, 1, *drift._SHARE, *(1 - drift._SHARE), *above])
    return (edges[1:] + edges[:-1]) / 2, np.diff(edges)


@pytest.mark.parametrize("marks", [0.001, 0.3, 1.0])
def test_every_bet_is_fair(marks):
    above = np.linspace(marks, 1, len(drift._ABOVE))
    middles, widths = pieces(above)
    assert widths @ bets(middles, above) == pytest.approx(np.ones(N_BETS))
    assert (bets(middles, above) > 0).all()


def test_alarms_over_a_million_images_without_drift_are_at_most_as_many_as_promised(rng):
    n_runs, n_images, bound = 200, 5_000, 1_000
    evidence, n_alarms = np.zeros((n_runs, N_BETS)), 0
    for _ in range(n_images):
        evidence = add_evidence(evidence, bets(rng.random(n_runs), rng.random(len(drift._ABOVE))))
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
    before, above = rng.random(N_BETS) * 50, rng.random(len(drift._ABOVE))
    middles, widths = pieces(above)
    after = widths @ add_evidence(before, bets(middles, above)).mean(1)
    assert after == pytest.approx(before.mean() + 1)


def test_bets_on_what_is_above_a_mark_win_exactly_there(rng):
    test = DriftTest.of(rng.normal(size=200))
    stream = np.sort(rng.normal(1, size=300))[rng.permutation(300)]
    for score in stream:
        marks = test.marks
        before, test = test, test.update(score)
        p_value = before.p_value(score)
        won = bets(np.array([p_value]), before._above_marks())[0, -len(marks) :] > 1
        assert (won == (score > marks)).all() or np.isin(score, marks).any()
    assert test.n_marked == 400


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
        ({"weights": [1.0]}, "`weights` has 1 values for 2 rows"),
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
