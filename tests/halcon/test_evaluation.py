"""Evaluation with HALCON's names and layout, held against scikit-learn."""

import copy
import json
import re

import numpy as np
import pytest
from sklearn import metrics

import learnkit.halcon as ha
from learnkit.halcon.evaluation import classification_measures

IDS = [3, 17, 65_534]
ALL = ["top1_error", "precision", "recall", "f_score"]
MATRICES = ["absolute_confusion_matrix", "relative_confusion_matrix"]


def drawn(n=200, ids=IDS, seed=0):
    """(probabilities, true ids, predicted ids) of a classifier that is often right."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, len(ids), n)
    probs = rng.dirichlet(np.ones(len(ids)), n) + 0.4 * np.eye(len(ids))[truth]
    probs /= probs.sum(1, keepdims=True)
    names = np.asarray(ids)
    return probs, names[truth].tolist(), names[probs.argmax(1)].tolist()


def test_measures_are_those_of_scikit_learn_whatever_the_ids():
    probs, truth, guesses = drawn()
    wanted = [*ALL, "top2_error", "top9_error", *MATRICES]
    found = classification_measures(probs, truth, IDS, wanted, ["global", *IDS])
    overall = found["global"]
    assert overall["top1_error"] == pytest.approx(1 - metrics.accuracy_score(truth, guesses))
    top2 = metrics.top_k_accuracy_score(truth, probs, k=2, labels=IDS)
    assert overall["top2_error"] == pytest.approx(1 - top2)
    assert overall["top9_error"] == 0
    rates = metrics.precision_recall_fscore_support(truth, guesses, labels=IDS, zero_division=0)
    for name, values in zip(("precision", "recall", "f_score"), rates[:3], strict=True):
        np.testing.assert_allclose(overall[f"{name}_per_class"], values)
        assert overall[f"mean_{name}"] == pytest.approx(values.mean())
        of_classes = [found[f"class_id_{one}"][name] for one in IDS]
        np.testing.assert_allclose(of_classes, values)
    matrix = metrics.confusion_matrix(truth, guesses, labels=IDS).T
    np.testing.assert_array_equal(found["absolute_confusion_matrix"], matrix)
    shares = metrics.confusion_matrix(truth, guesses, labels=IDS, normalize="true").T
    np.testing.assert_allclose(found["relative_confusion_matrix"], shares)


def test_a_class_never_predicted_has_precision_0_and_an_absent_one_no_recall():
    probs = np.array([[0.8, 0.1, 0.1], [0.7, 0.2, 0.1], [0.2, 0.1, 0.7]])
    found = classification_measures(probs, [3, 17, 3], IDS, [*ALL, *MATRICES])
    overall = found["global"]
    np.testing.assert_allclose(overall["precision_per_class"], [0.5, 0, 0])
    np.testing.assert_allclose(overall["recall_per_class"], [0.5, 0, np.nan])
    np.testing.assert_allclose(overall["f_score_per_class"], [0.5, 0, np.nan])
    assert overall["mean_recall"] == 0.25
    assert found["relative_confusion_matrix"][:, 2].tolist() == [0, 0, 0]


def test_a_dataset_is_evaluated_by_split_image_or_place(continual, dataset):
    by_split, params = ha.evaluate_dl_model(
        dataset, continual, "split", "test", {"measures": "all"}
    )
    places = ha.find_dl_samples(dataset["samples"], "split", "test", "match")
    by_place, _ = ha.evaluate_dl_model(
        dataset, continual, "sample_indices", places, {"measures": "all"}
    )
    image_ids = [dataset["samples"][place]["image_id"] for place in places]
    by_image, _ = ha.evaluate_dl_model(
        dataset, continual, "image_ids", image_ids, {"measures": "all"}
    )
    assert by_split["global"] == by_place["global"] == by_image["global"]
    samples = by_split["evaluated_samples"]
    assert samples["image_ids"] == image_ids
    wrong = np.mean(np.array(samples["image_label_ids"]) != samples["top1_predictions"])
    assert by_split["global"]["top1_error"] == pytest.approx(wrong)
    assert set(by_split) == {"global", *MATRICES, "evaluated_samples"}
    assert params["class_names"] == ["crack", "good", "rust"]
    assert params["measures"] == ["top1_error", *ALL[1:], *MATRICES]


def test_the_default_is_the_error_of_all_classes(continual, dataset):
    found, params = ha.evaluate_dl_model(dataset, continual, "split", ["validation", "test"], [])
    assert set(found["global"]) == {"top1_error"}
    assert params["class_ids_to_evaluate"] == ["global"]
    assert len(found["evaluated_samples"]["image_ids"]) == 18
    only = {"class_names_to_evaluate": ["good", "global"]}
    found, _ = ha.evaluate_dl_model(dataset, continual, "split", "test", only)
    assert {"global", "class_id_1"} <= set(found)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (("split", "valid", {}), "there is no split 'valid'"),
        (("image_ids", [999], {}), "no sample has the 'image_id' 999"),
        (("sample_indices", [], {}), "no sample is selected"),
        (("samples", [0], {}), "takes 'split', 'image_ids' or"),
        (("split", "test", {"measures": "accuracy"}), "there is no measure 'accuracy'"),
        (("split", "test", {"measures": "top0_error"}), "there is no measure 'top0_error'"),
        (("split", "test", {"measure": "all"}), "does not know 'measure'"),
        (("split", "test", {"class_ids_to_evaluate": 7}), "there is no class 7 to evaluate"),
    ],
)
def test_wrong_questions_are_told(continual, dataset, how, said):
    with pytest.raises(ha.HError, match=said):
        ha.evaluate_dl_model(dataset, continual, *how)


def test_labels_the_model_does_not_know_are_told(continual, dataset):
    dataset["samples"][0]["image_label_id"] = [8]
    with pytest.raises(ha.HError, match="have the 'image_label_id' 8, and the model knows"):
        ha.evaluate_dl_model(dataset, continual, "sample_indices", [0], [])


def test_a_matrix_is_made_of_labels_alone():
    _, truth, guesses = drawn(60)
    matrix = metrics.confusion_matrix(truth, guesses, labels=IDS).T
    np.testing.assert_array_equal(ha.gen_confusion_matrix(truth, guesses, [], []), matrix)
    found = ha.gen_confusion_matrix(truth, guesses, "return_matrix", "relative")
    np.testing.assert_allclose(found, matrix / matrix.sum(0))
    with pytest.raises(ha.HError, match="2 true and 1 predicted"):
        ha.gen_confusion_matrix([1, 2], [1], [], [])


def test_evaluations_are_drawn(continual, dataset):
    result, params = ha.evaluate_dl_model(dataset, continual, "split", "test", {"measures": "all"})
    windows = {}
    modes = ["measures", *MATRICES, "pie_charts_precision", "pie_charts_recall"]
    ha.dev_display_classification_evaluation(result, params, {"display_mode": modes}, windows)
    assert set(windows) == set(modes)
    (ax,) = windows["absolute_confusion_matrix"].axes
    numbers = [int(text.get_text()) for text in ax.texts]
    assert numbers == result["absolute_confusion_matrix"].reshape(-1).tolist()
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("ground truth", "predicted")
    plain, params = ha.evaluate_dl_model(dataset, continual, "split", "test", [])
    with pytest.raises(ha.HError, match="'relative_confusion_matrix' was not evaluated"):
        ha.dev_display_classification_evaluation(plain, params, {"display_mode": modes[2]}, {})
    with pytest.raises(ha.HError, match="'display_mode' has 'table'"):
        ha.dev_display_classification_evaluation(plain, params, {"display_mode": "table"}, {})
    ha.dev_close_window_dict(windows)
    assert windows == {}


def test_samples_are_drawn_with_truth_result_and_heat(continual, dataset):
    dataset["class_names"] = ["a$b$", "good", "rust"]
    sample = ha.read_dl_samples(dataset, [0])
    (result,) = ha.apply_dl_model(continual, sample, [])
    heat = {"heatmap_grad_cam": {"heatmap_image_class_0": np.eye(32, dtype=np.float32)}}
    windows, keys = {}, ["image", "classification_both", "heatmap_grad_cam"]
    ha.dev_display_dl_data(sample, {**result, **heat}, dataset, keys, [], windows)
    title = windows["classification_both"].axes[0].get_title()
    assert title.startswith("truth: a$b$\ncrack: ")
    assert len(windows["heatmap_grad_cam"].axes[0].images) == 2
    zero = {"heatmap_grad_cam": {"heatmap_image_class_1": np.zeros((32, 32))}}
    ha.dev_display_dl_data(sample, zero, dataset, "heatmap_grad_cam", [], windows)
    said = windows["heatmap_grad_cam"].axes[0].get_title()
    assert said == "no part of the image speaks for class 1"
    with pytest.raises(ha.HError, match="there is no result to display"):
        ha.dev_display_dl_data(sample, [], dataset, "classification_result", [], windows)
    with pytest.raises(ha.HError, match="there is no 'bbox' to display"):
        ha.dev_display_dl_data(sample, [], dataset, "bbox", [], windows)


def test_many_samples_are_drawn_in_rows(continual, dataset):
    figure = ha.dev_display_dl_data_tiled(dataset, continual, 7, "test", [], [])
    assert sum(bool(ax.get_title()) for ax in figure.axes) == 7
    with pytest.raises(ha.HError, match="no samples in the split 'valid'"):
        ha.dev_display_dl_data_tiled(dataset, continual, 7, "valid", [], [])


def test_what_is_evaluated_is_left_as_found(continual, dataset):
    before = copy.deepcopy(dataset)
    ha.evaluate_dl_model(dataset, continual, "split", "test", {"measures": "all"})
    assert dataset == before


def test_cells_of_the_confusion_matrix_are_clicked_on_a_page(continual, dataset, tmp_path):
    dataset["class_names"][0] = "<b>crack"
    result, _ = ha.evaluate_dl_model(dataset, continual, "split", ["validation", "test"], [])
    file = {"file_name": str(tmp_path / "matrix.html")}
    path = ha.dev_display_dl_interactive_confusion_matrix(dataset, result, file)
    assert path == file["file_name"]
    with open(path, encoding="utf-8") as page:
        text = page.read()
    assert "<b>crack" not in text
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    data = json.loads(found[1])
    assert [one["name"] for one in data["classes"]] == dataset["class_names"]
    samples = result["evaluated_samples"]
    truth, guesses = samples["image_label_ids"], samples["top1_predictions"]
    wanted = metrics.confusion_matrix(truth, guesses, labels=[0, 1, 2])
    rows = [dict(zip(row[::2], row[1::2], strict=True)) for row in data["confusion"]]
    assert [[row.get(place, 0) for place in range(3)] for row in rows] == wanted.tolist()
    assert len(data["images"]) == 18
    # the page flags what the model flags
    wanted = samples["image_ids"]
    places = [n for n, one in enumerate(dataset["samples"]) if one["image_id"] in wanted]
    read = ha.read_dl_samples(dataset, places)
    told = continual.predictor.predict_batch([one["image"] for one in read])
    assert samples["ood_scores"] == pytest.approx([one.ood_score for one in told])
    assert "does not tell images that it does not know" not in text
    flagged = [one.get("u", False) for one in data["images"]]
    assert sum(flagged) == sum(one.is_ood for one in told)
    assert {one["p"].split("/")[0] for one in data["images"]} == {"crack", "good", "rust"}
    with pytest.raises(ha.HError, match="no sample with the 'image_id'"):
        ha.dev_display_dl_interactive_confusion_matrix({**dataset, "samples": []}, result, file)
    del result["evaluated_samples"]["confidences"]
    with pytest.raises(ha.HError, match="'confidences'"):
        ha.dev_display_dl_interactive_confusion_matrix(dataset, result, file)
