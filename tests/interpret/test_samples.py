"""Samples chosen by conditions: against a slow loop, as a table and as a grid."""

import numpy as np
import pytest

from learnkit.errors import InterpretationError
from learnkit.interpret.classification import ClassificationInterpretation
from learnkit.interpret.outputs import Outputs
from learnkit.interpret.tables import samples_table

NAMES = ["a", "b", "c"]


@pytest.fixture(scope="module")
def outputs():
    import dataclasses

    import torch

    rng = np.random.default_rng(0)
    probs, targets = rng.dirichlet(np.ones(3), 200), rng.integers(0, 3, 200)
    found = Outputs.from_probs(probs, targets, losses=rng.random(200), classes=NAMES)
    scores = torch.as_tensor(rng.normal(size=200))
    scores[5] = float("nan")
    return dataclasses.replace(found, ood_scores=scores)


@pytest.mark.parametrize(
    "which",
    [
        {},
        {"pred": "b"},
        {"true": ["a", "c"], "correct": False},
        {"pred": "a", "true": "b"},
        {"confidence": (0.5, 0.8)},
        {"ood": True},
        {"ood": False, "correct": True, "confidence": (0.4, 1)},
    ],
    ids=range(7),
)
def test_samples_are_those_of_a_slow_loop(outputs, which):
    wanted = []
    for i in range(200):
        probs, score = outputs.probs[i].numpy(), float(outputs.ood_scores[i])
        pred, true = NAMES[probs.argmax()], NAMES[outputs.targets[i]]
        low, high = which.get("confidence", (0, 1))
        keep = pred in which.get("pred", NAMES) and true in which.get("true", NAMES)
        keep = keep and low <= probs.max() <= high
        keep = keep and which.get("ood", not score <= 0.3) == (not score <= 0.3)
        wanted += [i] if keep and which.get("correct", pred == true) == (pred == true) else []
    table = samples_table(outputs, 0.3, **which)
    assert table.index.tolist() == wanted
    assert len(wanted) > 3
    assert table["actual"].tolist() == [NAMES[outputs.targets[i]] for i in wanted]
    np.testing.assert_allclose(table["ood_score"], outputs.ood_scores[wanted])


def test_several_labels_are_found_by_any_of_them():
    rng = np.random.default_rng(1)
    probs, flags = rng.random((80, 3)), rng.random((80, 3)) < 0.5
    outputs = Outputs.from_probs(probs, flags, classes=NAMES)
    table = samples_table(outputs, None, pred="a", true="c")
    assert table.index.tolist() == np.flatnonzero((probs[:, 0] > 0.5) & flags[:, 2]).tolist()
    assert "ood_score" not in table


@pytest.mark.parametrize(
    ("which", "why"),
    [
        ({"pred": "d"}, "`pred` is 'd', which is no class; the classes are 'a', 'b', 'c'"),
        ({"true": ["a", "x"]}, "`true` is 'x', which is no class"),
        ({"confidence": (0.9, 0.1)}, r"`confidence` is \(0.9, 0.1\); give \(lowest, highest\)"),
        ({"confidence": 0.5}, "`confidence` is 0.5"),
        ({"ood": True}, "this model detects no images out of distribution"),
    ],
)
def test_conditions_that_cannot_be_are_refused(outputs, which, why):
    with pytest.raises(InterpretationError, match=why):
        samples_table(outputs, None, **which)


def test_an_interpretation_gives_samples_and_draws_them(tmp_path):
    from helpers import tiny_learner, write_image_folder

    from learnkit.data.dataset import ImageDataset

    root = write_image_folder(tmp_path / "data", {"a": 9, "b": 9})
    data = ImageDataset.from_folder(root).split(0.5, 0.5, seed=0)
    interp = ClassificationInterpretation.from_learner(tiny_learner(data))
    right, wrong = interp.samples(correct=True), interp.samples(correct=False)
    assert len(right) + len(wrong) == len(interp.outputs)
    assert wrong.index.tolist() == sorted(interp.errors().index)
    axes = interp.plot_samples(3, confidence=(0, 1))
    assert len(axes) == 3
    assert len(interp.plot_samples(confidence=(0, 0))) == 0
