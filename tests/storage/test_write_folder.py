import errno
import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from deploy_helpers import NEW, OLD, content

from learnkit.errors import BundleError, BundleWriteError, LearnkitError
from learnkit.storage.filesystem import FileSystem
from learnkit.storage.read_folder import MANIFEST, read_folder
from learnkit.storage.write_folder import write_folder


class Unsynced(FileSystem):
    """Does not wait for the disk: what is tested here is order and failure, not the disk."""

    def fsync(self, descriptor):
        pass


class CountingFileSystem(Unsynced):
    """Fails, or ends the process, at its `at`-th call; a write writes half of its data first."""

    def __init__(self, at=None, code=None, *, sticky=False, exchange=True):
        self._at, self._code, self._sticky, self._exchange = at, code, sticky, exchange
        self.n_calls, self.log = 0, []

    def __getattribute__(self, name):
        method = super().__getattribute__(name)
        if name.startswith("_") or not callable(method):
            return method
        return lambda *args: self._call(name, method, *args)

    def _call(self, name, method, *args):
        self.n_calls += 1
        self.log.append(name)
        if self._at is not None and (
            self.n_calls == self._at or (self._sticky and self.n_calls > self._at)
        ):
            if name == "write":
                method(args[0], args[1][: len(args[1]) // 2])
            if name == "close":
                method(*args)  # as close(2): the descriptor is gone whatever it reports
            if self._code is None:
                os._exit(9)
            raise OSError(self._code, os.strerror(self._code))
        if name == "exchange" and not self._exchange:
            return False
        return method(*args)


def leftovers(path):
    return [p.name for p in path.parent.iterdir() if p.name != path.name]


def n_calls(tmp_path, old, **kwargs):
    path = tmp_path / "dry" / "model"
    path.parent.mkdir()
    if old:
        write_folder(path, old, fs=Unsynced())
    fs = CountingFileSystem(**kwargs)
    write_folder(path, NEW, fs=fs)
    return fs.n_calls


FAULTS = [
    (errno.ENOSPC, old, sticky, exchange)
    for old in (None, OLD)
    for sticky in (False, True)
    for exchange in (True, False)
]
FAULTS += [(code, OLD, False, True) for code in (errno.EIO, errno.EACCES)]


@pytest.mark.parametrize(("code", "old", "sticky", "exchange"), FAULTS)
def test_a_call_that_fails_leaves_the_old_or_the_new_bundle(tmp_path, code, old, sticky, exchange):
    total, outcomes = n_calls(tmp_path, old, exchange=exchange), set()
    assert total > 12
    for at in range(1, total + 1):
        path = tmp_path / str(at) / "model"
        path.parent.mkdir()
        if old:
            write_folder(path, old, fs=Unsynced())
        fs = CountingFileSystem(at, code, sticky=sticky, exchange=exchange)
        try:
            write_folder(path, NEW, fs=fs)
        except BundleWriteError as error:
            assert os.strerror(code) in str(error)  # noqa: PT017
            expected = NEW if "new bundle stands" in str(error) else old
        else:
            expected = NEW  # only the removal of the old one failed
        assert content(path) == expected, (at, fs.log[-1])
        outcomes.add(expected is NEW)
        assert write_folder(
            path, NEW, fs=Unsynced()
        )  # the next save works, and leaves nothing behind
        assert leftovers(path) == []
    assert outcomes == {True, False}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process at every call")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork")
@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "renames"])
@pytest.mark.parametrize("old", [None, OLD], ids=["fresh", "overwrite"])
def test_a_process_killed_at_any_call_leaves_the_old_or_the_new_bundle(tmp_path, old, exchange):
    total, seen = n_calls(tmp_path, old, exchange=exchange), []
    for at in range(1, total + 1):
        path = tmp_path / str(at) / "model"
        path.parent.mkdir()
        if old:
            write_folder(path, old, fs=Unsynced())
        pid = os.fork()
        if pid == 0:  # the child never returns into pytest
            write_folder(path, NEW, fs=CountingFileSystem(at, exchange=exchange))
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
        assert content(path) in (old, NEW)
        seen.append(content(path) == NEW)
        assert write_folder(path, NEW, fs=Unsynced())
        assert leftovers(path) == []
    assert seen == sorted(seen)  # old up to one call, new from there on
    assert {True, False} == set(seen)


def test_a_killed_subprocess_leaves_the_old_bundle_and_the_next_save_sweeps(tmp_path):
    write_folder(tmp_path / "model", OLD)
    code = (
        "import os, sys\n"
        "from learnkit.storage import write_folder as atomic\n"
        "atomic._swap = lambda *args: os._exit(9)\n"
        "atomic.write_folder(sys.argv[1], {'config.json': b'x'})\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "model")], check=False)
    assert done.returncode == 9
    assert len(leftovers(tmp_path / "model")) == 1
    assert content(tmp_path / "model") == OLD
    write_folder(tmp_path / "model", NEW)
    assert leftovers(tmp_path / "model") == []


def test_a_second_writer_waits_for_the_first_and_names_it_after_a_while(tmp_path, monkeypatch):
    class Nested(FileSystem):
        def rename(self, old, new):
            with pytest.raises(BundleWriteError, match="another process has been writing a bundle"):
                write_folder(tmp_path / "model", OLD)
            super().rename(old, new)

    monkeypatch.setattr("learnkit.storage.write_folder.LOCK_SECONDS", 0.05)
    write_folder(tmp_path / "model", NEW, fs=Nested())
    assert content(tmp_path / "model") == NEW
    assert leftovers(tmp_path / "model") == []


def test_without_locks_only_old_leftovers_are_swept(tmp_path, monkeypatch):
    monkeypatch.setattr("learnkit.storage.filesystem.fcntl", None)
    for token, age in [("a" * 12, 0), ("b" * 12, 100_000)]:
        (tmp_path / f".model.new-{token}").mkdir()
        os.utime(tmp_path / f".model.new-{token}", (time.time() - age,) * 2)
    write_folder(tmp_path / "model", NEW)
    assert leftovers(tmp_path / "model") == [f".model.new-{'a' * 12}"]


def test_every_file_is_synced_before_the_swap_and_the_parent_after(tmp_path):
    fs = CountingFileSystem()
    write_folder(tmp_path / "model", NEW, fs=fs)
    swap = fs.log.index("rename")
    n_files = len(NEW) + 1
    assert fs.log[:swap].count("fsync") == n_files + 2  # and the folder and its variants/
    assert fs.log[swap:].count("fsync") == 1


def test_the_manifest_is_written_last(tmp_path):
    class Names(FileSystem):
        def open(self, path):
            names.append(path.name)
            return super().open(path)

    names = []
    write_folder(tmp_path / "model", NEW, fs=Names())
    assert names[-1] == MANIFEST
    assert sorted(names) == sorted([MANIFEST, *(Path(n).name for n in NEW)])


def test_readers_see_the_old_or_the_new_while_writers_replace_it(tmp_path):
    path, stop, failures = tmp_path / "model", threading.Event(), []
    write_folder(path, OLD)

    def read():
        try:
            while not stop.is_set():
                if content(path) not in (OLD, NEW):
                    failures.append("a mixture")
        except BundleError as error:
            failures.append(str(error))

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for files in [NEW, OLD] * 20:
        write_folder(path, files, fs=Unsynced())
    stop.set()
    for reader in readers:
        reader.join()
    assert failures == []


def test_concurrent_writers_leave_one_whole_bundle(tmp_path):
    contents = [{"config.json": str(i).encode() * 50, "b.bin": bytes([i]) * 99} for i in range(8)]
    errors = []

    def write(files):
        try:
            for _ in range(5):
                write_folder(tmp_path / "model", files, fs=Unsynced())
        except LearnkitError as error:
            errors.append(error)

    writers = [threading.Thread(target=write, args=(files,)) for files in contents]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert errors == []
    assert read_folder(tmp_path / "model").files in contents
    assert leftovers(tmp_path / "model") == []


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_modes_follow_the_umask(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write_folder(tmp_path / "model", NEW)
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "model").rglob("*") if p.is_file()}
    assert modes == {mode}
    assert stat.S_IMODE((tmp_path / "model").stat().st_mode) == 0o777 & ~umask


def test_a_full_disk_is_seen_before_anything_is_written(tmp_path):
    class Full(CountingFileSystem):
        def free_bytes(self, path):
            return 70_000

    write_folder(tmp_path / "model", OLD)
    fs = Full()
    with pytest.raises(BundleWriteError, match=r"no space left.*needs 0.\d MB, 0.1 MB are free"):
        write_folder(tmp_path / "model", {"a.bin": bytes(100_000)}, fs=fs)
    assert "mkdir" not in fs.log
    assert content(tmp_path / "model") == OLD


def test_an_unwritable_parent_leaves_the_old_bundle_and_says_why(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    write_folder(tmp_path / "model", OLD)
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(BundleWriteError, match=r"Permission denied.*choose a folder"):
            write_folder(tmp_path / "model", NEW)
    finally:
        tmp_path.chmod(0o700)
    assert content(tmp_path / "model") == OLD


def test_missing_parents_are_made_and_a_file_as_parent_is_an_error(tmp_path):
    write_folder(tmp_path / "a" / "b" / "model", OLD)
    assert content(tmp_path / "a" / "b" / "model") == OLD
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(BundleWriteError, match="could not be written"):
        write_folder(tmp_path / "file" / "model", OLD)


def test_nothing_but_a_bundle_is_replaced(tmp_path):
    def refused(path, reason):
        with pytest.raises(BundleWriteError, match=reason):
            write_folder(path, NEW)

    (tmp_path / "file").write_text("keep", encoding="utf-8")
    refused(tmp_path / "file", "is a file")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.jpg").write_text("keep", encoding="utf-8")
    refused(tmp_path / "photos", r"files that no bundle put there \(me.jpg\)")
    write_folder(tmp_path / "model", OLD)
    (tmp_path / "model" / "notes.txt").write_text("keep", encoding="utf-8")
    refused(tmp_path / "model", r"\(notes.txt\)")
    (tmp_path / "link").symlink_to(tmp_path / "model")
    refused(tmp_path / "link", "is a link")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "is a device")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / MANIFEST).write_text('{"name": "a web app"}', encoding="utf-8")
    refused(tmp_path / "other", "manifest.json")
    assert (tmp_path / "model" / "notes.txt").read_text(encoding="utf-8") == "keep"
    assert sorted(leftovers(tmp_path / "x")) == ["file", "link", "model", "other", "photos", "pipe"]


def test_nothing_is_written_into_a_bundle(tmp_path):
    about = {"schema": {"major": 1, "minor": 0}}
    write_folder(tmp_path / "model", NEW, about=about)
    for inside in ("inner", "variants", "variants/deep/er"):
        with pytest.raises(BundleWriteError, match="is inside the bundle"):
            write_folder(tmp_path / "model" / inside, OLD)
    assert content(tmp_path / "model") == NEW
    assert sorted(p.name for p in (tmp_path / "model" / "variants").iterdir()) == ["m.onnx"]
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "manifest.json").write_text(
        '{"files": {}}', encoding="utf-8"
    )  # of something else
    write_folder(tmp_path / "site" / "model", OLD)


def test_an_empty_folder_and_desktop_litter_may_be_replaced(tmp_path):
    (tmp_path / "model").mkdir()
    write_folder(tmp_path / "model", OLD)
    (tmp_path / "model" / ".DS_Store").write_bytes(b"x")
    write_folder(tmp_path / "model", NEW)
    assert content(tmp_path / "model") == NEW
