"""Corrections of a folder: a new one is written, nothing is deleted, nothing doubtful is done."""

import csv
import hashlib
import html
import os

import pytest
from helpers import write_image_folder

from learnkit.data.dataset import ImageDataset
from learnkit.deploy import corrections
from learnkit.deploy.corrections import (
    COLUMNS,
    Correction,
    apply_corrections,
    read_corrections,
)
from learnkit.errors import DataError, UsageError


@pytest.fixture
def folder(tmp_path):
    return write_image_folder(tmp_path / "parts", {"nok": 3, "ok": 3})


def sha(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def mark(folder, path, new="", action=None, row=2, **other):
    known = {"sha256": sha(folder / path), "old": path.split("/")[-2]}
    return Correction(
        row, path, new=new, action=action or ("relabel" if new else "drop"), **known | other
    )


def tree(folder):
    return {
        path.relative_to(folder).as_posix(): sha(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_images_are_moved_and_put_aside_in_a_new_folder(folder, tmp_path):
    before, out = tree(folder), tmp_path / "better"
    marks = [mark(folder, "ok/001.png", "scratch"), mark(folder, "nok/002.png", row=3)]
    done = apply_corrections(folder, marks, out)
    assert tree(folder) == before
    expected = {
        name: digest for name, digest in before.items() if name not in {"ok/001.png", "nok/002.png"}
    }
    expected |= {
        "scratch/001.png": before["ok/001.png"],
        "_removed/nok/002.png": before["nok/002.png"],
    }
    assert tree(out) == expected
    assert str(done) == "1 relabelled, 1 dropped into _removed/, 4 as they were"
    assert ImageDataset.from_folder(out).counts()["unassigned"].to_dict() == {
        "nok": 2,
        "ok": 2,
        "scratch": 1,
    }
    assert os.path.samefile(out / "ok" / "000.png", folder / "ok" / "000.png")


def test_every_image_is_counted_once(folder, tmp_path):
    marks = [mark(folder, "ok/001.png", "nok"), mark(folder, "nok/002.png", row=3)]
    done = apply_corrections(folder, marks, tmp_path / "out")
    assert done.n_kept + done.n_relabelled + done.n_dropped == 6 == len(tree(tmp_path / "out"))


def test_once_more_changes_nothing(folder, tmp_path):
    marks, out = (
        [mark(folder, "ok/001.png", "nok"), mark(folder, "nok/002.png", row=3)],
        tmp_path / "out",
    )
    apply_corrections(folder, marks, out)
    before, times = tree(out), {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    again = apply_corrections(folder, marks, out)
    assert again.was_there
    assert str(again).endswith("the folder was there already")
    assert tree(out) == before
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == times
    third = apply_corrections(out, marks, tmp_path / "third")
    assert (third.n_before, third.n_relabelled, third.n_dropped, third.refused) == (2, 0, 0, {})
    kept = {name: digest for name, digest in before.items() if not name.startswith("_removed/")}
    assert tree(tmp_path / "third") == kept


def test_a_name_that_is_taken_gets_the_beginning_of_the_digest(folder, tmp_path):
    marks = [mark(folder, "ok/001.png", "nok")]
    apply_corrections(folder, marks, tmp_path / "out")
    digest = sha(folder / "ok" / "001.png")
    assert sha(tmp_path / "out" / "nok" / f"001_{digest[:8]}.png") == digest
    again = apply_corrections(tmp_path / "out", marks, tmp_path / "more")
    assert again.n_before == 1


def test_a_split_keeps_its_place(tmp_path):
    root = write_image_folder(tmp_path / "parts" / "train", {"a": 2, "b": 2}).parent
    write_image_folder(root / "valid", {"a": 1, "b": 1}, seed=1)
    apply_corrections(root, [mark(root, "valid/a/000.png", "b")], tmp_path / "out")
    assert sorted(p.name[:3] for p in (tmp_path / "out" / "valid" / "b").iterdir()) == [
        "000",
        "000",
    ]
    assert not (tmp_path / "out" / "valid" / "a").exists()


WRONG = {
    "changed": ({"sha256": "0" * 64}, "the file has changed since it was marked"),
    "no digest": ({"sha256": "abc"}, "'abc' is no sha256 of 64 hex digits"),
    "absent": ({"path": "ok/9.png"}, "there is no such image"),
    "above": ({"path": "../ok/001.png"}, "the path leaves the folder"),
    "within": ({"path": "ok/../../x.png"}, "the path leaves the folder"),
    "absolute": ({"path": "/etc/passwd"}, "the path leaves the folder"),
    "windows": ({"path": "..\\ok\\001.png"}, "the path leaves the folder"),
    "drive": ({"path": "C:/ok/001.png"}, "the path leaves the folder"),
    "nothing": ({"path": ""}, "the path leaves the folder"),
    "null": ({"path": "ok/\0.png"}, "the path leaves the folder"),
    "action": ({"action": "delete"}, "the action is 'delete': relabel or drop"),
    "old": ({"old": "nok"}, "it is of the class 'ok', not 'nok'"),
    "same": ({"new": "ok"}, "it is of the class 'ok' already"),
    "empty": ({"new": "", "action": "relabel"}, "'' cannot be the name of a class and its folder"),
    "folders": ({"new": "../../x"}, "cannot be the name of a class"),
    "backslash": ({"new": "a\\b"}, "cannot be the name of a class"),
    "dots": ({"new": ".."}, "cannot be the name of a class"),
    "hidden": ({"new": ".x"}, "cannot be the name of a class"),
    "aside": ({"new": "_removed"}, "cannot be the name of a class"),
    "reserved": ({"new": "con"}, "cannot be the name of a class"),
    "formula": ({"new": "=1+1"}, "spreadsheets would compute it"),
    "steering": ({"new": "a\u202eb"}, "all of which can be printed"),
    "twin": ({"new": "NOK"}, "'NOK' looks like the class 'nok'; write it like that"),
}


@pytest.mark.parametrize("wrong", WRONG, ids=list(WRONG))
def test_a_row_that_does_not_say_clearly_what_to_do_is_refused(folder, tmp_path, wrong):
    change, why = WRONG[wrong]
    good = mark(folder, "nok/000.png", "ok", row=3)
    row = mark(folder, "ok/001.png", "nok")
    done = apply_corrections(folder, [Correction(**vars(row) | change), good], tmp_path / "out")
    ((where, said),) = done.refused.items()
    assert where.startswith("row 2, ")
    assert why in said
    assert done.n_relabelled == 1
    files = tree(tmp_path / "out")
    assert files["ok/001.png"] == sha(folder / "ok" / "001.png")
    assert len(files) == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "parts"]
    assert why in html.unescape(done._repr_html_())


def test_rows_that_contradict_each_other_are_all_refused(folder, tmp_path):
    marks = [mark(folder, "ok/001.png", "nok"), mark(folder, "ok/001.png", row=3)]
    done = apply_corrections(folder, marks, tmp_path / "out")
    assert len(done.refused) == 2
    assert set(done.refused.values()) == {"rows 2 and 3 say different things about it"}
    twice = apply_corrections(folder, [marks[0], marks[0]], tmp_path / "twice")
    assert (twice.n_relabelled, twice.refused) == (1, {})


@pytest.mark.parametrize("place", ["parts", "parts/inner", "."])
def test_a_folder_that_is_not_apart_is_refused(folder, tmp_path, place):
    with pytest.raises(UsageError, match="itself, inside it or around it; name a folder beside"):
        apply_corrections(folder, [], tmp_path / place)


def test_a_folder_with_other_files_is_refused_and_left_as_it_is(folder, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("here", encoding="utf-8")
    with pytest.raises(UsageError, match="holds other files; name a folder that is not there yet"):
        apply_corrections(folder, [], out)
    assert tree(out).keys() == {"mine.txt"}
    with pytest.raises(UsageError, match="is in a non-existent folder; make"):
        apply_corrections(folder, [], tmp_path / "no" / "out")


def test_nothing_is_left_of_what_failed_and_an_empty_folder_is_taken(folder, tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    link = corrections._link

    def fails(source, place):
        if source.name == "002.png":
            raise OSError(28, "no space left on device")
        link(source, place)

    monkeypatch.setattr(corrections, "_link", fails)
    with pytest.raises(OSError, match="no space left"):
        apply_corrections(folder, [], out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "parts"]
    monkeypatch.undo()
    assert apply_corrections(folder, [], out).n_kept == 6


def test_files_are_copied_where_there_are_no_hard_links(folder, tmp_path, monkeypatch):
    def refuses(*_):
        raise OSError(18, "cross-device link")

    monkeypatch.setattr(corrections.os, "link", refuses)
    apply_corrections(folder, [], tmp_path / "out")
    assert tree(tmp_path / "out") == tree(folder)
    assert not os.path.samefile(tmp_path / "out" / "ok" / "000.png", folder / "ok" / "000.png")


def write_table(path, rows, header=COLUMNS, encoding="utf-8"):
    with path.open("w", encoding=encoding, newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_table_is_read_whatever_the_order_of_its_columns(tmp_path, encoding):
    rows = [["x", "drop", "a, b\n.png", "", "ö", "1" * 64]]
    header = ["more", "action", "path", "new", "old", "sha256"]
    (one,) = read_corrections(write_table(tmp_path / "c.csv", rows, header, encoding))
    assert one == Correction(2, "a, b\n.png", "1" * 64, "ö", "", "drop")


def test_a_cell_quoted_against_spreadsheets_means_the_file(tmp_path):
    root = write_image_folder(tmp_path / "parts", {"=a": 1, "b": 1})
    rows = [["'=a/000.png", sha(root / "=a" / "000.png"), "'=a", "b", "relabel", ""]]
    done = apply_corrections(
        root, read_corrections(write_table(tmp_path / "c.csv", rows)), tmp_path / "out"
    )
    assert (done.n_relabelled, done.refused) == (1, {})


def test_rows_without_an_action_are_passed_over(folder, tmp_path):
    rows = [["ok/000.png", "", "ok", "nok", "", ""]]
    marks = read_corrections(write_table(tmp_path / "c.csv", rows))
    assert str(apply_corrections(folder, marks, tmp_path / "out")).endswith(" 6 as they were")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"path,new\na,b\n", "lacks the columns sha256, old, action; it has 'path', 'new'"),
        (b"", "lacks the columns path, sha256, old, new, action; it has 'none'"),
        (b"\xff\xfe\x00", "is no table of corrections"),
        (b'path,sha256,old,new,action\n"a,b', "is no table of corrections"),
        (b"path,sha256,old,new,action\n" + b"x" * 200_000, "is no table of corrections"),
    ],
    ids=["columns", "empty", "binary", "quote", "long"],
)
def test_what_is_no_table_is_refused(tmp_path, content, message):
    (tmp_path / "c.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_corrections(tmp_path / "c.csv")


def test_a_table_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no\.csv' is no table of corrections"):
        read_corrections(tmp_path / "no.csv")
