import math

import pytest

from learnkit.errors import OptimizeError
from learnkit.evaluation.measures import paired_interval
from learnkit.optimize.gates import (
    Gates,
    accuracy_verdict,
    agreement_verdict,
    failures,
    finite_verdict,
    passes,
    ratio_text,
    speed_verdict,
)

GATES = Gates()


def exact_coverage(n, p_lost, p_gained):
    """How often the interval holds the true change, summed over every possible outcome."""
    covered = 0.0
    for lost in range(n + 1):
        for gained in range(n + 1 - lost):
            same = n - lost - gained
            ways = math.comb(n, lost) * math.comb(n - lost, gained)
            chance = ways * p_lost**lost * p_gained**gained * (1 - p_lost - p_gained) ** same
            low, high = paired_interval(lost, gained, n)
            covered += chance * (low <= p_gained - p_lost <= high)
    return covered


@pytest.mark.parametrize(("p_lost", "p_gained"), [(0.02, 0.01), (0.1, 0.02), (0.05, 0.05)])
def test_the_paired_interval_holds_the_truth_as_often_as_it_says(p_lost, p_gained):
    assert exact_coverage(60, p_lost, p_gained) > 0.945


def test_the_paired_interval_is_symmetric_and_shrinks_with_more_images():
    low, high = paired_interval(3, 1, 200)
    assert paired_interval(1, 3, 200) == (-high, -low)
    assert low < -2 / 200 < high
    wide, narrow = (paired_interval(0, 0, n) for n in (50, 5000))
    assert wide[0] < narrow[0] < 0 < narrow[1] < wide[1]
    assert all(map(math.isnan, paired_interval(0, 0, 0)))


@pytest.mark.parametrize(
    ("n_same", "n", "passed", "proven"),
    [
        (990, 1000, True, False),
        (989, 1000, False, None),
        (600, 600, True, True),
        (50, 50, True, False),
    ],
)
def test_agreement_is_judged_by_its_share_and_too_few_images_are_named(n_same, n, passed, proven):
    verdict = agreement_verdict(n_same, n, GATES)
    assert verdict.passed is passed
    assert f"of {n:,} images" in verdict.found
    advice = "give 500 or more" if n < 500 else "give more"
    assert verdict.note.endswith(f"cannot prove it: {advice}") is (passed and not proven)


@pytest.mark.parametrize(
    ("lost", "gained", "n", "passed"),
    [(5, 0, 1000, True), (6, 0, 1000, False), (9, 4, 1000, True), (0, 9, 1000, True)],
)
def test_accuracy_may_drop_by_half_a_point_and_gains_count(lost, gained, n, passed):
    assert accuracy_verdict(lost, gained, n, GATES).passed is passed


def test_one_lost_image_of_few_is_named_as_what_it_is():
    verdict = accuracy_verdict(1, 0, 100, GATES)
    assert verdict.passed is False
    assert "one image of 100 is 1.00 points: give 500 or more" in verdict.note


def test_every_batch_size_must_be_fast_enough():
    assert speed_verdict({1: 1.1, 16: 4.0}, "eager torch", GATES).passed is True
    slow = speed_verdict({1: 1.09, 16: 4.0}, "eager torch", GATES)
    assert slow.passed is False
    assert slow.rule == "at least 1.1x of eager torch"


def test_a_disturbed_measurement_decides_nothing_whatever_the_ratio():
    for ratio in (1777.0, 0.5):
        verdict = speed_verdict({1: ratio, 16: ratio}, "eager torch", GATES, "it waited")
        assert (verdict.passed, verdict.word) == (None, "not decided")
        assert verdict.note.startswith("others used the machine while it was timed (it waited)")
    assert speed_verdict({}, "eager torch", GATES, "it waited").word == "not judged"
    assert speed_verdict({1: 2.0}, "", GATES, "it waited").word == "not judged"


def test_a_disturbed_measurement_says_so_where_nothing_is_asked_of_it_too():
    for reference, gates in (("eager torch", Gates(speed=None)), ("", GATES)):
        verdict = speed_verdict({1: 1777.0}, reference, gates, "it waited")
        assert (verdict.is_disturbed, verdict.word) == (True, "not judged")
        assert "others used the machine while it was timed (it waited)" in str(verdict)
        assert not speed_verdict({1: 2.0}, reference, gates).is_disturbed


@pytest.mark.parametrize("ratio", [0.0012, 0.957, 1.0, 1.0999, 1.1, 2.3, 9.99, 10.0, 13.9, 1777.4])
def test_a_ratio_is_told_in_two_digits_and_never_as_more_than_it_is(ratio):
    text = ratio_text(ratio)
    value = float(text[:-1])
    assert ratio * 0.9 < value <= ratio
    assert len(f"{value:.9f}".replace(".", "").strip("0")) <= 2
    assert ratio_text(value) == text  # two digits stay as they are


def test_what_only_saves_space_is_not_judged_by_speed():
    assert speed_verdict({1: 0.5}, "", GATES).passed is None


def test_one_broken_image_is_too_many():
    assert finite_verdict(0, 9).passed is True
    assert finite_verdict(1, 9).passed is False


def test_a_gate_that_is_off_or_without_images_judges_nothing_and_passes():
    off = Gates(agreement=None, accuracy_drop=None, speed=None)
    verdicts = [
        agreement_verdict(0, 9, off),
        accuracy_verdict(9, 0, 9, off),
        speed_verdict({1: 0.1}, "eager torch", off),
        agreement_verdict(0, 0, GATES),
        accuracy_verdict(0, 0, 0, GATES),
        speed_verdict({}, "eager torch", GATES),
    ]
    assert {verdict.passed for verdict in verdicts} == {None}
    assert passes(verdicts)
    assert failures(verdicts) == ""


def test_failures_name_what_was_found_and_asked():
    verdicts = [agreement_verdict(9, 10, GATES), speed_verdict({1: 2.0}, "eager torch", GATES)]
    assert not passes(verdicts)
    assert failures(verdicts).startswith("agreement: FAILED (90.00% of 10 images")
    assert "asked: at least 99.0%" in failures(verdicts)
    assert "speed" not in failures(verdicts)


@pytest.mark.parametrize("limits", [{"agreement": 1.1}, {"accuracy_drop": -0.1}, {"speed": -1}])
def test_limits_outside_their_range_are_refused(limits):
    with pytest.raises(OptimizeError, match=f"gates.{next(iter(limits))}"):
        Gates(**limits)
