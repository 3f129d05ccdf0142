"""One image from file to probabilities: learnkit's predictor, code by hand, fastai's learn.predict.

`mobilenetv3_small_050` at 224 pixels with random weights, JPEG files of 500 x 375. All three must
give the same probabilities before anything is timed. Then: many files at once against one by one;
`mobilenetv2_100` under a head that remembers 640 features, whose scores by hand are products of
numpy in all its threads; and the time to import what predicting needs against importing torch and
timm alone.
Run: python benchmarks/predict.py [rounds]
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import learnkit._torchvision  # noqa: F401  # before fastai and timm

import numpy as np
import torch
from _bench import interleaved_times, report, timing_row, write_csv
from fastai.vision.all import CrossEntropyLossFlat, ImageDataLoaders, Learner, Normalize, Resize
from PIL import Image

from learnkit.continual.classifier import ContinualClassifier
from learnkit.data.preprocess import Preprocessing
from learnkit.deploy.predictor import Predictor, load_learner
from learnkit.models.create import create_cnn_model
from learnkit.uncertainty.ood import combine, softmax, standardize
from learnkit.uncertainty.scoring import unit_rows

ARCH, SIZE, N_FILES = "mobilenetv3_small_050", 224, 64
LARGER = "mobilenetv2_100"  # whose layers are worth several threads
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BY_HAND, LEARNKIT, FASTAI = "by hand", "learnkit predict", "fastai learn.predict"
SCORED = "by hand, network and scores"
LOOP, FILES = "learnkit predict, one by one", "learnkit predict_files"
BASE_IMPORT = "import learnkit._torchvision, torch, timm"
OUR_IMPORT = "from learnkit import load_learner"
# Tearing a process down is no part of its start, and takes as long for all.
END = "; import os; os._exit(0)"


def write_pictures(root: Path) -> list[Path]:
    """Smooth colourful JPEG files in two class folders."""
    y, x = np.mgrid[0:375, 0:500] / 60
    rng, paths = np.random.default_rng(0), []
    for i in range(N_FILES):
        a, b = rng.uniform(0.3, 3, (2, 3))
        waves = np.sin(x[..., None] * a + i) * np.cos(y[..., None] * b)
        folder = root / ("even", "odd")[i % 2]
        folder.mkdir(exist_ok=True)
        paths.append(folder / f"{i:03d}.jpg")
        Image.fromarray((127.5 + 127 * waves).astype("uint8")).save(paths[-1], quality=90)
    return paths


def hand_written(model: torch.nn.Module):
    """Open, crop, resize, normalise, forward, softmax, with nothing in between."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))

    def predict(path: Path) -> torch.Tensor:
        with Image.open(path) as file:
            image = file.convert("RGB")
        side, (width, height) = min(image.size), image.size
        left, top = (width - side) // 2, (height - side) // 2
        image = image.crop((left, top, left + side, top + side))
        image = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        x = torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div_(255)
        with torch.inference_mode():
            return model(((x - mean) / std)[None]).softmax(1)[0]

    return predict


def fastai_learner(root: Path, model: torch.nn.Module) -> Learner:
    """fastai's own data pipeline and learner around the same network."""
    dls = ImageDataLoaders.from_folder(
        root,
        valid_pct=0.5,
        seed=0,
        item_tfms=Resize(SIZE),
        batch_tfms=Normalize.from_stats(MEAN, STD, cuda=False),
        num_workers=0,
        device=torch.device("cpu"),
    )
    return Learner(dls, model, loss_func=CrossEntropyLossFlat())


def remembering() -> Predictor:
    """A network under a head that knows 10 classes by 64 remembered features each."""
    model = create_cnn_model(LARGER, 2, pretrained=False, img_size=SIZE).eval()
    head = ContinualClassifier(model[0].n_features)
    features = torch.rand(10, 1, head.n_features) + torch.rand(10, 64, head.n_features)
    labels = [f"class {i}" for i in range(10) for _ in range(64)]
    head.extend(features.flatten(0, 1), labels)
    network = torch.nn.Sequential(model[0], head).eval()
    return Predictor(network, Preprocessing(SIZE, mean=MEAN, std=STD))


def scored_by_hand(predictor: Predictor):
    """Network, then probabilities and OOD score as one would write them, without a care."""
    network, scoring = predictor.record.network, predictor.continual.scoring
    parts = scoring.standards
    remembered, squares = scoring.neighbors.features, scoring.neighbors.squares

    def predict(path: Path) -> tuple[np.ndarray, float]:
        features = network.features(predictor.load(path)[None])
        row = unit_rows(features, root=scoring.root)
        logits = (row @ scoring.weight.T + scoring.bias).astype("float32").astype("float64")
        relative = scoring.distances.relative(row)
        raw = {
            "relative": relative,
            "mahalanobis": relative + scoring.distances.from_center(row),
            "knn": np.sqrt(np.maximum(squares + 1 - 2 * (row @ remembered.T), 0)).min(1),
        }
        return softmax(logits)[0], combine(*(standardize(raw[k], m, s) for k, m, s in parts))[0]

    return predict


def import_seconds(code: str) -> float:
    """Seconds until a fresh Python has run `code`."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code + END], check=True)
    return time.perf_counter() - start


def import_times(rounds: int) -> dict[str, list[float]]:
    """Seconds of both imports, alternating."""
    import_seconds(OUR_IMPORT)  # compiled files and disk cache
    times: dict[str, list[float]] = {BASE_IMPORT: [], OUR_IMPORT: []}
    for _ in range(rounds):
        for code in times:
            times[code].append(import_seconds(code))
    return times


def main(rounds: int = 30) -> None:
    """Assert that all three agree, time them, print and save the table."""
    torch.manual_seed(0)
    model = create_cnn_model(ARCH, 2, pretrained=False, img_size=SIZE).eval()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "images").mkdir()
        paths = write_pictures(root / "images")
        Predictor(model, Preprocessing(SIZE, mean=MEAN, std=STD), ["even", "odd"]).save(
            root / "model"
        )
        predictor, by_hand = load_learner(root / "model"), hand_written(model)
        learn = fastai_learner(root / "images", model)
        with learn.no_bar(), learn.no_logging():
            for path in paths[:8]:
                torch.testing.assert_close(predictor.predict(path).probs, by_hand(path))
                expected = torch.as_tensor(learn.predict(path)[2])
                torch.testing.assert_close(by_hand(path), expected, atol=1e-5, rtol=1e-4)
            model.eval()
            candidates = {
                BY_HAND: lambda: by_hand(paths[0]),
                LEARNKIT: lambda: predictor.predict(paths[0]),
                FASTAI: lambda: learn.predict(paths[0]),
            }
            times = interleaved_times(candidates, repeats=rounds)
        rows += [timing_row(times, n, BY_HAND, case="one image") for n in (LEARNKIT, FASTAI)]
        many = {
            LOOP: lambda: [predictor.predict(path) for path in paths],
            FILES: lambda: predictor.predict_files(paths, progress=False),
        }
        times = interleaved_times(many, repeats=max(3, rounds // 6), warmup=1)
        rows.append(timing_row(times, FILES, LOOP, case=f"{N_FILES} images"))
        predictor = remembering()
        scored = scored_by_hand(predictor)
        for path in paths[:8]:
            (probs, score), found = scored(path), predictor.predict(path)
            np.testing.assert_allclose(found.probs, probs, rtol=1e-5)
            np.testing.assert_allclose(found.ood_score, score, rtol=1e-6)
        # one after the other: what waits after one image is in the way of the next
        both = {
            SCORED: lambda: [scored(path) for path in paths],
            LOOP: lambda: [predictor.predict(path) for path in paths],
        }
        times = interleaved_times(both, repeats=max(3, rounds // 6), warmup=1)
        rows.append(timing_row(times, LOOP, SCORED, case=f"{N_FILES} images, 640 remembered"))
    times = import_times(max(3, rounds // 6))
    rows.append(timing_row(times, OUR_IMPORT, BASE_IMPORT, case="start"))
    print(report(rows))
    print(f"predict takes {rows[0]['ratio']} x the time of code by hand; the goal is at most 1.15")
    print(f"wrote {write_csv('predict', rows)}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
