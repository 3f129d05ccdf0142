"""Whoever assigns to what only follows from something else is told what changes it."""

import re
from copy import copy

import pytest
import torch
from runtime_helpers import NAME, onnx_bytes, variant_files, write_bundle

import learnkit
from learnkit.deploy.predictor import Predictor
from learnkit.deploy.runtime_predictor import RuntimePredictor, load_runtime
from learnkit.errors import OptimizedModelError, PredictionError
from learnkit.learner.learner import ImageLearner

OPTIMIZED = (
    " cannot be set: after optimisation only device, threads, metadata, class_names, "
    "ood_threshold, tta may be set; change the float32 model (load_learner(path, "
    "variant='float32')) and optimise it again"
)
VARIANT = "load_learner(path, variant=...) opens another one, optimize(...) makes one"
MAKES = "another one is made by Predictor(model, preprocessing, classes"
WITH_TORCH = "it is read from the bundle, which load_learner(path) opens to change it"


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    path = tmp_path_factory.mktemp("settable") / "model"
    write_bundle(path, variant_files(onnx=onnx_bytes(2)), default=NAME)
    return path


def read_only(kind):
    found = ((name, getattr(kind, name)) for name in dir(kind) if not name.startswith("_"))
    return [name for name, one in found if isinstance(one, property) and one.fset is None]


def refused(predictor, name, kind, value=None):
    before = copy(predictor.__dict__)
    with pytest.raises(kind) as caught:
        setattr(predictor, name, value)
    assert predictor.__dict__ == before
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("device", "weights as trained run where they were loaded: load_learner(path, device=...)"),
        ("threads", "weights as trained run with torch's threads: torch.set_num_threads(...)"),
        ("preprocessing", f"{MAKES})"),
        ("model", f"{MAKES})"),
        ("multi_label", f"{MAKES}, multi_label=...)"),
        ("class_ids", f"{MAKES}, class_ids=...)"),
        ("vocab", "call set(class_names=...), which checks it"),
        ("tta", "call set(tta=...), which checks it"),
        ("variant", VARIANT),
        ("network", VARIANT),
        ("continual", "learn.init_continual() makes that head before the export"),
        ("snapshots", "snapshot(name) adds one, drop_snapshot(name) drops one"),
        ("report", "optimize(...) returns it"),
        ("is_monitored", "monitor() begins to monitor"),
    ],
)
def test_weights_as_trained_say_what_changes_them(predictor, name, way):
    message = refused(predictor, name, AttributeError)
    assert message == f"`{name}` cannot be assigned to; {way}"


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("device", "`device` cannot be assigned to; call set(device=...), which checks it"),
        ("vocab", "`vocab` cannot be assigned to; call set(class_names=...), which checks it"),
        ("multi_label", "`multi_label`" + OPTIMIZED),
        ("threshold", "`threshold`" + OPTIMIZED),
        ("continual", f"`continual` cannot be assigned to; {WITH_TORCH}"),
        ("audit", f"`audit` cannot be assigned to; {WITH_TORCH}"),
        ("session", "`session` cannot be assigned to; load_runtime(path, variant=...) opens "
         "another one"),
    ],
)  # fmt: skip
def test_a_model_without_torch_says_what_changes_it(path, name, way):
    runtime = load_runtime(path)
    assert refused(runtime, name, OptimizedModelError) == way


def test_every_property_that_cannot_be_assigned_to_names_a_verb_that_exists(predictor, path):
    optimized = Predictor.of(load_runtime(path).record)
    of_learner = {"learn.fit_ood", "learn.init_continual"}
    for one in (predictor, optimized, load_runtime(path)):
        for name in read_only(type(one)):
            message = refused(one, name, AttributeError)
            named = re.findall(r"([a-zA-Z][\w.]*)\(", message)
            assert message.startswith(f"`{name}` cannot be ")
            assert named, message
            for verb in set(named) - of_learner:
                places = (type(one), learnkit, torch)
                assert any(hasattr(place, verb.removeprefix("torch.")) for place in places), message
    assert all(hasattr(ImageLearner, verb.removeprefix("learn.")) for verb in of_learner)
    assert {"device", "report"} < {*read_only(Predictor)}
    assert {"device", "session"} < {*read_only(RuntimePredictor)}


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("device", "weights as trained run where they were loaded: load_learner(path, device=...)"),
        ("threads", "weights as trained run with torch's threads: torch.set_num_threads(...)"),
        ("preprocessing", f"{MAKES})"),
        (
            "size",
            "it takes class_names, threshold, ood_threshold, false_alarm_rate, metadata, tta",
        ),
    ],
)
def test_set_of_weights_as_trained_says_where_else_it_is_given(predictor, name, way):
    with pytest.raises(TypeError) as caught:
        predictor.set(**{name: "cpu"})
    assert (
        str(caught.value) == f"Predictor.set() got an unexpected keyword argument {name!r}; {way}"
    )


def test_set_without_torch_says_what_may_be_set(path):
    runtime = load_runtime(path)
    before = runtime.record
    with pytest.raises(OptimizedModelError) as caught:
        runtime.set(metadata={"line": 4}, threshold=0.4)
    assert str(caught.value) == "`threshold`" + OPTIMIZED
    assert runtime.record is before


@pytest.mark.parametrize("metadata", [[1], "x", 3])
def test_metadata_is_a_dictionary(predictor, path, metadata):
    for one in (predictor, load_runtime(path)):
        before = one.metadata
        with pytest.raises(PredictionError, match=r"`metadata` is .*\); give a dictionary"):
            one.set(metadata=metadata)
        with pytest.raises(PredictionError, match=r"`metadata` is .*\); give a dictionary"):
            one.metadata = metadata
        assert one.metadata is before
    with pytest.raises(PredictionError, match=r"`metadata` is .*\); give a dictionary"):
        Predictor(predictor.model, predictor.preprocessing, predictor.classes, metadata=metadata)
