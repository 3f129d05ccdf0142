"""The accuracy matrix over steps of learning: against GEM's definitions, and real extends."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from deploy_helpers import make_continual, shades
from PIL import Image

from learnkit.data.dataset import ImageDataset
from learnkit.errors import DataError, EvaluationError
from learnkit.evaluation.measures import wilson_interval
from learnkit.interpret.accuracy_matrix import AccuracyMatrix


class Told:
    """A model whose recalls are told; 10 images a class are held out."""

    def __init__(self, **recalls):
        self.recalls, self.classes = recalls, list(recalls)

    def evaluate(self, images):
        assert set(images.labels) <= set(self.classes)
        table = pd.DataFrame({"recall": self.recalls})
        return type("Found", (), {"per_class": table, "page": None})()


def held_out(*names, n=10):
    rows = [{"path": f"{name}/{i}.png", "label": name} for name in names for i in range(n)]
    return ImageDataset.from_df(pd.DataFrame(rows), "/nowhere", check_files=False)


def test_transfer_and_forgetting_are_those_of_gem():
    matrix = AccuracyMatrix(held_out("a", "b", "c"))
    steps = [
        {"a": 0.9},
        {"a": 1.0, "b": 0.8},
        {"a": 0.6, "b": 0.9, "c": 0.7},
    ]
    for recalls in steps:
        matrix.measure(Told(**recalls))
    r = [[one.get(name, np.nan) for name in "abc"] for one in steps]
    pd.testing.assert_frame_equal(
        matrix.frame,
        pd.DataFrame(r, pd.Index(["1", "2", "3"], name="step"), list("abc")),
    )
    # GEM: BWT = 1 / (T - 1) sum over i < T of R[T, i] - R[i, i]
    wanted = sum(r[2][i] - r[i][i] for i in range(2)) / 2
    assert matrix.backward_transfer == pytest.approx(wanted) == pytest.approx(-0.1)
    assert matrix.average_accuracy == pytest.approx(sum(r[2]) / 3)
    # Chaudhry: the best of all earlier steps
    assert matrix.forgetting.tolist()[:2] == pytest.approx([1.0 - 0.6, 0.8 - 0.9])
    assert np.isnan(matrix.forgetting["c"])
    low, high = matrix.intervals
    assert (low.loc["3", "a"], high.loc["3", "a"]) == pytest.approx(wilson_interval(6, 10))
    assert np.isnan(low.loc["1", "b"])
    assert "backward transfer -0.100, forgetting 0.150" in str(matrix)


def test_one_step_forgets_nothing():
    matrix = AccuracyMatrix(held_out("a"))
    assert str(matrix).startswith("No step is measured yet.")
    with pytest.raises(EvaluationError, match=r"nothing to plot: no step is measured yet; .*meas"):
        matrix.plot()
    assert not plt.get_fignums()
    matrix.measure(Told(a=0.5), "start")
    assert np.isnan(matrix.backward_transfer)
    assert matrix.forgetting.isna().all()
    assert "nothing was learned before the last" in str(matrix)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("steps")
    for name in ("red", "green", "blue"):
        (root / name).mkdir()
        for i, image in enumerate(shades(name, 5, seed=8)):
            Image.fromarray(image).save(root / name / f"{i}.png")
    return root


def test_real_extends_are_recorded_step_by_step(folder):
    model = make_continual({"red": 12, "green": 12})
    matrix = AccuracyMatrix(folder)
    change = matrix.extend(model, shades("blue", 12), "blue", step="blue", progress=False)
    assert "blue" in change.classes_added
    frame = matrix.frame
    assert list(frame.index) == ["before", "blue"]
    assert np.isnan(frame.loc["before", "blue"])
    wanted = model.evaluate(folder, progress=False).per_class["recall"]
    assert frame.loc["blue"].to_dict() == wanted.to_dict()
    axes = matrix.plot()
    assert [text.get_text() for text in axes.get_yticklabels()] == ["before", "blue"]
    assert len(axes.texts) == 5
    assert "blue" in matrix._repr_html_()


def test_a_forgotten_class_is_forgotten(folder):
    model = make_continual({"red": 12, "green": 12, "blue": 12})
    matrix = AccuracyMatrix(folder).measure(model)
    model.forget("red")
    matrix.measure(model)
    assert matrix.forgetting["red"] == matrix.frame.loc["1", "red"] == 1


def test_held_out_images_must_be_held_out(folder):
    model = make_continual({"red": 12, "green": 12})
    model.extend([folder / "red" / "0.png"], "red", progress=False)
    matrix = AccuracyMatrix(folder)
    with pytest.raises(EvaluationError, match="has learned 1 of the held-out images"):
        matrix.measure(model)
    assert matrix.frame.empty
    with pytest.raises(EvaluationError, match=r"knows none of the classes .* it knows x"):
        matrix.measure(Told(x=1.0))
    with pytest.raises(DataError, match="`images` is a list"):
        AccuracyMatrix([1])
