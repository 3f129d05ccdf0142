"""Optimising end to end; speeds are given, so that no verdict depends on the machine."""

import copy
import math
import re
import threading
import warnings

import numpy as np
import pytest
import torch
from deploy_helpers import PLAIN_HEAD, labelled, make_continual, make_model, make_predictor, strange

from learnkit.backends.conversion import Converted
from learnkit.continual.classifier import ContinualClassifier
from learnkit.data.labelled_images import Labelled
from learnkit.errors import (
    BackendUnavailableError,
    ContinualNotInitializedError,
    ContinualStateError,
    ConversionRefusedError,
    ExportError,
    OptimizedModelError,
    OptimizeError,
    PredictionError,
)
from learnkit.optimize import trials
from learnkit.optimize.convert import Converter
from learnkit.optimize.gates import Gates
from learnkit.optimize.timing import Times

COUNTS = {"a": 12, "b": 11, "c": 10}
TEST = Labelled(*labelled({"a": 8, "b": 8, "c": 8}, seed=5))
LEARNED = Labelled(*labelled(COUNTS))
QUIET = {"progress": False, "threads": 1}


@pytest.fixture(scope="module", autouse=True)
def _bfloat16():
    """Torch computes in bfloat16 anywhere, if not fast."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("learnkit.backends.registry.has_bfloat16", lambda: True)
        yield


@pytest.fixture
def given_times(monkeypatch):
    """Milliseconds by variant; those not named take 10."""
    times = {trials.EAGER: 20.0, "torch-bfloat16": 5.0}

    def measure(runs, pixels, *, batches, progress):
        for run in runs.values():
            run(pixels[:1])
        return {name: {batch: _times(times.get(name, 10.0)) for batch in batches} for name in runs}

    monkeypatch.setattr(trials, "measure", measure)
    return times


def _times(given):
    return given if isinstance(given, Times) else Times(given, given)


class TorchInDisguise(Converted):
    """A network of torch under the name of another backend."""

    def open(self, recipe, **kwargs):
        params = {"channels_last": True, "compile": False}
        return Converted("torch", "float32", params, model=self.model).open(recipe, **kwargs)


@pytest.fixture
def damaged(monkeypatch):
    """Every backend is torch; the networks of the variants named here give other answers."""
    names = set()

    def convert(self, backend, precision, params, **kwargs):
        converted = TorchInDisguise(backend, precision, {}, model=copy.deepcopy(self.model))
        if converted.name in names:
            with torch.no_grad():
                for parameter in converted.model.parameters():
                    parameter.copy_(parameter.roll(1, 0))
        return converted

    monkeypatch.setattr(Converter, "convert", convert)
    return names


def snapshot(predictor):
    modules = [(module.training, type(module)) for module in predictor.model.modules()]
    state = {k: v.clone() for k, v in predictor.model.state_dict().items()}
    return modules, state, predictor.continual and predictor.continual.knowledge


@pytest.fixture(scope="module")
def source():
    return make_continual(COUNTS)


def test_the_source_stays_as_it_is_and_answers_stay_the_same(given_times):
    predictor = make_predictor(make_model(**PLAIN_HEAD))
    predictor.model.train()
    modules, state, _ = snapshot(predictor)
    random = torch.get_rng_state()
    images = list(TEST.items)
    faster, report = predictor.optimize(backend="torch", test=images, **QUIET)
    again, state_again, _ = snapshot(predictor)
    assert again == modules
    assert all(torch.equal(state[name], state_again[name]) for name in state)
    assert torch.equal(random, torch.get_rng_state())
    assert report.passed
    assert report.quality.n == 24
    assert report.quality.n_labelled == 0
    assert report.latency[0].vs_eager == 2.0
    for image in images[:3]:
        torch.testing.assert_close(faster.predict(image).probs, predictor.predict(image).probs)


def test_the_report_holds_what_it_rests_on(source, given_times):
    _, report = source.optimize(
        "bfloat16", backend="torch", test=TEST, ood=strange(6), learned=LEARNED, **QUIET
    )
    found = report.quality
    assert (found.n, found.n_labelled, found.n_strange) == (24, 24, 6)
    assert report.test.per_class == {"a": 8, "b": 8, "c": 8}
    assert report.samples is None
    assert report.versions.keys() >= {"learnkit", "torch", "onnxruntime"}
    assert report.processor["name"]
    assert report.n_bytes_float32 > 100_000
    assert 0.99 < found.feature_cosine_min <= found.feature_cosine <= 1
    assert 0 < found.logit_rms_share < 0.2
    assert 0 <= found.auroc <= 1
    assert not np.isnan([found.ece, found.ece_before, found.false_alarms]).any()
    assert report.state.startswith("learned again from 33 images")
    assert [verdict.gate for verdict in report.verdicts] == [
        "finite",
        "agreement",
        "accuracy",
        "speed",
    ]
    assert type(report).from_dict(report.to_dict()).to_dict() == report.to_dict()


def test_what_was_learned_is_learned_again_to_the_bit(source, given_times):
    faster, _ = source.optimize("bfloat16", backend="torch", test=TEST, learned=LEARNED, **QUIET)
    head = ContinualClassifier(**source.continual.settings.to_dict())
    head.extend(faster.features(LEARNED.items, progress=False), LEARNED.labels)
    stats, again = head.statistics, faster.continual.statistics
    assert torch.equal(stats.gram, again.gram)
    assert torch.equal(stats.sums, again.sums)
    assert head.threshold.value == faster.continual.threshold.value
    assert head.temperature == faster.continual.temperature
    assert source.continual.knowledge.statistics is not again


def test_what_moves_features_by_rounding_alone_leaves_knowledge_as_it_is(source, given_times):
    """Other images would be remembered otherwise, and labels change, for no reason."""
    _, report = source.optimize("bfloat16", backend="torch", test=TEST, learned=LEARNED, **QUIET)
    assert report.state.startswith("learned again from 33 images")
    faster, report = source.optimize(
        "float32", backend="torch", test=TEST, learned=LEARNED, channels_last=True, **QUIET
    )
    moved = float(re.search(r"kept as it is: features moved by (\S+) steps", report.state)[1])
    assert 0 <= moved < 0.1
    assert report.state.endswith("below 0.5 (on 33 of its images)")
    before, after = source.continual, faster.continual
    assert after.statistics is before.statistics
    assert torch.equal(after.statistics.memory.all()[0], before.statistics.memory.all()[0])
    assert (after.temperature, after.threshold) == (before.temperature, before.threshold)


def test_extending_gives_to_the_bit_what_initialising_with_all_gives(source, given_times):
    more = Labelled(*labelled({"d": 9, "a": 4}, seed=8))
    faster, _ = source.optimize("bfloat16", backend="torch", test=TEST, learned=LEARNED, **QUIET)
    faster.extend(more.items, more.labels, progress=False)
    head = ContinualClassifier(**source.continual.settings.to_dict())
    items, labels = [*more.items, *LEARNED.items], [*more.labels, *LEARNED.labels]
    head.extend(faster.features(items, progress=False), labels, class_names=["a", "b", "c", "d"])
    assert torch.equal(head.knowledge.derived.weight, faster.continual.knowledge.derived.weight)
    assert torch.equal(head.statistics.gram, faster.continual.statistics.gram)
    assert faster.has_learned
    faster.undo()
    assert faster.classes == ("a", "b", "c")
    faster.forget("b")
    assert faster.predict(LEARNED.items[12]).label != "b"


def test_without_its_images_knowledge_is_carried_over_and_said(source, given_times):
    some = Labelled(*labelled({"a": 5, "b": 5, "c": 5}))
    faster, report = source.optimize("bfloat16", backend="torch", test=TEST, samples=some, **QUIET)
    assert report.state.startswith("carried over from float32: it has learned 33 images")
    assert report.state.endswith(f"of the features {report.quality.feature_cosine:.4f}")
    assert faster.continual.statistics is source.continual.statistics
    faster.set(ood_threshold=7.0)
    assert source.continual.threshold.value != 7.0


def test_the_manual_threshold_stays(given_times):
    own = make_continual(COUNTS)
    own.set(ood_threshold=3.5)
    faster, _ = own.optimize("bfloat16", backend="torch", test=TEST, learned=LEARNED, **QUIET)
    assert faster.continual.threshold.value == 3.5
    assert faster.continual.threshold.source == "manual"
    with pytest.raises(ContinualStateError, match="no change to undo"):
        faster.undo()


def test_a_variant_that_fails_is_refused_with_its_report(source, given_times, damaged):
    damaged.add("torch-bfloat16")
    with pytest.raises(ConversionRefusedError, match=r"agreement: FAILED.*fallback=True") as caught:
        source.optimize("bfloat16", backend="torch", test=TEST, **QUIET)
    report = caught.value.report
    assert report.quality.agreement < 0.9
    assert report.quality.worst_class.after < report.quality.worst_class.before
    assert 1 <= len(report.quality.worst_images) <= 10
    assert not report.passed
    faster, forced = source.optimize("bfloat16", backend="torch", test=TEST, force=True, **QUIET)
    assert forced.forced
    assert faster.variant == "torch-bfloat16"


def test_too_slow_is_refused_too(source, given_times):
    given_times["torch-bfloat16"] = 9.5
    with pytest.raises(ConversionRefusedError, match=r"1\.0x at batch 1"):
        source.optimize("bfloat16", backend="torch", test=TEST, **QUIET)
    lenient = Gates(speed=1.05)
    given_times["torch-float32"] = 10.0
    source.optimize("bfloat16", backend="torch", test=TEST, gates=lenient, **QUIET)


def test_fallback_takes_another_precision_that_passes(source, given_times, damaged):
    damaged.add("torch-bfloat16")
    faster, report = source.optimize("bfloat16", backend="torch", test=TEST, fallback=True, **QUIET)
    assert faster.variant == report.variant == "torch-float32"
    assert report.passed
    outcomes = {one.variant: one.outcome for one in report.candidates}
    assert outcomes["torch-float32"] == "taken"
    assert outcomes["torch-bfloat16"].startswith("agreement: FAILED")
    damaged.add("torch-float32")
    with pytest.raises(ConversionRefusedError) as caught:
        source.optimize("bfloat16", backend="torch", test=TEST, fallback=True, **QUIET)
    assert "taken" not in {one.outcome for one in caught.value.report.candidates}


def test_auto_takes_the_fastest_that_passes(source, given_times, damaged):
    given_times |= {"onnxruntime-float32": 5.0, "openvino-float32": 4.0, "torch-float32": 15.0}
    _, report = source.optimize(test=TEST, **QUIET)
    outcomes = {one.variant: one.outcome for one in report.candidates}
    assert report.variant == "openvino-float32"
    assert outcomes == {
        "openvino-float32": "taken",
        "onnxruntime-float32": "slower, not judged",
        "torch-float32": "slower, not judged",
    }
    damaged.add("openvino-float32")
    _, report = source.optimize(test=TEST, **QUIET)
    outcomes = {one.variant: one.outcome for one in report.candidates}
    assert report.variant == "onnxruntime-float32"
    assert outcomes["openvino-float32"].startswith("agreement: FAILED")


def test_networks_that_cannot_be_exported_are_named_and_torch_still_runs_them(
    source, given_times, monkeypatch
):
    def refuse(self):
        raise ExportError("ONNX has nothing for aten::foo; optimise it with backend='torch'")

    monkeypatch.setattr(Converter, "onnx", property(refuse))
    with pytest.raises(ExportError, match="aten::foo"):
        source.optimize(backend="onnxruntime", test=TEST, **QUIET)
    _, report = source.optimize(test=TEST, **QUIET)
    assert report.variant == "torch-float32"
    outcomes = {one.variant: one.outcome for one in report.candidates}
    assert "aten::foo" in outcomes["onnxruntime-float32"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"precision": "int4"}, OptimizeError, "`precision` is 'int4'; there are float32"),
        ({"backend": "tensorrt"}, BackendUnavailableError, "`backend` is 'tensorrt'"),
        ({"precision": "int8", "backend": "torch"}, BackendUnavailableError, "Possible on 'cpu'"),
        ({"precision": "int8"}, OptimizeError, "`samples` is missing: int8 takes its ranges"),
        ({"backend": "torch", "compyle": True}, OptimizeError, "no parameter compyle"),
        ({"compyle": True}, OptimizeError, "no backend has a parameter compyle"),
        ({"precision": "bfloat16", "device": "tpu"}, BackendUnavailableError, "nothing here runs"),
        ({"gates": 0.99}, OptimizeError, "`gates` is 0.99; give learnkit's Gates"),
        ({"batch_size": 0}, OptimizeError, "`batch_size` is 0; a batch has at least one"),
        ({"batch_size": True}, OptimizeError, "`batch_size` is True"),
        ({"precision": "int8", "target": 1.5}, OptimizeError, "`target` is 1.5; .* at most 1"),
        ({"precision": "int8", "max_error": math.nan}, OptimizeError, "`max_error` is nan"),
    ],
)
def test_impossible_wishes_name_what_is_possible(source, arguments, error, message):
    with pytest.raises(error, match=message):
        source.optimize(**arguments, test=TEST, **QUIET)


def test_bfloat16_is_refused_where_the_processor_has_none(source, monkeypatch):
    monkeypatch.setattr("learnkit.backends.registry.has_bfloat16", lambda: False)
    with pytest.raises(BackendUnavailableError, match="neither avx512_bf16 nor amx_bf16"):
        source.optimize("bfloat16", backend="torch", test=TEST, **QUIET)


def test_unusual_images_need_a_model_that_can_tell_them():
    with pytest.raises(ContinualNotInitializedError, match="cannot detect out-of-distribution"):
        make_predictor().optimize(backend="torch", ood=strange(2), **QUIET)


def test_images_the_model_knows_are_no_unusual_ones(source, given_times):
    known = Labelled(list(TEST.items)[:4], [])
    with pytest.raises(OptimizeError, match="the 4 images of `ood` are all in `samples` or `test`"):
        source.optimize(backend="torch", test=TEST, ood=known.items, **QUIET)
    ood = [*known.items, *strange(3)]
    _, report = source.optimize("bfloat16", backend="torch", test=TEST, ood=ood, **QUIET)
    assert report.quality.n_strange == 3
    assert "4 images of `ood` are in `samples` or `test`, too, and left out" in report.notes


def test_a_cast_needs_no_images_and_is_then_judged_by_speed_alone(source, given_times):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, report = source.optimize("bfloat16", backend="torch", **QUIET)
    judged = {verdict.gate: verdict.passed for verdict in report.verdicts}
    assert judged == {"finite": True, "agreement": None, "accuracy": None, "speed": True}
    assert "probe images" in report.test.what


@pytest.mark.parametrize("busy", ["torch-bfloat16", "torch-float32"])
def test_times_that_others_disturbed_decide_nothing_and_the_headline_says_so(
    source, given_times, busy
):
    given_times[busy] = Times(0.01, 3000.0, "it waited for one 60% of the time")
    _, report = source.optimize("bfloat16", backend="torch", test=TEST, **QUIET)
    (speed,) = (verdict for verdict in report.verdicts if verdict.gate == "speed")
    assert (speed.passed, speed.word) == (None, "not decided")
    assert "it waited for one 60% of the time" in speed.note
    headline = " ".join(str(report).split("\n\n")[0].split())
    assert "while others used the machine, so not judged by speed" in headline
    given_times[busy] = 1.0
    given_times[trials.EAGER] = Times(20.0, 99.0, "it waited")  # not what it is compared with
    _, report = source.optimize("bfloat16", backend="torch", test=TEST, force=True, **QUIET)
    assert "not decided" not in str(report)


def test_samples_of_a_cast_are_what_it_is_judged_by(source, given_times):
    _, report = source.optimize("bfloat16", TEST, backend="torch", **QUIET)
    assert report.samples is None
    assert report.quality.n_labelled == 24


@pytest.fixture(scope="module")
def faster(source):
    with pytest.MonkeyPatch.context() as patch:
        times = {"torch-bfloat16": Times(1.0, 1.0)}
        slow = Times(10.0, 10.0)
        patch.setattr(
            trials,
            "measure",
            lambda runs, pixels, *, batches, progress: {
                name: dict.fromkeys(batches, times.get(name, slow)) for name in runs
            },
        )
        return source.optimize("bfloat16", backend="torch", test=TEST, learned=LEARNED, **QUIET)[0]


@pytest.mark.parametrize(
    "setting", [{"threshold": 0.4}, {"false_alarm_rate": 0.1}, {"precision": "int8"}]
)
def test_only_five_things_may_be_set(faster, setting):
    with pytest.raises(OptimizedModelError, match="only device, threads, metadata, class_names"):
        faster.set(**setting)
    with pytest.raises(OptimizedModelError, match="`preprocessing` cannot be set: after optim"):
        faster.preprocessing = None


@pytest.mark.parametrize("name", ["device", "threads", "class_names", "classes", "ood_threshold"])
def test_what_may_be_set_says_how_where_it_is_assigned_to(faster, name):
    before = dict(faster.__dict__)
    how = name.replace("classes", "class_names")
    with pytest.raises(OptimizedModelError, match=rf"`{name}` .* call set\({how}=...\)") as caught:
        setattr(faster, name, getattr(faster, name, 1))
    assert "only device" not in str(caught.value)
    assert faster.__dict__ == before
    faster.metadata = {"line": 5}
    assert faster.metadata == {"line": 5}


def test_those_five_can_be_set(faster):
    threshold = faster.continual.threshold.value
    faster.set(threads=2, device="cpu", metadata={"line": 4}, class_names={"a": "A"})
    assert faster.threads == 2
    assert faster.metadata == {"line": 4}
    assert faster.predict(TEST.items[0]).label == "A"
    faster.set(ood_threshold=-1e9, threads=1)
    assert faster.predict(TEST.items[0]).is_ood
    faster.set(ood_threshold=threshold, class_names={"A": "a"})


@pytest.mark.parametrize("learned", [LEARNED, None], ids=["learned again", "carried over"])
def test_a_promise_class_by_class_stays(learned, given_times):
    plain = make_continual(COUNTS, per_class=True)
    faster, _ = plain.optimize(
        "bfloat16", backend="torch", test=TEST, learned=learned, force=True, **QUIET
    )
    assert faster.continual.settings.per_class
    assert faster.continual.threshold.statement.startswith("class by class")
    assert len(set(faster.continual.scoring.shifts)) == len(COUNTS)
    assert len(faster.continual.scoring.nonconformity) == 3  # with a class for each


def test_a_model_learned_again_keeps_the_log_and_has_features_of_its_own_origin(given_times):
    plain = make_continual(COUNTS)
    plain.rename({"a": "A"})
    names = ["A" if name == "a" else name for name in LEARNED.labels]
    learned = LEARNED._replace(labels=names)
    faster, _ = plain.optimize("bfloat16", backend="torch", learned=learned, force=True, **QUIET)
    assert faster.audit == plain.audit
    assert len(faster.audit) == 2
    (origin,) = faster.continual.statistics.origins
    assert " bfloat16, " in origin
    assert plain.continual.statistics.origins != (origin,)


def test_optimising_twice_says_how_to_get_another_variant(faster):
    with pytest.raises(OptimizeError, match=r"already.*variant='float32'"):
        faster.optimize("int8")
    with pytest.raises(OptimizedModelError, match="no network of torch"):
        faster.model  # noqa: B018
    assert not hasattr(faster, "model")


def test_copies_that_learned_apart_merge_and_other_networks_do_not(source, faster, given_times):
    given_times["torch-bfloat16"] = 1.0
    other, _ = source.optimize("bfloat16", backend="torch", test=TEST, **QUIET)
    other.forget("a"), other.forget("b"), other.forget("c")
    other.extend(*labelled({"d": 6}, seed=3), progress=False)
    before = faster.continual.n_images
    faster.merge(other)
    assert faster.continual.n_images["d"] == 6
    faster.undo()
    assert faster.continual.n_images == before
    with pytest.raises(PredictionError, match="another network, precision or preprocessing"):
        faster.merge(source)


def test_predicting_goes_on_while_another_thread_extends(faster):
    stop, seen, errors = threading.Event(), set(), []

    def predict():
        while not stop.is_set():
            try:
                prediction = faster.predict(TEST.items[0])
                seen.add(len(prediction.classes))
                assert prediction.label in prediction.classes
            except Exception as error:  # noqa: BLE001, PERF203  # whatever it is, the test must see it
                errors.append(error)
                return

    threads = [threading.Thread(target=predict) for _ in range(2)]
    for thread in threads:
        thread.start()
    for k in range(3):
        faster.extend(*labelled({f"new {k}": 4}, seed=k), progress=False)
    stop.set()
    for thread in threads:
        thread.join()
    assert not errors
    assert seen <= {3, 4, 5, 6}
    for _ in range(3):
        faster.undo()
