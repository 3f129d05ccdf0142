import hashlib
import json
import os

import pytest
import torch
from deploy_helpers import NEW, OLD, content

from learnkit.errors import BundleCorruptError, BundleError, BundleWriteError
from learnkit.storage import read_folder as reading
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
    "truncated": (_truncate, "2,997 bytes long; 3,000 are in manifest"),
    "flipped bit": (_flip, "model.safetensors is damaged.*sha256"),
    "swapped files": (_swap_files, "bytes long"),
    "link": (_link, r"config.json cannot be read: it is a link.*copy the bundle.*`cp -rL`"),
    "fifo": (_fifo, "config.json cannot be read: it is a pipe or a device, no regular file"),
    "folder as file": (_folder, "config.json cannot be read: Is a directory"),
    "missing file": (lambda p: (p / "config.json").unlink(), "config.json cannot be read: No such"),
    "missing manifest": (lambda p: (p / MANIFEST).unlink(), "it has no manifest.json"),
    "long manifest": (_long_manifest, f"at most {MAX_MANIFEST_BYTES:,} are read"),
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


@pytest.mark.parametrize(
    ("name", "most"),
    [("config.json", 16_000_000), ("variants/m.onnx", 2**31 - 1), ("a.safetensors", 32 * 10**9)],
)
def test_files_larger_than_any_of_their_kind_are_refused_before_they_are_read(
    tmp_path, monkeypatch, name, most
):
    """Sparse files, which take no room on the disk; the hash need not even be right."""
    write_folder(tmp_path / "model", {name: b"x"})
    os.truncate(tmp_path / "model" / name, 40 * 10**9)
    entry = {"size": 40 * 10**9, "sha256": "0" * 64}
    edit_manifest(tmp_path / "model", lambda m: m["files"].update({name: entry}))
    monkeypatch.setattr(reading, "_read_listed", lambda *_: pytest.fail("it is read"))
    with pytest.raises(
        BundleCorruptError, match=f"{name} with 40000000000 bytes; at most {most} are read"
    ):
        read_folder(tmp_path / "model", wanted={name})


def test_files_that_do_not_fit_into_memory_are_refused_before_they_are_read(tmp_path, monkeypatch):
    write_folder(tmp_path / "model", OLD)
    monkeypatch.setattr(reading, "_free_memory", lambda: 3007)
    with pytest.raises(BundleError, match=r"files of 0.0 GB, and 0.0 GB of memory are free"):
        read_folder(tmp_path / "model")
    monkeypatch.setattr(reading, "_free_memory", lambda: 3008)
    assert read_folder(tmp_path / "model").files == OLD


def test_free_memory_is_the_least_of_what_machine_and_container_say(tmp_path, monkeypatch):
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:   7 kB\n")
    (tmp_path / "max").write_text("max\n")
    (tmp_path / "limit").write_text("5000\n")
    files = [tmp_path / name for name in ("meminfo", "max", "limit", "nowhere")]
    patterns = [r"^MemAvailable:\s+(\d+) kB", *[r"^(\d+)$"] * 3]
    monkeypatch.setattr(reading, "_MEMORY", [*zip(files, patterns, strict=True)])
    assert reading._free_memory() == 5000
    monkeypatch.setattr(reading, "_MEMORY", [(files[0], patterns[0]), (files[1], patterns[1])])
    assert reading._free_memory() == 7 * 1024
    monkeypatch.setattr(reading, "_MEMORY", [])
    assert reading._free_memory() is None


def snapshot(folder, target):
    """`folder`, a bundle, as a Hugging Face cache keeps it: links into a folder of blobs."""
    (target / "blobs").mkdir(parents=True)
    place = target / "snapshots" / "c0ffee"
    for number, path in enumerate(sorted(p for p in folder.rglob("*") if p.is_file())):
        link = place / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target / "blobs" / f"{number:040x}")
        link.symlink_to(os.path.relpath(target / "blobs" / f"{number:040x}", link.parent))
    return place


def test_links_of_a_hugging_face_cache_are_followed_to_its_blobs(tmp_path):
    digest = write_folder(tmp_path / "model", NEW)
    place = snapshot(tmp_path / "model", tmp_path / "models--a--b")
    assert read_folder(place, sha256=digest, wanted=NEW).files == NEW
    (tmp_path / "link").symlink_to(place)
    assert read_folder(tmp_path / "link", wanted=NEW).files == NEW


def _out_of(name):
    return lambda place, outside: (
        (place / name).unlink(),
        (place / name).symlink_to(os.path.relpath(outside, (place / name).parent)),
    )


def _blob_is_a_link(place, outside):
    blob = (place / "config.json").resolve()
    blob.unlink()
    blob.symlink_to(outside)


def _blobs_are_a_link(place, outside):
    blobs = place.parents[1] / "blobs"
    blobs.rename(place.parents[1] / "elsewhere")
    blobs.symlink_to(place.parents[1] / "elsewhere")


def _variants_are_a_link(place, outside):
    (place / "variants").rename(place.parent / "v")
    (place / "variants").symlink_to(place.parent / "v")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_out_of("config.json"), "config.json cannot be read: it is a link"),
        (_out_of(MANIFEST), "manifest.json cannot be read: it is a link"),
        (_out_of("variants/m.onnx"), "m.onnx cannot be read: it is a link"),
        (_blob_is_a_link, "config.json cannot be read"),
        (_blobs_are_a_link, "manifest.json cannot be read: it is a link"),
        (_variants_are_a_link, "variants is a link"),
    ],
)
def test_links_that_leave_a_hugging_face_cache_are_refused(tmp_path, change, reason):
    write_folder(tmp_path / "model", NEW)
    (tmp_path / "outside").write_bytes(NEW["config.json"])
    place = snapshot(tmp_path / "model", tmp_path / "models--a--b")
    change(place, tmp_path / "outside")
    with pytest.raises(BundleCorruptError, match=reason):
        read_folder(place, wanted=NEW)


def test_a_snapshot_of_the_hub_is_not_written_to(tmp_path):
    write_folder(tmp_path / "model", OLD)
    place = snapshot(tmp_path / "model", tmp_path / "models--a--b")
    for target in (place, place.with_name("other")):
        with pytest.raises(BundleWriteError, match="a snapshot in a Hugging Face cache"):
            write_folder(target, NEW)
    assert content(place) == OLD


def test_the_header_of_a_file_tells_its_tensors_without_reading_them(tmp_path):
    tensors = {"w": torch.zeros(3, 5), "n": torch.zeros(2, dtype=torch.int16), "b": torch.ones(())}
    tensors |= {"h": torch.zeros(0, 4, dtype=torch.bfloat16), "k": torch.zeros(7, dtype=torch.bool)}
    write_folder(tmp_path / "model", {"w.safetensors": tensors_to_bytes(tensors)})
    found = read_folder(tmp_path / "model", wanted=()).empty_tensors("w.safetensors")
    assert {n: (t.shape, t.dtype) for n, t in found.items()} == {
        n: (t.shape, t.dtype) for n, t in tensors.items()
    }
    assert all(t.is_meta for t in found.values())


def _header(entries, rest=b""):
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + rest


def _entry(kind, shape):
    return {"dtype": kind, "shape": shape, "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\xff" * 20, "announces a header of"),
        (_header({"w": _entry("F32", [2])}), "holds other bytes than those of its tensors"),
        (_header({"w": _entry("F32", [2])}, b"x" * 9), "other bytes"),
        (_header({"w": _entry("F32", [10**6, 10**6])}, b"x" * 8), "which no weight is"),
        (_header({"w": _entry("F32", [-2, -1])}, b"x" * 8), "which no weight is"),
        (_header({"w": _entry("F32", [True, 2])}, b"x" * 8), "which no weight is"),
        (_header({"w": _entry("F32", [0] * 9)}), "which no weight is"),
        (_header({"w": _entry("OBJECT", [2])}, b"x" * 8), "'OBJECT' of shape"),
        (_header({"w": 3}), "None of shape None"),
    ],
)
def test_headers_that_do_not_account_for_their_file_are_refused(tmp_path, data, reason):
    write_folder(tmp_path / "model", {"w.safetensors": data})
    with pytest.raises(BundleCorruptError, match=reason):
        read_folder(tmp_path / "model", wanted=()).empty_tensors("w.safetensors")


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
