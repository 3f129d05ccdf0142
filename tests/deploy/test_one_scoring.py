"""`load_learner(variant=)` and `load_runtime(variant=)` conclude the same, to the last bit."""

import functools

import numpy as np
import pytest
import torch
from deploy_helpers import labelled, make_continual, make_predictor, shades, strange

from learnkit.backends.registry import BACKENDS, why_not
from learnkit.bundle.write import base_files
from learnkit.continual.ood_detector import OodDetector
from learnkit.deploy.predictor import Predictor, load_learner
from learnkit.deploy.runtime_predictor import load_runtime
from learnkit.optimize.convert import Converter
from learnkit.optimize.samples import read_pictures

COUNTS = {"ok": 9, "bad": 7, "ß/<b>": 8}
IMAGES = [*shades("ok", 3, seed=4), *shades("bad", 2, seed=5), *strange(3)]
VARIANTS = [
    (backend, precision)
    for backend in ("onnxruntime", "openvino")
    for precision in BACKENDS[backend].precisions
    if why_not(BACKENDS[backend], precision) is None
]


@functools.cache
def converter(is_continual):
    """Conversions of one network, without its head or with it; each is made once."""
    source = make_continual(COUNTS) if is_continual else make_predictor()
    images, _ = labelled(COUNTS)
    samples = read_pictures(
        images,
        source.preprocessing,
        source.classes,
        what="samples",
        limit=50,
        multi_label=False,
        progress=False,
    )
    return Converter(source.record, samples, progress=False)


@functools.cache
def converted(backend, precision, is_continual=True):
    params = {"max_error": 9.0, "keep": ()} if precision == "int8" else {}
    return converter(is_continual).convert(backend, precision, params)


def over(predictor, network):
    """`predictor` over a converted network, as `optimize` gives it."""
    known = predictor.ood
    return Predictor.of(
        predictor.record.replace(
            network=network.open(predictor.preprocessing, threads=1),
            variant=network.name,
            converted=network,
            measured=None if known is None else known.statistics,
            siblings=base_files(predictor.record),
        )
    )


def with_detector(**settings):
    predictor = make_predictor()
    features = predictor.features(labelled(COUNTS)[0], progress=False)
    detector = OodDetector(features.shape[1], memory=8, **settings)
    detector.extend(features, labelled(COUNTS)[1])
    truth = torch.arange(len(features)) % 3
    detector.fit_sets(predictor.logits(torch.zeros(24, 3, 32, 32).byte()).softmax(1), truth)
    predictor.detector = detector
    return predictor


HEADS = {
    "lda": lambda: make_continual(COUNTS, classifier="lda"),
    "ridge": lambda: make_continual(COUNTS, classifier="ridge"),
    "prototype": lambda: make_continual(COUNTS, classifier="prototype"),
    "one class": lambda: make_continual({"ok": 9}),
    "without memory": lambda: _without_memory(),
    "by energy": lambda: make_continual(COUNTS, score="energy"),
    "class by class": lambda: make_continual(COUNTS, per_class=True),
    "a threshold by hand": lambda: make_continual(COUNTS).set(ood_threshold=1.25),
    "a forgotten class": lambda: _forgotten(),
    "trained": lambda: make_predictor(),
    "trained, with a detector": with_detector,
    "trained, class by class": lambda: with_detector(per_class=True),
    "multi-label": lambda: make_predictor(multi_label=True, threshold=0.3),
}


def _without_memory():
    with pytest.warns(UserWarning, match="no features are remembered"):
        return make_continual(COUNTS, memory=0)  # p-values of an assumed distribution


def _forgotten():
    predictor = make_continual(COUNTS)
    predictor.forget("bad")
    return predictor


def assert_equal_to_the_bit(path, variant):
    """Both ways of opening a variant predict the same, an image alone and many."""
    learner = load_learner(path, variant=variant, threads=1)
    runtime = load_runtime(path, variant=variant, threads=1)
    ways = lambda predictor: [*predictor.predict_batch(IMAGES), predictor.predict(IMAGES[0])]
    for one, other in zip(ways(learner), ways(runtime), strict=True):
        assert np.array_equal(one.probs.numpy(), other.probs)
        assert (one.label, one.index) == (other.label, other.index)
        assert one.ood_score == other.ood_score
        assert one.ood_threshold == other.ood_threshold
        assert one.p_value == other.p_value
        assert one.is_ood == other.is_ood
        if one.nonconformity is not None and len(one.nonconformity[0]):
            for alpha in (0.05, 0.2, 0.5):
                assert one.prediction_set(alpha) == other.prediction_set(alpha)
    return learner


@pytest.mark.parametrize("head", HEADS)
def test_every_head_concludes_the_same_with_torch_and_without(head, tmp_path):
    predictor = HEADS[head]()
    network = converted("onnxruntime", "float32", predictor.continual is not None)
    over(predictor, network).save(tmp_path / "m")
    learner = assert_equal_to_the_bit(tmp_path / "m", network.name)
    assert learner.detects_ood == (head not in ("trained", "multi-label"))
    if head.endswith("class by class"):
        assert len(set(learner.ood.scoring.shifts)) == 3
        labels = learner.predict(IMAGES[0]).nonconformity[2]
        assert set(labels.tolist()) == {0, 1, 2}


@pytest.mark.parametrize(("backend", "precision"), VARIANTS)
def test_every_variant_concludes_the_same_with_torch_and_without(backend, precision, tmp_path):
    network = converted(backend, precision)
    over(make_continual(COUNTS), network).save(tmp_path / "m")
    assert_equal_to_the_bit(tmp_path / "m", network.name)


def test_without_torch_the_same_images_are_suggested(tmp_path):
    over(make_continual(COUNTS), converted("onnxruntime", "float32")).save(tmp_path / "bundle")
    name = "onnxruntime-float32"
    images = [*IMAGES, *strange(20, seed=3)]
    with_torch = load_learner(tmp_path / "bundle", variant=name).suggest(images, 9, progress=False)
    without = load_runtime(tmp_path / "bundle", variant=name).suggest(images, 9, progress=False)
    assert with_torch == without


@pytest.mark.parametrize(("backend", "precision"), VARIANTS)
def test_every_variant_gives_rows_that_do_not_depend_on_those_beside_them(backend, precision):
    predictor = over(make_continual(COUNTS), converted(backend, precision))
    rows = lambda images: numbers(predictor.predict_files(images, n_workers=0, progress=False))
    many = [*IMAGES, *shades("ok", 9, seed=6)]
    assert rows(many) == [rows([image])[0] for image in many]


def numbers(table):
    """The rows without the names of their images."""
    return [[repr(value) for value in row] for row in table.drop(columns="path").to_numpy()]


def test_scores_are_those_written_though_the_statistics_give_others_here(tmp_path, monkeypatch):
    # as on another processor: solving again gives other last bits
    over(make_continual(COUNTS), converted("onnxruntime", "float32")).save(tmp_path / "m")
    solve = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda a: solve(a * (1 + 1e-12)))
    learner = assert_equal_to_the_bit(tmp_path / "m", None)
    learner.extend(*labelled({"new": 4}, seed=8), progress=False)
    assert learner.predict(shades("new", 1, seed=9)[0]).label == "new"


def test_without_torch_views_are_averaged_to_the_same_bits(tmp_path):
    network = converted("onnxruntime", "float32")
    over(make_continual(COUNTS), network).set(tta=4).save(tmp_path / "m")
    learner = assert_equal_to_the_bit(tmp_path / "m", network.name)
    runtime = load_runtime(tmp_path / "m", variant=network.name, threads=1)
    assert (learner.tta, runtime.tta) == (4, 4)
    plain = learner.predict_batch(IMAGES, tta=1)
    averaged = learner.predict_batch(IMAGES)
    assert any(not one.probs.equal(two.probs) for one, two in zip(plain, averaged, strict=True))
    assert runtime.set(tta=1).tta == 1
