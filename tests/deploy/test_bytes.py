"""A bundle as bytes: it opens as the folder would, and goes on without one."""

import numpy as np
import pytest
from deploy_helpers import make_predictor

from learnkit.deploy.predictor import load_learner
from learnkit.errors import BundleCorruptError, BundleError, NotPicklableError
from learnkit.learner.learner import ImageLearner

IMAGE = np.random.default_rng(0).integers(0, 256, (40, 32, 3), np.uint8)


def test_bytes_open_as_the_folder_does(tmp_path):
    predictor = make_predictor()
    digest = predictor.save(tmp_path / "model")
    data = predictor.to_bytes()
    opened = load_learner(data, sha256=digest)
    assert opened.digest == digest
    assert opened.predict(IMAGE).probs.tolist() == predictor.predict(IMAGE).probs.tolist()
    assert opened.to_bytes() == data
    with pytest.raises(BundleCorruptError, match="is not the pinned bundle"):
        load_learner(data, sha256="0" * 64)


def test_it_stands_in_no_folder_until_it_is_saved(tmp_path):
    opened = load_learner(make_predictor().to_bytes())
    with pytest.raises(NotPicklableError, match="save it first"):
        opened.__reduce__()
    opened.save(tmp_path / "model")
    assert load_learner(tmp_path / "model").predict(IMAGE).label == opened.predict(IMAGE).label


def test_a_learner_goes_on_from_bytes():
    predictor = make_predictor()
    learn = ImageLearner.from_bundle(predictor.to_bytes())
    assert learn.classes == list(predictor.classes)
    np.testing.assert_allclose(
        learn.predict(IMAGE).probs, predictor.predict(IMAGE).probs, atol=1e-6
    )


def test_an_optimised_model_keeps_its_float32_weights_in_the_bytes(tmp_path):
    predictor = make_predictor()
    fast, _ = predictor.optimize(
        "float32", [IMAGE] * 6, backend="onnxruntime", force=True, progress=False
    )
    opened = load_learner(fast.to_bytes())
    assert opened.variant == fast.variant
    assert opened.predict(IMAGE).probs.tolist() == fast.predict(IMAGE).probs.tolist()
    again = load_learner(opened.to_bytes(), variant="float32")
    assert again.predict(IMAGE).probs.tolist() == predictor.predict(IMAGE).probs.tolist()
    opened.save(tmp_path / "model")
    assert load_learner(tmp_path / "model").variant == fast.variant
    both = load_learner(tmp_path / "model", variant="float32")
    assert load_learner(load_learner(both.to_bytes()).to_bytes(), variant=fast.variant).variant


@pytest.mark.parametrize("data", [b"", b"abc", b"PK\x05\x06" + b"\0" * 18])
def test_bytes_of_no_model_are_refused(data):
    with pytest.raises(BundleError):
        load_learner(data)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.999])
def test_bytes_that_are_cut_short_are_said_to_be(share):
    data = make_predictor().to_bytes()
    with pytest.raises(BundleCorruptError, match=r"damaged or cut short .*; give all that `to_by"):
        load_learner(data[: int(len(data) * share)])
