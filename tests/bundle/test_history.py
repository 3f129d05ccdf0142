"""Former states, snapshots and the log of changes: they travel in a bundle, and are not trusted."""

import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
from deploy_helpers import labelled, make_continual, make_predictor, rewrite
from safetensors.torch import load, save

from learnkit.backends.conversion import Converted
from learnkit.backends.torch_session import TorchSession
from learnkit.bundle.audit import HISTORY
from learnkit.bundle.write import base_files
from learnkit.continual.change_report import AuditLog
from learnkit.continual.knowledge import History, Knowledge
from learnkit.continual.serialization import FORMAT
from learnkit.deploy.predictor import Predictor, load_learner
from learnkit.errors import BundleCorruptError, BundleVersionError, ContinualStateError, ExportError

QUIET = {"progress": False, "n_workers": 0}


def learned():
    """A predictor that has changed four times since a snapshot of its first state."""
    predictor = make_continual({"ok": 6, "bad": 5})
    predictor.snapshot("as delivered")
    predictor.extend(*labelled({"new": 4}, seed=1), **QUIET)
    predictor.calibrate(*labelled({"ok": 3, "new": 2}, seed=2), **QUIET)
    predictor.forget("bad")
    predictor.rename({"new": "dent"})
    return predictor


def made_before():
    """A predictor begun by init_continual, of which earlier versions kept the beginning, too."""
    predictor = make_continual({"ok": 6, "bad": 5})
    head = predictor.continual
    first = replace(predictor.audit[0], what="init_continual")
    states = head.knowledge, Knowledge.empty(head.settings, head.classes)
    head.history = History(states, audit=AuditLog((first,)))
    return predictor


def digests(predictor):
    return [state.digest for state in predictor.continual.history.states]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path, predictor = tmp_path_factory.mktemp("history") / "m", learned()
    predictor.save(path)
    return path, predictor


class TestRoundTrip:
    def test_changes_are_taken_back_step_by_step_after_loading(self, saved):
        path, predictor = saved
        again = load_learner(path)
        assert digests(again) == digests(predictor)
        for former in digests(predictor)[1:]:
            again.undo()
            assert again.continual.knowledge.digest == former
        assert again.classes == ("ok", "bad", "new")
        with pytest.raises(ContinualStateError, match=r"no change to undo.*history=0"):
            again.undo()

    def test_scores_after_an_undo_are_those_of_before(self, tmp_path):
        predictor = make_continual({"ok": 6, "bad": 5})
        image = labelled({"ok": 1}, seed=7)[0][0]
        before = predictor.predict(image)
        predictor.extend(*labelled({"new": 4}, seed=1), **QUIET)
        predictor.save(tmp_path / "m")
        again = load_learner(tmp_path / "m")
        again.undo()
        after = again.predict(image)
        assert torch.equal(before.probs, after.probs)
        assert before.ood_score == after.ood_score

    def test_snapshots_are_restored_and_that_can_be_undone(self, saved):
        path, predictor = saved
        again, first = load_learner(path), predictor.audit[0].digest
        report = again.restore("as delivered")
        assert (report.what, again.classes) == ("restore", ("ok", "bad"))
        assert again.continual.knowledge.digest == first
        again.undo()
        assert again.continual.knowledge.digest == digests(predictor)[0]

    def test_the_log_travels_and_goes_on(self, saved):
        path, predictor = saved
        again = load_learner(path)
        assert again.audit == predictor.audit
        again.undo()
        assert [entry.what for entry in again.audit] == [
            *("extend", "extend", "calibrate", "forget", "rename", "undo"),
        ]
        assert again.audit[-1].digest == again.audit[-3].digest

    def test_without_history_nothing_of_former_states_is_in_the_bundle(self, tmp_path):
        predictor = make_continual({"ok": 6, "bad": 5})
        predictor.forget("bad")
        predictor.rename({"bad": "gone", "ok": "good"})
        predictor.save(tmp_path / "m", history=0)
        held = load((tmp_path / "m" / HISTORY).read_bytes())
        assert list(held) == ["facts"]
        again = load_learner(tmp_path / "m")
        assert len(again.continual.history.states) == 1
        assert again.audit == predictor.audit

    def test_what_was_deployed_empty_and_taught_is_empty_again(self, tmp_path):
        predictor = make_continual()
        predictor.snapshot("empty")
        predictor.extend(*labelled({"ok": 6}), **QUIET)
        predictor.restore("empty")
        predictor.extend(*labelled({"bad": 5}), **QUIET)
        predictor.save(tmp_path / "m")
        again = load_learner(tmp_path / "m")
        assert digests(again) == digests(predictor)
        for known in ({}, {"ok": 6}, {}):
            for one in (predictor, again):
                one.undo()
                assert one.continual.n_images == known

    @pytest.mark.parametrize("verb", [None, "forget", "undo"])
    def test_the_beginning_in_a_file_of_an_earlier_version_is_none_to_go_back_to(
        self, tmp_path, verb
    ):
        predictor = made_before()
        if verb == "forget":
            predictor.forget("bad")
        elif verb:
            predictor.rename({"bad": "dent"})
            predictor.undo()
        predictor.save(tmp_path / "m")
        again = load_learner(tmp_path / "m")
        assert digests(again) == digests(predictor)[:-1]
        if verb == "forget":
            assert again.undo().images == {"bad": 5}
        with pytest.raises(ContinualStateError, match="no change to undo"):
            again.undo()
        assert again.continual.n_images == {"ok": 6, "bad": 5}

    def test_what_was_emptied_since_the_beginning_is_gone_back_to(self, tmp_path):
        predictor = made_before()
        predictor.save(tmp_path / "m")
        again = load_learner(tmp_path / "m")
        again.forget(["ok", "bad"])
        again.extend(*labelled({"new": 4}, seed=1), **QUIET)
        again.save(tmp_path / "n")
        assert digests(load_learner(tmp_path / "n")) == digests(again)

    def test_fewer_states_go_along_if_asked_for(self, tmp_path):
        predictor = learned()
        predictor.save(tmp_path / "m", history=1)
        assert digests(load_learner(tmp_path / "m")) == digests(predictor)[:2]

    @pytest.mark.parametrize("history", [-1, 4, 1.0, True, None])
    def test_another_number_of_states_is_refused(self, tmp_path, history):
        with pytest.raises(ExportError, match=r"`history`=.* 0 to 3"):
            make_continual({"ok": 3}).save(tmp_path / "m", history=history)
        assert not (tmp_path / "m").exists()

    def test_a_model_that_changed_nothing_but_settings_keeps_its_numbers_once(self, tmp_path):
        predictor = make_continual({"ok": 6, "bad": 5})
        predictor.save(tmp_path / "one")
        for value in (1.0, 2.0, 3.0):
            predictor.set(ood_threshold=value)
        predictor.save(tmp_path / "many")
        sizes = [(tmp_path / name / HISTORY).stat().st_size for name in ("one", "many")]
        assert sizes[1] - sizes[0] < 10_000
        assert digests(load_learner(tmp_path / "many")) == digests(predictor)

    def test_a_former_state_takes_half_of_what_the_state_takes(self, saved):
        path, _ = saved
        sizes = {file.name: file.stat().st_size for file in path.iterdir()}
        n_states = 2  # of the three before and the snapshot, two have sums of their own
        assert sizes[HISTORY] < n_states * 0.6 * sizes["state.safetensors"] + 10_000


class TestLog:
    """What the card of a bundle says of the changes of its model."""

    def test_is_in_the_card_with_the_last_changes_first(self, saved):
        path, predictor = saved
        _, _, card = (path / "README.md").read_text("utf-8").partition("## Last changes\n")
        rows = [line for line in card.partition("##")[0].splitlines() if line.startswith("| ")][2:]
        assert [row.split(" | ")[1] for row in rows] == [
            *("rename", "forget", "calibrate", "extend", "extend"),
        ]
        digests = [entry.digest[:12] for entry in predictor.audit]
        assert [row.split("`")[1] for row in rows] == digests[::-1]

    def test_is_in_the_card_for_a_variant_that_has_learned_since(self, tmp_path):
        predictor = as_variant(make_continual({"ok": 6, "bad": 5}))
        predictor.save(tmp_path / "same")
        predictor.rename({"bad": "notch"})
        predictor.save(tmp_path / "more")
        title = "## Last changes of torch-float32"
        same, more = (
            (tmp_path / name / "README.md").read_text("utf-8") for name in ("same", "more")
        )
        assert title not in same
        assert predictor.audit[-1].digest[:12] in more.partition(title)[2]

    def test_of_a_model_that_keeps_none_is_not_in_the_card(self, tmp_path):
        make_predictor().save(tmp_path / "m")
        assert "Last changes" not in (tmp_path / "m" / "README.md").read_text("utf-8")


class TestVariant:
    def test_takes_changes_back_after_loading_too(self, tmp_path):
        predictor = as_variant(learned())
        predictor.save(tmp_path / "m")
        again = load_learner(tmp_path / "m")
        assert again.variant == "torch-float32"
        assert digests(again) == digests(predictor)
        again.undo()
        assert again.classes == ("ok", "bad", "new")

    @pytest.mark.filterwarnings("ignore:'float32' in .* is the model as it was")
    def test_goes_along_with_as_many_former_states_as_the_float32_model(self, tmp_path):
        predictor = as_variant(learned())
        predictor.save(tmp_path / "m")
        load_learner(tmp_path / "m", variant="float32").save(tmp_path / "n", history=1)
        for variant in ("float32", "torch-float32"):
            again = load_learner(tmp_path / "n", variant=variant)
            assert digests(again) == digests(predictor)[:2]
        predictor.save(tmp_path / "o", history=1)
        for variant in ("float32", "torch-float32"):
            assert len(load_learner(tmp_path / "o", variant=variant).continual.history.states) == 2

    def test_keeps_the_ids_of_its_classes(self, tmp_path):
        predictor = as_variant(learned())
        predictor.record = predictor.record.replace(class_ids=(9, 4))
        predictor.save(tmp_path / "m")
        again = load_learner(tmp_path / "m")
        assert (again.classes, again.class_ids) == (("ok", "bad", "dent"), (9, 4, 10))
        again.extend(*labelled({"more": 3}, seed=4), **QUIET)
        assert again.class_ids == (9, 4, 10, 11)

    def test_in_a_newer_state_is_told_from_a_damaged_one(self, tmp_path):
        as_variant(learned()).save(tmp_path / "m")
        newer = lambda data: data.replace(b'"format": %d' % FORMAT, b'"format": 99')
        rewrite(tmp_path / "m", "variants/torch-float32.json", newer)
        with pytest.raises(BundleVersionError, match=r"torch-float32.state.*format 99.*newer"):
            load_learner(tmp_path / "m")

    @pytest.mark.filterwarnings("ignore:'float32' in .* is the model as it was")
    def test_leaves_no_former_state_of_the_float32_model_beside_it(self, tmp_path):
        predictor = as_variant(learned())
        predictor.save(tmp_path / "m", history=0)
        for variant in ("float32", "torch-float32"):
            again = load_learner(tmp_path / "m", variant=variant)
            assert len(again.continual.history.states) == 1
            assert again.audit == predictor.audit
            assert list(again.continual.history.snapshots) == ["as delivered"]


def as_variant(predictor):
    """It over a converted network, as `optimize` gives it."""
    converted = Converted("torch", "float32", {}, {}, predictor.model, continual=True)
    network = TorchSession(predictor.model, "float32", predictor.preprocessing, continual=True)
    return Predictor.of(
        predictor.record.replace(
            network=network,
            names=predictor.classes,
            variant=converted.name,
            converted=converted,
            measured=predictor.continual.statistics,
            siblings=base_files(predictor.record),
        )
    )


def edited(data, change):
    tensors = load(data)
    facts = json.loads(bytes(tensors.pop("facts").tolist()))
    change(facts, tensors)
    text = bytearray(json.dumps(facts).encode())
    return save({"facts": torch.frombuffer(text, dtype=torch.uint8), **tensors})


def first_own(facts, name="sums"):
    """The first state that holds this tensor itself."""
    return next(i for i, one in enumerate(facts["states"], 1) if one["at"][name] == i)


DAMAGES = {
    "another format": lambda facts, _: facts.update(format=0),
    "a key more": lambda facts, _: facts.update(code="print()"),
    "no audit": lambda facts, _: facts.pop("audit"),
    "a change too many": lambda facts, _: facts.update(audit=facts["audit"][:1] * 1001),
    "a time that is none": lambda facts, _: facts["audit"][0].update(when="yesterday"),
    "a verb that is none": lambda facts, _: facts["audit"][0].update(what="\x1b[2J"),
    "a hash that is none": lambda facts, _: facts["audit"][0].update(digest="0"),
    "numbers out of order": lambda facts, _: facts["audit"].reverse(),
    "a name twice": lambda facts, _: facts.update(names=facts["names"] * 2),
    "a name that hides": lambda facts, _: facts.update(names=["\x07"]),
    "more names than states": lambda facts, _: facts.update(states=[]),
    "a state too many": lambda facts, _: facts["states"].extend(facts["states"][-1:] * 2),
    "a tensor of a later state": lambda facts, _: facts["states"][0]["at"].update(sums=3),
    "a tensor of no state": lambda facts, _: facts["states"][0]["at"].update(sums=-1),
    "a tensor that is missing": lambda facts, t: t.pop(f"{first_own(facts)}.sums"),
    "a tensor nobody names": lambda facts, t: t.update({"9.sums": torch.zeros(1)}),
    "a triangle that is none": lambda facts, t: _replace(t, first_own(facts, "gram"), "gram", 1),
    "sums of other widths": lambda facts, t: _replace(t, first_own(facts), "sums", (3, 2)),
    "another network": lambda facts, _: facts["states"][0]["config"]["settings"].update(root=True),
    "other settings": lambda facts, _: facts["states"][0]["config"].update(settings=[]),
    "a state's class twice": lambda facts, _: _twice(facts["states"][0]["config"]),
}


def _replace(tensors, number, name, shape):
    old = tensors[f"{number}.{name}"]
    tensors[f"{number}.{name}"] = torch.zeros(
        old.numel() + shape if isinstance(shape, int) else shape, dtype=old.dtype
    )


def _twice(config):
    config["class_names"][1] = config["class_names"][0]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_history_is_refused_at_the_door(damage, saved, tmp_path):
    path = tmp_path / "m"
    shutil.copytree(saved[0], path)
    rewrite(path, HISTORY, lambda data: edited(data, DAMAGES[damage]))
    with pytest.raises(BundleCorruptError, match=re.escape(HISTORY)):
        load_learner(path)


def test_a_history_that_is_written_again_is_the_same(saved, tmp_path):
    path, _ = saved
    load_learner(path).save(tmp_path / "again")
    assert (tmp_path / "again" / HISTORY).read_bytes() == (path / HISTORY).read_bytes()


NEWER = {
    "history": lambda facts: facts.update(format=2, colour="red"),
    "a state of it": lambda facts: facts["states"][0]["config"].update(format=99, colour="red"),
}


@pytest.mark.parametrize("what", NEWER)
def test_a_newer_history_is_told_from_a_damaged_one(what, saved, tmp_path):
    path = tmp_path / "m"
    shutil.copytree(saved[0], path)
    rewrite(path, HISTORY, lambda data: edited(data, lambda facts, _: NEWER[what](facts)))
    with pytest.raises(BundleVersionError, match=rf"{re.escape(HISTORY)}.*format .*newer|upgrade"):
        load_learner(path)
