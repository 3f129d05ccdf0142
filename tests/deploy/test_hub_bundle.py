"""Bundles on the hub, by its own client, against a small server that speaks as the hub does."""

import base64
import hashlib
import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest
import torch
from deploy_helpers import make_continual, make_predictor, strange

from learnkit import load_learner, load_runtime
from learnkit.cli.app import main
from learnkit.deploy import hub_bundle
from learnkit.deploy.hub_bundle import located
from learnkit.errors import (
    BundleCorruptError,
    BundleError,
    BundleNotFoundError,
    BundleWriteError,
    MissingExtraError,
)
from learnkit.learner.learner import ImageLearner

NAME = "plant/parts"


class Hub:
    """Repositories as the hub keeps them: files by commit, commits by branch."""

    def __init__(self):
        self.commits, self.branches, self.seen = {}, {}, []

    def commit(self, repository, files, branch="main"):
        digest = hashlib.sha256()
        for name, data in sorted(files.items()):
            digest.update(name.encode() + data)
        number = digest.hexdigest()[:40]
        self.commits[repository, number] = dict(files)
        self.branches.setdefault(repository, {})[branch] = number
        return number

    def find(self, repository, revision="main"):
        """(commit, files), or None."""
        number = self.branches.get(repository, {}).get(revision, revision)
        found = self.commits.get((repository, number))
        return None if found is None else (number, found)

    def answer(self, method, path, body):
        """(status, headers, content) of a request."""
        parts = [unquote(part) for part in path.split("/")[1:]]
        self.seen.append((method, "/".join(parts)))
        if parts[:3] == ["api", "repos", "create"]:
            given = json.loads(body)
            repository = "/".join(filter(None, (given.get("organization"), given["name"])))
            status = 409 if repository in self.branches else 200
            self.made = given
            if status == 200:
                self.commit(repository, {})
            return status, {}, {"url": f"{self.address}/{repository}"}
        if parts[0] == "api" and parts[1] != "models":
            return 200, {}, {"errors": [], "warnings": []}
        repository = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        if repository not in self.branches:
            return 404, {"X-Error-Code": "RepoNotFound"}, {"error": "Repository not found"}
        if parts[0] == "api":
            return self._api(repository, parts[4:], body)
        found = self.find(repository, parts[3])
        if found is None:
            return 404, {"X-Error-Code": "RevisionNotFound"}, {"error": "Invalid rev"}
        data = found[1].get("/".join(parts[4:]))
        if data is None:
            return 404, {"X-Error-Code": "EntryNotFound"}, {"error": "Entry not found"}
        etag = hashlib.sha256(data).hexdigest()
        return 200, {"X-Repo-Commit": found[0], "ETag": f'"{etag}"'}, data

    def _api(self, repository, parts, body):
        verb, revision = parts[0] if parts else "revision", parts[1] if len(parts) > 1 else "main"
        if verb == "preupload":
            modes = [
                {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                for one in json.loads(body)["files"]
            ]
            return 200, {}, {"files": modes}
        if verb == "branch":
            self.branches[repository].setdefault(revision, self.branches[repository]["main"])
            return 200, {}, {}
        if self.find(repository, revision) is None:
            return 404, {"X-Error-Code": "RevisionNotFound"}, {"error": "Invalid rev id"}
        number, files = self.find(repository, revision)
        if verb == "commit":
            files = dict(files)
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "deletedFile":
                    del files[value["path"]]
            number = self.commit(repository, files, revision)
            return (
                200,
                {},
                {"commitUrl": f"{self.address}/{repository}/commit/{number}", "commitOid": number},
            )
        if verb == "tree":
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": "0" * 40}
                for name, data in files.items()
            ]
            return 200, {}, tree
        siblings = [{"rfilename": name, "size": len(data)} for name, data in files.items()]
        return 200, {}, {"id": repository, "sha": number, "siblings": siblings, "private": False}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub of its own, with an empty cache."""
    found = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.headers.get("Transfer-Encoding") == "chunked":
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            status, headers, content = found.answer(self.command, urlsplit(self.path).path, body)
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            kind = "application/octet-stream" if content is data else "application/json"
            for name, value in {"Content-Type": kind, **headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_HEAD = do_POST = do_GET

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    found.address = address = f"http://127.0.0.1:{server.server_port}"
    constants = huggingface_hub.constants
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)  # as HF_ENDPOINT does
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub_bundle, "SECONDS", 2.0)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    found.close = lambda: (server.shutdown(), server.server_close())
    yield found
    found.close()


def publish(hub, folder, branch="main", **changed):
    """Put a bundle's folder into the hub without the client."""
    files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    content = {name: path.read_bytes() for name, path in files.items()} | changed
    return hub.commit(NAME, content, branch)


def images(n=2):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(256, (n, 3, 32, 32), dtype=torch.uint8, generator=generator)


def test_what_is_published_is_what_is_fetched(hub, tmp_path):
    predictor = make_predictor()
    digest = predictor.push_to_hub(NAME, card={"name": "Parts"})
    assert predictor.digest is None  # nothing of it has changed
    assert digest == predictor.save(tmp_path / "model", card={"name": "Parts"})
    _, files = hub.find(NAME)
    assert files == {
        path.relative_to(tmp_path / "model").as_posix(): path.read_bytes()
        for path in (tmp_path / "model").rglob("*")
    }
    assert b"# Parts" in files["README.md"]
    assert hub.made["visibility"] == "private"
    found = load_learner(f"hf-hub:{NAME}", sha256=digest)
    assert torch.equal(found.logits(images()), predictor.logits(images()))
    assert found.digest == digest
    with pytest.raises(BundleCorruptError, match="not the pinned bundle"):
        load_learner(f"hf-hub:{NAME}", sha256="0" * 64)


def test_what_an_earlier_bundle_left_is_taken_away_and_other_files_stay(hub):
    make_continual({"ok": 2, "bad": 2}).push_to_hub(NAME)
    hub.commit(NAME, {**hub.find(NAME)[1], "LICENSE": b"mine", "variants/a-b.json": b"{}"})
    make_predictor().push_to_hub(NAME)
    assert hub.find(NAME)[1].keys() == {
        *("LICENSE", "README.md", "config.json", "manifest.json"),
        *("model.safetensors", "probe.safetensors"),
    }


def test_a_repository_of_other_things_is_not_replaced(hub):
    hub.commit(NAME, {"pytorch_model.bin": b"x", "README.md": b"y"})
    before = hub.find(NAME)
    with pytest.raises(BundleWriteError, match=r"no bundle put there \(pytorch_model.bin\)"):
        make_predictor().push_to_hub(NAME)
    assert hub.find(NAME) == before


def test_branches_tags_and_commits_are_told_by_revision(hub, saved, tmp_path):
    first = publish(hub, saved[0])
    other = make_predictor(classes=["x", "y", "z"])
    other.save(tmp_path / "other")
    publish(hub, tmp_path / "other", "next")
    place = f"hf-hub:{NAME}"
    assert load_learner(place).digest == saved[1]
    assert load_learner(f"{place}@next").classes == ("x", "y", "z")
    assert load_learner(place, revision="next").classes == ("x", "y", "z")
    assert load_learner(place, revision=first).digest == saved[1]
    with pytest.raises(BundleNotFoundError, match=f"{NAME}@nowhere is not there, or not for you"):
        load_learner(place, revision="nowhere")
    with pytest.raises(
        BundleNotFoundError, match=r"nobody/nothing@main is not there.*`hf auth login`"
    ):
        load_learner("hf-hub:nobody/nothing")
    assert other.push_to_hub(f"{NAME}@later")
    assert load_learner(place, revision="later").classes == ("x", "y", "z")
    assert hub.find(NAME)[0] == first


def test_only_what_the_manifest_lists_is_fetched(hub, saved):
    publish(hub, saved[0], **{"evil.pkl": b"\x80", "variants/x.py": b"import os"})
    folder = located(f"hf-hub:{NAME}")
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert names == {path.name for path in saved[0].iterdir()}
    assert not any("evil" in path or ".py" in path for _, path in hub.seen)


def test_nothing_is_fetched_where_sizes_differ_from_the_manifest(hub, saved, monkeypatch):
    publish(hub, saved[0], **{"model.safetensors": b"x" * 10})
    with pytest.raises(BundleCorruptError, match=r"model.safetensors with \d+ bytes.*has 10"):
        load_learner(f"hf-hub:{NAME}")
    publish(hub, saved[0], **{"manifest.json": b" " * 2_000_000})
    with pytest.raises(BundleCorruptError, match=r"manifest.json has 2000000 bytes"):
        load_learner(f"hf-hub:{NAME}")
    hub.commit(NAME, {"model.safetensors": b"x"})
    with pytest.raises(BundleNotFoundError, match=r"holds no bundle: it has no manifest.json"):
        load_learner(f"hf-hub:{NAME}")
    assert not any("safetensors" in path for _, path in hub.seen)


def test_a_file_that_is_altered_on_the_hub_is_refused(hub, saved):
    data = bytearray((saved[0] / "model.safetensors").read_bytes())
    data[-1] ^= 1
    publish(hub, saved[0], **{"model.safetensors": bytes(data)})
    with pytest.raises(BundleCorruptError, match=r"model.safetensors is damaged"):
        load_learner(f"hf-hub:{NAME}")


def test_pins_are_served_by_the_cache_alone(hub, saved):
    commit = publish(hub, saved[0])
    load_learner(f"hf-hub:{NAME}")
    hub.seen.clear()
    assert load_learner(f"hf-hub:{NAME}@{commit}").digest == saved[1]
    assert load_learner(f"hf-hub:{NAME}", sha256=saved[1]).digest == saved[1]
    assert hub.seen == []
    load_learner(f"hf-hub:{NAME}")  # main may be another one by now
    assert hub.seen


def test_without_the_hub_the_cache_answers_or_the_ways_out_are_named(hub, saved, monkeypatch):
    publish(hub, saved[0])
    load_learner(f"hf-hub:{NAME}")
    hub.close()
    with pytest.warns(UserWarning, match="cannot be fetched.*fetched before is taken, commit"):
        assert load_learner(f"hf-hub:{NAME}").digest == saved[1]
    with pytest.raises(
        BundleNotFoundError, match=r"Ways out: a filled cache \(HF_HOME\), a mirror"
    ):
        load_learner("hf-hub:plant/other")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(BundleNotFoundError, match="copy of the repository's files in a folder"):
        load_learner("hf-hub:plant/other")
    with pytest.raises(BundleWriteError, match=f"{NAME} cannot be written on http://127"):
        make_predictor().push_to_hub(NAME)


@pytest.mark.parametrize(
    "name",
    ["parts", "a/b/c", "/etc/passwd", "a/../b", "a/b@../x", "a/b@", "a b/c", "-a/b", "a/b\n", ""],
)
def test_names_that_are_no_repositories_are_refused_before_anything_is_asked(hub, name):
    for act in (lambda: load_learner(f"hf-hub:{name}"), lambda: make_predictor().push_to_hub(name)):
        with pytest.raises(BundleError, match="names no repository of the hub"):
            act()
    assert hub.seen == []


def test_revisions_are_for_the_hub(saved):
    with pytest.raises(BundleError, match="`revision`='main' is for hf-hub:OWNER/NAME"):
        load_learner(saved[0], revision="main")
    with pytest.raises(BundleError, match="`revision`='main' is for hf-hub:OWNER/NAME"):
        load_runtime(saved[0], revision="main")


def test_learners_go_on_from_the_hub(hub, saved):
    publish(hub, saved[0])
    assert list(ImageLearner.from_bundle(f"hf-hub:{NAME}").dls.vocab) == [
        *load_learner(saved[0]).classes
    ]


def test_without_the_client_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match="pip install huggingface_hub"):
        load_runtime(f"hf-hub:{NAME}")


def test_commands_take_the_name_of_a_repository(hub, tmp_path, capsys):
    predictor = make_continual({"ok": 3, "bad": 3})
    predictor.save(tmp_path / "model")
    publish(hub, tmp_path / "model")
    shutil.rmtree(tmp_path / "model")
    from PIL import Image

    Image.fromarray(strange(1)[0]).save(tmp_path / "a.png")
    for argv, code, said in [
        (["report", f"hf-hub:{NAME}"], 0, "knows"),
        (["predict", f"hf-hub:{NAME}@main", str(tmp_path / "a.png")], 0, "a.png"),
        (["rename", f"hf-hub:{NAME}", "ok=fine", "--out", str(tmp_path / "new")], 0, "Written"),
        (["rename", f"hf-hub:{NAME}", "ok=fine"], 2, "is no folder: a bundle is written to one"),
    ]:
        with pytest.raises(SystemExit) as caught:
            main(argv)
        out, err = capsys.readouterr()
        assert (caught.value.code or 0, said in out + err) == (code, True), (argv, out, err)
    assert load_learner(tmp_path / "new").classes == ("fine", "bad")
