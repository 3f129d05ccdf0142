"""An epoch from the preprocessed store against decoding, and decoding against fastai's.

On ants and bees (`--data`, a folder or zip; 300 generated 500 x 375 JPEGs without it) and on 300
generated 12-megapixel JPEGs. Batches from the store must be those of the files to the bit, and
drafts must lie within 5 grey levels, by mean within 1, of fastai's full decoding. Times are those
of the processor, in one thread: reading waits for nothing once the files are in memory.
Run: python benchmarks/store.py [--data FOLDER_OR_ZIP] [--rounds N] [--images N]
"""

import argparse
import io
import os
import tempfile
import time
import zipfile
from pathlib import Path

import learnkit._torchvision  # noqa: F401  # before fastai

import numpy as np
import torch
from _bench import interleaved_times, report, timing_row, write_csv
from fastai.vision.augment import Resize
from fastai.vision.core import PILImage
from PIL import Image

from learnkit.data.dataset import ImageDataset

SIZE = 224


def photograph(height: int, width: int, seed: int) -> Image.Image:
    """Blobs of all sizes, as scenes have them: an octave less, twice the contrast."""
    rng, image = np.random.default_rng(seed), None
    for octave in range(10, 1, -1):
        side = 2**octave
        small = rng.integers(0, 256, (side * 3 // 4 + 1, side + 1, 3)).astype("uint8")
        blobs = Image.fromarray(small).resize((width, height), Image.Resampling.BILINEAR)
        image = blobs if image is None else Image.blend(image, blobs, 0.5)
    return image


def generated(folder: Path, n: int, height: int, width: int) -> Path:
    """A folder of `n` JPEGs in two classes: copies of three, for decoding takes as long."""
    files = []
    for seed in range(3):
        file = io.BytesIO()
        photograph(height, width, seed).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    for i in range(n):
        path = folder / "ab"[i % 2] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(files[i % len(files)])
    return folder


def epoch(loader: object) -> None:
    """All batches of a loader."""
    for _ in loader:
        pass


def assert_equal(dls: object, stored: object) -> None:
    """Batches of both are the same."""
    for one, other in zip(dls.valid, stored.valid, strict=True):
        assert all(map(torch.equal, one, other))


def assert_near(dls: object, paths: list[Path]) -> None:
    """Our pixels are within the bound of fastai's."""
    for path in paths:
        ours = np.asarray(dls.preprocessing.read(path)).astype(int)
        theirs = np.asarray(Resize(SIZE)(PILImage.create(path), split_idx=1))
        assert np.abs(ours - theirs).max() <= 5, path
        assert np.abs(ours - theirs).mean() < 1, path


def rows_of(name: str, folder: Path, store: Path, rounds: int) -> list[dict[str, object]]:
    """Rows of one data set: the store, learnkit's decoding and fastai's."""
    data = ImageDataset.from_folder(folder)
    data = data if data.splits else data.split(0.8, 0.2, seed=0)
    plain = data.dataloaders(SIZE, method="crop")
    stored = data.preprocess(store, SIZE).dataloaders()
    assert_equal(plain, stored)
    assert_near(plain, data.paths[:10])
    paths = data.train.paths
    of_fastai = Resize(SIZE)

    def fastai() -> None:
        for path in paths:
            of_fastai(PILImage.create(path), split_idx=1)

    def ours() -> None:
        for path in paths:
            plain.preprocessing.read(path)

    times = interleaved_times(
        {
            "epoch from files": lambda: epoch(plain.train),
            "epoch from the store": lambda: epoch(stored.train),
            "decode, fastai": fastai,
            "decode, learnkit": ours,
        },
        repeats=rounds,
        warmup=1,
        clock=time.process_time,
    )
    about = {"data": name, "images": len(paths)}
    rows = [
        timing_row(times, "epoch from the store", "epoch from files", **about),
        timing_row(times, "decode, learnkit", "decode, fastai", **about),
    ]
    return [{**row, "times_faster": round(1 / row["ratio"], 2)} for row in rows]


def main() -> None:
    """Measure, print, write `results/store.csv`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="ants and bees: a folder or a zip")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=300, help="generated ones")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        folder, name = arguments.data, "ants and bees"
        if folder is None:
            folder, name = generated(work / "small", arguments.images, 375, 500), "500 x 375"
        elif folder.suffix == ".zip":
            zipfile.ZipFile(folder).extractall(work / "small")
            folder = work / "small"
            while len(os.listdir(folder)) == 1:
                folder = next(folder.iterdir())
        rows += rows_of(name, folder, work / "store-small", arguments.rounds)
        large = generated(work / "large", arguments.images, 3000, 4000)
        rows += rows_of("12 megapixels", large, work / "store-large", arguments.rounds)
    print(report(rows))
    write_csv("store", rows)


if __name__ == "__main__":
    main()
