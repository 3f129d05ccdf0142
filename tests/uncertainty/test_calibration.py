import json
import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from learnkit.errors import EvaluationError, UncertaintyError
from learnkit.evaluation import measures
from learnkit.uncertainty import calibration
from learnkit.uncertainty.calibration import TemperatureFit, fit_temperature


def data(n=400, n_classes=5, sharpness=3.0, seed=0):
    """Logits `sharpness` times those the targets were drawn from: the temperature to be found."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, n_classes)) * 1.5
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    targets = [rng.choice(n_classes, p=p) for p in probs]
    return torch.from_numpy(logits * sharpness), torch.tensor(targets)


def loss(logits, targets, temperature, weights=None):
    rows = -(logits / temperature).log_softmax(1)[torch.arange(len(targets)), targets]
    return np.average(rows, weights=weights)


def test_two_classes_have_a_closed_form():
    # right 3 times in 4 with a lead of a: sigmoid(a / T) = 3/4, T = a / log 3
    result = fit_temperature([[5.0, 0.0]] * 4, [0, 0, 0, 1])
    assert result.temperature == pytest.approx(5 / math.log(3), rel=1e-12)
    assert result.ece_before == pytest.approx(1 / (1 + math.exp(-5)) - 0.75)
    assert result.ece_after == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("sharpness", [0.2, 1.0, 3.0, 10.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_temperature_has_the_least_log_loss(sharpness, weighted):
    logits, targets = data(sharpness=sharpness)
    weights = torch.arange(1, 401) / 400 if weighted else None
    result = fit_temperature(logits, targets, weights=weights)
    best = minimize_scalar(
        lambda b: loss(logits, targets, 1 / b, weights), bounds=(0.05, 20), options={"xatol": 1e-9}
    )
    assert result.temperature == pytest.approx(1 / best.x, rel=1e-5)
    assert result.temperature == pytest.approx(sharpness, rel=0.2)
    assert result.log_loss_after == pytest.approx(best.fun, abs=1e-9)
    assert result.log_loss_after <= result.log_loss_before


def test_small_portions_give_the_same(monkeypatch):
    logits, targets = data()
    whole = fit_temperature(logits, targets).temperature
    monkeypatch.setattr(calibration, "_CHUNK", 64)
    assert fit_temperature(logits, targets).temperature == pytest.approx(whole, rel=1e-10)


def test_two_of_a_kind_weigh_like_one_of_weight_two():
    logits, targets = data(60)
    twice = fit_temperature(torch.cat([logits, logits[:20]]), torch.cat([targets, targets[:20]]))
    weighted = fit_temperature(logits, targets, weights=[2.0] * 20 + [1.0] * 40)
    for name in ("temperature", "log_loss_after", "brier_after", "ece_before", "ece_after"):
        assert getattr(weighted, name) == pytest.approx(getattr(twice, name), abs=1e-9), name


def test_calibration_mends_the_confidence_of_fresh_images_and_keeps_the_ranking():
    temperature = fit_temperature(*data(500)).temperature
    logits, targets = data(3000, seed=1)
    cooler = logits / temperature
    before, after = (
        measures.expected_calibration_error(x.softmax(1), targets) for x in (logits, cooler)
    )
    assert before > 0.15
    assert after < 0.03


def test_the_table_holds_the_measures_of_the_evaluation():
    logits, targets = data()
    result = fit_temperature(logits, targets, source="leave-one-out")
    table = result.table()
    assert list(table.index) == ["log loss", "Brier score", "ECE (15 bins)"]
    for column, temperature in {"before": 1.0, "after": result.temperature}.items():
        probs = (logits / temperature).softmax(1)
        expected = [
            measures.log_loss(probs, targets),
            measures.brier_score(probs, targets),
            measures.expected_calibration_error(probs, targets),
        ]
        assert table[column].tolist() == pytest.approx(expected)
    assert (result.source, result.n, result.is_fitted, result.reason) == (
        "leave-one-out",
        400,
        True,
        "",
    )
    assert f"Temperature {result.temperature:.4g} (leave-one-out, 400 images)" in (
        result._repr_html_()
    )


def test_classes_without_images_change_nothing():
    logits, targets = data()
    padded = torch.cat([torch.full((400, 1), -math.inf), logits], 1)
    plain, wider = fit_temperature(logits, targets), fit_temperature(padded, targets + 1)
    assert wider.to_dict() == pytest.approx(plain.to_dict())
    with pytest.raises(UncertaintyError, match="row 7; a class without images cannot be the truth"):
        fit_temperature(padded, (targets + 1).index_fill(0, torch.tensor([7]), 0))


@pytest.mark.parametrize(
    ("logits", "targets", "reason"),
    [
        (np.zeros((0, 3)), [], "no images to calibrate on"),
        (np.ones((5, 1)), [0] * 5, "one class only"),
        (np.eye(3) * 4, [0, 1, 2], "all 3 predictions are right"),
        (np.eye(3) * 4, [1, 2, 0], "all 3 predictions are wrong"),
        (np.ones((4, 2)), [0, 1, 0, 1], "the logits of every image are all alike"),
    ],
)
def test_where_nothing_can_be_learned_the_temperature_stays_one_and_the_reason_is_given(
    logits, targets, reason
):
    result = fit_temperature(logits, targets)
    assert (result.temperature, result.source, result.n) == (1.0, "none", len(logits))
    assert reason in result.reason
    assert not result.is_fitted
    assert math.isnan(result.log_loss_before)
    assert reason in result._repr_html_()


def test_the_bounds_hold_and_are_told():
    # the likelier the less right: no temperature is high enough
    logits = torch.tensor([[9.0, 0.0]] * 3 + [[0.1, 0.0]])
    hot = fit_temperature(logits, [1, 1, 0, 0])
    assert hot.temperature == 20.0
    assert hot.reason == "the best temperature lies beyond the bound 20"
    faint = torch.cat([torch.eye(2).repeat(500, 1), torch.tensor([[1e-3, 0.0]])]) * 0.01
    cold = fit_temperature(faint, [0, 1] * 500 + [1], bounds=(0.5, 2))
    assert cold.temperature == 0.5
    assert "beyond the bound 0.5" in cold.reason


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": [[0.0, math.nan], [1.0, 0.0]]}, "`logits` holds nan in row 0; logits are fin"),
        ({"logits": [[0.0, 1.0], [math.inf, 0.0]]}, "`logits` holds inf in row 1"),
        ({"logits": [0.0, 1.0]}, r"`logits` has shape \(2,\); give one row per image"),
        ({"logits": "ab"}, "`logits` holds what is no array of numbers"),
        ({"bounds": (2, 1)}, r"`bounds` are \(2, 1\); give \(smallest, largest\)"),
        ({"bounds": (0, 1)}, "`temperature` is 0; it divides logits: above 0"),
        ({"weights": [1.0, -1.0]}, "`weights` holds -1 in row 1"),
        ({"source": "guess"}, "`source` is 'guess'; choose from validation, leave-one-out"),
    ],
)
def test_bad_input_is_named(change, message):
    kwargs = {"logits": [[0.0, 1.0], [1.0, 0.0]], "targets": [1, 1]} | change
    with pytest.raises(UncertaintyError, match=message):
        fit_temperature(**kwargs)


def test_targets_are_checked_like_those_of_an_evaluation():
    with pytest.raises(EvaluationError, match="with 2 classes the numbers run from 0 to 1"):
        fit_temperature([[0.0, 1.0]], [2])
    with pytest.raises(EvaluationError, match="`logits` has 1, `targets` has 2 rows"):
        fit_temperature([[0.0, 1.0]], [0, 1])


def test_several_labels_per_image_are_calibrated_through_the_sigmoid():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(800, 3))
    flags = rng.uniform(size=logits.shape) < 1 / (1 + np.exp(-logits))
    result = fit_temperature(4 * logits, flags)
    assert result.temperature == pytest.approx(4, rel=0.15)
    probs = torch.from_numpy(4 * logits / result.temperature).sigmoid()
    assert result.log_loss_after == pytest.approx(measures.log_loss(probs, flags))
    assert result.ece_after < 0.05 < result.ece_before


@pytest.mark.parametrize("temperature", [0, -1.0, math.nan, math.inf, "2", True])
def test_no_number_above_zero_no_temperature(temperature):
    with pytest.raises(UncertaintyError, match=r"`temperature` is .*; it divides logits: above 0"):
        fit_temperature(*data(20), bounds=(temperature, 20.0))


@pytest.mark.parametrize("result", [fit_temperature(*data()), TemperatureFit(reason="none yet")])
def test_a_calibration_survives_json(result):
    values = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert TemperatureFit.from_dict(values).to_dict() == result.to_dict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "`temperature` is 0.0"),
        ({"source": "x"}, "`source` is 'x'"),
        ({"n": -1}, "`n` is -1"),
        ({"ece_after": "low"}, "`ece_after` is 'low'"),
        ({"reason": 3}, "`reason` is 3"),
        ({"extra": 1}, "look at"),
    ],
)
def test_a_damaged_calibration_is_refused(change, message):
    with pytest.raises(UncertaintyError, match=message):
        TemperatureFit.from_dict(TemperatureFit().to_dict() | change)
