"""Pooled features of an image folder or zip, extracted once and kept as an .npz file.

The .npz holds `features` (N,D) float32, `labels` (N,) class names, `split` (N,) "train" or "test".
"""

import hashlib
import io
import zipfile
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from tempfile import gettempdir
from typing import NamedTuple

import learnkit._torchvision  # noqa: F401  # before timm

import numpy as np
import torch
from tqdm.auto import tqdm

from learnkit.data.image import IMAGE_EXTENSIONS
from learnkit.data.preprocess import Preprocessing
from learnkit.models.body import create_body


class Split(NamedTuple):
    """Features (N,D) float64 and class names (N,) of one split."""

    features: torch.Tensor
    labels: np.ndarray


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options that say which features to use."""
    parser.add_argument("--features", type=Path, help=".npz file with features, labels, split")
    parser.add_argument("--data", type=Path, help="zip or folder with train/CLASS and test/CLASS")
    parser.add_argument("--weights", type=Path, help="weights file of the body")
    parser.add_argument("--arch", default="mobilenetv2_100")
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--pad-type", default="same", help="timm's padding; '' for its default")
    parser.add_argument(
        "--cache", type=Path, default=Path(gettempdir()), help="where features are kept"
    )


def load(options: Namespace) -> dict[str, Split]:
    """Return the features of "train" and "test", from the file, the cache or the images."""
    path = options.features or _cached(options)
    if not path.exists():
        _extract(options, path)
    with np.load(path, allow_pickle=False) as file:
        features, labels, split = file["features"], file["labels"], file["split"]
    return {
        name: Split(torch.from_numpy(features[split == name]).double(), labels[split == name])
        for name in ("train", "test")
    }


def _cached(options: Namespace) -> Path:
    """Where the features of these options are kept."""
    if options.data is None or options.weights is None:
        raise SystemExit("give --features FILE.npz, or --data ZIP/FOLDER and --weights FILE")
    asked = (options.data, options.weights, options.arch, options.size, options.pad_type)
    key = hashlib.sha256(repr(asked).encode()).hexdigest()[:12]
    return options.cache / f"features-{options.data.stem}-{options.arch}-{options.size}-{key}.npz"


def _extract(options: Namespace, path: Path, *, batch_size: int = 64) -> None:
    """Run the body over every image, average its map over space, write the file."""
    kwargs = {"pad_type": options.pad_type} if options.pad_type else {}
    body = create_body(options.arch, str(options.weights), img_size=options.size, **kwargs).eval()
    preprocessing = Preprocessing(options.size, mean=[0.5] * 3, std=[0.5] * 3)
    items = sorted(images_of(options.data))
    features = []
    for start in tqdm(range(0, len(items), batch_size), desc="features"):
        batch = [preprocessing.load(io.BytesIO(read())) for _, read in _slice(items, start)]
        with torch.inference_mode():
            features.append(body(preprocessing.normalize(torch.stack(batch))).mean((2, 3)))
    names = [PurePosixPath(name).parts for name, _ in items]
    split = ["train" if parts[-3] == "train" else "test" for parts in names]
    np.savez(
        path,
        features=torch.cat(features).numpy(),
        labels=np.array([parts[-2] for parts in names]),
        split=np.array(split),
    )


def _slice(items: list, start: int, batch_size: int = 64) -> list:
    """The items of one batch."""
    return items[start : start + batch_size]


def images_of(data: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Yield (name, function that reads the bytes) of every image in a zip or folder."""
    if data.is_dir():
        paths = [p for p in data.rglob("*") if p.suffix.lower() in IMAGE_EXTENSIONS]
        yield from ((p.as_posix(), p.read_bytes) for p in paths)
        return
    archive = zipfile.ZipFile(data)
    for name in archive.namelist():
        if PurePosixPath(name).suffix.lower() in IMAGE_EXTENSIONS:
            yield name, lambda name=name: archive.read(name)
