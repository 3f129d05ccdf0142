"""What is asked about new images that look odd to what was known before them."""

import pytest
import torch

from learnkit.continual.classifier import ContinualClassifier
from learnkit.continual.label_issues import _at_least


def images(center, n, seed):
    """`n` features around an axis of eight."""
    noise = torch.rand(n, 8, generator=torch.Generator().manual_seed(seed))
    return 0.5 * noise + 3 * torch.eye(8)[center]


@pytest.fixture
def head():
    head = ContinualClassifier(8)
    features = torch.cat([images(0, 40, 1), images(1, 40, 2)])
    head.extend(features, ["a"] * 40 + ["b"] * 40)
    return head


def asked(report, word):
    return [note for note in report.notes if word in note]


def test_more_of_the_same_raises_no_question(head):
    report = head.extend(torch.cat([images(0, 20, 3), images(1, 20, 4)]), ["a"] * 20 + ["b"] * 20)
    assert not asked(report, "out-of-distribution")


def test_known_classes_that_are_flagged_are_asked_about(head):
    report = head.extend(torch.cat([images(0, 20, 3), images(5, 20, 4)]), ["a"] * 20 + ["b"] * 20)
    (note,) = asked(report, "have camera, light or parts changed")
    assert "of 40 new images of known classes" in note
    assert "5% would be expected" in note


def test_a_new_class_far_from_all_raises_no_question(head):
    assert not asked(head.extend(images(5, 20, 3), ["c"] * 20), "out-of-distribution")


def test_a_known_class_under_another_name_is_asked_about(head):
    report = head.extend(torch.cat([images(1, 12, 3), images(5, 12, 4)]), ["x"] * 12 + ["c"] * 12)
    (note,) = asked(report, "merge_classes")
    assert "of the new class 'x' were taken for 'b'" in note


def test_too_few_images_raise_no_question(head):
    assert not asked(head.extend(images(5, 1, 3), ["b"]), "camera")
    assert not asked(head.extend(images(1, 2, 3), ["x"] * 2), "merge_classes")


def test_the_first_images_raise_no_question():
    head = ContinualClassifier(8)
    report = head.extend(torch.cat([images(0, 5, 1), images(0, 5, 2)]), ["a"] * 5 + ["b"] * 5)
    assert not asked(report, "merge_classes")


def test_an_image_under_two_names_in_one_call_is_told_of(head):
    new = images(5, 3, 3)
    report = head.extend(torch.cat([new, new[:2], new[:1]]), ["c"] * 3 + ["d"] * 2 + ["c"])
    (note,) = asked(report, "more than one name")
    assert note.startswith("given under more than one name: 2 images, each of which speaks for all")
    assert head.n_images == {"a": 40, "b": 40, "c": 3, "d": 2}
    (note,) = asked(head.extend(torch.cat([images(6, 1, 3)] * 2), ["c", "d"]), "more than one name")
    assert "name: 1 image, each" in note


def test_an_image_that_comes_twice_under_one_name_is_not(head):
    new = images(5, 3, 3)
    assert not asked(head.extend(torch.cat([new, new]), ["c"] * 6), "more than one name")
    assert not asked(head.extend(new, ["c"] * 3), "more than one name")


@pytest.mark.parametrize(("k", "n", "rate"), [(0, 5, 0.1), (3, 5, 0.1), (7, 40, 0.05)])
def test_the_binomial_tail_is_scipys(k, n, rate):
    stats = pytest.importorskip("scipy.stats")
    assert _at_least(k, n, rate) == pytest.approx(stats.binom.sf(k - 1, n, rate))
