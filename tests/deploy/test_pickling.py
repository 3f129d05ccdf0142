"""Predictors in pickles: a path and a digest, opened again in the process that gets them."""

import copy
import pickle
import shutil
import subprocess
import sys

import pytest
import torch
from deploy_helpers import (
    labelled,
    make_continual,
    make_model,
    make_predictor,
    shades,
    without_timing,
)
from runtime_helpers import NAME, onnx_bytes, variant_files, write_bundle

from learnkit.backends.conversion import Converted
from learnkit.continual.ood_detector import OodDetector
from learnkit.deploy.predictor import Predictor, load_learner
from learnkit.deploy.runtime_predictor import load_runtime
from learnkit.errors import BundleCorruptError, LearnkitError, NotPicklableError
from learnkit.inference.model import model_digest

COUNTS = {"ok": 5, "bad": 4}
QUIET = {"threads": 1, "progress": False}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A bundle of a model in the continual state, not to be changed."""
    path = tmp_path_factory.mktemp("pickled") / "model"
    make_continual(COUNTS).save(path)
    return path


@pytest.fixture(scope="module")
def optimised(tmp_path_factory):
    """A bundle with a variant in torch (no export), not to be changed."""
    source, path = make_continual(COUNTS), tmp_path_factory.mktemp("pickled") / "optimised"
    with without_timing():
        faster, _ = source.optimize("bfloat16", backend="torch", force=True, **QUIET)
    faster.save(path)
    with pytest.MonkeyPatch.context() as patch:  # slow without such a processor, not impossible
        patch.setattr("learnkit.backends.registry.has_bfloat16", lambda: True)
        yield path


@pytest.fixture
def bundle(written, tmp_path):
    return shutil.copytree(written, tmp_path / "model")


@pytest.fixture
def runtime_bundle(tmp_path):
    write_bundle(tmp_path / "m", variant_files(onnx=onnx_bytes(2)), default=NAME)
    return tmp_path / "m"


def again(predictor):
    data = pickle.dumps(predictor)
    assert len(data) < 1000
    return pickle.loads(data)


def refused(match):
    return pytest.raises(NotPicklableError, match=match)


# a script of its own: a pool's processes start by running what started the pool once more
_IN_A_POOL = """
import multiprocessing, sys
from concurrent.futures import ProcessPoolExecutor

import numpy as np

if __name__ == "__main__":
    from learnkit import load_learner, load_runtime

    models = [load_learner(sys.argv[1]), load_runtime(sys.argv[2], threads=1)]
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        for model in models:
            image = np.full((*model.preprocessing.size, 3), 90, np.uint8)
            there, here = pool.submit(model.predict, image).result(), model.predict(image)
            np.testing.assert_allclose(there.probs, here.probs, rtol=1e-5)
            assert (there.label, there.ood_threshold) == (here.label, here.ood_threshold)
            print("same")
"""


@pytest.mark.usefixtures("short_tmp")
def test_a_worker_process_gets_the_model_from_its_bundle(written, runtime_bundle, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(_IN_A_POOL, encoding="utf-8")
    command = [sys.executable, str(script), str(written), str(runtime_bundle)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["same", "same"]


def test_what_was_loaded_pickles_as_a_path_and_comes_back_the_same(written, runtime_bundle):
    plain = load_learner(written)
    back = again(plain)
    assert (type(back), back.digest, back.classes) == (type(plain), plain.digest, plain.classes)
    runtime = again(load_runtime(runtime_bundle, threads=1))
    assert (runtime.variant, runtime.threads, runtime.device) == (NAME, 1, "cpu")
    assert str(written).encode() in pickle.dumps(plain)


def test_an_optimised_model_comes_back_in_its_variant(optimised):
    predictor = load_learner(optimised, threads=1)
    back = again(predictor)
    assert isinstance(back, Predictor)
    assert (back.variant, back.threads) == ("torch-bfloat16", 1)
    image = shades("ok", 1)[0]
    assert torch.equal(back.predict(image).probs, predictor.predict(image).probs)
    assert again(load_learner(optimised, variant="float32")).variant is None
    predictor.set(ood_threshold=7.0)
    with refused("has changed since .* save it first"):
        pickle.dumps(predictor)


def test_a_relative_path_leads_there_from_elsewhere_too(bundle, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    data = pickle.dumps(load_learner("model"))
    monkeypatch.chdir("/")
    assert pickle.loads(data).classes == tuple(COUNTS)


def test_what_is_in_no_bundle_is_refused_until_it_is_saved(tmp_path):
    predictor = make_predictor()
    with refused(r"this Predictor is in no bundle.* save it first: predictor.save\(path\)"):
        pickle.dumps(predictor)
    predictor.save(tmp_path / "m")
    assert again(predictor).classes == predictor.classes
    assert predictor.digest is None


CHANGES = {
    "extended": lambda p: p.extend(*labelled({"new": 3}), progress=False),
    "renamed": lambda p: p.rename({"ok": "fine"}),
    "threshold set": lambda p: p.set(ood_threshold=7.0),
    "metadata": lambda p: p.metadata.update(line=3),
    "trained": lambda p: next(p.model.parameters()).detach().add_(0.1),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_has_changed_since_is_refused_until_it_is_saved(bundle, tmp_path, what):
    predictor = load_learner(bundle)
    CHANGES[what](predictor)
    with refused("has changed since it was in .*model.* save it first"):
        pickle.dumps(predictor)
    predictor.save(tmp_path / "new")
    assert again(predictor).classes == predictor.classes


def test_a_change_taken_back_is_none(bundle):
    predictor = load_learner(bundle)
    predictor.extend(*labelled({"new": 3}), progress=False)
    predictor.undo()
    assert again(predictor).classes == tuple(COUNTS)


def test_without_torch_what_was_set_is_refused_with_a_remedy_it_has(runtime_bundle):
    runtime = load_runtime(runtime_bundle, threads=1)
    runtime.set(class_names=["x", "y"])
    with refused("has changed since .* set it in the worker process instead"):
        pickle.dumps(runtime)


def test_a_bundle_that_is_gone_or_another_is_told_on_both_sides(bundle):
    predictor = load_learner(bundle)
    data = pickle.dumps(predictor)
    make_continual({"other": 4}).save(bundle)
    with refused("no longer there: .* not the pinned bundle.* or put that bundle back"):
        pickle.dumps(predictor)
    with pytest.raises(BundleCorruptError, match="not the pinned bundle"):
        pickle.loads(data)
    shutil.rmtree(bundle)
    with refused("no such folder"):
        pickle.dumps(predictor)
    with pytest.raises(LearnkitError, match="no such folder"):
        pickle.loads(data)


def test_copies_are_made_as_ever_and_a_deep_one_is_in_no_bundle(bundle):
    predictor = load_learner(bundle)
    assert again(copy.copy(predictor)).classes == tuple(COUNTS)
    deep = copy.deepcopy(predictor)
    deep.extend(*labelled({"new": 3}), progress=False)
    assert predictor.classes == tuple(COUNTS)
    with refused("in no bundle"):
        pickle.dumps(copy.deepcopy(predictor))


def test_a_deep_copy_shares_what_a_backend_has_compiled_and_nothing_else(runtime_bundle, optimised):
    model = load_runtime(runtime_bundle, threads=1)
    deep = copy.deepcopy(model).set(class_names=["x", "y"])
    assert deep.session is model.session
    assert (model.classes, deep.predict(shades("a", 1, size=16)[0]).classes) == (
        ("a", "b"),
        ("x", "y"),
    )
    faster = load_learner(optimised, threads=1)
    copied = copy.deepcopy(faster)
    copied.extend(*labelled({"new": 3}), progress=False)
    assert (faster.classes, copied.classes) == (tuple(COUNTS), (*COUNTS, "new"))
    # what a person sees of either holds no weights
    assert all(
        len(repr(one)) < 300
        for one in (faster.network, faster.record.converted, faster.record.siblings)
    )


def with_detector():
    model = make_model()
    detector = OodDetector(model[0].n_features)
    detector.extend(torch.rand(12, model[0].n_features), ["a", "b"] * 6)
    return make_predictor(model, detector=detector)


def test_the_threshold_of_a_detector_is_part_of_what_a_model_is(tmp_path):
    predictor = with_detector()
    predictor.save(tmp_path / "m")
    predictor = load_learner(tmp_path / "m")
    assert not predictor.is_changed
    digests = [model_digest(predictor)]
    for value in (3.0, 4.0):
        predictor.set(ood_threshold=value)
        assert predictor.is_changed
        digests.append(model_digest(predictor))
    predictor.detector.fit_sets(torch.full((2, 3), 1 / 3), torch.tensor([0, 1]))
    digests.append(model_digest(predictor))
    assert len(set(digests)) == 4
    with refused("has changed"):
        pickle.dumps(predictor)


def test_conversions_that_are_in_no_bundle_are_told_apart_by_their_network():
    def digest(data):
        converted = Converted("onnxruntime", "float32", {}, {"onnx": data})
        record = source.record.replace(converted=converted, variant=converted.name)
        return model_digest(Predictor.of(record))

    source = make_predictor()
    assert digest(b"one") != digest(b"other")
    assert digest(b"one") == digest(b"one")
