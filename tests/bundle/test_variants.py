"""Variants in bundles: an int8 one made once, and everything that can be wrong with its files."""

import json
import math
import shutil

import onnx
import pytest
import safetensors.torch
import torch
from deploy_helpers import (
    edit_config,
    edit_tensors,
    labelled,
    make_continual,
    make_predictor,
    rewrite,
    strange,
    without_timing,
)

from learnkit.continual.classifier import ContinualClassifier
from learnkit.continual.ood_detector import OodDetector
from learnkit.data.labelled_images import Labelled
from learnkit.deploy.predictor import Predictor, load_learner
from learnkit.deploy.runtime_predictor import load_runtime
from learnkit.errors import (
    BundleCorruptError,
    BundleError,
    BundleProbeError,
    ExportError,
    LearnkitError,
)
from learnkit.optimize.gates import Gates

COUNTS = {"ok": 12, "ß/<b>": 12}
LEARNED = Labelled(*labelled(COUNTS))
TEST = Labelled(*labelled({"ok": 4, "ß/<b>": 4}, seed=5))
ANY = Gates(agreement=None, accuracy_drop=None, speed=None)
QUIET = {"progress": False, "threads": 1, "gates": ANY, "test": TEST}
NAME = "onnxruntime-int8"


@pytest.fixture(scope="module", autouse=True)
def _no_waiting():
    with without_timing():
        yield


@pytest.fixture(scope="module")
def source():
    return make_continual(COUNTS)


@pytest.fixture(scope="module")
def int8(source):
    found, _ = source.optimize(
        "int8", LEARNED, backend="onnxruntime", learned=LEARNED, max_error=9.0, **QUIET
    )
    return found


@pytest.fixture(scope="module")
def written(int8, tmp_path_factory):
    """A bundle with the int8 variant, not to be changed."""
    path = tmp_path_factory.mktemp("variant") / "model"
    return path, int8.save(path)


@pytest.fixture
def bundle(written, tmp_path):
    return shutil.copytree(written[0], tmp_path / "model")


def probs(predictor):
    return torch.stack([prediction.probs for prediction in predictor.predict_batch(TEST.items)])


def load(path, **kwargs):
    return load_learner(path, **{"threads": 1, **kwargs})


def test_a_variant_loads_as_it_was_and_float32_beside_it(source, int8, written):
    path, digest = written
    again = load(path, sha256=digest)
    assert isinstance(again, Predictor)
    assert (again.variant, again.digest) == (NAME, digest)
    assert torch.equal(probs(again), probs(int8))
    assert again.report.to_dict() == int8.report.to_dict()
    assert not again.has_learned
    assert torch.equal(again.continual.statistics.gram, int8.continual.statistics.gram)
    plain = load_learner(path, variant="float32")
    torch.testing.assert_close(probs(plain), probs(source))
    assert plain.continual.statistics.gram.equal(source.continual.statistics.gram)


def test_saving_again_changes_nothing(written, tmp_path):
    path, digest = written
    assert load(path).save(tmp_path / "again") == digest
    for file in filter(lambda file: file.is_file(), path.rglob("*")):
        assert file.read_bytes() == (tmp_path / "again" / file.relative_to(path)).read_bytes()


def test_the_files_of_a_variant_and_what_describes_it(written):
    path, _ = written
    endings = {"json", "onnx", "state.safetensors", "judge.safetensors", "probe.safetensors"}
    names = {f"{NAME}.{ending}" for ending in {*endings, "report.json", "history.safetensors"}}
    assert {file.name for file in (path / "variants").iterdir()} == names
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))["learnkit"]
    assert config["default_variant"] == NAME
    assert config["critical"] == ["continual"]
    assert config["schema"] == {"major": 1, "minor": 3}
    described = json.loads((path / "variants" / f"{NAME}.json").read_text(encoding="utf-8"))
    assert described["classes"] == list(COUNTS)
    assert described["versions"].keys() == {"learnkit", "onnxruntime"}
    assert f"## Optimised: {NAME}" in (path / "README.md").read_text(encoding="utf-8")


def test_the_metadata_of_the_network_is_there_after_quantising(written):
    model = onnx.load(written[0] / "variants" / f"{NAME}.onnx")
    about = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(about["classes"]) == list(COUNTS)
    assert about["precision"] == "int8"
    assert json.loads(about["preprocessing"])["size"] == [32, 32]
    assert any(node.op_type == "QuantizeLinear" for node in model.graph.node)


def test_extending_int8_gives_to_the_bit_what_initialising_with_all_gives(written, tmp_path):
    again = load(written[0])
    more = Labelled(*labelled({"new": 7, "ok": 3}, seed=8))
    again.extend(more.items, more.labels, progress=False)
    head = ContinualClassifier(**again.continual.settings.to_dict())
    items, labels = [*more.items, *LEARNED.items], [*more.labels, *LEARNED.labels]
    head.extend(again.features(items, progress=False), labels, class_names=[*COUNTS, "new"])
    for name, tensor in head.state()[1].items():
        assert torch.equal(tensor, again.continual.state()[1][name]), name
    again.save(tmp_path / "model")
    grown = load(tmp_path / "model")
    assert grown.classes == (*COUNTS, "new")
    assert grown.has_learned
    assert torch.equal(probs(grown), probs(again))
    with pytest.warns(UserWarning, match="'onnxruntime-int8' beside it has learned more"):
        assert load_learner(tmp_path / "model", variant="float32").classes == tuple(COUNTS)
    config = json.loads((tmp_path / "model" / "config.json").read_text(encoding="utf-8"))[
        "learnkit"
    ]
    assert config["critical"] == ["continual", "default_variant"]


def test_a_model_that_learned_on_replaces_itself(bundle):
    again = load(bundle)
    again.extend(*labelled({"new": 5}, seed=2), progress=False)
    again.set(metadata={"line": 7}, class_names={"new": "newer"})
    again.save(bundle)
    found = load(bundle)
    assert found.classes == (*COUNTS, "newer")
    assert found.metadata["line"] == 7
    assert found.report.variant == NAME


def test_what_is_learned_while_a_variant_is_saved_is_no_part_of_it(bundle, tmp_path, monkeypatch):
    model, state = load(bundle), ContinualClassifier.state

    def learned_meanwhile(head):
        found = state(head)
        model.set(class_names={model.classes[0]: "renamed"})
        model.extend(*labelled({f"new {len(model.classes)}": 2}), progress=False)
        return found

    monkeypatch.setattr(ContinualClassifier, "state", learned_meanwhile)
    model.save(tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert again.classes == load_runtime(tmp_path / "saved", threads=1).classes == tuple(COUNTS)
    assert not again.has_learned
    assert model.classes == ("renamed", "ß/<b>", "new 2")


def test_several_variants_share_a_bundle(source, int8, written, tmp_path):
    other, _ = source.optimize("bfloat16", backend="torch", learned=LEARNED, **QUIET)
    other.save(tmp_path / "model", others=[int8])
    assert load(tmp_path / "model").variant == "torch-bfloat16"
    found = load(tmp_path / "model", variant=NAME)
    assert torch.equal(probs(found), probs(int8))
    found.save(tmp_path / "model")
    assert torch.equal(probs(load(tmp_path / "model", variant="torch-bfloat16")), probs(other))
    with pytest.raises(BundleError, match="no variant ''; it has"):
        load(tmp_path / "model", variant="")
    with pytest.raises(BundleError, match="no variant 'x-y'; it has 'onnxruntime-int8', 'torch-bf"):
        load(tmp_path / "model", variant="x-y")
    stranger, _ = make_continual(COUNTS, seed=4).optimize("bfloat16", backend="torch", **QUIET)
    with pytest.raises(ExportError, match="of another model"):
        other.save(tmp_path / "model", others=[stranger])


@pytest.mark.parametrize("threshold", [0.3, (0.3, 0.5, 0.999)])
def test_a_trained_head_and_its_names_travel(tmp_path, threshold):
    predictor = make_predictor(multi_label=True, threshold=threshold)
    faster, report = predictor.optimize("bfloat16", backend="torch", progress=False, gates=ANY)
    faster.set(class_names={"NO": "yes"})
    faster.save(tmp_path / "model")
    again = load(tmp_path / "model")
    assert again.classes == ("ok", "yes", "ß/<b>")
    assert (again.multi_label, again.threshold) == (True, threshold)
    assert again.predict(TEST.items[0]).label == faster.predict(TEST.items[0]).label
    assert report.state == "the trained head is part of the network"
    with pytest.warns(UserWarning, match="beside it has learned more, or other names"):
        assert load(tmp_path / "model", variant="float32").classes == ("ok", "NO", "ß/<b>")


def test_weights_as_trained_take_variants_along_and_open_by_default(source, int8, tmp_path):
    source.save(tmp_path / "model", others=[int8])
    plain, faster = load(tmp_path / "model"), load(tmp_path / "model", variant=NAME)
    assert (plain.variant, faster.variant) == (None, NAME)
    for opened, was in ((plain, source), (faster, int8)):
        assert torch.equal(opened.predict(TEST.items[0]).probs, was.predict(TEST.items[0]).probs)


def test_a_detector_beside_a_trained_head_goes_along(tmp_path):
    predictor = make_predictor()
    detector = OodDetector(predictor.network.features(predictor.network.no_images()).shape[1])
    detector.extend(predictor.features(LEARNED.items, progress=False), LEARNED.labels)
    predictor.detector = detector
    faster, report = predictor.optimize(
        "bfloat16", backend="torch", learned=LEARNED, ood=strange(4), progress=False, gates=ANY
    )
    assert report.state.startswith("learned again from 24 images")
    assert not math.isnan(report.quality.auroc)
    again = OodDetector(detector.n_features)
    again.extend(faster.features(LEARNED.items, progress=False), LEARNED.labels)
    assert torch.equal(again.statistics.gram, faster.detector.statistics.gram)
    faster.save(tmp_path / "model")
    found = load(tmp_path / "model")
    for image in (TEST.items[0], *strange(2)):
        before, after = faster.predict(image), found.predict(image)
        assert (before.label, before.ood_score) == (after.label, after.ood_score)
    assert found.detector.statistics.equals(faster.detector.statistics)


def test_only_the_files_of_the_variant_are_read(bundle, tmp_path):
    kept = tmp_path / "aside"
    shutil.move(bundle / "model.safetensors", kept)
    found = load(bundle)
    found.predict(TEST.items[0])
    with pytest.raises(BundleError, match="put that bundle back, then save again"):
        found.save(tmp_path / "elsewhere")
    shutil.move(kept, bundle / "model.safetensors")
    found.save(tmp_path / "elsewhere")
    edit_tensors(bundle, lambda tensors: next(iter(tensors.values())).add_(1))
    with pytest.raises(BundleError, match=r"model\.safetensors is another one"):
        found.save(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    "ending", ["json", "onnx", "state.safetensors", "probe.safetensors", "report.json"]
)
@pytest.mark.parametrize("damage", ["cut", "flipped", "missing"])
def test_damaged_files_of_a_variant_are_refused(bundle, ending, damage):
    file = bundle / "variants" / f"{NAME}.{ending}"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(data if damage == "flipped" else data[:-9])
    with pytest.raises(BundleCorruptError, match=ending.replace(".", r"\.")):
        load(bundle)


def described(change):
    def edited(data):
        values = json.loads(data)
        change(values)
        return json.dumps(values).encode()

    return "json", edited


def network(change):
    def edited(data):
        model = onnx.load_from_string(data)
        change(model)
        return model.SerializeToString()

    return "onnx", edited


def outside(model):
    (weight, *_) = (t for t in model.graph.initializer if len(t.raw_data) > 8)
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../../../etc/passwd")


def probes(change):
    def edited(data):
        tensors = safetensors.torch.load(data)
        change(tensors)
        return safetensors.torch.save(tensors)

    return "probe.safetensors", edited


TAMPERED = {
    "another backend": (described(lambda d: d.update(backend="torch")), "it describes"),
    "no backend": (described(lambda d: d.update(backend="curl")), "can run"),
    "other weights": (described(lambda d: d.update(weights="0" * 64)), "other float32 weights"),
    "other classes": (described(lambda d: d.update(classes=["a", "b"])), "other classes"),
    "fewer classes": (described(lambda d: d.update(classes=["ok"])), "other classes"),
    "twice a class": (described(lambda d: d.update(classes=["a", "a"])), "twice"),
    "other width": (described(lambda d: d.update(n_features=7)), "7 features|is of"),
    "odd settings": (described(lambda d: d.update(params={"device": "x"})), "`params`"),
    "odd type": (described(lambda d: d.update(threshold="0.5")), "`threshold` is '0.5'"),
    "unknown key": (described(lambda d: d.update(run="rm")), "has the fields"),
    "odd recipe": (described(lambda d: d["preprocessing"].update(size=0)), "size"),
    "another size": (described(lambda d: d["preprocessing"].update(size=[48, 32])), "not fit toge"),
    "weights outside": (network(outside), "weights in another file"),
    "no network": (("onnx", lambda data: b"\x08\x07" + data[:50]), "."),
    "no images": (probes(lambda t: t.update(images=t["images"][:0])), "preprocessed images"),
    "wide tolerance": (probes(lambda t: t.update(share=torch.tensor(1.0))), "`share`"),
    "hostile report": (("report.json", lambda data: b'{"variant": 1}'), "ConversionReport"),
}


@pytest.mark.parametrize(("tampering", "message"), TAMPERED.values(), ids=TAMPERED)
def test_variants_whose_hashes_are_right_and_contents_wrong_are_refused(bundle, tampering, message):
    ending, change = tampering
    rewrite(bundle, f"variants/{NAME}.{ending}", change)
    with pytest.raises(LearnkitError, match=message) as caught:
        load(bundle)
    assert isinstance(caught.value, BundleCorruptError)


def test_a_library_that_gives_other_numbers_is_noticed_and_both_versions_named(bundle):
    rewrite(bundle, f"variants/{NAME}.probe.safetensors", probes(_other_features)[1])
    _, change = described(lambda d: d["versions"].update(onnxruntime="0.1"))
    rewrite(bundle, f"variants/{NAME}.json", change)
    with pytest.raises(
        BundleProbeError, match=r"Saved with .*onnxruntime 0\.1; here .*onnxruntime"
    ):
        load(bundle)


def _other_features(tensors):
    tensors["features"] = tensors["features"] * 1.2


def test_a_default_variant_that_is_not_there_is_said(bundle):
    edit_config(bundle, lambda section: section.update(default_variant="openvino-int8"))
    with pytest.raises(BundleError, match="no variant 'openvino-int8'; it has 'onnxruntime-int8'"):
        load(bundle)
    load_learner(bundle, variant="float32")
