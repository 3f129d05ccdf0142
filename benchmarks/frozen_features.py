"""Five head epochs of a frozen body, with and without stored features: same weights, less time.

scikit-learn's digits, enlarged and written as image files; a timm body with random frozen weights
under learnkit's head, trained by `fit_one_cycle(5)`. The time is that of the whole fit: reading the
images and computing the features is part of it. Run: python benchmarks/frozen_features.py [rounds]
"""

import sys
import tempfile
import time
from pathlib import Path

from _bench import report, timing_row, write_csv
from fastai.torch_core import set_seed
from PIL import Image
from sklearn.datasets import load_digits

from learnkit.callback.frozen_features import FrozenFeatures
from learnkit.data.dataset import ImageDataset
from learnkit.learner.factory import cnn_learner
from learnkit.learner.learner import ImageLearner

N_EPOCHS, N_IMAGES = 5, 320
CASES = (("mobilenetv3_small_050", 224), ("resnet18", 224), ("resnet18", 64))
PLAIN, STORED = "every epoch", "stored features"


def write_digits(root: Path, size: int, *, n_images: int = N_IMAGES) -> ImageDataset:
    """The first digits as PNG files of `size` pixels, one folder per class, split 75/25."""
    digits = load_digits()
    for i, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        if i == n_images:
            break
        folder = root / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray((pixels * 15.9).astype("uint8")).resize((size, size))
        image.convert("RGB").save(folder / f"{i}.png")
    return ImageDataset.from_folder(root).split(train=0.75, valid=0.25, seed=0)


def build(data: ImageDataset, arch: str, size: int, *, stored: bool) -> ImageLearner:
    """A learner whose body is frozen down to its norm layers."""
    set_seed(0)
    dls = data.dataloaders(size=size, bs=32)
    cbs = [FrozenFeatures()] if stored else []
    # to the bit; in bfloat16 features rounded at the pool and before it differ
    given = {"train_bn": False, "precision": "float32", "cbs": cbs}
    learn = cnn_learner(dls, arch, pretrained=False, **given)
    learn.freeze()
    return learn


def timed_fit(learn: ImageLearner) -> float:
    """Seconds of the fit; shows neither bars nor tables."""
    set_seed(1)
    with learn.no_bar(), learn.no_logging():
        start = time.perf_counter()
        learn.fit_one_cycle(N_EPOCHS, 3e-3)
        return time.perf_counter() - start


def largest_difference(a: ImageLearner, b: ImageLearner) -> float:
    """The largest difference of any weight, buffers included."""
    pairs = zip(a.model.state_dict().values(), b.model.state_dict().values(), strict=True)
    return max((x.double() - y.double()).abs().max().item() for x, y in pairs)


def compare(arch: str, size: int, rounds: int) -> dict[str, object]:
    """One row: the largest difference of the weights and the times of both ways."""
    times: dict[str, list[float]] = {PLAIN: [], STORED: []}
    with tempfile.TemporaryDirectory() as root:
        data = write_digits(Path(root), size)
        for round_ in range(rounds):
            learners = {name: build(data, arch, size, stored=name == STORED) for name in times}
            for name in sorted(learners, reverse=bool(round_ % 2)):
                times[name].append(timed_fit(learners[name]))
            reason = learners[STORED].frozen_features.reason
            assert reason is None, f"features were not stored because {reason}"
            difference = largest_difference(*learners.values())
            assert difference < 1e-5, f"{arch}: weights differ by {difference:.2g}"
    about = {"arch": arch, "size": size, "images": N_IMAGES, "epochs": N_EPOCHS}
    row = timing_row(times, STORED, PLAIN, **about, weights_differ_by=f"{difference:.1e}")
    return {**row, "factor": round(1 / row["ratio"], 2)}


def main(rounds: int = 3) -> None:
    """Measure, print, save."""
    rows = [compare(arch, size, rounds) for arch, size in CASES]
    print(report(rows))
    print(write_csv("frozen_features", rows, packages=["scikit-learn"]).name)
    assert min(row["factor"] for row in rows) > 1, "storing features did not pay"


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
