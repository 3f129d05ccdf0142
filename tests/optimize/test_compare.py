import io
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from learnkit.optimize.compare import Answers, compare
from learnkit.optimize.samples import Pictures

CLASSES = ("a", "b", "c")
EMPTY = torch.zeros(0, dtype=torch.float64)


def said(logits, *, features=None, scores=None, threshold=math.nan, finite=None):
    logits = torch.tensor(logits, dtype=torch.float64)
    n = len(logits)
    return Answers(
        logits,
        torch.zeros(n, 0) if features is None else torch.tensor(features, dtype=torch.float64),
        EMPTY if scores is None else torch.tensor(scores, dtype=torch.float64),
        threshold,
        torch.ones(n, dtype=torch.bool) if finite is None else torch.tensor(finite),
    )


def pictures(labels, n=None):
    n = len(labels) if n is None else n
    names = tuple(f"{i}.png" for i in range(n))
    return Pictures(names, labels, torch.zeros(n, 1, 1, 1, dtype=torch.uint8), names)


BEFORE = said([[4, 0, 0], [0, 4, 0], [0, 0, 4], [4, 0, 0]])
AFTER = said([[4, 0, 0], [5, 4, 0], [0, 0, 4], [0, 4, 0]])


def test_labels_and_answers_are_counted_one_by_one():
    found = compare(BEFORE, AFTER, pictures(("a", "b", "a", "b")), CLASSES)
    assert (found.n, found.n_same, found.n_labelled) == (4, 2, 4)
    assert (found.n_right, found.n_lost, found.n_gained) == (2, 1, 1)
    assert found.accuracy == found.accuracy_before == 0.5
    assert (found.worst_class.name, found.worst_class.n) == ("a", 2)
    assert found.logit_max == 5
    assert found.logit_rms == pytest.approx(math.sqrt((25 + 16 + 16) / 12))
    assert found.logit_rms_share == pytest.approx(math.sqrt(57 / 64))


def test_the_worst_images_come_worst_first_and_those_alike_not_at_all():
    found = compare(BEFORE, AFTER, pictures(("a", "b", "a", "b")), CLASSES)
    assert [image.name for image in found.worst_images] == ["3.png", "1.png"]
    worst = found.worst_images[0]
    assert (worst.truth, worst.before, worst.after) == ("b", "a", "b")
    p = math.exp(4) / (math.exp(4) + 2)
    assert worst.confidence_before == pytest.approx(p)
    assert worst.change == pytest.approx(p - (1 - p) / 2)
    assert found.prob_max == worst.change


@pytest.mark.parametrize("channels", [1, 3])
def test_the_worst_images_come_with_a_small_picture_of_what_was_seen(channels):
    shown = pictures(None, 4)
    pixels = torch.full((4, channels, 40, 160), 30, dtype=torch.uint8)
    pixels[3, 0] = 200
    found = compare(BEFORE, AFTER, replace(shown, pixels=pixels), CLASSES).worst_images[0]
    picture = Image.open(io.BytesIO(found.thumbnail))
    assert picture.size == (64, 16)
    colour = [200, 30, 30][:channels]
    assert np.abs(np.asarray(picture).reshape(-1, channels) - colour).max() <= 4


def test_ten_images_at_most_are_kept():
    many = said([[float(i % 7), 0, 0] for i in range(30)])
    moved = said([[0, float(i % 7), 0] for i in range(30)])
    found = compare(many, moved, pictures(None, 30), CLASSES)
    changes = [image.change for image in found.worst_images]
    assert len(changes) == 10
    assert changes == sorted(changes, reverse=True)


def test_without_labels_the_worst_class_is_the_one_that_kept_fewest():
    found = compare(BEFORE, AFTER, pictures(None, 4), CLASSES)
    assert found.n_labelled == 0
    assert math.isnan(found.accuracy)
    assert math.isnan(found.ece)
    worst = found.worst_class
    assert (worst.name, worst.n, worst.before, worst.after) == ("b", 1, 1.0, 0.0)


def test_what_is_not_finite_is_broken_and_neither_kept_nor_right():
    broken = said(AFTER.logits.tolist(), finite=[False, True, True, True])
    found = compare(BEFORE, broken, pictures(("a", "b", "c", "a")), CLASSES)
    assert found.n_broken == 1
    assert found.n_same == 1
    assert found.n_lost == 3


def test_a_forgotten_class_changes_no_number():
    gone = -math.inf
    before, after = (said([[1.0, gone, x], [0.0, gone, 3.0]]) for x in (0.0, 0.5))
    found = compare(before, after, pictures(("a", "c")), CLASSES)
    assert found.logit_max == 0.5
    assert math.isfinite(found.logit_rms_share)
    assert found.n_same == 2


def test_false_alarms_and_auroc_are_those_of_the_scores():
    before = said(BEFORE.logits.tolist(), scores=[0, 1, 2, 3], threshold=2.5)
    after = said(BEFORE.logits.tolist(), scores=[0, 3, 3, 3], threshold=2.5)
    strange = (torch.tensor([4.0, 5.0]), torch.tensor([1.0, 4.0]))
    found = compare(before, after, pictures(None, 4), CLASSES, unknown=strange)
    assert (found.false_alarms_before, found.false_alarms) == (0.25, 0.75)
    assert (found.auroc_before, found.auroc) == (1.0, 0.625)
    assert found.n_strange == 2


def test_cosines_are_between_the_features():
    before = said([[1, 0, 0], [1, 0, 0]], features=[[1, 0], [1, 1]])
    after = said([[1, 0, 0], [1, 0, 0]], features=[[2, 0], [0, 1]])
    found = compare(before, after, pictures(None, 2), CLASSES)
    assert found.feature_cosine_min == pytest.approx(math.sqrt(0.5))
    assert found.feature_cosine == pytest.approx((1 + math.sqrt(0.5)) / 2)


def test_several_labels_must_all_stay():
    before = said([[2, 2, -2], [-2, 2, -2]])
    after = said([[2, 2, -2], [2, 2, -2]])
    truth = pictures((("b", "a"), ("b",)))
    found = compare(before, after, truth, CLASSES, multi_label=True)
    assert (found.n_same, found.n_right, found.n_lost) == (1, 2, 1)
    assert found.worst_class is None
    assert found.worst_images[0].after == "a, b"
