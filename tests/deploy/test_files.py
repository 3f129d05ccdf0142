import errno
import hashlib
import json
import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from learnkit.deploy.atomic import write_folder
from learnkit.deploy.files import MANIFEST, MAX_MANIFEST_BYTES, read_folder
from learnkit.deploy.filesystem import FileSystem
from learnkit.errors import (
    BundleCorruptError,
    BundleError,
    BundleNotFoundError,
    BundleWriteError,
    LearnkitError,
)

OLD = {"config.json": b'{"v": 1}', "model.safetensors": b"old" * 1000}
NEW = {"config.json": b'{"v": 2}', "model.safetensors": b"new!" * 1000, "variants/m.onnx": b"x"}


class CountingFileSystem(FileSystem):
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


def content(path):
    """What a reader finds: the files' bytes, or None where there is no bundle."""
    try:
        return read_folder(path, wanted={*OLD, *NEW}).files
    except BundleNotFoundError:
        return None


def leftovers(path):
    return [p.name for p in path.parent.iterdir() if p.name != path.name]


def n_calls(tmp_path, old, **kwargs):
    path = tmp_path / "dry" / "model"
    path.parent.mkdir()
    if old:
        write_folder(path, old)
    fs = CountingFileSystem(**kwargs)
    write_folder(path, NEW, fs=fs)
    return fs.n_calls


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "renames"])
@pytest.mark.parametrize("sticky", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("old", [None, OLD], ids=["fresh", "overwrite"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EACCES])
def test_a_call_that_fails_leaves_the_old_or_the_new_bundle(tmp_path, code, old, sticky, exchange):
    total, outcomes = n_calls(tmp_path, old, exchange=exchange), set()
    assert total > 12
    for at in range(1, total + 1):
        path = tmp_path / str(at) / "model"
        path.parent.mkdir()
        if old:
            write_folder(path, old)
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
        assert write_folder(path, NEW)  # the next save works, and leaves nothing behind
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
            write_folder(path, old)
        pid = os.fork()
        if pid == 0:  # the child never returns into pytest
            write_folder(path, NEW, fs=CountingFileSystem(at, exchange=exchange))
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
        assert content(path) in (old, NEW)
        seen.append(content(path) == NEW)
        assert write_folder(path, NEW)
        assert leftovers(path) == []
    assert seen == sorted(seen)  # old up to one call, new from there on
    assert {True, False} == set(seen)


def test_a_killed_subprocess_leaves_the_old_bundle_and_the_next_save_sweeps(tmp_path):
    write_folder(tmp_path / "model", OLD)
    code = (
        "import os, sys\n"
        "from learnkit.deploy import atomic\n"
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

    monkeypatch.setattr("learnkit.deploy.atomic.LOCK_SECONDS", 0.05)
    write_folder(tmp_path / "model", NEW, fs=Nested())
    assert content(tmp_path / "model") == NEW
    assert leftovers(tmp_path / "model") == []


def test_without_locks_only_old_leftovers_are_swept(tmp_path, monkeypatch):
    monkeypatch.setattr("learnkit.deploy.atomic.fcntl", None)
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
        write_folder(path, files)
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
                write_folder(tmp_path / "model", files)
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
    (tmp_path / "file").write_text("x")
    with pytest.raises(BundleWriteError, match="could not be written"):
        write_folder(tmp_path / "file" / "model", OLD)


def test_nothing_but_a_bundle_is_replaced(tmp_path):
    def refused(path, reason):
        with pytest.raises(BundleWriteError, match=reason):
            write_folder(path, NEW)

    (tmp_path / "file").write_text("keep")
    refused(tmp_path / "file", "is a file")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.jpg").write_text("keep")
    refused(tmp_path / "photos", r"files that no bundle put there \(me.jpg\)")
    write_folder(tmp_path / "model", OLD)
    (tmp_path / "model" / "notes.txt").write_text("keep")
    refused(tmp_path / "model", r"\(notes.txt\)")
    (tmp_path / "link").symlink_to(tmp_path / "model")
    refused(tmp_path / "link", "is a link")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "is a device")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / MANIFEST).write_text('{"name": "a web app"}')
    refused(tmp_path / "other", "manifest.json")
    assert (tmp_path / "model" / "notes.txt").read_text() == "keep"
    assert sorted(leftovers(tmp_path / "x")) == ["file", "link", "model", "other", "photos", "pipe"]


def test_an_empty_folder_and_desktop_litter_may_be_replaced(tmp_path):
    (tmp_path / "model").mkdir()
    write_folder(tmp_path / "model", OLD)
    (tmp_path / "model" / ".DS_Store").write_bytes(b"x")
    write_folder(tmp_path / "model", NEW)
    assert content(tmp_path / "model") == NEW


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "a/b", "..", ".", "", "a\\b", "c:x", "variants/../x", MANIFEST]
)
def test_names_that_leave_the_folder_are_neither_written_nor_read(tmp_path, name):
    with pytest.raises(BundleWriteError, match="cannot name a file"):
        write_folder(tmp_path / "model", {name: b"x"})
    write_folder(tmp_path / "model", OLD)
    edit_manifest(
        tmp_path / "model", lambda m: m["files"].update({name: m["files"]["config.json"]})
    )
    with pytest.raises(BundleCorruptError, match="plain name"):
        read_folder(tmp_path / "model")


def edit_manifest(path, change):
    manifest = json.loads((path / MANIFEST).read_text())
    change(manifest)
    (path / MANIFEST).write_text(json.dumps(manifest))


def test_the_digest_is_the_manifests_and_pins_the_bundle(tmp_path):
    digest = write_folder(tmp_path / "model", OLD, about={"schema": 1})
    assert digest == hashlib.sha256((tmp_path / "model" / MANIFEST).read_bytes()).hexdigest()
    folder = read_folder(tmp_path / "model", sha256=digest)
    assert (folder.digest, folder.files, folder.manifest["schema"]) == (digest, OLD, 1)
    write_folder(tmp_path / "model", NEW)
    with pytest.raises(BundleCorruptError, match=f"not the pinned bundle.*not {digest}"):
        read_folder(tmp_path / "model", sha256=digest)
    with pytest.raises(BundleError, match="64 hexadecimal digits"):
        read_folder(tmp_path / "model", sha256="abc")


def test_variants_are_read_only_when_asked_for(tmp_path):
    write_folder(tmp_path / "model", NEW)
    assert set(read_folder(tmp_path / "model").files) == {"config.json", "model.safetensors"}
    assert read_folder(tmp_path / "model", wanted={"variants/m.onnx"}).files == {
        "variants/m.onnx": b"x"
    }


def _truncate(path):
    (path / "model.safetensors").write_bytes(b"old" * 999)


def _flip(path):
    data = bytearray((path / "model.safetensors").read_bytes())
    data[1500] ^= 1
    (path / "model.safetensors").write_bytes(data)


def _swap_files(path):
    (path / "config.json").write_bytes(OLD["model.safetensors"])
    (path / "model.safetensors").write_bytes(OLD["config.json"])


def _link(path):
    (path / "config.json").rename(path.parent / "elsewhere.json")
    (path / "config.json").symlink_to(path.parent / "elsewhere.json")


def _fifo(path):
    (path / "config.json").unlink()
    os.mkfifo(path / "config.json")


def _folder(path):
    (path / "config.json").unlink()
    (path / "config.json").mkdir()


def _long_manifest(path):
    text = (path / MANIFEST).read_text()
    (path / MANIFEST).write_text(text + " " * MAX_MANIFEST_BYTES)


DAMAGE = {
    "truncated": (_truncate, "2997 bytes long; 3000 are in manifest"),
    "flipped bit": (_flip, "model.safetensors is damaged.*sha256"),
    "swapped files": (_swap_files, "bytes long"),
    "link": (_link, "config.json cannot be read: it is a link"),
    "fifo": (_fifo, "config.json is not a regular file"),
    "folder as file": (_folder, "config.json cannot be read: Is a directory"),
    "missing file": (lambda p: (p / "config.json").unlink(), "config.json cannot be read: No such"),
    "missing manifest": (lambda p: (p / MANIFEST).unlink(), "it has no manifest.json"),
    "long manifest": (_long_manifest, f"at most {MAX_MANIFEST_BYTES} are read"),
    "no files": (lambda p: edit_manifest(p, lambda m: m.pop("files")), "no object `files`"),
    "files a list": (lambda p: edit_manifest(p, lambda m: m.update(files=[])), "no object `files`"),
}
for _entry in [{"size": True}, {"size": -1}, {"size": "3000"}, {"sha256": None}, {"sha256": "x"}]:
    DAMAGE[f"entry {_entry}"] = (
        lambda p, e=_entry: edit_manifest(p, lambda m: m["files"]["config.json"].update(e)),
        "no sound size and sha256 for 'config.json'",
    )


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_refused_with_its_cause(tmp_path, case):
    damage, reason = DAMAGE[case]
    write_folder(tmp_path / "model", OLD)
    damage(tmp_path / "model")
    with pytest.raises(BundleError, match=reason):
        read_folder(tmp_path / "model")


def test_a_path_without_a_bundle_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no bundle at .*nowhere: no such folder"):
        read_folder(tmp_path / "nowhere")
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(BundleError, match="is a file; a bundle is a folder"):
        read_folder(tmp_path / "model.bin")


def test_a_bundle_may_be_opened_through_a_link_to_its_folder(tmp_path):
    write_folder(tmp_path / "v2", OLD)
    (tmp_path / "current").symlink_to(tmp_path / "v2")
    assert content(tmp_path / "current") == OLD
