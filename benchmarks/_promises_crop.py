"""Images of unlike aspects: what each way to fit them into the network's square is worth.

"crop" cuts the largest centred square, "squish" distorts, "pad" fills up. Measured: accuracy, and
AUROC of the out-of-distribution score for classes that were not learned, over ants and bees as
they are, rectangles cut out of CIFAR-10, CIFAR-10 pasted on wide plain grounds, and drawn parts
with defects on a plain ground, of aspect 1.4 and 2, anywhere in the image.

This one reads images, so that its features are made first, once, into one file:

    python benchmarks/_promises_crop.py --hymenoptera DIR --cifar DIR --weights FILE --out FILE.npz
    LEARNKIT_CROP_FEATURES=FILE.npz python benchmarks/promises.py

Without that file `rows` gives no row.
"""

import os
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import learnkit._torchvision  # noqa: F401  # before timm

import numpy as np
import torch
from PIL import Image, ImageDraw
from sklearn.metrics import roc_auc_score

from learnkit.continual.classifier import ContinualClassifier
from learnkit.data.image import find_images
from learnkit.data.preprocess import Preprocessing
from learnkit.models.body import create_body

METHODS = {
    "crop": {"method": "crop"},
    "squish": {"method": "squish"},
    "pad zeros": {"method": "pad", "pad_mode": "zeros"},
    "pad border": {"method": "pad", "pad_mode": "border"},
}
N_TRAIN = 20  # images a class learned, in each draw
DEFECTS = ("sound", "scratch", "hole", "notch", "stain", "crack")
Picture = tuple[Image.Image, str]


def rows(features_by_name: dict, draws: int) -> list[dict]:
    """One row per data, method, metric and draw; features come from the file named above."""
    path = os.environ.get("LEARNKIT_CROP_FEATURES")
    return [] if path is None else list(_rows(Path(path), draws))


def _rows(path: Path, draws: int) -> Iterator[dict]:
    with np.load(path, allow_pickle=False) as file:
        names = sorted({key.partition("|")[0] for key in file})
        for name in names:
            labels = file[f"{name}|labels"]
            for draw in range(draws):
                train, test, unknown = _drawn(labels, np.random.default_rng(draw))
                for method in METHODS:
                    table = torch.from_numpy(file[f"{name}|{method}"])
                    for metric, value in _measured(table, labels, train, test, unknown).items():
                        about = {"promise": "crop", "data": name, "case": method}
                        yield about | {"metric": metric, "value": value, "draw": draw}


def _drawn(labels: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Places of images to learn, of known ones to test, and of classes that are not learned."""
    classes = rng.permutation(np.unique(labels))
    known = np.isin(labels, classes[max(1, len(classes) // 4) :])
    order = rng.permutation(len(labels))
    train = np.concatenate([order[labels[order] == name][:N_TRAIN] for name in classes])
    is_train = np.isin(np.arange(len(labels)), train)
    return np.flatnonzero(is_train), np.flatnonzero(~is_train), np.flatnonzero(~known)


def _measured(
    table: torch.Tensor,
    labels: np.ndarray,
    train: np.ndarray,
    test: np.ndarray,
    unknown: np.ndarray,
) -> dict[str, float]:
    """Accuracy over the classes learned, and AUROC of `unknown` ones that were not."""
    learned, known = np.setdiff1d(train, unknown), np.setdiff1d(test, unknown)
    head = _head(table, labels, learned)
    scores = [head.ood_scores(table[places]).numpy() for places in (known, unknown)]
    truth = np.repeat([0, 1], [len(known), len(unknown)])
    if len(head.classes) == 1:  # of two: nothing to confuse, so that both are learned
        head, known = _head(table, labels, train), test
    found = np.array(head.classes)[head(table[known]).argmax(1).numpy()]
    return {
        "accuracy": float((found == labels[known]).mean()),
        "auroc": float(roc_auc_score(truth, np.concatenate(scores))),
    }


def _head(table: torch.Tensor, labels: np.ndarray, places: np.ndarray) -> ContinualClassifier:
    head = ContinualClassifier(table.shape[1])
    head.extend(table[places], labels[places].tolist())
    return head


def _photographs(folder: Path, per_class: int) -> Iterator[Picture]:
    """The first images of every class folder, whatever the split they lie in."""
    files = find_images(folder)
    for name in sorted({file.parent.name for file in files}):
        own = [file for file in files if file.parent.name == name][:per_class]
        yield from ((Image.open(file).convert("RGB"), name) for file in own)


def _rectangles(folder: Path, per_class: int) -> Iterator[Picture]:
    """CIFAR-10 cut to aspect 1.4 or 2, lying or standing, at a random place."""
    rng = np.random.default_rng(0)
    for image, name in _photographs(folder, per_class):
        side, other = image.width, round(image.width / rng.choice([1.4, 2.0]))
        start = int(rng.integers(side - other + 1))
        box = (0, start, side, start + other)
        yield image.crop(box if rng.random() < 0.5 else (box[1], box[0], box[3], box[2])), name


def _pasted(folder: Path, per_class: int) -> Iterator[Picture]:
    """CIFAR-10 at a random place of a plain ground of aspect 1.4 or 2."""
    rng = np.random.default_rng(1)
    for image, name in _photographs(folder, per_class):
        image = image.resize((96, 96), Image.Resampling.BICUBIC)
        size = (round(112 * rng.choice([1.4, 2.0])), 112)
        ground = Image.new("RGB", size, tuple(int(v) for v in rng.integers(90, 170, 3)))
        ground.paste(image, tuple(int(rng.integers(n - 96 + 1)) for n in size))
        yield ground, name


def _parts(aspect: float, per_class: int) -> Iterator[Picture]:
    """Drawn parts, sound or with one of five defects, at random places of a grey ground."""
    rng = np.random.default_rng(round(aspect * 10))
    height, width = 400, round(400 * aspect)
    for name in DEFECTS:
        for _ in range(per_class):
            ground = rng.normal(150, 4, (height, width, 1)) + np.zeros(3)
            image = Image.fromarray(ground.clip(0, 255).astype(np.uint8))
            _draw_part(image, name, rng)
            yield image, name


def _draw_part(image: Image.Image, name: str, rng: np.random.Generator) -> None:
    """A ring of metal, turned anyhow, and its defect."""
    draw, radius = ImageDraw.Draw(image), rng.uniform(110, 140)
    x, y = (rng.uniform(radius + 5, side - radius - 5) for side in image.size)
    metal = int(rng.integers(195, 225))
    _disc(draw, x, y, radius, metal)
    _disc(draw, x, y, radius * 0.45, 150)
    angle, far = rng.uniform(0, 2 * np.pi), radius * 0.72
    at = x + far * np.cos(angle), y + far * np.sin(angle)
    along = np.array([np.cos(angle + 1.2), np.sin(angle + 1.2)])
    if name in ("scratch", "crack"):
        steps = np.linspace(-0.3, 0.3, 2 if name == "scratch" else 8) * radius
        jags = rng.normal(0, 0 if name == "scratch" else 5, (len(steps), 2))
        line = np.array(at) + steps[:, None] * along + jags
        draw.line([tuple(point) for point in line], fill=(90,) * 3, width=3)
    elif name == "hole":
        _disc(draw, *at, radius * 0.11, 60)
    elif name == "stain":
        _disc(draw, *at, radius * 0.2, metal - 30)
    elif name == "notch":
        _disc(draw, x + radius * np.cos(angle), y + radius * np.sin(angle), radius * 0.14, 150)


def _disc(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, grey: int) -> None:
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(grey,) * 3)


def _features(pictures: list[Image.Image], body: Any, size: int, fields: dict) -> np.ndarray:
    """Features float32 (N, D) of the body, read with one recipe."""
    recipe = Preprocessing(size, mean=(0.5,) * 3, std=(0.5,) * 3, **fields)
    found = []
    for start in range(0, len(pictures), 32):
        batch = torch.stack([recipe.load(image) for image in pictures[start : start + 32]])
        with torch.inference_mode():
            found.append(body(recipe.normalize(batch)).mean((2, 3)))
    return torch.cat(found).numpy()


def main() -> None:
    """Make the features of all data and methods, and write them as one file."""
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--hymenoptera", type=Path, required=True, help="folder of ants and bees")
    parser.add_argument("--cifar", type=Path, required=True, help="folder with train/CLASS, ...")
    parser.add_argument("--weights", type=Path, required=True, help="MobileNetV2's weights")
    parser.add_argument("--out", type=Path, required=True, help=".npz file to write")
    parser.add_argument("--size", type=int, default=112, help="pixels of drawn and CIFAR images")
    parser.add_argument("--n", type=int, default=40, help="images a class")
    options = parser.parse_args()
    data = {
        "ants/bees": (224, list(_photographs(options.hymenoptera, 80))),
        "cifar rectangles": (options.size, list(_rectangles(options.cifar, options.n))),
        "cifar pasted": (options.size, list(_pasted(options.cifar, options.n))),
        "parts 1.4": (options.size, list(_parts(1.4, options.n))),
        "parts 2": (options.size, list(_parts(2.0, options.n))),
    }
    tables = {}
    for name, (size, pictures) in data.items():
        body = create_body("mobilenetv2_100", str(options.weights), img_size=size, pad_type="same")
        images, labels = zip(*pictures, strict=True)
        tables[f"{name}|labels"] = np.array(labels)
        for method, fields in METHODS.items():
            tables[f"{name}|{method}"] = _features(images, body.eval(), size, fields)
        print(name, len(labels), flush=True)
    np.savez(options.out, **tables)


if __name__ == "__main__":
    main()
