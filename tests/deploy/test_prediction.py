import json
import math

import pytest
import torch

from learnkit.deploy.prediction import prediction_of

CLASSES = ("ant", "bee", "<i>wasp</i>")


def single():
    return prediction_of(torch.tensor([0.1, 0.25, 0.65]), CLASSES)


def multi(threshold=0.5):
    probs = torch.tensor([0.9, 0.2, 0.6])
    return prediction_of(probs, CLASSES, multi_label=True, threshold=threshold)


def test_a_prediction_unpacks_and_indexes_like_fastais_tuple():
    prediction = single()
    label, index, probs = prediction
    assert (label, index) == ("<i>wasp</i>", 2)
    assert (prediction[0], prediction[1], len(prediction)) == (label, index, 3)
    assert probs is prediction.probs
    assert prediction[:2] == (label, index)
    assert probs[index] == pytest.approx(prediction.confidence)


def test_ranking_falls_and_keeps_class_order_among_equals():
    assert [name for name, _ in single().ranking] == ["<i>wasp</i>", "bee", "ant"]
    even = prediction_of(torch.tensor([0.25, 0.5, 0.25]), CLASSES)
    assert [name for name, _ in even.ranking] == ["bee", "ant", "<i>wasp</i>"]


def test_a_dictionary_survives_json():
    found = json.loads(json.dumps(single().to_dict()))
    assert found["label"] == "<i>wasp</i>"
    assert found["index"] == 2
    assert math.isclose(found["confidence"], 0.65, rel_tol=1e-6)
    assert list(found["probs"]) == list(CLASSES)
    assert json.loads(json.dumps(multi().to_dict()))["label"] == ["ant", "<i>wasp</i>"]


def test_halcon_keys_run_from_likeliest_to_least_likely():
    result = single().to_halcon()
    assert set(result) == {
        "classification_class_ids",
        "classification_class_names",
        "classification_confidences",
    }
    assert result["classification_class_ids"] == (2, 1, 0)
    assert result["classification_class_names"] == ("<i>wasp</i>", "bee", "ant")
    assert result["classification_confidences"] == pytest.approx((0.65, 0.25, 0.1))


def test_labels_of_a_multi_label_model_are_those_above_the_threshold():
    assert multi()[:2] == (("ant", "<i>wasp</i>"), (0, 2))
    assert multi(0.95)[:2] == ((), ())
    assert multi(0.95).confidence == pytest.approx(0.9)


@pytest.mark.parametrize("prediction", [single(), multi(), multi(0.95)])
def test_html_escapes_class_names(prediction):
    html = prediction._repr_html_()
    assert "<i>" not in html
    assert "&lt;i&gt;wasp" in html
