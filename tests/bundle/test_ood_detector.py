"""A detector of unusual images beside a trained head, from `Predictor` into bundles and back."""

import copy

import numpy as np
import pytest
import safetensors.torch
import torch
from deploy_helpers import (
    PLAIN_HEAD,
    edit_config,
    edit_tensors,
    labelled,
    make_continual,
    make_model,
    make_predictor,
    section,
    shades,
    strange,
)

from learnkit.bundle import schema
from learnkit.bundle.state import OOD
from learnkit.continual.ood_detector import OodDetector
from learnkit.data.preprocess import Preprocessing
from learnkit.deploy.predictor import Predictor, load_learner
from learnkit.errors import (
    BundleCorruptError,
    BundleVersionError,
    ContinualNotInitializedError,
    ContinualStateError,
    DataError,
    PredictionError,
)

COUNTS = {"ok": 12, "NO": 12, "ß/<b>": 12}


def make_detecting(**settings):
    """A predictor with a plain head and a detector that takes `shades` of its classes as usual."""
    plain = make_predictor()
    images, labels = labelled(COUNTS)
    features = plain.features(images, progress=False)
    detector = OodDetector(features.shape[1], memory=8, **settings)
    detector.extend(features, labels)
    predictor = make_predictor(plain.model, detector=detector, owns_model=True)
    pixels = torch.stack([plain.preprocessing.load(image) for image in images])
    targets = torch.tensor([predictor.classes.index(label) for label in labels])
    detector.fit_sets(plain.logits(pixels).softmax(1), targets)
    return predictor


@pytest.fixture(scope="module")
def predictor():
    """Not to be changed."""
    return make_detecting()


@pytest.fixture(scope="module")
def bundle(predictor, tmp_path_factory):
    path = tmp_path_factory.mktemp("bundle") / "model"
    predictor.save(path)
    return path


def test_the_head_tells_the_classes_and_the_detector_what_is_unusual(predictor):
    plain = make_predictor(predictor.model)
    images = [*shades("ok", 3, seed=5), *strange(3, seed=1)]
    features = plain.features(images, progress=False)
    found = predictor.predict_batch(images)
    for row, other in zip(found, plain.predict_batch(images), strict=True):
        assert torch.equal(row.probs, other.probs)
        assert other.is_ood is None
    scores = predictor.detector.ood_scores(features).tolist()
    assert [row.ood_score for row in found] == pytest.approx(scores, abs=1e-3)
    assert [row.is_ood for row in found] == [False] * 3 + [True] * 3
    assert {row.ood_threshold for row in found} == {predictor.detector.threshold.value}
    assert all(0 < row.p_value <= 1 for row in found)


def test_prediction_sets_are_calibrated_by_the_trained_head(predictor):
    nonconformity = predictor.detector.head_nonconformity
    assert len(nonconformity) == 36
    (prediction,) = predictor.predict_batch(shades("ok", 1, seed=5))
    quantile = nonconformity.sort().values[-1]  # of 36 images for one in 37
    kept = [name for name, prob in prediction.ranking if 1 - prob <= quantile]
    assert prediction.prediction_set(1 / 37) == tuple(kept)
    assert prediction.prediction_set(0.01) == tuple(name for name, _ in prediction.ranking)


def test_without_images_for_them_there_are_no_prediction_sets():
    predictor = make_detecting()
    predictor.detector.fit_sets(torch.ones(2, 3) / 3, torch.tensor([-1, -1]))
    with pytest.raises(PredictionError, match="fit_ood"):
        predictor.predict(shades("ok", 1)[0]).prediction_set()


def test_it_travels_in_the_bundle_to_the_bit(predictor, bundle, tmp_path):
    found = load_learner(bundle)
    images = [*shades("NO", 2, seed=5), *strange(2, seed=1)]
    for row, other in zip(*(p.predict_batch(images) for p in (found, predictor)), strict=True):
        assert row.to_dict(alpha=0.2) == other.to_dict(alpha=0.2)
    assert found.continual is None
    table = found.predict_files(images, progress=False)
    assert table["is_ood"].tolist() == [False, False, True, True]
    assert "How it detects out-of-distribution images" in (bundle / "README.md").read_text("utf-8")
    found.save(tmp_path / "again")
    again = {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()}
    assert again == {path.name: path.read_bytes() for path in bundle.iterdir()}


def test_a_threshold_set_by_hand_travels_too(copy, tmp_path):
    image = shades("ok", 1, seed=5)[0]
    predictor = load_learner(copy)
    assert not predictor.predict(image).is_ood
    assert predictor.set(ood_threshold=-50.0).predict(image).is_ood
    assert predictor.is_changed
    predictor.save(tmp_path / "strict")
    assert load_learner(tmp_path / "strict").predict(image).is_ood


def test_readers_who_would_pass_unusual_images_silently_refuse(bundle, monkeypatch):
    found = section(bundle)
    assert found["schema"] == {"major": 1, "minor": 3}
    assert found["critical"] == ["ood"]
    monkeypatch.setattr(schema, "_KNOWN", schema._KNOWN - {"ood"})
    with pytest.raises(BundleVersionError, match=r"needs \['ood'\].*upgrade"):
        load_learner(bundle)


def test_who_has_no_detector_is_told_where_to_get_one():
    with pytest.raises(ContinualNotInitializedError, match="fit_ood"):
        make_predictor().set(ood_threshold=1.0)


def test_it_stands_beside_trained_heads_of_one_label_only(predictor):
    learning = make_continual({"ok": 3, "NO": 3})
    with pytest.raises(PredictionError, match="head detects them itself"):
        Predictor(learning.model, Preprocessing(32), detector=predictor.detector)
    model = make_model(**PLAIN_HEAD)
    with pytest.raises(PredictionError, match="several labels"):
        make_predictor(model, multi_label=True, detector=predictor.detector)


DAMAGES = {
    "misfits above 1": lambda tensors: tensors.update(misfits=torch.full((3,), 2.0)),
    "misfits of another type": lambda tensors: tensors.update(misfits=torch.ones(3).long()),
    "misfits NaN": lambda tensors: tensors.update(misfits=torch.full((3,), torch.nan)),
    "no gram": lambda tensors: tensors.pop("gram"),
    "counts": lambda tensors: tensors["counts"].fill_(-1),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_detector_is_refused(copy, damage):
    edit_tensors(copy, DAMAGES[damage], OOD)
    with pytest.raises(BundleCorruptError):
        load_learner(copy)


@pytest.mark.parametrize("value", [None, [], 3, {}, {"format": 1}])
def test_a_damaged_description_is_refused(copy, value):
    edit_config(copy, lambda config: config.update(ood=value))
    with pytest.raises(BundleCorruptError):
        load_learner(copy)


def test_a_newer_detector_is_told_from_a_damaged_one(copy):
    edit_config(copy, lambda config: config["ood"].update(format=99, colour="red"))
    with pytest.raises(BundleVersionError, match=rf"{OOD}.* format 99.*newer learnkit"):
        load_learner(copy)


def test_a_detector_of_another_network_is_refused(copy):
    other = OodDetector(5)
    features = torch.rand(8, 5, generator=torch.Generator().manual_seed(0))
    other.extend(features, ["a"] * 4 + ["b"] * 4)
    config, tensors = other.state()
    edit_config(copy, lambda section: section.update(ood=config))
    edit_tensors(copy, lambda found: (found.clear(), found.update(tensors)), OOD)
    with pytest.raises(BundleCorruptError, match="5 features"):
        load_learner(copy)


def test_its_file_holds_what_it_knows_and_no_pickle(bundle):
    tensors = safetensors.torch.load_file(bundle / OOD)
    assert tensors["counts"].tolist() == [12, 12, 12]
    assert len(tensors["misfits"]) == 36


class TestCalibrate:
    """Fresh images of a deployed trained head decide on its threshold and its sets."""

    FRESH = {"ok": 4, "NO": 3}

    def test_moves_the_threshold_and_joins_the_sets_and_leaves_probabilities(self):
        predictor = make_detecting()
        image = shades("ok", 1, seed=5)[0]
        before, detector = predictor.predict(image), predictor.detector
        was, shares = detector.threshold, detector.head_nonconformity
        images, labels = labelled(self.FRESH, seed=6)
        report = predictor.calibrate(images, labels, progress=False)
        after = predictor.predict(image)
        assert torch.equal(after.probs, before.probs)
        assert detector.threshold.source == "validation and leave-one-out"
        assert detector.threshold.n == was.n + len(images)
        numbers = [predictor.classes.index(label) for label in labels]
        probs = torch.stack([row.probs for row in predictor.predict_batch(images)])
        own = 1 - probs[torch.arange(len(images)), numbers]
        torch.testing.assert_close(detector.head_nonconformity, torch.cat([shares, own]))
        assert "the trained head holds its own temperature" in " ".join(report.notes)

    def test_takes_no_image_twice_and_none_that_was_learned(self):
        (images, labels), n = labelled(self.FRESH, seed=6), sum(self.FRESH.values())
        predictor, expected = make_detecting(), make_detecting()
        expected.calibrate(images, labels, progress=False)
        old = labelled({"ok": 12, "NO": 12})
        predictor.calibrate(
            [*images, *images, *old[0]], [*labels, *labels, *old[1]], progress=False
        )
        report = predictor.calibrate(images, labels, progress=False)
        assert report.notes[0] == f"{n} of {n} validation images had come before, and count once"
        found, wanted = predictor.detector, expected.detector
        assert found.threshold == wanted.threshold
        assert torch.equal(found.head_nonconformity, wanted.head_nonconformity)
        with pytest.raises(DataError, match="learned by this model, and says nothing of fresh"):
            predictor.calibrate(*old, progress=False)
        assert torch.equal(found.head_nonconformity, wanted.head_nonconformity)

    def test_a_corrected_label_leaves_nothing_of_the_former_one_in_the_sets(self):
        (images, labels), predictor = labelled(self.FRESH, seed=6), make_detecting()
        wrong = ["NO" if label == "ok" else "ok" for label in labels]
        predictor.calibrate(images, wrong, progress=False)
        was = predictor.detector.head_nonconformity
        report = predictor.calibrate(images, labels, progress=False)
        assert report.notes[0].startswith(
            f"{len(images)} of {len(images)} validation images were of"
        )
        right = make_detecting()
        right.calibrate(images, labels, progress=False)
        found, wanted = predictor.detector, right.detector
        assert found.threshold == wanted.threshold
        assert torch.equal(found.head_nonconformity, wanted.head_nonconformity)
        assert torch.equal(found.head_labels, wanted.head_labels)
        predictor.undo()
        assert torch.equal(found.head_nonconformity, was)

    def test_near_copies_of_learned_images_do_not_join_the_sets(self):
        predictor = make_detecting()
        threshold, sets = predictor.detector.threshold, predictor.detector.head_nonconformity
        images, labels = labelled({"ok": 12, "NO": 12})
        rng = np.random.default_rng(0)
        again = [np.clip(image + rng.integers(-1, 2, image.shape), 0, 255) for image in images]
        copies = [image.astype("uint8") for image in again]
        with pytest.raises(
            DataError, match=r"^none of the images to calibrate by \(24 given\) count"
        ):
            predictor.calibrate(copies, labels, progress=False)
        assert torch.equal(predictor.detector.head_nonconformity, sets)
        assert predictor.detector.threshold.value == threshold.value

    def test_travels(self, tmp_path):
        predictor = make_detecting(per_class=True)
        predictor.calibrate(*labelled(self.FRESH, seed=6), progress=False)
        predictor.save(tmp_path / "m")
        found = load_learner(tmp_path / "m").detector
        assert found.threshold.value == predictor.detector.threshold.value
        assert found.head_labels.tolist() == [0] * 12 + [1] * 12 + [2] * 12 + [0] * 4 + [1] * 3

    def test_takes_classes_by_the_names_they_have_now(self):
        predictor = make_detecting().set(class_names={"ok": "good", "NO": "ok"})
        images, labels = labelled(self.FRESH, seed=6)
        names = [{"ok": "good", "NO": "ok"}[label] for label in labels]
        predictor.calibrate(images, names, progress=False)
        assert predictor.detector.head_labels[-7:].tolist() == [0] * 4 + [1] * 3
        validation = predictor.detector.knowledge.validation
        sizes = [len(cell.hashes) for cell in validation.cells]
        kept = dict(zip(validation.class_names, sizes, strict=True))
        assert kept == {"good": 4, "ok": 3, "ß/<b>": 0}

    def test_is_taken_back_with_its_sets_and_no_more_than_that(self):
        predictor = make_detecting()
        image, detector = shades("ok", 1, seed=5)[0], predictor.detector
        states = []
        for seed in (6, 7):
            states.append((detector.threshold, detector.head_nonconformity, detector.head_labels))
            predictor.calibrate(*labelled(self.FRESH, seed=seed), progress=False)
        twin = copy.deepcopy(predictor)
        for one in (predictor, twin):
            for threshold, scores, labels in states[::-1]:
                assert one.undo().what == "undo"
                assert one.detector.threshold == threshold
                assert torch.equal(one.detector.head_nonconformity, scores)
                assert torch.equal(one.detector.head_labels, labels)
            with pytest.raises(ContinualStateError, match="has not changed since it was fitted"):
                one.undo()
            assert one.predict(image).ood_score is not None

    def test_a_threshold_that_was_set_is_taken_back_and_the_sets_stay(self):
        predictor = make_detecting()
        predictor.calibrate(*labelled(self.FRESH, seed=6), progress=False)
        was, sets = predictor.detector.threshold, predictor.detector.head_nonconformity
        predictor.set(ood_threshold=99.0).undo()
        assert predictor.detector.threshold == was
        assert predictor.detector.head_nonconformity is sets

    def test_refused_it_changes_nothing(self):
        predictor = make_detecting()
        before, sets = predictor.detector.knowledge, predictor.detector.head_nonconformity
        with pytest.raises(DataError, match="'new'"):
            predictor.calibrate(*labelled({"ok": 2, "new": 1}, seed=6), progress=False)
        with pytest.raises(TypeError):
            predictor.calibrate(*labelled(self.FRESH), progress=False, size=3)
        assert predictor.detector.knowledge is before
        assert predictor.detector.head_nonconformity is sets

    def test_of_a_model_without_a_detector_says_where_to_get_one(self):
        with pytest.raises(ContinualNotInitializedError, match="fit_ood"):
            make_predictor().calibrate(*labelled(self.FRESH), progress=False)

    def test_sets_of_an_older_file_stay_without_their_classes(self):
        detector = make_detecting().detector
        detector.head_labels = detector.head_labels[:0]
        detector.extend_sets(torch.tensor([[0.25, 0.5, 0.25]]), torch.tensor([1]))
        assert (len(detector.head_nonconformity), detector.head_nonconformity[-1]) == (37, 0.5)
        assert len(detector.head_labels) == 0
