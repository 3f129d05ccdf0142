"""One threshold of a multi-label model, wherever a label is counted: that of the loss function."""

import json
import re
import shutil
import warnings
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from deploy_helpers import edit_config
from fastai.losses import BCEWithLogitsLossFlat
from fastai.metrics import F1ScoreMulti, accuracy_multi
from helpers import quiet, write_image_folder
from sklearn.metrics import accuracy_score, f1_score

from learnkit.callback.history import TrainingHistory
from learnkit.data.dataset import ImageDataset
from learnkit.deploy.predictor import Predictor, load_learner
from learnkit.errors import (
    BundleCorruptError,
    BundleVersionError,
    EvaluationError,
    InterpretationError,
    PredictionError,
)
from learnkit.evaluation.evaluate import evaluate
from learnkit.evaluation.inputs import labels_above
from learnkit.interpret.classification import ClassificationInterpretation
from learnkit.learner.factory import cnn_learner

PER_CLASS = [0.35, 0.5, 0.62]
THRESHOLDS = {"one": 0.8, "list": PER_CLASS, "tensor": torch.tensor(PER_CLASS, dtype=torch.double)}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = write_image_folder(tmp_path_factory.mktemp("images"), {"x": 20, "y": 20})
    files = sorted(root.rglob("*.png"))
    rng = np.random.default_rng(0)
    labels = [[c for c in "abc" if rng.random() < 0.5] for _ in files]
    split = ["train", "valid"] * (len(files) // 2)
    frame = pd.DataFrame({"path": files, "label": labels, "split": split})
    return ImageDataset.from_df(frame, root, split_col="split")


def make(data, **kwargs):
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        learn = cnn_learner(data.dataloaders(size=32, bs=8), "test_resnet", False, **kwargs)
    learn.logger = lambda *_: None
    return quiet(learn)


@pytest.fixture(scope="module", params=THRESHOLDS)
def trained(request, data):
    loss = BCEWithLogitsLossFlat(thresh=THRESHOLDS[request.param])
    learn = make(data, loss_func=loss, metrics=accuracy_multi, cbs=TrainingHistory(1.0))
    torch.manual_seed(0)
    learn.fit(4, 1e-6)
    logits = learn.outputs().logits  # spread the probabilities over the thresholds
    with torch.no_grad():
        learn.model[1][-1].weight.div_(logits.std(0)[:, None])
        learn.model[1][-1].bias.sub_(logits.mean(0)).div_(logits.std(0))
    learn.fit(1, 1e-6)
    assert loss.thresh is THRESHOLDS[request.param]  # the caller's stays as it is
    return learn


@pytest.fixture(scope="module")
def truth(trained, data):
    """(files, probabilities float64, flags, flags predicted by hand) of the validation images."""
    probs, targets = trained.get_preds()
    probs = probs.double().numpy()
    thresholds = np.asarray(trained.loss_func.thresh)
    predicted = np.stack([[p > t for p, t in zip(row, np.broadcast_to(thresholds, 3), strict=True)]
                          for row in probs])  # fmt: skip
    assert (predicted != (probs > 0.5)).sum() > 0
    return data.valid.paths, probs, targets.numpy() > 0.5, predicted


def test_every_verb_of_the_learner_counts_alike(trained, truth):
    paths, _, flags, predicted = truth
    names = [tuple(c for c, on in zip("abc", row, strict=True) if on) for row in predicted]
    assert [p.label for p in trained.predict_batch(paths)] == names
    assert trained.predict(paths[0]).label == names[0]
    decoded = trained.get_preds(with_decoded=True)[2]
    assert np.array_equal(decoded.numpy() > 0.5, predicted)
    summary = trained.evaluate().summary
    right = accuracy_score(flags.ravel(), predicted.ravel())
    assert summary["label_accuracy"] == pytest.approx(right)
    assert summary["accuracy"] == pytest.approx(accuracy_score(flags, predicted))
    f1 = f1_score(flags, predicted, average="macro", zero_division=0)
    assert summary["macro_f1"] == pytest.approx(f1)
    assert trained.validate()[1] == pytest.approx(right)
    row = trained.history.iloc[-1]
    assert row["accuracy_multi"] == pytest.approx(right)
    assert row["valid_error"] == pytest.approx(1 - right)
    probs, targets = trained.get_preds()
    given = ClassificationInterpretation(trained, probs, targets)
    assert np.array_equal(given.outputs.pred_labels.numpy(), predicted)


def test_the_bundle_counts_alike_and_its_card_says_so(trained, truth, tmp_path):
    paths, _, flags, predicted = truth
    names = [tuple(c for c, on in zip("abc", row, strict=True) if on) for row in predicted]
    expected = trained.predictor().threshold
    trained.export(tmp_path / "m")
    model = load_learner(tmp_path / "m")
    assert model.threshold == expected
    assert [p.label for p in model.predict_batch(paths)] == names
    card = (tmp_path / "m" / "README.md").read_text(encoding="utf-8")
    above = "0.8" if isinstance(expected, float) else "a: 0.35, b: 0.5, c: 0.62"
    assert f"A label counts above a probability of {above}." in card.replace("\\", "")
    measured = re.search(r"label\\?_accuracy\W+(\d[.\d]*)", card)[1]
    right = accuracy_score(flags.ravel(), predicted.ravel())
    assert float(measured) == pytest.approx(right, abs=1e-3)
    model.save(tmp_path / "again")
    assert load_learner(tmp_path / "again").threshold == expected


def test_an_older_learnkit_refuses_what_it_would_get_wrong(data, tmp_path):
    for thresh, critical in ((0.6, []), (PER_CLASS, ["thresholds"])):
        learn = make(data, loss_func=BCEWithLogitsLossFlat(thresh=thresh))
        learn.export(tmp_path / "m", evaluate=False)
        config = json.loads((tmp_path / "m" / "config.json").read_text(encoding="utf-8"))
        assert config["learnkit"]["critical"] == critical
        assert config["learnkit"]["threshold"] == thresh
        shutil.rmtree(tmp_path / "m")


def test_without_a_threshold_half_is_meant(data):
    learn = make(data, loss_func=torch.nn.BCEWithLogitsLoss(), metrics=accuracy_multi)
    assert learn.predictor().threshold == 0.5
    assert make(data).predictor().threshold == 0.5


@pytest.mark.parametrize("thresh", [0, 1.0, -0.1, float("nan"), "a", [0.5, 0.5], [0.5, 0.5, 1.5]])
def test_a_threshold_is_a_probability_or_one_per_class(data, thresh):
    with pytest.raises(
        InterpretationError, match=r"loss function's `thresh` is .*; it is a probab"
    ):
        make(data, loss_func=BCEWithLogitsLossFlat(thresh=thresh)).predictor()
    with pytest.raises(
        PredictionError, match=r"`threshold` is .*, or a list of one for each of the 3"
    ):
        make(data).predictor().set(threshold=thresh)


def test_a_predictor_takes_one_threshold_per_class(data):
    learn = make(data)
    model = learn.predictor().set(threshold=PER_CLASS)
    assert model.threshold == tuple(PER_CLASS)
    probs = np.stack([p.probs for p in model.predict_batch(data.valid.paths)])
    labels = [p.label for p in model.predict_batch(data.valid.paths)]
    assert labels == [tuple(c for c, p, t in zip("abc", row, PER_CLASS, strict=True) if p > t)
                      for row in probs.astype(float)]  # fmt: skip
    again = Predictor(
        learn.model, model.preprocessing, ["a", "b", "c"], threshold=np.array(PER_CLASS)
    )
    assert again.threshold == tuple(PER_CLASS)


def test_measures_take_one_threshold_per_class():
    rng = np.random.default_rng(1)
    probs, flags = rng.random((60, 3)), rng.random((60, 3)) > 0.5
    found = evaluate(probs, flags, "abc", multi_label=True, threshold=PER_CLASS)
    predicted = probs > np.array(PER_CLASS)
    assert found.summary["accuracy"] == pytest.approx(accuracy_score(flags, predicted))
    assert found.threshold == tuple(PER_CLASS)
    with pytest.raises(EvaluationError, match="one for each of the 3 classes"):
        evaluate(probs, flags, "abc", multi_label=True, threshold=[0.5])


def test_a_label_counts_for_everyone_or_for_no_one():
    # The float32 next to .1 is above it in float64 and equal to it in float32.
    probs = torch.tensor([[0.1, 0.9, 0.7]])
    exact = [
        [float(np.float32(0.1)) > 0.1, float(np.float32(0.9)) > 0.9, float(np.float32(0.7)) > 0.7]
    ]
    assert labels_above(probs, (0.1, 0.9, 0.7)).tolist() == exact == [[True, False, False]]
    assert labels_above(probs.numpy(), (0.1, 0.9, 0.7)).tolist() == exact


def test_a_metric_with_another_threshold_is_named(data):
    dls = data.dataloaders(size=32, bs=8)
    loss = BCEWithLogitsLossFlat(thresh=0.9)
    build = partial(cnn_learner, dls, "test_resnet", False, loss_func=loss)
    with pytest.warns(
        UserWarning, match=r"metric f1_score counts labels above 0\.5, .* above 0\.9"
    ):
        build(metrics=F1ScoreMulti())
    with pytest.warns(UserWarning, match=r"accuracy_multi counts labels above 0\.5, the loss"):
        build(metrics=partial(accuracy_multi, thresh=0.5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build(metrics=[F1ScoreMulti(thresh=0.9), partial(accuracy_multi, thresh=0.9)])


def test_a_damaged_threshold_is_refused(data, tmp_path):
    make(data).export(tmp_path / "m", evaluate=False)
    for value in ([0.5, 0.5], [0.5, 0.5, 2.0], [0.5, "a", 0.5], 0.0, None):
        edit_config(tmp_path / "m", lambda section, value=value: section.update(threshold=value))
        with pytest.raises((BundleCorruptError, BundleVersionError), match="threshold"):
            load_learner(tmp_path / "m")
