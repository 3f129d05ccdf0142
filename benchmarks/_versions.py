"""Photographs in versions, as bursts, augmentation and saving again make them, for topic `bursts`.

Photographs of all splits are drawn at random into `train/CLASS`, in `VERSIONS` one after another,
and `test/CLASS`, as they are: fresh ones then are drawn like the learned ones.

Run: python benchmarks/_versions.py DATA OUT --learned 60 --fresh 200
"""

import io
from argparse import ArgumentParser
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import learnkit._torchvision  # noqa: F401  # before timm

import numpy as np
from _features import images_of
from PIL import Image, ImageEnhance, ImageFilter, ImageOps


def main() -> None:
    """Write the two splits."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="zip or folder with SPLIT/CLASS/FILE")
    parser.add_argument("out", type=Path, help="a folder")
    parser.add_argument("--learned", type=int, default=60, help="photographs of a class")
    parser.add_argument("--fresh", type=int, default=200, help="of a class, at most")
    options = parser.parse_args()
    by_class = defaultdict(list)
    for name, read in sorted(images_of(options.data)):
        by_class[PurePosixPath(name).parts[-2]].append(read)
    for label, reads in sorted(by_class.items()):
        order = np.random.default_rng(0).permutation(len(reads))
        for place, one in enumerate(order[: options.learned + options.fresh]):
            image = Image.open(io.BytesIO(reads[one]())).convert("RGB")
            learned = place < options.learned
            folder = options.out / ("train" if learned else "test") / label
            folder.mkdir(parents=True, exist_ok=True)
            for version, made in enumerate(versions(image, place) if learned else [image]):
                made.save(folder / f"{place:04d}_{version:02d}.png")


def versions(image: Image.Image, seed: int) -> Iterator[Image.Image]:
    """The image as it is, and in 12 versions."""
    width, height = image.size
    noise = np.random.default_rng(seed).normal(0, 6, (height, width, 3))
    yield image
    yield _saved(image, 75)
    yield _saved(image, 40)
    yield ImageEnhance.Brightness(image).enhance(1.25)
    yield ImageEnhance.Brightness(image).enhance(0.75)
    yield ImageEnhance.Color(ImageEnhance.Contrast(image).enhance(1.25)).enhance(0.7)
    yield _cut(image, 0.04, 0.04, 1, 1)
    yield _cut(image, 0, 0, 0.92, 0.92)
    yield ImageOps.mirror(image)
    yield _cut(image.rotate(4, Image.Resampling.BICUBIC), 0.06, 0.06, 0.94, 0.94)
    yield image.filter(ImageFilter.GaussianBlur(min(image.size) / 200))
    yield Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))
    yield _cut(image, 0.06, 0.06, 0.94, 0.94)


def _saved(image: Image.Image, quality: int) -> Image.Image:
    """The image after a trip through JPEG."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def _cut(image: Image.Image, left: float, top: float, right: float, bottom: float) -> Image.Image:
    """A part of the image, in its size."""
    width, height = image.size
    box = (left * width, top * height, right * width, bottom * height)
    return image.resize(image.size, Image.Resampling.BICUBIC, box)


if __name__ == "__main__":
    main()
