import json
import math

import pytest
import torch

from learnkit.errors import PredictionError, UncertaintyError
from learnkit.inference.prediction import prediction_of

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


def test_ids_of_classes_take_the_place_of_their_numbers():
    probs = torch.tensor([0.1, 0.25, 0.65])
    told = prediction_of(probs, CLASSES, class_ids=(3, 17, 5))
    assert told.to_halcon()["classification_class_ids"] == (5, 17, 3)
    assert (told.index, told.class_id, told.to_dict()["class_id"]) == (2, 5, 5)
    several = prediction_of(probs, CLASSES, class_ids=(3, 17, 5), multi_label=True, threshold=0.2)
    assert (several.index, several.class_id) == ((1, 2), (17, 5))
    assert several.to_dict()["class_id"] == [17, 5]
    assert (single().class_id, "class_id" in single().to_dict()) == (2, False)


def test_labels_of_a_multi_label_model_are_those_above_the_threshold():
    assert multi()[:2] == (("ant", "<i>wasp</i>"), (0, 2))
    assert multi(0.95)[:2] == ((), ())
    assert multi(0.95).confidence == pytest.approx(0.9)


@pytest.mark.parametrize("prediction", [single(), multi(), multi(0.95)])
def test_html_escapes_class_names(prediction):
    html = prediction._repr_html_()
    assert "<i>" not in html
    assert "&lt;i&gt;wasp" in html


def judged(score=2.0, **kwargs):
    fields = {"ood_score": score, "ood_threshold": 1.5, "p_value": 0.01} | kwargs
    return prediction_of(torch.tensor([0.1, 0.25, 0.65]), CLASSES, **fields)


@pytest.mark.parametrize(
    ("score", "flagged"), [(1.4, False), (1.5, False), (1.51, True), (math.inf, True)]
)
def test_an_image_is_flagged_strictly_above_the_threshold(score, flagged):
    assert judged(score).is_ood is flagged
    assert judged(score).to_dict()["is_ood"] is flagged
    assert judged(score).to_halcon()["ood_result"] == int(flagged)


def test_a_score_that_is_not_a_number_is_flagged():
    assert judged(math.nan).is_ood is True


def test_predictions_of_models_without_ood_say_nothing_of_it():
    assert single().is_ood is None
    assert not [key for key in single().to_dict() | single().to_halcon() if "ood" in key]
    assert "score" not in single()._repr_html_()
    with pytest.raises(PredictionError, match="nothing to calibrate"):
        single().prediction_set()


def test_multi_label_models_are_told_that_prediction_sets_are_of_one_class_an_image():
    with pytest.raises(PredictionError, match="is multi-label, and prediction sets are of models"):
        multi().prediction_set()


def test_what_is_known_of_ood_travels_in_dictionaries_and_html():
    found = json.loads(json.dumps(judged().to_dict(), allow_nan=False))
    assert (found["ood_score"], found["ood_threshold"], found["p_value"]) == (2.0, 1.5, 0.01)
    result = judged().to_halcon()
    assert [result[key] for key in ("ood_score", "ood_threshold", "ood_p_value")] == [2, 1.5, 0.01]
    assert "<b>⚠ unlike the images it knows</b>" in judged()._repr_html_()
    assert "of a known kind" in judged(1.0)._repr_html_()
    assert "out of distribution" in repr(judged())
    assert "out of distribution" not in repr(judged(1.0))


def test_dictionaries_hold_no_infinity_and_no_p_value_where_there_is_none():
    found = judged(1.0, ood_threshold=math.inf, p_value=None).to_dict()
    assert (found["ood_threshold"], found["p_value"]) == (None, None)
    assert "ood_p_value" not in judged(p_value=None).to_halcon()


def test_prediction_sets_follow_the_calibration_images():
    scores = torch.arange(1, 10, dtype=torch.float64) / 10  # nine: alpha .1 asks for the largest
    prediction = judged(nonconformity=(scores, torch.ones(9)))
    assert prediction.prediction_set(0.1) == ("<i>wasp</i>", "bee", "ant")  # 1 - p up to .9
    assert prediction.prediction_set(0.2) == ("<i>wasp</i>", "bee")  # up to .8
    assert prediction.prediction_set(0.5) == ("<i>wasp</i>",)  # up to .5
    assert prediction.prediction_set(0.95) == ("<i>wasp</i>",)  # never empty
    assert prediction.prediction_set(0.01) == ("<i>wasp</i>", "bee", "ant")  # too few images
    assert prediction.to_dict(alpha=0.2)["prediction_set"] == ["<i>wasp</i>", "bee"]


def test_prediction_sets_keep_their_promise_on_fresh_images():
    torch.manual_seed(5)
    classes = tuple("abcde")
    probs = (torch.randn(4000, 5) * 2).softmax(1)
    truth = probs.multinomial(1)[:, 0]  # perfectly calibrated
    nonconformity = 1 - probs.gather(1, truth[:, None])[:2000, 0].double()
    fields = {
        "nonconformity": (nonconformity, torch.ones(2000)),
        "ood_score": 0.0,
        "ood_threshold": 1.0,
    }
    for alpha in (0.05, 0.2):
        held = [
            classes[t] in prediction_of(row, classes, **fields).prediction_set(alpha)
            for row, t in zip(probs[2000:], truth[2000:].tolist(), strict=True)
        ]
        assert sum(held) / 2000 == pytest.approx(1 - alpha, abs=0.03)


def test_a_class_that_can_never_win_is_in_no_set():
    probs = torch.tensor([0.6, 0.4, 0.0])
    few = (torch.tensor([0.5]), torch.ones(1))
    assert prediction_of(probs, CLASSES, nonconformity=few).prediction_set(0.1) == ("ant", "bee")


def test_prediction_sets_need_a_share_and_images_to_calibrate_by():
    for alpha in (0, 1, -0.1, math.nan):
        with pytest.raises(UncertaintyError, match="`alpha` is"):
            judged(nonconformity=(torch.ones(3), torch.ones(3))).prediction_set(alpha)
    with pytest.raises(PredictionError, match="nothing to calibrate"):
        judged(nonconformity=None).prediction_set(0.1)
    none = judged(nonconformity=(torch.ones(0), torch.ones(0)))
    assert none.prediction_set(0.1) == tuple(name for name, _ in none.ranking)
