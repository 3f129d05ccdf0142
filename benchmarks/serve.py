"""`learnkit serve` against bare `predict_batch`, and 5,000 good and bad requests in a row.

The client takes processor time, too. So that it takes none of what is measured, client and model
run on different cores: the server, and the process that calls `predict_batch` on the same JPEG
bytes, share all cores but the last and use as many threads; the client has the last one, and sends
bodies made beforehand. The two take turns. On a busy machine only the share by processor time means
anything. Then requests of many kinds, most of them bad, must each get the status they deserve, and
the server must hold as much memory at the end as after half as many requests for warming up. Needs
two cores and a system that can keep processes on them (Linux).
Run: python benchmarks/serve.py [rounds [requests]]
"""

import http.client
import io
import json
import os
import random
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import learnkit._torchvision  # noqa: F401  # before timm

import numpy as np
import torch
from _bench import report, write_csv
from PIL import Image

from learnkit.data.preprocess import Preprocessing
from learnkit.deploy.predictor import Predictor, load_learner
from learnkit.models.create import create_cnn_model

ARCHS, SIZE = ("mobilenetv3_small_050", "mobilenetv2_100"), 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
N_IMAGES, PER_REQUEST, N_CONNECTIONS, BATCH = 256, 16, 4, 16
MAX_MB, N_SOAKING = 2, 8
BOUNDARY = "a-boundary-between-images"
FORM = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
GOAL_RATE, GOAL_GROWTH = 0.9, 1.05
PREDICTED = {200}
BARE, SERVED = "predict_batch", "served"


def pictures(n: int) -> list[bytes]:
    """Smooth colourful JPEG files of 500 x 375."""
    y, x = np.mgrid[0:375, 0:500] / 60
    rng, found = np.random.default_rng(0), []
    for i in range(n):
        a, b = rng.uniform(0.3, 3, (2, 3))
        waves = np.sin(x[..., None] * a + i) * np.cos(y[..., None] * b)
        file = io.BytesIO()
        Image.fromarray((127.5 + 127 * waves).astype("uint8")).save(file, "JPEG", quality=90)
        found.append(file.getvalue())
    return found


def form_of(images: list[bytes]) -> bytes:
    """The body of a form with `images`."""
    head = 'Content-Disposition: form-data; name="images"; filename="{}.jpg"'
    parts = [
        f"--{BOUNDARY}\r\n{head.format(i)}\r\n\r\n".encode() + image + b"\r\n"
        for i, image in enumerate(images)
    ]
    return b"".join([*parts, f"--{BOUNDARY}--\r\n".encode()])


def bomb() -> bytes:
    """A PNG file of a few bytes that claims 20,000 x 20,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 64))


def save_model(arch: str, path: Path) -> None:
    """Export a network with random weights."""
    torch.manual_seed(0)
    model = create_cnn_model(arch, 5, pretrained=False, img_size=SIZE).eval()
    recipe = Preprocessing(SIZE, mean=MEAN, std=STD)
    Predictor(model, recipe, ["a", "b", "c", "d", "e"]).save(path)


# -- processes ------------------------------------------------------------------------------------


def split_cores() -> tuple[set[int], set[int]]:
    """Cores for the model, and one for the client."""
    if not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2:
        raise SystemExit("serve.py needs two cores, and a system that keeps processes on them")
    *model, client = sorted(os.sched_getaffinity(0))
    return set(model), {client}


@contextmanager
def process_on(cores: set[int], *arguments: str) -> Iterator[subprocess.Popen]:
    """A Python process on `cores`, ended with the block."""
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)  # children are born where their parent is
    try:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(len(cores))},
            encoding="utf-8",
        )
    finally:
        os.sched_setaffinity(0, own)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def server_on(cores: set[int], model: Path) -> Iterator[tuple[subprocess.Popen, int]]:
    """`learnkit serve` on `cores`, and its port; told to stop at the end, which it must do well."""
    options = ["--port", "0", "--threads", str(len(cores)), "--max-mb", str(MAX_MB)]
    options += ["--batch", str(BATCH)]
    with process_on(cores, "-m", "learnkit", "serve", str(model), *options) as process:
        lines = [process.stdout.readline(), process.stdout.readline()]
        assert lines[-1].startswith("ready at "), lines
        yield process, int(lines[-1].rsplit(":", 1)[1])
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, "the server did not end well"


def bare(model: str, n_threads: str, n_images: str) -> None:
    """Predict the same images each time a line comes in, and say how long it took."""
    torch.set_num_threads(int(n_threads))
    predictor, images = load_learner(model), pictures(int(n_images))
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        found = predictor.predict_batch(images, bs=BATCH)
        seconds = time.perf_counter() - start
        print(json.dumps([seconds, [one.probs.tolist() for one in found]]), flush=True)


# -- the rate -------------------------------------------------------------------------------------


def ask(connection: http.client.HTTPConnection, body: bytes, headers: dict[str, str]) -> bytes:
    """The answer to one good request."""
    connection.request("POST", "/predict", body, headers)
    response = connection.getresponse()
    answer = response.read()
    assert response.status == 200, answer
    return answer


def served_seconds(port: int, bodies: list[bytes]) -> float:
    """Seconds until all `bodies` are answered, sent over a few connections at once."""
    waiting, lock, failures = iter(bodies), threading.Lock(), []

    def work() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        while not failures:
            with lock:
                body = next(waiting, None)
            if body is None:
                break
            try:
                ask(connection, body, FORM)
            except (AssertionError, OSError, http.client.HTTPException) as error:
                failures.append(error)
        connection.close()

    threads = [threading.Thread(target=work) for _ in range(N_CONNECTIONS)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
    return time.perf_counter() - start


def rate_rows(arch: str, rounds: int, cores: set[int]) -> list[dict[str, object]]:
    """Images per second of both, in turns, and their ratio."""
    images = pictures(N_IMAGES)
    groups = [images[i : i + PER_REQUEST] for i in range(0, N_IMAGES, PER_REQUEST)]
    bodies = [form_of(group) for group in groups]
    seconds: dict[str, list[float]] = {BARE: [], SERVED: []}
    busy: dict[str, list[float]] = {BARE: [], SERVED: []}
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        save_model(arch, model)
        arguments = (__file__, "--bare", str(model), str(len(cores)), str(N_IMAGES))
        with process_on(cores, *arguments) as process, server_on(cores, model) as (server, port):
            assert process.stdout.readline() == "ready\n"
            for round_ in range(rounds + 1):
                before = processor_seconds(process.pid)
                process.stdin.write("\n")
                process.stdin.flush()
                taken, probs = json.loads(process.stdout.readline())
                seconds[BARE].append(taken)
                busy[BARE].append(processor_seconds(process.pid) - before)
                before = processor_seconds(server.pid)
                seconds[SERVED].append(served_seconds(port, bodies))
                busy[SERVED].append(processor_seconds(server.pid) - before)
                if not round_:
                    check_same_answers(port, bodies, probs)
    rows = [
        ("images/s", {name: N_IMAGES / _median(times) for name, times in seconds.items()}),
        ("processor ms", {name: 1e3 * _median(times) / N_IMAGES for name, times in busy.items()}),
    ]
    found = [
        {"case": arch, "measure": f"{name}, {what}", "value": round(value, 2), "goal": ""}
        for what, values in rows
        for name, value in values.items()
    ]
    for what, times in (("rate", seconds), ("rate by processor time", busy)):
        share = _median([a / b for a, b in zip(times[BARE], times[SERVED], strict=True)])
        row = {"case": arch, "measure": f"share of the {what}", "value": round(share, 3)}
        found.append({**row, "goal": f">= {GOAL_RATE}"})
    return found


def processor_seconds(pid: int) -> float:
    """Processor time of a process so far, which does not depend on what else the machine does."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _median(values: list[float]) -> float:
    """The median without the first value, which was for warming up."""
    return statistics.median(values[1:])


def check_same_answers(port: int, bodies: list[bytes], probs: list[list[float]]) -> None:
    """Assert that the server says what `predict_batch` says."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    answers = [json.loads(ask(connection, body, FORM)) for body in bodies]
    connection.close()
    found = [list(one["probs"].values()) for answer in answers for one in answer["predictions"]]
    torch.testing.assert_close(torch.tensor(found), torch.tensor(probs), atol=1e-4, rtol=1e-3)


# -- good and bad requests ------------------------------------------------------------------------

Request = tuple[str, str, bytes, dict[str, str], set[int]]


def kinds() -> dict[str, Request]:
    """Method, path, body, headers and the statuses that are right, by kind of request."""
    good = pictures(6)
    post, form = ("POST", "/predict"), form_of
    too_large = {"Content-Length": str(MAX_MB * 10**6 + 1)}
    return {
        "one image": (*post, good[0], {}, PREDICTED),
        "another image": (*post, good[1], {"Content-Type": "image/jpeg"}, PREDICTED),
        "four images": (*post, form(good[2:]), FORM, PREDICTED),
        "good and bad": (*post, form([good[0], b"no", good[1][:500], bomb()]), FORM, PREDICTED),
        "no image": (*post, b"<html>" * 50, {}, {422}),
        "a truncated image": (*post, good[0][: len(good[0]) // 2], {}, {422}),
        "a bomb": (*post, bomb(), {}, {422}),
        "only bad images": (*post, form([b"no", bomb()]), FORM, {422}),
        "nothing": (*post, b"", {}, {400}),
        "a broken form": (*post, form(good[:2])[50:-9], FORM, {400}),
        "too many images": (*post, form([b"no"] * 65), FORM, {400}),
        "too large": (*post, good[0], too_large, {413}),
        "broken off": (*post, good[0], {"Content-Length": str(2 * len(good[0]))}, {0}),
        "a wrong path": ("GET", "/../../etc/passwd", b"", {}, {404}),
        "a wrong method": ("DELETE", "/predict", b"", {}, {405}),
        "no permission": ("POST", "/extend?label=x", good[0], {}, {403}),
        "health": ("GET", "/health", b"", {}, {200}),
        "model": ("GET", "/model", b"", {}, {200}),
    }


def status_of(port: int, request: Request) -> int:
    """The status a request gets; 0 for one that is broken off on purpose."""
    method, path, body, headers, expected = request
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.putrequest(method, path)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            connection.putheader(name, value)
        connection.endheaders()
        if expected != {413}:  # refused by its declared size: there is nobody to send it to
            connection.send(body)
        return 0 if expected == {0} else connection.getresponse().status
    finally:
        connection.close()


def soak(port: int, n: int, seed: int) -> Counter:
    """How often each (kind, status, is right) was seen in `n` requests."""
    requests, seen, lock = kinds(), Counter(), threading.Lock()
    draws = iter(random.Random(seed).choices(list(requests), k=n))

    def work() -> None:
        while True:
            with lock:
                kind = next(draws, None)
            if kind is None:
                return
            try:
                status = status_of(port, requests[kind])
            except (OSError, http.client.HTTPException) as error:
                status = repr(error)
            with lock:
                seen[kind, status, status in requests[kind][-1]] += 1

    threads = [threading.Thread(target=work) for _ in range(N_SOAKING)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return seen


def resident_mb(pid: int) -> float:
    """Memory a process holds."""
    fields = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").split()
    return int(fields[fields.index("VmRSS:") + 1]) / 1024


def soak_rows(n: int, cores: set[int]) -> list[dict[str, object]]:
    """Requests that did not get the status they deserve, and memory before and after."""
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        save_model(ARCHS[0], model)
        with server_on(cores, model) as (process, port):
            soak(port, n // 2, seed=0)  # until the allocator has what it keeps
            before = resident_mb(process.pid)
            seen = soak(port, n, seed=1)
            after = resident_mb(process.pid)
            assert process.poll() is None, "the server has died"
    wrong = {key[:2]: count for key, count in seen.items() if not key[2]}
    about = {"case": f"{n} mixed requests"}
    return [
        {**about, "measure": "kinds", "value": len({key[0] for key in seen}), "goal": ""},
        {**about, "measure": "wrong answers", "value": sum(wrong.values()), "goal": "0"},
        {**about, "measure": "MB after warming up", "value": round(before, 1), "goal": ""},
        {**about, "measure": "MB at the end", "value": round(after, 1), "goal": ""},
        {
            **about,
            "measure": "growth",
            "value": round(after / before, 3),
            "goal": f"<= {GOAL_GROWTH}",
        },
        *(
            {**about, "measure": f"wrong: {kind}", "value": k, "goal": ""}
            for kind, k in wrong.items()
        ),
    ]


def main(rounds: int = 5, n_requests: int = 5000) -> None:
    """Measure, print and save the table."""
    cores, client = split_cores()
    os.sched_setaffinity(0, client)
    rows = [row for arch in ARCHS for row in rate_rows(arch, rounds, cores)]
    rows += soak_rows(n_requests, cores)
    print(report(rows))
    print(f"wrote {write_csv('serve', rows, packages=('fastapi', 'uvicorn'))}")
    assert not any(row["value"] for row in rows if row["measure"] == "wrong answers")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--bare"]:
        bare(*sys.argv[2:])
    else:
        main(*map(int, sys.argv[1:]))
