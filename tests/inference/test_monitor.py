import copy
import hashlib
import json
import re
import threading

import numpy as np
import pytest
from deploy_helpers import labelled, make_continual, make_predictor, shades, strange

from learnkit.data.dataset import ImageDataset
from learnkit.deploy.predictor import load_learner
from learnkit.errors import BundleCorruptError, PredictionError, PredictionFileError
from learnkit.inference import monitor as module
from learnkit.inference.monitor import Alarm, DriftState, Monitor, drift_file, read_drift_report
from learnkit.inference.prediction import Prediction, not_finite
from learnkit.report.text import as_text
from learnkit.uncertainty.drift import DriftTest
from learnkit.uncertainty.scoring import Scoring
from learnkit.uncertainty.threshold import fit_threshold


def scoring_of(scores):
    """A scoring of which the monitor reads nothing but the calibration scores."""
    threshold = fit_threshold(scores, source="validation")
    empty = np.zeros((0, 0))
    return Scoring(False, False, 1.0, (), threshold, empty, empty, (empty, empty))


def predicted(score, label="a"):
    return Prediction(label, 0, np.ones(1, np.float32), ("a",), ood_score=score, ood_threshold=2.0)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def scoring(rng):
    return scoring_of(rng.normal(size=300))


@pytest.fixture(scope="module")
def model():
    return make_continual({"red": 20, "blue": 20})


@pytest.fixture
def watched(model):
    """A predictor of its own over the model that all share."""
    return copy.copy(model)


def test_a_stream_like_the_known_images_raises_no_alarm(scoring, rng):
    monitor = Monitor(scoring)
    monitor.observe(
        [predicted(s, "ab"[i % 2]) for i, s in enumerate(rng.normal(size=300))], scoring
    )
    assert not monitor.is_drifting
    assert monitor.n_images == 300
    assert str(monitor).startswith("no drift in 300 images; evidence is 0.")
    assert {name: test.n_images for name, test in monitor.state.tests.items()} == {
        None: 300,
        "a": 150,
        "b": 150,
    }


def test_the_tests_are_those_of_all_scores_and_of_each_class(scoring, rng):
    monitor, scores = Monitor(scoring), rng.normal(size=40)
    labels = rng.choice(["a", "b"], 40)
    monitor.observe([predicted(*one) for one in zip(scores, labels, strict=True)], scoring)
    threshold = scoring.threshold
    overall = DriftTest.of(threshold.calibration_scores, threshold.calibration_weights)
    for score in scores:
        overall = overall.update(score)
    assert monitor.state.overall.to_dict() == overall.to_dict()
    only = DriftTest(seed=monitor.state.classes["b"].seed)
    for score in scores[labels == "b"]:
        only = only.update(score)
    assert monitor.state.classes["b"].to_dict() == only.to_dict()


def test_a_shift_is_told_with_the_image_and_what_became_of_the_images(scoring, rng):
    monitor = Monitor(scoring)
    scores = np.concatenate([rng.normal(size=100), rng.normal(1, size=100)])
    monitor.observe([predicted(s, "ab"[i % 2]) for i, s in enumerate(scores)], scoring)
    assert monitor.is_drifting
    first = monitor.alarms[0]
    assert 100 < first.image < 180
    assert first.label is None
    assert str(first) == f"drift at image {first.image}: images look other than before"
    assert "look at camera, light and parts" in str(monitor)
    assert monitor.to_dict()["status"] == "drift"
    monitor.reset()
    assert not monitor.is_drifting
    assert monitor.n_images == 0


def test_a_class_that_changes_is_told_by_its_name(scoring, rng):
    monitor = Monitor(scoring, images_per_false_alarm=1000)
    # lower scores of b are hidden among higher ones of a
    usual = [predicted(s, "ab"[i % 2]) for i, s in enumerate(rng.normal(size=400))]
    swapped = [
        predicted(abs(s) if i % 2 else -abs(s), "ab"[i % 2])
        for i, s in enumerate(rng.normal(size=300))
    ]
    monitor.observe([*usual, *swapped], scoring)
    assert {alarm.label for alarm in monitor.alarms} >= {"b"}
    alarm = next(alarm for alarm in monitor.alarms if alarm.label == "b")
    assert str(alarm).startswith(f"drift at image {alarm.image}: of those taken for 'b', ")


def test_the_bound_halves_what_is_promised():
    scoring = scoring_of(np.arange(50.0))
    assert Monitor(scoring, images_per_false_alarm=400).bound == 800
    assert "at most m / 400" in Monitor(scoring, images_per_false_alarm=400).statement


def test_false_alarms_of_all_tests_together_are_as_rare_as_promised():
    n, m, alarms = 400, 200, 0
    for seed in range(15):
        rng = np.random.default_rng(seed)
        monitor_scoring = scoring_of(rng.normal(size=40))
        monitor = Monitor(monitor_scoring, images_per_false_alarm=n)
        monitor.observe(
            [predicted(s, str(rng.integers(3))) for s in rng.normal(size=m)], monitor_scoring
        )
        alarms += monitor.is_drifting
    assert alarms <= 15 * m / n


def test_errors_and_infinite_scores_do_no_harm(scoring):
    monitor = Monitor(scoring)
    monitor.observe([not_finite(), predicted(float("inf")), predicted(1e30)], scoring)
    assert monitor.n_images == 2
    several = Prediction(
        ("a", "b"), (0, 1), np.ones(2), ("a", "b"), ood_score=0.0, ood_threshold=1.0
    )
    monitor.observe([several], scoring)
    assert monitor.n_images == 3
    assert set(monitor.state.classes) == {"a"}


def test_what_was_seen_goes_on_after_a_restart(scoring, rng, tmp_path):
    file, scores = tmp_path / "m.drift.json", rng.normal(size=90)
    monitor = Monitor(scoring, file=file)
    monitor.observe([predicted(s) for s in scores[:50]], scoring)
    monitor.save()
    again, whole = Monitor(scoring, file=file), Monitor(scoring)
    again.observe([predicted(s) for s in scores[50:]], scoring)
    whole.observe([predicted(s) for s in scores], scoring)
    assert again.state.to_dict() == whole.state.to_dict()


def test_alarms_survive_and_are_written_at_once(scoring, rng, tmp_path):
    file = tmp_path / "m.drift.json"
    monitor = Monitor(scoring, file=file)
    monitor.observe([predicted(s) for s in rng.normal(3, size=60)], scoring)
    assert Monitor(scoring, file=file).alarms == monitor.alarms != ()


def test_a_killed_process_forgets_a_bounded_number_of_images(scoring, rng, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_SAVED_EVERY", 10)
    monitor = Monitor(scoring, file=tmp_path / "m.json")
    for score in rng.normal(size=37):
        monitor.observe([predicted(score)], scoring)
    assert Monitor(scoring, file=tmp_path / "m.json").n_images == 30


def test_a_model_that_knows_other_things_begins_anew(scoring, rng, tmp_path):
    file, other = tmp_path / "m.json", scoring_of(rng.normal(size=80))
    monitor = Monitor(scoring, file=file)
    monitor.observe([predicted(s) for s in rng.normal(size=20)], scoring)
    monitor.save()
    assert Monitor(other, file=file).n_images == 0
    monitor.observe([predicted(0.0)], other)
    assert monitor.n_images == 1
    assert len(monitor.state.overall.scores) == 81


def test_the_same_scores_in_other_arrays_are_the_same_model(scoring, rng):
    monitor = Monitor(scoring)
    monitor.observe([predicted(s) for s in rng.normal(size=20)], scoring)
    again = scoring_of(scoring.threshold.calibration_scores.copy())
    monitor.observe([predicted(0.0)], again.with_threshold(5.0))
    assert monitor.n_images == 21


def test_a_disk_that_is_full_is_told_and_predicting_goes_on(scoring, rng, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_SAVED_EVERY", 5)
    (tmp_path / "gone").mkdir()
    monitor = Monitor(scoring, file=tmp_path / "gone" / "m.json")
    (tmp_path / "gone").rmdir()
    monitor.observe([predicted(s) for s in rng.normal(size=10)], scoring)
    assert "cannot write" in monitor.to_dict()["save_error"]
    with pytest.raises(PredictionFileError, match="make the folder writable"):
        monitor.save()
    (tmp_path / "gone").mkdir()
    monitor.save()
    assert monitor.to_dict()["save_error"] is None


@pytest.mark.parametrize("n", [99, 0, True, 1000.0, "1000"])
def test_a_promise_worth_nothing_is_refused(scoring, n):
    with pytest.raises(PredictionError, match="give a whole number from 100 on"):
        Monitor(scoring, images_per_false_alarm=n)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 3}, "has format 3; this learnkit reads 1 to 2: update it; remove the file"),
        ({"format": 0}, "has format 0; this learnkit reads 1 to 2: update it; remove the file"),
        ({"overall": {}}, "a drift test needs exactly its own keys"),
        ({"alarms": [{"image": 1}]}, "a Alarm has the fields"),
        ({"alarms": [3]}, "a Alarm has the fields"),
        ({"classes": {"a": 1}}, "look at int"),
        ({"images_per_false_alarm": 0}, "`images_per_false_alarm` is 0"),
        ({"origin": 3}, "`origin` is 3"),
        ({"class_names": "ab"}, "`class_names` is 'ab'"),
        ({"class_names": [["a"]]}, "`class_names` is [['a']], no list of names"),
    ],
)
def test_a_damaged_file_is_refused(scoring, tmp_path, change, message):
    file = tmp_path / "m.json"
    Monitor(scoring, file=file).save()
    file.write_text(json.dumps(json.loads(file.read_text()) | change), encoding="utf-8")
    with pytest.raises(BundleCorruptError) as caught:
        Monitor(scoring, file=file)
    assert message in str(caught.value)
    assert str(file) in str(caught.value)
    assert str(caught.value).endswith("; remove the file to begin anew")


def test_a_file_that_is_torn_says_what_to_do(scoring, tmp_path):
    (tmp_path / "m.json").write_text('{"fo', encoding="utf-8")
    with pytest.raises(BundleCorruptError, match=r"; remove the file to begin anew$"):
        Monitor(scoring, file=tmp_path / "m.json")


def test_a_file_of_another_promise_is_refused(scoring, rng, tmp_path):
    file = tmp_path / "m.json"
    Monitor(scoring, images_per_false_alarm=500, file=file).save()
    said = (
        f"`images_per_false_alarm` is 10,000, and alarms in {str(file)!r} were raised by 500; give "
        "images_per_false_alarm=500, or another file, or remove this one to begin anew"
    )
    with pytest.raises(PredictionError, match=f"^{re.escape(said)}$"):
        Monitor(scoring, file=file)
    same = Monitor(scoring, images_per_false_alarm=np.int64(500), file=file)
    assert type(same.images_per_false_alarm) is int
    same.save()
    # what it says of another model is begun anew in any case
    assert Monitor(scoring_of(rng.normal(size=80)), file=file).images_per_false_alarm == 10_000


def test_a_file_that_could_never_be_written_is_refused_at_once(scoring, tmp_path):
    file = tmp_path / "nowhere" / "m.json"
    said = (
        f"the drift monitor cannot write {str(file)!r}: there is no folder {str(file.parent)!r}; "
        "make it, or choose another file"
    )
    with pytest.raises(PredictionFileError, match=f"^{re.escape(said)}$"):
        Monitor(scoring, file=file)
    said = "`file` is 5 (int); give the path of a file"
    with pytest.raises(PredictionError, match=f"^{re.escape(said)}$"):
        Monitor(scoring, file=5)


def of_format_1(file):
    """The file as it was when there were 26 bets: other evidence of the same mean, other marks."""
    values = json.loads(file.read_text(encoding="utf-8"))
    for test in (values["overall"], *values["classes"].values()):
        level = np.mean(test["evidence"])
        test["evidence"] = [26 * level] + [0.0] * 25
        test["marks"] = test["marks"] and sorted(test["marks"], reverse=True)
    file.write_text(json.dumps({**values, "format": 1}), encoding="utf-8")


def test_a_file_of_format_1_goes_on_with_its_evidence(scoring, rng, tmp_path):
    file = tmp_path / "m.json"
    monitor = Monitor(scoring, file=file)
    scores = np.concatenate([rng.normal(size=100), rng.normal(1, size=12)])
    monitor.observe([predicted(s, "ab"[i % 2]) for i, s in enumerate(scores)], scoring)
    monitor.save()
    of_format_1(file)
    again = Monitor(scoring, file=file)
    assert again.n_images == 112
    for name, test in monitor.state.tests.items():
        kept = again.state.tests[name]
        assert kept.level == pytest.approx(test.level)
        assert kept.scores.tolist() == test.scores.tolist()
        assert kept.trace == test.trace
    again.observe([predicted(0.0)], scoring)
    # the marks are set anew among all scores that there are by then
    assert again.state.overall.n_marked == len(again.state.overall.scores)
    again.save()
    assert json.loads(file.read_text(encoding="utf-8"))["format"] == 2
    assert Monitor(scoring, file=file).state.to_dict() == again.state.to_dict()


@pytest.mark.parametrize("evidence", [[], None, [1.0, "2"], [float("nan")] * 26, {}])
def test_a_damaged_file_of_format_1_is_refused(scoring, tmp_path, evidence):
    file = tmp_path / "m.json"
    Monitor(scoring, file=file).save()
    of_format_1(file)
    values = json.loads(file.read_text(encoding="utf-8"))
    values["overall"]["evidence"] = evidence
    file.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(BundleCorruptError):
        Monitor(scoring, file=file)


def test_a_file_that_cannot_be_read_is_refused(scoring, tmp_path):
    with pytest.raises(PredictionFileError, match="the drift monitor cannot read"):
        Monitor(scoring, file=tmp_path)


def test_table_document_and_plot_say_the_same(scoring, rng, tmp_path):
    monitor = Monitor(scoring, file=tmp_path / "m.json")
    monitor.observe([predicted(s, "<b>") for s in rng.normal(size=100)], scoring)
    table = monitor.table()
    assert table.label.tolist() == [None, "<b>"]
    assert table.images.tolist() == [100, 100]
    assert table.evidence[0] == monitor.state.overall.level
    html = monitor._repr_html_()
    assert "no drift in 100 images" in html
    assert "&lt;b&gt;" in html
    assert "<b></b>" not in html
    ax = monitor.plot()
    assert ax.get_title() == "no drift"
    line, bound = ax.lines[0], ax.lines[-1]
    assert line.get_xdata()[-1] == 100
    assert max(line.get_ydata()) == max(monitor.state.overall.trace)
    assert bound.get_ydata()[0] == monitor.bound
    monitor.save()
    assert as_text(read_drift_report(tmp_path / "m.json")) == as_text(monitor.document())


def test_a_monitor_that_saw_nothing_can_be_shown(scoring):
    monitor = Monitor(scoring)
    assert "no drift in 0 images" in monitor._repr_html_()
    assert monitor.plot().get_title() == "no drift"


def test_predicting_in_every_way_is_seen_once(watched, tmp_path):
    monitor = watched.monitor()
    assert watched.monitor() is monitor
    images = shades("red", 5, seed=1)
    watched.predict(images[0])
    watched.predict_batch(images)
    watched.predict_files([*images, b"no picture"], progress=False)
    assert monitor.n_images == 11
    assert set(monitor.state.classes) == {"red"}


def test_evaluation_suggestions_and_copies_are_not_seen(watched, tmp_path):
    from PIL import Image

    monitor = watched.monitor()
    for name in ("red", "blue"):
        (tmp_path / name).mkdir()
        for i, image in enumerate(shades(name, 2, seed=2)):
            Image.fromarray(image).save(tmp_path / name / f"{i}.png")
    watched.evaluate(ImageDataset.from_folder(tmp_path), progress=False)
    watched.suggest(strange(3), 1, progress=False)
    copy.copy(watched).predict(strange(1)[0])
    copy.deepcopy(watched).predict(strange(1)[0])
    assert monitor.n_images == 0


def test_a_new_kind_of_image_is_noticed_by_a_model(watched):
    monitor = watched.monitor(images_per_false_alarm=1000)
    watched.predict_batch(strange(40))
    assert monitor.is_drifting


def test_learning_begins_anew():
    model = make_continual({"red": 8, "blue": 8})
    monitor = model.monitor()
    model.predict_batch(strange(5))
    model.extend(*labelled({"green": 6}), progress=False)
    model.predict(strange(1)[0])
    assert monitor.n_images == 1


def test_only_a_promise_for_each_class_moves_scores_and_begins_anew():
    model = make_continual({"red": 30, "blue": 30}, memory=64)
    monitor, image = model.monitor(), shades("red", 1, seed=5)[0]
    score = model.predict(image).ood_score
    model.set(ood_threshold=score + 1)
    model.set(false_alarm_rate=0.2)
    assert (monitor.n_images, model.predict(image).ood_score) == (1, score)
    model.continual.set_threshold(per_class=True)
    assert monitor.n_images == 0
    assert model.predict(image).ood_score != score


def test_what_is_said_is_of_the_model_as_it_is_now():
    model = make_continual({"red": 8, "blue": 8})
    monitor = model.monitor(images_per_false_alarm=100)
    model.predict_batch(strange(60))
    assert monitor.is_drifting
    model.extend(*labelled({"green": 6}), progress=False)
    assert not monitor.is_drifting
    assert monitor.to_dict()["images"] == 0
    assert str(monitor).startswith("no drift in 0 images")


@pytest.mark.parametrize("rename", ["rename", "set"])
@pytest.mark.parametrize("new", ["rust", "amber"])  # behind and before "blue" in the alphabet
def test_classes_that_are_renamed_go_on_under_their_new_names(rename, new, tmp_path):
    model = make_continual({"red": 8, "blue": 8})
    monitor = model.monitor(images_per_false_alarm=100, file=tmp_path / "m.json")
    model.predict_batch([*shades("ok", 3, seed=1), *strange(40)])
    before = monitor.state
    names = {"red": new}
    model.rename(names) if rename == "rename" else model.set(class_names=names)
    after = monitor.state
    assert after.overall is before.overall
    assert {names.get(k, k): v for k, v in before.classes.items()} == dict(after.classes)
    assert [names.get(one.label, one.label) for one in before.alarms] == [
        one.label for one in after.alarms
    ]


@pytest.mark.parametrize(
    "names",
    [{"red": "rust"}, {"red": "amber"}, {"red": "blue", "blue": "red"}],
    ids=["another name", "another order", "a swap"],
)
def test_classes_that_are_renamed_while_nobody_watches_go_on_too(names, tmp_path):
    file, model = tmp_path / "m.json", make_continual({"red": 8, "blue": 8})
    first = model.monitor(images_per_false_alarm=100, file=file)
    model.predict_batch([*shades("ok", 3, seed=1), *strange(40)])
    first.save()
    model.save(tmp_path / "model")
    model = load_learner(tmp_path / "model")
    model.rename(names)
    again = model.monitor(images_per_false_alarm=100, file=file)
    before, after = first.state.to_dict(), again.state.to_dict()
    assert before["alarms"]
    assert after.pop("classes") == {names.get(k, k): v for k, v in before.pop("classes").items()}
    renamed = [{**one, "label": names.get(one["label"], one["label"])} for one in before["alarms"]]
    assert after == {**before, "alarms": renamed}
    # other knowledge is other knowledge
    model.extend([*shades("new", 8, seed=3)], "new")
    assert model.monitor(images_per_false_alarm=100, file=file).n_images == 0


def test_a_file_of_an_earlier_version_goes_on(tmp_path):
    file, model = tmp_path / "m.json", make_continual({"red": 8, "blue": 8})
    first = model.monitor(images_per_false_alarm=100, file=file)
    model.predict_batch([*shades("ok", 3, seed=1), *strange(40)])
    first.save()
    known = model.continual.scoring.threshold
    digest = hashlib.blake2b(digest_size=16)
    for array in (known.calibration_scores, known.calibration_weights):
        digest.update(np.ascontiguousarray(array, "<f8").tobytes())
    written = json.loads(file.read_text()) | {"origin": digest.hexdigest()}
    del written["class_names"]  # it knew the digest of all bits, and no names
    file.write_text(json.dumps(written))
    again = model.monitor(images_per_false_alarm=100, file=file)
    assert again.state.to_dict() == first.state.to_dict()
    model.rename({"red": "rust"})  # and goes on by what it is known by now
    assert again.n_images == 43
    again.save()
    assert "rust" in json.loads(file.read_text())["class_names"]
    # without names a class that is called otherwise leaves no row
    file.write_text(json.dumps(written))
    model.rename({"rust": "iron"})
    assert "red" not in model.monitor(images_per_false_alarm=100, file=file).state.classes


def test_a_model_that_detects_no_unknown_images_has_no_monitor():
    with pytest.raises(
        PredictionError, match=r"export one after init_continual\(\) or fit_ood\(\)"
    ):
        make_predictor().monitor()


def test_other_settings_make_another_monitor(watched, tmp_path):
    first = watched.monitor()
    second = watched.monitor(images_per_false_alarm=500, file=tmp_path / "m.json")
    assert second is not first
    assert (second.images_per_false_alarm, second.file) == (500, tmp_path / "m.json")
    assert watched.monitor() is second


def test_threads_lose_no_image(scoring, rng):
    monitor = Monitor(scoring)
    work = lambda: [monitor.observe([predicted(s)], scoring) for s in np.linspace(-1, 1, 25)]
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert monitor.n_images == 100


def test_the_file_of_a_bundle_is_beside_it(tmp_path):
    assert drift_file(tmp_path / "parts") == tmp_path / "parts.drift.json"


def test_a_state_is_read_back_whole(scoring, rng):
    state = DriftState.of(scoring)
    for score in rng.normal(4, size=30):
        state = state.update(predicted(score), 50.0)
    values = json.loads(json.dumps(state.to_dict()))
    assert DriftState.from_dict(values, "x").to_dict() == state.to_dict()
    assert isinstance(state.alarms[0], Alarm)
