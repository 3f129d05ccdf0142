"""The continual classifier: what it learns, in whatever order, and which images it flags."""

import copy
import json
import pickle
import threading
import warnings

import numpy as np
import pytest
import torch
from continual_helpers import draw, embedded, examples, keep_every_row
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import learnkit.continual.closed_form.threads
import learnkit.continual.derivation
import learnkit.continual.held_out
import learnkit.continual.knowledge
from learnkit.continual.classifier import ContinualClassifier
from learnkit.continual.closed_form.threads import same_bits
from learnkit.continual.held_out import Reference, collect_held_out
from learnkit.continual.serialization import (
    FORMAT,
    OPTIONAL_CONFIG,
    OPTIONAL_SETTINGS,
    OPTIONAL_TENSORS,
    TENSOR_TYPES,
)
from learnkit.continual.statistics import ClassStatistics
from learnkit.errors import (
    ContinualPredictionError,
    ContinualStateError,
    DataError,
    InsufficientDiversityError,
    OodInsufficientDataError,
    StatisticsError,
    UncertaintyError,
)
from learnkit.models.eval_mode import torch_threads

# few tiny images, validation and learned ones unlike
pytestmark = pytest.mark.filterwarnings("ignore:.* are more unusual than 95% of")

D = 16
NAMES = "edcba"  # not in the order of their names
SCORES = ["combined", "mahalanobis", "relative", "knn", "msp", "energy"]
few = examples(12)
seeds = st.integers(0, 2**31)


def images(n, seed=0, *, n_classes=5, d=D, spread=0.3):
    """`n` images of each class around centers that are always the same."""
    centers = torch.rand(n_classes, d, generator=torch.Generator().manual_seed(99)) * 1.5
    noise = torch.randn(n_classes, n, d, generator=torch.Generator().manual_seed(seed)) * spread
    features = (centers[:, None] + noise).clamp_min(0).flatten(0, 1)
    return features, [name for name in NAMES[:n_classes] for _ in range(n)]


def mixed(seed, n=30):
    """`n` images in random order of up to four classes, some with one image only."""
    rng = np.random.default_rng(seed)
    places = rng.choice(4, n, p=[0.5, 0.3, 0.15, 0.05])
    noise = rng.normal(size=(n, D)) * 0.4
    features = np.abs(np.eye(4, D)[places] + noise).astype("float32")
    return torch.from_numpy(features), [NAMES[place] for place in places]


def learned(*batches, **kwargs):
    head = ContinualClassifier(D, **{"root": True, "memory": 4, **kwargs})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for batch in batches:
            head.extend(*batch)
    return head


def essence(head):
    """Everything that decides on predictions, by class name, for comparison to the bit."""
    derived = head.knowledge.derived
    rows = {
        name: (derived.weight[i].tolist(), derived.bias[i].item())
        for i, name in enumerate(head.classes)
        if head.n_images[name]
    }
    return (
        rows,
        head.threshold.to_dict(),
        str(head.calibration),
        derived.scoring.standards,
        derived.scoring.nonconformity[0].tolist(),
    )


def same(one, other):
    return one.statistics.equals(other.statistics) and essence(one) == essence(other)


def pick(batch, rows):
    return batch[0][rows], [batch[1][i] for i in rows]


# -- the order of things --------------------------------------------------------------------------


@few
@given(seeds, st.permutations(range(30)), st.lists(st.integers(1, 29), max_size=3))
@pytest.mark.parametrize("classifier", ["lda", "ridge", "prototype"])
def test_any_order_and_batching_gives_the_same_classifier_to_the_bit(classifier, seed, order, cuts):
    batch = mixed(seed)
    pieces = [piece for piece in np.split(np.array(order), sorted(cuts)) if len(piece)]
    stepwise = learned(*(pick(batch, piece) for piece in pieces), classifier=classifier)
    assert same(stepwise, learned(batch, classifier=classifier))


@few
@given(seeds, st.integers(1, 29))
def test_init_with_all_is_init_and_extend_is_extend_the_other_way_round(seed, cut):
    batch = mixed(seed)
    a, b = pick(batch, list(range(cut))), pick(batch, list(range(cut, 30)))
    both, other_way_round = learned(batch), learned(b, a)
    assert same(learned(a, b), both)
    assert same(other_way_round, both)
    assert set(both.classes) == set(other_way_round.classes)


@few
@given(seeds, st.integers(2, 5))
def test_statistics_of_shards_merge_to_the_same_classifier(seed, n_shards):
    batch = mixed(seed)
    head = ContinualClassifier(D, root=True, memory=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for shard in np.array_split(np.arange(30), n_shards):
            empty = ClassStatistics.empty(D, root=True, memory_size=4)
            head.merge(empty.update(*pick(batch, shard)))
    assert same(head, learned(batch))


@few
@given(seeds, st.integers(2, 29))
def test_subtracting_leaves_no_trace(seed, cut):
    batch = mixed(seed)
    a, b = pick(batch, list(range(cut))), pick(batch, list(range(cut, 30)))
    head = learned(a, b, memory=30)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        head.subtract(*b)
    assert same(head, learned(a, memory=30))


@few
@given(seeds)
def test_renamed_and_merged_classes_are_as_if_labelled_so(seed):
    features, labels = mixed(seed)
    new = {"e": "zebra", "d": "zebra"}
    head = learned((features, labels))
    known = [name for name in ("e", "d") if name in head.classes]
    if len(known) == 2:
        head.merge_classes(known, "zebra")
    else:
        head.rename({known[0]: "zebra"})
    assert same(head, learned((features, [new.get(label, label) for label in labels])))


@few
@given(seeds, st.permutations(range(25)))
def test_the_order_of_validation_images_does_not_matter(seed, order):
    batch, fresh = images(6, seed), images(5, seed + 1)
    one, other = learned(batch), learned()
    one.validate(*fresh)
    shuffled = pick(fresh, order)
    other.extend(*batch, validation=pick(shuffled, list(range(9))))
    other.validate(*pick(shuffled, list(range(9, 25))))
    other.validate(*fresh)  # the same once more changes nothing
    assert essence(one) == essence(other)


def test_new_classes_come_at_the_end():
    head = learned((images(3)[0][:6], ["x"] * 3 + ["b"] * 3))
    head.extend(*images(4))
    assert head.classes == ("x", "b", "e", "d", "c", "a")
    head.extend(images(1)[0], [0, 1, 0, 1, 0], class_names=["new", "x", "later"])
    assert head.classes[6:] == ("new", "later")
    assert head.n_images["later"] == 0


# -- predictions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("classifier", ["lda", "ridge", "prototype"])
def test_what_is_learned_is_told_apart(classifier):
    head = learned(images(20), classifier=classifier)
    features, labels = images(50, seed=1)
    told = [head.classes[i] for i in head(features).argmax(1).tolist()]
    assert sum(a == b for a, b in zip(told, labels, strict=True)) >= 0.97 * len(labels)


def test_logits_of_a_map_are_those_of_its_mean():
    head = learned(images(5))
    x = torch.rand(3, D, 4, 5)
    assert head(x).dtype == torch.float32
    assert torch.equal(head(x), head(head.pooled(x)))
    torch.testing.assert_close(head.pooled(x), x.mean((2, 3)))


def test_probabilities_are_those_of_the_classifier_at_its_temperature():
    head = learned(images(8, spread=0.6))
    linear = head.knowledge.derived.linear
    features = images(3, seed=1)[0]
    logits = linear.logits(embedded(features, root=True)) / head.temperature
    by_name = torch.softmax(logits, 1)[:, [sorted(NAMES).index(name) for name in head.classes]]
    torch.testing.assert_close(head(features).softmax(1), by_name.float())


def test_gradients_reach_the_feature_map_and_are_finite():
    head = learned(images(5))
    x = torch.rand(2, D, 3, 3)
    x[:, :4] = 0  # channels that are off, as a ReLU leaves them
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(head(x)[:, 1].sum(), x)
    assert torch.isfinite(gradient).all()
    assert gradient.abs().sum() > 0
    assert isinstance(head.pool, nn.AdaptiveAvgPool2d)


def test_a_forgotten_class_never_wins_and_may_come_back():
    head = learned(images(6))
    features, labels = images(20, seed=1)
    report = head.forget("c")
    place = head.classes.index("c")
    assert torch.isneginf(head(features)[:, place]).all()
    assert head(features).softmax(1)[:, place].sum() == 0
    assert report.images == {"c": -6}
    assert report.n_classes == 4
    assert not head.prediction_sets(features, 0.01)[:, place].any()
    head.extend(*pick(images(6), [12, 13, 14, 15, 16, 17]))
    assert head.classes.index("c") == place
    told = head(features)[40:60].argmax(1)
    assert (told == place).float().mean() > 0.9
    assert set(labels[40:60]) == {"c"}


def test_one_class_and_one_image_work():
    head = learned((images(1)[0][:1], ["only"]))
    assert head(images(1)[0]).softmax(1).tolist() == [[1.0]] * 5
    assert np.isfinite(head.threshold.value)
    assert not head.is_ood(images(1)[0][:1]).any()
    head.extend(images(2)[0][:2], ["only", "only"])
    assert head.temperature == 1


@pytest.mark.parametrize(
    "features",
    [torch.ones(6, D), torch.eye(6, D), torch.ones(6, D) + torch.eye(6, D) * 1e-7],
    ids=["identical", "orthogonal", "nearly identical"],
)
@pytest.mark.parametrize("labels", ["aaaaaa", "aaabbb", "abbbbb", "abcdef"])
@pytest.mark.parametrize("memory", [0, 2])
def test_degenerate_images_give_finite_answers(features, labels, memory):
    head = learned((features, list(labels)), memory=memory)
    x = torch.cat([features, torch.rand(3, D)])
    assert torch.isfinite(head(x)).all()
    assert torch.isfinite(head.ood_scores(x)).all()
    assert np.isfinite(head.threshold.value)
    assert ((head.p_values(x) >= 0) & (head.p_values(x) <= 1)).all()


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.rand(2, D + 1), r"shape \(2, 17\); it takes \(N, 16\)"),
        (torch.rand(2, 3, D), r"shape \(2, 3, 16\)"),
        (torch.full((2, D), torch.nan), r"NaN or infinite \(rows 0, 1\)"),
    ],
)
def test_features_that_allow_no_prediction_are_errors(x, message):
    head = learned(images(3))
    with pytest.raises(ContinualPredictionError, match=message):
        head(x)


def test_scores_refuse_what_logits_refuse():
    head = learned(images(3))
    with pytest.raises(ContinualPredictionError, match="rows 1"):
        head.ood_scores(torch.tensor([[1.0] * D, [torch.inf] * D]))
    with pytest.raises(ContinualPredictionError, match="one row of 16"):
        head.is_ood(torch.rand(2, 3))


def test_without_a_class_there_is_no_prediction_and_no_threshold():
    head = ContinualClassifier(D)
    for ask in (lambda: head(torch.rand(1, D)), lambda: head.threshold):
        with pytest.raises(ContinualPredictionError, match="knows no class yet"):
            ask()
    assert head.temperature == 1
    learned_once = learned(images(2, n_classes=1))
    learned_once.forget("e")
    with pytest.raises(ContinualPredictionError, match="knows no class yet"):
        learned_once(torch.rand(1, D))


def test_no_images_have_no_answers():
    head = learned(images(3))
    assert head(torch.rand(0, D)).shape == (0, 5)
    assert head.ood_scores(torch.rand(0, D)).shape == (0,)


# -- out of distribution --------------------------------------------------------------------------


def far_images(score):
    """Far ones, or, for scores that look only where classes differ, halfway between classes."""
    if score in ("combined", "mahalanobis", "knn"):
        return torch.rand(200, D) ** 6
    features = images(40, seed=2)[0]
    return (features + features.roll(40, 0)) / 2


@pytest.mark.parametrize("score", SCORES)
def test_images_out_of_distribution_score_higher(score):
    head = learned(images(20), score=score)
    known, far = images(40, seed=1)[0], far_images(score)
    scores = head.ood_scores(known)
    assert scores.dtype == torch.float64
    assert (scores[:, None] < head.ood_scores(far)).double().mean() > 0.9
    assert head.p_values(known).mean() > 2 * head.p_values(far).mean()


@pytest.mark.parametrize("n", [5, 20])
@pytest.mark.parametrize("prior", ["training", "uniform"])
def test_false_alarms_are_as_rare_as_wanted(n, prior):
    rates = []
    for seed in range(6):
        head = learned(images(n, seed=2 * seed), prior=prior, memory=64)
        rates.append(head.is_ood(images(60, seed=2 * seed + 1)[0]).double().mean())
    assert 0 < np.mean(rates) < 0.1


@pytest.mark.parametrize("root", [True, False])
@pytest.mark.parametrize("score", ["combined", "mahalanobis", "knn"])
def test_two_images_that_know_only_each_other_flag_none_of_their_kind(score, root):
    # left out in turn both are as far from what is left: no spread is to be seen
    x, labels = images(2, n_classes=1)
    head = learned((x, labels), score=score, root=root, memory=64)
    assert head.threshold.source == "parametric"
    assert head.is_ood(images(60, seed=1, n_classes=1)[0]).double().mean() < 0.05


@pytest.mark.parametrize("guarantee", ["loo", "split", "pac"])
def test_guarantees_hold_of_validation_images_and_are_no_stumbling_block_without(guarantee):
    head = learned(images(20), guarantee=guarantee, memory=64)
    assert np.isfinite(head.threshold.value)
    head.validate(*images(40, seed=5))
    assert head.threshold.guarantee == guarantee
    assert head.is_ood(images(100, seed=1)[0]).double().mean() < 0.1


def test_false_alarms_without_memory_are_bounded_too():
    head = learned(images(20), memory=0)
    assert head.threshold.source == "parametric"
    assert head.is_ood(images(100, seed=1)[0]).double().mean() < 0.15
    assert head.is_ood(torch.rand(100, D) ** 6).double().mean() > 0.9


def test_the_wanted_rate_moves_the_threshold():
    head = learned(images(30), memory=64)
    strict = head.threshold.value
    report = head.set_threshold(false_alarm_rate=0.2)
    assert report.threshold == (strict, head.threshold.value)
    assert head.threshold.value < strict
    assert head.settings.false_alarm_rate == 0.2
    rate = head.is_ood(images(100, seed=1)[0]).double().mean()
    assert 0.12 < rate < 0.28


def test_a_full_memory_of_validation_images_decides_on_the_threshold_alone():
    head, fresh = learned(images(10)), images(64, seed=7)
    head.validate(*fresh)
    assert head.threshold.source == "validation"
    assert head.threshold.n == 5 * 64
    expected = head.ood_scores(fresh[0]).sort().values
    np.testing.assert_allclose(head.threshold.calibration_scores, expected, atol=0.02, rtol=0)
    assert head.calibration.source == "validation"


def test_few_validation_images_count_beside_those_left_out(monkeypatch):
    keep_every_row(monkeypatch)
    head = learned(images(10), memory=8)
    report = head.validate(*pick(images(12, seed=7), list(range(24))))
    assert head.threshold.source == "validation and leave-one-out"
    assert head.threshold.n == 24 + 5 * 8
    assert any("24 validation images are few for 5 classes" in note for note in report.notes)
    with pytest.raises(DataError, match="no class 'other'"):
        head.validate(torch.rand(1, D), ["other"])


def test_validation_images_are_kept_without_a_memory_too():
    head = learned(images(10), memory=0)
    head.validate(*images(12, seed=7))
    head.extend(*images(2, seed=8))
    assert head.threshold.source == "validation"


def test_the_nearest_other_feature_is_found_as_by_a_slow_loop():
    # a class of one image makes others play its part: known by their partner alone
    batch = (images(9)[0][:20], ["a"] * 9 + ["b"] * 9 + ["c", "d"])
    head = learned(batch, memory=5)
    derived = head.knowledge.derived
    loo, stats = derived.linear.loo, derived.stats
    features, labels = stats.memory.all()
    held_out = collect_held_out(
        stats,
        head.knowledge.validation.picked([0, 1, 2, 3]),
        derived.linear,
        Reference.of(stats.memory),
        "training",
    )
    assert loo.n_single == 10
    assert len(held_out) == len(loo.labels) > 10
    for i, distance in enumerate(held_out.knn.tolist()):
        own, label = loo.memory.features[loo.rows[i]], loo.labels[i]
        partner = loo.memory.features[loo.memory.partners[loo.rows[i]]]
        expected = min(
            (own - z).norm().item()
            for z, c in zip(features, labels, strict=True)
            if not torch.equal(own, z) and (i < 10 or c != label or torch.equal(z, partner))
        )
        assert distance == pytest.approx(expected, abs=1e-7)


def test_many_validation_images_are_scored_in_parts_by_several_threads(monkeypatch):
    head = learned(images(9), memory=64)
    head.validate(*images(23, seed=1))
    derived, kept = head.knowledge.derived, head.knowledge.validation.picked([4, 3, 2, 1, 0])
    asked = derived.stats, kept, derived.linear, Reference.of(derived.stats.memory), "training"
    rows, memory = kept.all()[0], derived.stats.memory.all()[0]
    distances = derived.linear.geometry.distances
    expected = {
        "logits": rows @ derived.linear.weight.T + derived.linear.bias,
        "mahalanobis": distances.mahalanobis(rows.numpy()),
        "relative": distances.relative(rows.numpy()),
        "knn": torch.cdist(rows, memory).amin(1),
    }
    monkeypatch.setattr(learnkit.continual.held_out, "_AT_ONCE", 20)  # of 115: the last is short
    monkeypatch.setattr(learnkit.continual.closed_form.threads, "_WORTH_A_THREAD", 0)
    for n_threads in 1, 3:
        with torch_threads(n_threads), same_bits():
            found = collect_held_out(*asked)
        assert found.n_fresh == 115
        for name, wanted in expected.items():
            np.testing.assert_allclose(getattr(found, name)[:115], wanted, rtol=1e-9, atol=1e-9)


def test_held_out_scores_are_those_of_a_classifier_that_never_saw_the_image():
    x, labels = images(5)
    head = learned((x, labels), memory=64)
    derived, rows = head.knowledge.derived, embedded(x, root=True)
    reference = Reference.of(derived.stats.memory)
    none = head.knowledge.validation.picked(range(5))
    held_out = collect_held_out(derived.stats, none, derived.linear, reference, "training")
    for i in range(0, len(x), 7):
        fewer = learned((x, labels), memory=64)
        fewer.subtract(x[i : i + 1], labels[i : i + 1])
        found = fewer.scoring.neighbors.nearest(rows[i : i + 1].numpy())
        row = (derived.linear.loo.memory.features - rows[i]).norm(dim=1).argmin()
        assert held_out.knn[row] == pytest.approx(found.item(), abs=1e-4)


@pytest.mark.parametrize(("prior", "expected"), [("training", [0.6, 0.4]), ("uniform", [0.5, 0.5])])
def test_classes_weigh_as_the_prior_says(prior, expected):
    batch = (images(12)[0][:30], ["a"] * 18 + ["b"] * 12)
    derived = learned(batch, prior=prior).knowledge.derived
    threshold = derived.scoring.threshold
    assert threshold.calibration_weights.sum() == pytest.approx(1)
    weights = derived.scoring.nonconformity[1]
    labels = derived.linear.loo.labels
    assert [weights[labels == c].sum().item() for c in (0, 1)] == pytest.approx(expected)


def test_a_blank_frame_is_flagged_and_not_divided_by():
    head = learned(images(6))
    x = torch.cat([torch.zeros(1, D), images(1)[0]])
    assert torch.isfinite(head(x)).all()
    assert head.is_ood(x)[0]
    assert head.ood_scores(x).argmax() == 0
    assert head.p_values(x)[0] <= 1 / (1 + head.threshold.n) + 1e-9
    head.threshold = 1e9  # above all that shows something, and still not above nothing
    assert head.is_ood(x).tolist() == [True] + [False] * 5


def test_blank_images_are_not_learned():
    features, labels = images(4)
    with_blank = torch.cat([features, torch.zeros(2, D)]), [*labels, "a", "b"]
    head = learned((features, labels))
    report = ContinualClassifier(D, root=True, memory=4).extend(*with_blank)
    assert same(learned(with_blank), head)
    assert "blank images were left out: 1 of a, 1 of b" in report.notes
    with pytest.raises(InsufficientDiversityError, match=r"all images of \['dark'\] are blank"):
        head.extend(torch.cat([features[:1], torch.zeros(3, D)]), ["a", *["dark"] * 3])
    assert "dark" not in head.classes


def test_prediction_sets_hold_the_truth_as_often_as_promised():
    head = learned(images(40, spread=0.9), memory=64)
    features, labels = images(200, seed=1, spread=0.9)
    truth = torch.tensor([head.classes.index(label) for label in labels])
    sets = head.prediction_sets(features, 0.1)
    covered = sets.gather(1, truth[:, None]).double().mean()
    assert 0.85 < covered < 0.97
    assert sets.double().sum(1).mean() < 4


def test_thresholds_set_by_hand_stay_until_fitted_again():
    head = learned(images(6))
    fitted = head.threshold.value
    head.threshold = 1.5
    report = head.extend(*images(2, seed=3))
    assert head.threshold.value == 1.5
    assert head.threshold.source == "manual"
    assert "the threshold stays as it was set by hand" in report.notes
    head.undo()
    head.threshold = None
    assert head.threshold.value == fitted
    with pytest.raises(UncertaintyError, match="finite"):
        head.threshold = float("nan")


def test_guesses_come_with_one_warning_and_a_note():
    head = ContinualClassifier(D, memory=0)
    with pytest.warns(UserWarning, match="memory=0.*give validation images"):
        report = head.extend(*images(5))
    assert any("assumes normally distributed" in note for note in report.notes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        head.extend(*images(5, seed=1))
    with pytest.warns(UserWarning, match="no class has two images that differ"):
        ContinualClassifier(D).extend(*images(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ContinualClassifier(D).extend(*images(2))


# -- all or nothing -------------------------------------------------------------------------------

STEPS = [
    (learnkit.continual.knowledge, "derive"),
    (learnkit.continual.derivation, "fit_lda"),
    (learnkit.continual.derivation, "fit_score_threshold"),
    (learnkit.continual.knowledge.Knowledge, "report"),
    (ClassStatistics, "update"),
]


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize(("where", "step"), STEPS, ids=[step for _, step in STEPS])
def test_an_interrupt_leaves_everything_as_it_was(monkeypatch, where, step, error):
    head, reference = learned(images(5)), learned(images(5))
    before = head.knowledge

    def interrupted(*args, **kwargs):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(where, step, interrupted)
        with pytest.raises(error):
            head.extend(*images(3, seed=1))
    assert head.knowledge is before
    assert same(head, reference)
    head.extend(*images(3, seed=1))  # and it still learns: the lock is free
    assert same(head, learned(images(5), images(3, seed=1)))


def test_refused_images_change_nothing():
    head = learned(images(5))
    before = head.knowledge
    features, labels = images(3)
    for bad in (
        (features, labels[:-1]),
        (features * torch.nan, labels),
        (features[:, 1:], labels),
        (features, ["E", *labels[1:]]),
        (features[:0], []),
    ):
        with pytest.raises(DataError):
            head.extend(*bad)
    with pytest.raises(StatisticsError):
        head.subtract(torch.rand(9, D), ["a"] * 9)
    with pytest.raises(DataError):
        head.extend(features, labels, validation=(features, ["other"] * len(labels)))
    assert head.knowledge is before


def test_two_threads_that_extend_at_once_both_have_their_way():
    batches = [images(4, seed=seed) for seed in range(6)]
    head = learned(images(4, seed=9))
    threads = [threading.Thread(target=head.extend, args=batch) for batch in batches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert same(head, learned(images(4, seed=9), *batches))


def test_undo_goes_back_step_by_step():
    head = learned(images(4))
    first = essence(head)
    head.extend(*images(2, seed=1))
    second = essence(head)
    head.forget("a")
    report = head.undo()
    assert report.images == {"a": 6}
    assert essence(head) == second
    head.undo()
    assert essence(head) == first
    head.undo()
    assert head.classes == ()
    with pytest.raises(ContinualStateError, match="no change to undo"):
        head.undo()


def test_undo_of_large_statistics_derives_them_again(monkeypatch):
    monkeypatch.setattr(learnkit.continual.knowledge, "_SMALL", 0)
    head = learned(images(4))
    first = essence(head)
    head.extend(*images(2, seed=1))
    head.undo()
    assert essence(head) == first


def test_only_new_images_make_it_fit_again(monkeypatch):
    head, fits = learned(images(4)), []
    fit = learnkit.continual.derivation.fit_lda
    monkeypatch.setattr(
        learnkit.continual.derivation, "fit_lda", lambda *a, **kw: fits.append(1) or fit(*a, **kw)
    )
    head.set_threshold(2.0)
    head.set_threshold(false_alarm_rate=0.1)
    head.validate(*images(3, seed=1))
    head.undo()
    assert not fits
    head.extend(*images(3, seed=1))
    assert len(fits) == 1


def test_nothing_of_the_callers_is_changed():
    features, labels = images(4)
    copies = features.clone(), list(labels)
    state = torch.random.get_rng_state()
    learned((features, labels)).ood_scores(features)
    assert torch.equal(features, copies[0])
    assert labels == copies[1]
    assert torch.equal(torch.random.get_rng_state(), state)


# -- keeping --------------------------------------------------------------------------------------


def full():
    head = learned(images(5), score="combined")
    head.validate(*images(4, seed=3))
    head.forget("c")
    head.threshold = 2.5
    return head


def test_the_state_comes_back_to_the_bit_and_goes_on_learning():
    head = full()
    config, tensors = head.state()
    back = ContinualClassifier.from_state(json.loads(json.dumps(config)), tensors)
    assert same(head, back)
    assert back.classes == head.classes
    assert back.threshold.value == 2.5
    head.extend(*images(2, seed=5))
    back.extend(*images(2, seed=5))
    assert same(head, back)


def test_a_state_dict_carries_everything_whatever_the_shapes():
    head = full()
    model = nn.Sequential(nn.Flatten(), head)
    other = nn.Sequential(nn.Flatten(), ContinualClassifier(D, root=True))
    other.load_state_dict(model.state_dict())
    assert same(other[1], head)
    empty = nn.Sequential(nn.Flatten(), ContinualClassifier(D, root=True))
    other.load_state_dict(empty.state_dict())
    assert other[1].classes == ()


def test_copies_know_the_same_and_learn_apart():
    head = full()
    before = essence(head)
    for twin in (copy.deepcopy(head), pickle.loads(pickle.dumps(head))):
        assert same(twin, head)
        twin.extend(*images(2, seed=6))
        assert essence(head) == before


def test_a_state_dict_of_another_network_is_refused():
    head, other = full(), ContinualClassifier(D, root=False)
    with pytest.raises(RuntimeError, match="belongs to another network"):
        other.load_state_dict(head.state_dict())
    with pytest.raises(RuntimeError, match="config"):
        other.load_state_dict({})
    damaged = {**head.state_dict(), "config": torch.tensor([1, 2], dtype=torch.uint8)}
    with pytest.raises(RuntimeError, match="`config` cannot be read"):
        ContinualClassifier(D, root=True).load_state_dict(damaged)
    assert other.classes == ()


@examples(3)
@given(seeds)
def test_classes_forgotten_and_learned_again_are_as_before_to_the_bit(seed):
    batch = mixed(seed)
    labels = batch[1]
    head = learned(batch, memory=30)
    for name in sorted(set(labels)):
        report = head.forget(name)
        assert not any("no longer remembered" in note for note in report.notes)
    for name in sorted(set(labels), reverse=True):
        report = head.extend(*pick(batch, [i for i, label in enumerate(labels) if label == name]))
        assert not any("forgotten earlier" in note for note in report.notes)
    assert same(head, learned(batch, memory=30))


def test_forgetting_and_learning_again_keeps_false_alarms_where_not_all_is_remembered():
    # fewer images than dimensions: where products were in the scatter twice, leaving one image out
    # left the other in, and each fresh image was flagged
    kwargs, shape = {"memory": 10, "root": False}, {"d": 96, "n_classes": 2}
    told = []
    for seed in range(4):
        batch, fresh = images(24, seed=seed, **shape), images(200, seed=100 + seed, **shape)[0]
        head = ContinualClassifier(96, **kwargs)
        head.extend(*batch)
        once = head.is_ood(fresh).float().mean().item()
        for name in "ed":
            head.forget(name)
        for start in 0, 24:
            head.extend(*pick(batch, list(range(start, start + 24))))
        told.append((once, head.is_ood(fresh).float().mean().item()))
    once, again = np.mean(told, axis=0)
    assert once < 0.12
    assert again < once + 0.05


def in_remainder(head, row):
    """Whether an image of `images(6)` is among what a forgotten class left."""
    return bool(head.statistics.recalled(images(6)[0][[row]])[1])


def test_reports_say_what_a_forgotten_class_leaves_behind():
    head = learned(images(6), memory=4)
    report = head.forget("c")
    assert report.notes[0] == (
        "2 of 6 images of 'c' were no longer remembered: their spread stays in the covariance that "
        "all classes share; to take it out too, `subtract` the images of the class"
    )
    other = ClassStatistics.empty(D, root=True, memory_size=4)
    said = "images forgotten earlier stay in the covariance that all classes share (2 of 'c')"
    report = copy.deepcopy(head).extend(*pick(images(6, seed=1), [12, 13]))
    assert report.notes[0] == f"{said} until they are learned again, or subtracted"
    report = copy.deepcopy(head).merge(other.update(*pick(images(6), [12, 13])))
    assert report.notes[0] == f"{said}: those of them that are learned again count twice in it"
    head.subtract(*pick(images(6), [row for row in range(12, 18) if in_remainder(head, row)]))
    assert not head.statistics.forgotten
    with pytest.raises(StatisticsError, match="class 'c' has 0 images"):
        head.subtract(*pick(images(6), range(12, 18)))
    assert not any("forgotten earlier" in note for note in head.extend(*images(1)[:2]).notes[1:])
    assert not any("forgotten earlier" in n for n in head.extend(*images(1, seed=2)).notes)
    undone = learned(images(6), memory=4)
    undone.forget("c")
    undone.undo()
    undone.subtract(*pick(images(6), range(12, 18)))
    assert undone.statistics.gram.equal(
        learned(pick(images(6), [*range(12), *range(18, 30)]), memory=4).statistics.gram
    )


def test_subtracting_what_was_extended_takes_its_validation_images_out_too():
    batch, held = images(5), images(4, seed=3)
    head, more = learned(batch, memory=30), images(3, seed=5)
    head.validate(*held)
    before, kept = essence(head), head.knowledge.validation
    head.extend(*more, validation=images(2, seed=6))
    report = head.subtract(*more, validation=images(2, seed=6))
    assert essence(head) == before
    assert all(
        a.equals(b) for a, b in zip(head.knowledge.validation.cells, kept.cells, strict=True)
    )
    assert report.images == dict.fromkeys(NAMES, -3)
    report = head.subtract(validation=held)  # of those that are learned, none
    assert not report.images
    assert essence(head) == essence(learned(batch, memory=30))


def test_validation_images_go_with_a_class_subtracted_to_nothing():
    batch, held = images(5), images(4, seed=3)
    head = learned(batch, memory=30)
    head.validate(*held)
    report = head.subtract(*pick(batch, list(range(10, 15))))
    assert "4 validation images went with their classes" in report.notes
    assert len(head.knowledge.validation.of("c")) == 0
    assert len(head.knowledge.validation.of("d")) == 4
    rest = [i for i in range(25) if batch[1][i] != "c"]
    never = learned(pick(batch, rest), memory=30)
    never.validate(*pick(held, [i for i in range(20) if held[1][i] != "c"]))
    assert essence(head) == essence(never)


def test_validation_images_that_were_not_kept_are_told():
    head = learned(images(5))
    head.validate(*images(2, seed=3))
    report = head.subtract(validation=images(3, seed=4))
    assert report.notes[0].startswith("15 of 15 validation images to subtract are not among those")
    first, second = images(2, seed=3), images(1, seed=4)
    both = torch.cat([first[0], second[0]]), [*first[1], *second[1]]
    report = head.subtract(validation=both)
    assert report.notes[0].startswith("5 of 15 validation images to subtract")
    assert len(head.knowledge.validation) == 0
    assert essence(head) == essence(learned(images(5)))


def test_nothing_to_subtract_and_wrong_validation_images_change_nothing():
    head = learned(images(5))
    head.validate(*images(2, seed=3))
    before = head.knowledge
    with pytest.raises(DataError, match="no images to subtract; give features and labels"):
        head.subtract()
    with pytest.raises(DataError, match="no class 'zz'"):
        head.subtract(*images(1), validation=(torch.rand(1, D), ["zz"]))
    with pytest.raises(StatisticsError):
        head.subtract(torch.rand(9, D), ["a"] * 9, validation=images(2, seed=3))
    assert head.knowledge is before


def test_a_state_from_before_there_were_optional_keys_is_read_and_written_anew():
    head = full()
    kept = *images(4, seed=3), [2] * 20
    head.extend(*images(5), groups=[1] * 25, validation=kept)
    config, tensors = head.state()
    settings = {k: v for k, v in config["settings"].items() if k not in OPTIONAL_SETTINGS}
    config = {k: v for k, v in config.items() if k not in OPTIONAL_CONFIG}
    old = {**config, "format": 1, "settings": settings}
    back = ContinualClassifier.from_state(
        old, {k: v for k, v in tensors.items() if k not in OPTIONAL_TENSORS}
    )
    assert back.knowledge.validation.copies().tolist() == [1] * 20
    assert back.n_images == head.n_images
    again, written = back.state()
    assert again["format"] == FORMAT
    assert set(tensors) == set(TENSOR_TYPES)
    assert set(written) == set(tensors) - set(OPTIONAL_TENSORS)  # as it was read


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": FORMAT + 1}, "use a newer learnkit"),
        ({"format": True}, "format True"),
        ({"format": 0}, "reads 1 to 7"),
        ({"format": "1"}, "reads 1 to 7"),
        ({"format": None}, "reads 1 to 7"),
        ({"threshold": "inf"}, "finite number or null"),
        ({"threshold": float("nan")}, "finite number or null"),
        ({"threshold": 10**400}, "finite number or null"),
        ({"class_names": ["x"]}, "shape"),
        ({"class_names": None}, "a list"),
        ({"forgotten_names": ["x", "y"]}, "shape"),
        ({"settings": {}}, "settings are"),
        ({"extra": 1}, "it must have"),
    ],
)
def test_hostile_configurations_are_refused(change, message):
    config, tensors = full().state()
    with pytest.raises(StatisticsError, match=message):
        ContinualClassifier.from_state({**config, **change}, tensors)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_features", D + 1),
        ("memory", 1),
        ("memory", 2.5),
        ("memory", 10**400),
        ("root", 1),
        ("classifier", "svm"),
        ("score", "odin"),
        ("guarantee", "none"),
        ("prior", "mine"),
        ("false_alarm_rate", 0),
        ("false_alarm_rate", True),
    ],
)
def test_hostile_settings_are_refused(name, value):
    config, tensors = full().state()
    config["settings"] = {**config["settings"], name: value}
    with pytest.raises(StatisticsError):
        ContinualClassifier.from_state(config, tensors)


@pytest.mark.parametrize("name", full().state()[1])
def test_missing_and_mistyped_tensors_are_refused(name):
    config, tensors = full().state()
    without = {key: tensor for key, tensor in tensors.items() if key != name}
    with pytest.raises(StatisticsError, match=name):
        ContinualClassifier.from_state(config, without)
    with pytest.raises(StatisticsError, match=name):
        ContinualClassifier.from_state(config, {**tensors, name: tensors[name].to(torch.float16)})


def test_a_score_that_needs_a_memory_says_so():
    with pytest.raises(OodInsufficientDataError, match="choose a memory above 0"):
        ContinualClassifier(D, score="knn", memory=0)


# -- reports --------------------------------------------------------------------------------------


def test_a_report_says_what_changed_and_is_plain_data():
    head = learned(images(3))
    threshold, temperature = head.threshold.value, head.temperature
    more = images(2, seed=1)
    report = head.extend(torch.cat([more[0], torch.rand(1, D)]), [*more[1], "<new>"])
    assert report.what == "extend"
    assert report.classes_added == ("<new>",)
    assert report.images == {**dict.fromkeys(NAMES, 2), "<new>": 1}
    assert report.n_images == head.n_images
    assert report.n_classes == 6
    assert report.threshold == (threshold, head.threshold.value)
    assert report.temperature == (temperature, head.temperature)
    assert any("one image each of <new>" in note for note in report.notes)
    assert json.loads(json.dumps(report.to_dict()))["classes_added"] == ["<new>"]
    assert "&lt;new&gt;" in report._repr_html_()
    assert "<new>" not in report._repr_html_()
    assert "new classes: <new>" in str(report)


def test_the_head_shows_what_it_knows():
    assert "16 features, 5 classes, 15 images, classifier='lda'" in repr(learned(images(3)))
    torch.testing.assert_close(
        learned((images(3)[0][:3], ["x"] * 3)).prototypes[0],
        embedded(images(3)[0][:3], root=True).mean(0),
        atol=1e-4,
        rtol=0,
    )


@pytest.mark.parametrize("verb", ["extend", "validate", "subtract"])
@pytest.mark.parametrize(
    "labels", [{"a", "b"}, frozenset("ab"), {0: "a", 1: "b"}, {"a": 1, "b": 2}]
)
def test_labels_without_an_order_of_their_own_are_refused(verb, labels):
    head, features = ContinualClassifier(4), torch.eye(4)
    head.extend(features, ["a", "b", "a", "b"])
    before, features = head.knowledge, features[:2]
    with pytest.raises(DataError, match="whose order says nothing about the rows"):
        getattr(head, verb)(features, labels)
    assert head.knowledge is before


@pytest.mark.parametrize("score", SCORES)
def test_scores_have_the_same_bits_in_whatever_order_classes_came(score):
    generator = np.random.default_rng(0)
    means = generator.normal(size=(9, 40))
    rows = torch.from_numpy(np.repeat(means, 12, 0) + generator.normal(size=(108, 40)))
    labels = [f"class {i}" for i in range(9) for _ in range(12)]
    fresh = torch.from_numpy(generator.normal(size=(50, 40)) * 2)
    expected = ContinualClassifier(40, score=score)
    expected.extend(rows, labels)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(108)
        other = ContinualClassifier(40, score=score)
        other.extend(rows[order], [labels[i] for i in order])
        other.extend(fresh[:5], ["gone"] * 5)
        other.forget("gone")
        for n in (1, 5, 50):
            assert torch.equal(other.ood_scores(fresh[:n]), expected.ood_scores(fresh[:n]))


@pytest.mark.parametrize("other", [5, "x", None, "itself"])
def test_only_class_statistics_are_merged(other):
    head = ContinualClassifier(12)
    head.extend(*draw({"a": 4, "b": 4}))
    before = head.knowledge
    other = head if other == "itself" else other
    for verb in (head.merge, head.statistics.merge):
        with pytest.raises(
            DataError, match=rf"`other` is .*{type(other).__name__}\); give class st"
        ):
            verb(other)
    assert head.knowledge is before


@pytest.mark.parametrize("labels", [None, 3, b"frog"])
def test_labels_that_are_no_list_are_named(labels):
    head = ContinualClassifier(12)
    features, names = draw({"a": 4, "b": 4})
    head.extend(features, names)
    before = head.knowledge
    for verb in (head.extend, head.subtract, head.validate):
        with pytest.raises(DataError, match=rf"`labels` is .*{type(labels).__name__}\); give one"):
            verb(features, labels)
    with pytest.raises(DataError, match=r"`labels` is None \(NoneType\); give one class name per"):
        head.subtract(features)
    assert head.knowledge is before
