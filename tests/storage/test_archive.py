"""A folder as bytes: exact, the same for the same files, and checked on its way back."""

import io
import zipfile

import pytest

from learnkit.errors import BundleCorruptError, BundleError
from learnkit.storage.archive import packed, unpack

FILES = {"manifest.json": b"{}", "model.safetensors": b"\x00\x01", "variants/a.json": b"[]"}


def write(folder, files):
    for name, data in files.items():
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_bytes(data)
    return folder


def zipped(files, method=zipfile.ZIP_STORED):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in files:
            archive.writestr(name, data)
    return out.getvalue()


def test_files_come_back_and_equal_folders_give_equal_bytes(tmp_path):
    data = packed(write(tmp_path / "a", FILES))
    assert data == packed(write(tmp_path / "b", dict(reversed(FILES.items()))))
    there = tmp_path / "c"
    there.mkdir()
    unpack(data, there)
    files = (path for path in there.rglob("*") if path.is_file())
    found = {path.relative_to(there).as_posix(): path.read_bytes() for path in files}
    assert found == FILES


@pytest.mark.parametrize("n_less", [5, 60])
def test_an_archive_that_is_cut_short_is_said_to_be(tmp_path, n_less):
    with pytest.raises(BundleCorruptError, match="begin as a bundle does, and are damaged or cut"):
        unpack(zipped([("manifest.json", b"{}")])[:-n_less], tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("data", [b"", b"PK", b"x" * 1000])
def test_bytes_that_are_no_archive_are_refused(tmp_path, data):
    with pytest.raises(BundleError, match="are no bundle"):
        unpack(data, tmp_path)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ([("../x", b""), ("manifest.json", b"")], "not a plain name"),
        ([("/x", b""), ("manifest.json", b"")], "not a plain name"),
        ([("a/b/c", b""), ("manifest.json", b"")], "not a plain name"),
        ([("x", b"")], "have to hold manifest.json"),
        ([*((f"f{i}", b"") for i in range(1000)), ("manifest.json", b"")], "hold 1001 files"),
    ],
)
def test_names_that_lead_elsewhere_are_refused_before_anything_is_written(tmp_path, files, said):
    with pytest.raises(BundleCorruptError, match=said):
        unpack(zipped(files), tmp_path)
    assert not any(tmp_path.iterdir())


def test_what_was_compressed_is_refused(tmp_path):
    bomb = zipped([("manifest.json", b"0" * 10_000_000)], zipfile.ZIP_DEFLATED)
    with pytest.raises(BundleCorruptError, match="compressed or encrypted"):
        unpack(bomb, tmp_path)


def test_a_name_twice_is_refused(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate name"):
        data = zipped([("manifest.json", b"{}"), ("manifest.json", b"[]")])
    with pytest.raises(BundleCorruptError, match="twice there"):
        unpack(data, tmp_path)


def test_a_flipped_byte_is_noticed(tmp_path):
    data = bytearray(zipped([("manifest.json", b"A" * 50)]))
    data[data.index(b"AAAA")] ^= 1
    with pytest.raises(BundleError, match="Bad CRC-32"):
        unpack(bytes(data), tmp_path)
