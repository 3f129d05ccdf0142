"""What becomes of the variants in a bundle when one of the models in it is saved again."""

import copy
import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from deploy_helpers import (
    edit_config,
    labelled,
    make_continual,
    make_predictor,
    rewrite,
    without_timing,
)

from learnkit.bundle.siblings import siblings_in, with_siblings
from learnkit.bundle.write import base_files
from learnkit.data.labelled_images import Labelled
from learnkit.deploy.predictor import load_learner
from learnkit.deploy.runtime_predictor import load_runtime
from learnkit.errors import BundleCorruptError, BundleWriteError
from learnkit.optimize.gates import Gates

# a bundle of an earlier format derives its classifier anew
pytestmark = pytest.mark.filterwarnings("ignore:the network gives other logits here than")

COUNTS = {"ok": 12, "bad": 12}
LEARNED = Labelled(*labelled(COUNTS))
IMAGES = labelled({"ok": 3, "bad": 3}, seed=5)[0]
HALF, SAME = "torch-bfloat16", "torch-float32"
GOLDEN = Path(__file__).parent / "golden" / "v1.2-variants"
QUIET = {"progress": False, "threads": 1, "gates": Gates(agreement=None, speed=None)}


@pytest.fixture(scope="module", autouse=True)
def _no_waiting():
    with without_timing():
        yield


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A bundle with one variant, not to be changed."""
    path = tmp_path_factory.mktemp("one") / "model"
    source = make_continual(COUNTS)
    half, _ = source.optimize("bfloat16", LEARNED, backend="torch", learned=LEARNED, **QUIET)
    half.save(path)
    return path


@pytest.fixture(scope="module")
def written(alone, tmp_path_factory):
    """The same with a further one, not to be changed."""
    path = tmp_path_factory.mktemp("two") / "model"
    load(alone, "float32").optimize("float32", backend="torch", **QUIET)[0].save(path)
    return path


@pytest.fixture
def bundle(written, tmp_path):
    return shutil.copytree(written, tmp_path / "model")


def load(path, variant=None):
    return load_learner(path, variant=variant, threads=None if variant == "float32" else 1)


def variant_files(path):
    return {file.name: file.read_bytes() for file in path.glob("variants/*")}


def probs(predictor):
    return torch.stack([found.probs for found in predictor.predict_batch(IMAGES)])


def section(path):
    return json.loads((path / "config.json").read_text(encoding="utf-8"))["learnkit"]


def learn_more(predictor):
    predictor.extend(*labelled({"new": 7, "ok": 2}, seed=8), progress=False)


def said(recwarn):
    return [str(warning.message) for warning in recwarn]


def test_variants_travel_byte_for_byte_with_the_model_they_were_made_from(
    written, tmp_path, recwarn
):
    plain = load(written, "float32")
    plain.metadata["line"] = 7
    digest = plain.save(tmp_path / "model", card={"name": "parts"})
    assert said(recwarn) == []
    assert variant_files(tmp_path / "model") == variant_files(written)
    again = load(tmp_path / "model")
    assert (again.digest, again.metadata["line"]) == (digest, 7)
    assert "default_variant" not in section(tmp_path / "model")
    for name in (HALF, SAME):
        assert not load(tmp_path / "model", name).has_learned
    again.save(tmp_path / "model")  # over itself
    assert variant_files(tmp_path / "model") == variant_files(written)
    again.extend(*labelled({"new": 5}, seed=2), progress=False)
    again.undo()
    again.save(tmp_path / "third")
    assert variant_files(tmp_path / "third") == variant_files(written)
    assert said(recwarn) == []


def test_the_card_names_the_variants_of_the_bundle_it_is_in(written, tmp_path):
    load(written, "float32").save(tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    assert card.count("\n## Variants\n") == 1
    assert "| float32 | 2 | 24 |" in card
    for name in (HALF, SAME):
        assert f"| {name} | 2 | 24 |" in card
        assert card.count(f"\n## Optimised: {name}\n") == 1


def test_variants_of_a_model_that_has_changed_are_left_out_with_one_warning(bundle, recwarn):
    plain = load(bundle, "float32")
    learn_more(plain)
    with pytest.raises(BundleWriteError):
        plain.save(bundle / "config.json" / "below")
    assert said(recwarn) == []  # nothing was left out of anything
    plain.save(bundle)
    (message,) = said(recwarn)
    assert f"left out: {HALF}, {SAME}. It has changed" in message
    assert "again with `optimize`" in message
    assert recwarn[0].filename == __file__
    assert not (bundle / "variants").exists()
    assert "## Variants" not in (bundle / "README.md").read_text(encoding="utf-8")
    plain.save(bundle)  # there is nothing to leave out any more
    again = load(bundle)
    assert torch.equal(probs(again), probs(plain))
    assert len(recwarn) == 1


CHANGES = {
    "more": lambda p: p.extend(*labelled({"ok": 2}, seed=8), progress=False),
    "forget": lambda p: p.forget("bad"),
    "rename": lambda p: p.set(class_names={"bad": "worse"}),
    "unusual": lambda p: p.set(ood_threshold=3.5),
    "weights": lambda p: next(p.model[0].parameters()).data.mul_(1.01),
}


def test_variants_depend_on_all_the_model_is(written):
    plain = load(written, "float32")
    for name, change in CHANGES.items():
        changed = copy.deepcopy(plain)
        change(changed)
        assert base_files(changed.record).stale == (HALF, SAME), name
    assert base_files(plain.record).stale == ()
    several = make_predictor(multi_label=True, threshold=0.3)
    files = base_files(several.record).files
    beside = siblings_in(written, {**files, f"variants/{HALF}.json": b""})
    several.set(threshold=0.4)
    assert with_siblings(base_files(several.record).files, beside).stale == (HALF,)
    several.set(threshold=0.3)
    assert with_siblings(base_files(several.record).files, beside).stale == ()


def test_variants_can_be_left_behind_on_purpose(written, tmp_path, recwarn):
    load(written, "float32").save(tmp_path / "plain", variants=False)
    assert not (tmp_path / "plain" / "variants").exists()
    load(written, HALF).save(tmp_path / "half", variants=False)
    assert {name.split(".")[0] for name in variant_files(tmp_path / "half")} == {HALF}
    assert said(recwarn) == []


def test_a_float32_model_leaves_variants_on_disk_and_takes_only_what_was_there(bundle, tmp_path):
    plain = load(bundle, "float32")
    rewrite(bundle, f"variants/{SAME}.report.json", lambda data: data + b" ")
    with pytest.warns(UserWarning, match="left out: .*report.json is another one"):
        plain.save(tmp_path / "one")
    plain = load(bundle, "float32")
    (bundle / "variants" / f"{SAME}.state.safetensors").write_bytes(b"damaged")
    load(bundle, "float32")
    with pytest.warns(UserWarning, match=f"left out: {HALF}, {SAME}. They are not where"):
        plain.save(tmp_path / "two")
    assert torch.equal(probs(load(tmp_path / "two")), probs(plain))
    shutil.rmtree(bundle / "variants")
    load(bundle, "float32")


def test_a_variant_that_is_no_sound_one_does_not_travel(bundle, tmp_path):
    rewrite(bundle, f"variants/{HALF}.report.json", lambda data: b'{"variant": 1}')
    with pytest.raises(BundleCorruptError, match=r"save\(path, variants=False\)"):
        load(bundle, "float32").save(tmp_path / "one")
    load(bundle, "float32").save(tmp_path / "one", variants=False)


def test_a_further_variant_joins_those_there_are(alone, written):
    before, found = variant_files(alone), variant_files(written)
    assert {name.split(".")[0] for name in found} == {HALF, SAME}
    assert before == {name: found[name] for name in before}
    assert load(written).variant == SAME
    assert torch.equal(probs(load(written, HALF)), probs(load(alone)))


def test_of_a_model_that_has_changed_only_what_is_not_made_anew_is_missed(bundle):
    plain = load(bundle, "float32")
    learn_more(plain)
    faster, _ = plain.optimize("bfloat16", backend="torch", **QUIET)
    with pytest.warns(UserWarning, match=f"left out: {SAME}. It has changed"):
        faster.save(bundle)
    assert load(bundle).classes == load(bundle, "float32").classes == (*COUNTS, "new")


def test_what_a_variant_learned_is_its_own_and_said_wherever_it_is_not(bundle, tmp_path):
    half = load(bundle, HALF)
    learn_more(half)
    half.save(bundle)
    assert load(bundle).classes == (*COUNTS, "new")
    match = f"{HALF!r} beside it has learned more"
    for name in ("float32", SAME):
        with pytest.warns(UserWarning, match=f"{name!r} in .*{match}") as caught:
            behind = load(bundle, name)
        assert tuple(behind.classes) == tuple(COUNTS)
        assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load(bundle).has_learned
    assert "| 3 | 33 |" in (bundle / "README.md").read_text(encoding="utf-8")
    with pytest.warns(UserWarning, match=match):
        same = load(bundle, SAME)
    assert not same.has_learned
    same.save(tmp_path / "same")
    assert section(tmp_path / "same")["critical"] == ["continual"]
    assert load(tmp_path / "same", HALF).has_learned
    with pytest.warns(UserWarning, match=match):
        plain = load(bundle, "float32")
    plain.save(tmp_path / "plain")
    with pytest.warns(UserWarning, match=f"'float32' in .*{match}"):
        load(tmp_path / "plain")
    plain.forget("bad")
    with pytest.warns(UserWarning, match=f"does not bring back what {HALF} had learned"):
        plain.save(tmp_path / "plain")


def test_making_a_variant_anew_that_had_learned_is_no_silent_loss(bundle):
    half = load(bundle, HALF)
    half.set(class_names={"bad": "worse"})
    half.save(bundle)
    with pytest.warns(UserWarning, match="other names"):
        plain = load(bundle, "float32")
    anew, _ = plain.optimize("bfloat16", backend="torch", **QUIET)
    with pytest.warns(UserWarning, match=f"{HALF} takes the place of a variant .* had learned"):
        anew.save(bundle)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load(bundle, "float32").classes == load(bundle).classes == tuple(COUNTS)


def test_without_torch_it_is_said_too(tmp_path):
    path = shutil.copytree(GOLDEN, tmp_path / "model")
    edit_config(path, lambda section: section.update(learned_since=[HALF]))
    with pytest.warns(UserWarning, match=f"'onnxruntime-float16' in .*{HALF!r} beside it has"):
        load_runtime(path, threads=1)
    edit_config(path, lambda section: section.update(learned_since="x"))
    with pytest.raises(BundleCorruptError, match="`learned_since` is 'x'"):
        load_runtime(path, threads=1)


def test_a_bundle_from_before_variants_travelled_is_read_as_it_was_meant(tmp_path):
    with pytest.warns(UserWarning, match="'onnxruntime-float16' beside it has learned more"):
        plain = load(GOLDEN, "float32")
    plain.save(tmp_path / "model")
    assert variant_files(tmp_path / "model") == variant_files(GOLDEN)
    assert section(tmp_path / "model")["learned_since"] == ["onnxruntime-float16"]
