"""Promises of threshold, confidences and sets where images are few, unlike, or unevenly spread."""

import re
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from learnkit.continual import derivation
from learnkit.continual.classifier import ContinualClassifier
from learnkit.continual.held_out import HeldOut
from learnkit.continual.standards import _beta_binomial_tail, doubt, flagged_more
from learnkit.errors import StatisticsError
from learnkit.evaluation.measures import expected_calibration_error
from learnkit.uncertainty.threshold import fit_threshold

D = 24


def images(counts, seed, spreads=None, apart=1.0):
    """(features, labels) of normal classes around centers that are always the same."""
    rng = np.random.default_rng(seed)
    centers = np.random.default_rng(99).normal(size=(len(counts), D)) * apart
    spreads = spreads or [1.0] * len(counts)
    rows = [
        center + rng.normal(size=(n, D)) * spread
        for n, center, spread in zip(counts, centers, spreads, strict=True)
    ]
    names = [name for n, name in zip(counts, "abcdef", strict=False) for _ in range(n)]
    return torch.from_numpy(np.concatenate(rows)), names


def learned(data, validation=None, **settings):
    head = ContinualClassifier(D, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        head.extend(*data, validation=validation)
    return head


def promises(head, fresh):
    """(share flagged, ECE, mean size of the sets at alpha .1) of fresh images."""
    features, labels = fresh
    targets = np.array([head.classes.index(name) for name in labels])
    probs = head.scoring.probs(features.numpy()).astype("float64")
    flagged = float(head.is_ood(features).double().mean())
    size = float(head.prediction_sets(features).double().sum(1).mean())
    return flagged, expected_calibration_error(probs, targets), size


@pytest.mark.parametrize("n_learned", [8, 30])
def test_validation_images_never_make_a_promise_worse(n_learned):
    fresh = images([300, 300], 1000, apart=0.6)
    found = {n: [] for n in (0, 1, 3, 10, 30, 100)}
    for seed in range(8):
        for n, rows in found.items():
            validation = images([n, n], 50 + seed, apart=0.6) if n else None
            head = learned(images([n_learned] * 2, seed, apart=0.6), validation)
            rows.append(promises(head, fresh))
    flagged, ece, size = (np.array(list(found.values())).mean(1)).T
    assert (abs(flagged - 0.05) <= abs(flagged[0] - 0.05) + 0.03).all()
    assert (ece <= ece[0] + 0.02).all()
    assert (size <= size[0] + 0.1).all()


def test_one_validation_image_of_a_class_leaves_the_others_evidence():
    data = images([40, 40], 0)
    before, after = learned(data), learned(data, images([1, 1], 7))
    assert after.threshold.value == pytest.approx(before.threshold.value, rel=0.05)
    assert after.temperature == pytest.approx(before.temperature, rel=0.1)
    assert after.threshold.n == before.threshold.n + 2


def test_the_promises_of_a_proof_rest_on_validation_images_alone():
    data = images([40, 40], 0)
    few, enough = (learned(data, images([n, n], 7), guarantee="split").threshold for n in (5, 10))
    assert few.source == "validation and leave-one-out"
    assert "as far as leaving one out is like a fresh image" in few.statement
    assert enough.source == "validation"
    assert enough.n == 20
    assert enough.statement == (
        "at most 0.05 of the images like these 20 are flagged, on average over such calibration "
        "sets"
    )
    uneven = learned(data, (lambda x, y: (x[:30], y[:30]))(*images([30, 0], 7)), guarantee="split")
    assert uneven.threshold.source == "validation and leave-one-out"


def test_the_temperature_is_fitted_by_the_weights_of_the_threshold():
    # most images of the large class are told from the rare ones with ease, by the prior's weights
    counts = [300, 10, 10, 10]
    data, fresh = images(counts, 3, apart=0.5), images([600, 20, 20, 20], 4, apart=0.5)
    head = learned(data)
    held_out = head.calibration
    assert held_out.log_loss_after <= min(
        _log_loss(head, t) for t in head.temperature * np.array([0.8, 0.9, 1.1, 1.25])
    )
    of_prior = head.knowledge.derived.linear.temperature  # every class alike
    logits = head(fresh[0]).double() * head.temperature
    targets = np.array([head.classes.index(name) for name in fresh[1]])
    by = [(logits / t).softmax(1).numpy() for t in (head.temperature, of_prior)]
    ours, uniform = (expected_calibration_error(probs, targets) for probs in by)
    assert ours < uniform


def _log_loss(head, temperature):
    """Weighted held-out log loss at another temperature."""
    captured = {}

    def catch(linear, held_out):
        captured["held_out"] = held_out
        return head.calibration

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(derivation, "_calibrated", catch)
        knowledge = head.knowledge
        derivation.derive(knowledge.statistics, knowledge.validation, knowledge.settings)
    held_out = captured["held_out"]
    logits = held_out.logits / temperature
    logits = logits - logits.max(1, keepdims=True)
    log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    rows = np.arange(len(logits))
    return -float(held_out.weights @ log_probs[rows, held_out.labels])


def test_a_temperature_that_helps_nothing_says_so(monkeypatch):
    fit = derivation.TemperatureFit(3.0, "leave-one-out", 9, 1.0, 0.9, 0.3, 0.4, 0.1, 0.2)
    monkeypatch.setattr(derivation, "_calibrated", lambda *_: fit)
    head = ContinualClassifier(D)
    report = head.extend(*images([20, 20], 0))
    assert any(
        "the temperature 3 makes confidences no better than 1 would (ECE 0.200 against 0.100"
        in note
        for note in report.notes
    )


# --- class by class


UNLIKE = {"counts": [200, 60, 30], "spreads": [1.0, 1.2, 1.5]}


def test_a_wide_rare_class_is_flagged_no_more_often_than_others_if_asked_for():
    fresh = images([2000] * 3, 77, UNLIKE["spreads"], apart=2.0)
    truth = np.repeat([0, 1, 2], 2000)
    shares = {}
    for per_class in (False, True):
        rows = []
        for seed in range(6):
            data = images(UNLIKE["counts"], seed, UNLIKE["spreads"], apart=2.0)
            head = learned(data, per_class=per_class)
            flagged = head.is_ood(fresh[0]).numpy()
            rows.append([flagged[truth == c].mean() for c in range(3)])
        shares[per_class] = np.mean(rows, 0)
    assert shares[False][2] > 0.2
    assert (shares[True] < 0.085).all()
    assert (shares[True] > 0.01).all()


def test_the_threshold_of_each_class_is_that_of_the_images_predicted_as_it():
    data, validation = images([30, 30], 0), images([64, 64], 5)
    both = {p: learned(data, validation, per_class=p) for p in (False, True)}
    features, _ = validation
    scores = both[False].ood_scores(features).numpy()
    predicted = both[False].forward(features).argmax(1).numpy()
    flagged = both[True].is_ood(features).numpy()
    for c in range(2):
        own = scores[predicted == c]
        value = fit_threshold(own, source="validation").value
        clear = abs(own - value) > 1e-9  # the one at the threshold may round to either side
        assert clear.sum() >= len(own) - 1
        assert (flagged[predicted == c] == (own > value))[clear].all()


def test_sets_hold_the_truth_of_every_class():
    hard = [2.0, 0.6, 2.0]
    validation = images([60, 60, 60], 5, hard, apart=0.7)
    data, fresh = images([40] * 3, 0, hard, apart=0.7), images([1000] * 3, 9, hard, apart=0.7)
    truth = np.repeat([0, 1, 2], 1000)
    head = learned(data, validation, per_class=True)
    sets = head.prediction_sets(fresh[0], 0.1).numpy()
    covered = sets[np.arange(3000), truth]
    for c in range(3):
        assert covered[truth == c].mean() > 0.84
    few = learned(images([40, 5, 40], 0, hard), per_class=True)
    assert few.prediction_sets(fresh[0], 0.1)[:, few.classes.index("b")].all()


def test_promises_of_each_class_are_the_same_in_any_order():
    x, y = images([30, 20, 10], 0, apart=2.0)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    one = learned((x, y), per_class=True)
    other = learned((x[order], [y[i] for i in order]), per_class=True)
    fresh = images([5, 5, 5], 3)[0]
    assert torch.equal(one.ood_scores(fresh), other.ood_scores(fresh))
    assert one.threshold == other.threshold
    names = [
        [head.classes[i] for i in np.flatnonzero(row)]
        for head in (one, other)
        for row in head.prediction_sets(fresh).numpy()
    ]
    assert [set(row) for row in names[:15]] == [set(row) for row in names[15:]]


def test_too_few_images_for_each_class_are_said():
    head = ContinualClassifier(D, per_class=True)
    report = head.extend(*images([4, 4], 0))
    assert any("and none of each class" in note for note in report.notes)
    report = head.extend(*images([80, 8], 1))
    assert "1 of 2 classes: as far as scores are normally distributed" in head.threshold.statement
    head.set_threshold(per_class=False)
    assert "class by class" not in head.threshold.statement


def test_class_by_class_no_more_is_promised_than_in_every_class():
    # the marginal threshold is proven by validation images; those of classes need others beside
    few = learned(images([40, 40], 0), images([25, 12], 5), guarantee="split", per_class=True)
    assert few.threshold.source == "validation and leave-one-out"
    assert few.threshold.statement.endswith("as far as leaving one out is like a fresh image")
    own = images([64, 64], 5)
    enough = learned(images([40, 40], 0), own, guarantee="split", per_class=True)
    assert enough.threshold.source == "validation"
    assert "images like these 128 are flagged, on average" in enough.threshold.statement
    assert "leaving one out" not in enough.threshold.statement
    # 150 for all are enough to be sure, and 50 of a class for none
    sure = learned(images([20] * 3, 0), images([50] * 3, 5), guarantee="pac", per_class=True)
    assert sure.threshold.guarantee == "none"
    assert "class by class, assumes normally distributed scores" in sure.threshold.statement


@pytest.mark.parametrize(("rules", "rank"), [(1, 1 / 33), (2, 1 / 49)])
def test_p_values_class_by_class_are_by_the_rules_that_a_state_began_with(rules, rank):
    # half of all images are of one class: each of its 16 weighs 1/32, the 48 on average 1/48
    how = {"guarantee": "split", "per_class": True, "memory": 16}
    head = learned(images([40, 20, 20], 0), **how, rules=rules)
    assert head.threshold.p_values([100.0]) == pytest.approx([rank])
    assert "class by class, assumes normally distributed scores" in head.threshold.statement


def test_a_setting_of_another_type_is_refused():
    with pytest.raises(StatisticsError, match="`per_class` is 1; give True or False"):
        ContinualClassifier(D, per_class=1)


# --- the guard


def held_out(scores_of_fresh, scores_left_out):
    n = len(scores_of_fresh) + len(scores_left_out)
    rows = np.zeros(n)
    return HeldOut(
        logits=np.zeros((n, 1)),
        labels=np.zeros(n, int),
        weights=np.full(n, 1 / n),
        mahalanobis=rows,
        relative=rows,
        shift=rows,
        knn=rows,
        images=np.arange(n),
        source="validation and leave-one-out",
        n_fresh=len(scores_of_fresh),
    )


def test_the_guard_warns_where_validation_and_left_out_images_disagree():
    rng = np.random.default_rng(0)
    fresh, left = rng.normal(size=6) - 3, rng.normal(size=34)
    said = doubt(np.concatenate([fresh, left]), held_out(fresh, left), 0.05)
    assert "of the learned images, left out, are more unusual than 95% of the validation" in said
    assert "give others, drawn like the images to come" in said
    fresh, left = rng.normal(size=20) + 2, rng.normal(size=80)  # near copies were left out
    said = doubt(np.concatenate([fresh, left]), held_out(fresh, left), 0.05)
    share = np.mean(fresh > np.sort(left)[-5])
    assert f"{share:.0%} of the validation images are more unusual than 95% of the learned" in said
    assert "learn images like the validation images too, and one of each burst" in said


def test_the_guard_is_quiet_about_healthy_changes():
    rng, doubted = np.random.default_rng(1), 0
    for _ in range(600):
        fresh, left = (rng.normal(size=rng.integers(2, 80)) for _ in range(2))
        doubted += bool(doubt(np.concatenate([fresh, left]), held_out(fresh, left), 0.05))
    assert 0 < doubted <= 0.02 * 600


def test_the_guard_compares_classes_with_both_kinds_of_images_alone():
    rng = np.random.default_rng(3)
    fresh, left = rng.normal(size=40), np.r_[rng.normal(size=60), rng.normal(size=300) - 6]
    rows = held_out(fresh, left)
    assert "more unusual than 95% of the learned" in doubt(np.r_[fresh, left], rows, 0.05)
    # the 300 are of an easy class of which there is no validation image
    labels = np.repeat([0, 1], [100, 300])
    apart = replace(rows, labels=labels, logits=np.zeros((400, 2)))
    assert doubt(np.r_[fresh, left], apart, 0.05) == ""
    assert (
        doubt(np.r_[fresh, left], replace(apart, labels=np.repeat([0, 1], [40, 360])), 0.05) == ""
    )


def test_a_class_flagged_more_often_than_promised_of_all_is_named():
    head = ContinualClassifier(D)
    report = head.extend(*images([40, 400], 0, [1.5, 0.5]))
    said = [note for note in report.notes if "on average" in note]
    assert len(said) == 1, report.notes
    n, k = 40, round(0.01 * float(re.search(r"(\d+)% of 'a'", said[0])[1]) * 40)
    assert binomtest(k, n, 0.05, "greater").pvalue < 0.0005
    assert "5% false alarms are promised on average over all images, not for each class" in said[0]
    assert said[0].endswith("`per_class=True` keeps the promise for each")
    assert not any("on average" in note for note in head.set_threshold(per_class=True).notes)
    # alike classes are not
    head = ContinualClassifier(D)
    assert not any("on average" in note for note in head.extend(*images([60, 60], 0)).notes)


def test_the_chance_of_the_guard_is_that_of_a_simulation():
    rng = np.random.default_rng(2)
    left, fresh = rng.normal(size=(20000, 40)), rng.normal(size=(20000, 12))
    limit = np.sort(left, 1)[:, -2]  # the second of 40 is the last that 5 % are above
    above = (fresh > limit[:, None]).sum(1)
    for k in (1, 2, 3):
        assert _beta_binomial_tail(k, 12, 2, 39) == pytest.approx((above >= k).mean(), abs=0.01)


def test_a_change_warns_of_validation_images_of_another_kind():
    head = ContinualClassifier(D)
    head.extend(*images([60, 60], 0))
    with pytest.warns(UserWarning, match="learned images are of another day") as caught:
        report = head.validate(*images([20, 20], 5, [4.0, 4.0]))
    assert str(caught[0].message) in report.notes


def spread_around(base, spread, n, generator):
    """Features (3 n, 256) of three classes that differ by less than their images do, and labels."""
    means = base + spread * torch.randn(3, 256, generator=torch.Generator().manual_seed(1)) / 4
    noise = spread * torch.randn(3, n, 256, generator=generator)
    return (means[:, None] + noise).flatten(0, 1), [name for name in "abc" for _ in range(n)]


@pytest.mark.parametrize("n", [3, 5, 10])
def test_confidences_do_not_hang_on_how_much_all_images_are_alike(n):
    base = 2 * torch.randn(256, generator=torch.Generator().manual_seed(0)).abs()

    def judged(spread, **settings):
        generator, head = torch.Generator().manual_seed(2), ContinualClassifier(256, **settings)
        head.extend(*spread_around(base, spread, n, generator))
        images, labels = spread_around(base, spread, 100, generator)
        found = head(images).softmax(1)
        right = [head.classes[i] == a for i, a in zip(found.argmax(1), labels, strict=True)]
        return head.temperature, float(found.amax(1).mean()), np.mean(right)

    # as photographs are, and images of one part under one lamp
    apart, alike = judged(1.0), judged(0.02)
    assert alike[0] == pytest.approx(apart[0], rel=0.2)
    for _, confidence, right in (apart, alike):
        assert confidence == pytest.approx(right, abs=0.2)
    # by the first rules these told nothing apart
    _, confidence, right = judged(0.02, rules=1)
    assert confidence < right - 0.3


@pytest.mark.parametrize("score", ["relative", "energy", "combined"])
@pytest.mark.parametrize("n", [12, 30])
def test_with_two_classes_images_left_out_are_as_unusual_as_fresh_ones(score, n):
    # relative to the center of the classes, that moves with each of two means
    flagged = {1: [], 2: []}
    for seed, rules in ((seed, rules) for seed in range(8) for rules in (1, 2)):
        head = ContinualClassifier(D, score=score, rules=rules)
        head.extend(*images([n, n], seed))
        flagged[rules].append(float(head.is_ood(images([500, 500], 99)[0]).double().mean()))
    assert 0.02 < np.mean(flagged[2]) < 0.1
    assert np.mean(flagged[1]) < np.mean(flagged[2])


def test_few_images_left_out_say_less_of_their_spread_than_as_many_fresh_ones():
    for n, most in (2, 0.1), (3, 0.1), (5, 0.1):
        flagged = []
        for seed in range(12):
            head = ContinualClassifier(D)
            head.extend(*images([n, n], seed))
            flagged.append(float(head.is_ood(images([500, 500], 99)[0]).double().mean()))
        assert np.mean(flagged) < most


def test_where_all_are_right_no_more_images_are_asked_for():
    head = ContinualClassifier(D)
    report = head.extend(*images([60, 60], 0, apart=3.0))
    said = [note for note in report.notes if "temperature" in note]
    assert len(said) == 1
    assert said[0].startswith("all 120 predictions are right: confidence is that of one mistake")
    assert "more images" not in said[0]


def test_what_remembered_images_count_for_is_said():
    few = "25 validation images are few for 2 classes: remembered images, left out one by one, "
    for guarantee, end in ("loo", "count beside them"), ("split", "beside them for the confidence"):
        head = ContinualClassifier(D, guarantee=guarantee)
        report = head.extend(*images([40, 40], 0), validation=images([13, 12], 5))
        assert [note.endswith(end) for note in report.notes if note.startswith(few)] == [True]


@pytest.mark.parametrize("n_classes", [2, 3])
def test_images_that_tell_nothing_are_told_apart_by_chance_when_left_out(n_classes):
    names = [name for name in "abc"[:n_classes] for _ in range(2)]
    right = {3: [], 4: []}
    for seed, rules in ((seed, rules) for seed in range(50) for rules in right):
        generator = torch.Generator().manual_seed(seed)
        features = torch.randn(len(names), 64, generator=generator)
        head = ContinualClassifier(64, rules=rules, near_copies=False)
        head.extend(features, names)
        logits = head.knowledge.derived.linear.loo.logits
        own = torch.arange(n_classes).repeat_interleave(2)
        right[rules].append(float((logits.argmax(1) == own).double().mean()))
    # 50 draws of images that go together: four standard errors
    assert np.mean(right[4]) == pytest.approx(1 / n_classes, abs=0.13)
    # where the sample had been was told by the center: .84 and .56 were right
    assert np.mean(right[3]) > np.mean(right[4]) + 0.1


def test_images_that_also_play_a_class_of_one_image_count_once():
    few = learned(images([6, 6, 1], 0)).threshold
    assert few.n == 24  # each of twelve is left out alone, and once more with a partner
    assert few.source == "parametric"
    assert ": 12 are too few to promise a false-alarm rate of 0.05 " in few.statement
    enough = learned(images([10, 10, 1], 0)).threshold
    assert enough.statement == "about 0.05 of the images like these 20 are flagged (no proof)"
    # by the earlier rules each row counted as an image
    assert "like these 24 are" in learned(images([6, 6, 1], 0), rules=3).threshold.statement


def test_class_by_class_too_they_count_once():
    both = images([10, 10, 1], 0)
    few = learned(both, per_class=True).threshold
    assert few.statement.startswith("class by class, assumes normally distributed scores: 20 are")
    enough = learned(both, per_class=True, false_alarm_rate=0.1).threshold
    assert enough.statement.startswith("class by class, about 0.1 of the images like these 20 are")


def test_an_image_whose_rows_are_predicted_as_two_classes_counts_once_class_by_class():
    statements = {}
    for seed in range(12):
        head = learned(images([25, 25, 1], seed, apart=0.3), per_class=True)
        held = re.search(r"images like these (\d+)", head.threshold.statement)
        statements[seed] = int(held[1]) if held else 0
    assert max(statements.values()) <= 50
    assert any(n > 25 for n in statements.values())


def test_a_class_is_named_by_its_own_rows_not_by_those_that_play_another():
    # two images of each class, of which one each is flagged as it plays another class
    rows = replace(held_out(np.zeros(0), np.zeros(20)), images=np.tile(np.arange(10), 2))
    scores = np.repeat([0.0, 9.0], 10)
    assert flagged_more(scores, rows, 5.0, 0.05) == {}
    assert flagged_more(scores[::-1].copy(), rows, 5.0, 0.05) == {0: 1.0}


def test_of_one_class_nothing_is_said_of_its_confidence():
    report = ContinualClassifier(D).extend(images([4], 0)[0], ["a"] * 4)
    assert report.temperature == (None, 1.0)
    assert "nan" not in str(report)
    assert "temperature 1 it would be" not in str(report)
