"""Snapshots and the log of changes of a classifier."""

import re
import time
from datetime import datetime, timezone

import pytest
import torch

from learnkit.continual.change_report import LOGGED, AuditLog, ChangeReport
from learnkit.continual.classifier import ContinualClassifier
from learnkit.continual.knowledge import MAX_SNAPSHOTS
from learnkit.errors import ContinualStateError, DataError, StatisticsError

D = 6


def head_of(*changes):
    head = ContinualClassifier(D, memory=8)
    for features, labels in changes:
        head.extend(features, labels)
    return head


def images(names, n=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n * len(names), D, generator=generator), [x for x in names for _ in range(n)]


class TestLog:
    def test_has_a_line_for_every_change_that_was_made_and_none_for_others(self):
        head = head_of(images("ab"), images("c", seed=1))
        with pytest.raises(DataError):
            head.forget("nobody")
        head.validate(*images("ab", 2, seed=2))
        head.forget("b")
        head.undo()
        head.set_threshold(1.0)
        said = [(e.number, e.what, e.n_images, e.n_validation, e.n_classes) for e in head.audit]
        assert said == [
            (1, "extend", 8, 0, 2),
            (2, "extend", 4, 0, 3),
            (3, "calibrate", 0, 4, 3),
            (4, "forget", -4, -2, 2),
            (5, "undo", 4, 2, 3),
            (6, "set_threshold", 0, 0, 3),
        ]
        assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", e.when) for e in head.audit)

    def test_digests_tell_states_apart_and_come_back_with_them(self):
        head = head_of(images("ab"), images("c", seed=1))
        head.set_threshold(1.0)
        head.rename({"a": "z"})
        digests = [entry.digest for entry in head.audit]
        assert len({*digests}) == 4
        head.undo()
        head.undo()
        assert [entry.digest for entry in head.audit][-2:] == [digests[2], digests[1]]

    def test_digests_do_not_depend_on_the_order_of_classes_and_images(self):
        features, labels = images("abc")
        whole = head_of((features, labels))
        parts = head_of(*((features[i::3].flip(0), labels[i::3][::-1]) for i in (2, 0, 1)))
        assert parts.classes != whole.classes
        assert parts.audit[-1].digest == whole.audit[-1].digest

    def test_digests_tell_validation_images_apart_and_not_the_order_of_classes(self):
        heads = [head_of(images("ab")), head_of(images("ba"))]
        features, labels = images("ab")
        heads[1] = head_of((features.flip(0), labels[::-1]))
        assert [head.classes for head in heads] == [("a", "b"), ("b", "a")]
        for head in heads:
            before = head.knowledge.digest
            head.validate(*images("aab", 1, seed=2))
            assert head.knowledge.digest != before
        assert heads[0].knowledge.digest == heads[1].knowledge.digest
        heads[1].validate(*images("b", 1, seed=3))
        assert heads[0].knowledge.digest != heads[1].knowledge.digest

    @pytest.mark.skipif(not hasattr(time, "tzset"), reason="the zone cannot be set here")
    def test_times_are_those_of_greenwich_wherever_it_is_written(self, monkeypatch):
        monkeypatch.setenv("TZ", "Pacific/Kiritimati")  # 14 hours ahead
        time.tzset()
        try:
            when = head_of(images("ab")).audit[0].when
        finally:
            monkeypatch.undo()
            time.tzset()
        told = datetime.strptime(when, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc)
        assert abs((datetime.now(timezone.utc) - told).total_seconds()) < 3600

    def test_keeps_the_last_thousand(self):
        log = AuditLog()
        for _ in range(LOGGED + 3):
            log = log.with_change(ChangeReport("rename"), "0" * 64)
        assert (len(log), log[0].number, log[-1].number) == (1000, 4, 1003)

    def test_is_shown_as_a_table_of_the_last_changes(self):
        head = head_of(*(images("ab", seed=seed) for seed in range(12)))
        text = head.audit._repr_html_()
        assert "2 earlier changes" in text
        assert head.audit[-1].digest[:12] in text
        assert head.audit[0].digest[:12] not in text
        assert str(head.audit).splitlines()[0].endswith(f"sha256 {head.audit[0].digest[:12]}")
        assert str(AuditLog()) == "no change"


class TestChange:
    """One change is one step for `undo` and one line of the log; none is no step."""

    def test_of_nothing_is_no_step(self):
        fresh = images("ab", 2, seed=2)
        head = head_of(images("ab"))
        head.validate(*fresh)
        head.set_threshold(1.0)
        head.snapshot("now")
        before, n = head.history, len(head.audit)
        for nothing in (
            lambda: head.rename({}),
            lambda: head.rename({"a": "a"}),
            lambda: head.extend(*images("ab")),
            lambda: head.extend(*images("ab"), validation=fresh),
            lambda: head.validate(*fresh),
            lambda: head.set_threshold(1.0),
            lambda: head.restore("now"),
        ):
            report = nothing()
            assert head.history is before
            assert (report.images, report.n_validation) == ({}, 0)
        assert any("8 of 8 images" in note for note in head.extend(*images("ab")).notes)
        assert head.undo().what == "undo"
        assert [entry.what for entry in head.audit][n:] == ["undo"]
        # what is counted twice, or has a place alone, is a change
        head.extend(*images("ab"), again=True)
        head.extend(*images("ab"), class_names=["a", "b", "later"])
        assert len(head.audit) == n + 3

    def test_of_several_classes_is_one_step(self):
        head, names = head_of(images("abcdef")), ["a", "b", "c", "d"]
        report = head.forget([*names, "a"])
        assert report.images == dict.fromkeys(names, -4)
        assert [entry.what for entry in head.audit] == ["extend", "forget"]
        one_by_one = head_of(images("abcdef"))
        for name in names:
            one_by_one.forget(name)
        assert head.knowledge.digest == one_by_one.knowledge.digest
        head.undo()
        assert head.n_images == dict.fromkeys("abcdef", 4)

    def test_of_several_classes_is_made_whole_or_not_at_all(self):
        head = head_of(images("abc"))
        before = head.history
        with pytest.raises(DataError, match=r"^there is no class 'nobody'"):
            head.forget(["a", "nobody"])
        said = "`name` is empty; name the class to forget, or several"
        with pytest.raises(DataError, match=f"^{re.escape(said)}$"):
            head.forget([])
        assert head.history is before

    def test_of_names_is_told_as_such_and_not_as_new_classes(self):
        head = head_of(images("abc"))
        report = head.rename({"a": "x", "b": "c", "c": "b"})
        assert report.renamed == {"a": "x", "b": "c", "c": "b"}
        assert (report.classes_added, report.images) == ((), {})
        assert "- renamed: a -> x, b -> c, c -> b" in str(report)
        assert "images" not in str(report).split("renamed")[0]
        assert head.undo().renamed == {"x": "a", "c": "b", "b": "c"}
        assert head.extend(*images("d")).renamed is None
        # a class that takes the place of another is another
        head.snapshot("with d")
        head.undo()
        head.extend(*images("e", seed=3))
        report = head.restore("with d")
        assert (report.renamed, report.images) == (None, {"e": -4, "d": 4})


class TestSnapshot:
    def test_comes_back_to_the_bit_however_long_ago(self):
        head = head_of(images("ab"))
        was, logits = head.knowledge.digest, head(images("ab")[0])
        head.snapshot("first")
        for seed in range(5):
            head.extend(*images("bc", seed=seed))
        report = head.restore("first")
        assert report.images == {"b": -20, "c": -20}
        assert head.knowledge.digest == was
        assert torch.equal(head(images("ab")[0]), logits)
        head.undo()
        assert head.n_images == {"a": 4, "b": 24, "c": 20}

    def test_of_a_name_that_is_there_takes_its_place(self):
        head = head_of(images("ab"))
        head.snapshot("x")
        head.extend(*images("c"))
        head.snapshot("x")
        head.forget("c")
        head.restore("x")
        assert head.n_images["c"] == 4

    def test_is_kept_by_copies_and_not_shared_with_them(self):
        import copy

        head = head_of(images("ab"))
        head.snapshot("x")
        other = copy.deepcopy(head)
        other.drop_snapshot("x")
        assert other.audit == head.audit
        assert head.restore("x").what == "restore"

    def test_of_an_unknown_name_is_refused_with_those_there_are(self):
        head = head_of(images("ab"))
        before = head.history
        with pytest.raises(ContinualStateError, match="no snapshot 'x'; there are: none"):
            head.restore("x")
        head.snapshot("good")
        with pytest.raises(ContinualStateError, match="there are: 'good'"):
            head.drop_snapshot("x")
        assert head.history.states is before.states

    @pytest.mark.parametrize("name", ["", " ", "a" * 101, "\x1b[2J", "a\nb", None, 3])
    def test_of_a_name_that_is_none_is_refused(self, name):
        with pytest.raises(ContinualStateError, match=r"`name` is .* can be printed"):
            head_of(images("ab")).snapshot(name)

    def test_beyond_eight_is_refused_until_one_is_dropped(self):
        head = head_of(images("ab"))
        for i in range(MAX_SNAPSHOTS):
            head.snapshot(str(i))
        with pytest.raises(ContinualStateError, match=r"8 snapshots.*'0', '1'.*drop_snapshot"):
            head.snapshot("one more")
        head.drop_snapshot("0")
        head.snapshot("one more")
        assert list(head.history.snapshots) == [*"1234567", "one more"]
        head.snapshot("one more")  # of a name that is there already

    def test_and_former_states_of_large_models_keep_only_what_cannot_be_derived(self, monkeypatch):
        monkeypatch.setattr("learnkit.continual.knowledge._SMALL", 0)
        head, (features, _) = head_of(images("ab")), images("ab")
        logits, scores = head(features), head.ood_scores(features)
        head.snapshot("x")
        head.extend(*images("bc", seed=1))
        states = [head.history.states[1], head.history.snapshots["x"]]
        assert [state.derived for state in states] == [None, None]
        for back in (head.undo, lambda: head.restore("x")):
            back()
            assert torch.equal(head(features), logits)
            assert torch.equal(head.ood_scores(features), scores)
            head.extend(*images("bc", seed=1))

    @pytest.mark.parametrize("name", [["x"], {}, None, 3])
    def test_a_name_that_is_no_text_is_none_of_them(self, name):
        head = head_of(images("ab"))
        head.snapshot("x")
        before = head.history
        for verb in (head.restore, head.drop_snapshot, head.snapshot):
            with pytest.raises(ContinualStateError, match=re.escape(repr(name))):
                verb(name)
        assert head.history is before


class TestOrigin:
    def test_is_kept_sorted_and_once_whatever_the_order(self):
        heads = []
        for origins in ("xyx", "yx"):
            heads.append(ContinualClassifier(D, memory=8))
            for origin in origins:
                heads[-1].extend(*images("ab"), origin=origin)
        assert [head.statistics.origins for head in heads] == [("x", "y")] * 2

    def test_another_one_is_noted_once_and_the_same_one_never(self):
        head = ContinualClassifier(D, memory=8)
        notes = [
            [note for note in head.extend(*images("ab"), origin=origin).notes if "origins" in note]
            for origin in ("x", "x", "y", "y", "x")
        ]
        assert [len(one) for one in notes] == [0, 0, 1, 0, 0]
        assert "are together now (x; y): their sums are exact" in notes[2][0]

    def test_merging_other_origins_is_allowed_and_noted(self):
        one, other = ContinualClassifier(D, memory=8), ContinualClassifier(D, memory=8)
        one.extend(*images("ab"), origin="x")
        other.extend(*images("bc"), origin="y")
        note = "features of different origins are together now (x; y)"
        report = one.merge(other.statistics)
        assert any(line.startswith(note) for line in report.notes)
        assert one.statistics.origins == ("x", "y")
        one.undo()
        assert one.statistics.origins == ("x",)

    def test_travels_and_is_missing_in_older_states(self):
        head = ContinualClassifier(D, memory=8)
        head.extend(*images("ab"), origin="x")
        config, tensors = head.state()
        assert ContinualClassifier.from_state(config, tensors).statistics.origins == ("x",)
        del config["origins"]
        assert ContinualClassifier.from_state(config, tensors).statistics.origins == ()

    @pytest.mark.parametrize("origins", ["x", None, [1], [""], ["b", "a"], ["a", "a"], ["\x1b"]])
    def test_that_is_damaged_is_refused(self, origins):
        config, tensors = head_of(images("ab")).state()
        with pytest.raises(StatisticsError, match="`origins` are "):
            ContinualClassifier.from_state({**config, "origins": origins}, tensors)

    def test_is_no_part_of_the_digest(self):
        heads = [ContinualClassifier(D, memory=8) for _ in range(2)]
        for head, origin in zip(heads, "xy", strict=True):
            head.extend(*images("ab"), origin=origin)
        assert heads[0].knowledge.digest == heads[1].knowledge.digest
