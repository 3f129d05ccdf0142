"""A deployed model that learns: exactly, as a whole or not at all, from any number of threads."""

import copy
import shutil
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from deploy_helpers import labelled, make_continual, make_model, make_predictor, shades, strange
from helpers import write_image_folder
from PIL import Image

from learnkit.continual import knowledge as changes
from learnkit.data.dataset import ImageDataset
from learnkit.deploy.predictor import Predictor, load_learner
from learnkit.errors import (
    BundleWriteError,
    ContinualError,
    ContinualNotInitializedError,
    DataError,
    LearnkitError,
    PredictionError,
    UnreadableImagesError,
)
from learnkit.uncertainty.ood import evaluate_ood

# few tiny images, validation and learned ones unlike
pytestmark = pytest.mark.filterwarnings("ignore:.* are more unusual than 95% of")

QUIET = {"progress": False}
OLD, NEW = {"ok": 7, "scratch": 6}, {"dent": 5, "ok": 2}


@pytest.fixture
def predictor():
    return make_continual(OLD)


def tensors(predictor):
    return predictor.continual.state()[1]


def same_state(one, other):
    found, expected = tensors(one), tensors(other)
    same = found.keys() == expected.keys()
    return same and all(torch.equal(found[name], expected[name]) for name in found)


def answers(predictor, images=None):
    """Everything said about some images, as plain values."""
    images = shades("ok", 2, seed=7) + shades("dent", 2, seed=7) + strange(2)
    return [(p.to_dict(), p.classes) for p in predictor.predict_batch(images)]


# -- exact --------------------------------------------------------------------------------------


def test_a_deployed_model_extended_equals_one_that_saw_all_images_at_once(tmp_path, predictor):
    predictor.save(tmp_path / "model")
    deployed = load_learner(tmp_path / "model")
    report = deployed.extend(*labelled(NEW, seed=1), **QUIET)
    assert report.classes_added == ("dent",)
    assert deployed.classes == ("ok", "scratch", "dent")
    at_once = make_continual()
    images, labels = labelled(OLD)
    more, names = labelled(NEW, seed=1)
    at_once.extend(images + more, labels + names, **QUIET)
    assert same_state(deployed, at_once)
    assert answers(deployed) == answers(at_once)
    assert deployed.continual.threshold.value == at_once.continual.threshold.value
    assert deployed.continual.temperature == at_once.continual.temperature


def test_batches_and_order_of_arrival_leave_no_trace():
    images, labels = labelled(OLD | NEW)
    expected = make_continual()
    expected.extend(images, labels, **QUIET)
    found = make_continual()
    with pytest.warns(UserWarning, match="no class has two images"):
        found.extend(images[:1], labels[:1], **QUIET)  # class order is the order of arrival
    found.extend(images[7:8], labels[7:8], **QUIET)
    for i in reversed([*range(1, 7), *range(8, len(images))]):
        found.extend(images[i], labels[i], **QUIET)
    assert found.continual.n_images == expected.continual.n_images
    for name in expected.classes:
        probs = found.predict(shades(name, 1, seed=3)[0])
        wanted = expected.predict(shades(name, 1, seed=3)[0])
        assert probs.ranking == wanted.ranking
        assert probs.ood_score == wanted.ood_score


def test_what_was_learned_is_known_and_what_was_not_is_flagged(predictor):
    predictor.extend(*labelled({"dent": 8}, seed=1), **QUIET)
    fresh = [(n, image) for n in predictor.classes for image in shades(n, 8, seed=5)]
    found = [predictor.predict(image) for _, image in fresh]
    assert sum(p.label == n for p, (n, _) in zip(found, fresh, strict=True)) >= 22
    assert sum(p.is_ood for p in found) <= 6
    assert all(predictor.predict(image).is_ood for image in strange(8))


def test_predictions_carry_the_heads_judgement_of_the_features(predictor):
    head, images = predictor.continual, shades("ok", 3, seed=4) + strange(2)
    features = predictor.features(images, bs=5, **QUIET)
    scores, p_values = head.ood_scores(features), head.p_values(features)
    found = predictor.predict_batch(images, bs=5)
    assert [p.ood_score for p in found] == scores.tolist()
    assert [p.p_value for p in found] == p_values.tolist()
    assert [p.is_ood for p in found] == (scores > head.threshold.value).tolist()
    assert {p.ood_threshold for p in found} == {head.threshold.value}
    with torch.no_grad():
        probs = head(features).softmax(1)
    torch.testing.assert_close(torch.stack([p.probs for p in found]), probs, rtol=0, atol=1e-6)
    for alpha in (0.1, 0.3):
        sets = head.prediction_sets(features, alpha)
        for prediction, row in zip(found, sets, strict=True):
            kept = {name for name, inside in zip(head.classes, row.tolist(), strict=True) if inside}
            assert set(prediction.prediction_set(alpha)) == kept


def test_a_blank_frame_is_flagged_and_its_dictionary_is_json(predictor):
    class Dark(torch.nn.Module):
        def __init__(self, body):
            super().__init__()
            self.body, self.n_features = body, body.n_features

        def forward(self, x):
            return self.body(x) * (x.std((1, 2, 3), keepdim=True) > 0.01)

    model = torch.nn.Sequential(Dark(predictor.model[0]), predictor.model[1])
    found = Predictor(model, predictor.preprocessing).predict(np.zeros((32, 32, 3), "uint8"))
    assert found.is_ood
    assert found.to_dict()["is_ood"] is True


# -- verbs --------------------------------------------------------------------------------------


def test_unlearning_an_image_leaves_no_trace(predictor):
    before, said = tensors(predictor), answers(predictor)
    predictor.extend(*labelled({"ok": 2, "scratch": 1}, seed=8), **QUIET)
    assert answers(predictor) != said
    predictor.subtract(*labelled({"ok": 2, "scratch": 1}, seed=8), **QUIET)
    after = tensors(predictor)
    for name in ("counts", "sums", "gram"):
        assert torch.equal(after[name], before[name])


# the images of the folder are noise, and lie further out than the few held back
@pytest.mark.filterwarnings("ignore:.* of the learned images, left out")
def test_unlearning_a_split_dataset_takes_its_validation_images_back(tmp_path):
    predictor = make_continual(OLD, memory=16)  # all images are remembered
    before, said = tensors(predictor), answers(predictor)
    folder = write_image_folder(tmp_path, {"ok": 4, "scratch": 4})
    data = ImageDataset.from_folder(folder).split(0.5, 0.5, 0.0, seed=0)
    predictor.extend(data, **QUIET)
    assert len(tensors(predictor)["validation"]) == len(data.valid) == 4
    predictor.subtract(data, **QUIET)
    assert answers(predictor) == said
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors(predictor).items())
    predictor.extend(data, **QUIET)
    learned = dict(predictor.continual.n_images)
    predictor.subtract(data.valid.paths, data.valid.labels, validation=True, **QUIET)
    assert len(tensors(predictor)["validation"]) == 0
    assert predictor.continual.n_images == learned


def test_a_forgotten_class_keeps_its_number_and_never_wins(predictor, tmp_path):
    predictor.extend(*labelled({"dent": 5}), **QUIET)
    predictor.forget("scratch")
    predictor.save(tmp_path / "model")
    for model in (predictor, load_learner(tmp_path / "model")):
        assert model.classes == ("ok", "scratch", "dent")
        for image in shades("scratch", 3, seed=2):
            prediction = model.predict(image)
            assert prediction.label != "scratch"
            assert prediction.probs[1] == 0
            assert prediction.probs.sum().item() == pytest.approx(1, abs=1e-6)
            assert prediction.index == model.classes.index(prediction.label)
        assert model.predict(shades("dent", 1, seed=2)[0]).index == 2
        model.extend(*labelled({"scratch": 6}), **QUIET)
        assert model.predict(shades("scratch", 1, seed=2)[0]).index == 1


def test_classes_are_renamed_and_merged_and_changes_taken_back(predictor):
    said = answers(predictor)
    predictor.extend(*labelled(NEW, seed=1), **QUIET)
    predictor.undo()
    assert answers(predictor) == said
    predictor.rename({"scratch": "Kratzer"})
    assert predictor.classes == ("ok", "Kratzer")
    assert predictor.predict(shades("scratch", 1, seed=2)[0]).label == "Kratzer"
    predictor.extend(*labelled({"dent": 5}), **QUIET)
    predictor.merge_classes(["Kratzer", "dent"], "damage")
    for name in ("scratch", "dent"):
        assert predictor.predict(shades(name, 1, seed=2)[0]).label == "damage"


def test_data_with_a_former_name_are_refused_by_the_name_of_now(predictor, tmp_path):
    data = ImageDataset.from_folder(write_image_folder(tmp_path, {"ok": 2, "scratch": 2}))
    predictor.rename({"scratch": "Kratzer"})
    said = "^class 'scratch' is called 'Kratzer' now: it was renamed, or merged with others; label"
    for verb in (predictor.evaluate, predictor.extend):
        with pytest.raises(DataError, match=said):
            verb(data, **QUIET)


def test_of_one_image_a_class_every_prediction_set_has_all_classes():
    with pytest.warns(UserWarning, match="rest on an assumed distribution"):
        predictor = make_continual({"ok": 1, "scratch": 1})
    image = shades("ok", 1, seed=9)
    found = predictor.continual.prediction_sets(predictor.features(image, **QUIET), 0.1)
    assert found.tolist() == [[True, True]]
    assert set(predictor.predict(image[0]).prediction_set(0.1)) == {"ok", "scratch"}
    assert set(predictor.predict(image[0]).to_dict(alpha=0.1)["prediction_set"]) == {
        "ok",
        "scratch",
    }


def test_what_another_wrote_to_the_bundle_since_is_not_written_over(predictor, tmp_path):
    path, copy = tmp_path / "model", tmp_path / "copy"
    predictor.save(path)
    one, other = load_learner(path), load_learner(path)
    one.rename({"ok": "good"})
    theirs = one.save(path)
    other.forget("scratch")
    told = f"sha256 {theirs[:12]}.*Load it again and repeat the change, save to another path, or"
    with pytest.raises(BundleWriteError, match=told):
        other.save(path)
    with pytest.raises(BundleWriteError, match="is another one by now"):
        predictor.save(path)
    assert load_learner(path, sha256=theirs).classes == ("good", "scratch")
    other.save(copy)  # elsewhere, which does not make it forget what it read here
    with pytest.raises(BundleWriteError, match="is another one by now"):
        other.save(path)
    path.rename(tmp_path / "aside")
    other.save(path)
    assert load_learner(path).classes == load_learner(copy).classes


def test_a_deep_copy_does_not_write_over_what_another_wrote_either(predictor, tmp_path):
    path = tmp_path / "model"
    predictor.save(path)
    one, other = load_learner(path), copy.deepcopy(load_learner(path))
    one.rename({"ok": "good"})
    theirs = one.save(path)
    other.forget("scratch")
    with pytest.raises(BundleWriteError, match="is another one by now"):
        other.save(path)
    assert load_learner(path, sha256=theirs).classes == ("good", "scratch")


def test_a_bundle_that_is_as_it_was_is_replaced_as_often_as_wanted(predictor, tmp_path):
    path, link = tmp_path / "model", tmp_path / "link"
    predictor.save(path)
    link.symlink_to(tmp_path)
    for opened in (lambda: predictor, lambda: load_learner(link / "model")):
        model = opened()
        for new in ("a", "b"):
            model.rename({model.classes[0]: new})
            model.save(path)
            copy = shutil.copytree(path, tmp_path / "copy")
            shutil.rmtree(path)
            copy.rename(path)
            (path / "manifest.json").touch()
        model.undo()
        digest = model.save(link / "model")
    assert load_learner(path, sha256=digest).classes == ("a", "scratch")


def test_classes_that_are_no_answer_are_none_that_a_model_has(predictor, tmp_path):
    write_image_folder(tmp_path / "images", {"ok": 2, "scratch": 8})
    always = "To call every image scratch would be right for 80.0 %"
    assert any(one.startswith(always) for one in predictor.evaluate(tmp_path / "images").verdict)
    predictor.forget("scratch")
    assert not any("every image" in one for one in predictor.evaluate(tmp_path / "images").verdict)
    assert repr(predictor).endswith("32x32 px, 1 class: ok)")
    predictor.forget("ok")
    assert repr(predictor).endswith("32x32 px, 0 classes)")
    predictor.undo()
    predictor.rename({"ok": "good"})
    predictor.extend(*labelled({"dent": 5}), **QUIET)
    assert repr(predictor).endswith("32x32 px, 2 classes: good, dent)")


def test_of_classes_that_are_no_answer_any_more_an_evaluation_says_nothing(predictor, tmp_path):
    predictor.extend(*labelled({"dent": 5, "bird": 5, "cat": 5}), **QUIET)
    root = tmp_path / "images"
    for name in ("ok", "scratch"):
        (root / name).mkdir(parents=True)
        for i, image in enumerate(shades(name, 3, seed=9)):
            Image.fromarray(image).save(root / name / f"{i}.png")

    def told(model):
        found = model.evaluate(root, **QUIET)
        summary = found.page.data(found, pictures=False)["summary"]
        said = [one["text"] for one in summary if one["text"].startswith("No images of")]
        return [one for one in found.verdict if "nothing is known" in one] + said

    assert told(predictor) == [
        "No images, so nothing is known, of dent, bird, cat.",
        "No images of dent, bird, cat here: nothing is known of them.",
    ]
    predictor.merge_classes(["scratch", "dent"], into="scratch")
    predictor.forget("bird")
    predictor.save(tmp_path / "model")
    for model in (predictor, load_learner(tmp_path / "model")):
        assert told(model) == [
            "No images, so nothing is known, of cat.",
            "No images of cat here: nothing is known of them.",
        ]
    predictor.forget("cat")
    assert told(predictor) == []


def test_names_and_threshold_set_together_are_one_change(predictor):
    before, n = predictor.continual.history, len(predictor.audit)
    was = predictor.continual.threshold.value
    predictor.set(class_names={"ok": "good"}, ood_threshold=was + 1)
    assert predictor.classes[0] == "good"
    assert predictor.continual.threshold.value == was + 1
    assert [entry.what for entry in predictor.audit][n:] == ["set"]
    assert predictor.undo().renamed == {"good": "ok"}
    assert predictor.continual.knowledge is before.states[0]
    with pytest.raises(LearnkitError):
        predictor.set(class_names={"ok": "good"}, ood_threshold=float("nan"))
    assert predictor.continual.knowledge is before.states[0]
    for fields, what in (
        ({"class_names": {"ok": "good"}}, "rename"),
        ({"false_alarm_rate": 0.2}, "set_threshold"),
    ):
        predictor.set(**fields)
        assert predictor.audit[-1].what == what
    n = len(predictor.audit)
    predictor.set(class_names={"good": "good"}, metadata={"a": 1})
    assert len(predictor.audit) == n


def test_groups_are_learned_and_travel(tmp_path, predictor):
    images, names = labelled(OLD)
    groups = [i % 4 for i in range(len(names))]
    with pytest.raises(DataError, match="has 2 values for 13 images"):
        predictor.extend(images, names, group=[1, 2], **QUIET)
    predictor.extend(images, names, group=groups, **QUIET)
    given = predictor.continual.statistics.memory.given()
    assert len(set(given.tolist())) == 4
    assert predictor.continual.knowledge.derived.linear.loo.n_single == 8
    predictor.save(tmp_path / "model")
    again = load_learner(tmp_path / "model")
    assert torch.equal(again.continual.statistics.memory.given(), given)
    assert answers(again) == answers(predictor)


def test_images_of_learned_groups_calibrate_nothing():
    images, names = labelled(OLD, seed=1)
    parts = [f"part {i % 4}" for i in range(len(names))]
    predictor, expected = (make_continual(OLD, memory=64, near_copies=False) for _ in range(2))
    for one in predictor, expected:
        one.extend(images, names, group=parts, **QUIET)
    fresh, labels = labelled({"ok": 6, "scratch": 6}, seed=2)
    parts = [f"part {2 * (i % 3)}" for i in range(12)]  # 0 and 2 were learned, 4 was not
    kept = [i for i, one in enumerate(parts) if one == "part 4"]
    expected.calibrate([fresh[i] for i in kept], [labels[i] for i in kept], **QUIET)
    before = predictor.continual.knowledge
    with pytest.raises(DataError, match="`group` has 1 value for 12 images"):
        predictor.calibrate(fresh, labels, group=["part 4"], **QUIET)
    assert predictor.continual.knowledge is before
    report = predictor.calibrate(fresh, labels, group=parts, **QUIET)
    assert any(one.startswith("8 of 12 validation images do not count") for one in report.notes)
    assert predictor.continual.knowledge.derived.n_fresh == 4
    assert predictor.continual.threshold == expected.continual.threshold
    assert predictor.continual.calibration == expected.continual.calibration


def test_an_image_sent_twice_counts_once_and_is_said(predictor, tmp_path):
    before = predictor.continual.statistics
    images, names = labelled(OLD)
    report = predictor.extend([*images, images[0]], [*names, names[0]], **QUIET)
    assert report.notes[0].startswith("already learned: 14 of 14 images, which count once")
    assert predictor.continual.statistics.equals(before)
    predictor.save(tmp_path / "model")
    Image.fromarray(np.asarray(images[0])).save(tmp_path / "the same pixels.png")
    again = load_learner(tmp_path / "model")
    report = again.extend(tmp_path / "the same pixels.png", names[0], **QUIET)
    assert report.notes[0].startswith("already learned: 1 of 1")
    report = again.extend(images[:2], names[:2], again=True, **QUIET)
    assert sum(report.images.values()) == 2


def test_threshold_names_and_false_alarm_rate_can_be_set(predictor, tmp_path):
    image = shades("ok", 1, seed=3)[0]
    score = predictor.predict(image).ood_score
    assert predictor.set(ood_threshold=score - 1e-6).predict(image).is_ood
    assert not predictor.set(ood_threshold=score).predict(image).is_ood
    assert predictor.continual.threshold.source == "manual"
    predictor.save(tmp_path / "model")
    found = load_learner(tmp_path / "model").predict(image)
    assert (found.ood_threshold, found.is_ood) == (score, False)
    predictor.set(class_names={"ok": "gut"})
    assert predictor.classes == ("gut", "scratch")
    predictor.set(class_names=["a", "b"])
    assert predictor.predict(image).label == "a"
    strict, lax = (
        predictor.set(false_alarm_rate=rate).continual.threshold.value for rate in (0.01, 0.3)
    )
    assert strict > lax
    with pytest.raises(PredictionError, match="1 name for 2"):
        predictor.set(class_names=["x"])
    for wrong in (float("nan"), "x", True):
        with pytest.raises(LearnkitError, match=f"^`ood_threshold` is {wrong!r}; give one finite"):
            predictor.set(ood_threshold=wrong)


@pytest.mark.parametrize("metadata", [{1: object()}, {"x": float("nan")}, {"x": "\ud800"}])
def test_metadata_that_no_bundle_can_hold_is_refused_and_nothing_set(predictor, metadata):
    before = predictor.continual.knowledge
    with pytest.raises(PredictionError, match=r"`metadata` is .* is no JSON: .*; give texts"):
        predictor.set(metadata=metadata, ood_threshold=9.0)
    with pytest.raises(PredictionError, match="no JSON"):
        predictor.metadata = metadata
    assert (predictor.metadata, predictor.continual.knowledge) == ({}, before)


def test_names_that_are_refused_are_those_of_the_argument(predictor):
    for names in (["gut", "gut"], ["gut", ""], ["gut", 3]):
        with pytest.raises(PredictionError, match=r"`class_names`(=| has 'gut' twice)"):
            predictor.set(class_names=names)


@pytest.mark.parametrize("names", [["gut", "GUT"], {"ok": "Scratch"}, ["gut", "\ud800"]])
@pytest.mark.parametrize("how", [{"ood_threshold": 5.0}, {"false_alarm_rate": 0.2}])
def test_names_refused_leave_everything_else_as_it_was(predictor, names, how):
    before, n_states = predictor.continual.knowledge, len(predictor.continual.history.states)
    with pytest.raises(LearnkitError):
        predictor.set(class_names=names, metadata={"line": 4}, **how)
    assert predictor.continual.knowledge is before
    assert len(predictor.continual.history.states) == n_states
    assert (predictor.classes, predictor.metadata) == (("ok", "scratch"), {})


@pytest.mark.parametrize("name", ["ood_threshold", "false_alarm_rate", "class_names", "classes"])
def test_an_assignment_that_would_do_nothing_says_how_it_is_set(predictor, name):
    how = name.replace("classes", "class_names")
    with pytest.raises(AttributeError, match=rf"`{name}` .* call set\({how}=...\)"):
        setattr(predictor, name, 5.0)
    assert name not in vars(predictor)


# -- what to learn from -------------------------------------------------------------------------


def test_folders_datasets_files_and_single_images_teach_the_same(tmp_path):
    folder = tmp_path / "new"
    for name, n in NEW.items():
        (folder / name).mkdir(parents=True)
        for i, image in enumerate(shades(name, n)):
            Image.fromarray(image).save(folder / name / f"{i}.png")
    data = ImageDataset.from_folder(folder)
    ways = [
        lambda p: p.extend(folder, **QUIET),
        lambda p: p.extend(data, n_workers=0, **QUIET),
        lambda p: p.extend(data.paths, data.labels, **QUIET),
        lambda p: [p.extend(folder / name, name, **QUIET) for name in sorted(NEW)],
        lambda p: [p.extend(*one, **QUIET) for one in zip(data.paths, data.labels, strict=True)],
    ]
    predictors = [make_continual(OLD) for _ in ways]
    for way, predictor in zip(ways, predictors, strict=True):
        way(predictor)
        assert same_state(predictor, predictors[0])


def test_validation_images_of_a_split_dataset_are_not_learned(tmp_path):
    data = ImageDataset.from_folder(write_image_folder(tmp_path, {"a": 30, "b": 30}))
    data = data.split(0.5, 0.5, 0, seed=0)
    predictor = make_continual()
    predictor.extend(data, **QUIET)
    assert predictor.continual.threshold.source == "validation and leave-one-out"
    assert predictor.continual.threshold.n > 30
    assert sum(predictor.continual.n_images.values()) == 30


# -- whole or not at all ------------------------------------------------------------------------


def test_unreadable_images_change_nothing_and_are_all_named(predictor, tmp_path):
    write_image_folder(tmp_path, {"dent": 5, "ok": 3})
    broken = [tmp_path / "dent" / "001.png", tmp_path / "ok" / "002.png"]
    for path in broken:
        path.write_bytes(b"no image")
    before, said = tensors(predictor), answers(predictor)
    with pytest.raises(UnreadableImagesError, match="2 of 8 images") as caught:
        predictor.extend(tmp_path, **QUIET)
    assert list(caught.value.failures) == [str(path) for path in broken]
    assert all(torch.equal(after, before[name]) for name, after in tensors(predictor).items())
    assert answers(predictor) == said
    assert predictor.classes == ("ok", "scratch")


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, RuntimeError, MemoryError])
@pytest.mark.parametrize("target", ["features", "derive"])
def test_an_interrupted_change_changes_nothing(predictor, monkeypatch, interrupt, target):
    before, said = tensors(predictor), answers(predictor)

    def stop(*args, **kwargs):
        raise interrupt

    holder = predictor.network if target == "features" else changes
    with monkeypatch.context() as patched:
        patched.setattr(holder, target, stop)
        with pytest.raises(interrupt):
            predictor.extend(*labelled(NEW), **QUIET)
    assert all(torch.equal(after, before[name]) for name, after in tensors(predictor).items())
    assert answers(predictor) == said


@pytest.mark.parametrize("verb", ["extend", "subtract", "calibrate"])
def test_an_argument_that_a_verb_has_not_is_named_with_the_verb(predictor, verb):
    before = tensors(predictor)
    message = (
        rf"Predictor\.{verb}\(\) got an unexpected keyword argument 'foo'.*bs, n_workers, prog"
    )
    with pytest.raises(TypeError, match=message):
        getattr(predictor, verb)(*labelled(NEW), foo=1)
    assert tensors(predictor).keys() == before.keys()


@pytest.mark.parametrize("labels", [3, 2.5, b"frog"])
def test_labels_that_are_no_list_are_named(predictor, labels):
    for verb in ("extend", "subtract", "calibrate"):
        with pytest.raises(
            DataError, match=r"`labels` is .*\); give one name per image, or one te"
        ):
            getattr(predictor, verb)(shades("ok", 4), labels)


@pytest.mark.parametrize("other", [5, "x", None])
def test_what_is_no_predictor_is_not_merged(predictor, other):
    with pytest.raises(DataError, match=r"`other` is .*give class statistics of the same network"):
        predictor.merge(other)


def test_bad_labels_change_nothing(predictor):
    before = tensors(predictor)
    for labels, error in [(["a", "b"], DataError), ("OK", LearnkitError), ([None], DataError)]:
        with pytest.raises(error):
            predictor.extend([shades("ok", 1)[0]], labels, **QUIET)
    assert all(torch.equal(after, before[name]) for name, after in tensors(predictor).items())


# -- threads ------------------------------------------------------------------------------------


def test_who_predicts_while_the_model_is_extended_sees_before_or_after(predictor):
    image = shades("ok", 1, seed=3)[0]
    allowed = [predictor.predict(image).to_dict()]
    steps = [labelled({name: 4}, seed=1) for name in ("dent", "hole", "ok", "rust")]
    rehearsal = make_continual(OLD)
    for step in steps:
        rehearsal.extend(*step, **QUIET)
        allowed.append(rehearsal.predict(image).to_dict())
    found, done = [], threading.Event()

    def watch():
        while not done.is_set():
            found.append(predictor.predict(image).to_dict())

    with ThreadPoolExecutor(2) as pool:
        watchers = [pool.submit(watch) for _ in range(2)]
        for step in steps:
            predictor.extend(*step, **QUIET)
        done.set()
        for watcher in watchers:
            watcher.result()
    assert len(found) > 4
    assert all(said in allowed for said in found)
    assert predictor.predict(image).to_dict() == allowed[-1]


def test_two_threads_may_extend_one_predictor(predictor):
    parts = [labelled({"ok": 2, "scratch": 1}, seed=seed) for seed in range(10, 18)]
    expected = make_continual(OLD)
    for part in parts:
        expected.extend(*part, **QUIET)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda part: predictor.extend(*part, **QUIET), parts))
    assert same_state(predictor, expected)
    assert answers(predictor) == answers(expected)


def test_a_table_made_while_a_class_is_added_has_all_columns(predictor):
    def items():
        yield from shades("ok", 3)
        predictor.extend(*labelled({"dent": 4}), **QUIET)
        yield from shades("ok", 3)

    class Growing(list):
        __iter__ = lambda self: items()

    from learnkit.inference.batch import predict_stream, prediction_table

    stream = predict_stream(predictor, Growing(), bs=2, n_workers=0)
    table = prediction_table(stream, predictor.classes, ood=True)
    assert table["p(dent)"].notna().sum() in {2, 3, 4}
    assert table["p(ok)"].notna().all()


# -- tables and measures ------------------------------------------------------------------------


def test_tables_say_how_unusual_each_image_is(predictor, tmp_path):
    write_image_folder(tmp_path, {"a": 3})
    (tmp_path / "a" / "broken.png").write_bytes(b"x")
    table = predictor.predict_folder(tmp_path, **QUIET)
    expected = [*("path", "verdict", "label", "confidence", "error")]
    expected += ["is_ood", "ood_score", "p_value"]
    assert list(table.columns) == [*expected, "p(ok)", "p(scratch)"]
    prediction = predictor.predict(table["path"][0])
    assert table["ood_score"][0] == pytest.approx(prediction.ood_score, rel=1e-4)
    assert table["is_ood"].dtype == "boolean"
    assert table["is_ood"].isna().tolist() == [False, False, False, True]
    assert len(make_predictor().predict_folder(tmp_path, **QUIET).columns) == 5 + 3


def test_evaluation_tells_how_well_unknown_images_are_noticed(predictor, tmp_path):
    for name in ("ok", "scratch"):
        (tmp_path / "known" / name).mkdir(parents=True)
        for i, image in enumerate(shades(name, 6, seed=9)):
            Image.fromarray(image).save(tmp_path / "known" / name / f"{i}.png")
    data = ImageDataset.from_folder(tmp_path / "known")
    images = strange(4) + shades("ok", 2, seed=10)
    summary = predictor.evaluate(data, ood=images, **QUIET).summary
    scores = [[predictor.predict(i).ood_score for i in side] for side in (data.paths, images)]
    expected = evaluate_ood(*scores, predictor.continual.threshold.value)
    names = ("auroc", "fpr_at_95_tpr", "false_alarm_rate", "detection_rate")
    assert {n: summary[n] for n in names} == {n: getattr(expected, n) for n in names}
    plain = predictor.evaluate(data, **QUIET).summary
    assert plain["false_alarm_rate"] == expected.false_alarm_rate
    assert "auroc" not in plain
    assert predictor.evaluate(data, **QUIET).to_dict()["summary"]["n"] == 12


# -- where there is nothing to learn with -------------------------------------------------------


def test_an_evaluation_says_how_many_images_were_learned(predictor, tmp_path):
    for i, (image, name) in enumerate(zip(*labelled(OLD), strict=True)):
        (tmp_path / name).mkdir(exist_ok=True)
        Image.fromarray(np.asarray(image)).save(tmp_path / name / f"{i}.png")
    old = ImageDataset.from_folder(tmp_path)
    found = predictor.evaluate(old, **QUIET)
    said = "13 of 13 images were learned by this model: the numbers are optimistic"
    assert found.notes == (said,)
    assert str(found).endswith(said)
    assert found.to_dict()["notes"] == [said]
    assert said in found._repr_html_()
    predictor.save(tmp_path / "model")
    assert load_learner(tmp_path / "model").evaluate(old, **QUIET).notes == (said,)
    new = ImageDataset.from_folder(write_image_folder(tmp_path / "new", {"ok": 4, "scratch": 4}))
    assert predictor.evaluate(new, **QUIET).notes == ()
    predictor.calibrate(new, **QUIET)
    (note,) = predictor.evaluate(new, **QUIET).notes
    assert note.startswith("8 of 8 images decide threshold and temperature of this model")


def test_an_evaluation_says_which_images_out_of_distribution_were_learned(predictor, tmp_path):
    new = ImageDataset.from_folder(write_image_folder(tmp_path / "new", {"ok": 4, "scratch": 4}))
    images = shades("ok", 7) + strange(2)
    for i, image in enumerate(images):
        Image.fromarray(np.asarray(image)).save(tmp_path / f"{i}.png")
    files = [str(tmp_path / f"{i}.png") for i in range(len(images))]
    (note,) = predictor.evaluate(new, ood=files, **QUIET).notes
    assert note == (
        "7 of 9 images in `ood` were learned by this model, to which they are not out of "
        "distribution: leave them out"
    )
    assert predictor.evaluate(new, ood=files[7:], **QUIET).notes == ()
    predictor.undo()
    predictor.extend(*labelled({"ok": 7, "scratch": 6}, seed=5), **QUIET)
    assert predictor.evaluate(new, ood=files, **QUIET).notes == ()


def test_a_plain_model_says_how_to_get_one_that_learns(tmp_path):
    predictor = make_predictor()
    assert predictor.continual is None
    changes = [
        lambda: predictor.extend(shades("ok", 1), "ok"),
        lambda: predictor.subtract(shades("ok", 1), "ok"),
        lambda: predictor.forget("ok"),
        lambda: predictor.rename({"ok": "x"}),
        lambda: predictor.merge_classes(["ok"], "x"),
        predictor.undo,
        lambda: predictor.set(ood_threshold=1.0),
        lambda: predictor.set(false_alarm_rate=0.1),
    ]
    for change in changes:
        with pytest.raises(ContinualNotInitializedError, match=r"learn\.init_continual"):
            change()
    data = ImageDataset.from_folder(write_image_folder(tmp_path, {"ok": 2, "NO": 2}))
    with pytest.raises(ContinualNotInitializedError):
        predictor.evaluate(data, ood=data.paths, **QUIET)


def test_a_model_that_knows_no_class_yet_says_so_travels_and_learns(tmp_path):
    predictor = make_continual()
    assert predictor.classes == ()
    assert "0 classes" in repr(predictor)
    with pytest.raises(ContinualError):
        predictor.predict(shades("ok", 1)[0])
    predictor.save(tmp_path / "empty")
    assert load_learner(tmp_path / "empty").classes == ()
    predictor.extend(*labelled({"ok": 2}), **QUIET)
    assert predictor.predict(shades("ok", 1)[0]).label == "ok"


def test_given_class_names_must_be_the_heads():
    model = make_continual(OLD).model
    recipe = make_predictor().preprocessing
    assert Predictor(model, recipe, ["ok", "scratch"]).classes == ("ok", "scratch")
    with pytest.raises(PredictionError, match="its head knows"):
        Predictor(model, recipe, ["ok", "dent"])
    with pytest.raises(PredictionError, match="multi_label"):
        Predictor(model, recipe, multi_label=True)
    with pytest.raises(PredictionError, match="`classes` is missing"):
        Predictor(make_model(), recipe)


def test_predicting_and_learning_import_no_fastai_pandas_or_matplotlib(saved, tmp_path, predictor):
    predictor.save(tmp_path / "model")
    code = """
        import sys
        import numpy as np
        from learnkit.deploy.predictor import load_learner
        image = np.zeros((40, 40, 3), "uint8")
        image[::2] = 200
        load_learner(sys.argv[2]).predict_batch([image, image])
        predictor = load_learner(sys.argv[1])
        predictor.extend([image, image // 2], "stripes", progress=False)
        prediction = predictor.predict(image)
        prediction.to_dict(alpha=0.1)
        predictor.save(sys.argv[1])
        print(load_learner(sys.argv[1]).predict(image).label)
        heavy = {"fastai", "fastcore", "fasttransform", "pandas", "matplotlib", "sklearn"}
        print(sorted(heavy & {name.partition(".")[0] for name in sys.modules}))
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "model"), str(saved[0])]
    done = subprocess.run(command, check=True, capture_output=True, text=True, encoding="utf-8")
    assert done.stdout.split("\n")[:2] == ["stripes", "[]"]
    assert done.stderr == ""
