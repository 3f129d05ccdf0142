"""Scoring without torch is that of the head; files that break a rule are refused."""

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
from continual_helpers import keep_every_row
from runtime_helpers import WIDTH, json_tensor, torch_predictions, torch_predictions_beside

from learnkit.bundle.scoring_file import read_scoring, scoring_tensors
from learnkit.continual.classifier import ContinualClassifier
from learnkit.continual.embedding import embed as torch_embed
from learnkit.continual.ood_detector import OodDetector
from learnkit.continual.settings import CLASSIFIERS, GUARANTEES, SCORES
from learnkit.errors import (
    BundleCorruptError,
    BundleVersionError,
    ExportError,
    PredictionError,
    UncertaintyError,
)
from learnkit.inference.prediction import conclude
from learnkit.storage.formats import tensors_to_bytes
from learnkit.uncertainty.scoring import PARTS, unit_rows
from learnkit.uncertainty.threshold import Threshold, student_tail

NAMES = ("c0", "c1", "c2")


def features(n, *, seed=1, width=WIDTH, spread=0.5):
    """`n` features around three centers, and their labels."""
    centers = 2 * torch.rand(3, width, generator=torch.Generator().manual_seed(7))
    labels = torch.arange(n) % 3
    noise = torch.randn(n, width, generator=torch.Generator().manual_seed(seed))
    return (centers[labels] + spread * noise).clamp_min(0), [NAMES[i] for i in labels]


def make_head(n=45, *, width=WIDTH, kind=ContinualClassifier, **settings):
    head = kind(width, **{"memory": 8, **settings})
    head.extend(*features(n, width=width))
    return head


def read(head, **changes):
    """The judge that a file of `head` gives; `changes` replace tensors in it."""
    tensors = {**scoring_tensors(head), **changes}
    data = tensors_to_bytes({name: t for name, t in tensors.items() if t is not None})
    return read_scoring(data, "j", n_classes=len(head.classes), n_features=head.n_features)


def queries(width=WIDTH):
    """Known, far, remembered and blank ones, and one that is not finite."""
    known, far = features(9, seed=2, width=width)[0], 5 * features(6, seed=3, spread=3.0)[0]
    far = torch.nn.functional.pad(far, (0, width - WIDTH), value=1.0)
    learned = features(3, width=width)[0]
    odd = torch.stack([torch.zeros(width), torch.full((width,), math.nan)])
    return torch.cat([known, far, learned, odd])


def facts_of(head):
    return json.loads(bytes(scoring_tensors(head)["facts"].tolist()))


def assert_alike(ours, theirs):
    """Equal to the last bits; what is decided, exactly."""
    assert ours.label == theirs.label
    assert ours.is_ood == theirs.is_ood
    assert ours.ood_threshold == theirs.ood_threshold
    assert ours.ood_score == pytest.approx(theirs.ood_score, rel=1e-9, abs=1e-9)
    assert ours.p_value == pytest.approx(theirs.p_value, rel=1e-9)
    np.testing.assert_allclose(ours.probs, theirs.probs.numpy(), rtol=1e-5, atol=1e-7)
    assert ours.probs.dtype == np.float32


@pytest.mark.parametrize("root", [False, True])
@pytest.mark.parametrize(("classifier", "score"), [*itertools.product(CLASSIFIERS, SCORES)])
def test_numpy_says_what_torch_says(classifier, score, root):
    head = make_head(classifier=classifier, score=score, root=root)
    x = queries()
    *found, broken = conclude(read(head), x.numpy(), None, head.classes)
    *expected, _ = torch_predictions(head, x)
    for ours, theirs in zip(found, expected, strict=True):
        assert_alike(ours, theirs)
        assert ours.prediction_set(0.2) == theirs.prediction_set(0.2)
    assert isinstance(broken, PredictionError)
    assert found[-1].ood_score == 1e30  # the blank one


@pytest.mark.parametrize("kind", [ContinualClassifier, OodDetector])
@pytest.mark.parametrize(("classifier", "score"), [*itertools.product(CLASSIFIERS, SCORES)])
def test_a_file_scores_to_the_bit_as_the_head_it_is_of(classifier, score, kind):
    head = make_head(kind=kind, classifier=classifier, score=score, root=True)
    head.extend(features(1, seed=4)[0], ["lone"])
    head.forget("c1")
    x = queries()[:-1]
    ours, theirs = read(head), head.scoring
    for method in "logits", "probs", "ood_scores":
        found = getattr(ours, method)(x.numpy())
        assert np.array_equal(found, getattr(theirs, method)(x.numpy())), method
    scores = theirs.ood_scores(x.numpy())
    assert np.array_equal(ours.threshold.p_values(scores), theirs.threshold.p_values(scores))
    assert all(map(np.array_equal, ours.nonconformity, theirs.nonconformity))
    # the pass with gradients decides nothing and agrees to rounding
    np.testing.assert_allclose(head(x).softmax(1), theirs.probs(x.numpy()), atol=1e-6)
    assert head.ood_scores(x).tolist() == scores.tolist()
    assert head.is_ood(x).tolist() == (scores > ours.threshold.value).tolist()


@pytest.mark.parametrize("guarantee", GUARANTEES)
@pytest.mark.parametrize("n", [45, 9])  # 9 are too few: the threshold is parametric
def test_p_values_are_those_of_torch_whatever_is_promised(guarantee, n):
    head = make_head(n, guarantee=guarantee, false_alarm_rate=0.1)
    more, names = features(3 * n, seed=8)
    head.extend(more[::3], names[::3])  # of one class: its images weigh more
    assert len(np.unique(head.threshold.calibration_weights)) > 1
    found = conclude(read(head), queries().numpy(), None, head.classes)
    for ours, theirs in zip(found[:-1], torch_predictions(head, queries()), strict=False):
        assert_alike(ours, theirs)


@pytest.mark.parametrize("kind", [ContinualClassifier, OodDetector])
def test_promises_of_each_class_travel(kind):
    head = make_head(90, kind=kind, per_class=True, memory=64)
    if kind is OodDetector:
        head.fit_sets(head(features(90)[0]).softmax(1), torch.arange(90) % 3)
    assert facts_of(head)["format"] == 2
    assert facts_of(make_head())["format"] == 1  # as an older learnkit reads it
    x = queries()[:-1]
    ours, theirs = read(head), head.scoring
    assert abs(ours.shifts).min() > 0
    assert np.array_equal(ours.ood_scores(x.numpy()), theirs.ood_scores(x.numpy()))
    assert len(ours.nonconformity) == 3
    assert all(map(np.array_equal, ours.nonconformity, theirs.nonconformity))
    again = kind.from_state(*head.state())
    assert np.array_equal(again.scoring.ood_scores(x.numpy()), theirs.ood_scores(x.numpy()))
    assert all(map(np.array_equal, again.scoring.nonconformity, theirs.nonconformity))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("misfit_labels", torch.full((45,), 3), "not all of the 3 classes"),
        ("misfit_labels", torch.zeros(44, dtype=torch.int64), "must be int64 \\(45,\\)"),
        ("shifts", torch.zeros(2).double(), "must be float64 \\(3,\\)"),
        ("shifts", torch.zeros(3), "must be float64 \\(3,\\)"),
    ],
)
def test_damaged_promises_of_each_class_are_refused(name, value, message, monkeypatch):
    keep_every_row(monkeypatch)
    head = make_head(per_class=True, memory=64)
    with pytest.raises(BundleCorruptError, match=message):
        read(head, **{name: value})


def test_every_source_of_a_threshold_travels():
    heads = {"leave-one-out": make_head(), "parametric": make_head(6), "manual": make_head()}
    heads["manual"].threshold = 3.5
    heads["validation"] = ContinualClassifier(WIDTH)
    heads["validation"].extend(*features(45), validation=features(192, seed=5))
    heads["validation and leave-one-out"] = ContinualClassifier(WIDTH)
    heads["validation and leave-one-out"].extend(*features(45), validation=features(9, seed=5))
    with pytest.warns(UserWarning, match="assumed distribution"):
        heads["drawn"] = make_head(memory=0)
    for source, head in heads.items():
        limit = read(head).threshold
        assert limit.source == head.threshold.source == source.replace("drawn", "parametric")
        assert limit.value == head.threshold.value
        scores = np.linspace(-5, 30, 36)
        assert np.array_equal(limit.p_values(scores), head.threshold.p_values(scores))


def test_features_of_any_size_are_embedded_as_with_torch():
    x = torch.tensor([[3.0, -4.0], [3e38, 1e-38], [1e-11, 0.0], [1e-12, 0.0], [0.0, 0.0]])
    for root in (False, True):
        found = unit_rows(x.numpy(), root=root)
        np.testing.assert_allclose(found, torch_embed(x, root=root), rtol=1e-14)


@pytest.mark.parametrize("score", ["combined", "mahalanobis"])
def test_few_images_of_many_dimensions_take_few_axes(score):
    head = make_head(24, width=60, score=score)
    tensors = scoring_tensors(head)
    assert tensors["axes"].shape[1] <= 24
    assert tensors["base"] > 0
    x = queries(60)[:-1]
    found = read(head).ood_scores(x.numpy())
    np.testing.assert_allclose(found, head.ood_scores(x), rtol=1e-9, atol=1e-9)


def test_a_forgotten_class_keeps_its_number_and_never_wins():
    head = make_head()
    head.forget("c1")
    (found,) = conclude(read(head), features(2)[0][1:].numpy(), None, head.classes)
    assert found.classes == NAMES
    assert found.label != "c1"
    assert found.probs[1] == 0
    assert "c1" not in found.prediction_set(0.01)


def test_a_detector_leaves_the_labels_to_the_network():
    detector = make_head(kind=OodDetector)
    detector.fit_sets(torch.tensor([[0.6, 0.4], [0.2, 0.8]]).repeat(9, 1), torch.tensor([0, 1] * 9))
    x, logits = queries(), torch.linspace(-3, 3, 40).reshape(20, 2)
    found = conclude(read(detector), x.numpy(), logits.numpy(), ("u", "v"))
    for ours, theirs in zip(
        found[:-1], torch_predictions_beside(detector, logits, x, ("u", "v")), strict=False
    ):
        assert_alike(ours, theirs)
        assert ours.prediction_set(0.2) == theirs.prediction_set(0.2)
    assert isinstance(found[-1], PredictionError)


def test_a_trained_head_alone_has_probabilities_and_nothing_else():
    logits = torch.tensor([[2.0, -1.0, 0.5], [math.nan, 0.0, 0.0]])
    one, broken = conclude(None, np.zeros((2, 4), "f4"), logits.numpy(), NAMES)
    np.testing.assert_allclose(one.probs, logits[0].softmax(0), rtol=1e-6)
    assert one.ood_score is None
    assert isinstance(broken, PredictionError)
    run = {"multi_label": True, "threshold": 0.6}
    (several,) = conclude(None, np.zeros((1, 4), "f4"), logits[:1].numpy(), NAMES, **run)
    np.testing.assert_allclose(several.probs, logits[0].sigmoid(), rtol=1e-6)
    assert several.label == ("c0", "c2")


def test_a_threshold_set_by_hand_keeps_the_ranks():
    head = make_head()
    by_hand = read(head).with_threshold(-4)
    head.threshold = -4.0
    x = queries()[:-1]
    for ours, theirs in zip(by_hand.ood_fields(x.numpy()), torch_predictions(head, x), strict=True):
        assert ours["ood_threshold"] == -4
        assert ours["p_value"] == pytest.approx(theirs.p_value, rel=1e-9)
    with pytest.raises(UncertaintyError, match="finite"):
        by_hand.with_threshold(math.nan)


def test_tails_are_those_of_scipy():
    from scipy.special import ndtr, stdtr

    values = [-40.0, -3.0, -1e-9, 0.0, 1e-9, 0.3, 2.0, 9.0, 300.0]
    for dof in (1, 2, 7, 40, 999):
        found = [student_tail(value, dof) for value in values]
        np.testing.assert_allclose(found, stdtr(dof, -np.array(values)), rtol=1e-9)
    known = Threshold(0.0, "parametric", loc=0.0, scale=1.0)
    fitted = replace(
        known, n=8, calibration_scores=np.full(8, -99.0), calibration_weights=np.ones(8)
    )
    np.testing.assert_allclose(known.p_values(values), ndtr(-np.array(values)), rtol=1e-9)
    np.testing.assert_allclose(fitted.p_values(values), stdtr(7, -np.array(values)), rtol=1e-9)
    assert student_tail(math.inf, 3) == 0


def test_a_head_without_knowledge_has_nothing_to_write():
    with pytest.raises(ExportError, match="knows no class"):
        scoring_tensors(ContinualClassifier(WIDTH))


# what a stranger may put into the file

BROKEN_TENSORS = {
    "missing": {"center": None},
    "one more": {"extra": torch.zeros(1)},
    "type": {"weight": torch.zeros(3, WIDTH)},
    "shape": {"weight": torch.zeros(3, WIDTH + 1, dtype=torch.float64)},
    "classes": {"bias": torch.zeros(4, dtype=torch.float64)},
    "none known": {"known": torch.zeros(3, dtype=torch.bool)},
    "width": {"axes": torch.zeros(WIDTH - 1, 2, dtype=torch.float64)},
    "means": {"covectors": torch.zeros(2, WIDTH, dtype=torch.float64)},
    "no means": {
        "covectors": torch.zeros(0, WIDTH, dtype=torch.float64),
        "offsets": torch.zeros(0, dtype=torch.float64),
    },
    "square": {"base": torch.tensor(-1.0, dtype=torch.float64)},
    "memory": {"reference": torch.zeros(0, WIDTH, dtype=torch.int16)},
    "order": {"threshold_scores": torch.arange(24, 0, -1, dtype=torch.float64)},
    "weights": {"threshold_weights": torch.zeros(24, dtype=torch.float64)},
    "lengths": {"misfits": torch.zeros(2, dtype=torch.float64)},
    "facts": {"facts": torch.tensor([123, 125], dtype=torch.uint8)},
    "text": {"facts": torch.tensor([255, 0], dtype=torch.uint8)},
}


@pytest.mark.parametrize("name", BROKEN_TENSORS)
def test_files_with_other_tensors_are_refused(name):
    with pytest.raises(BundleCorruptError):
        read(make_head(), **BROKEN_TENSORS[name])


def with_threshold(**changes):
    return lambda facts: {**facts, "threshold": {**facts["threshold"], **changes}}


BROKEN_FACTS = {
    "key": lambda facts: {**facts, "more": 1},
    "no score": lambda facts: {**facts, "standards": []},
    "spread": lambda facts: {**facts, "standards": [["knn", 0.0, 0.0]]},
    "twice": lambda facts: {**facts, "standards": [["knn", 0.0, 1.0]] * 2},
    "form": lambda facts: {**facts, "standards": [["knn", 0.0]]},
    "number": lambda facts: {**facts, "temperature": "1"},
    "temperature": lambda facts: {**facts, "temperature": -1.0},
    "flag": lambda facts: {**facts, "root": 1},
    "first": lambda facts: {**facts, "format": 0},
    "record": lambda facts: {**facts, "threshold": 3.0},
    "source": with_threshold(source="hearsay"),
    "guarantee": with_threshold(guarantee="word"),
    "value": with_threshold(value=None),
    "scale": with_threshold(source="parametric", loc=0.0, scale=0.0),
    "loc": with_threshold(source="parametric", loc=None, scale=1.0),
}


@pytest.mark.parametrize("name", BROKEN_FACTS)
def test_files_with_other_facts_are_refused(name):
    head = make_head()
    with pytest.raises(BundleCorruptError):
        read(head, facts=json_tensor(BROKEN_FACTS[name](facts_of(head))))


@pytest.mark.parametrize(
    "change",
    [
        {"format": 3},
        {"standards": [["vim", 0.0, 1.0]]},
        {"combined": "median"},
    ],
)
def test_what_a_newer_version_wrote_asks_for_it(change):
    head = make_head()
    with pytest.raises(BundleVersionError, match="upgrade learnkit"):
        read(head, facts=json_tensor({**facts_of(head), **change}))


def test_numbers_that_are_not_finite_and_bytes_that_are_no_tensors_are_refused():
    tensors = {name: t.contiguous() for name, t in scoring_tensors(make_head()).items()}
    broken = {**tensors, "weight": tensors["weight"] * math.inf}
    for data in (safetensors.torch.save(broken), b"", b"\xff" * 64, tensors_to_bytes(tensors)[:-9]):
        with pytest.raises(BundleCorruptError):
            read_scoring(data, "j", n_classes=3, n_features=WIDTH)


def test_every_score_has_parts_that_can_be_read():
    assert set(SCORES) - {"combined"} <= PARTS
