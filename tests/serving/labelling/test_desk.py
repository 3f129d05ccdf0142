"""Naming and taking back: the model, the folder and the journal agree, to the bit."""

import json

import numpy as np
import pytest
from deploy_helpers import shades
from labelling_helpers import ids_of, look, name, new_key, put, undo

from learnkit import load_learner
from learnkit.serving.http_errors import Refusal


def knowledge(place):
    return place.teacher.knowledge


def refused(call, *args, **more):
    with pytest.raises(Refusal) as caught:
        call(*args, **more)
    return caught.value


def test_a_label_moves_the_file_teaches_the_model_and_is_in_the_journal(place, room):
    image = ids_of(place, "new")[0]
    status, said = name(place, image, "Scratch", new=True, who="Anna")
    assert (status, said["result"], said["n"], said["ids"]) == (200, "learned", 1, [image])
    assert (room / "labelled/Scratch/new0.png").is_file()
    assert not (room / "inbox/new0.png").exists()
    assert place.predictor.continual.n_images == {"ok": 6, "bad": 5, "Scratch": 1}
    label, learned = (
        json.loads(line)
        for line in (room / "inbox/.learnkit/journal.jsonl").read_text().splitlines()[-2:]
    )
    wanted = {"do": "label", "who": "Anna", "name": "new0.png", "label": "Scratch", "flagged": True}
    assert wanted.items() <= label.items()
    assert {"t", "key", "sha", "said", "p", "ood"} <= label.keys()
    assert (learned["do"], learned["of"]) == ("learned", label["key"])
    assert learned["after"] == knowledge(place).digest != learned["before"]


def test_what_is_learned_is_what_extend_would_have_learned_from_the_files(place, room):
    for image in ids_of(place, "new"):
        name(place, image, "Scratch", new=True)
    other = load_learner(room / "model")
    other.extend([*sorted((room / "labelled/Scratch").iterdir())], "Scratch", progress=False)
    assert other.continual.statistics.equals(knowledge(place).statistics)


def test_undo_of_all_gives_the_state_before_to_the_bit_beyond_what_is_remembered(place, room):
    put(room / "inbox", "more", shades("ok", 20, seed=9))  # more than the memory of 8 holds
    look(place)
    before = place.predictor.continual.state()
    for image in ids_of(place, "more"):
        name(place, image, "ok")
    name(place, ids_of(place, "new"), "Scratch", new=True)
    while any(one.counts for one in place.book.changes):
        undo(place)
    config, tensors = place.predictor.continual.state()
    assert config == before[0]
    assert tensors.keys() == before[1].keys()
    assert all(np.array_equal(tensors[one], before[1][one]) for one in tensors)
    assert not list((room / "labelled").rglob("*.png"))


def test_one_label_of_many_is_taken_back_as_if_it_had_never_been_given(place, room):
    first, second, third, *_ = ids_of(place, "new")
    name(place, second, "bad")
    key = [*place.book.changes][-1].key
    name(place, first, "Scratch", new=True)
    name(place, third, "Scratch")
    assert undo(place, of=key)[1]["ids"] == [second]
    known = load_learner(room / "model")
    known.extend([room / f"labelled/Scratch/new{i}.png" for i in (0, 2)], "Scratch", progress=False)
    assert known.continual.statistics.equals(knowledge(place).statistics)
    assert (room / "inbox/new1.png").is_file()
    assert place.book.pictures[second].state == "waiting"


def test_undo_from_here_takes_back_everything_since(place):
    digest = knowledge(place).digest
    for image in ids_of(place, "new")[:3]:
        name(place, image, "Scratch", new=True)
    line = next(iter(place.book.changes)).line
    found = undo(place, line=line, dry=True)[1]
    assert (found["changes"], found["labels"]) == (3, {"Scratch": 3})
    assert knowledge(place).digest != digest
    undo(place, line=line)
    assert knowledge(place).digest == digest
    assert refused(undo, place).more["kind"] == "nothing"


def test_the_same_request_again_gives_the_same_answer_and_counts_once(place):
    asked = {"ids": [ids_of(place, "new")[0]], "label": "bad", "key": new_key()}
    first, again = (place.desk.answer(asked) for _ in range(2))
    assert first == again
    assert place.predictor.continual.n_images["bad"] == 6
    taken = {"key": new_key()}
    assert place.desk.undo(taken) == place.desk.undo(taken)
    assert place.predictor.continual.n_images["bad"] == 5


def test_the_same_bytes_are_not_learned_twice(place, room):
    image = (room / "inbox/new0.png").read_bytes()
    name(place, ids_of(place, "new")[0], "bad")
    (room / "inbox/copy.png").write_bytes(image)
    look(place)
    (copy,) = ids_of(place, "copy")
    said = name(place, copy, "bad")[1]
    assert (said["already"], said["n"]) == ("bad", 6)
    assert said["since"]
    assert place.predictor.continual.n_images == {"ok": 6, "bad": 6}


def test_another_label_for_known_bytes_is_asked_about_and_then_one_change(place, room):
    (room / "inbox/copy.png").write_bytes((room / "inbox/new0.png").read_bytes())
    look(place)
    name(place, ids_of(place, "new")[0], "bad")
    (copy,) = ids_of(place, "copy")
    error = refused(name, place, copy, "ok")
    assert (error.status, error.more["kind"], error.more["already"]) == (409, "already", "bad")
    assert name(place, copy, "ok", correct=True)[0] == 200
    assert place.predictor.continual.n_images == {"ok": 7, "bad": 5}
    undo(place)
    assert place.predictor.continual.n_images == {"ok": 6, "bad": 6}


def test_a_picture_that_somebody_named_is_changed_only_on_purpose(place, room):
    image = ids_of(place, "new")[0]
    name(place, image, "bad", who="Ben")
    error = refused(name, place, image, "ok")
    assert (error.status, error.more["kind"], error.more["by"]) == (409, "taken", "Ben")
    assert error.more["label"] == "bad"
    assert name(place, image, "ok", correct=True)[1]["result"] == "learned"
    assert place.predictor.continual.n_images == {"ok": 7, "bad": 5}
    assert (room / "labelled/ok/new0.png").is_file()
    undo(place)
    assert place.predictor.continual.n_images == {"ok": 6, "bad": 6}
    assert (room / "labelled/bad/new0.png").is_file()


def test_what_is_put_aside_teaches_nothing_and_comes_back(place, room):
    digest = knowledge(place).digest
    skipped, broken, asked, sure = ids_of(place, "new")[:4]
    for image, action in zip(
        (skipped, broken, asked, sure), ("skip", "unusable", "ask", "sure"), strict=True
    ):
        said = place.desk.answer({"ids": [image], "action": action, "key": new_key()})[1]
        assert said["result"] == "moved"
    assert knowledge(place).digest == digest
    counts = place.views.state()["counts"]
    assert (counts["skipped"], counts["unusable"], counts["asked"]) == (1, 1, 1)
    assert place.views.order("unknown")[-1].id == skipped
    assert (room / "labelled/_unusable/new1.png").is_file()
    for _ in range(4):
        undo(place)
    assert len(place.views.order("unknown")) == 5
    assert (room / "inbox/new1.png").is_file()


def test_a_file_that_is_gone_is_said_to_be_and_nothing_is_done(place, room):
    (room / "inbox/new0.png").unlink()
    n = len(place.journal.lines)
    error = refused(name, place, ids_of(place, "new")[0], "bad")
    assert (error.status, error.more["kind"]) == (404, "gone")
    assert len(place.journal.lines) == n
    assert place.views.state()["counts"]["waiting"] == 4


@pytest.mark.parametrize(
    ("typed", "code"),
    [
        ("", "empty"),
        ("a" * 81, "long"),
        ("../up", "signs"),
        ("a\\b", "signs"),
        ("a\N{RIGHT-TO-LEFT OVERRIDE}b", "signs"),
        ("=1+1", "signs"),
        (".hidden", "ends"),
        ("end ", "ends"),
        ("CON", "reserved"),
        ("nul.txt", "reserved"),
        ("OK", "same"),
        ("ök", "same"),
    ],
)
def test_a_name_that_cannot_be_leaves_nothing_done(place, room, typed, code):
    n = len(place.journal.lines)
    error = refused(name, place, ids_of(place, "new")[0], typed, new=True)
    assert (error.status, error.more["kind"], error.more["code"]) == (400, "name", code)
    assert len(place.journal.lines) == n
    assert (room / "inbox/new0.png").is_file()
    assert error.more["known"] == ("ok" if code == "same" else None)


def test_a_forgotten_name_is_asked_about_first(place):
    place.desk.change_class({"forget": "bad", "key": new_key()})
    image = ids_of(place, "new")[0]
    error = refused(name, place, image, "bad", new=True)
    assert error.more["code"] == "forgotten"
    assert name(place, image, "bad", new=True, again=True)[1]["n"] == 1


def test_locked_classes_stay_as_they_are(room, start):
    place = start(room, locked=True)
    assert refused(name, place, ids_of(place, "new")[0], "Scratch", new=True).status == 403


def test_classes_are_renamed_with_their_folders_and_back(place, room):
    digest = knowledge(place).digest
    name(place, ids_of(place, "new")[0], "bad")
    place.desk.change_class({"rename": "bad", "to": "Blowhole", "key": new_key()})
    assert place.predictor.continual.n_images == {"ok": 6, "Blowhole": 6}
    assert (room / "labelled/Blowhole/new0.png").is_file()
    assert place.book.pictures[ids_of(place, "new")[0]].label == "Blowhole"
    undo(place)
    assert (room / "labelled/bad/new0.png").is_file()
    undo(place)
    assert knowledge(place).digest == digest


def test_what_a_later_change_rests_on_is_not_taken_back_alone(place):
    name(place, ids_of(place, "new")[0], "Scratch", new=True)
    first = next(iter(place.book.changes)).key
    place.desk.change_class({"rename": "Scratch", "to": "Scrape", "key": new_key()})
    digest = knowledge(place).digest
    error = refused(undo, place, of=first)
    assert (error.status, error.more["kind"]) == (409, "rests")
    assert "rename 'Scratch' to 'Scrape'" in str(error)
    assert knowledge(place).digest == digest


def test_a_model_that_refuses_keeps_the_label_and_is_as_before(place, room, monkeypatch):
    from learnkit.errors import DataError

    def refuse(*args):
        raise DataError("these images are all blank")

    digest = knowledge(place).digest
    monkeypatch.setattr(place.teacher.ledger, "extended", refuse)
    said = name(place, ids_of(place, "new")[0], "bad")[1]
    assert (said["result"], said["reason"]) == ("refused", "these images are all blank")
    assert knowledge(place).digest == digest
    assert (room / "labelled/bad/new0.png").is_file()
    assert place.views.state()["counts"]["refused"] == 1


def test_a_full_disk_is_told_and_nothing_is_done(place, room, monkeypatch):
    import errno
    import os

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    before = (room / "inbox/.learnkit/journal.jsonl").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        error = refused(name, place, ids_of(place, "new")[0], "bad")
    assert (error.status, error.more["kind"]) == (507, "disk")
    assert str(error) == "cannot save: No space left on device"
    assert place.views.state()["trouble"] == str(error)
    assert (room / "inbox/.learnkit/journal.jsonl").read_bytes() == before
    assert (room / "inbox/new0.png").is_file()
    assert name(place, ids_of(place, "new")[0], "bad")[0] == 200
    assert place.views.state()["trouble"] is None


def test_a_folder_that_cannot_be_written_to_takes_the_label_back(place, room):
    image = ids_of(place, "new")[0]
    (room / "labelled").mkdir()
    (room / "labelled/bad").write_text("no folder")
    asked = {"ids": [image], "label": "bad", "key": new_key()}
    error = refused(place.desk.answer, asked)
    assert error.status == 507
    assert place.book.pictures[image].state == "waiting"
    assert place.predictor.continual.n_images == {"ok": 6, "bad": 5}
    assert (room / "inbox/new0.png").is_file()
    (room / "labelled/bad").unlink()
    assert place.desk.answer(asked)[1]["result"] == "learned"  # of the same key: tried again


def test_pages_that_wait_for_a_full_disk_go_on_when_it_is_not_full(place, monkeypatch):
    import os

    place.desk.trouble = "cannot save: No space left on device"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: (_ for _ in ()).throw(OSError(28, "No space")))
        place.recheck_disk()
    assert place.views.state()["trouble"]
    place.recheck_disk()
    assert place.views.state()["trouble"] is None
    assert not [one for one in place.store.iterdir() if one.name.startswith("probe")]


def test_a_group_is_one_change(place):
    ids = ids_of(place, "new")
    said = name(place, ids, "Scratch", new=True)[1]
    assert (said["n"], len([*place.book.changes])) == (5, 1)
    assert len(place.views.log(10, None)["lines"][0]["ids"]) == 5
    assert undo(place)[1]["undone"] == 5
    assert place.predictor.continual.n_images == {"ok": 6, "bad": 5}


def test_the_rest_is_judged_anew_without_another_pass_of_the_network(place, monkeypatch):
    from learnkit.serving.labelling import workplace

    passes = []
    monkeypatch.setattr(workplace, "padded_run", lambda *args: passes.append(args))
    new = ids_of(place, "new")
    assert len(place.views.order("unknown")) == 5
    said = name(place, new[:3], "Scratch", new=True)[1]
    assert said["n_known_now"] == 2
    assert place.views.order("unknown") == []
    assert passes == []
