"""The verdict says what was counted, and what the accuracy hides."""

import re

import numpy as np
import pytest
from scipy.stats import binomtest

from learnkit.evaluation.evaluate import evaluate
from learnkit.evaluation.verdict import COLUMNS, MEANINGS, meaning
from learnkit.inference.evaluation import with_ood_scores

BOTH = ["ants", "bees"]


def judged(pairs, classes):
    """The evaluation of answers, given as {(truth, answer): images}."""
    numbers = [pair for pair, n in pairs.items() for _ in range(n)]
    targets, answers = ([classes.index(one[side]) for one in numbers] for side in (0, 1))
    return evaluate(np.eye(len(classes))[answers], targets, classes)


def test_right_images_are_counted_with_wilsons_interval():
    found = judged({("ants", "ants"): 90, ("bees", "bees"): 74, ("bees", "ants"): 16}, BOTH)
    low, high = binomtest(164, 180).proportion_ci(method="wilson")
    assert found.verdict == (
        f"164 of 180 images right (91.1 %, 95 % interval {low * 100:.1f} to {high * 100:.1f} %).",
        "Worst class: bees, 74 of 90 right, 16 called ants.",
    )
    assert str(found).startswith(" ".join(found.verdict))
    assert found.to_dict()["verdict"] == list(found.verdict)


def test_imbalance_is_pointed_at_where_it_flatters_the_accuracy():
    counts = {("ants", "ants"): 160, ("bees", "bees"): 6, ("bees", "ants"): 14}
    said = judged(counts, BOTH).verdict
    balanced = (1 + 6 / 20) / 2
    assert said[1] == (
        "Accuracy misleads here: 160 of 180 images are ants; averaged over the classes "
        f"{balanced:.1%} are right."
    ).replace("%", " %")
    share = 160 / 180
    assert binomtest(166, 180).proportion_ci(method="wilson").low < share
    assert said[2].startswith("To call every image ants would be right for 88.9 %: ")
    assert said[3] == "Worst class: bees, 6 of 20 right, 14 called ants."


def test_imbalance_that_flatters_nothing_is_not_mentioned():
    counts = {("ants", "ants"): 158, ("ants", "bees"): 2, ("bees", "bees"): 20}
    assert len(judged(counts, BOTH).verdict) == 2


def test_a_guess_is_called_one_in_balanced_data_too():
    counts = {("ants", "ants"): 6, ("ants", "bees"): 4, ("bees", "ants"): 5, ("bees", "bees"): 5}
    assert "To call every image ants would be right for 50.0 %" in judged(counts, BOTH).verdict[1]


def test_of_equally_bad_classes_the_one_with_more_images_is_named():
    counts = {("a", "b"): 1, ("b", "b"): 9, ("c", "d"): 3, ("c", "b"): 2, ("d", "d"): 9}
    said = judged(counts, list("abcd")).verdict
    assert said[-1] == "Worst class: c, 0 of 5 right, 3 called d."


def test_classes_without_images_are_named_and_not_counted_as_bad():
    classes = [f"c{i}" for i in range(9)]
    said = judged({("c0", "c0"): 5, ("c1", "c1"): 5}, classes).verdict
    assert said[1:] == (
        "No images, so nothing is known, of c2, c3, c4, c5, c6 and 2 more classes.",
    )
    assert evaluate(np.zeros((0, 2)), [], BOTH).verdict == ("No images, nothing to judge.",)


def test_one_class_alone_proves_nothing():
    assert "All images are of one class, bees." in judged({("bees", "bees"): 4}, BOTH).verdict


def test_several_labels_are_judged_by_the_set_and_by_the_worst_label():
    truth = np.array([[1, 0], [1, 1], [0, 1], [0, 1]])
    probs = np.array([[0.9, 0.8], [0.9, 0.9], [0.1, 0.2], [0.2, 0.9]])
    said = evaluate(probs, truth, ["torn", "wet"], multi_label=True).verdict
    assert re.match(r"2 of 4 images with all labels right \(50\.0 %", said[0])
    assert said[1] == "75.0 % of the single labels right."
    assert said[2] == "Worst label: wet, 2 of 3 found, 1 found wrongly."


def test_every_measure_and_column_has_a_meaning():
    found = judged({("ants", "ants"): 5, ("bees", "bees"): 5}, [*BOTH, "c", "d", "e", "f"])
    for name in found.summary.index:
        assert meaning(name), name
    assert all(len(text) <= 45 for text in MEANINGS.values())  # beside its number in 80 columns
    for name in found.per_class.columns:
        assert f"{name}: " in COLUMNS


@pytest.mark.parametrize("name", ["<b>bold</b>", "a\x1b[2Jb"])
def test_names_are_text_in_the_page(name):
    found = judged({(name, "x"): 2, ("x", "x"): 2}, ["x", name])
    page = found._repr_html_()
    assert "Worst class" in page
    assert "<b>" not in page
    assert "\x1b" not in page


@pytest.mark.parametrize(
    ("k", "more"), [(5, ""), (9, ""), (12, ": more than chance is likely to give")]
)
def test_false_alarms_are_held_against_the_promise(k, more):
    known = judged({("ants", "ants"): 60, ("bees", "bees"): 40}, BOTH)
    scores, targets = [2.0] * k + [0.0] * (100 - k), [0] * 60 + [1] * 40
    found = with_ood_scores(known, scores, [2.0] * 18 + [0.0] * 2, 1.0, targets, 0.05)
    assert (binomtest(k, 100).proportion_ci(method="wilson").low > 0.05) == bool(more)
    low, high = (100 * end for end in binomtest(18, 20).proportion_ci(method="wilson"))
    assert found.verdict[-2:] == (
        f"18 of 20 unknown images noticed (90.0 %, 95 % interval {low:.1f} to {high:.1f} %).",
        f"{k} of 100 known images called unknown ({k}.0 %, 5 % promised){more}.",
    )


def test_a_threshold_that_promises_nothing_is_held_against_nothing():
    known = judged({("ants", "ants"): 2, ("bees", "bees"): 2}, BOTH)
    found = with_ood_scores(known, [0, 0, 0, 2], [], 1.0, [0, 0, 1, 1])
    assert found.verdict[-1] == "1 of 4 known images called unknown (25.0 %)."
    assert len(found.verdict) == 2
    without = with_ood_scores(known, [0, 0, 0, 2], [1], None, [0, 0, 1, 1])
    assert without.verdict == found.verdict[:1]
