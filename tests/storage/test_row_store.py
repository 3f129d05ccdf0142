"""Rows and their log: whole or not there, whenever the writer is killed."""

import json
import os
import signal
import sys
import threading

import numpy as np
import pytest

from learnkit.errors import DataError
from learnkit.storage import row_store
from learnkit.storage.row_store import RowStore, StoredRow

SHAPE = (2, 3)
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="forks and kills")


def row(number):
    return bytes([number % 251] * 6)


def entry(number):
    return StoredRow(-1, 100 + number, 10**18 + number, f"{number:064x}")


def added(*numbers):
    return [(f"{n}.png", entry(n), row(n)) for n in numbers]


def contents(store):
    rows = store.rows()
    return {name: rows[e.row].tobytes() for name, e in store.entries.items()}


def filled(folder, *numbers):
    store = RowStore(folder, SHAPE, {"size": 3})
    with store.writing() as append:
        append(added(*numbers))
    return store


def test_rows_come_back_by_name(tmp_path):
    filled(tmp_path / "s", 1, 2)
    store = filled(tmp_path / "s", 3)
    assert contents(store) == {f"{n}.png": row(n) for n in (1, 2, 3)}
    assert store.rows().shape == (3, *SHAPE)
    with pytest.raises(ValueError, match="read-only"):
        store.rows()[0, 0, 0] = 1


def test_a_changed_file_gets_a_new_row_and_its_readers_keep_the_old(tmp_path):
    store = filled(tmp_path, 1, 2)
    reader = RowStore(tmp_path, SHAPE, {"size": 3})
    before = reader.rows()
    with store.writing() as append:
        append([("1.png", entry(9), row(9))])
    assert contents(store) == {"1.png": row(9), "2.png": row(2)}
    assert contents(reader)["1.png"] == row(1) == before[0].tobytes()
    reader.refresh()
    assert contents(reader)["1.png"] == row(9)


def test_a_line_alone_notes_another_time_of_the_same_content(tmp_path):
    store = filled(tmp_path, 1)
    known = store.entries["1.png"]
    with store.writing() as append:
        append([("1.png", StoredRow(known.row, known.size, 5, known.sha256), None)])
    assert RowStore(tmp_path, SHAPE, {"size": 3}).entries["1.png"].mtime_ns == 5
    assert store.rows().shape[0] == 1


CALLS = ["mkdir", "ftruncate", "write", "fsync"]


def killed_at(folder, call, nth):
    """Fill in a child process that dies at the `nth` call of `call`; half of a write is done."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    real, seen = getattr(os, call), []

    def dying(*args, **kwargs):
        seen.append(1)
        if len(seen) == nth:
            if call == "write":
                real(args[0], bytes(args[1])[: len(args[1]) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)

    setattr(os, call, dying)
    try:
        store = RowStore(folder, SHAPE, {"size": 3})
        with store.writing() as append:
            for n in range(1, 6):
                if f"{n}.png" not in store.entries:
                    append(added(n))
    finally:
        os._exit(0)


@pytest.mark.parametrize("call", CALLS)
def test_after_a_kill_at_any_call_what_is_told_is_there_and_the_rest_goes_on(tmp_path, call):
    n_kills = 0
    for n in range(1, 100):
        folder = tmp_path / str(n)
        status = killed_at(folder, call, n)
        if not os.WIFSIGNALED(status):
            break
        n_kills += 1
        store = RowStore(folder, SHAPE, {"size": 3})
        assert contents(store) == {name: row(int(name[:-4])) for name in store.entries}
        with store.writing() as append:
            append(added(*(n for n in range(1, 6) if f"{n}.png" not in store.entries)))
        assert contents(RowStore(folder, SHAPE, {"size": 3})) == {
            f"{n}.png": row(n) for n in range(1, 6)
        }
        for line in (folder / row_store.LOG).read_text().splitlines():
            json.loads(line)
    assert n_kills >= {"mkdir": 0, "ftruncate": 1, "write": 10, "fsync": 10}[call]


def test_killed_twice_in_a_row_it_still_goes_on(tmp_path):
    for n in (3, 4, 6, 2):
        assert os.WIFSIGNALED(killed_at(tmp_path, "write", n))
        store = RowStore(tmp_path, SHAPE, {"size": 3})
        assert contents(store) == {name: row(int(name[:-4])) for name in store.entries}


def test_writers_wait_for_each_other(tmp_path):
    store, other = filled(tmp_path, 1), RowStore(tmp_path, SHAPE, {"size": 3})
    told = pytest.warns(UserWarning, match=r"another process is filling the store .*; waiting for")
    with told as said, store.writing() as append:
        thread = threading.Thread(target=_append, args=(other, 2))
        thread.start()
        while thread.is_alive() and not len(said):
            thread.join(0.01)
        thread.join(0.3)
        assert thread.is_alive()
        append(added(3))
    thread.join(10)
    assert contents(other) == {f"{n}.png": row(n) for n in (1, 2, 3)}


def _append(store, number):
    with store.writing() as append:
        append(added(number))


def test_another_recipe_or_shape_is_refused_by_the_fields_that_differ(tmp_path):
    filled(tmp_path, 1)
    with pytest.raises(DataError, match=r"made by another recipe \(size 3 there, 4 here\); use"):
        RowStore(tmp_path, SHAPE, {"size": 4})
    with pytest.raises(DataError, match="another version"):
        RowStore(tmp_path, (3, 3), {"size": 3})


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(DataError, match=r"holds other files, such as 'thesis\.txt'"):
        RowStore(tmp_path, SHAPE, {})
    assert os.listdir(tmp_path) == ["thesis.txt"]


def test_a_store_that_another_process_makes_meanwhile_is_none_of_other_files(tmp_path, monkeypatch):
    def first_writer_comes(folder):
        monkeypatch.undo()
        filled(tmp_path, 1)
        return os.listdir(folder)

    for recipe, said in ({"size": 3}, None), ({"size": 4}, "was made by another recipe"):
        for file in tmp_path.iterdir():
            file.unlink()
        monkeypatch.setattr(row_store.os, "listdir", first_writer_comes)
        if said is None:
            assert contents(RowStore(tmp_path, SHAPE, recipe)) == {"1.png": row(1)}
            continue
        with pytest.raises(DataError, match=said):
            RowStore(tmp_path, SHAPE, recipe)


def test_a_damaged_log_costs_the_rows_it_does_not_tell_of(tmp_path):
    filled(tmp_path, 1, 2, 3)
    log = tmp_path / row_store.LOG
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(lines[0] + b"\x00\xff rubbish\n" + lines[2])
    assert set(RowStore(tmp_path, SHAPE, {"size": 3}).entries) == {"1.png", "3.png"}
    with open(tmp_path / row_store.ROWS, "r+b") as file:
        file.truncate(7)
    assert set(RowStore(tmp_path, SHAPE, {"size": 3}).entries) == {"1.png"}


def test_a_disk_that_refuses_is_told_and_what_is_stored_stays(tmp_path, monkeypatch):
    store, real, n_calls = filled(tmp_path, 1), os.write, []

    def full(descriptor, data):
        n_calls.append(1)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(DataError, match="could not be written: No space left on device; free"):
        _append(store, 2)
    monkeypatch.setattr(os, "write", real)
    assert n_calls
    assert contents(RowStore(tmp_path, SHAPE, {"size": 3})) == {"1.png": row(1)}
    _append(store, 2)
    assert np.array_equal(store.rows()[1], np.full(SHAPE, 2))
