import hashlib
import json
import os

import pytest
import torch
from deploy_helpers import NEW, OLD, content

from learnkit.errors import BundleCorruptError, BundleError, BundleWriteError
from learnkit.storage.formats import tensors_to_bytes
from learnkit.storage.read_folder import MANIFEST, MAX_MANIFEST_BYTES, read_folder
from learnkit.storage.write_folder import write_folder


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
    manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    change(manifest)
    (path / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


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
    text = (path / MANIFEST).read_text(encoding="utf-8")
    (path / MANIFEST).write_text(text + " " * MAX_MANIFEST_BYTES, encoding="utf-8")


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


def test_a_bundle_inside_the_folder_given_is_named(tmp_path):
    write_folder(tmp_path / "model", OLD)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(BundleError, match=r"no manifest.json; there is one in it: .*model$"):
        read_folder(tmp_path)


def test_a_bundle_may_be_opened_through_a_link_to_its_folder(tmp_path):
    write_folder(tmp_path / "v2", OLD)
    (tmp_path / "current").symlink_to(tmp_path / "v2")
    assert content(tmp_path / "current") == OLD


def test_files_are_fetched_parsed_and_checked_in_one_call(tmp_path):
    tensors = {"w": torch.arange(3.0)}
    files = {
        "a.json": b'{"x": 1}',
        "a.safetensors": tensors_to_bytes(tensors),
        "b.json": b'{"x": NaN}',
        "b.safetensors": b"\xff" * 9,
    }
    write_folder(tmp_path / "model", files)
    folder = read_folder(tmp_path / "model")
    assert folder.bytes("a.json") == files["a.json"]
    assert folder.json("a.json") == {"x": 1}
    assert folder.arrays("a.safetensors")["w"].tolist() == [0, 1, 2]
    assert torch.equal(folder.tensors("a.safetensors")["w"], tensors["w"])
    for read in (folder.bytes, folder.json, folder.arrays, folder.tensors):
        with pytest.raises(BundleCorruptError, match=r"^manifest.json does not list c.json$"):
            read("c.json")
    with pytest.raises(BundleCorruptError, match=r"^b.json is not strict JSON"):
        folder.json("b.json")
    for read in (folder.arrays, folder.tensors):
        with pytest.raises(BundleCorruptError, match=r"^b.safetensors announces a header"):
            read("b.safetensors")
