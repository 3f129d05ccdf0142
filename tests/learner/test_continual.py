"""A learner that goes on learning: from new images alone, exactly, and all or nothing."""

import copy
import re
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from continual_helpers import keep_every_row
from fastai.vision.augment import Resize, aug_transforms
from fastai.vision.data import ImageDataLoaders
from fastai.vision.learner import vision_learner
from helpers import quiet, tiny_learner, write_image_folder
from PIL import Image
from torch import nn

from learnkit.backends import onnx_export
from learnkit.backends.torch_session import Network
from learnkit.data.dataset import ImageDataset
from learnkit.deploy.predictor import load_learner
from learnkit.errors import (
    ContinualAlreadyInitializedError,
    ContinualNotInitializedError,
    ContinualStateError,
    ContinualUnsupportedError,
    DataError,
    ExportError,
    InterpretationError,
    OodLockedError,
    OodUnsupportedError,
    PredictionError,
    StatisticsError,
    UncertaintyError,
    UnreadableImagesError,
)
from learnkit.interpret.outputs import Outputs
from learnkit.interpret.source import Source
from learnkit.learner.continual import origin_of
from learnkit.learner.dataloaders import StoreLoader, with_normalization
from learnkit.learner.factory import cnn_learner
from learnkit.learner.features import features_of
from learnkit.learner.learner import ImageLearner
from learnkit.models.eval_mode import set_channels_last

# few tiny images, validation and learned ones unlike
pytestmark = pytest.mark.filterwarnings("ignore:.* are more unusual than 95% of")

OLD, NEW = ["a", "b", "c"], ["d", "e"]
# fastai says so of every learner that was not trained
WITHOUT_OPTIMIZER = pytest.mark.filterwarnings("ignore:Saved file doesn't contain an optimizer")


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    root = write_image_folder(tmp_path_factory.mktemp("images"), dict.fromkeys(OLD + NEW, 12))
    return ImageDataset.from_folder(root).split(0.5, 0.25, seed=0)


def only(data, names):
    return ImageDataset(data.frame[data.frame["label"].isin(names)], data.root)


def unsplit(data, *splits):
    """The images of some splits, in none."""
    some = data.frame[data.frame["split"].isin(splits)]
    return ImageDataset(some.drop(columns="split"), data.root)


@pytest.fixture(scope="module")
def old(everything):
    return only(everything, OLD)


@pytest.fixture(scope="module")
def new(everything):
    return only(everything, NEW)


@pytest.fixture
def plain(old):
    return tiny_learner(old)


@pytest.fixture
def every_row(monkeypatch):
    """A few small images to which an untrained network is all but blind look alike by chance."""
    keep_every_row(monkeypatch)


@pytest.fixture
def learn(plain, old):
    plain.init_continual(old)
    return plain


def same_knowledge(a, b):
    """Whether two learners know the same to the bit, whatever the order of their classes."""
    one, two = a.continual, b.continual
    rows = [two.classes.index(name) for name in one.classes]
    mine, its = one.knowledge.derived, two.knowledge.derived
    return (
        one.statistics.equals(two.statistics)
        and torch.equal(mine.weight, its.weight[rows])
        and torch.equal(mine.bias, its.bias[rows])
        and one.threshold.value == two.threshold.value
        and one.temperature == two.temperature
    )


class TestExactness:
    def test_one_pass_over_all_equals_init_and_extend(self, everything, old, new, learn):
        together = tiny_learner(old)
        together.init_continual(everything, reset_class_information=True)
        learn.extend(new)
        assert same_knowledge(together, learn)

    def test_the_order_of_arrival_does_not_matter(self, old, new):
        first, second = tiny_learner(old), tiny_learner(old)
        for data, learn in ((old, first), (new, second)):
            learn.init_continual(data, reset_class_information=True)
        first.extend(new)
        second.extend(old)
        assert same_knowledge(first, second)

    def test_init_without_data_then_extend_is_init_with_data(self, old, learn):
        empty = tiny_learner(old)
        assert empty.init_continual(reset_class_information=True) is None
        empty.extend(old)
        assert same_knowledge(empty, learn)

    def test_subtract_undoes_extend_without_a_trace(self, new, learn):
        before = learn.continual.statistics
        learn.extend(new.train.paths, new.train.labels)
        learn.subtract(new.train)
        assert before.equals(learn.continual.statistics)

    def test_subtract_undoes_extend_with_validation_images(self, old, new, learn):
        before, files = learn.continual.knowledge, learn.state.record
        learn.extend(new)
        learn.subtract(new)
        after = learn.continual.knowledge
        assert before.statistics.equals(after.statistics)
        kept = after.validation.picked(range(len(before.validation.cells)))
        pairs = zip(kept.cells, before.validation.cells, strict=True)
        assert all(one.equals(other) for one, other in pairs)
        assert len(after.validation) == len(before.validation)
        record = learn.state.record
        assert (record.learned, record.validated) == (files.learned, files.validated)

    def test_validation_images_alone_are_subtracted_when_asked(self, old, learn):
        n_images, n = learn.continual.n_images, len(learn.continual.knowledge.validation)
        assert n == len(old.valid)
        first = old.valid.paths[0]
        report = learn.subtract([first], old.valid.labels[:1], validation=True)
        assert len(learn.continual.knowledge.validation) == n - 1
        assert str(first) not in learn.state.record.validated
        learn.subtract(old, validation=True)
        assert len(learn.continual.knowledge.validation) == 0
        assert not report.images
        assert learn.continual.n_images == n_images
        assert not learn.state.record.validated

    def test_features_do_not_depend_on_the_batch_size_of_the_loaders(self, old, learn):
        other = quiet(cnn_learner(old.dataloaders(size=32, bs=4), "test_resnet", False))
        other.model[0].load_state_dict(learn.model[0].state_dict())
        other.init_continual(old)
        assert same_knowledge(other, learn)


class TestInit:
    def test_classes_keep_their_numbers(self, plain):
        plain.init_continual(plain.dls)
        assert list(plain.continual.classes) == list(plain.dls.vocab)
        plain.extend([np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 99, np.uint8)], "0 new")
        assert plain.continual.classes == ("a", "b", "c", "0 new")

    def test_refuses_to_lose_classes_by_name(self, plain, old):
        with pytest.raises(DataError, match=r"no images of 'b', 'c'.*reset_class_information"):
            plain.init_continual(only(old, ["a"]))
        with pytest.raises(DataError, match=r"`data` is missing.*'a', 'b', 'c'"):
            plain.init_continual()
        assert plain.continual is None

    def test_twice_is_refused(self, learn, old):
        with pytest.raises(ContinualAlreadyInitializedError, match="extend"):
            learn.init_continual(old)

    def test_other_files_than_in_training_are_reported(self, plain, old):
        fewer = old.filter(old.frame.groupby("label").cumcount() > 2)
        moved = ImageDataset(old.frame.assign(split=""), old.root)
        with pytest.warns(UserWarning, match=r"not what the learner was trained on: \d+ training"):
            plain.init_continual(fewer)
        plain.drop_continual()
        with pytest.warns(UserWarning, match="9 validation images are to be learned from"):
            plain.init_continual(moved)
        assert plain.continual.calibration.source != "validation"  # they would validate themselves

    def test_other_reading_than_in_training_is_reported(self, plain, old):
        with pytest.warns(UserWarning, match=r"reads its images in another way .*size"):
            plain.init_continual(old.dataloaders(size=24, bs=6))

    @pytest.mark.filterwarnings("error")
    def test_the_training_data_cause_no_warning(self, plain, old):
        plain.init_continual(old)

    def test_several_labels_per_image_are_refused(self, old):
        several = ImageDataset(old.frame.assign(label=[(x, "all") for x in old.labels]), old.root)
        learn = tiny_learner(several)
        with pytest.raises(ContinualUnsupportedError, match="exactly one label"):
            learn.init_continual(several)

    @pytest.mark.usefixtures("every_row")
    def test_the_validation_split_decides_on_the_threshold_beside_the_images_learned(
        self, learn, old
    ):
        assert learn.continual.calibration.source == "validation and leave-one-out"
        threshold = learn.continual.threshold
        assert threshold.n == len(old.valid) + len(old.train)
        validation = learn.continual.knowledge.validation
        assert sum(map(sum, (cell.copies for cell in validation.cells))) == len(old.valid)

    def test_a_trained_network_is_said_to_need_validation_images(self, plain, old):
        with plain.no_logging():
            plain.fit(1)
        assert "validation images" in " ".join(plain.init_continual(old).notes)


def test_classes_of_the_network_go_on_under_their_names_and_new_ones_keep_the_rule(tmp_path):
    root = write_image_folder(tmp_path / "old", {"-5 C": 8, "a": 8})
    learn = tiny_learner(ImageDataset.from_folder(root).split(0.5, 0.5, seed=0))
    learn.fit_ood()
    assert sum(learn.ood.n_images.values()) == 8
    report = learn.init_continual(learn.dls)
    assert report.classes_added == tuple(learn.continual.classes) == ("-5 C", "a")
    before = learn.continual.knowledge
    new = write_image_folder(tmp_path / "new", {"=b": 3})
    with pytest.raises(DataError, match="the new name '=b' begins with '='"):
        learn.extend(ImageDataset.from_folder(new))
    assert learn.continual.knowledge is before
    learn.extend(sorted((root / "-5 C").iterdir()), "-5 C")
    assert learn.continual.n_images["-5 C"] == 8


@pytest.mark.parametrize("first", [None, "a"])
def test_classes_of_the_network_may_come_later_under_their_names(tmp_path, first):
    root = write_image_folder(tmp_path / "old", {"-5 C": 8, "a": 8})
    data = ImageDataset.from_folder(root).split(0.5, 0.5, seed=0)
    learn = tiny_learner(data)
    given = None if first is None else data.filter(lambda frame: frame["label"] == first)
    learn.init_continual(given, reset_class_information=True)
    assert learn.continual.classes == (() if first is None else (first,))
    with pytest.raises(DataError, match="the new name '=b' begins with '='"):
        learn.extend(sorted((root / "a").iterdir()), "=b")
    learn.extend(data)
    assert set(learn.continual.classes) == {"-5 C", "a"}
    assert learn.evaluate(data.valid).summary["n"] == 8
    learn.rename({"-5 C": "cold"})
    learn.export(tmp_path / "model", evaluate=False)
    model = load_learner(tmp_path / "model")
    for one in (learn, model):
        one.rename({"cold": "-5 C"})  # it was one: no class gets a new name
        assert set(one.continual.classes) == {"-5 C", "a"}
        with pytest.raises(DataError, match="the new name '-6 C' begins with '-'"):
            one.rename({"-5 C": "-6 C"})


class TestExtend:
    @pytest.fixture
    def expected(self, old, new):
        learn = tiny_learner(old)
        learn.init_continual(old)
        learn.extend(new.train.paths, new.train.labels)
        return learn

    @pytest.mark.parametrize("kind", ["train", "loader", "frame", "pil", "array"])
    def test_takes_data_of_every_kind(self, kind, learn, new, expected):
        files = new.train
        pictures = [Image.open(path).convert("RGB") for path in files.paths]
        loaders = new.dataloaders(size=32, bs=4, augment=True)
        frame = pd.DataFrame({"path": [str(p) for p in files.paths], "label": files.labels})
        data = {
            "train": (files,),
            "loader": (loaders.train,),
            "frame": (frame,),
            "pil": (pictures, files.labels),
            "array": ([np.asarray(p) for p in pictures], files.labels),
        }[kind]
        report = learn.extend(*data)
        assert report.classes_added == ("d", "e")
        assert same_knowledge(learn, expected)

    def test_takes_a_folder_of_classes_and_a_folder_of_one_class(self, learn, new):
        learn.extend(new.root / "d", labels="d")
        assert learn.continual.n_images["d"] == 12
        report = learn.extend(new.root)
        assert report.notes[0].startswith("already learned: 30 of 60 images")
        assert any("learned now no longer" in note and ": 9" in note for note in report.notes)
        assert learn.continual.n_images["d"] == 12

    def test_reports_accuracy_per_class_before_and_after(self, learn, new):
        report = learn.extend(new)
        assert report.accuracy["a"][0] is not None
        assert report.accuracy["d"] == (None, pytest.approx(1.0, abs=0.35))
        assert report.images == {"d": 6, "e": 6}
        assert report.seconds > 0

    def test_accuracy_before_is_that_of_the_same_class(self, learn, new):
        learn.extend(new)
        of = {name: now for name, (_, now) in learn.rename({"a": "A"}).accuracy.items()}
        swapped = learn.rename({"A": "b", "b": "A", "c": "C"}).accuracy
        expected = {"b": of["A"], "A": of["b"], "C": of["c"], "d": of["d"], "e": of["e"]}
        assert swapped == {name: (share, share) for name, share in expected.items()}
        back = learn.undo().accuracy
        assert back == {name: (share, share) for name, share in of.items()}

    @pytest.mark.parametrize("into", ["ab", "a"])
    def test_accuracy_of_merged_classes_has_none_before(self, learn, into):
        before = learn.rename({"c": "C"}).accuracy
        merged = learn.merge_classes(["a", "b"], into).accuracy
        assert set(merged) == {into, "C"}
        assert merged[into][0] is None
        assert merged["C"][0] == before["C"][1]
        parted = learn.undo()
        assert {name: was for name, (was, _) in parted.accuracy.items()} == {
            "a": None,
            "b": None,
            "C": merged["C"][1],
        }
        assert "- accuracy of b: none -> " in str(parted)
        learn.forget("b")
        assert learn.undo().accuracy["b"] == (None, before["b"][1])

    def test_old_classes_are_not_forgotten(self, learn, new, everything):
        learn.extend(new)
        assert learn.evaluate(data=everything.test).summary["accuracy"] > 0.9

    def test_the_callers_data_stay_as_they_are(self, learn, new):
        frame, loaders = new.frame, new.dataloaders(size=32, bs=4)
        vocab, rng = list(loaders.vocab), loaders.train.rng.getstate()
        numbers = torch.get_rng_state()
        learn.extend(new)
        assert learn.extend(loaders).notes[0].startswith("already learned: 12 of 12 images")
        assert new.frame.equals(frame)
        assert list(loaders.vocab) == vocab
        assert loaders.train.rng.getstate() == rng
        assert torch.equal(numbers, torch.get_rng_state())
        assert list(learn.dls.vocab) == OLD

    @pytest.mark.parametrize(
        ("data", "labels", "message"),
        [
            ([], "x", "no images"),
            (None, None, "`data` is missing"),
            ([np.zeros((8, 8, 3), np.uint8)], ["x", "y"], "2 names for 1 image; give one each"),
            ([np.zeros((8, 8, 3), np.uint8)], None, "`labels` is missing"),
        ],
    )
    def test_refuses_what_it_cannot_learn_from(self, learn, data, labels, message):
        before = learn.continual.knowledge
        with pytest.raises(DataError, match=message):
            learn.extend(data, labels)
        assert learn.continual.knowledge is before

    def test_unreadable_images_are_all_listed_and_nothing_changes(self, learn, new, tmp_path):
        broken = [tmp_path / f"{i}.png" for i in range(2)]
        for path in broken:
            path.write_bytes(b"no picture")
        before = learn.continual.knowledge, learn.state.record
        with pytest.raises(UnreadableImagesError) as error:
            learn.extend([*new.paths[:2], *broken], "d")
        assert all(str(path) in str(error.value) for path in broken)
        assert (learn.continual.knowledge, learn.state.record) == before

    def test_an_interrupt_in_the_middle_changes_nothing(self, learn, new, monkeypatch):
        before = learn.continual.knowledge, learn.state.record
        monkeypatch.setattr("learnkit.continual.knowledge.derive", interrupt)
        with pytest.raises(KeyboardInterrupt):
            learn.extend(new)
        assert (learn.continual.knowledge, learn.state.record) == before

    def test_images_learned_before_are_reported(self, learn, old):
        before = learn.continual.statistics
        report = learn.extend(old.train.paths[:3], old.train.labels[:3])
        assert report.notes[0].startswith("already learned: 3 of 3 images, which count once")
        assert learn.continual.statistics.equals(before)
        report = learn.extend(old.train.paths[:3], old.train.labels[:3], again=True)
        assert sum(report.images.values()) == 3
        report = learn.extend(old.valid)
        assert report.notes[0].endswith("learned now no longer decide threshold and temperature: 9")
        assert not len(learn.continual.knowledge.validation)
        assert not learn.state.record.validated

    def test_an_evaluation_says_which_images_out_of_distribution_were_learned(
        self, learn, old, new, tmp_path
    ):
        said = "18 of 18 images in `ood` were learned by this model, to which they are not"
        _, note = learn.evaluate(ood=old.train).notes  # the other is on its validation images
        assert note.startswith(said)
        assert len(learn.evaluate(ood=new.train).notes) == 1
        files = [tmp_path / f"copy{i}.png" for i in range(len(old.train))]
        for file, path in zip(files, old.train.paths, strict=True):
            file.write_bytes(path.read_bytes())  # the same pixels, of a file nobody has seen
        _, note = learn.evaluate(ood=files).notes
        assert note.startswith(said)

    def test_an_evaluation_says_which_images_decide_as_that_of_the_exported_model_does(
        self, learn, old, tmp_path
    ):
        said = (
            "9 of 9 images decide threshold and temperature of this model: false alarms and "
            "calibration error are optimistic"
        )
        learn.export(tmp_path / "model")
        model = load_learner(tmp_path / "model")
        for images, decide in ((old.valid, True), (old.train, False), (old.test, False)):
            notes = learn.evaluate(data=images).notes
            assert notes == model.evaluate(images, progress=False).notes
            assert (said in notes) == decide
        assert learn.evaluate().notes == (said,)

    def test_validation_images_that_decide_nothing_are_told_of_nowhere(self, plain, old):
        assert plain.evaluate().notes == plain.evaluate(data=old.valid).notes == ()
        plain.fit_ood(old.train, validation=old.test)
        assert plain.evaluate().notes == plain.evaluate(data=old.valid).notes == ()
        assert "9 of 9 images decide" in plain.evaluate(data=old.test).notes[0]

    def test_what_comes_of_few_validation_images_and_of_learned_ones_is_called_so(
        self, plain, old, tmp_path
    ):
        plain.fit(1)
        last = plain.init_continual(old).notes[-1]
        assert last == (
            "threshold and temperature come from 9 validation images and 18 images the network was "
            "trained on: they are optimistic; 64 validation images a class would decide alone"
        )
        root = write_image_folder(tmp_path, dict.fromkeys("abc", 76))
        fresh = [path for name in "abc" for path in sorted((root / name).iterdir())[12:]]
        paths = [*old.train.paths, *fresh]
        frame = {"path": list(map(str, paths)), "label": [path.parent.name for path in paths]}
        splits = ["train"] * len(old.train) + ["valid"] * 192
        many = ImageDataset(pd.DataFrame(frame).assign(split=splits), "/")
        again = tiny_learner(old)
        again.fit(1)
        assert again.init_continual(many).notes[-1] == (
            "threshold and temperature come from 192 validation images: of those the network was "
            "trained on they would be optimistic"
        )

    def test_an_evaluation_says_how_many_images_were_learned(self, learn, old, new, tmp_path):
        assert learn.evaluate(data=old.test).notes == ()
        said = "18 of 18 images were learned by this model: the numbers are optimistic"
        assert learn.evaluate(data=old.train).notes == (said,)
        learn.extend(new)
        assert learn.evaluate(data=new.train).notes[0].startswith("12 of 12 images were learned")
        learn.path = tmp_path
        learn.save("learned")
        again = tiny_learner(old, path=tmp_path)  # of what was loaded nobody noted the files
        again.load("learned")
        assert again.evaluate(data=old.train).notes == (said,)
        again.extend(new)  # it has noted the files of these alone
        assert again.evaluate(data=old.train).notes == (said,)

    @pytest.mark.usefixtures("every_row")
    def test_groups_are_left_out_as_a_whole(self, plain, old, tmp_path):
        group = {path: i % 3 for i, path in enumerate(old.paths)}
        with pytest.warns(UserWarning, match="9 of 9 validation images do not count: others of"):
            plain.fit_ood(old, group=group)
        told = plain.ood.statistics.memory.given()
        plain.clear_ood()
        report = plain.init_continual(old, group=group)
        assert not any("near copies" in note for note in report.notes)
        n = len(old.valid)
        assert any(note.startswith(f"{n} of {n} validation images do not") for note in report.notes)
        head = plain.continual
        assert torch.equal(head.statistics.memory.given(), told)
        assert len(set(told.tolist())) == 3
        assert head.knowledge.derived.linear.loo.n_single == 9  # three groups of three classes
        plain.drop_continual()
        plain.init_continual(plain.dls, group=r"(\d)\.png")
        assert len(set(plain.continual.statistics.memory.given().tolist())) > 3
        with pytest.raises(DataError, match="finds nothing in 3 of 3 paths"):
            plain.extend(old.train.paths[:3], "a", group="burst")
        plain.extend([Image.open(path) for path in old.valid.paths[:2]], "b", group=["x", "x"])

    def test_needs_the_continual_state(self, plain, new):
        for verb in (lambda: plain.extend(new), plain.undo, plain.drop_continual):
            with pytest.raises(ContinualNotInitializedError, match="init_continual"):
                verb()


def interrupt(*_, **__):
    raise KeyboardInterrupt


class TestOrigin:
    """The state keeps where the last bits of its features come from."""

    def test_is_the_same_for_all_that_is_read_from_files(self, learn, new):
        (origin,) = learn.continual.statistics.origins
        assert re.fullmatch(r"torch \S+ float32 channels last, cpu \w+, batches of 16", origin)
        report = learn.extend(new)
        assert learn.continual.statistics.origins == (origin,)
        assert not any("origins" in note for note in report.notes)
        empty = tiny_learner(new)
        empty.init_continual(reset_class_information=True)
        empty.extend(new)
        assert empty.continual.statistics.origins == (origin,)

    def test_of_a_loaders_own_batches_is_another(self, learn):
        (origin,) = learn.continual.statistics.origins
        found = origin_of(learn, Source.of(learn, learn.dls.valid))
        assert found == origin.replace("batches of 16", "batches of a loader's size")

    def test_of_a_detector_is_kept_too(self, plain):
        plain.fit_ood()
        assert len(plain.ood.statistics.origins) == 1


class TestLayout:
    """Whoever measures does so in one memory layout, which the bundle and the state say."""

    def test_learner_and_predictor_agree_to_the_bit(self, learn, plain, old, tmp_path):
        files = old.valid.paths
        model = load_learner(learn.export(tmp_path / "model", evaluate=False))
        assert model.network.layout == learn.predictor().network.layout == "channels last"
        assert model.model.spec.channels_last
        assert torch.equal(model.features(files), features_of(learn, files))
        x = torch.stack([model.preprocessing(file) for file in files[:4]])
        with torch.no_grad():
            found = learn.model.eval()[0](x).mean((2, 3))
            plainly = set_channels_last(copy.deepcopy(learn.model[0]), False)(x).mean((2, 3))
        assert torch.allclose(found, plainly, rtol=1e-4)
        assert torch.allclose(model.features(files[:4]), found, rtol=1e-4, atol=1e-6)

    def test_a_bundle_of_before_goes_on_as_it_was(self, learn, old, tmp_path):
        set_channels_last(learn.model[0], False)  # as learners were
        learn.model.spec = replace(learn.model.spec, channels_last=False)
        learn.drop_continual().init_continual(old)
        (origin,) = learn.continual.statistics.origins
        assert "channels last" not in origin
        path = learn.export(tmp_path / "model", evaluate=False)
        assert "channels_last" not in (path / "config.json").read_text(encoding="utf-8")
        model = load_learner(path)
        assert model.network.layout == ""
        assert torch.equal(model.features(old.valid.paths), features_of(learn, old.valid.paths))
        assert "already learned: " in str(model.extend(old.train).notes)
        again = ImageLearner.from_bundle(path, old)
        assert "already learned: " in str(again.extend(old.train).notes)
        assert again.continual.statistics.origins == (origin,)

    def test_features_of_both_layouts_are_not_mixed_in_silence(self, learn, new):
        set_channels_last(learn.model[0], False)
        notes = learn.extend(new).notes
        assert any("features of different origins are together now" in note for note in notes)


class TestEngine:
    """Features to learn, read by onnxruntime: nearly equal, and never mixed in silence."""

    @pytest.fixture
    def learned(self, plain, old):
        plain.init_continual(old, engine="onnxruntime")
        return plain

    def test_they_are_those_of_torch_to_one_in_a_hundred_thousand(self, learned, old):
        files = old.train.paths
        found, expected = features_of(learned, files), features_of(learned, files, "torch")
        assert not torch.equal(found, expected)
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
        assert learned.evaluate().summary["accuracy"] >= 0

    def test_what_is_learned_later_is_read_by_the_same_engine(self, learned, old, new, tmp_path):
        (origin,) = learned.continual.statistics.origins
        assert re.fullmatch(r"onnxruntime \S+ float32, cpu \w+, batches of 16", origin)
        one = only(new, ["d"])
        learned.extend(one)
        assert "already learned" in str(learned.extend(one).notes)
        model = load_learner(learned.export(tmp_path / "model", evaluate=False))
        assert "already learned" in str(model.extend(one.train).notes)
        model.extend(only(new, ["e"]).train)
        assert model.continual.statistics.origins == (origin,)
        model.subtract(one.train)
        again = ImageLearner.from_bundle(tmp_path / "model", old)
        again.subtract(one)
        assert again.continual.n_images["d"] == model.continual.n_images["d"] == 0
        assert again.continual.statistics.origins == (origin,)

    def test_it_goes_on_after_the_body_was_trained(self, learned, old):
        before = features_of(learned, old.train.paths)
        with learned.no_logging():
            learned.refit(old, 1)
        (origin,) = learned.continual.statistics.origins
        assert origin.startswith("onnxruntime ")
        after = features_of(learned, old.train.paths)
        expected = features_of(learned, old.train.paths, "torch")
        assert not torch.allclose(after, before, rtol=1e-3)
        assert (after - expected).abs().max() <= 1e-5 * expected.abs().max()

    def test_another_body_is_exported_anew(self, learned, old):
        before = features_of(learned, old.train.paths)
        with torch.no_grad():
            next(learned.model[0].parameters()).mul_(1.5)
        after = features_of(learned, old.train.paths)
        expected = features_of(learned, old.train.paths, "torch")
        assert not torch.allclose(after, before, rtol=1e-2)
        assert (after - expected).abs().max() <= 1e-5 * expected.abs().max()

    def test_what_it_cannot_read_is_refused_and_nothing_is_changed(self, plain, old, monkeypatch):
        head = plain.model[1]
        for data, engine, reason in [
            (old, "tensorrt", "`engine` is 'tensorrt'; it must be one of torch, onnxruntime"),
            (None, "onnxruntime", "kept with what is learned by it; give `data`, or leave it out"),
        ]:
            with pytest.raises(DataError, match=reason):
                plain.init_continual(data, engine=engine, reset_class_information=True)
        with pytest.raises(DataError, match="reads files by a recipe, and here loaders read the"):
            features_of(plain, Source.of(plain, plain.dls.valid), "onnxruntime")
        monkeypatch.setattr(onnx_export, "_SAME", 0.0)
        with pytest.raises(ExportError, match=r"off by \S+ where the largest is \S+; leave `eng"):
            plain.init_continual(old, engine="onnxruntime")
        assert plain.model[1] is head
        assert plain.continual is None


class TestWarnings:
    """A warning tells of what was done: of a call that failed there is none."""

    @pytest.fixture
    def broken(self, tmp_path):
        path = tmp_path / "broken.png"
        path.write_bytes(b"no image")
        return path

    def test_of_other_data_comes_after_the_state_began(self, plain, old, broken):
        fewer = old.filter(old.frame.groupby("label").cumcount() > 2)
        lines = fewer.frame.assign(path=[str(path) for path in fewer.paths])
        lines.loc[lines.index[0], "path"] = str(broken)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(UnreadableImagesError):
                plain.init_continual(ImageDataset(lines, "/"))
        assert plain.continual is None
        with pytest.warns(UserWarning, match="not what the learner was trained on"):
            plain.init_continual(fewer)


class TestChanges:
    @pytest.mark.parametrize("verb", ["calibrate", "fit_ood", "fit_ood of images"])
    def test_undo_takes_back_what_fits_the_threshold(self, learn, old, new, tmp_path, verb):
        write_image_folder(tmp_path, dict.fromkeys(OLD, 4), seed=5)
        fresh = ImageDataset.from_folder(tmp_path)
        learn.extend(new)
        learn.rename({"a": "apple"})
        learn.rename({"apple": "a"})
        head, record, known = learn.continual, learn.state.record, learn.continual.knowledge
        n_audit = len(head.audit)
        if verb == "calibrate":
            learn.calibrate(fresh)
        elif verb == "fit_ood":
            learn.fit_ood(false_alarm_rate=0.2)
        else:
            learn.fit_ood(validation=fresh, false_alarm_rate=0.2)
        assert (len(head.audit), head.knowledge is known) == (n_audit + 1, False)
        wanted = 0.05 if verb == "calibrate" else 0.2
        assert head.settings.false_alarm_rate == wanted
        if verb != "fit_ood":
            assert len(head.knowledge.validation) > len(known.validation)
        learn.undo()
        assert head.knowledge.digest == known.digest
        assert head.threshold.value == known.scoring.threshold.value
        for field in ("former_names", "learned", "validated", "earlier"):
            assert getattr(learn.state.record, field) == getattr(record, field)

    def test_undo_takes_back_changes_of_the_head_itself_alone(self, learn, new):
        known, record = learn.continual.knowledge, learn.state.record
        learn.ood.threshold = 7.0
        learn.undo()  # before any other change, too
        assert learn.continual.knowledge is known
        learn.extend(new)
        learned = learn.state.record
        learn.ood.threshold = 7.0
        learn.continual.set_threshold(8.0)
        learn.rename({"d": "d"})  # changes nothing
        for left in (7.0, None):
            learn.undo()
            assert learn.continual.knowledge.manual_threshold == left
            assert learn.state.record.learned == learned.learned
        learn.undo()
        assert learn.continual.knowledge.digest == known.digest
        assert learn.state.record.learned == record.learned
        with pytest.raises(ContinualStateError, match="drop_continual"):
            learn.undo()

    def test_undo_restores_the_state_before(self, learn, new):
        before = learn.continual.knowledge
        learn.extend(new)
        learn.rename({"d": "dd"})
        learn.undo()
        learn.undo()
        assert learn.continual.knowledge is before
        assert learn.state.record.former_names == {}
        with pytest.raises(ContinualStateError, match="drop_continual"):
            learn.undo()

    def test_undo_never_goes_back_to_before_the_beginning(self, learn, old, new, tmp_path):
        n = learn.continual.n_images
        path = learn.export(tmp_path / "m")
        for one in (load_learner(path), ImageLearner.from_bundle(path)):
            with pytest.raises(ContinualStateError, match="no change to"):
                one.undo()
            one.extend(new.paths, new.labels)
            one.undo()
            assert one.continual.n_images == n

    def test_forgotten_classes_never_win_and_keep_their_place(self, learn, old):
        learn.forget("b")
        assert learn.continual.classes == tuple(OLD)
        outputs = learn.outputs(data=old.test)
        assert (outputs.probs[:, 1] == 0).all()
        assert learn.evaluate(data=old.test).per_class.loc["b", "recall"] == 0

    def test_renamed_classes_are_found_under_both_names(self, learn, old):
        before = learn.evaluate(data=old.test).summary
        learn.rename({"a": "b", "b": "a"})
        learn.rename({"a": "apple"})
        after = learn.evaluate(data=old.test)
        assert after.classes == ["b", "apple", "c"]
        renamed = old.frame.assign(label=[{"a": "b", "b": "apple"}.get(x, x) for x in old.labels])
        said = learn.evaluate(data=ImageDataset(renamed, old.root).test)
        assert said.summary.equals(before)
        own = learn.evaluate()  # the learner's loaders go on using the names of training
        assert own.summary["accuracy"] == 1
        assert own.per_class["n"].tolist() == [3, 3, 3]

    def test_merged_classes_are_one_for_the_loaders_too(self, learn):
        learn.merge_classes(["a", "b"], "ab")
        evaluation = learn.evaluate()
        assert evaluation.per_class.loc["ab", "n"] == 6
        assert evaluation.summary["accuracy"] == 1

    def test_subtracting_what_was_not_learned_is_refused(self, learn, old):
        before = learn.continual.knowledge
        with pytest.raises((StatisticsError, DataError)):
            learn.subtract(old.valid.paths, ["a"] * len(old.valid))
        assert learn.continual.knowledge is before

    def test_drop_gives_the_trained_head_back(self, plain, old):
        head, images = plain.model[1], torch.randn(2, 3, 32, 32)
        plain.model.eval()
        logits = plain.model(images)
        plain.init_continual(old)
        plain.drop_continual()
        assert plain.model[1] is head
        assert torch.equal(plain.model(images), logits)


class TestTraining:
    def test_is_refused_with_the_ways_out(self, learn):
        body = copy.deepcopy(learn.model[0].state_dict())
        for verb in (learn.fit, learn.fit_one_cycle, learn.fine_tune):
            with pytest.raises(ContinualStateError, match=r"refit\(data\).*drop_continual\(\)"):
                verb(1)
        with pytest.raises(ContinualStateError):
            learn.lr_find(num_it=2, show_plot=False)
        assert all(torch.equal(v, body[k]) for k, v in learn.model[0].state_dict().items())

    def test_goes_on_after_drop(self, learn):
        learn.drop_continual()
        with learn.no_logging():
            learn.fit(1)
        assert len(learn.history) == 1

    def test_refit_trains_on_all_classes_and_begins_anew(self, learn, everything, new, tmp_path):
        learn.extend(new)
        with learn.no_logging():
            report = learn.refit(everything, 1)
        assert report.n_classes == 5
        assert list(learn.dls.vocab) == OLD + NEW
        assert len(learn.history) == 2
        learn.drop_continual()
        assert learn.predict(everything.paths[0]).probs.shape == (5,)
        learn.export(tmp_path / "model")

    def test_refit_reads_from_the_store_that_training_read_from(self, old, everything, tmp_path):
        torch.manual_seed(0)
        dls = old.dataloaders(size=32, bs=8, store=tmp_path / "store")
        learn = quiet(cnn_learner(dls, "test_resnet", False))
        with learn.no_logging():
            learn.fit(1)
            learn.init_continual(old)
            learn.refit(everything, 1)
        assert learn.dls.store == dls.store == tmp_path / "store"
        assert isinstance(learn.dls.train, StoreLoader)

    def test_refit_leaves_groups_out(self, learn, everything):
        before = learn.continual.knowledge
        with pytest.raises(DataError, match="finds nothing"):
            learn.refit(everything, group="burst")
        assert learn.continual.knowledge is before
        with learn.no_logging():
            learn.refit(everything, group=r"(\d)\.png")
        given = learn.continual.statistics.memory.given().tolist()
        assert 1 < len(set(given)) <= 10

    def test_refit_refuses_to_lose_classes(self, learn, old, new):
        learn.extend(new)
        before = learn.continual.knowledge
        with pytest.raises(DataError, match="no training images of 'd', 'e'"):
            learn.refit(old)
        assert learn.continual.knowledge is before

    def test_a_refit_that_fails_leaves_the_learner_as_it_was(self, learn, everything, monkeypatch):
        before, dls = learn.continual.knowledge, learn.dls
        body = copy.deepcopy(learn.model[0].state_dict())
        monkeypatch.setattr("learnkit.learner.continual.init_continual", interrupt)
        with pytest.raises(KeyboardInterrupt), learn.no_logging():
            learn.refit(everything)
        assert learn.continual.knowledge is before
        assert learn.dls is dls
        assert all(torch.equal(v, body[k]) for k, v in learn.model[0].state_dict().items())


class TestEverythingElseWorks:
    def test_predict_detects_ood(self, learn, old):
        known = learn.predict(old.paths[0])
        strange = learn.predict(np.zeros((24, 20, 3), np.uint8))
        assert not known.is_ood
        assert strange.is_ood
        assert strange.ood_score > strange.ood_threshold == learn.ood.threshold.value
        assert 0 < strange.p_value < known.p_value <= 1
        assert set(known.prediction_set(0.1)) <= set(OLD)
        assert known.ranking[0][0] == known.label

    def test_one_pass_and_predict_say_the_same(self, learn, old):
        outputs = learn.outputs(data=old.test)
        for path, probs, score in zip(
            old.test.paths, outputs.probs, outputs.ood_scores, strict=True
        ):
            prediction = learn.predict(path)
            assert torch.allclose(prediction.probs, probs, rtol=0, atol=1e-6)
            assert prediction.ood_score == pytest.approx(float(score), rel=1e-5, abs=1e-5)

    def test_one_pass_and_predict_flag_the_same_images(self, learn, everything):
        known = learn.outputs(data=only(everything, OLD).test)
        learn.ood.threshold = float(known.ood_scores.sort().values[4:6].mean())  # amid the scores
        flagged = (known.ood_scores > learn.ood.threshold.value).tolist()
        assert [learn.predict(path).is_ood for path in known.items] == flagged
        assert learn.evaluate(data=only(everything, OLD).test).summary["false_alarm_rate"] == (
            sum(flagged) / len(flagged)
        )
        assert 0 < sum(flagged) < len(flagged)

    def test_interpretation_and_heatmaps(self, learn, new):
        learn.extend(new)
        interp = learn.interpret()
        assert interp.classes == OLD + NEW
        assert interp.confusion_matrix().shape == (5, 5)
        with pytest.warns(UserWarning, match="No heatmap is drawn"):  # its images are too small
            assert len(interp.plot_top_losses(2, heatmap=True)) == 2

    def test_labels_nobody_knows_are_named(self, learn, new):
        with pytest.raises(InterpretationError, match=r"does not know: d"):
            learn.evaluate(data=new.test)
        with pytest.raises(InterpretationError, match=r"does not know: d"):
            learn.evaluate(new.dataloaders(size=32, bs=4).valid)

    def test_loaders_number_classes_in_their_own_way(self, learn, new, everything):
        learn.extend(new)
        data = only(everything, ["e", "b"])
        recipe = learn.predictor().preprocessing
        loaders = with_normalization(data.dataloaders(size=32, bs=4), recipe.mean, recipe.std)
        by_loader = learn.evaluate(loaders.valid)
        assert by_loader.confusion.equals(learn.evaluate(data=data.valid).confusion)

    def test_evaluate_measures_ood_detection(self, learn, new, old):
        plain = learn.evaluate()
        both = learn.evaluate(ood=new.train)
        assert "auroc" not in plain.summary
        scores = learn.outputs().ood_scores
        limit = learn.ood.threshold.value
        assert plain.summary["false_alarm_rate"] == (scores > limit).double().mean()
        assert 0 <= both.summary["auroc"] <= 1
        assert {"detection_rate", "fpr_at_95_tpr"} <= set(both.summary.index)

    def test_plot_ood_draws_both_kinds(self, learn, new):
        ax = learn.plot_ood(ood=new.root / "d")
        labels = " ".join(t.get_text() for t in ax.get_legend().get_texts())
        assert "known" in labels
        assert "12 flagged" in labels

    def test_the_threshold_can_be_set(self, learn, old):
        learn.ood.threshold = -1e9
        assert learn.predict(old.paths[0]).is_ood
        learn.fit_ood(false_alarm_rate=0.2)
        assert learn.ood.threshold.false_alarm_rate == 0.2
        with pytest.raises(OodLockedError, match="`data`"):
            learn.fit_ood(old)

    @pytest.mark.usefixtures("every_row")
    def test_calibrate_takes_more_validation_images(self, learn, old):
        n = learn.continual.calibration.n
        assert learn.calibrate(old.test).n == n + len(old.test)

    def test_export_loads_without_the_learner(self, learn, new, tmp_path):
        learn.extend(new)
        model = load_learner(learn.export(tmp_path / "bundle"))
        mine, its = learn.predict(new.paths[0]), model.predict(new.paths[0])
        assert its.classes == tuple(OLD + NEW)
        assert torch.allclose(mine.probs, its.probs, atol=1e-5)
        assert mine.ood_score == pytest.approx(its.ood_score, rel=1e-4)

    def test_a_deployed_model_learns_the_same(self, learn, old, new, tmp_path):
        model = load_learner(learn.export(tmp_path / "bundle"))
        model.extend(new, progress=False)
        learn.extend(new)
        assert model.continual.statistics.equals(learn.continual.statistics)
        assert model.continual.threshold.value == learn.continual.threshold.value

    def test_validation_images_count_unless_learned_now_and_that_is_told(
        self, learn, old, tmp_path
    ):
        model = load_learner(learn.export(tmp_path / "bundle"))
        frame = only(old, ["a", "b"]).frame
        frame = frame[(frame["split"] == "train") | (frame["label"] + frame["split"] == "atest")]
        splits = frame["split"].map({"train": "valid", "test": "train"})
        data = ImageDataset(frame.assign(split=splits), old.root)
        for one in (model, learn):
            one.forget("a")  # nothing of its six images is learned any more
            report = one.extend(data)
            assert report.n_validation == 6
            assert "6 of 12 validation images were learned by this model" in " ".join(report.notes)
        assert learn.continual.knowledge.digest == model.continual.knowledge.digest


class TestForeignData:
    @pytest.fixture
    def adopted(self, old):
        files = list(old.paths)
        loaders = ImageDataLoaders.from_path_func(
            old.root, files, lambda path: path.parent.name, valid_pct=0.3, seed=1,
            item_tfms=Resize(32), batch_tfms=aug_transforms(), bs=6, num_workers=0,
        )  # fmt: skip
        learn = vision_learner(loaders, "test_resnet", pretrained=False, normalize=False)
        return quiet(ImageLearner.from_learner(learn))

    def test_what_fastais_factories_built_learns_on_and_ships(self, adopted, new, tmp_path):
        adopted.init_continual(adopted.dls)
        n_seen = sum(adopted.continual.n_images.values())
        assert n_seen == len(adopted.dls.train_ds)  # a shuffled loader that drops its last batch
        adopted.extend(new)
        assert adopted.evaluate(data=new.test).summary["accuracy"] > 0.9
        model = load_learner(adopted.export(tmp_path / "bundle"))
        assert model.classes == tuple(OLD + NEW)

    def test_tensors_in_memory_are_taken_as_they_are(self, learn):
        images, numbers = torch.randn(7, 3, 32, 32), torch.tensor([0, 1, 2, 0, 1, 2, 0])
        loader = torch.utils.data.DataLoader(list(zip(images, numbers, strict=True)), 4)
        before = learn.continual.n_images
        learn.extend(loader)
        assert learn.continual.n_images == {"a": before["a"] + 3, "b": before["b"] + 2, "c": 8}
        assert learn.evaluate(ood=loader).summary["auroc"] > 0.9


class TestSavedState:
    @WITHOUT_OPTIMIZER
    def test_a_new_learner_loads_what_was_learned(self, learn, new, old, tmp_path):
        learn.extend(new)
        learn.rename({"a": "apple"})
        learn.path = tmp_path
        learn.save("m")
        other = tiny_learner(old, path=tmp_path)
        other.load("m")
        assert same_knowledge(other, learn)
        assert other.evaluate().summary.equals(learn.evaluate().summary)
        with pytest.warns(UserWarning, match="random weights"):
            other.drop_continual()

    @WITHOUT_OPTIMIZER
    def test_a_trained_state_loads_into_a_continual_learner(self, plain, old, tmp_path):
        plain.path = tmp_path
        plain.save("m")
        plain.init_continual(old)
        plain.load("m")
        assert plain.continual is None

    def test_a_failed_load_changes_nothing(self, learn, old, tmp_path):
        other = tiny_learner(old, lin_ftrs=[16], path=tmp_path)
        other.save("m")
        learn.path, before = tmp_path, learn.continual.knowledge
        with pytest.raises(ValueError, match="does not fit"):
            learn.load("m")
        assert learn.continual.knowledge is before


def write_bursts(root, counts, *, n_learned):
    """Photographs a class: learned ones, the same taken once more, and new ones."""
    rng = np.random.default_rng(0)
    for name, n in counts.items():
        (root / name).mkdir()
        for i in range(n):
            scene = rng.integers(0, 256, (4, 4, 3)).repeat(8, 0).repeat(8, 1)
            for kind in ("learned", "copy") if i < n_learned else ("new",):
                pixels = scene + rng.integers(-2, 3, scene.shape)
                pixels = Image.fromarray(pixels.clip(0, 255).astype("uint8"))
                pixels.save(root / name / f"{i:02d}_{kind}.png")


class Squashed(nn.Module):
    """A head that does something to its logits behind its last layer."""

    def __init__(self, n_features, n_out):
        super().__init__()
        self.linear = nn.Linear(n_features, n_out)

    def forward(self, feature_map):
        return self.linear(feature_map.mean((2, 3))).sigmoid()


class TestTrainedHead:
    def test_calibrate_takes_the_temperature_into_the_weights(self, plain, old):
        with torch.no_grad():
            plain.model[1][-1].weight.mul_(20)
        labels = [p.label for p in plain.predict_batch(old.valid.paths)]
        labels[0] = "a" if labels[0] != "a" else "b"  # one mistake in nine
        data = ImageDataset(old.valid.frame.assign(label=labels), old.root, classes=OLD)
        before = plain.outputs(data=data)
        fitted = plain.calibrate(data)
        after = plain.outputs(data=data)
        assert abs(fitted.temperature - 1) > 0.01
        assert torch.allclose(after.logits, before.logits / fitted.temperature, atol=1e-4)
        assert plain.calibrate(data).temperature == pytest.approx(1, rel=1e-3)
        assert torch.equal(after.pred_labels, before.pred_labels)

    def test_calibrate_warns_of_images_it_was_trained_on(self, plain, old):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            plain.calibrate(ds_idx=0)  # of a network that nothing was trained on
            with plain.no_logging():
                plain.fit(0)
        with plain.no_logging():
            plain.fit(1)
        said = "images to calibrate by were learned by this model: its confidences will be too high"
        with pytest.warns(UserWarning, match=f"^18 of 18 {said}"):
            plain.calibrate(ds_idx=0)
        with pytest.warns(UserWarning, match=f"^18 of 27 {said}"):
            plain.calibrate(unsplit(old, "train", "valid"))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            plain.calibrate()
            plain.calibrate(old)  # of a split dataset the validation images

    @pytest.mark.parametrize("kind", ["split", "folder", "loaders", "loader", "frame"])
    def test_validation_images_are_those_of_a_split_whatever_holds_it(
        self, kind, plain, old, tmp_path
    ):
        expected = plain.fit_ood()
        plain.clear_ood()
        for split in ("train", "valid"):
            part = getattr(old, split)
            for path, label in zip(part.paths, part.labels, strict=True):
                folder = tmp_path / split / label
                folder.mkdir(parents=True, exist_ok=True)
                (folder / path.name).write_bytes(path.read_bytes())
        data = {
            "split": old,
            "folder": str(tmp_path),
            "loaders": plain.dls,
            "loader": plain.dls.valid,
            "frame": old.frame.assign(path=[str(path) for path in old.paths]),
        }[kind]
        assert plain.fit_ood(validation=data) == expected
        if kind in ("split", "folder", "frame"):
            assert plain.calibrate(data).n == len(old.valid)

    def test_fit_ood_takes_no_validation_image_that_it_learned(self, plain, old, tmp_path):
        plain.fit_ood()
        threshold, sets = plain.ood.threshold, plain.ood.head_nonconformity
        plain.clear_ood()
        assert plain.fit_ood(validation=old) == threshold  # of a split one the validation images
        plain.clear_ood()
        both = unsplit(old, "train", "valid")
        said = "of {} validation images were learned by this model: they say nothing of fresh ones"
        with pytest.warns(UserWarning, match=f"^18 {said.format(27)}"):
            assert plain.fit_ood(validation=both) == threshold
        assert torch.equal(plain.ood.head_nonconformity, sets)
        plain.clear_ood()
        # the same pixels in files nobody has seen
        for path, label in zip(old.train.paths, old.train.labels, strict=True):
            (tmp_path / label).mkdir(exist_ok=True)
            (tmp_path / label / f"copy_{path.name}").write_bytes(path.read_bytes())
        with pytest.warns(UserWarning, match=f"^18 {said.format(18)}"):
            found = plain.fit_ood(validation=ImageDataset.from_folder(tmp_path))
        assert not len(plain.ood.head_nonconformity)
        plain.clear_ood()
        assert plain.fit_ood(unsplit(old, "train")) == found

    @pytest.mark.parametrize("fitted", [True, False])
    def test_bursts_that_were_split_at_random_say_nothing_of_fresh_images(self, fitted, tmp_path):
        write_bursts(tmp_path, {"a": 16, "b": 16}, n_learned=12)
        every = ImageDataset.from_folder(tmp_path)
        some = lambda *kinds: every.filter([path.stem[3:] in kinds for path in every.paths])
        learned, learn = some("learned"), tiny_learner(some("learned").split(0.5, 0.5, seed=0))
        near = "are near copies of {} \\(bursts, augmented files, files saved again\\)"
        if not fitted:  # then near copies among the images themselves give bursts away
            with pytest.warns(UserWarning, match=f"^24 of 48.*{near.format('others of them')}"):
                learn.calibrate(some("learned", "copy"))
            return
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            learn.fit_ood(learned, validation=some("new"))
            sets = learn.ood.head_nonconformity
            learn.clear_ood()
        assert len(sets) == 8
        with pytest.warns(UserWarning, match="^24 of 32 validation images do not count: they are"):
            learn.fit_ood(learned, validation=some("copy", "new"))
        assert torch.equal(learn.ood.head_nonconformity, sets)
        with pytest.warns(
            UserWarning, match=f"^24 of 32 images {near.format('learned ones')}: con"
        ):
            learn.calibrate(some("copy", "new"))
        assert len(learn.ood.head_nonconformity) == 8
        said = f"^24 of 32 images {near.format('learned ones')}: the numbers are optimistic"
        notes = learn.evaluate(data=some("copy", "new")).notes
        assert re.match(said, notes[0])
        assert learn.predictor().evaluate(some("copy", "new"), progress=False).notes == notes
        # learned ones are none, and others have no near copies
        first, other = learn.evaluate(data=some("learned", "new")).notes
        assert first == "24 of 32 images were learned by this model: the numbers are optimistic"
        assert "decide threshold and temperature" in other
        assert "decide threshold" in learn.evaluate(data=some("new")).notes[0]
        learn.clear_ood().init_continual(learned)
        assert learn.evaluate(data=some("copy", "new")).notes == notes[:1]
        bursts = learn.evaluate(data=some("learned", "copy"))
        assert bursts.notes[-1].startswith("24 of 48 images are near copies of others of them")
        found = learn.predictor().evaluate(some("learned", "copy"), progress=False)
        assert found.notes == bursts.notes
        assert found.verdict[0] == bursts.verdict[0]

    def test_images_of_learned_groups_calibrate_nothing(self, tmp_path):
        for kind, seed in (("learned", 1), ("fresh", 2)):
            write_image_folder(tmp_path / kind, {"a": 12, "b": 12}, seed=seed)
        learned, fresh = (ImageDataset.from_folder(tmp_path / k) for k in ("learned", "fresh"))
        learn = tiny_learner(learned.split(0.5, 0.5, seed=0))
        part = {path: f"part {i % 6}" for i, path in enumerate(learned.paths)}
        told = {path: f"part {i % 12}" for i, path in enumerate(fresh.paths)}  # 6 to 11 are new
        kept = fresh.filter([int(told[path][5:]) > 5 for path in fresh.paths])
        said = "12 of 24 images to calibrate by are of groups of which this model has learned"
        learn.fit_ood(learned, validation=kept, group=part | told)
        sets = learn.ood.head_nonconformity.sort().values
        learn.clear_ood()
        with pytest.warns(UserWarning, match="^12 of 24 validation images do not count: others"):
            learn.fit_ood(learned, validation=fresh, group=part | told)
        torch.testing.assert_close(learn.ood.head_nonconformity.sort().values, sets)
        with pytest.warns(UserWarning, match=f"^{said} others: its confidences will be too high"):
            learn.calibrate(fresh, group=told)
        assert len(learn.ood.head_nonconformity) == 12
        learn.clear_ood().init_continual(learned, group=part)
        before = learn.continual.knowledge
        with pytest.raises(DataError, match="`group` lacks"):
            learn.calibrate(fresh, group=part)
        with pytest.raises(StatisticsError, match="`guarantee`"):
            learn.fit_ood(validation=fresh, group=told, guarantee="certain")
        with pytest.raises(OodLockedError, match="'group'"):
            learn.fit_ood(group=told)
        assert learn.continual.knowledge is before
        with pytest.warns(UserWarning, match="^12 of 24 validation images do not count: others"):
            learn.calibrate(fresh, group=told)
        assert learn.continual.knowledge.derived.n_fresh == 12
        by_frame = ImageDataset.from_df(
            fresh.frame.assign(path=list(map(str, fresh.paths)), part=list(told.values())), tmp_path
        )
        learn.continual.undo()
        with pytest.warns(UserWarning, match="^12 of 24 validation images do not count: others"):
            learn.fit_ood(validation=by_frame, group="part")
        assert learn.continual.knowledge.derived.n_fresh == 12
        by_file = pd.Series(told).sample(frac=1, random_state=0)
        learn.continual.undo()
        with pytest.raises(DataError, match="`group` is a Series with the index 23, 22"):
            learn.calibrate(fresh, group=by_file.set_axis(range(23, -1, -1)))
        with pytest.warns(UserWarning, match="^12 of 24 validation images do not count: others"):
            learn.calibrate(fresh, group=by_file)
        assert learn.continual.knowledge.derived.n_fresh == 12

    def test_learned_images_calibrate_no_learner_in_the_continual_state(self, learn, old):
        before = learn.continual.knowledge
        with pytest.raises(
            DataError, match="every image to calibrate by \\(18 given\\) was learned"
        ):
            learn.calibrate(old.train)
        with pytest.raises(
            DataError, match="every image to calibrate by \\(18 given\\) was learned"
        ):
            learn.fit_ood(validation=old.train)
        assert learn.continual.knowledge is before
        learn.calibrate(old)  # of a split one the validation images
        assert learn.continual.knowledge.digest == before.digest
        with pytest.warns(UserWarning, match="^18 of 36 validation images were learned"):
            learn.calibrate(unsplit(old, "train", "valid", "test"))
        assert len(learn.continual.knowledge.validation) == 18

    @pytest.mark.parametrize(
        "head",
        [{"y_range": (0, 1)}, {"custom_head": lambda n, c: Squashed(n, c)}],
        ids=["y_range", "custom_head"],
    )
    def test_a_head_that_cannot_take_it_up_is_left_alone(self, old, head):
        learn = tiny_learner(old, **head)
        before = copy.deepcopy(learn.model[1].state_dict())
        outputs = Outputs.from_probs([[0.9, 0.05, 0.05]] * 4, [0, 0, 0, 1], classes=OLD)
        with pytest.raises(UncertaintyError, match="cannot be put into this head"):
            learn.calibrate(outputs)
        assert all(torch.equal(v, before[k]) for k, v in learn.model[1].state_dict().items())

    def test_fit_ood_flags_and_locks(self, plain, old, tmp_path):
        with pytest.raises(OodUnsupportedError, match="fit_ood"):
            plain.plot_ood()
        assert plain.predict(old.paths[0]).is_ood is None
        probs = plain.predict(old.paths[0]).probs
        threshold = plain.fit_ood()
        assert threshold == plain.ood.threshold
        assert torch.equal(plain.predict(old.paths[0]).probs, probs)
        assert plain.predict(np.zeros((24, 20, 3), np.uint8)).is_ood
        assert "false_alarm_rate" in plain.evaluate().summary
        with pytest.raises(OodLockedError, match="clear_ood"):
            plain.fit(1)
        plain.clear_ood()
        with plain.no_logging():
            plain.fit(1)

    @WITHOUT_OPTIMIZER
    def test_the_detector_survives_saving(self, plain, old, tmp_path):
        plain.path = tmp_path
        plain.fit_ood(score="mahalanobis")
        plain.save("m")
        other = tiny_learner(old, path=tmp_path)
        other.load("m")
        assert other.ood.statistics.equals(plain.ood.statistics)
        assert other.ood.threshold.value == plain.ood.threshold.value
        plain.clear_ood().save("m")
        assert other.load("m").ood is None

    def test_init_continual_takes_its_place(self, plain, old):
        plain.fit_ood()
        plain.init_continual(old)
        assert plain.ood is plain.continual
        assert plain.drop_continual().ood is None


class TestNames:
    """Former names and lists of names, through the learner and the bundle it becomes."""

    def test_former_names_are_refused_until_they_are_meant(self, learn, old, tmp_path):
        files = only(old, ["a"]).train.paths
        learn.rename({"a": "z"})
        learn.merge_classes(["b", "c"], into="c")
        before = learn.continual.knowledge
        predictor = load_learner(learn.export(tmp_path / "model"))
        for model in (learn, predictor):
            for verb in (model.extend, model.subtract):
                with pytest.raises(DataError, match="'a' is called 'z' now"):
                    verb(files, "a")
                with pytest.raises(DataError, match="'b' is called 'c' now"):
                    verb(only(old, ["b"]))
        assert learn.continual.knowledge is before
        for model in (learn, predictor):
            model.extend(files, "z", again=True)
            model.extend(files[:2], "a", reuse_names=True)
            assert model.continual.n_images == {"z": 12, "b": 0, "c": 12, "a": 2}

    def test_letters_of_both_cases_through_every_door(self, old, tmp_path, recwarn):
        frame = old.frame
        frame["label"] = frame["label"].replace({"a": "A", "b": "a"})  # A, a and c
        data = ImageDataset(frame, old.root, case_sensitive=True)
        frame.to_csv(tmp_path / "labels.csv", index=False)
        from_csv = ImageDataset.from_csv(
            tmp_path / "labels.csv", old.root, split_col="split", case_sensitive=True
        )
        plain = ImageDataset(frame, old.root)
        learn = tiny_learner(plain)
        with pytest.raises(DataError, match=r"only in case.*ImageDataset\(\.\.\., case_sens"):
            learn.init_continual(plain)
        learn = tiny_learner(data)
        assert data.filter([True] * len(data)).case_sensitive
        learn.fit_ood()
        learn.clear_ood()
        learn.init_continual(from_csv)
        assert learn.continual.n_images == {"A": 6, "a": 6, "c": 6}
        predictor = load_learner(learn.export(tmp_path / "model"))
        images = [Image.open(path) for path in data.paths[:3]]
        recwarn.clear()
        for model in (learn, predictor):
            model.extend(images, ["C", "c", "A"], again=True)
            table = pd.DataFrame({"path": data.paths[:2], "label": ["C", "c"]})
            model.extend(table, again=True)
            assert model.continual.n_images == {"A": 7, "a": 6, "c": 8, "C": 2}
        assert not [w for w in recwarn if "only in case" in str(w.message)]
        # an older model, which does not tell by case, learns to where the data say so
        older = tiny_learner(only(old, ["a", "b"]))
        older.init_continual(only(old, ["a", "b"]))
        with pytest.raises(DataError, match="differ only in case"):
            older.extend(images, "A")
        older.extend(ImageDataset(frame[frame["label"] == "A"], old.root, case_sensitive=True))
        assert older.continual.n_images == {"a": 6, "b": 6, "A": 6}

    def test_one_text_is_no_list_of_names(self, learn, tmp_path):
        learn.rename({"a": "1", "b": "2", "c": "12"})
        record, knowledge = learn.state.record, learn.continual.knowledge
        predictor = load_learner(learn.export(tmp_path / "model"))
        for model in (learn, predictor):
            for names in ("12", {"1", "2"}, b"12"):
                with pytest.raises(DataError, match="give a list of class names"):
                    model.merge_classes(names, into="12")
            with pytest.raises(DataError, match=r"give \{old: new\}"):
                model.rename([("1", "one")])
        assert (learn.state.record, learn.continual.knowledge) == (record, knowledge)
        for names in ({"x", "y", "z"}, "xyz", b"xyz", iter("xyz")):
            with pytest.raises(PredictionError, match="give a list with one name per class"):
                predictor.set(class_names=names)
        learn.merge_classes(iter(["1", "2"]), into="12")
        assert learn.continual.n_images == {"1": 0, "2": 0, "12": 18}
        assert learn.state.record.former_names["a"] == "12"


class TestSnapshot:
    """Under a name the learner keeps what its head knows and what it noted of files and names."""

    def test_comes_back_with_names_and_files_however_many_changes_ago(self, learn, new, old):
        was, record = learn.continual.knowledge, learn.state.record
        learn.snapshot("as trained")
        learn.rename({"a": "apple"})
        for name in "de":
            learn.extend(only(new, [name]))
            learn.forget(name)
        report = learn.restore("as trained")
        assert (report.what, learn.snapshots) == ("restore", ("as trained",))
        assert learn.continual.knowledge.digest == was.digest
        for field in ("former_names", "learned", "validated"):
            assert getattr(learn.state.record, field) == getattr(record, field)
        assert learn.evaluate().summary["accuracy"] == 1
        learn.undo()
        assert learn.continual.classes[0] == "apple"
        assert learn.state.record.former_names == {"a": "apple"}
        learn.restore("as trained")
        assert learn.continual.classes == tuple(OLD)

    def test_stays_when_the_changes_since_are_taken_back(self, learn, new):
        learn.extend(new)
        learn.snapshot("with d")
        learn.rename({"a": "apple"})
        learn.undo()
        learn.undo()
        assert learn.continual.classes == tuple(OLD)
        learn.restore("with d")
        assert learn.continual.n_images["d"] == 6
        assert learn.state.record.former_names == {}
        assert set(new.train.paths) <= {Path(file) for file in learn.state.record.learned}

    def test_and_the_log_travel_with_the_export(self, learn, new, tmp_path):
        learn.snapshot("as trained")
        learn.extend(new)
        learn.export(tmp_path / "m")
        found = load_learner(tmp_path / "m")
        assert (found.snapshots, found.audit) == (learn.snapshots, learn.audit)
        assert [entry.what for entry in learn.audit] == ["init_continual", "extend"]
        assert found.restore("as trained").n_classes == 3

    def test_comes_back_with_its_names_in_a_learner_made_from_the_export(self, learn, tmp_path):
        learn.snapshot("as trained")
        learn.rename({"a": "apple"})
        learn.export(tmp_path / "m")
        again = quiet(ImageLearner.from_bundle(tmp_path / "m"))
        assert again.state.record.former_names == {"a": "apple"}
        again.restore("as trained")
        assert again.continual.classes == tuple(OLD)
        assert again.state.record.former_names == {}

    def test_is_dropped_and_refused_as_by_a_predictor(self, learn, plain, old):
        learn.snapshot("x")
        learn.drop_snapshot("x")
        before, record = learn.continual.knowledge, learn.state.record
        for verb in (learn.restore, learn.drop_snapshot):
            with pytest.raises(ContinualStateError, match="no snapshot 'x'; there are: none"):
                verb("x")
        with pytest.raises(ContinualStateError, match="`name` is ''"):
            learn.snapshot("")
        assert (learn.continual.knowledge, learn.state.record) == (before, record)

    def test_needs_the_continual_state(self, old):
        learn = tiny_learner(old)
        calls = [lambda: learn.audit, lambda: learn.snapshots, lambda: learn.snapshot("x")]
        for call in [*calls, lambda: learn.restore("x"), lambda: learn.drop_snapshot("x")]:
            with pytest.raises(ContinualNotInitializedError, match="init_continual"):
                call()
        assert learn.state.record is None


@pytest.mark.parametrize("name", [["x"], {}])
def test_a_snapshot_is_called_by_a_text(learn, name):
    learn.snapshot("x")
    state = learn.state
    for verb in (learn.restore, learn.drop_snapshot):
        with pytest.raises(ContinualStateError, match=r"there is no snapshot .*; there are: 'x'"):
            verb(name)
    assert learn.state is state


class TestOwnPredictor:
    """A predictor taken from a learner owns what it learns and sets."""

    def test_changes_nothing_of_the_learner(self, learn, new, old):
        before, record = learn.continual.history, learn.state.record
        own = learn.predictor()
        own.set(ood_threshold=-9.0, class_names={"a": "apple"}).extend(only(new, ["d"]))
        own.snapshot("x")
        assert own.predict(old.paths[0]).is_ood
        assert own.classes == ("apple", "b", "c", "d")
        assert (learn.continual.history, learn.state.record) == (before, record)
        assert learn.predict(old.paths[0]).label in OLD
        assert not learn.predict(old.paths[0]).is_ood

    def test_knows_what_the_learner_knew_and_learns_on_alike(self, learn, new, old):
        own, image = learn.predictor(), old.paths[0]
        assert own.predict(image).to_dict() == learn.predict(image).to_dict()
        learn.forget("c")
        assert own.continual.n_images["c"] == 6
        learn.undo()
        own.extend(new)
        learn.extend(new)
        assert own.continual.knowledge.digest == learn.continual.knowledge.digest
        assert own.model[0] is learn.model[0]

    def test_travels_as_the_learner_does(self, learn, old, tmp_path):
        learn.predictor().save(tmp_path / "m")
        found = load_learner(tmp_path / "m").predict(old.paths[0])
        assert found.to_dict() == learn.predict(old.paths[0]).to_dict()

    def test_leaves_the_modes_of_the_network_they_share(self, learn, old):
        learn.model.train()
        own = learn.predictor()
        sessions = own.network, Network(learn.model, own.preprocessing, owned=False)
        assert sessions[0]._lock is sessions[1]._lock  # one pass at a time over one body
        with ThreadPoolExecutor(4) as pool:
            verbs = [own.predict, learn.predict] * 6
            found = list(pool.map(lambda verb: verb(old.paths[0]).probs, verbs))
        assert all(torch.equal(one, found[0]) for one in found)
        assert all(module.training for module in learn.model[0].modules())

    def test_of_a_trained_head_owns_its_detector(self, plain, old):
        plain.fit_ood()
        before = plain.ood.threshold
        own = plain.predictor().set(ood_threshold=-9.0, class_names={"a": "apple"})
        assert own.predict(old.paths[0]).is_ood
        assert plain.ood.threshold is before
        assert plain.ood.classes == tuple(OLD)
        assert plain.predict(old.paths[0]).label in OLD


class TestClassIds:
    """Classes keep the ids of their dataset, whatever comes, goes or is called otherwise."""

    IDS = {"a": 17, "b": 3, "c": 40}

    @pytest.fixture
    def numbered(self, old):
        return ImageDataset(old.frame, old.root, class_ids=self.IDS)

    @pytest.fixture
    def trained(self, numbered):
        return tiny_learner(numbered)

    @staticmethod
    def ids(learn):
        """By name, as a prediction says them in HALCON's terms."""
        predict = learn.predict(np.zeros((24, 20, 3), np.uint8) + 9)
        told = predict.to_halcon()
        names, ids = (told[f"classification_class_{what}"] for what in ("names", "ids"))
        found = dict(zip(names, ids, strict=True))
        assert predict.class_id == found[predict.label] == predict.to_dict()["class_id"]
        return found

    def test_are_those_of_the_dataset(self, trained, old):
        assert self.ids(trained) == self.IDS
        assert trained.evaluate().to_dict()["class_ids"] == [17, 3, 40]
        assert trained.predict(old.paths[0]).index in range(3)

    def test_of_a_dataset_without_any_are_places(self, plain, old):
        told = plain.predict(old.paths[0])
        assert told.class_ids is None
        assert sorted(told.to_halcon()["classification_class_ids"]) == [0, 1, 2]
        assert (told.class_id, "class_id" in told.to_dict()) == (told.index, False)
        assert plain.evaluate().class_ids is None

    def test_stay_through_every_change_and_new_classes_follow_the_largest(
        self, trained, numbered, new
    ):
        trained.init_continual(numbered)
        assert self.ids(trained) == self.IDS
        trained.extend(only(new, ["e"]))
        assert self.ids(trained) == {**self.IDS, "e": 41}
        trained.undo()
        trained.extend(new)
        grown = {**self.IDS, "d": 41, "e": 42}
        assert self.ids(trained) == grown
        trained.forget("b")
        trained.rename({"a": "apple"})
        assert self.ids(trained) == {"apple": 17, "b": 3, "c": 40, "d": 41, "e": 42}
        trained.merge_classes(["apple", "c"], "fruit")
        assert self.ids(trained)["fruit"] == 17
        assert trained.evaluate().class_ids == (17, 3, 40, 41, 42)
        for _ in range(3):
            trained.undo()
        assert self.ids(trained) == grown

    @WITHOUT_OPTIMIZER
    def test_travel_in_files_bundles_and_back_to_a_learner(self, trained, numbered, new, tmp_path):
        trained.init_continual(numbered)
        trained.extend(only(new, ["d"]))
        trained.rename({"a": "apple"})
        expected = {"apple": 17, "b": 3, "c": 40, "d": 41}
        other = tiny_learner(only(new, ["d", "e"]))
        trained.path = other.path = tmp_path
        trained.save("ids")
        assert self.ids(other.load("ids")) == expected
        trained.export(tmp_path / "m")
        found = load_learner(tmp_path / "m")
        assert self.ids(found) == dict(zip(found.classes, found.class_ids, strict=True)) == expected
        found.extend(only(new, ["e"]))
        assert self.ids(found) == {**expected, "e": 42}
        found.save(tmp_path / "n")
        again = quiet(ImageLearner.from_bundle(tmp_path / "n"))
        assert self.ids(again) == {**expected, "e": 42}
        again.forget("b")
        again.undo()
        again.undo()
        assert self.ids(again) == expected
        assert self.ids(trained.predictor()) == expected

    def test_of_a_trained_head_travel(self, trained, tmp_path):
        trained.export(tmp_path / "m")
        assert self.ids(load_learner(tmp_path / "m")) == self.IDS
        again = quiet(ImageLearner.from_bundle(tmp_path / "m"))
        assert self.ids(again) == self.IDS
        found = load_learner(tmp_path / "m").set(class_names={"a": "apple"})
        assert self.ids(found) == {"apple": 17, "b": 3, "c": 40}

    def test_go_on_after_a_refit_with_data_that_have_none(self, trained, numbered, everything, new):
        trained.init_continual(numbered)
        trained.extend(new)
        with trained.no_logging():
            trained.refit(everything, 1)
        expected = {**self.IDS, "d": 41, "e": 42}
        assert self.ids(trained) == expected
        trained.drop_continual()
        assert self.ids(trained) == expected

    def test_of_the_data_count_where_the_loaders_have_none(self, plain, numbered):
        plain.init_continual(numbered)
        assert self.ids(plain) == self.IDS


def test_what_a_copy_has_learned_is_learned_by_merging(everything, old, new, learn, tmp_path):
    copy_of = load_learner(learn.export(tmp_path / "model", evaluate=False))
    together = tiny_learner(old)
    together.init_continual(old)
    together.extend(only(everything, ["d"]))
    together.extend(only(everything, ["e"]))
    copy_of.extend(only(everything, ["e"]).train)
    learn.extend(only(everything, ["d"]).train)
    copy_of.forget("a"), copy_of.forget("b"), copy_of.forget("c")
    report = learn.merge(copy_of)
    assert report.classes_added == ("e",)
    assert learn.continual.statistics.equals(together.continual.statistics)
    learn.undo()
    assert learn.continual.classes == (*OLD, "d")


def test_only_what_has_statistics_of_the_same_network_is_merged(old, learn, plain):
    other = tiny_learner(old)
    torch.nn.init.normal_(next(other.model[0].parameters()))
    other.init_continual(old)
    with pytest.raises(PredictionError, match="over another network, precision or preprocessing"):
        learn.merge(other)
    with pytest.raises(DataError, match="`other` is a str; give a learner or a predictor over"):
        learn.merge("model")
    with pytest.raises(ContinualNotInitializedError):
        tiny_learner(old).merge(learn)
