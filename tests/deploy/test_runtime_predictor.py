"""A variant of a bundle predicts without torch what it predicts with it."""

import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from deploy_helpers import rewrite, shades, strange
from PIL import Image
from runtime_helpers import (
    NAME,
    SIZE,
    WIDTH,
    features_of,
    onnx_bytes,
    torch_predictions,
    torch_predictions_beside,
    variant_files,
    write_bundle,
)

import learnkit
from learnkit.bundle.read_runtime import read_learned
from learnkit.bundle.state import history_bytes
from learnkit.continual.classifier import ContinualClassifier
from learnkit.continual.fingerprints import Learned, codes_of, feature_hashes
from learnkit.continual.ood_detector import OodDetector
from learnkit.deploy.runtime_predictor import RuntimePredictor, load_runtime
from learnkit.errors import (
    BackendUnavailableError,
    BundleCorruptError,
    BundleError,
    BundleNotFoundError,
    BundleProbeError,
    BundleVersionError,
    DataError,
    ImageReadError,
    MissingExtraError,
    OptimizedModelError,
    PredictionError,
)
from learnkit.inference.model import Model
from learnkit.storage.formats import parse_tensors, tensors_to_bytes

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

COLOURS = {"red": 14, "green": 14, "blue": 14}


def learned(kind=ContinualClassifier, **settings):
    """A head that has learned shades of three colours, by the features of the ONNX file."""
    head = kind(WIDTH, root=True, memory=8, **settings)
    for name, n in COLOURS.items():
        images = shades(name, n, size=SIZE)
        head.extend(features_of(onnx_bytes(), images), [name] * n)
    return head


@pytest.fixture(scope="module")
def continual(tmp_path_factory):
    """(path, digest, head) of a bundle whose variant is in the continual state."""
    path, head = tmp_path_factory.mktemp("runtime") / "model", learned()
    files = variant_files(onnx=onnx_bytes(), head=head)
    return path, write_bundle(path, files, default=NAME, metadata={"line": 4}), head


@pytest.fixture
def copied(continual, tmp_path):
    """The path of a copy that may be spoiled."""
    path = tmp_path / "model"
    write_bundle(path, variant_files(onnx=onnx_bytes(), head=continual[2]), default=NAME)
    return path


def queries():
    return [shade for name in (*COLOURS, "odd") for shade in shades(name, 2, seed=5, size=SIZE)]


def assert_same(found, expected):
    """What `to_dict` gave twice is the same, numbers up to rounding."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, dict):
            assert_same(found[name], value)
        elif isinstance(value, float):
            assert found[name] == pytest.approx(value, rel=1e-5, abs=1e-7)
        else:
            assert found[name] == value


# without torch

NEEDED = {"learnkit", "numpy", "PIL", "safetensors", "onnxruntime", "threadpoolctl"}
SCRIPT = """
import json, sys, time
import learnkit
predictor = learnkit.load_runtime(sys.argv[1], threads=1)
seconds = time.process_time()
one = predictor.predict(sys.argv[2])
report = predictor.predict_files([sys.argv[2], "absent.png"], out=sys.argv[3], progress=False)
batch = predictor.predict_batch([sys.argv[2]] * 3)
brought = {name.partition(".")[0] for name in sys.modules} - sys.stdlib_module_names
html = one._repr_html_()
print(json.dumps({
    "brought": sorted(brought), "one": one.to_dict(alpha=0.2), "halcon": one.to_halcon(),
    "rows": [report.n_files, report.n_failed], "batch": [p.label for p in batch], "html": html,
    "seconds": seconds,
}))
"""


def test_a_process_without_torch_loads_predicts_and_writes_tables(continual, tmp_path):
    path, _, head = continual
    (image,) = shades("green", 1, seed=5, size=SIZE)
    Image.fromarray(image).save(tmp_path / "x.png")
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT, path, tmp_path / "x.png", tmp_path / "t.csv"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        encoding="utf-8",
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert {name for name in found["brought"] if not name.startswith("_")} <= NEEDED
    assert found["seconds"] < 1  # 0.3 here; torch alone takes longer
    (expected,) = torch_predictions(head, features_of(onnx_bytes(), [image]))
    assert_same(found["one"], expected.to_dict(alpha=0.2))
    assert found["halcon"]["ood_score"] == pytest.approx(expected.ood_score, rel=1e-6)
    assert found["rows"] == [2, 1]
    assert found["batch"] == ["green"] * 3
    assert "of a known kind" in found["html"]


def test_what_serving_needs_is_pinned_as_everywhere_and_holds_no_torch():
    root = Path(learnkit.__file__).parents[1]
    serving, all_of_it = (
        {
            line
            for line in (root / name).read_text(encoding="utf-8").splitlines()
            if line and line[0] != "#"
        }
        for name in ("requirements-serve.txt", "requirements.txt")
    )
    pins = {line.partition(" ;")[0] for line in all_of_it}
    assert {line.partition(" ;")[0] for line in serving} <= pins
    packages = {line.partition("==")[0] for line in serving}
    assert not packages & {"torch", "torchvision", "timm", "fastai", "pandas", "scipy", "onnx"}
    assert packages >= {"numpy", "pillow", "safetensors", "onnxruntime", "fastapi"}


# the same as with torch


def test_predictions_are_those_of_the_head_with_torch(continual):
    path, _, head = continual
    predictor, images = load_runtime(path), queries()
    for ours, theirs in zip(
        predictor.predict_batch(images, bs=3),
        torch_predictions(head, features_of(onnx_bytes(), images)),
        strict=True,
    ):
        assert isinstance(ours.probs, np.ndarray)
        assert isinstance(theirs.probs, torch.Tensor)
        assert ours.label == theirs.label
        assert_same(ours.to_dict(), theirs.to_dict())
        assert [name for name, _ in ours.ranking] == [name for name, _ in theirs.ranking]
        assert ours.prediction_set(0.2) == theirs.prediction_set(0.2)
        assert repr(ours) == repr(theirs)
    assert any(one.is_ood for one in predictor.predict_batch(images))


def test_a_trained_head_predicts_and_its_detector_flags(tmp_path):
    onnx, detector, images = onnx_bytes(2), learned(OodDetector), queries()
    write_bundle(tmp_path / "m", variant_files(onnx=onnx, head=detector))
    write_bundle(tmp_path / "n", variant_files(onnx=onnx))
    features = features_of(onnx, images)
    both, alone = (load_runtime(tmp_path / name).predict_batch(images) for name in "mn")
    logits = load_runtime(tmp_path / "n").session.run(np.stack(images))[1]
    expected = torch_predictions_beside(detector, torch.from_numpy(logits), features, ("a", "b"))
    for one, other, theirs in zip(both, alone, expected, strict=True):
        assert one.label == other.label == theirs.label
        np.testing.assert_allclose(other.probs, theirs.probs, rtol=1e-5)
        assert one.ood_score == pytest.approx(theirs.ood_score, rel=1e-6)
        assert other.ood_score is None


@pytest.mark.parametrize("threshold", [0.3, [0.3, 0.6], [0.9, 0.1]])
def test_several_labels_are_those_above_the_threshold(tmp_path, threshold):
    onnx = onnx_bytes(2)
    changes = {"multi_label": True, "threshold": threshold}
    write_bundle(tmp_path / "m", variant_files(onnx=onnx, **changes))
    predictor = load_runtime(tmp_path / "m")
    logits = predictor.session.run(np.stack(queries()))[1]
    probs = 1 / (1 + np.exp(-logits.astype(float)))
    for one, row in zip(predictor.predict_batch(queries()), probs, strict=True):
        np.testing.assert_allclose(one.probs, row, rtol=1e-5)
        assert one.index == tuple(np.flatnonzero(row > np.array(threshold)))


def test_grey_images_have_one_channel(tmp_path):
    grey = {"size": SIZE, "channels": 1}
    onnx = onnx_bytes(2, channels=1)
    images = [shades("x", 1, size=SIZE)[0][..., 0]]
    files = variant_files(onnx=onnx, probe=np.stack(images)[..., None], preprocessing=grey)
    write_bundle(tmp_path / "m", files)
    (found,) = load_runtime(tmp_path / "m").predict_batch(images)
    assert found.label in ("a", "b")


def test_what_cannot_be_read_raises_one_by_one_and_is_a_row_in_tables(continual, tmp_path):
    predictor = load_runtime(continual[0])
    (tmp_path / "x.png").write_bytes(b"no image")
    with pytest.raises(ImageReadError, match=r"x\.png"):
        predictor.predict(tmp_path / "x.png")
    table = predictor.predict_folder(tmp_path, progress=False)
    assert "x.png" in table.error[0]
    assert "ood_score" in table
    assert predictor.predict_batch([]) == []


def test_without_pandas_tables_go_to_files(continual, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    predictor = load_runtime(continual[0])
    Image.fromarray(queries()[0]).save(tmp_path / "x.png")
    with pytest.raises(MissingExtraError, match=r"pip install pandas.*out="):
        predictor.predict_files([tmp_path / "x.png"], progress=False)
    out = tmp_path / "t.jsonl"
    predictor.predict_files([tmp_path / "x.png"], progress=False, out=out)
    assert (
        json.loads(out.read_text(encoding="utf-8"))["label"]
        == predictor.predict(queries()[0]).label
    )


def test_threads_may_share_it(continual):
    predictor, images = load_runtime(continual[0]), queries()
    expected = [one.ood_score for one in predictor.predict_batch(images)]
    found = {}

    def work(number):
        found[number] = [predictor.predict(image).ood_score for image in images]

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for scores in found.values():
        np.testing.assert_allclose(scores, expected, rtol=1e-6)
    assert len(found) == 4


# what may be set, and what cannot be done


def test_names_thresholds_and_metadata_may_be_set(continual):
    predictor = load_runtime(continual[0])
    assert predictor.metadata == {"line": 4}
    assert not predictor.is_changed
    predictor.set(class_names={"red": "rot"}, ood_threshold=-1e9, metadata={})
    assert predictor.is_changed
    assert (predictor.classes[0], predictor.ood_threshold, predictor.metadata) == ("rot", -1e9, {})
    assert predictor.predict(shades("red", 1, size=SIZE)[0])[:2] == ("rot", 0)
    assert predictor.predict(shades("red", 1, size=SIZE)[0]).is_ood
    with pytest.raises(PredictionError, match="green"):
        predictor.set(class_names={"rot": "green"})
    assert predictor.classes[0] == "rot"


def test_classes_have_the_ids_of_the_variant(continual, tmp_path):
    files = variant_files(onnx=onnx_bytes(), head=continual[2], class_ids=(17, 3))
    write_bundle(tmp_path / "m", files, default=NAME)
    predictor = load_runtime(tmp_path / "m")
    assert predictor.class_ids == (17, 3, 18)
    told = predictor.set(class_names={"red": "rot"}).predict(shades("red", 1, size=SIZE)[0])
    assert (told.label, told.class_id, told.to_halcon()["classification_class_ids"][0]) == (
        *("rot", 17, 17),
    )
    plain = json.loads((continual[0] / "variants" / f"{NAME}.json").read_text("utf-8"))
    assert "class_ids" not in plain  # older readers take no field they do not know


def test_an_assignment_that_would_do_nothing_says_how_it_is_set(continual):
    predictor = load_runtime(continual[0])
    for name in ("ood_threshold", "class_names", "threads"):
        with pytest.raises(OptimizedModelError, match=rf"`{name}` .* call set\({name}=...\)"):
            setattr(predictor, name, 1)


def test_whoever_wants_to_teach_it_is_told_how(continual):
    predictor = load_runtime(continual[0])
    for verb in ("extend", "forget", "undo", "save"):
        assert not hasattr(predictor, verb)
        with pytest.raises(OptimizedModelError, match=r"install torch .* load_learner"):
            getattr(predictor, verb)
    assert predictor.continual is None
    with pytest.raises(AttributeError, match="nonsense"):
        _ = predictor.nonsense


@pytest.fixture(scope="module")
def changed(tmp_path_factory):
    """(path, head) of a bundle whose variant was changed, and kept under a name."""
    path, head = tmp_path_factory.mktemp("changed") / "model", learned()
    head.snapshot("as delivered")
    head.forget("red")
    files = variant_files(onnx=onnx_bytes(), head=head)
    files[f"variants/{NAME}.history.safetensors"] = history_bytes(head, 3)
    write_bundle(path, files, default=NAME)
    return path, head


def test_a_forgotten_class_is_none_that_it_has(changed):
    assert "16x16 px, 2 classes: green, blue" in repr(load_runtime(changed[0]))


LOG_SCRIPT = """
import json, sys
import learnkit
predictor = learnkit.load_runtime(sys.argv[1])
print(json.dumps([str(predictor.audit), predictor.audit._repr_html_(), predictor.snapshots]))
assert "torch" not in sys.modules
"""


def test_a_process_without_torch_shows_the_log_of_changes(changed):
    path, head = changed
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", LOG_SCRIPT, path],
        capture_output=True,
        text=True,
        check=False,
        encoding="utf-8",
    )
    assert run.returncode == 0, run.stderr
    text, html, names = json.loads(run.stdout)
    assert text == str(head.audit)
    assert [entry.what for entry in head.audit] == ["extend"] * 3 + ["forget"]
    assert head.audit[-1].digest[:12] in html
    assert names == ["as delivered"]


def test_the_log_is_that_of_the_bundle_it_was_loaded_from(changed, continual, tmp_path):
    path = tmp_path / "m"
    shutil.copytree(changed[0], path)
    predictor = load_runtime(path)
    rewrite(path, f"variants/{NAME}.history.safetensors", lambda data: data[:-1])
    with pytest.raises(BundleCorruptError, match="pinned"):
        _ = predictor.audit
    with pytest.raises(BundleCorruptError, match=r"history\.safetensors"):
        _ = load_runtime(path).audit
    shutil.rmtree(path)
    with pytest.raises(BundleNotFoundError):
        _ = predictor.snapshots
    assert (len(load_runtime(continual[0]).audit), load_runtime(continual[0]).snapshots) == (0, ())


def test_it_says_what_it_is(continual):
    path, digest, _ = continual
    predictor = load_runtime(path, sha256=digest, threads=1)
    assert repr(predictor).startswith(f"RuntimePredictor({NAME}, 16x16 px, 3 classes: red, green")
    assert digest in predictor._repr_html_()
    assert (predictor.digest, predictor.variant) == (digest, NAME)
    assert (predictor.threads, predictor.device) == (1, "cpu")
    assert learnkit.load_runtime is load_runtime


# which variant


def test_the_default_variant_is_taken_or_the_only_one(tmp_path):
    one, other = (variant_files(name, onnx=onnx_bytes(2)) for name in (NAME, "onnxruntime-int8"))
    other = {k: v.replace(b'"float32"', b'"int8"') for k, v in other.items()}
    cast = variant_files("torch-bfloat16", onnx=onnx_bytes(2), files=())
    cast.pop("variants/torch-bfloat16.onnx")
    write_bundle(tmp_path / "only", one, cast, default="torch-bfloat16")
    assert load_runtime(tmp_path / "only").variant == NAME
    write_bundle(tmp_path / "both", one, other, default="onnxruntime-int8")
    assert load_runtime(tmp_path / "both").variant == "onnxruntime-int8"
    assert load_runtime(tmp_path / "both", variant=NAME).variant == NAME
    write_bundle(tmp_path / "open", one, other, default="torch-bfloat16")
    with pytest.raises(BundleError, match=r"`variant` is missing: .*int8"):
        load_runtime(tmp_path / "open")
    for asked in ("float32", "torch-bfloat16"):
        with pytest.raises(BundleError, match=r"load_learner|no variant"):
            load_runtime(tmp_path / "both", variant=asked)
    write_bundle(tmp_path / "none", cast)
    with pytest.raises(BundleError, match=r"without torch: .*backend='onnxruntime'"):
        load_runtime(tmp_path / "none")
    with pytest.raises(BundleNotFoundError):
        load_runtime(tmp_path / "absent")


def test_what_only_learning_needs_is_not_read(copied, tmp_path):
    files = variant_files(onnx=onnx_bytes(2))
    files[f"variants/{NAME}.state.safetensors"] = files["model.safetensors"] = b"x" * 10
    write_bundle(tmp_path / "m", files)
    (tmp_path / "m" / "model.safetensors").unlink()
    (tmp_path / "m" / "variants" / f"{NAME}.state.safetensors").write_bytes(b"damaged")
    assert load_runtime(tmp_path / "m").classes == ("a", "b")


# strangers


@pytest.mark.parametrize("ending", ["onnx", "json", "judge.safetensors", "probe.safetensors"])
def test_damaged_and_missing_files_are_refused(copied, ending):
    file = copied / "variants" / f"{NAME}.{ending}"
    data = file.read_bytes()
    file.write_bytes(data[:-1])
    with pytest.raises(BundleCorruptError):
        load_runtime(copied)
    rewrite(copied, f"variants/{NAME}.{ending}", lambda _: data[: len(data) // 2])
    with pytest.raises(BundleCorruptError):
        load_runtime(copied)
    file.unlink()
    with pytest.raises(BundleCorruptError):
        load_runtime(copied)


def edited(path, **changes):
    def change(data):
        return json.dumps({**json.loads(data), **changes}).encode()

    rewrite(path, f"variants/{NAME}.json", change)


@pytest.mark.parametrize(
    "changes",
    [
        {"classes": ["red", "green"]},
        {"n_features": WIDTH + 1},
        {"continual": None},
        {"continual": None, "ood": {"of": "it"}},
        {"preprocessing": {"size": SIZE + 1}},
        {"preprocessing": {"size": SIZE, "channels": 1}},
        {"params": {"spinning": "yes"}},
        {"multi_label": True},
        {"class_ids": [1, 1]},
        {"class_ids": [0, 2, 4, 6]},
    ],
    ids=str,
)
def test_a_description_of_another_network_is_refused(copied, changes):
    edited(copied, **changes)
    with pytest.raises(BundleCorruptError):
        load_runtime(copied)


def test_a_network_that_answers_otherwise_is_noticed(copied):
    rewrite(copied, f"variants/{NAME}.onnx", lambda data: data.replace(b"Relu", b"Tanh"))
    with pytest.raises(BundleProbeError, match="onnxruntime"):
        load_runtime(copied)


def test_newer_formats_and_other_bundles_are_refused(copied, continual):
    with pytest.raises(BundleCorruptError, match="pinned"):
        load_runtime(copied, sha256="0" * 64)

    def needs(data):
        config = json.loads(data)
        config["learnkit"]["critical"] = ["telepathy"]
        return json.dumps(config).encode()

    rewrite(copied, "config.json", needs)
    with pytest.raises(BundleVersionError, match="telepathy"):
        load_runtime(copied)


def test_a_description_of_a_newer_format_is_told_from_a_damaged_one(copied):
    edited(copied, colour="red")
    with pytest.raises(BundleCorruptError, match="colour"):
        load_runtime(copied)

    def newer(data):
        config = json.loads(data)
        config["learnkit"]["schema"]["minor"] = 99
        return json.dumps(config).encode()

    rewrite(copied, "config.json", newer)
    with pytest.raises(BundleVersionError, match=r"newer learnkit .*1\.99.*colour.*Upgrade"):
        load_runtime(copied)


def test_threads_can_be_set_and_answers_stay(continual):
    path, digest, _ = continual
    predictor, image = load_runtime(path, threads=1), shades("red", 1, size=SIZE)[0]
    before, session = predictor.predict(image), predictor.session
    assert predictor.set(threads=2) is predictor
    assert (predictor.threads, predictor.device, predictor.digest) == (2, "cpu", digest)
    assert predictor.session is not session
    np.testing.assert_allclose(predictor.predict(image).probs, before.probs, rtol=1e-6)
    assert not predictor.is_changed
    session = predictor.session
    with pytest.raises(BackendUnavailableError, match="nowhere"):
        predictor.set(device="nowhere", class_names={"red": "rot"})
    assert (predictor.session, predictor.classes[0]) == (session, "red")


def test_threads_of_a_network_from_no_bundle_or_one_that_is_gone_are_refused(continual, copied):
    predictor = load_runtime(copied, threads=1)
    write_bundle(copied, variant_files(onnx=onnx_bytes(2)), default=NAME)
    with pytest.raises(BundleCorruptError, match="not the pinned bundle"):
        predictor.set(threads=2)
    assert predictor.threads == 1
    from_nowhere = Model(predictor.session, predictor.preprocessing, predictor.classes)
    with pytest.raises(OptimizedModelError, match="came from no bundle"):
        RuntimePredictor(from_nowhere).set(threads=2)


def test_it_is_evaluated_as_with_torch_and_has_a_page_without_heat(continual, tmp_path):
    from PIL import Image

    for name in ("red", "green", "blue"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i, image in enumerate(shades(name, 4, seed=5, size=SIZE)):
            Image.fromarray(image).save(tmp_path / "set" / name / f"{i}.png")
    (tmp_path / "other").mkdir()
    for i, image in enumerate(strange(3, size=SIZE)):
        Image.fromarray(image).save(tmp_path / "other" / f"{i}.png")
    predictor = load_runtime(continual[0])
    found = predictor.evaluate(tmp_path / "set", ood=tmp_path / "other", progress=False)
    files = sorted((tmp_path / "set").glob("*/*.png"))
    said = predictor.predict_batch(files)
    right = [one.label == path.parent.name for one, path in zip(said, files, strict=True)]
    assert found.summary["accuracy"] == pytest.approx(np.mean(right))
    assert found.summary["false_alarm_rate"] == pytest.approx(np.mean([p.is_ood for p in said]))
    strangers = predictor.predict_batch(sorted((tmp_path / "other").iterdir()))
    wanted = np.mean([one.is_ood for one in strangers])
    assert found.summary["detection_rate"] == pytest.approx(wanted)
    page = found.page.data(found)
    assert [row["t"][0][1] for row in page["images"]] == [
        pytest.approx(one.confidence, rel=1e-3) for one in [*said, *strangers]
    ]
    assert not any("h" in row for row in page["images"])
    assert page["pictures_left_out"] == 0


def folder_of(tmp_path, *, learned_ones=2):
    """Shades of three colours, so many of each learned, and one of them validated."""
    for name in COLOURS:
        (tmp_path / "set" / name).mkdir(parents=True)
        seen = [
            *shades(name, COLOURS[name], size=SIZE)[:learned_ones],
            *shades(name, 4, seed=5, size=SIZE),
        ]
        for i, image in enumerate(seen):
            Image.fromarray(image).save(tmp_path / "set" / name / f"{i}.png")
    return tmp_path / "set"


@pytest.mark.parametrize("kind", ["head", "detector"])
@pytest.mark.parametrize("memory", [8, 64])  # 14 of each are learned: with fingerprints or without
def test_it_says_what_was_learned_as_the_state_knows_it(tmp_path, kind, memory):
    head = {"head": ContinualClassifier, "detector": OodDetector}[kind](
        WIDTH, root=True, memory=memory
    )
    validated = features_of(onnx_bytes(), shades("red", 4, seed=5, size=SIZE)[:1]), ["red"]
    for name, n in COLOURS.items():
        given = {"validation": validated} if name == "red" else {}
        head.extend(features_of(onnx_bytes(), shades(name, n, size=SIZE)), [name] * n, **given)
    classes = {} if kind == "head" else {"classes": tuple(COLOURS)}
    onnx = onnx_bytes(None if kind == "head" else 3)
    files = variant_files(onnx=onnx, head=head, **classes)
    write_bundle(tmp_path / "model", files, default=NAME)
    predictor = load_runtime(tmp_path / "model")
    found = predictor.evaluate(folder_of(tmp_path), progress=False, bs=1)
    assert found.page.images.learned.tolist() == [True, True, False, False, False, False] * 3
    assert found.notes[0] == "6 of 18 images were learned by this model: the numbers are optimistic"
    assert found.notes[1].startswith("1 of 18 images decide threshold and temperature of this")
    classes = found.page.data(found, pictures=False)["classes"]
    assert [one["n_learned"] for one in classes] == [14, 14, 14]


def test_after_the_bundle_is_gone_nobody_knows_what_was_learned(copied, tmp_path):
    predictor = load_runtime(copied)
    shutil.rmtree(copied)
    found = predictor.evaluate(folder_of(tmp_path), progress=False)
    assert found.page.images.learned is None
    assert found.notes == ()


def test_what_was_learned_has_the_names_that_were_set(copied, tmp_path):
    predictor = load_runtime(copied).set(class_names={"red": "ruby"})
    root = folder_of(tmp_path)
    (root / "red").rename(root / "ruby")
    found = predictor.evaluate(root, progress=False, bs=1)
    assert set(found.page.images.n_learned) == {"ruby", "green", "blue"}
    assert found.page.images.learned.sum() == 6


def test_labels_that_were_renamed_are_refused_with_the_name_of_now(tmp_path):
    root, head = folder_of(tmp_path), learned()
    head.rename({"red": "ruby"})
    head.rename({"ruby": "rubin"})
    write_bundle(tmp_path / "model", variant_files(onnx=onnx_bytes(), head=head), default=NAME)
    said = (
        "class 'red' is called 'rubin' now: it was renamed, or merged with others; label these "
        "images 'rubin'"
    )
    with pytest.raises(DataError, match=f"^{said}$"):
        load_runtime(tmp_path / "model").evaluate(root, progress=False)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("memory", lambda x: x[:, :-1]),
        ("memory_sizes", lambda x: x + 1),
        ("counts", lambda x: x[:-1]),
        ("validation", lambda x: x.float()),
        ("fingerprints", lambda x: x[:-1]),
        ("fingerprint_sizes", lambda x: -x),
    ],
)
def test_a_state_that_is_not_sound_is_refused(continual, tmp_path, name, change):
    files = variant_files(onnx=onnx_bytes(), head=continual[2])
    where = f"variants/{NAME}.state.safetensors"
    tensors = parse_tensors(files[where], where)
    files[where] = tensors_to_bytes({**tensors, name: change(tensors[name]).contiguous()})
    digest = write_bundle(tmp_path / "model", files, default=NAME)
    with pytest.raises(BundleCorruptError, match=r"state\.safetensors: `"):
        read_learned(tmp_path / "model", NAME, digest)


def test_what_was_learned_is_what_the_torch_side_knows(continual):
    path, digest, head = continual
    found, wanted = read_learned(path, NAME, digest), Learned.of(head.knowledge)
    assert (found.names, found.n_images) == (tuple(wanted.names), COLOURS)
    for field in ("codes", "validated", "remembered", "labels", "counts"):
        assert np.array_equal(getattr(found, field), getattr(wanted, field)), field
    seen = [*shades("green", 14, size=SIZE), *shades("green", 6, seed=5, size=SIZE)]
    features = features_of(onnx_bytes(), np.stack(seen))
    grid = found.on_grid(features.numpy())
    assert np.array_equal(codes_of(feature_hashes(grid)), head.statistics.fingerprints(features))
    assert found.know(grid).tolist() == [True] * 14 + [False] * 6
