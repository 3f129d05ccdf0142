"""Optimising from a learner and from the command line; speeds are given, not measured."""

import json

import pytest
import torch
from deploy_helpers import make_continual
from helpers import quiet, write_image_folder

from learnkit import Gates, ImageDataset, cnn_learner, devices, load_learner
from learnkit.cli.app import main
from learnkit.continual.classifier import ContinualClassifier
from learnkit.deploy.predictor import Predictor
from learnkit.optimize import trials
from learnkit.optimize.timing import Times

QUIET = {"backend": "torch", "threads": 1, "progress": False}


@pytest.fixture(scope="module", autouse=True)
def _given():
    """Half precision takes half the time, on any processor."""

    def measure(runs, pixels, *, batches, progress):
        taken = {name: 1.0 if "bfloat16" in name else 2.0 for name in runs}
        return {n: dict.fromkeys(batches, Times(t, t)) for n, t in taken.items()}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trials, "measure", measure)
        patch.setattr("learnkit.backends.registry.has_bfloat16", lambda: True)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    counts = {"a": 40, "b": 12, "c": 12}
    return write_image_folder(tmp_path_factory.mktemp("images"), counts, size=(32, 32))


@pytest.fixture(scope="module")
def data(folder):
    return ImageDataset.from_folder(folder).split(0.75, 0.25, seed=0)


@pytest.fixture
def learn(data):
    dls = data.dataloaders(32, bs=8)
    return quiet(cnn_learner(dls, "test_resnet", pretrained=False))


def snapshot(learn):
    modes = [module.training for module in learn.model.modules()]
    state = {name: value.clone() for name, value in learn.model.state_dict().items()}
    return modes, state, torch.get_rng_state()


def test_samples_come_from_the_training_images_and_the_test_is_the_validation(
    learn, data, monkeypatch
):
    given = {}
    monkeypatch.setattr(
        Predictor,
        "optimize",
        lambda predictor, precision, samples, **kw: given.update(kw, samples=samples),
    )
    learn.optimize("int8")
    samples = given["samples"]
    train, valid = set(map(str, data.train.paths)), set(map(str, data.valid.paths))
    assert set(map(str, samples.items)) <= train
    assert {name: samples.labels.count(name) for name in "abc"} == {"a": 20, "b": 9, "c": 9}
    assert set(map(str, given["test"].items)) == valid
    assert set(map(str, given["learned"].items)) == train
    assert set(map(str, given["learned"].validation.items)) == valid
    learn.optimize("bfloat16")
    assert given["samples"] is None


def test_a_learner_in_training_stays_as_it_is(learn, data):
    learn.model.train()
    modes, state, random = snapshot(learn)
    faster, report = learn.optimize("bfloat16", gates=Gates(agreement=None), **QUIET)
    again = snapshot(learn)
    assert again[0] == modes
    assert all(torch.equal(state[name], again[1][name]) for name in state)
    assert torch.equal(random, again[2])
    assert report.quality.n_labelled == len(data.valid)
    assert faster.classes == ("a", "b", "c")


def test_what_a_learner_knows_is_learned_again_from_all_its_images(learn, data, tmp_path):
    learn.init_continual(data)
    learn.rename({"b": "bee"})
    faster, report = learn.optimize("bfloat16", **QUIET)
    assert report.state.startswith(f"learned again from {len(data.train)} images and 16 of valid")
    assert "optimistic" in " ".join(report.notes)
    names = [{"b": "bee"}.get(name, name) for name in data.train.labels]
    head = ContinualClassifier(**faster.continual.settings.to_dict())
    features = faster.features(data.train, progress=False)
    head.extend(features, names, class_names=["a", "bee", "c"])
    assert torch.equal(head.statistics.gram, faster.continual.statistics.gram)
    assert learn.model[1].classes == faster.classes == ("a", "bee", "c")
    faster.save(tmp_path / "model")
    image = data.valid.paths[0]
    again = load_learner(tmp_path / "model", threads=1)
    assert again.predict(image).to_dict() == faster.predict(image).to_dict()
    learn.export(tmp_path / "plain", evaluate=False)
    plain = load_learner(tmp_path / "plain").predict(image)
    beside = load_learner(tmp_path / "model", variant="float32").predict(image)
    torch.testing.assert_close(beside.probs, plain.probs)


def test_after_more_than_its_own_images_knowledge_is_carried_over(learn, data, folder):
    learn.init_continual(data)
    learn.extend(data.valid.paths[:3], "d")
    _, report = learn.optimize("bfloat16", **QUIET)
    assert report.state.startswith("carried over from float32: it has learned")


@pytest.fixture(scope="module")
def model(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "model"
    predictor = make_continual()
    predictor.extend(folder, progress=False)
    predictor.save(path)
    return path


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    return (caught.value.code or 0, *capsys.readouterr())


def test_the_command_writes_a_faster_model_and_says_what_it_cost(model, folder, tmp_path, capsys):
    out = tmp_path / "faster"
    how = ["--precision", "bfloat16", "--backend", "torch", "--threads", 1]
    code, said, _ = run(capsys, "optimize", model, "--out", out, *how, "--test", folder)
    assert code == 0
    assert "torch-bfloat16 passes its gates" in said
    assert "labels kept" in said
    assert load_learner(out, threads=1).variant == "torch-bfloat16"
    code, said, _ = run(capsys, "predict", out, folder / "a" / "000.png", "--json")
    assert code == 0
    assert json.loads(said)[0]["label"] == "a"
    code, _, error = run(capsys, "optimize", out, "--out", out, *how)
    assert code == 0, error  # the float32 weights beside it are optimised anew


def test_a_refused_conversion_shows_its_report_and_writes_nothing(model, folder, tmp_path, capsys):
    out = tmp_path / "faster"
    arguments = ["optimize", model, "--out", out, "--backend", "torch", "--test", folder]
    code, said, error = run(capsys, *arguments)
    assert code == 2
    assert "FAILED     speed" in said
    assert "torch-float32 is refused: speed: FAILED" in error
    assert error.endswith("Here: --fallback, or --force.\n")
    assert not out.exists()
    code, said, _ = run(capsys, *arguments, "--force")
    assert code == 0
    assert "was made all the same" in said
    code, _, error = run(capsys, "optimize", model, "--out", out, "--precision", "int8")
    assert (code, out.exists()) == (2, True)
    assert "`samples` is missing" in error
    code, _, error = run(capsys, *arguments, "--samples", tmp_path / "no")
    assert (code, "--samples is" in error, "which is no folder" in error) == (2, True, True)


def test_devices_are_listed_with_precisions_and_parameters(capsys):
    code, said, _ = run(capsys, "devices")
    assert code == 0
    assert said.strip() == repr(devices()).strip()
    for word in ("onnxruntime", "openvino", "torch", "float32", "channels_last"):
        assert word in said
