"""Bundles of earlier formats must load for ever: each in `golden/` was written once, never again.

Their answers were written down when they were made. When the format gets a new version, another is
added beside them; nothing of those there is touched, neither the files nor the numbers below.
`v1` is a plain classifier in format 1.0, `v1.1` one that goes on learning, in format 1.1, `v1.2` a
plain one with a detector of unusual images beside its head, in format 1.2; `v1.2-variants`
one that goes on learning with two variants, of which the default has learned more; `v1.3` one that
promises class by class, with former states, a snapshot and a log of changes, in format 1.3.
"""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from deploy_helpers import shades, strange

from learnkit.continual.classifier import ContinualClassifier
from learnkit.deploy.predictor import load_learner
from learnkit.deploy.runtime_predictor import load_runtime
from learnkit.errors import DataError

# a bundle of an earlier format derives its classifier anew
pytestmark = pytest.mark.filterwarnings("ignore:the network gives other logits here than")

GOLDEN = Path(__file__).parent / "golden" / "v1"
LEARNING, DETECTING = GOLDEN.with_name("v1.1"), GOLDEN.with_name("v1.2")
DETECTING_DIGEST = "3ffc895d059c2c4907906424c73e0a44483165750b5a5b0877cfe979aad00303"
VARIANTS = GOLDEN.with_name("v1.2-variants")
VARIANTS_DIGEST = "d7e4f0351912bf6f3c36d325f11a13c37f424cad853f21118550caf46ad76406"
REMEMBERING = GOLDEN.with_name("v1.3")
REMEMBERING_DIGEST = "f878b824fd7746d7a80557f46c3acc02805246ee685ac380a5b57af97e0e0a47"
EVERY = [GOLDEN, LEARNING, DETECTING, VARIANTS, REMEMBERING]
LEARNING_DIGEST = "7dccbc2f816aaed7f5a8162b1c2f5e56f2dd4e3a53035a0237f31e42ab466b3f"
DIGEST = "287e4eae34ec6e6a9809d303bb0a19a45be02fc2d77480fbb9a1826c624e216e"
CLASSES = ("ok", "NO", "Kratzer (groß)", "裂纹")
LOGITS = [
    [-5.894693, 0.927630, 1.133512, -0.145288],
    [-7.743702, 1.177682, 0.678316, -0.615539],
    [-3.337570, -1.662407, -0.331623, -1.527791],
]


def picture(k):
    y, x = np.mgrid[0:48, 0:60]
    channels = [x * 4 + k * 9, y * 5 + k * 31, (x + y) * 2 + k * 17]
    return np.stack([channel % 256 for channel in channels], -1).astype("uint8")


def test_the_golden_bundle_gives_the_answers_of_its_day():
    predictor = load_learner(GOLDEN, sha256=DIGEST)
    assert predictor.classes == CLASSES
    assert predictor.preprocessing.size == (32, 40)
    assert predictor.preprocessing.method == "pad"
    assert predictor.metadata["written_by"] == "learnkit 0.1.0"
    for k, expected in enumerate(LOGITS):
        expected = torch.tensor(expected)
        logits = predictor.logits(predictor.preprocessing.load(picture(k))[None])[0]
        torch.testing.assert_close(logits, expected, atol=5e-3, rtol=1e-3)
        label, index, probs = predictor.predict(picture(k))
        assert label == CLASSES[index] == CLASSES[int(expected.argmax())]
        torch.testing.assert_close(probs, expected.softmax(0), atol=2e-3, rtol=0)


def test_the_golden_bundle_can_be_saved_anew(tmp_path):
    predictor = load_learner(GOLDEN)
    predictor.save(tmp_path / "model")
    again = load_learner(tmp_path / "model")
    assert torch.equal(again.logits(predictor.probes), predictor.logits(predictor.probes))
    assert again.metadata == predictor.metadata


def test_timm_opens_the_golden_bundles_body():
    opened = timm.create_model(f"local-dir:{GOLDEN}", pretrained=True).eval()
    predictor = load_learner(GOLDEN)
    x = predictor.preprocessing.normalize(predictor.probes)
    with torch.no_grad():
        torch.testing.assert_close(opened.forward_features(x), predictor.model[0](x))


# a later version may derive another classifier from the same statistics, and then says so
@pytest.mark.filterwarnings("ignore:the network gives other logits")
def test_the_golden_bundle_that_learns_knows_what_it_knew_and_goes_on_learning(tmp_path):
    predictor = load_learner(LEARNING, sha256=LEARNING_DIGEST)
    head, stats = predictor.continual, predictor.continual.statistics
    assert predictor.classes == ("ok", "Kratzer (groß)", "裂纹", "Delle")
    assert head.n_images == {"ok": 30, "Kratzer (groß)": 12, "裂纹": 10, "Delle": 0}
    assert (head.settings.root, head.settings.memory, head.n_features) == (True, 6, 32)
    assert [(one.name, one.count) for one in stats.forgotten] == [("Delle", 9)]
    assert (stats.sums.sum().item(), stats.gram.trace().item()) == (6616711.0, 65498142794.0)
    assert len(stats.memory) == 18
    for name in ("ok", "Kratzer (groß)", "裂纹"):
        for image in shades(name, 2, seed=7):
            prediction = predictor.predict(image)
            assert (prediction.label, prediction.is_ood) == (name, False)
    assert all(predictor.predict(image).is_ood for image in shades("Delle", 2, seed=7))
    predictor.extend(shades("Delle", 9), "Delle", progress=False)
    predictor.save(tmp_path / "model")
    again = load_learner(tmp_path / "model")
    assert again.predict(shades("Delle", 1, seed=7)[0]).index == 3


def test_the_golden_bundle_with_a_detector_still_tells_unusual_images(tmp_path):
    predictor = load_learner(DETECTING, sha256=DETECTING_DIGEST)
    detector = predictor.detector
    assert predictor.continual is None
    assert detector.n_images == {"ok": 20, "Kratzer (groß)": 20, "裂纹": 20}
    assert (detector.settings.root, detector.settings.memory, detector.n_features) == (True, 6, 32)
    assert len(detector.head_nonconformity) == 24
    for name in predictor.classes:
        for image in shades(name, 2, seed=7):
            prediction = predictor.predict(image)
            assert (prediction.label, prediction.is_ood) == (name, False)
            assert prediction.prediction_set(0.2) == (name,)
    assert all(predictor.predict(image).is_ood for image in strange(2))
    predictor.save(tmp_path / "model")
    again = load_learner(tmp_path / "model")
    assert again.detector.statistics.equals(detector.statistics)


def test_the_golden_bundle_with_variants_runs_where_it_ran_and_learns_on(tmp_path):
    predictor = load_learner(VARIANTS, sha256=VARIANTS_DIGEST, threads=1)
    assert predictor.variant == predictor.report.variant == "onnxruntime-float16"
    assert predictor.metadata["written_by"] == "learnkit 0.1.0, format 1.2"
    assert predictor.continual.n_images["neu"] == 7
    assert predictor.has_learned
    # that of the file divides the logits, whatever would be derived today
    assert predictor.continual.temperature == predictor.continual.scoring.temperature
    for name in ("ok", "Kratzer (groß)", "裂纹", "neu"):
        assert predictor.predict(shades(name, 1, seed=7)[0]).label == name
    with pytest.warns(UserWarning, match="'onnxruntime-float16' beside it has learned more"):
        assert load_learner(VARIANTS, variant="float32").classes == predictor.classes[:4]
    assert load_runtime(VARIANTS, threads=1).predict(shades("neu", 1, seed=7)[0]).label == "neu"
    predictor.extend(shades("Delle", 9), "Delle", progress=False)
    predictor.save(tmp_path / "model")
    again = load_learner(tmp_path / "model", threads=1)
    assert again.predict(shades("Delle", 1, seed=7)[0]).index == 3
    assert (tmp_path / "model" / "variants" / "torch-bfloat16.report.json").is_file()


# a later version may derive another classifier from the same statistics, and then says so
@pytest.mark.filterwarnings("ignore:the network gives other logits")
def test_the_golden_bundle_that_remembers_goes_back_and_on(tmp_path):
    predictor = load_learner(REMEMBERING, sha256=REMEMBERING_DIGEST)
    head, names = predictor.continual, ("ok", "Kratzer (groß)", "Riss", "alt", "Delle")
    assert predictor.classes == names
    assert head.n_images == dict(zip(names, (40, 24, 30, 0, 12), strict=True))
    assert [(one.name, one.count) for one in head.statistics.forgotten] == [("alt", 8)]
    assert head.statistics.sums.sum().item() == 11700473.0
    assert head.statistics.gram.trace().item() == 122406733284.0
    assert head.settings.per_class
    assert head.threshold.source == "validation and leave-one-out"
    assert [entry.what for entry in predictor.audit] == [
        *("extend", "rename", "forget", "calibrate", "extend")
    ]
    for name, shown in ("ok", "ok"), ("Riss", "裂纹"), ("Delle", "Delle"):
        for image in shades(shown, 2, seed=7):
            prediction = predictor.predict(image)
            assert (prediction.label, prediction.is_ood) == (name, False)
            assert prediction.prediction_set(0.2) == (name,)
    with pytest.raises(DataError, match="'裂纹'"):
        predictor.extend(shades("裂纹", 2), "裂纹", progress=False)
    predictor.undo()
    assert predictor.continual.n_images["Riss"] == 30
    assert "Delle" not in predictor.continual.n_images
    predictor.extend(shades("neu", 5), "neu", progress=False)
    predictor.restore("measured")
    assert "neu" not in predictor.continual.n_images
    predictor.save(tmp_path / "model")
    again = load_learner(tmp_path / "model")
    again.extend(shades("neu", 5), "neu", progress=False)
    again.restore("measured")
    assert again.continual.statistics.equals(predictor.continual.statistics)


@pytest.mark.filterwarnings("error")
def test_a_bundle_from_before_logits_were_blended_answers_as_ever(tmp_path):
    predictor = load_learner(REMEMBERING)  # which compares its probes with what was recorded
    assert not predictor.continual.settings.blend
    assert not predictor.continual.settings.near_copies
    predictor.save(tmp_path / "model")
    again = load_learner(tmp_path / "model")
    assert not again.continual.settings.blend
    assert torch.equal(again.logits(predictor.probes), predictor.logits(predictor.probes))
    assert ContinualClassifier(8).settings.blend
    assert ContinualClassifier(8).settings.near_copies


@pytest.mark.parametrize("path", EVERY, ids=lambda path: path.name)
def test_the_golden_bundles_are_small(path):
    assert sum(p.stat().st_size for p in path.rglob("*")) < 500_000


@pytest.mark.parametrize("path", EVERY, ids=lambda path: path.name)
@pytest.mark.parametrize("name", ["config.json", "README.md", "manifest.json"])
def test_the_golden_text_files_have_no_carriage_returns(path, name):
    assert b"\r" not in (path / name).read_bytes()
