"""The server of the labelling page as a shell starts it: one at a time, ended with all saved."""

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
from deploy_helpers import make_continual, strange, without_timing
from labelling_helpers import put
from typer.testing import CliRunner

from learnkit import load_learner
from learnkit.cli.app import app
from learnkit.errors import ServingError
from learnkit.serving.labelling.label_server import serve_labelling
from learnkit.storage.filesystem import locked

ROOT = Path(__file__).parents[3]


def asked(link, path, body=None, cookie=None):
    """(answer, its cookie) of the server behind a link."""
    import json

    address = link.partition("/label?")[0]
    headers = {"Origin": address, "X-Learnkit": "1"} | ({"Cookie": cookie} if cookie else {})
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(address + path, data, headers)) as answer:
        return json.load(answer), (answer.headers["Set-Cookie"] or "").partition(";")[0]


@contextmanager
def begun(room, *options):
    """A server as a shell starts it, its first three lines, its link, and who has come in."""
    command = [sys.executable, "-m", "learnkit", "label", room / "model", room / "inbox", *options]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = subprocess.Popen(
        [*map(str, command), "--port", "0", "--no-open"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        env=env,
    )
    with run:
        try:
            said = [run.stdout.readline() for _ in range(3)]
            link = re.search(r"open (http://\S+)", said[1]).group(1)
            _, cookie = asked(link, "/label/login", {"key": link.partition("key=")[2]})
            yield run, said, link, cookie
        finally:
            run.kill()


def label_first(link, cookie):
    """Name the first image that is asked for `bad`."""
    images = []
    while not images:
        images = asked(link, "/label/queue?n=1", cookie=cookie)[0]["images"]
        time.sleep(0.1)
    label = {"ids": [images[0]["id"]], "label": "bad", "key": "k" * 16}
    assert asked(link, "/label/answer", label, cookie)[0]["result"] == "learned"


def test_a_label_given_right_before_sigterm_is_in_the_bundle(room):
    with begun(room) as (run, said, link, cookie):
        address = link.partition("/label?")[0]
        stream = urllib.request.Request(address + "/label/events", headers={"Cookie": cookie})
        streaming = urllib.request.urlopen(stream)  # a page that stays open
        label_first(link, cookie)
        run.send_signal(signal.SIGTERM)
        rest = run.communicate()[0]
        streaming.close()
    assert run.returncode == 0
    assert said[0].startswith("7 images in ")
    assert f"stopped; 1 label in force is in {room / 'model'}" in rest
    assert load_learner(room / "model").continual.n_images == {"ok": 6, "bad": 6}
    assert not (room / "model.lock").exists()


def test_a_variant_learns_what_it_computes_itself(tmp_path):
    pytest.importorskip("onnxruntime")
    with without_timing():
        settings = {"backend": "onnxruntime", "threads": 1, "force": True, "progress": False}
        optimised = make_continual({"ok": 6, "bad": 5}).optimize(**settings)[0]
    optimised.save(tmp_path / "model")
    put(tmp_path / "inbox", "new", strange(3))
    name = optimised.variant
    with begun(tmp_path, "--variant", name, "--threads", "1") as (run, _, link, cookie):
        label_first(link, cookie)
        run.send_signal(signal.SIGTERM)
        assert "1 label in force" in run.communicate()[0]
    learned = load_learner(tmp_path / "model", variant=name, threads=1)
    assert learned.continual.n_images == {"ok": 6, "bad": 6}
    assert learned.variant == name
    (file,) = (tmp_path / "labelled" / "bad").iterdir()
    optimised.extend([file], ["bad"], progress=False)  # the same images, without a server
    assert learned.continual.knowledge.digest == optimised.continual.knowledge.digest


def test_a_variant_that_is_not_there_is_refused_by_its_name(room):
    found = CliRunner().invoke(
        app, ["label", str(room / "model"), str(room / "inbox"), "--port", "0", "--variant", "none"]
    )
    assert found.exit_code == 2
    assert "'none'" in found.output


def test_a_model_that_another_program_teaches_is_refused_with_its_number(room):
    with (
        locked(room / "model"),
        pytest.raises(ServingError, match=rf"another program \(process {os.getpid()}\); stop that"),
    ):
        serve_labelling(room / "model", room / "inbox", port=0)


def test_an_inbox_that_another_page_labels_is_refused_whatever_it_teaches(room):
    own = room / "inbox" / ".learnkit"
    with locked(own):
        for out in (None, room / "elsewhere"):
            with pytest.raises(ServingError) as e:
                serve_labelling(room / "model", room / "inbox", out=out, port=0)
    assert str(e.value) == (
        f"{own} is written to by the page of another program (process {os.getpid()}); stop that "
        "one first, or give each page an inbox of its own"
    )
    assert not (room / "model.lock").exists()


def test_a_lock_that_a_dead_program_left_is_no_lock(room):
    (room / "model.lock").write_text("999999999\n")
    with locked(room / "model"):
        assert (room / "model.lock").read_text() == f"{os.getpid()}\n"
    assert not (room / "model.lock").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["missing"], "INBOX is 'missing', which is no folder"),
        (["INBOX", "--labelled", "INBOX/named"], "lie in each other"),
        (["INBOX", "--show", "none"], "--show is 'none'; it is one of unknown, unsure, all"),
        (["INBOX", "--host", "0.0.0.0"], "--token-file"),
        (["INBOX", "--good", "none"], "--good is 'none', which is no class of the model"),
        (["INBOX", "--behind-proxy", "parts"], "--behind-proxy is 'parts'"),
    ],
)
def test_what_cannot_be_is_said_in_one_sentence(room, arguments, said):
    given = [one.replace("INBOX", str(room / "inbox")) for one in arguments]
    found = CliRunner().invoke(app, ["label", str(room / "model"), *given, "--port", "0"])
    assert found.exit_code == 2
    assert said in " ".join(found.output.split())


def test_a_model_that_cannot_learn_is_told_how_to_become_one_that_can(room, tmp_path):
    from deploy_helpers import make_predictor

    make_predictor().save(tmp_path / "plain")
    with pytest.raises(ServingError, match=r"train --continual.*learn.init_continual\(data\)"):
        serve_labelling(tmp_path / "plain", room / "inbox", port=0)
