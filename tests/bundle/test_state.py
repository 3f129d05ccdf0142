"""Bundles of models in the continual state: their content, and strangers' that are refused."""

import copy as copying
import json

import pytest
import safetensors.torch
import timm
import torch
from deploy_helpers import (
    PLAIN_HEAD,
    edit_config,
    edit_tensors,
    labelled,
    make_continual,
    make_model,
    make_predictor,
    rewrite,
    section,
    shades,
)
from torch import nn

from learnkit.backends.torch_session import Network
from learnkit.bundle import schema
from learnkit.continual.classifier import ContinualClassifier
from learnkit.continual.serialization import FORMAT
from learnkit.deploy.predictor import Predictor, load_learner
from learnkit.errors import BundleCorruptError, BundleProbeError, BundleVersionError, ExportError
from learnkit.models import rebuild as rebuild_module
from learnkit.models.rebuild import build_model

COUNTS = {"ok": 5, "Kratzer <b>": 4, "dent": 3}
STATE, HISTORY = "state.safetensors", "history.safetensors"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """A bundle in the continual state; not to be changed."""
    path = tmp_path_factory.mktemp("bundle") / "model"
    make_continual(COUNTS).save(path)
    return path


def files(path):
    return {p.name: p.read_bytes() for p in path.iterdir()}


@pytest.fixture(scope="module")
def built():
    return {}


@pytest.fixture
def built_once(built, monkeypatch):
    """Each body's structure is worked out once for all tests here."""
    build = rebuild_module.build_body

    def cached(spec):
        key = f"{spec.source} {spec.arch} {spec.cut}"
        if key not in built:
            built[key] = build(spec)
        return copying.deepcopy(built[key])

    monkeypatch.setattr(rebuild_module, "build_body", cached)


# -- what is in them ----------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:no features are remembered")
@pytest.mark.parametrize("settings", [{}, {"memory": 0}, {"root": True, "classifier": "prototype"}])
def test_what_is_loaded_says_what_was_saved_to_the_bit(tmp_path, settings):
    predictor = make_continual(COUNTS, **settings)
    predictor.save(tmp_path / "model")
    found = load_learner(tmp_path / "model")
    assert found.continual.settings == predictor.continual.settings
    images = shades("ok", 3, seed=5) + shades("new", 3)
    for one, other in zip(*(p.predict_batch(images) for p in (found, predictor)), strict=True):
        assert one.to_dict() == other.to_dict()
        assert torch.equal(one.probs, other.probs)
    assert found.continual.threshold.value == predictor.continual.threshold.value
    found.save(tmp_path / "again")
    assert files(tmp_path / "again") == files(tmp_path / "model")


def test_files_and_config_of_the_continual_state(bundle):
    names = {"config.json", "model.safetensors", STATE, HISTORY, "probe.safetensors", "README.md"}
    assert {p.name for p in bundle.iterdir()} == names | {"manifest.json"}
    found = section(bundle)
    assert found["schema"] == {"major": 1, "minor": 3}
    assert found["critical"] == ["continual"]
    assert found["model"]["head"] == {"kind": "continual", "root": False}
    assert found["model"]["n_out"] == 3
    assert found["classes"] == list(COUNTS) == found["continual"]["class_names"]
    tensors = safetensors.torch.load_file(bundle / STATE)
    assert tensors["counts"].tolist() == [5, 4, 3]
    weights = safetensors.torch.load_file(bundle / "model.safetensors")
    assert not any(name.startswith("1.") or "gram" in name for name in weights)


def test_plain_models_are_written_as_readers_of_format_1_0_take_them(tmp_path):
    make_predictor().save(tmp_path / "model")
    assert section(tmp_path / "model")["critical"] == []
    assert "continual" not in section(tmp_path / "model")
    assert not (tmp_path / "model" / STATE).exists()


def test_a_reader_of_format_1_0_refuses_a_model_it_would_get_wrong(bundle, monkeypatch):
    monkeypatch.setattr(schema, "_KNOWN", schema._KNOWN - {"continual"})
    with pytest.raises(BundleVersionError, match=r"needs \['continual'\].*upgrade"):
        load_learner(bundle)


def test_the_model_card_says_that_it_learns_and_what_it_knows(bundle):
    card = (bundle / "README.md").read_text(encoding="utf-8")
    for words in (
        "flagging images that show none of them",
        "| images learned | 12 |",
        "| threshold fitted on | parametric |",
        'model.extend("folder with a folder per class")',
        "the head is in `state.safetensors`",
    ):
        assert words in card
    assert "<b>" not in card


def test_measures_of_an_earlier_state_of_knowledge_are_not_repeated(copy):
    predictor = load_learner(copy)
    predictor.save(copy, card={"name": "Parts", "measures": {"accuracy": 0.99}})
    load_learner(copy).save(copy)
    assert "0.99" in (copy / "README.md").read_text(encoding="utf-8")
    predictor = load_learner(copy)
    predictor.extend(*labelled({"ok": 1}, seed=6), progress=False)
    predictor.save(copy)
    assert "0.99" not in (copy / "README.md").read_text(encoding="utf-8")
    assert "# Parts" in (copy / "README.md").read_text(encoding="utf-8")


def test_timm_opens_the_body(bundle):
    opened = timm.create_model(f"local-dir:{bundle}", pretrained=True).eval()
    predictor = load_learner(bundle)
    x = predictor.preprocessing.normalize(torch.ones(2, 3, 32, 32, dtype=torch.uint8))
    with torch.no_grad():
        assert torch.equal(opened.forward_features(x), predictor.model[0](x))


def test_build_model_makes_an_empty_head_that_the_state_fills(bundle):
    loaded = load_learner(bundle).model
    rebuilt = build_model(loaded.spec).eval()
    assert isinstance(rebuilt[1], ContinualClassifier)
    assert rebuilt[1].classes == ()
    rebuilt.load_state_dict(loaded.state_dict())
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(rebuilt(x), loaded(x))


@pytest.mark.parametrize("how", ["torchvision", "custom head", "a spec with another head"])
def test_whatever_the_head_was_before_the_body_travels(tmp_path, how):
    arch, size = ("torchvision:squeezenet1_1", 64) if how == "torchvision" else ("test_resnet", 32)
    own_head = lambda n_features, n_out: nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(n_features, n_out)
    )
    options = {"custom_head": own_head} if how == "custom head" else {"n_out": 9}
    model = make_model(arch, size=size, **options)
    spec, model = model.spec, nn.Sequential(model[0], ContinualClassifier(model[0].n_features))
    model.spec = spec
    predictor = Predictor(model, make_predictor(size=size).preprocessing, owns_model=True)
    predictor.extend(*labelled(COUNTS, size=size), progress=False)
    predictor.save(tmp_path / "model")
    found = load_learner(tmp_path / "model")
    assert found.classes == tuple(COUNTS)
    image = shades("ok", 1, seed=4, size=size)[0]
    assert found.predict(image).to_dict() == predictor.predict(image).to_dict()


def test_a_body_from_elsewhere_is_refused_with_the_reason(tmp_path):
    body = nn.Conv2d(3, 8, 3)
    predictor = Predictor(
        nn.Sequential(body, ContinualClassifier(8)), make_predictor().preprocessing
    )
    predictor.extend(*labelled(COUNTS), progress=False)
    with pytest.raises(ExportError, match="not made by create_body"):
        predictor.save(tmp_path / "model")


# -- strangers' bundles -------------------------------------------------------------------------


def _config(**values):
    return lambda path: edit_config(path, lambda s: s["continual"].update(values))


def _settings(**values):
    return lambda path: edit_config(path, lambda s: s["continual"]["settings"].update(values))


def _section(change):
    return lambda path: edit_config(path, change)


def _tensor(change):
    return lambda path: edit_tensors(path, change, STATE)


def _rename_all(names):
    def change(s):
        s["classes"] = s["continual"]["class_names"] = names

    return _section(change)


def _add(name, index, value):
    def change(tensors):
        tensors[name][index] += value

    return _tensor(change)


def _nan(tensors):
    tensors["sums"][0, 0] = float("nan")


def _unlist(path):
    manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    del manifest["files"][STATE]
    (path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


HOSTILE = {
    "no state": (_unlist, "does not list state.safetensors"),
    "no description": (_section(lambda s: s.pop("continual")), "disagree about the head"),
    "description of another type": (_section(lambda s: s.update(continual=[])), "is a list"),
    "head of layers": (_section(lambda s: s["model"].update(head={})), "disagree about the head"),
    "head of no kind": (_section(lambda s: s["model"].update(head={"kind": "x"})), "'x'"),
    "head with options": (
        _section(lambda s: s["model"]["head"].update(colour=1)),
        "no sound state.*colour",
    ),
    "head with another root": (
        _section(lambda s: s["model"]["head"].update(root=True)),
        "`root` is False; the network's is True",
    ),
    "several labels": (_section(lambda s: s.update(multi_label=True)), "gives one label"),
    "other classes": (_config(class_names=["a", "b", "c"]), r"classes \['a', 'b', 'c'\] are not"),
    "fewer classes": (_config(class_names=["ok", "dent"]), "`counts` has shape"),
    "names alike": (_rename_all(["ok", "OK", "dent"]), "differ only in case"),
    "names twice": (_rename_all(["ok", "ok", "dent"]), "2 different `classes` for 3"),
    "names not composed": (_rename_all(["ok", "a\u0308", "dent"]), "not in composed form"),
    "names empty": (_rename_all(["ok", "", "dent"]), "is no name"),
    "names no text": (_config(class_names=["ok", 3, "dent"]), "state"),
    "unknown key": (_config(colour="red"), "colour"),
    "unknown setting": (_settings(colour="red"), "colour"),
    "unknown classifier": (_settings(classifier="eval"), "'eval'"),
    "another width": (_settings(n_features=7), "7"),
    "more memory": (_settings(memory=-1), "`memory` is -1"),
    "threshold a text": (_config(threshold="1"), "`threshold` is '1'"),
    "tensor missing": (_tensor(lambda t: t.pop("gram")), "gram"),
    "tensor more": (_tensor(lambda t: t.update(x=torch.zeros(1))), "unexpected"),
    "wrong shape": (_tensor(lambda t: t.update(sums=t["sums"][:, 1:].clone())), "`sums` has shape"),
    "wrong type": (_tensor(lambda t: t.update(sums=t["sums"].float())), "`sums` is torch.float32"),
    "no whole numbers": (_add("sums", (0, 0), 0.5), "`sums` are not sums"),
    "NaN": (_tensor(_nan), "'sums' holds NaN"),
    "negative counts": (_add("counts", 0, -9), "`counts`"),
    "counts that disagree": (_add("counts", 0, -4), "sums|remembers"),
    "too many images": (_add("counts", 0, 2**40), "`gram` is no sum of products"),
    "an image too many": (_add("counts", 0, 1), "`gram` is no sum of products"),
    "one-sided products": (_add("gram", (0, 1), 1), "`gram` is no sum of products"),
    "products too large": (_add("gram", (0, 0), 2.0**52), "`gram` is no sum of products"),
    "memory in disorder": (_tensor(lambda t: t.update(memory=t["memory"].flip(0))), "hashes"),
    "memory of others": (_add("memory_sizes", 0, 1), "memory"),
    "memory without copies": (_add("memory_copies", 0, -9), "`memory` holds"),
    "json for tensors": (lambda path: rewrite(path, STATE, lambda data: b'{"a": 1}'), "header"),
    "another file": (
        lambda path: rewrite(path, STATE, lambda data: (path / "probe.safetensors").read_bytes()),
        "state",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_strangers_state_is_refused_with_the_reason(copy, case, built_once):
    change, reason = HOSTILE[case]
    change(copy)
    with pytest.raises(BundleCorruptError, match=reason):
        load_learner(copy)


def test_statistics_of_other_images_fail_the_probes(copy):
    """Sound numbers, but not those the bundle was exported with."""
    other = make_continual(dict.fromkeys(COUNTS, 4), seed=1)
    config, tensors = other.continual.state()
    rewrite(copy, STATE, lambda data: safetensors.torch.save(tensors))
    edit_config(copy, lambda s: s.update(continual=config))
    with pytest.raises(BundleProbeError, match="other logits"):
        load_learner(copy)


def test_another_version_may_derive_another_classifier_but_no_other_features(copy):
    edit_tensors(copy, lambda t: t["logits"].add_(0.5), "probe.safetensors")
    with pytest.raises(BundleProbeError, match=r"other logits"):
        load_learner(copy)
    edit_config(copy, lambda s: s["versions"].update(learnkit="0.0.9"))
    with pytest.warns(UserWarning, match=r"other logits.*learnkit 0\.0\.9.*class statistics"):
        assert load_learner(copy).classes == tuple(COUNTS)
    edit_tensors(copy, lambda t: t["features"].add_(0.5), "probe.safetensors")
    with pytest.raises(BundleProbeError, match="other features"):
        load_learner(copy)
    edit_tensors(
        copy, lambda t: t.update(features=t["features"][:, 1:].clone()), "probe.safetensors"
    )
    with pytest.raises(BundleProbeError, match="of shape"):
        load_learner(copy)
    edit_tensors(copy, lambda t: t.pop("features"), "probe.safetensors")
    with pytest.raises(BundleCorruptError, match=r"lacks \['features'\]"):
        load_learner(copy)


def test_features_as_another_machine_computes_them_pass_the_probes(bundle, monkeypatch):
    compute = Network.features
    monkeypatch.setattr(Network, "features", lambda *args: compute(*args) * (1 + 3e-5))
    assert load_learner(bundle).classes == tuple(COUNTS)


def test_a_head_of_layers_with_a_state_beside_it_is_read_as_what_it_says(tmp_path):
    make_predictor(make_model(**PLAIN_HEAD)).save(tmp_path / "model")
    assert load_learner(tmp_path / "model").continual is None


@pytest.mark.parametrize("colour", [{}, {"colour": "red"}], ids=["alone", "with a new key"])
def test_a_newer_state_is_told_from_a_damaged_one(copy, colour):
    _config(format=FORMAT + 1, **colour)(copy)
    with pytest.raises(BundleVersionError, match=rf"{STATE}.* format {FORMAT + 1}.*newer learnkit"):
        load_learner(copy)
