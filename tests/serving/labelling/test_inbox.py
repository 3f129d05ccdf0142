"""Files that go from the inbox to where labelled ones are kept, also on another disk."""

import errno
import os

import pytest

from learnkit.serving.labelling.inbox import move_file


@pytest.fixture
def other_disk(monkeypatch):
    """Renames fail as they do from one disk to another."""

    def rename(source, target):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "rename", rename)


def test_a_file_goes_to_another_disk_as_a_copy_and_is_gone_here(tmp_path, other_disk):
    source, target = tmp_path / "a.png", tmp_path / "kept" / "crack" / "a.png"
    source.write_bytes(b"pixels")
    move_file(source, target)
    assert target.read_bytes() == b"pixels"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.png", "crack", "kept"]


def test_a_copy_that_fails_leaves_the_file_where_it_was(tmp_path, other_disk, monkeypatch):
    source, target = tmp_path / "a.png", tmp_path / "kept" / "a.png"
    source.write_bytes(b"pixels")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        move_file(source, target)
    assert source.read_bytes() == b"pixels"
    assert list((tmp_path / "kept").iterdir()) == []


def test_other_files_are_not_written_over(tmp_path, other_disk):
    source, target = tmp_path / "a.png", tmp_path / "b.png"
    source.write_bytes(b"pixels")
    target.write_bytes(b"others")
    with pytest.raises(FileExistsError, match="another file has that name"):
        move_file(source, target)
    assert (source.read_bytes(), target.read_bytes()) == (b"pixels", b"others")
