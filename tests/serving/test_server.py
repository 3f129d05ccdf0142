"""`learnkit serve` in a process of its own: ready, asked, told to stop."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from deploy_helpers import make_continual, shades, without_timing
from serving_helpers import BEARER, TOKEN, form, png

pytest.importorskip("uvicorn")
import httpx
import uvicorn
from starlette.testclient import TestClient

from learnkit import load_learner
from learnkit.cli.app import main
from learnkit.deploy.predictor import Predictor
from learnkit.deploy.runtime_predictor import RuntimePredictor
from learnkit.errors import BundleNotFoundError, ServingError
from learnkit.serving.app import create_app
from learnkit.serving.http_errors import Refusal
from learnkit.serving.server import (
    Reloader,
    bound_socket,
    open_model,
    serve,
    uvicorn_server,
    warm_up,
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    path = tmp_path_factory.mktemp("served") / "model"
    make_continual({"ok": 6, "bad": 5}).save(path)
    return path


def test_a_served_model_answers_learns_and_stops_when_it_is_told_to(bundle, tmp_path):
    (tmp_path / "token").write_text(TOKEN, encoding="utf-8")
    options = ["--port", "0", "--allow-extend", "--token-file", str(tmp_path / "token")]
    command = [sys.executable, "-m", "learnkit", "serve", str(bundle), *options]
    command += ["--out", str(tmp_path / "learned"), "--max-queue", "8", "--threads", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "LEARNKIT_TOKEN": "not this one, surely"}
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        encoding="utf-8",
    )
    try:
        first, ready = process.stdout.readline(), process.stdout.readline()
        assert first == f"serving 2 classes from {bundle}\n", process.stderr.read()
        assert ready.startswith("ready at http://127.0.0.1:")
        with httpx.Client(base_url=ready.split()[-1], timeout=30) as client:
            images = [png(image) for image in shades("new", 3)]
            answer = client.post("/predict", files=form(*images))
            assert [len(entry["probs"]) for entry in answer.json()["predictions"]] == [2, 2, 2]
            assert "server" not in answer.headers
            learned = client.post(
                "/extend", files=form(*images), data={"label": "new"}, headers=BEARER
            )
            assert learned.json()["change"]["classes_added"] == ["new"]
            assert learned.json()["saved"] is True
            saved = load_learner(tmp_path / "learned", sha256=learned.json()["model"])
            many = client.post("/predict", files=form(*images * 3))
            assert (many.status_code, "Too many files" in many.json()["error"]) == (400, True)
            assert client.post("/predict", content=b"x" * 33_000_000).status_code == 413
            assert client.get("/health").json()["unsaved_changes"] == 0
            logged = [process.stdout.readline() for _ in range(5)]
            process.send_signal(signal.SIGHUP)
            reloaded = process.stdout.readline()
            assert client.get("/model").json()["model"] == learned.json()["model"]
            whole = (tmp_path / "learned" / "model.safetensors").read_bytes()
            (tmp_path / "learned" / "model.safetensors").write_bytes(whole[:-1])
            process.send_signal(signal.SIGHUP)
            logged.append(process.stdout.readline())
            refused = process.stdout.readline()
            assert client.post("/predict", files=form(*images)).status_code == 200
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, TOKEN in errors) == (0, False)
    columns = [line.split(" ") for line in logged]
    assert [(verb, path, status) for _, _, verb, path, status, _, _ in columns] == [
        ("POST", "/predict", "200"),
        ("POST", "/extend", "200"),
        ("POST", "/predict", "400"),
        ("POST", "/predict", "413"),
        ("GET", "/health", "200"),
        ("GET", "/model", "200"),
    ]
    assert reloaded == f"reloaded: serving 3 classes, model {learned.json()['model'][:12]}\n"
    assert refused.startswith("not reloaded, the former model goes on: ")
    assert output.splitlines()[-2:] == [
        "stopping after 0 requests under way",
        f"stopped after 7 answers and 6 predictions; what was learned is in {tmp_path / 'learned'}",
    ]
    (tmp_path / "learned" / "model.safetensors").write_bytes(whole)
    assert saved.classes == ("ok", "bad", "new")
    assert saved.predict(images[0]).label == "new"
    assert load_learner(bundle).classes == ("ok", "bad")


@pytest.fixture(scope="module")
def optimised(tmp_path_factory):
    """A bundle saved from a variant in onnxruntime, as `optimize` makes it."""
    pytest.importorskip("onnxruntime")
    path = tmp_path_factory.mktemp("optimised") / "model"
    source = make_continual({"ok": 6, "bad": 5})
    settings = {"backend": "onnxruntime", "threads": 1, "force": True, "progress": False}
    with without_timing():
        source.optimize(**settings)[0].save(path)
    return path


@pytest.mark.parametrize(
    ("variant", "learning", "kind"),
    [
        ("onnxruntime-float32", False, RuntimePredictor),
        ("onnxruntime-float32", True, Predictor),
        (None, False, Predictor),
        ("float32", True, Predictor),
        ("float32", False, Predictor),
    ],
)
def test_threads_reach_whatever_runs_the_network(optimised, monkeypatch, variant, learning, kind):
    given = []
    monkeypatch.setattr(torch, "set_num_threads", given.append)
    monkeypatch.setattr("learnkit.backends.registry.n_threads", lambda threads=None: threads or 2)
    predictor = open_model(optimised, variant=variant, threads=1, learning=learning)
    found = given[-1] if kind is Predictor else predictor.threads
    assert (type(predictor), found) == (kind, 1)


def test_a_model_has_run_its_largest_batch_before_it_is_ready(optimised, monkeypatch):
    model, sizes = open_model(optimised, variant="onnxruntime-float32", threads=1), []
    run = model.session.run
    monkeypatch.setattr(
        model.session, "run", lambda images: sizes.append(len(images)) or run(images)
    )
    warm_up(model, 7)
    assert sizes == [7]


def test_a_variant_is_served_without_torch_as_it_predicts_with_it(optimised):
    predictor = open_model(optimised, variant="onnxruntime-float32", threads=1)
    images = shades("ok", 3, seed=4)
    service = create_app(predictor)
    with TestClient(service) as client:
        answer = client.post("/predict", files=form(*map(png, images))).json()["predictions"]
        refused = client.post("/extend?label=new", content=png(images[0]), headers=BEARER)
        facts = client.get("/model").json()
    wanted = load_learner(optimised, threads=1).predict_batch(images)
    for entry, prediction in zip(answer, wanted, strict=True):
        assert entry["label"] == prediction.label
        assert list(entry["probs"].values()) == pytest.approx(prediction.probs.tolist(), abs=1e-5)
        assert entry["ood_score"] == pytest.approx(prediction.ood_score, abs=1e-3)
    assert (facts["classes"], facts["can_extend"]) == (["ok", "bad"], False)
    assert refused.status_code == 403


def test_connections_are_counted_and_those_refused_are_closed(bundle, monkeypatch):
    monkeypatch.setattr("learnkit.serving.limits._MOST_CONNECTIONS", 3)
    app, ready = create_app(load_learner(bundle)), threading.Event()
    config = uvicorn.Config(app, port=0, log_level="warning")
    server = uvicorn_server(uvicorn, config, ready.set, app.state.service, lambda line: None)
    listener = bound_socket("127.0.0.1", 0)
    # signals reach the main thread alone
    monkeypatch.setattr(server, "capture_signals", contextlib.nullcontext)
    monkeypatch.delattr(signal, "SIGHUP")
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        assert ready.wait(30)
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with contextlib.ExitStack() as idle:
            for _ in range(3):
                idle.enter_context(socket.create_connection(listener.getsockname()))
            refused, watched = (httpx.get(f"{address}/{name}") for name in ("model", "health"))
            assert (refused.status_code, watched.status_code) == (503, 200)
            assert refused.headers["connection"] == "close"
        while app.state.service.gate.n_connections():
            time.sleep(0.01)
        assert httpx.get(f"{address}/model").status_code == 200
    finally:
        server.should_exit = True
        thread.join()


def test_an_address_in_use_is_told_in_a_sentence(bundle):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ServingError, match=f"127.0.0.1:{port} cannot be used .*--port"):
            serve(bundle, port=port)
    with pytest.raises(ServingError, match=r"no\.such\.host\.invalid:8000 cannot be used"):
        serve(bundle, host="no.such.host.invalid")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (["--allow-extend"], "there is no token; put one into a file"),
        (["--allow-extend", "--host", "0.0.0.0"], "'0.0.0.0' can be reached from other machines"),
        (["--allow-extend", "--token-file", "none"], "none cannot be read"),
    ],
)
def test_mistakes_are_told_before_anything_is_loaded(
    bundle, tmp_path, monkeypatch, capsys, options, match
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LEARNKIT_TOKEN", raising=False)
    with pytest.raises(SystemExit) as caught:
        main(["serve", str(bundle), "--port", "0", *options])
    err = capsys.readouterr().err
    assert caught.value.code == 2
    assert (err.count("\n"), match in err) == (1, True), err


def test_who_asks_for_a_reload_during_one_is_served_by_one_more(caplog):
    begun, said = [], []

    class Served:
        async def reload_model(self):
            begun.append(len(begun))
            if len(begun) == 1:
                for _ in range(3):
                    reloader.ask()
                    await asyncio.sleep(0)
            if len(begun) == 2:
                raise Refusal(409, "not reloaded, the former model goes on: broken")
            if len(begun) == 3:
                raise MemoryError
            return {"classes": ["a", "b"], "model": "0123456789abcdef"}

    reloader = Reloader(Served(), said.append)

    async def ask():
        for _ in range(3):
            reloader.ask()
            await reloader._task

    asyncio.run(ask())
    assert begun == [0, 1, 2, 3]
    assert said == [
        "reloaded: serving 2 classes, model 0123456789ab",
        "not reloaded, the former model goes on: broken",
        "reloaded: serving 2 classes, model 0123456789ab",
    ]
    assert "not reloaded, the former model goes on" in caplog.text


def test_several_processes_answer_count_together_and_are_replaced(bundle):
    command = [sys.executable, "-m", "learnkit", "serve", str(bundle), "--port", "0"]
    process = subprocess.Popen(
        [*command, "--workers", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "LEARNKIT_TOKEN": TOKEN},
        encoding="utf-8",
    )
    said = []

    def until(*parts, times=1):
        while sum(all(part in line for part in parts) for line in said) < times:
            said.append(process.stdout.readline())
            assert said[-1], process.stderr.read()
        return said[-1]

    try:
        address = until("ready at http://127.0.0.1:").split()[-1]
        for number in (1, 2):
            assert f"worker {number}: serving 2 classes from {bundle}\n" in said
        image = png(shades("ok", 1)[0])
        for _ in range(8):  # each its own connection, whichever process takes it
            assert httpx.post(f"{address}/predict", content=image).status_code == 200
        metrics = httpx.get(f"{address}/metrics").text
        assert 'learnkit_predictions_total{label="ok"} 8.0' in metrics
        refused = httpx.post(f"{address}/reload", headers=BEARER)
        assert (refused.status_code, "send SIGHUP to the server" in refused.text) == (501, True)
        process.send_signal(signal.SIGHUP)
        until("reloaded: serving 2 classes", times=2)
        begun = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text("ascii").split()
        names = {int(pid): Path(f"/proc/{pid}/cmdline").read_text("utf-8") for pid in begun}
        # another child keeps track of what processes share
        os.kill(next(pid for pid, name in names.items() if "spawn_main" in name), signal.SIGKILL)
        until("ended with exit code -9 and is started again")
        assert httpx.post(f"{address}/predict", content=image).status_code == 200
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, errors) == (0, "")
    assert "stopping 2 processes" in output


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"processes": 0}, "`processes` is 0; it must be a whole number of at least 1"),
        ({"processes": 2, "allow_extend": True, "token": TOKEN}, "would learn something else"),
    ],
)
def test_processes_that_cannot_be_are_refused(bundle, options, match):
    with pytest.raises(ServingError, match=match):
        serve(bundle, port=0, **options)


def test_what_no_process_can_open_is_told_as_by_one(tmp_path):
    with pytest.raises(BundleNotFoundError, match="nothing"):
        serve(tmp_path / "nothing", port=0, processes=2, say=lambda line: None)
