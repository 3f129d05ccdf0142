"""`predict_files` from JPEG against decoding alone and the network alone: do they overlap?

"Own cores" gives the network all cores but one and decoding that one: then files should take no
longer than the slower of the two. "Same cores" gives both all cores: then files cannot take less
than the sum, of which `share_of_sum` is what is reached. Labels must be those of the network alone.
Without `--data`, scikit-learn's digits, enlarged.
Run: python benchmarks/files.py [--data FOLDER_OR_ZIP] [--weights FILE] [--rounds N]
"""

import argparse
import os
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import learnkit._torchvision  # noqa: F401  # before fastai and timm

import torch
from _bench import interleaved_times, median, ratio, report, spread, write_csv
from optimize import PACKAGES, WITH_WEIGHTS, build, read_data

from learnkit.backends.registry import BACKENDS, why_not
from learnkit.data.read_images import chunks
from learnkit.deploy.predictor import Predictor

BATCH = 64
VARIANTS = (
    ("onnxruntime", "float32"),
    ("onnxruntime", "int8"),
    ("openvino", "bfloat16"),
)


def measured(fast: Predictor, paths: list, n_workers: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of decoding, of the network, and of files, side by side."""
    images = [fast.load(path) for path in paths]

    def decode() -> None:
        with ThreadPoolExecutor(n_workers) as pool:
            for _ in pool.map(fast.load, paths):
                pass

    def forward() -> list:
        return [one for batch in chunks(images, BATCH) for one in fast.try_loaded(batch)]

    def files() -> object:
        return fast.predict_files(paths, bs=BATCH, n_workers=n_workers, progress=False)

    assert files()["label"].tolist() == [one.label for one in forward()]
    calls = {"decode": decode, "forward": forward, "files": files}
    return interleaved_times(calls, repeats=rounds, warmup=1, settle=1)


def row(about: dict, times: dict[str, list[float]], n: int) -> dict:
    """One line of the table."""
    slower = max(("decode", "forward"), key=lambda one: median(times, one))
    alone = median(times, "decode") + median(times, "forward")
    return {
        **about,
        "files": n,
        **{f"{name}_ms": round(1e3 * median(times, name), 1) for name in times},
        "spread": round(spread(times, "files"), 3),
        "images_per_s": round(n / median(times, "files")),
        "slower": slower,
        "share_of_slower": round(1 / ratio(times, "files", slower), 3),
        "share_of_sum": round(alone / median(times, "files"), 3),
    }


def rows_of(predictor: Predictor, data, rounds: int) -> list[dict]:
    """Rows of every variant that runs here, with cores of their own and with the same ones."""
    paths, n_cores, rows = data.valid.paths, len(os.sched_getaffinity(0)), []
    shares = {"own cores": (max(1, n_cores - 1), 1), "same cores": (n_cores, n_cores)}
    for backend, precision in VARIANTS:
        if why_not(BACKENDS[backend], precision) is not None or BACKENDS[backend].missing:
            continue
        given = {"backend": backend, "test": data.valid, "force": True, "progress": False}
        fast, about = predictor.optimize(precision, data.train, **given)
        for cores, (threads, n_workers) in shares.items():
            fast.set(threads=threads)
            torch.set_num_threads(threads)
            times = measured(fast, paths, n_workers, rounds)
            rows.append(row({"variant": about.variant, "cores": cores}, times, len(paths)))
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Convert, check, time, print and save the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder or zip of images")
    parser.add_argument("--weights", type=Path, help=f"weights of {WITH_WEIGHTS}")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of few samples, of missing extras
        data = read_data(options.data, Path(scratch))
        predictor = build(WITH_WEIGHTS, data, options.weights)
        rows = rows_of(predictor, data, options.rounds)
    print(report(rows))
    print(f"wrote {write_csv('files', rows, packages=PACKAGES)}")


if __name__ == "__main__":
    main()
