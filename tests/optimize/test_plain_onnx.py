"""A whole model as one ONNX file gives the numbers of its predictor, wherever it runs."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from deploy_helpers import (
    make_continual,
    make_predictor,
    shades,
    strange,
)

from learnkit.backends import onnx_export
from learnkit.cli.app import main
from learnkit.continual.ood_detector import OodDetector
from learnkit.data.preprocess import Preprocessing
from learnkit.deploy.predictor import Predictor, load_learner
from learnkit.errors import ExportError
from learnkit.optimize.plain_onnx import plain_onnx

ROOT = Path(__file__).parents[2]
COUNTS = {"red": 6, "blue": 7, "ß/<b>": 5}
IMAGES = [*shades("red", 3, seed=5), *shades("blue", 2, seed=6), *strange(3)]
EXPORT = onnx_export.export_onnx
SCORES = ("mahalanobis", "relative", "knn", "msp", "energy")
HEADS = {
    "lda": {},
    "ridge": {"classifier": "ridge"},
    "prototype": {"classifier": "prototype"},
    "roots": {"root": True},
    "a promise for each class": {"per_class": True},
    **{score: {"score": score} for score in SCORES},
}


@pytest.fixture(scope="module", autouse=True)
def exported_once():
    """Heads differ, their network does not: it is exported once for all tests of this file."""
    made = {}

    def export(model, recipe, *, continual):
        key = (tuple(t.double().sum().item() for t in model[0].state_dict().values()), continual)
        key += () if continual else (sum(t.sum().item() for t in model[1].state_dict().values()),)
        if key not in made:
            made[key] = EXPORT(model, recipe, continual=continual)
        return made[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_export, "export_onnx", export)
        yield


def with_detector(**settings):
    """A trained head, and beside it what detects images of other kinds."""
    predictor = make_predictor()
    images = [*shades("red", 6), *shades("blue", 6)]
    features = predictor.features(images, progress=False)
    detector = OodDetector(features.shape[1], memory=8, **settings)
    detector.extend(features, ["ok"] * 6 + ["NO"] * 6)
    truth = torch.arange(len(features)) % 3
    detector.fit_sets(predictor.logits(torch.zeros(12, 3, 32, 32).byte()).softmax(1), truth)
    predictor.detector = detector
    return predictor


def run(data, images):
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_outputs()]
    return dict(zip(names, session.run(None, {"image": np.stack(images)}), strict=True))


def assert_alike(found, predictor, images=IMAGES):
    said = predictor.predict_batch(images)
    probs = np.stack([np.asarray(one.probs) for one in said])
    np.testing.assert_allclose(found["probabilities"], probs, atol=1e-5)
    assert ("ood_score" in found) == predictor.detects_ood
    if predictor.detects_ood:
        scores = [one.ood_score for one in said]
        np.testing.assert_allclose(found["ood_score"], scores, rtol=1e-4, atol=1e-4)
    if "features" in found:
        features = predictor.features(images, progress=False)
        np.testing.assert_allclose(found["features"], features, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("settings", HEADS.values(), ids=HEADS)
def test_a_head_gives_the_predictors_numbers(settings):
    predictor = make_continual(COUNTS, **settings)
    assert_alike(run(plain_onnx(predictor.record)[0], IMAGES), predictor)


def test_trained_heads_give_the_predictors_numbers():
    assert_alike(run(plain_onnx(make_predictor().record)[0], IMAGES), make_predictor())
    several = make_predictor(multi_label=True, threshold=[0.4, 0.5, 0.6])
    data, about = plain_onnx(several.record)
    found = run(data, IMAGES)
    assert_alike(found, several)
    assert about["threshold"] == [0.4, 0.5, 0.6]
    labels = [one.label for one in several.predict_batch(IMAGES)]
    above = found["probabilities"] > np.array(about["threshold"])
    names = np.array(about["classes"])
    assert [tuple(names[row]) for row in above] == labels


def test_a_trained_head_with_a_detector_gives_the_predictors_numbers():
    predictor = with_detector()
    data, about = plain_onnx(predictor.record)
    found = run(data, IMAGES)
    assert_alike(found, predictor)
    flagged = [one.is_ood for one in predictor.predict_batch(IMAGES)]
    assert (found["ood_score"] > about["ood_threshold"]).tolist() == flagged


def test_one_class_and_forgotten_ones_give_the_predictors_numbers():
    one = make_continual({"red": 6})
    found = run(plain_onnx(one.record)[0], IMAGES)
    assert_alike(found, one)
    assert (found["probabilities"] == 1).all()
    fewer = make_continual(COUNTS)
    fewer.forget("blue")
    found = run(plain_onnx(fewer.record)[0], IMAGES)
    assert_alike(found, fewer)
    assert (found["probabilities"][:, 1] == 0).all()


def test_a_blank_frame_scores_above_every_threshold():
    body = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, bias=False), torch.nn.ReLU())
    head = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    model = torch.nn.Sequential(body, torch.nn.Sequential(*head, torch.nn.Linear(4, 2)))
    predictor = Predictor(model.eval(), Preprocessing(16), ["a", "b"])
    images = shades("a", 8, size=16)
    detector = OodDetector(4, memory=4)
    detector.extend(predictor.features(images, progress=False), ["a"] * 4 + ["b"] * 4)
    detector.fit_sets(torch.full((8, 2), 0.5), torch.arange(8) % 2)
    predictor.detector = detector
    black = [np.zeros((16, 16, 3), np.uint8)]
    found = run(plain_onnx(predictor.record)[0], black)
    assert predictor.predict_batch(black)[0].ood_score == 1e30
    assert found["ood_score"].tolist() == [np.float32(1e30)]


def test_the_file_stands_alone_and_says_what_programs_need(tmp_path):
    predictor = make_continual(COUNTS)
    file = tmp_path / "m.onnx"
    about = predictor.to_onnx(file)
    assert [one.name for one in tmp_path.iterdir()] == ["m.onnx"]
    model = onnx.load(file)
    assert {one.domain for one in model.opset_import} == {""}
    assert not any(one.external_data for one in model.graph.initializer)
    (image,) = model.graph.input
    assert image.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    kept = {one.key: one.value for one in model.metadata_props}
    assert json.loads(kept["classes"]) == list(COUNTS) == about["classes"]
    assert Preprocessing.from_dict(json.loads(kept["preprocessing"])) == predictor.preprocessing
    assert float(kept["ood_threshold"]) == predictor.ood.threshold.value
    assert json.loads(kept["class_ids"]) == [0, 1, 2]
    before = run(file.read_bytes(), IMAGES)["probabilities"]
    predictor.extend(shades("blue", 5, seed=9), "green", progress=False)
    assert run(file.read_bytes(), IMAGES)["probabilities"].shape == before.shape


def test_what_cannot_be_a_plain_file_is_refused(tmp_path, monkeypatch):
    file = tmp_path / "m.onnx"
    with pytest.raises(ExportError, match="knows no class yet; extend it"):
        make_continual().to_onnx(file)
    predictor = make_continual(COUNTS)
    record = predictor.record.replace(variant="openvino-int8")
    with pytest.raises(ExportError, match=r"openvino-int8 is no ONNX file.*variant='float32'"):
        plain_onnx(record)
    network = predictor.model, predictor.preprocessing
    wrong = onnx.load_model_from_string(onnx_export.export_onnx(*network, continual=True))
    scale = next(one for one in wrong.graph.initializer if len(one.dims) == 4)
    scale.raw_data = (2 * onnx.numpy_helper.to_array(scale)).tobytes()
    with monkeypatch.context() as patch:
        patch.setattr(onnx_export, "export_onnx", lambda *_, **__: wrong.SerializeToString())
        with pytest.raises(ExportError, match=r"off by .* from the model's"):
            predictor.to_onnx(file)
    assert not file.exists()


def test_the_command_writes_the_file_and_what_it_says_of_itself(tmp_path, capsys):
    predictor = make_continual(COUNTS)
    predictor.save(tmp_path / "model")
    out, about = tmp_path / "m.onnx", tmp_path / "m.json"
    with pytest.raises(SystemExit) as ended:
        main(["onnx", str(tmp_path / "model"), str(out), "--about", str(about)])
    assert not ended.value.code
    said = capsys.readouterr().out
    assert "image uint8 (N, 32, 32, 3) in" in said
    assert_alike(run(out.read_bytes(), IMAGES), load_learner(tmp_path / "model"))
    assert json.loads(about.read_text(encoding="utf-8"))["classes"] == list(COUNTS)
    with pytest.raises(SystemExit) as ended:
        main(["onnx", str(tmp_path / "model"), str(tmp_path / "no" / "m.onnx")])
    assert ended.value.code == 2
    assert "does not exist; create it first" in capsys.readouterr().err


def modules_of_node():
    """The folder with onnxruntime-web: .node of the checkout, where CI puts it, or $NODE_PATH."""
    folders = [ROOT / ".node" / "node_modules", *map(Path, filter(None, [os.getenv("NODE_PATH")]))]
    found = (folder for folder in folders if (folder / "onnxruntime-web").is_dir())
    return next(found, None) if shutil.which("node") else None


@pytest.mark.skipif(modules_of_node() is None, reason="node or onnxruntime-web is not here")
def test_the_example_gives_the_predictors_numbers_in_web_assembly(tmp_path):
    (tmp_path / "node_modules").symlink_to(modules_of_node())
    script = tmp_path / "onnx_web.mjs"
    script.write_bytes((ROOT / "examples" / "onnx_web.mjs").read_bytes())
    (tmp_path / "pixels.rgb").write_bytes(np.stack(IMAGES).tobytes())
    for name, predictor in {"head": make_continual(COUNTS), "detector": with_detector()}.items():
        predictor.to_onnx(tmp_path / f"{name}.onnx")
        command = ["node", script, tmp_path / f"{name}.onnx", tmp_path / "pixels.rgb"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
        rows = json.loads(done.stdout)
        keys = ("probabilities", "ood_score")
        assert_alike({key: np.array([row[key] for row in rows]) for key in keys}, predictor)
