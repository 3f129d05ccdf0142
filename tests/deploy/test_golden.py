"""Bundles of earlier formats must load for ever: `golden/v1` was written once and never again.

Its answers were written down when it was made. When the format gets a new version, a `golden/v2` is
added beside it; nothing in `golden/v1` is touched, neither the files nor the numbers below.
"""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from learnkit.deploy.loading import load_learner

GOLDEN = Path(__file__).parent / "golden" / "v1"
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


def test_the_golden_bundle_is_small():
    assert sum(p.stat().st_size for p in GOLDEN.iterdir()) < 500_000


@pytest.mark.parametrize("name", ["config.json", "README.md", "manifest.json"])
def test_the_golden_text_files_have_no_carriage_returns(name):
    assert b"\r" not in (GOLDEN / name).read_bytes()
