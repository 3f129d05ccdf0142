import json
import subprocess
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import sklearn.metrics as skm
import torch

from learnkit.errors import EvaluationError
from learnkit.evaluation.comparison import Comparison
from learnkit.evaluation.evaluate import evaluate
from learnkit.evaluation.measures import wilson_interval
from learnkit.inference.evaluation import with_ood_scores

N = 240


def softmax(logits):
    exps = np.exp(logits - logits.max(1, keepdims=True))
    return exps / exps.sum(1, keepdims=True)


def case(name):
    """Return (probs, targets) of the named kind of data."""
    rng = np.random.default_rng(0)
    n_classes = {"binary": 2, "single-class": 1, "three": 3}.get(name, 8)
    targets = rng.integers(0, n_classes, N)
    if name == "absent-class":
        targets[targets == 5] = 4
    if name == "one-class-of-many":
        targets[:] = 2
    helpful = 40.0 if name == "perfect" else 1.5
    logits = rng.normal(size=(N, n_classes)) + helpful * np.eye(n_classes)[targets]
    if name == "never-predicted":
        logits[:, 3] = -9.0
    return softmax(logits), targets


CASES = (
    *("random", "three", "binary", "single-class", "absent-class", "one-class-of-many"),
    *("perfect", "never-predicted"),
)


@pytest.mark.filterwarnings("ignore:A single label was found")
@pytest.mark.parametrize("name", CASES)
def test_every_measure_equals_scikit_learns(name):
    probs, targets = case(name)
    n_classes = probs.shape[1]
    preds, labels, present = probs.argmax(1), range(n_classes), np.unique(targets)
    found = evaluate(probs, targets, [f"c{i}" for i in labels])
    macro = skm.precision_recall_fscore_support(
        targets, preds, labels=present, average="macro", zero_division=0
    )
    expected = {
        "n": N,
        "accuracy": skm.accuracy_score(targets, preds),
        "balanced_accuracy": np.mean([np.mean(preds[targets == c] == c) for c in present]),
        "macro_precision": macro[0],
        "macro_recall": macro[1],
        "macro_f1": macro[2],
    }
    if n_classes > 1:
        expected["log_loss"] = skm.log_loss(targets, probs, labels=labels)
    if n_classes > 5:
        top_5 = skm.top_k_accuracy_score(targets, probs, k=5, labels=labels)
        expected["top_5_accuracy"] = top_5
    for measure, value in expected.items():
        assert found.summary[measure] == pytest.approx(value, abs=1e-7), measure
    np.testing.assert_array_equal(
        found.confusion.to_numpy(), skm.confusion_matrix(targets, preds, labels=labels)
    )


@pytest.mark.parametrize("name", CASES)
def test_per_class_rows_equal_scikit_learns_and_absent_classes_are_nan(name):
    probs, targets = case(name)
    preds, n_classes = probs.argmax(1), probs.shape[1]
    table = evaluate(probs, targets, [f"c{i}" for i in range(n_classes)]).per_class
    expected = skm.precision_recall_fscore_support(
        targets, preds, labels=range(n_classes), zero_division=0
    )
    present = expected[3] > 0
    for column, values in zip(("precision", "recall", "f1"), expected[:3], strict=True):
        np.testing.assert_allclose(table[column].to_numpy()[present], values[present])
        assert table[column][~present].isna().all()
    np.testing.assert_array_equal(table["n"], expected[3])
    np.testing.assert_array_equal(table["predicted"], np.bincount(preds, minlength=n_classes))


def test_balanced_accuracy_equals_scikit_learns_where_it_has_one():
    probs, targets = case("random")
    expected = skm.balanced_accuracy_score(targets, probs.argmax(1))
    found = evaluate(probs, targets, list("abcdefgh"))
    assert found.summary["balanced_accuracy"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("n_classes", "column"), [(3, "top_2_accuracy"), (6, "top_5_accuracy"), (2, None)]
)
def test_top_k_is_reported_only_where_it_can_be_wrong(n_classes, column):
    probs = np.full((4, n_classes), 1 / n_classes)
    names = [c for c in evaluate(probs, [0] * 4, range(n_classes)).summary.index if "top" in c]
    assert names == ([column] if column else [])


def test_a_perfect_predictor_scores_the_ideal_everywhere():
    summary = evaluate(np.eye(6), np.arange(6), list("abcdef")).summary
    ideal = dict.fromkeys(("accuracy", "balanced_accuracy", "macro_f1", "top_5_accuracy"), 1.0)
    for measure, value in (ideal | {"log_loss": 0, "brier_score": 0, "ece": 0}).items():
        assert summary[measure] == value
    assert summary["accuracy_low"] < 1 == summary["accuracy_high"]


def test_multilabel_measures_equal_scikit_learns():
    rng = np.random.default_rng(0)
    flags = rng.integers(0, 2, (N, 4))
    flags[:, 3] = 0  # a label that never occurs
    probs = np.clip(0.4 * flags + rng.uniform(0, 0.7, (N, 4)), 0, 1)
    found = evaluate(probs, flags, list("abcd"), multi_label=True, threshold=0.5)
    preds = probs > 0.5
    assert found.summary["accuracy"] == pytest.approx(skm.accuracy_score(flags, preds))
    assert found.summary["label_accuracy"] == pytest.approx(1 - skm.hamming_loss(flags, preds))
    macro = skm.precision_recall_fscore_support(
        flags, preds, labels=[0, 1, 2], average="macro", zero_division=0
    )
    for i, name in enumerate(("precision", "recall", "f1")):
        assert found.summary[f"macro_{name}"] == pytest.approx(macro[i])
    cells = skm.multilabel_confusion_matrix(flags, preds).reshape(4, 4)
    np.testing.assert_array_equal(found.confusion[["tn", "fp", "fn", "tp"]], cells)
    assert np.isnan(found.per_class.loc["d", "recall"])


def test_the_threshold_itself_is_not_above_the_threshold():
    found = evaluate([[0.5, 0.51]], [[0, 1]], ["a", "b"], multi_label=True, threshold=0.5)
    assert found.summary["accuracy"] == 1.0


def test_no_warning_and_no_exception_without_samples_or_with_absent_classes():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        empty = evaluate(np.zeros((0, 3)), [], list("abc"))
        evaluate([[1.0, 0.0, 0.0]], [0], list("abc"))
        evaluate(np.zeros((0, 3)), np.zeros((0, 3)), list("abc"), multi_label=True)
    assert empty.summary["n"] == 0
    assert empty.summary.drop("n").isna().all()


def test_tensors_give_the_same_numbers_as_arrays():
    probs, targets = case("random")
    tensors = evaluate(torch.tensor(probs), torch.tensor(targets), list("abcdefgh"))
    arrays = evaluate(probs, targets, list("abcdefgh"))
    assert tensors.to_dict() == arrays.to_dict()


def test_to_dict_is_strict_json_and_reads_back():
    found = evaluate([[0.9, 0.1], [0.6, 0.4]], [0, 0], ["cat", "dog"])
    read = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert read["summary"]["n"] == 2
    assert read["per_class"][1]["class"] == "dog"
    assert read["per_class"][1]["recall"] is None
    assert read["confusion"] == [[2, 0], [0, 0]]


def test_class_names_are_escaped_in_html():
    html = evaluate([[1.0, 0.0]], [0], ["<script>", "b"])._repr_html_()
    assert "&lt;script&gt;" in html
    assert "<script>" not in html


def test_the_text_form_shows_counts_whole_and_nan_as_a_dash():
    text = repr(evaluate([[0.75, 0.25]] * 3, [0, 0, 0], ["cat", "dog"]))
    assert "log_loss" in text
    assert "0.2877" in text
    assert "nan" not in text.lower()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[4.0, 1.0]], [0], ["a", "b"]), r"row 0 sums to 5; .*softmax"),
        (([[0.5, 0.5]], [0], ["a", "b", "c"]), r"`probs` has shape \(1, 2\); .* shape \(N, 3\)"),
        (([[0.5, 0.5]], [2], ["a", "b"]), "`targets` holds 2 in row 0"),
        (([[0.5, 0.5]], [0, 1], ["a", "b"]), "`probs` has 1, `targets` has 2 rows"),
    ],
)
def test_bad_input_is_refused_with_the_remedy(arguments, message):
    with pytest.raises(EvaluationError, match=message):
        evaluate(*arguments)


def test_multilabel_refuses_logits_and_odd_thresholds():
    with pytest.raises(EvaluationError, match=r"`logits.sigmoid\(\)`"):
        evaluate([[3.0, 0.1]], [[1, 0]], ["a", "b"], multi_label=True)
    with pytest.raises(EvaluationError, match="`threshold` is 2; it is a probability"):
        evaluate([[0.3, 0.1]], [[1, 0]], ["a", "b"], multi_label=True, threshold=2)


def test_importing_needs_neither_pandas_nor_torch():
    code = "import sys, learnkit.evaluation.evaluate; print({'pandas', 'torch'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, encoding="utf-8"
    )
    assert done.stdout.strip() == "set()"


def test_false_alarms_are_told_of_each_class():
    from learnkit.inference.evaluation import with_ood_scores

    evaluation = evaluate(np.eye(3)[[0, 0, 0, 0, 1]], [0, 0, 0, 0, 1], ["a", "b", "c"])
    found = with_ood_scores(evaluation, [1.0, 2.0, 3.0, 4.0, 4.0], [], 3.0, [0, 0, 0, 0, 1])
    rates = found.per_class["false_alarm_rate"]
    assert rates["a"] == 0.25  # a score at the threshold is none
    assert rates["b"] == 1.0
    assert np.isnan(rates["c"])
    assert found.summary["false_alarm_rate"] == 0.4
    assert "false_alarm_rate" not in evaluation.per_class


def test_without_a_threshold_nothing_is_told_of_what_is_flagged():
    evaluation = evaluate(np.eye(2)[[0, 0, 1]], [0, 0, 1], ["a", "b"])
    found = with_ood_scores(evaluation, [1.0, 2.0, 3.0], [4.0, 5.0], None, [0, 0, 1])
    for name in ("false_alarm_rate", "detection_rate"):
        assert np.isnan(found.summary[name])
        assert found.intervals.loc[name].isna().all()
    assert found.per_class["false_alarm_rate"].isna().all()
    assert (found.per_class_shown()["false_alarm_rate 95 %"] == "").all()
    assert found.summary["auroc"] == 1  # the scores tell


def test_only_the_measures_asked_for_are_in_the_summary_in_that_order():
    rng = np.random.default_rng(0)
    probs, targets = rng.dirichlet(np.ones(8), 60), rng.integers(0, 8, 60)
    asked = ["ece", "top_3_accuracy", "accuracy", "top_7_accuracy"]
    found = evaluate(probs, targets, list("abcdefgh"), measures=asked)
    everything = evaluate(probs, targets, list("abcdefgh"))
    assert list(found.summary.index) == asked
    assert list(found.to_dict()["summary"]) == asked
    assert found.summary["ece"] == everything.summary["ece"]
    assert found.verdict == everything.verdict
    from sklearn.metrics import top_k_accuracy_score

    for k in (3, 7):
        wanted = top_k_accuracy_score(targets, probs, k=k, labels=range(8))
        assert found.summary[f"top_{k}_accuracy"] == pytest.approx(wanted)
        low, high = found.intervals.loc[f"top_{k}_accuracy"]
        assert (low, high) == pytest.approx(wilson_interval(round(wanted * 60), 60))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("acuracy", "which is unknown; there are n, accuracy, "),
        ("top_0_accuracy", "which is unknown"),
        ("auroc", "which needs a model that detects unknown images, and `ood=`"),
        ("escape_rate", r"which needs `good=\[...\]`"),
        ("label_accuracy", "which is for several labels per image"),
    ],
)
def test_a_measure_that_cannot_be_is_refused_with_those_there_are(name, why):
    with pytest.raises(EvaluationError, match=f"`measures` names '{name}', {why}") as error:
        evaluate([[0.9, 0.1]], [0], ["a", "b"], measures=["accuracy", name])
    assert "balanced_accuracy" in str(error.value)
    assert "as top_3_accuracy" in str(error.value)


def test_escapes_and_false_rejects_of_an_inspection():
    probs = np.eye(3)[[0, 0, 0, 1, 1, 2, 0, 0]]
    targets = [0, 0, 1, 1, 2, 2, 2, 0]  # good: 3 of 3 pass; of 5 defects 2 pass as good
    found = evaluate(probs, targets, ["fine", "scratch", "dent"], good=["fine"])
    assert found.summary["escape_rate"] == pytest.approx(2 / 5)
    assert found.summary["false_reject_rate"] == 0
    assert tuple(found.intervals.loc["escape_rate"]) == pytest.approx(wilson_interval(2, 5))
    assert "2 of 5 defects passed as good (40.0 %, 95 % interval" in " ".join(found.verdict)
    with_flags = with_ood_scores(found, [0, 0, 9, 0, 0, 0, 0, 9], [], 1.0, targets)
    assert with_flags.summary["escape_rate"] == pytest.approx(1 / 5)  # one goes to a person
    assert with_flags.summary["false_reject_rate"] == pytest.approx(1 / 3)
    assert with_flags.inspection.n_flagged == 2


def test_good_is_refused_where_images_have_several_labels():
    with pytest.raises(EvaluationError, match="parts of one class each"):
        evaluate([[0.9, 0.1]], [[1, 0]], ["a", "b"], multi_label=True, good=["a"])


def test_intervals_are_shown_beside_the_measures():
    found = evaluate(np.eye(2)[[0, 1, 1, 0]], [0, 1, 0, 0], ["a", "b"])
    shown = found._repr_html_()
    low, high = wilson_interval(3, 4)
    assert f"{low:.3f} - {high:.3f}" in shown
    assert "recall 95 %" in shown


def drawn_answers(rng, n_photographs, n_versions, likeness, share):
    """Right or not (N,): a version is answered as its photograph is, or by itself."""
    photograph = rng.random((n_photographs, 1)) < share
    own = rng.random((n_photographs, n_versions)) < share
    return np.where(rng.random(own.shape) < likeness, photograph, own).ravel()


def of_answers(right):
    probs = np.where(right[:, None], [0.9, 0.1], [0.1, 0.9])
    return evaluate(probs, np.zeros(len(right), int), ["a", "b"])


@pytest.mark.parametrize("likeness", [0.8, 1.0])  # .6 and 1 of the correlation within a burst
@pytest.mark.parametrize("share", [0.8, 0.9])
def test_the_interval_of_the_accuracy_holds_where_images_come_in_bursts(likeness, share):
    rng, groups = np.random.default_rng(1), np.repeat(np.arange(20), 10)
    draws = [drawn_answers(rng, 20, 10, likeness, share).mean() for _ in range(400)]
    one = of_answers(drawn_answers(rng, 20, 10, likeness, share))
    covered = {"each": 0, "bursts": 0}
    for accuracy in draws:
        found = one.with_measures(accuracy=accuracy).with_copies(groups)
        low, high = found.intervals.loc["accuracy"]
        covered["bursts"] += low <= share <= high
        low, high = wilson_interval(round(200 * accuracy), 200)
        covered["each"] += low <= share <= high
    assert covered["each"] < 0.7 * 400
    assert covered["bursts"] > 0.91 * 400


def test_near_copies_are_told_and_count_as_about_one_in_all_that_states_the_accuracy():
    found = of_answers(np.repeat([True] * 9 + [False], 10)).with_copies(np.repeat(range(10), 10))
    bounds = wilson_interval(9, 10)
    assert tuple(found.summary[["accuracy_low", "accuracy_high"]]) == pytest.approx(bounds)
    assert tuple(found.intervals.loc["accuracy"]) == pytest.approx(bounds)
    assert "90 of 100 images right (90.0 %, 95 % interval 59.6 to 98.2 %)" in found.verdict[0]
    assert found.notes == (
        "90 of 100 images are near copies of others of them (bursts, augmented files, files saved "
        "again) and tell hardly more than these: the interval of the accuracy counts 10 images; "
        "all other intervals count every one, and are up to 3.2 times too narrow; evaluate one "
        "image of each burst",
    )
    for text in (repr(found), found._repr_html_(), json.dumps(found.to_dict())):
        assert "are up to 3.2 times too narrow" in text
    # 3 bursts of 10 beside 70 single images: 10,000 / (3 * 100 + 70)
    mixed = of_answers(np.ones(100, bool)).with_copies([*np.repeat([0, 1, 2], 10), *range(3, 73)])
    assert mixed.intervals.loc["accuracy", "low"] == pytest.approx(
        wilson_interval(27, 27)[0], abs=1e-3
    )


def test_near_copies_are_no_proof_of_false_alarms_or_of_a_difference():
    # 2 of 24 photographs are flagged, and 8 of them told right, in 13 versions each
    right, groups = np.repeat(np.arange(24) < 8, 13), np.repeat(range(24), 13)
    found = replace(of_answers(right).with_measures(false_alarm_rate=26 / 312), promised=0.05)
    said = "26 of 312 known images called unknown (8.3 %, 5 % promised)"
    assert found.verdict[-1] == f"{said}: more than chance is likely to give."
    counted = found.with_copies(groups)
    assert counted.verdict[-1] == f"{said}."
    better = counted.compare(of_answers(np.repeat(np.arange(24) < 12, 13)))
    as_told = Comparison(both=8, only_first=0, only_second=4, neither=12)
    assert better.interval == pytest.approx(as_told.interval)
    assert better.p_value == as_told.p_value == 0.125
    assert "near copies counted as 24 images" in str(better)


def test_a_few_near_copies_and_none_known_change_nothing():
    found = of_answers(np.arange(100) % 7 > 0)
    pairs = [*np.repeat(range(12), 2), *range(12, 88)]  # as parts of boards look alike
    for groups in (None, np.arange(100), pairs):
        assert found.with_copies(groups) is found
    assert of_answers(np.zeros(0, bool)).with_copies(np.zeros(0, int)).notes == ()
