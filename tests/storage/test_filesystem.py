import os

import pytest

from learnkit.storage.filesystem import write_file


def test_a_file_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "a"
    for content in (b"one", b"another"):
        write_file(path, lambda file, data=content: file.write(data))
        assert path.read_bytes() == content
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_whatever_fails_the_old_file_stands_and_nothing_beside_it(tmp_path, monkeypatch, call):
    def fail(*_):
        raise OSError(28, "No space left on device")

    def write(file):
        file.write(b"half")
        if call == "write":
            fail()

    path = tmp_path / "a"
    path.write_bytes(b"old")
    if call != "write":
        monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="No space left"):
        write_file(path, write)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_names_and_content_are_on_the_disk_before_it_returns(tmp_path, monkeypatch):
    log, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (log.append("fsync"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (log.append("replace"), replace(a, b)))
    write_file(tmp_path / "a", lambda file: file.write(b"x"))
    assert log == ["fsync", "replace", "fsync"]
