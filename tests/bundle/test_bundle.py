import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from deploy_helpers import (
    CLASSES,
    IMAGENET,
    PLAIN_HEAD,
    edit_config,
    edit_tensors,
    make_model,
    make_predictor,
    rewrite,
    section,
)

from learnkit.bundle import read as reading
from learnkit.data.preprocess import Preprocessing
from learnkit.deploy.predictor import Predictor, load_learner
from learnkit.errors import (
    BundleCorruptError,
    BundleError,
    BundleProbeError,
    BundleVersionError,
    BundleWriteError,
    ExportError,
    PredictionError,
)
from learnkit.learner.learner import ImageLearner
from learnkit.models import rebuild
from learnkit.models.rebuild import build_model
from learnkit.models.spec import ModelSpec
from learnkit.storage import read_folder


def images(n=3, size=32, channels=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (n, channels, size, size), dtype=torch.uint8, generator=generator)


@pytest.fixture
def copy(saved, tmp_path):
    """A copy of the bundle, to be damaged."""
    return shutil.copytree(saved[0], tmp_path / "model")


def files(path):
    return {p.name: p.read_bytes() for p in path.iterdir()}


def test_what_is_loaded_is_what_was_saved(tmp_path):
    predictor = make_predictor(multi_label=True, threshold=0.3, metadata={"camera": ["a", 1, None]})
    digest = predictor.save(tmp_path / "model", card={"name": "Parts"})
    found = load_learner(tmp_path / "model")
    assert torch.equal(found.logits(images()), predictor.logits(images()))
    assert found.classes == tuple(CLASSES)
    assert found.preprocessing == predictor.preprocessing
    assert (found.multi_label, found.threshold) == (True, 0.3)
    assert found.metadata == {"camera": ["a", 1, None], "card": {"name": "Parts"}}
    assert found.digest == digest
    assert digest == hashlib.sha256((tmp_path / "model" / "manifest.json").read_bytes()).hexdigest()
    assert not any(m.training for m in found.model.modules())
    assert "# Parts" in (tmp_path / "model" / "README.md").read_text(encoding="utf-8")


def test_saving_again_writes_the_same_bytes(saved, tmp_path):
    assert load_learner(saved[0]).save(tmp_path / "again") == saved[1]
    assert files(tmp_path / "again") == files(saved[0])


def test_a_bundle_can_be_replaced_by_its_own_predictor(copy):
    load_learner(copy).set(class_names=["x", "y", "z"]).save(copy)
    assert load_learner(copy).classes == ("x", "y", "z")


def test_nothing_executable_is_in_a_bundle(saved):
    assert {p.suffix for p in saved[0].iterdir()} == {".json", ".safetensors", ".md"}


PLAIN = [
    ("test_efficientnet", {}),
    ("test_byobnet", {}),
    ("test_nfnet", {}),
    ("test_resnet", {"n_in": 1}),
    ("mobilenetv2_050", {"arch_kwargs": {"pad_type": "same"}}),
]


@pytest.mark.parametrize(("arch", "kwargs"), PLAIN)
def test_timm_opens_a_plain_classifier_to_the_bit(tmp_path, arch, kwargs):
    model = make_model(arch, **PLAIN_HEAD, **kwargs)
    channels = kwargs.get("n_in", 3)
    recipe = Preprocessing(32, channels=channels, mean=[0.5] * channels, std=[0.25] * channels)
    predictor = Predictor(model, recipe, CLASSES)
    predictor.save(tmp_path / "model")
    opened = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True).eval()
    with torch.no_grad():
        logits = opened(recipe.normalize(images(channels=channels)))
    assert torch.equal(logits, predictor.logits(images(channels=channels)))
    assert torch.equal(logits, load_learner(tmp_path / "model").logits(images(channels=channels)))
    cfg = opened.pretrained_cfg
    assert tuple(cfg["label_names"]) == tuple(CLASSES)
    assert tuple(cfg["mean"]) == recipe.mean
    assert tuple(cfg["input_size"]) == (channels, 32, 32)
    assert "bit for bit" in (tmp_path / "model" / "README.md").read_text(encoding="utf-8")


OTHERS = [
    ("resnet10t", 32, {}),  # the default head: two pools, batch norms, two layers
    ("mobilenetv3_small_050", 32, PLAIN_HEAD),  # timm's classifier has a layer more than the body
    ("test_convnext", 32, PLAIN_HEAD),  # a norm between pool and classifier
    ("test_mambaout", 64, {}),  # NHWC inside
    ("test_coatnet", 160, {}),  # buffers that are computed, not stored
    ("test_vit", 160, PLAIN_HEAD),  # tokens, position embedding, one image size
    ("test_efficientnet", 32, {"cut": -3}),
]


@pytest.mark.parametrize(("arch", "size", "kwargs"), OTHERS)
def test_of_other_heads_timm_opens_the_body(tmp_path, arch, size, kwargs):
    model = make_model(arch, size=size, **kwargs)
    predictor = make_predictor(model, size=size)
    predictor.save(tmp_path / "model")
    assert torch.equal(
        load_learner(tmp_path / "model").logits(images(size=size)),
        predictor.logits(images(size=size)),
    )
    opened = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True).eval()
    state = opened.state_dict()
    for name, tensor in model[0].state_dict().items():
        assert torch.equal(state[name.removeprefix("model.")], tensor)
    if "cut" not in kwargs and arch != "test_vit":
        x = predictor.preprocessing.normalize(images(size=size))
        with torch.no_grad():
            feature_map, expected = opened.forward_features(x), model[0](x)
        if feature_map.shape != expected.shape:
            feature_map = feature_map.permute(0, 3, 1, 2)
        assert torch.equal(feature_map, expected)
    assert "Its body with timm alone" in (tmp_path / "model" / "README.md").read_text(
        encoding="utf-8"
    )


def test_torchvisions_networks_travel_too_and_the_card_says_timm_cannot(tmp_path):
    predictor = make_predictor(make_model("torchvision:squeezenet1_1", size=64), size=64)
    predictor.save(tmp_path / "model")
    found = load_learner(tmp_path / "model")
    assert torch.equal(found.logits(images(size=64)), predictor.logits(images(size=64)))
    assert "timm cannot open" in (tmp_path / "model" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("arch", "size"), [("test_efficientnet", 32), ("test_coatnet", 160)])
def test_saving_and_loading_leave_model_and_random_state_as_found(tmp_path, arch, size):
    model = make_model(arch, size=size, ps=0.5).train()
    model[0].eval()
    next(model.parameters()).requires_grad_(False)
    predictor = make_predictor(model, size=size)
    modes = [m.training for m in model.modules()]
    grads = [p.requires_grad for p in model.parameters()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    rng = torch.get_rng_state()
    predictor.save(tmp_path / "model")
    load_learner(tmp_path / "model")
    assert torch.equal(torch.get_rng_state(), rng)
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == grads
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_channels_last_and_strided_weights_are_saved(tmp_path):
    model = make_model(**PLAIN_HEAD).to(memory_format=torch.channels_last)
    weight = model[1][-1].weight
    weight.data = weight.data.T.contiguous().T
    predictor = make_predictor(model)
    predictor.save(tmp_path / "model")
    found = load_learner(tmp_path / "model")
    torch.testing.assert_close(
        found.logits(images()), predictor.logits(images()), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_broken_weights_are_refused_by_name_and_the_old_bundle_stays(copy, bad):
    before = files(copy)
    predictor = make_predictor(make_model(**PLAIN_HEAD, seed=3))
    with torch.no_grad():
        predictor.model[0].model.conv_stem.weight[0, 0, 0, 0] = bad
    with pytest.raises(ExportError, match=r"'0\.model\.conv_stem\.weight' holds NaN or infinite"):
        predictor.save(copy)
    assert files(copy) == before


def test_networks_that_cannot_be_described_are_refused(tmp_path, predictor):
    recipe = predictor.preprocessing
    home_made = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(32 * 32 * 3, 3))
    with pytest.raises(ExportError, match="it was not built by learnkit"):
        Predictor(home_made, recipe, CLASSES).save(tmp_path / "model")
    custom = make_model(
        custom_head=lambda nf, n: torch.nn.Sequential(
            torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(nf, n)
        )
    )
    with pytest.raises(ExportError, match=r"custom.head"):
        Predictor(custom, recipe, CLASSES).save(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_networks_changed_after_they_were_built_are_refused(tmp_path):
    wider = make_model(**PLAIN_HEAD)
    wider[1][-1] = torch.nn.Linear(256, 4)
    with pytest.raises(ExportError, match=r"not what it was built as: .*1\.2\.weight"):
        make_predictor(wider, classes=list("abcd")).save(tmp_path / "model")
    rewired = make_model(**PLAIN_HEAD, size=64)
    rewired[1][0] = torch.nn.AdaptiveMaxPool2d(1)
    with pytest.raises(ExportError, match=r"gives other logits.*was it changed"):
        make_predictor(rewired, size=64).save(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_json_is_refused(tmp_path):
    predictor = make_predictor()
    predictor.metadata["model"] = object()
    with pytest.raises(ExportError, match="no JSON"):
        predictor.save(tmp_path / "model")
    with pytest.raises(ExportError, match="no JSON"):
        make_predictor(classes=["a", "b", "\ud800"]).save(tmp_path / "model")
    with pytest.raises(ExportError, match=r"probe images are torch.float32"):
        make_predictor().save(tmp_path / "model", probes=torch.rand(1, 3, 32, 32))
    with pytest.raises(ExportError, match="17 probe images; 1 to 16"):
        make_predictor().save(tmp_path / "model", probes=images(17))


def test_a_target_that_is_no_bundle_is_refused(tmp_path, predictor):
    (tmp_path / "model").write_text("keep", encoding="utf-8")
    with pytest.raises(BundleWriteError, match="is a file"):
        predictor.save(tmp_path / "model")
    assert (tmp_path / "model").read_text(encoding="utf-8") == "keep"


def test_the_digest_pins_one_bundle(saved, tmp_path):
    path, digest = saved
    assert load_learner(path, sha256=digest).digest == digest
    other = make_predictor(make_model(**PLAIN_HEAD, seed=9)).save(tmp_path / "other")
    with pytest.raises(BundleCorruptError, match="not the pinned bundle"):
        load_learner(path, sha256=other)


# Strangers' bundles: the hashes are right, the content is not


def _set(**values):
    return lambda path: edit_config(path, lambda section: section.update(values))


def _change(key, **values):
    return lambda path: edit_config(path, lambda section: section[key].update(values))


def _drop(key):
    return lambda path: edit_config(path, lambda section: section.pop(key))


def _tensor(change, name="model.safetensors"):
    return lambda path: edit_tensors(path, change, name)


def _swap_two(tensors):
    """Exchange the first two tensors of one shape and type."""
    seen = {}
    for name, tensor in tensors.items():
        other = seen.setdefault((tensor.shape, tensor.dtype), name)
        if other != name and not torch.equal(tensors[other], tensor):
            tensors[other], tensors[name] = tensor.clone(), tensors[other].clone()
            return
    raise AssertionError("no two tensors alike")


def _nan(tensors):
    tensors["conv_stem.weight"][0] = float("nan")


def _other_config(path):
    other = make_predictor(make_model("test_byobnet", **PLAIN_HEAD))
    other.save(path.parent / "other")
    rewrite(path, "config.json", lambda data: (path.parent / "other" / "config.json").read_bytes())


def _unlist(name):
    def change(path):
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        del manifest["files"][name]
        (path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")

    return change


def _manifest(**values):
    def change(path):
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        (path / "manifest.json").write_text(json.dumps({**manifest, **values}), encoding="utf-8")

    return change


HOSTILE = {
    "newer format": (
        _set(schema={"major": 2, "minor": 1}),
        BundleVersionError,
        r"format 2\.1.*upgrade",
    ),
    "newer manifest": (
        _manifest(schema={"major": 9, "minor": 0}),
        BundleVersionError,
        r"format 9\.0",
    ),
    "format 0": (_set(schema={"major": 0, "minor": 1}), BundleCorruptError, r"format 0\.1"),
    "no format": (_drop("schema"), BundleCorruptError, "`schema` is missing"),
    "format a text": (
        _set(schema={"major": "1", "minor": 0}),
        BundleCorruptError,
        "`major` is a str",
    ),
    "critical": (
        _set(critical=["encryption"]),
        BundleVersionError,
        r"needs \['encryption'\].*upgrade",
    ),
    "classes missing": (_drop("classes"), BundleCorruptError, "`classes` is missing"),
    "classes too few": (
        _set(classes=["a", "b"]),
        BundleCorruptError,
        "2 different `classes` for 3",
    ),
    "classes twice": (_set(classes=["a", "b", "a"]), BundleCorruptError, "2 different `classes`"),
    "classes no names": (_set(classes=["a", "b", 3]), BundleCorruptError, "is no name"),
    "threshold": (_set(threshold=1.5), BundleCorruptError, "`threshold` is 1.5"),
    "multi_label": (
        _set(multi_label=0),
        BundleCorruptError,
        "`multi_label` is a int; it must be a bool",
    ),
    "metadata": (_set(metadata=[]), BundleCorruptError, "`metadata` is a list"),
    "preprocessing": (_change("preprocessing", sise=3), BundleCorruptError, "sise"),
    "preprocessing type": (_change("preprocessing", size="x"), BundleCorruptError, "size"),
    "probe of another size": (
        _change("preprocessing", size=[16, 16]),
        BundleCorruptError,
        "probe images",
    ),
    "unknown network": (_change("model", arch="resnet1000"), BundleCorruptError, "resnet1000"),
    "a network elsewhere": (_change("model", arch="hf-hub:x/y"), BundleCorruptError, "hf-hub"),
    "a path as network": (_change("model", arch="../../x"), BundleCorruptError, r"\.\./\.\./x"),
    "a source of code": (_change("model", source="builtins"), BundleCorruptError, "builtins"),
    "a file as weights": (
        _change("model", arch_kwargs={"checkpoint_path": "/tmp/x.pth"}),
        BundleCorruptError,
        "checkpoint_path",
    ),
    "the hub's weights": (
        _change("model", arch_kwargs={"pretrained": True}),
        BundleCorruptError,
        "pretrained",
    ),
    "an unknown argument": (_change("model", arch_kwargs={"qqq": 1}), BundleError, "qqq"),
    "a head too wide": (
        _change("model", head={"lin_ftrs": [64]}),
        BundleCorruptError,
        "the weights",
    ),
    "another arch": (_change("model", arch="test_byobnet"), BundleCorruptError, "the weights lack"),
    "config of another": (_other_config, BundleCorruptError, "the weights lack|does not list"),
    "layout": (_set(layout={"model.safetensors": {"": 3}}), BundleCorruptError, "`layout`"),
    "layout elsewhere": (
        _set(layout={"../x": {"": ""}}),
        BundleCorruptError,
        r"does not list \.\./x",
    ),
    "layout without a place": (
        _set(layout={"model.safetensors": {"blocks.": "0."}}),
        BundleCorruptError,
        "no place in the model",
    ),
    "layout two in one place": (
        _set(
            layout={
                "model.safetensors": {
                    "": "",
                    "classifier.weight": "classifier.bias",
                    "classifier.": "classifier.",
                }
            }
        ),
        BundleCorruptError,
        "no place in the model",
    ),
    "NaN": (_tensor(_nan), BundleCorruptError, r"conv_stem\.weight' holds NaN"),
    "shape": (
        _tensor(lambda t: t.update({"classifier.bias": torch.zeros(4)})),
        BundleCorruptError,
        r"'1\.2\.bias' is torch\.float32 \(4,\)",
    ),
    "type": (
        _tensor(lambda t: t.update({"classifier.bias": torch.zeros(3, dtype=torch.float64)})),
        BundleCorruptError,
        r"'1\.2\.bias' is torch\.float64",
    ),
    "a tensor missing": (
        _tensor(lambda t: t.pop("classifier.bias")),
        BundleCorruptError,
        r"lack '1\.2\.bias'",
    ),
    "a tensor more": (
        _tensor(lambda t: t.update({"x": torch.zeros(1)})),
        BundleCorruptError,
        r"hold '0\.model\.x'",
    ),
    "weights swapped": (_tensor(_swap_two), BundleProbeError, r"other logits.*torch .*timm"),
    "probe without logits": (
        _tensor(lambda t: t.pop("logits"), "probe.safetensors"),
        BundleCorruptError,
        r"lacks \['logits'\]",
    ),
    "probe of other classes": (
        _tensor(lambda t: t.update(logits=torch.zeros(2, 9)), "probe.safetensors"),
        BundleCorruptError,
        r"`logits` is torch\.float32 \(2, 9\)",
    ),
    "probe tolerance": (
        _tensor(lambda t: t.update(tolerance=torch.tensor(-1.0)), "probe.safetensors"),
        BundleCorruptError,
        "`tolerance`",
    ),
    "no probe": (
        _unlist("probe.safetensors"),
        BundleCorruptError,
        "does not list probe.safetensors",
    ),
    "no config": (_unlist("config.json"), BundleCorruptError, "does not list config.json"),
    "no weights": (
        _unlist("model.safetensors"),
        BundleCorruptError,
        "does not list model.safetensors",
    ),
    "swapped files": (
        lambda path: rewrite(
            path, "model.safetensors", lambda data: (path / "probe.safetensors").read_bytes()
        ),
        BundleCorruptError,
        "the weights lack",
    ),
    "json for weights": (
        lambda path: rewrite(path, "model.safetensors", lambda data: b'{"a": 1}'),
        BundleCorruptError,
        "header",
    ),
    "no section": (
        lambda path: rewrite(path, "config.json", lambda data: b'{"architecture": "resnet18"}'),
        BundleCorruptError,
        "`learnkit` is missing",
    ),
    "a key twice": (
        lambda path: rewrite(
            path, "config.json", lambda data: data.replace(b"{", b'{"learnkit":1,', 1)
        ),
        BundleCorruptError,
        "'learnkit' stands twice",
    ),
    "nested": (
        lambda path: rewrite(path, "config.json", lambda data: b'{"a":' * 90_000),
        BundleCorruptError,
        "nested deeper",
    ),
    "config too long": (
        lambda path: rewrite(path, "config.json", lambda data: data + b" " * 17_000_000),
        BundleCorruptError,
        "at most 16000000",
    ),
    "layers without end": (
        _change("model", arch="resnet18", arch_kwargs={"layers": [100_000] * 4}),
        BundleCorruptError,
        r"`arch_kwargs\['layers'\]` is \[100000, .*whole numbers go to 65,536",
    ),
    "as many layers as may be written": (
        _change("model", arch="resnet18", arch_kwargs={"layers": [65_536] * 4}),
        BundleCorruptError,
        r"`arch_kwargs`=.* make a network of more than 4\d\d\d parts of resnet18",
    ),
    "as many layers, for a size that fails": (
        _change(
            "model",
            arch="vit_tiny_patch16_224",
            arch_kwargs={"depth": 65_536},
            img_size=[16_384, 16_384],
        ),
        BundleCorruptError,
        "make a network of more than",
    ),
    "a multiplier of layers": (
        _change("model", arch="efficientnet_b0", arch_kwargs={"depth_multiplier": 1e9}),
        BundleCorruptError,
        "others to 10,000",
    ),
    "arguments without end": (
        _change("model", arch="resnet18", arch_kwargs={"layers": [[1] * 10] * 100}),
        BundleCorruptError,
        "more than 1000 values",
    ),
    "an endless text": (
        _change("model", arch="resnet18", arch_kwargs={"act_layer": "x" * 1001}),
        BundleCorruptError,
        "texts have 1000 characters at most",
    ),
    "classes without end": (_change("model", n_out=10**9), BundleCorruptError, "`n_out`=10+"),
    "images of a million pixels a side": (
        _change("preprocessing", size=[10**6, 10**6]),
        BundleCorruptError,
        r"in 1\.\.16384",
    ),
    "images of 268 million pixels": (
        _change("preprocessing", size=[16_384, 16_384]),
        BundleCorruptError,
        "50,000,000 pixels at most",
    ),
    "resizes without end": (
        _change("preprocessing", before=[{"size": [9, 9]}] * 9),
        BundleCorruptError,
        "`before` has 9 steps; at most 8",
    ),
    "a layout without end": (
        _set(layout={"model.safetensors": {str(i): "" for i in range(17)}}),
        BundleCorruptError,
        "`layout` has more than 16 places",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_strangers_bundle_is_refused_with_the_reason(copy, case):
    change, error, reason = HOSTILE[case]
    change(copy)
    with pytest.raises(error, match=reason):
        load_learner(copy)


def test_a_newer_minor_format_with_unknown_keys_is_read(copy, saved):
    edit_config(
        copy, lambda s: s.update(schema={"major": 1, "minor": 7}, colour="blue", critical=["model"])
    )
    found = load_learner(copy)
    assert torch.equal(found.logits(images()), load_learner(saved[0]).logits(images()))
    edit_config(copy, lambda s: s["preprocessing"].update(denoise=3))
    with pytest.raises(BundleVersionError, match=r"newer learnkit.*denoise"):
        load_learner(copy)


def test_other_logits_name_the_versions_of_both_sides(copy, monkeypatch):
    edit_config(copy, lambda s: s["versions"].update(torch="1.0", timm="0.1", learnkit="0.0.9"))
    edit_tensors(copy, lambda t: t["logits"].add_(0.5), "probe.safetensors")
    monkeypatch.setattr(
        reading, "versions", lambda *_: {"learnkit": "7", "torch": "8", "timm": "9"}
    )
    with pytest.raises(BundleProbeError) as caught:
        load_learner(copy)
    message = str(caught.value)
    assert "differ by 0.5" in message
    assert (
        "Exported with learnkit 0.0.9, torch 1.0, timm 0.1; here learnkit 7, torch 8, timm 9: "
        "install those versions" in message
    )


def test_other_logits_by_the_same_versions_ask_for_no_others(copy):
    edit_tensors(copy, lambda t: t["logits"].add_(0.5), "probe.safetensors")
    with pytest.raises(BundleProbeError, match="these are alike, so that it is the processor"):
        load_learner(copy)


def _sparse(path, name, entries):
    """Put a file that takes no room on the disk in the place of `name`: a header, then nothing."""
    text = json.dumps(entries).encode()
    size = 8 + len(text) + sum(entry["data_offsets"][1] for entry in entries.values())
    with open(path / name, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(size)
    manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    manifest["files"][name] = {"size": size, "sha256": "0" * 64}
    (path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


@pytest.mark.parametrize("opened", [load_learner, ImageLearner.from_bundle])
def test_weights_of_another_network_are_refused_before_they_are_read(copy, monkeypatch, opened):
    """30 GB of nothing, in a file whose header is sound."""
    n = 30 * 10**9
    entry = {"dtype": "U8", "shape": [n], "data_offsets": [0, n]}
    _sparse(copy, "model.safetensors", {"conv_stem.weight": entry})
    monkeypatch.setattr(read_folder, "_free_memory", lambda: None)
    seen, read = [], read_folder._read_listed
    monkeypatch.setattr(
        read_folder, "_read_listed", lambda *args: seen.append(args[1]) or read(*args)
    )
    with pytest.raises(BundleCorruptError, match="the weights lack"):
        opened(copy)
    assert {*seen} == {"config.json"}
    monkeypatch.setattr(read_folder, "_free_memory", lambda: 10**9)
    with pytest.raises(BundleError, match="the weights lack"):
        opened(copy)


def test_arguments_of_an_architecture_that_fit_the_weights_are_taken(tmp_path):
    model = make_model("test_resnet", **PLAIN_HEAD, arch_kwargs={"layers": [2, 1, 1, 1]})
    make_predictor(model).save(tmp_path / "model")
    assert load_learner(tmp_path / "model").model.spec.arch_kwargs == {"layers": [2, 1, 1, 1]}


def test_networks_that_cannot_be_built_without_memory_are_bounded_too(monkeypatch):
    """torchvision's RegNet computes its widths with tensors while it is built."""
    spec = ModelSpec("torchvision", "regnet_y_400mf", 3, 3, arch_kwargs={"stem_width": 16})
    plain = ModelSpec("torchvision", "regnet_y_400mf", 3, 3)
    state = build_model(spec).state_dict()
    assert rebuild.skeleton(spec, state) is None
    assert rebuild.rebuild(spec, state).spec == spec
    with pytest.raises(BundleCorruptError, match=r"the weight .* is"):
        rebuild.rebuild(plain, state)
    monkeypatch.setattr(rebuild, "_MOST_VALUES", 10_000_000)
    with pytest.raises(BundleCorruptError, match="a network of more than 10,000,000 values"):
        rebuild.rebuild(dataclasses.replace(spec, arch_kwargs={"stem_width": 65_536}), state)


def test_a_description_that_does_not_fit_costs_no_memory(copy, monkeypatch):
    built = []
    monkeypatch.setattr(torch.nn.Module, "to_empty", lambda *a, **k: built.append(a))
    edit_config(copy, lambda s: s["model"].update(head={"lin_ftrs": [65_536, 65_536]}))  # 17 GB
    with pytest.raises(BundleCorruptError, match="the weights"):
        load_learner(copy)
    assert built == []


def test_a_pickle_is_refused_unless_trusted(tmp_path, monkeypatch):
    (tmp_path / "export.pkl").write_bytes(b"\x80\x02ceverything\nbad\n.")
    for path in (tmp_path / "export.pkl", tmp_path):
        with pytest.raises(
            BundleError, match=r"runs whatever code.*learn\.export.*allow_pickle=True"
        ):
            load_learner(path)
    with pytest.raises(BundleCorruptError, match="not the pinned file"):
        load_learner(tmp_path / "export.pkl", sha256="0" * 64, allow_pickle=True)


def test_a_trusted_fastai_export_gives_fastais_learner(tmp_path):
    from fastai.data.core import Datasets
    from fastai.learner import Learner
    from fastai.torch_core import tensor

    dls = Datasets([[0.1], [0.2], [0.3]], [[tensor]]).dataloaders(bs=1, device="cpu")
    learn = Learner(dls, torch.nn.Linear(1, 1), loss_func=torch.nn.MSELoss(), path=tmp_path)
    learn.export("export.pkl")
    digest = hashlib.sha256((tmp_path / "export.pkl").read_bytes()).hexdigest()
    with pytest.warns(UserWarning, match="pickle"):
        found = load_learner(tmp_path, allow_pickle=True, sha256=digest)
    assert isinstance(found, Learner)
    assert torch.equal(found.model.weight, learn.model.weight)


def test_the_bytes_of_a_pinned_pickle_are_those_that_run(tmp_path, monkeypatch):
    file, there = tmp_path / "export.pkl", tmp_path / "there"
    torch.save("what was pinned", file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    read = Path.read_bytes

    def swapped_after_reading(path):
        data = read(path)
        torch.save("another file", there)
        there.replace(path)
        return data

    monkeypatch.setattr(Path, "read_bytes", swapped_after_reading)
    monkeypatch.setattr("fastai.learner.load_learner", lambda f, cpu: torch.load(f))
    assert load_learner(file, allow_pickle=True, sha256=digest) == "what was pinned"


def test_safetensors_alone_reads_the_weights(saved):
    tensors = safetensors.torch.load_file(saved[0] / "model.safetensors")
    assert tensors["classifier.weight"].shape == (3, 256)
    assert IMAGENET["mean"] == tuple(
        json.loads((saved[0] / "config.json").read_text(encoding="utf-8"))["pretrained_cfg"]["mean"]
    )


class TestClassIds:
    """Ids of classes are an optional field: without any a bundle is as it was before there were."""

    def test_travel_and_are_not_written_where_they_are_places(self, tmp_path):
        make_predictor(class_ids=[40, 2, 7]).save(tmp_path / "m")
        found = load_learner(tmp_path / "m")
        assert found.class_ids == (40, 2, 7)
        told = found.predict(images()[0]).to_halcon()
        names = told["classification_class_names"]
        ids = [found.class_ids[found.classes.index(name)] for name in names]
        assert list(told["classification_class_ids"]) == ids
        make_predictor(class_ids=[0, 1, 2]).save(tmp_path / "n")
        assert "class_ids" not in section(tmp_path / "n")
        assert load_learner(tmp_path / "n").class_ids == (0, 1, 2)

    @pytest.mark.parametrize("ids", ["40", [1, 1], [-1], [0, 1, 2, 3], [1.5], None])
    def test_that_no_classes_have_are_refused(self, copy, ids):
        edit_config(copy, lambda s: s.update(class_ids=ids))
        with pytest.raises(BundleCorruptError, match="class_ids"):
            load_learner(copy)

    @pytest.mark.parametrize("ids", [[1, 1], [-1], ["a"], [True, 2]])
    def test_that_are_none_are_refused_by_a_predictor(self, ids):
        with pytest.raises(PredictionError, match=r"`class_ids`=.*whole number"):
            make_predictor(class_ids=ids)
