"""Every backend and precision beside eager torch: speed, size, agreement.

Each network's body carries a classifier in the continual state, learned in one pass over the
training images, so labels are real even where weights are random ("weights" in the table says
which). The float32 variants must give eager torch's features before anything is timed. Gates are
overridden here, so that what would be refused is measured, too; `verdict` says what it would be.
Without `--data`, scikit-learn's digits, enlarged.
Run: python benchmarks/optimize.py [--data FOLDER_OR_ZIP] [--weights FILE] [--rounds N] [ARCH ...]
"""

import argparse
import tempfile
import time
import warnings
import zipfile
from functools import partial
from pathlib import Path

import learnkit._torchvision  # noqa: F401  # before fastai and timm

import numpy as np
import pandas as pd
import torch
from _bench import interleaved_times, median, ratio, report, spread, write_csv

from learnkit.backends.registry import BACKENDS, PRECISIONS, why_not
from learnkit.cli.demo import write_digits
from learnkit.data.dataset import ImageDataset
from learnkit.deploy.predictor import Predictor
from learnkit.errors import LearnkitError
from learnkit.learner.factory import cnn_learner

ARCHS = ("resnet18", "mobilenetv2_100", "convnext_atto", "vit_tiny_patch16_224")
WITH_WEIGHTS = "mobilenetv2_100"
EAGER, SIZE, BATCHES, N_FEW = "eager torch", 224, (1, 16), 64
PACKAGES = ("onnxruntime", "onnx", "openvino")


def read_data(path: Path | None, scratch: Path) -> ImageDataset:
    """The images in a folder or zip with one folder per class below train and val; or digits."""
    if path is None:
        write_digits(scratch)
        return ImageDataset.from_folder(scratch).split(train=0.2, valid=0.1, seed=0)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as file:
            file.extractall(scratch)
        folders = [p for p in scratch.iterdir() if p.is_dir()]
        path = folders[0] if len(folders) == 1 else scratch
    return ImageDataset.from_folder(path)


def few(data: ImageDataset) -> ImageDataset:
    """Some of the images: of networks with random weights speed and size are told, little else."""
    frames = [part.sample(N_FEW, seed=0).frame for part in (data.train, data.valid)]
    return ImageDataset(pd.concat(frames), data.root)


def build(arch: str, data: ImageDataset, weights: Path | None) -> Predictor:
    """A predictor in the continual state, with `weights` or random ones."""
    torch.manual_seed(0)
    more = {"pretrained": False}
    if weights is not None:
        more = {"weights": str(weights), "arch_kwargs": {"pad_type": "same"}}
        more["normalize"] = ((0.5,) * 3, (0.5,) * 3)
    learn = cnn_learner(data.dataloaders(size=SIZE, bs=32), arch, **more)
    learn.init_continual(data.train)
    return learn.predictor()


def variants() -> list[tuple[str, str]]:
    """(backend, precision) that run here."""
    return [
        (backend.name, precision)
        for backend in BACKENDS.values()
        for precision in PRECISIONS
        if why_not(backend, precision) is None and not backend.missing
    ]


def optimized(predictor: Predictor, data: ImageDataset) -> dict[str, tuple]:
    """(fast predictor, report, seconds) by variant, gates overridden."""
    found = {}
    for backend, precision in variants():
        start = time.perf_counter()
        try:
            fast, about = predictor.optimize(
                precision,
                data.train,
                backend=backend,
                test=data.valid,
                force=True,
                progress=False,
            )
        except LearnkitError as error:
            print(f"{backend} {precision}: {error}")
            continue
        found[fast.variant] = fast, about, time.perf_counter() - start
    return found


def check_equal(predictor: Predictor, found: dict[str, tuple], pixels: np.ndarray) -> None:
    """Assert that float32 variants give eager torch's features, whatever the batch."""
    expected = predictor.network.features(pixels)
    for name, (fast, *_) in found.items():
        if name.endswith("float32"):
            for batch in (*BATCHES, len(pixels)):
                np.testing.assert_allclose(
                    fast.network.features(pixels[:batch]), expected[:batch], atol=1e-3, rtol=1e-3
                )


def rows_of(arch: str, kind: str, predictor: Predictor, data: ImageDataset, rounds: int) -> list:
    """One row per variant and batch size."""
    found = optimized(predictor, data)
    pixels = np.stack([predictor.load(p) for p in data.valid.paths[:24]])
    check_equal(predictor, found, pixels)
    rows = []
    for batch in BATCHES:
        images = pixels[:batch]
        calls = {EAGER: partial(predictor.network.features, images)}
        for name, (fast, *_) in found.items():
            calls[name] = partial(fast.network.features, images)
        times = interleaved_times(calls, repeats=rounds, settle=3)
        rows += [
            {
                "network": arch,
                "weights": kind,
                "variant": name,
                "batch": batch,
                "median_ms": round(1e3 * median(times, name), 2),
                "eager_ms": round(1e3 * median(times, EAGER), 2),
                "times_as_fast": round(1 / ratio(times, name, EAGER), 2),
                "spread": round(spread(times, name), 3),
                "megabytes": round(about.n_bytes / 1e6, 2),
                "float32_megabytes": round(about.n_bytes_float32 / 1e6, 2),
                "agreement": round(about.quality.agreement, 4),
                "accuracy_before": round(about.quality.accuracy_before, 4),
                "accuracy": round(about.quality.accuracy, 4),
                "verdict": "passes" if about.passed else about.failures,
                "conversion_s": round(seconds, 1),
            }
            for name, (fast, about, seconds) in found.items()
        ]
    return rows


def main() -> None:
    """Convert, check, time, print and save the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archs", nargs="*", default=ARCHS)
    parser.add_argument("--data", type=Path, help="folder or zip of images")
    parser.add_argument("--weights", type=Path, help=f"weights of {WITH_WEIGHTS}")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        data = read_data(options.data, Path(scratch))
        for arch in options.archs:
            weights = options.weights if arch == WITH_WEIGHTS else None
            kind = "random" if weights is None else "ImageNet"
            images = data if weights is not None else few(data)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # of few samples, of missing extras
                predictor = build(arch, images, weights)
                rows += rows_of(arch, kind, predictor, images, options.rounds)
            print(report([row for row in rows if row["network"] == arch]))
            path = write_csv("optimize", rows, packages=PACKAGES)  # a network takes minutes
            print(f"wrote {path}")


if __name__ == "__main__":
    main()
