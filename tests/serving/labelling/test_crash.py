"""Crashes: whatever step the process was killed after, opening again leaves nothing half done."""

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from deploy_helpers import shades, strange
from labelling_helpers import ids_of, make_workplace, name, new_key, put, undo

from learnkit import load_learner
from learnkit.serving.http_errors import Refusal

ALL = ("journal", "moved", "learned", "noted", "saved")
STEPS = {"label": ALL, "undo": ALL, "correct": ALL[:3], "rename": ALL[:3]}
# One process that has no threads yet, so that it can be copied for each kill.
SCRIPT = """
import os, signal, sys
from pathlib import Path
from labelling_helpers import ids_of, make_workplace, name, new_key, opened, undo

def work(room, do, step):
    armed = []
    kill = lambda done: os.kill(os.getpid(), signal.SIGKILL) if armed and done == step else None
    place = opened(make_workplace(room, done=kill))
    first, second, third, *_ = ids_of(place, "new")
    name(place, first, "bad")
    name(place, second, "Scratch", new=True)
    place.saver.save_now()
    armed.append(True)
    if do == "label":
        name(place, third, "Scratch")
    elif do == "undo":
        undo(place)
    elif do == "correct":
        name(place, first, "ok", correct=True)
    else:
        place.desk.change_class({"rename": "bad", "to": "Worse", "key": new_key()})
    place.saver.save_now()

for path in Path(sys.argv[1]).iterdir():
    if not (child := os.fork()):
        try:
            work(path, *path.name.split("-"))
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, path
"""
WANTED = {  # images per class and files, if what was asked for is done
    "label": (
        {"ok": 6, "bad": 6, "Scratch": 2},
        {"bad/new0.png", "Scratch/new1.png", "Scratch/new2.png"},
    ),
    "undo": ({"ok": 6, "bad": 6}, {"bad/new0.png"}),
    "correct": ({"ok": 7, "bad": 5, "Scratch": 1}, {"ok/new0.png", "Scratch/new1.png"}),
    "rename": ({"ok": 6, "Worse": 6, "Scratch": 1}, {"Worse/new0.png", "Scratch/new1.png"}),
}


def files_below(folder):
    return {one.relative_to(folder).as_posix() for one in folder.rglob("*.png")}


@pytest.fixture(scope="module")
def killed(bundle, tmp_path_factory):
    """A folder for each thing done and each step after which the process was killed."""
    rooms, original = tmp_path_factory.mktemp("killed"), tmp_path_factory.mktemp("original")
    shutil.copytree(bundle, original / "model")
    put(original / "inbox", "new", strange(5))
    for do, steps in STEPS.items():
        for step in steps:
            shutil.copytree(original, rooms / f"{do}-{step}")
    script = original / "script.py"
    script.write_text(SCRIPT)
    paths = os.pathsep.join([str(Path(__file__).parents[2]), str(Path(__file__).parents[3])])
    env = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, script, rooms], env=env, capture_output=True, text=True, encoding="utf-8"
    )
    assert run.returncode == 0, run.stderr
    return rooms


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are copied")
@pytest.mark.parametrize(("do", "step"), [(do, step) for do in STEPS for step in STEPS[do]])
def test_a_kill_after_each_step_is_mended_at_the_next_start(killed, start, do, step):
    room = killed / f"{do}-{step}"
    place = start(room)
    n_images, files = WANTED[do]
    known = {one: n for one, n in place.predictor.continual.n_images.items() if n}
    assert known == n_images
    assert files_below(room / "labelled") == files
    assert files_below(room / "inbox") == {f"new{i}.png" for i in range(5)} - {
        file.partition("/")[2] for file in files
    }
    assert {one.state for one in place.book.changes} <= {"learned", "undone"}
    assert place.predictor.continual.statistics.equals(plain(room, files).statistics)


def plain(room, files):
    """A model that has learned the files of a folder from where all started, and nothing else."""
    known = load_learner(room.parent / "label-journal/model")
    from learnkit.serving.labelling.ledger import read_knowledge

    known.continual.replace_knowledge(
        read_knowledge(room / "inbox/.learnkit/base.safetensors"), "restore"
    )
    if any(file.startswith("Worse") for file in files):
        known.rename({"bad": "Worse"})
    for file in sorted(files):
        known.extend([room / "labelled" / file], file.partition("/")[0], progress=False)
    return known.continual


class Crash(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("seed", range(4))
def test_any_history_with_crashes_gives_what_the_labels_in_force_teach(room, start, seed):
    """Reads again at random moments, from a model that was saved at others."""
    rng, fuse = random.Random(seed), [None]
    put(room / "inbox", "more", shades("bad", 3, seed=seed))

    def done(step):
        if fuse[0] is not None:
            fuse[0] -= 1
            if fuse[0] < 0:
                fuse[0] = None
                raise Crash

    place = start(room, done=done)
    base = place.teacher.ledger.base
    for _ in range(10):
        fuse[0] = rng.choice([None, 0, 1, 2, 3])
        try:
            do_something(place, rng)
        except Refusal:
            pass
        except Crash:
            place = start(room, done=done)
        fuse[0] = None
        if rng.random() < 0.3:
            place.saver.save_now()
        if rng.random() < 0.2:
            place = start(room, done=done)
        folded = place.teacher.ledger.folded(place.book.changes)
        assert place.teacher.knowledge.digest == folded.digest
    in_force = {one.id: one for one in place.book.pictures.values() if one.state == "learned"}
    assert {one.place for one in in_force.values()} == {*(room / "labelled").rglob("[!.]*.png")}
    assert all(one.place.is_file() for one in place.book.pictures.values())
    place.predictor.continual.replace_knowledge(base, "restore")
    for one in in_force.values():
        place.predictor.extend([one.place], one.label, progress=False)
    assert folded.statistics.equals(place.predictor.continual.statistics)


def do_something(place, rng):
    image = rng.choice([*place.book.pictures])
    kind = rng.choice(["label", "label", "label", "correct", "undo", "undo", "skip", "ask"])
    if kind == "undo":
        keys = [one.key for one in place.book.changes if one.state != "undone"]
        undo(place, **({"of": rng.choice(keys)} if keys and rng.random() < 0.6 else {}))
    elif kind in ("label", "correct"):
        label = rng.choice(["ok", "bad", "Scratch", "Dent"])
        name(place, image, label, new=True, again=True, correct=kind == "correct")
    else:
        place.desk.answer({"ids": [image], "action": kind, "key": new_key()})


def test_a_start_again_knows_images_answers_and_keys(room, start):
    place = start(room)
    first, second = ids_of(place, "new")[:2]
    key = new_key()
    place.desk.answer({"ids": [first], "label": "Scratch", "new": True, "key": key, "who": "Ben"})
    place.desk.answer({"ids": [second], "action": "ask", "key": new_key()})
    waiting = [one.id for one in place.views.order("all")]
    place.saver.save_now()
    again = start(room)
    assert {one.id for one in again.views.order("all")} == {*waiting}
    said = again.desk.answer({"ids": [first], "label": "Scratch", "new": True, "key": key})
    assert (said[1]["result"], said[1]["n"]) == ("learned", 1)
    assert again.predictor.continual.n_images["Scratch"] == 1
    assert again.views.state()["counts"]["asked"] == 1
    undo(again, of=key)
    assert again.predictor.continual.n_images == {"ok": 6, "bad": 5}


def test_at_a_start_again_no_image_goes_through_the_network_twice(room, start, monkeypatch):
    from learnkit.serving.labelling import workplace

    start(room)
    monkeypatch.setattr(workplace, "padded_run", None)
    place = make_workplace(room)
    place.desk.open()
    place.know()
    assert place.look(known_only=True) == 7
    place.close()


def test_another_network_reads_the_images_again(room, start):
    from deploy_helpers import make_continual

    place = start(room)
    name(place, ids_of(place, "new")[0], "Scratch", new=True)
    before = place.kept.exact([place.book.pictures[ids_of(place, "new")[1]].sha])
    shutil.rmtree(room / "model")
    make_continual({"ok": 6, "bad": 5}, seed=7).save(room / "model")
    again = start(room)
    row = again.kept.exact([again.book.pictures[ids_of(again, "new")[1]].sha])
    assert not (before == row).all()
    assert again.predictor.continual.n_images == {"ok": 6, "bad": 5, "Scratch": 1}


class TestAnotherProgram:
    """The model is changed by another program while the page is open."""

    def test_the_label_is_kept_and_learned_in_the_model_as_it_is_now(self, room, start):
        place = start(room)
        first, second, third = ids_of(place, "new")[:3]
        name(place, first, "Scratch", new=True)
        place.saver.save_now()
        other = load_learner(room / "model")
        other.extend(shades("elsewhere", 3), "Elsewhere", progress=False)
        other.save(room / "model")
        name(place, second, "bad")  # not saved, and the other program knows nothing of it
        status, said = place.desk.answer({"ids": [third], "label": "Scratch", "key": new_key()})
        assert place.predictor.continual.n_images == {
            "ok": 6,
            "bad": 6,
            "Scratch": 2,
            "Elsewhere": 3,
        }
        assert said["result"] == "learned" or status == 200

    def test_what_is_learned_of_both_is_saved(self, room, start):
        place = start(room)
        first = ids_of(place, "new")[0]
        other = load_learner(room / "model")
        other.extend(shades("elsewhere", 3), "Elsewhere", progress=False)
        other.save(room / "model")
        assert name(place, first, "bad")[1]["result"] == "learned"
        place.saver.save_now()
        assert place.saver.error is None
        assert load_learner(room / "model").classes[-1] == "Elsewhere"
        assert load_learner(room / "model").continual.n_images["bad"] == 6

    def test_whoever_labels_next_is_told_once(self, room, start):
        place = start(room)
        first, second = ids_of(place, "new")[:2]
        other = load_learner(room / "model")
        other.extend(shades("elsewhere", 3), "Elsewhere", progress=False)
        other.save(room / "model")
        status, said = name(place, first, "bad")
        assert (status, said["kind"], said["result"]) == (409, "model", "learned")
        assert name(place, second, "bad")[0] == 200

    def test_what_it_has_learned_of_ours_is_taken_back_exactly(self, room, start):
        place = start(room)
        digest = place.teacher.digest
        name(place, ids_of(place, "new")[0], "bad")
        place.saver.save_now()
        other = load_learner(room / "model")
        other.extend(shades("elsewhere", 3), "Elsewhere", progress=False)
        other.save(room / "model")
        other.forget("Elsewhere")
        undo(place)
        assert place.predictor.continual.n_images == {"ok": 6, "bad": 5, "Elsewhere": 3}
        assert place.teacher.digest != digest
