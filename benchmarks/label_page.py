"""The labelling page over an inbox of many images, in processor time: its start, judging anew.

The inbox has small PNG files, each another one, whose features are kept already: those of the
images the model has learned (`--data`, a folder; else generated ones), a little off, half of them
backwards so that the model does not know them. What the page shows
after the start, and after a label, must be what judging every image anew gives.
Run: python benchmarks/label_page.py [--data FOLDER] [--weights FILE] [--images N] [--rounds N]
"""

import argparse
import hashlib
import struct
import tempfile
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import learnkit._torchvision  # noqa: F401  # before fastai

import numpy as np
import torch
from _bench import report, write_csv
from PIL import Image

from learnkit.data.dataset import ImageDataset
from learnkit.learner.factory import cnn_learner
from learnkit.learner.features import features_of
from learnkit.serving.labelling import workplace
from learnkit.serving.labelling.kept_features import KeptFeatures
from learnkit.serving.labelling.workplace import Workplace, body_digest
from learnkit.serving.server import open_model

SIZE, N_CLASSES, PER_CLASS = 64, 6, 20


def generated(folder: Path) -> Path:
    """A folder of noise in as many colours as there are classes."""
    rng = np.random.default_rng(0)
    for number in range(N_CLASSES):
        (folder / f"kind {number}").mkdir(parents=True)
        for i in range(PER_CLASS):
            pixels = rng.integers(0, 100, (SIZE, SIZE, 3)) + rng.integers(0, 150, 3) * number // 6
            Image.fromarray(pixels.astype("uint8")).save(folder / f"kind {number}" / f"{i}.png")
    return folder


def made_model(folder: Path, data: Path | None, weights: Path | None) -> np.ndarray:
    """Write a bundle in the continual state; the features (N, D) of what it has learned."""
    images = ImageDataset.from_folder(data or generated(folder.parent / "data"))
    images = images.split(0.8, 0.2, seed=0, overwrite=True)
    dls = images.dataloaders(SIZE, method="squish")
    torch.manual_seed(0)
    learn = cnn_learner(dls, "mobilenetv2_100", weights is not None, weights=weights)
    with learn.no_logging():
        learn.init_continual(images)
        rows = features_of(learn, images.train.paths)
    learn.export(folder)
    return rows.numpy()


def png(number: int) -> bytes:
    """The smallest of files: four pixels that say the number."""
    chunk = lambda kind, data: (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    )
    pixels = b"\0" + number.to_bytes(4, "big")
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 1, 8, 0, 0, 0, 0))
    content = header + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + content


def filled(inbox: Path, predictor: Any, rows: np.ndarray, n: int) -> None:
    """An inbox of `n` images whose features are kept."""
    store, rng = inbox / ".learnkit", np.random.default_rng(0)
    store.mkdir(parents=True)
    kept = KeptFeatures(store, rows.shape[1], body_digest(predictor))
    for start in range(0, n, 1000):
        images = []
        for i in range(start, min(n, start + 1000)):
            data, path = png(i), inbox / f"part_{i:06d}.png"
            path.write_bytes(data)
            about = {"size": len(data), "mtime": path.stat().st_mtime_ns, "w": 4, "h": 1}
            images.append({"sha": hashlib.sha256(data).hexdigest(), "name": path.name, **about})
        known = rows[rng.integers(0, len(rows), len(images))]
        unlike = np.where(rng.random((len(images), 1)) < 0.5, known[:, ::-1], known)
        kept.add(images, unlike * rng.uniform(0.99, 1.01, unlike.shape).astype(np.float32))
    kept.close()


def timed(what: str, call: Callable[[], object]) -> dict[str, object]:
    """A row: milliseconds of a call, of all processors and of the clock on the wall."""
    cpu, wall = time.process_time(), time.perf_counter()
    call()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return {"what": what, "cpu_ms": round(1e3 * cpu, 1), "wall_ms": round(1e3 * wall, 1)}


def settled(place: Workplace, n: int) -> None:
    """Return when everything is judged by what is known now."""
    while len(place.book.pictures) < n or place._judged != place._generation:
        time.sleep(0.01)


def assert_as_anew(place: Workplace) -> None:
    """What is shown is what judging everything anew gives."""
    shown = [one.id for one in place.views.order("unknown")]
    assert 0 < len(shown) < len(place.book.pictures)
    place.scores.rescore([one.id for one in place.book.waiting()])
    assert shown == [one.id for one in place.views.order("unknown")]


def megabytes() -> dict[str, int]:
    """Memory of the process: its own, and with the files that are mapped into it."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return {name: int(fields[name].split()[0]) // 1024 for name in ("RssAnon", "VmRSS", "VmHWM")}


def measured(model: Path, inbox: Path, n: int, rounds: int) -> list[dict[str, object]]:
    """Rows of one process: the start, what is seen judged anew, everything, and its memory."""
    torch.set_num_threads(1)
    workplace._FIRST_POLL = 1e6  # looks into the inbox are measured by themselves
    rows, made = [], []
    predictor = open_model(model, learning=True)
    before = megabytes()

    def start() -> None:
        reopen = lambda: open_model(model, learning=True)
        made.append(Workplace(predictor, inbox, out=model, reopen=reopen))
        made[0].open()
        made[0].views.queue(6, "unknown", [], None, "benchmark")

    rows.append(timed("start", start))
    place = made[0]
    rows.append(timed("judge all after the start", lambda: settled(place, n)))
    assert_as_anew(place)
    within: list[dict[str, object]] = []

    def judge() -> int:
        counts: list[int] = []
        within.append(timed("judge what is seen", lambda: counts.append(place.judge())))
        return counts[0]

    place.desk._judge = judge
    for number in range(rounds):
        rows.append(timed("label", lambda key=f"{number:032x}": label(place, key)))
        rows.append(within[-1])
        rows.append(timed("judge all", lambda: settled(place, n)))
    rows.append(timed("look into the inbox", place.look))
    rows.append(timed("groups", lambda: place.views.groups("unknown", "benchmark")))
    assert_as_anew(place)
    rows.append(timed("end", place.close))
    after = megabytes()
    more = {f"{name} more": after[name] - before[name] for name in after}
    rows = [{"images": n, **row, **dict.fromkeys(more, "")} for row in rows]
    rows[-1] |= more
    return rows


def label(place: Workplace, key: str) -> None:
    """Name the first image that is asked for."""
    image, name = place.views.order("unknown")[0], place.predictor.classes[0]
    status, said = place.desk.answer({"ids": [image.id], "label": name, "key": key})
    assert (status, said["result"]) == (200, "learned")


def main() -> None:
    """Measure, print, write `results/label_page.csv`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="what the model has learned: a folder")
    parser.add_argument("--weights", type=Path, help="weights file of MobileNetV2")
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        rows = made_model(work / "model", arguments.data, arguments.weights)
        filled(work / "inbox", open_model(work / "model", learning=True), rows, arguments.images)
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            found = pool.submit(
                measured, work / "model", work / "inbox", arguments.images, arguments.rounds
            ).result()
    print(report(found))
    write_csv("label_page", found)


if __name__ == "__main__":
    main()
