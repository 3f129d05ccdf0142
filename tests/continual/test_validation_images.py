"""Validation images: an image counts once, and none is learned and a validation image at once."""

import re

import pytest
import torch

from learnkit.continual.classifier import ContinualClassifier
from learnkit.errors import DataError

D, NAMES = 6, "abc"
LEARNED_NOW = (
    "validation images that are learned now no longer decide threshold and temperature: {}"
)
CENTERS = torch.eye(D)[: len(NAMES)] * 2


def images(n, seed=0):
    """(features, labels) of n images of each class."""
    noise = torch.rand(len(NAMES), n, D, generator=torch.Generator().manual_seed(seed))
    return (CENTERS[:, None] + noise).flatten(0, 1), [x for x in NAMES for _ in range(n)]


def together(*parts):
    features, labels = zip(*parts, strict=True)
    return torch.cat(features), [label for some in labels for label in some]


def head_of(*learned, validation=()):
    head = ContinualClassifier(D, memory=32)
    for part in learned:
        head.extend(*part)
    for part in validation:
        head.validate(*part)
    return head


def essence(head):
    """All that decides what it answers."""
    scoring = head.scoring
    return head.knowledge.digest, scoring.threshold.value, head.temperature, head.n_images


LEARNED, FRESH = images(8), images(5, seed=1)


class TestLearnedImages:
    def test_do_not_count_as_validation_images(self):
        head, expected = head_of(LEARNED), head_of(LEARNED, validation=[FRESH])
        report = head.validate(*together(images(8), FRESH))
        assert essence(head) == essence(expected)
        assert report.notes[0] == (
            "24 of 39 validation images were learned by this model: they say nothing of fresh "
            "ones, and do not count"
        )
        # wherever they come from, and under whichever name
        head, (features, labels) = head_of(LEARNED), LEARNED
        head.validate(*together((features, ["b"] * len(labels)), FRESH))
        assert essence(head) == essence(expected)

    def test_do_not_push_fresh_ones_out_of_the_memory_of_64(self):
        many = images(200, seed=2)
        head = head_of(many)
        head.validate(*together(many, FRESH))
        assert len(head.knowledge.validation) == len(FRESH[1])

    def test_are_refused_where_there_are_no_others(self):
        head = head_of(LEARNED, validation=[FRESH])
        before = head.knowledge
        said = (
            "every image to calibrate by (24 given) was learned by this model, and says nothing of "
            "fresh ones; give labelled images that it has not learned"
        )
        with pytest.raises(DataError, match=f"^{re.escape(said)}$"):
            head.validate(*LEARNED)
        assert head.knowledge is before
        assert [entry.what for entry in head.audit] == ["extend", "calibrate"]

    def test_come_with_new_ones_in_one_call(self):
        head = ContinualClassifier(D, memory=32)
        report = head.extend(*LEARNED, validation=together(LEARNED, FRESH))
        assert essence(head) == essence(head_of(LEARNED, validation=[FRESH]))
        assert any("24 of 39 validation images were learned" in note for note in report.notes)
        alone = ContinualClassifier(D, memory=32)
        alone.extend(*LEARNED, validation=LEARNED)  # not refused: something was learned
        assert essence(alone) == essence(head_of(LEARNED))

    def test_that_were_forgotten_are_fresh_once_the_class_is_back(self):
        head, rows = head_of(LEARNED), slice(8)
        own = LEARNED[0][rows], LEARNED[1][rows]
        head.forget("a")
        head.extend(FRESH[0][:5], FRESH[1][:5])
        report = head.validate(*own)
        assert not any("were learned by this model" in note for note in report.notes)
        assert len(head.knowledge.validation) == 8


class TestValidationImages:
    def test_are_none_any_more_once_they_are_learned(self):
        some = FRESH[0][::2], FRESH[1][::2]
        head = head_of(LEARNED, validation=[FRESH])
        report = head.extend(*some)
        assert report.notes[0] == LEARNED_NOW.format(8)
        assert head.audit[-1].n_validation == -8
        # in whichever order they come
        assert essence(head) == essence(head_of(LEARNED, some, validation=[FRESH]))
        head.undo()
        assert essence(head) == essence(head_of(LEARNED, validation=[FRESH]))

    def test_leave_no_promise_to_themselves_when_all_are_learned(self):
        head = head_of(LEARNED, validation=[FRESH])
        head.extend(*FRESH)
        assert essence(head) == essence(head_of(LEARNED, FRESH))

    def test_are_none_any_more_once_others_have_learned_them(self):
        head = head_of(LEARNED, validation=[FRESH])
        report = head.merge(head_of((FRESH[0][:4], FRESH[1][:4])).statistics)
        assert any(LEARNED_NOW.format(4) == note for note in report.notes)
        assert len(head.knowledge.validation) == len(FRESH[1]) - 4

    def test_count_once_however_often_they_come(self):
        head, expected = head_of(LEARNED), head_of(LEARNED, validation=[FRESH])
        head.validate(*together(FRESH, FRESH))
        assert essence(head) == essence(expected)
        report = head.validate(*FRESH)
        assert report.notes[0] == "15 of 15 validation images had come before, and count once"
        assert essence(head) == essence(expected)
        head.subtract(validation=FRESH)
        assert essence(head) == essence(head_of(LEARNED))

    @pytest.mark.parametrize("with_others", [False, True])
    def test_count_for_the_class_given_last(self, with_others):
        """As if the first label had never been given."""
        features, labels = FRESH[0][:8], FRESH[1][:8]
        swapped = ["b" if label == "a" else "a" for label in labels[:7]] + ["b"]
        rest = [images(3, seed=4)] * with_others
        head = head_of(LEARNED, validation=[(features, labels), *rest])
        report = head.validate(features, swapped)
        assert report.notes[:2] == (
            "1 of 8 validation images had come before, and count once",
            "7 of 8 validation images were of another class before: they count for the class now "
            "given",
        )
        assert report.n_validation == 0
        right = head_of(LEARNED, validation=[(features, swapped), *rest])
        assert essence(head) == essence(right)
        head.undo()
        assert essence(head) == essence(head_of(LEARNED, validation=[(features, labels), *rest]))
        # those that come with images to learn, too
        both = head_of(LEARNED, validation=[(features, labels), *rest])
        both.extend(*LEARNED, validation=(features, swapped))
        assert essence(both) == essence(right)

    def test_keep_the_groups_they_are_said_to_be_of_under_another_label(self):
        features, groups = FRESH[0][:2], ["one", "two"]
        head = head_of(LEARNED)
        head.validate(features, ["a", "a"], groups)
        head.validate(features, ["b", "b"])
        expected = head_of(LEARNED)
        expected.validate(features, ["b", "b"], groups)
        assert head.knowledge.validation.cells[1].given
        assert essence(head) == essence(expected)

    def test_are_refused_under_two_labels_at_once(self):
        head = head_of(LEARNED, validation=[FRESH])
        before, (features, _) = head.knowledge, images(2, seed=5)
        said = (
            "images 0 and 2 of those to calibrate by show the same, and have two labels, 'a' and "
            "'b'; an image is of one class: give it the right label alone"
        )
        with pytest.raises(DataError, match=f"^{re.escape(said)}$"):
            head.validate(features[[0, 1, 0]], ["a", "a", "b"])
        assert head.knowledge is before
        # beside images to learn they do not count, and those images do
        report = head.extend(*images(2, seed=6), validation=(features[[0, 1, 0]], ["a", "a", "b"]))
        assert report.n_images == dict.fromkeys(NAMES, 10)
        assert report.n_validation == 1
        note = "2 of 3 validation images come under two labels: they count for no class"
        assert note in report.notes

    def test_of_a_class_without_images_are_refused(self):
        head = head_of(LEARNED)
        head.forget("a")
        before = head.knowledge
        said = (
            "class 'a' has no images, so that validation images of it decide nothing; `extend` the "
            "class first, or leave them out"
        )
        for given in FRESH, (FRESH[0][:5], FRESH[1][:5]):
            with pytest.raises(DataError, match=f"^{re.escape(said)}$"):
                head.validate(*given)
            with pytest.raises(DataError, match=f"^{re.escape(said)}$"):
                head.extend(LEARNED[0][8:], LEARNED[1][8:], validation=given)
        assert head.knowledge is before
        # with the images that bring the class back they count
        assert head.extend(*LEARNED, validation=FRESH).n_validation == 15
        head.merge_classes(["a", "b"], "b")
        with pytest.raises(DataError, match=r"^class 'a' is called 'b' now"):
            head.validate(*FRESH)

    def test_stay_where_nothing_of_them_is_learned(self):
        head = head_of(LEARNED, validation=[FRESH])
        kept = head.knowledge.validation
        report = head.extend(*images(3, seed=7))
        assert head.knowledge.validation is kept
        assert not any("learned now" in note for note in report.notes)


class TestMoreThanAreKept:
    """Of a class 64 are kept: what comes beyond is told by the change that brought it."""

    SAID = (
        "up to 64 validation images a class are kept, and decide: {}; the others count for nothing"
    )

    def told(self, report):
        return [note for note in report.notes if "are kept, and decide" in note]

    def test_is_said_with_the_numbers_of_each_class_and_once(self):
        features, labels = images(70, seed=3)
        keep = torch.tensor([i for i, name in enumerate(labels) if name != "b" or i < 134])
        names = [labels[i] for i in keep.tolist()]  # 64 of b, no more than are kept
        head = head_of(LEARNED)
        told = self.told(head.validate(features[keep], names))
        assert told == [self.SAID.format("64 of 70 of 'a', 64 of 70 of 'c'")]
        assert len(head.knowledge.validation) == 3 * 64
        assert self.told(head.extend(*images(3, seed=4))) == []

    def test_is_said_beside_those_that_came_before(self):
        first, second = images(60, seed=5), images(10, seed=6)
        head = head_of(LEARNED)
        assert self.told(head.validate(*first)) == []
        told = self.told(head.extend(*images(3, seed=4), validation=second))
        assert told == [self.SAID.format(", ".join(f"64 of 70 of {name!r}" for name in NAMES))]

    def test_is_silent_where_copies_make_the_number(self):
        assert (
            self.told(head_of(LEARNED).validate(*together(images(40, seed=7), images(40, seed=7))))
            == []
        )


def test_images_are_fresh_once_and_until_they_are_learned():
    head = ContinualClassifier(D, near_copies=False)  # six features are too few to tell
    head.extend(*LEARNED)
    given = together(LEARNED, images(2, seed=9), images(2, seed=9))
    assert head.are_fresh(*given).tolist() == [False] * 24 + [True] * 6 + [False] * 6
    assert head.are_fresh(torch.empty(0, D), []).tolist() == []
