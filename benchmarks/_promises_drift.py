"""How soon drift is noticed, and how often for nothing, beside a chart of 3 sigma on the scores.

A model learns 100 images a class, and further images it has not learned come by, drawn with
replacement. After `CLEAN` of them, 2 or 10 % are of the half of the classes it has not learned
("new kind") or of another data set ("foreign kind"), or all pass through a camera that slowly gets
out of focus or dark. The value is the number of images from there to the first alarm, or `MOST` if
there is none.

The chart raises an alarm for one score above mean + k sigma of the images before the drift, k such
that these raise one alarm in 10,000 as a normal distribution would have it (k = 3.72, "sigma"), or
as the scores of all images without drift that there are say ("oracle", which nobody has); and for
means of 25 scores ("sigma25").

For new kinds the rows "best possible" say what can be had from these scores at all: the mean delay
of CUSUM on the likelihood ratios of binned scores, whose distributions with and without drift, and
the share, it is told beforehand, at the same mean run of 10,000 images without drift. In the worst
case of what came before the drift, no test of such scores is faster (Moustakides, "Optimal stopping
times for detecting changes in distributions", 1986). `FAR` images are looked at.

Blurred and darkened images need pixels: their features come from `python _promises_drift.py
IMAGES WEIGHTS OUT.npz SIZE`, and the file is named in the environment as DRIFT_ANTS, DRIFT_CIFAR.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import learnkit._torchvision  # noqa: F401  # before timm

import numpy as np
import torch
from _bench import promise_row
from PIL import Image, ImageEnhance, ImageFilter

from learnkit.continual.classifier import ContinualClassifier
from learnkit.data.preprocess import Preprocessing
from learnkit.inference.monitor import Monitor
from learnkit.inference.prediction import conclude
from learnkit.models.body import create_body
from learnkit.uncertainty.drift import N_BETS, add_evidence, bets, shares_above

RATE = 10_000  # images a false alarm
CLEAN, MOST = 1000, 1500  # images before the drift, and looked at afterwards
FAR = 6000  # images looked at by the best possible test
RAMP = 600  # images until the camera is at its worst
LEVELS = [
    ("clean", 0.0),
    *(("blur", share) for share in (0.004, 0.008, 0.012, 0.018, 0.026, 0.036)),
    *(("light", factor) for factor in (0.85, 0.7, 0.55, 0.4, 0.28)),
]


def rows(features_by_name: dict, draws: int) -> list[dict]:
    """Rows of promise, data, case, metric, value and draw."""
    found = []
    for name in ("ants", "cifar", "pcb"):
        if name in features_by_name:
            found += _new_kind_rows(name, features_by_name[name], draws)
    for name, other in (("cifar", "pcb"), ("pcb", "cifar")):
        if name in features_by_name and other in features_by_name:
            foreign = features_by_name[other]["test"].features
            found += _new_kind_rows(name, features_by_name[name], draws, foreign)
    for name in ("ants", "cifar"):
        path = os.environ.get(f"DRIFT_{name.upper()}")
        if path:
            found += _camera_rows(name, features_by_name[name]["train"], path, draws)
    return found + _simulated_rows(draws)


def _new_kind_rows(name: str, data: dict, draws: int, foreign=None) -> list[dict]:
    """A new kind is the other half of the classes, or `foreign` images beside all of them."""
    found = []
    for draw in range(draws):
        rng = np.random.default_rng([draw, 7])
        labels, test = np.asarray(data["train"].labels), data["test"]
        names = rng.permutation(np.unique(labels))
        known = names if foreign is not None else names[: max(len(names) // 2, 1)]
        head = _learned(data["train"], list(known), rng)
        is_known = np.isin(test.labels, known)
        rest = _rest(data["train"], labels, known, head)
        old = torch.cat([test.features[is_known], rest])
        new = test.features[~is_known] if foreign is None else foreign
        for share in (0.02, 0.1):
            stream = _drawn(old, CLEAN + MOST, rng)
            mixed = (rng.random(len(stream)) < share) & (np.arange(len(stream)) >= CLEAN)
            stream[mixed] = _drawn(new, int(mixed.sum()), rng)
            kind = "new kind" if foreign is None else "foreign kind"
            case = f"{kind} at {share:.0%}"
            found += _measured(name, case, head, stream, old, draw)
            scores = (head.scoring.ood_scores(part.numpy()) for part in (old, new))
            best = _best_delay(*scores, share, np.random.default_rng([draw, 9]))
            chart = f"{case}, best possible"
            found.append(promise_row("drift", name, chart, "images to alarm", best, draw))
    return found


# Shares of the images without drift that score at least as high, between the bins of scores.
_BINS = (0, 0.002, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.6, 1)


def _best_delay(old: np.ndarray, new: np.ndarray, share: float, rng: np.random.Generator) -> float:
    """Mean number of images, `FAR` at most, until the best test notices a share of new ones."""
    ranked = np.sort(-old)
    without, drifted = (
        # half an image in each bin: what was never seen is not impossible
        np.histogram(np.searchsorted(ranked, -scores, side="right") / len(old), _BINS)[0] + 0.5
        for scores in (old, new)
    )
    without, drifted = without / without.sum(), drifted / drifted.sum()
    gains = np.log(1 + share * (drifted / without - 1))
    clean = gains[rng.choice(len(gains), (200, 2 * RATE), p=without)]
    low, high = 0.0, np.log(RATE)  # at the higher one runs are longer than RATE: Lorden, 1971
    for _ in range(8):
        bound = (low + high) / 2
        n_alarms = sum(over.sum() for over in _cusum(clean, bound))
        low, high = (bound, high) if clean.size < RATE * n_alarms else (low, bound)
    mixed = gains[rng.choice(len(gains), (1000, FAR), p=(1 - share) * without + share * drifted)]
    first = np.full(len(mixed), FAR)
    for at, over in enumerate(_cusum(mixed, high), 1):
        first[over] = np.minimum(first[over], at)
    return float(first.mean())


def _cusum(gains: np.ndarray, bound: float) -> Iterator[np.ndarray]:
    """Which of the streams (N, images) raise an alarm at each image, and begin again."""
    level = np.zeros(len(gains))
    for gain in gains.T:
        level = np.maximum(level + gain, 0)
        over = level >= bound
        level[over] = 0
        yield over


def _camera_rows(name: str, train, path: str, draws: int) -> list[dict]:
    with np.load(path, allow_pickle=False) as file:
        features, kinds = torch.from_numpy(file["features"]), file["kind"]
    found = []
    for draw in range(draws):
        rng = np.random.default_rng([draw, 8])
        head = _learned(train, np.unique(train.labels).tolist(), rng)
        for kind in ("blur", "light"):
            levels = np.flatnonzero((kinds == "clean") | (kinds == kind))
            n = CLEAN + MOST
            worst = np.clip((np.arange(n) - CLEAN) / RAMP, 0, 1) * (len(levels) - 1)
            # between two levels, images of either come in turns
            at = levels[
                np.minimum((worst + rng.random(n) * (worst > 0)).astype(int), len(levels) - 1)
            ]
            stream = features[at, rng.integers(features.shape[1], size=n)]
            found += _measured(name, f"slow {kind}", head, stream, features[0], draw)
    return found


def _simulated_rows(draws: int) -> list[dict]:
    """False alarms in a million images without drift of one test whose bound is 10,000."""
    found = []
    for draw in range(draws):
        rng, evidence, n_alarms = np.random.default_rng(draw), np.zeros((100, N_BETS)), 0
        above = shares_above(2000)
        for _ in range(10_000):
            evidence = add_evidence(evidence, bets(rng.random(100), above, above))
            over = evidence.mean(1) >= RATE
            n_alarms += int(over.sum())
            evidence[over] = 0
        found.append(
            promise_row(
                "drift",
                "simulated",
                "uniform p-values",
                "alarms in 10^6 (100 allowed)",
                n_alarms,
                draw,
            )
        )
    return found


def _measured(
    name: str, case: str, head, stream: torch.Tensor, clean: torch.Tensor, draw: int
) -> list[dict]:
    results = conclude(head.scoring, stream.float().numpy(), None, head.classes)
    scores = np.array([result.ood_score for result in results])
    monitor = Monitor(head.scoring, images_per_false_alarm=RATE)
    monitor.observe(results, head.scoring)
    first = min((alarm.image for alarm in monitor.alarms), default=CLEAN + MOST + 1)
    # what is raised before the drift is a false alarm, and the next after it counts
    if first <= CLEAN:
        monitor = Monitor(head.scoring, images_per_false_alarm=RATE)
        monitor.observe(results[CLEAN:], head.scoring)
        later = min((alarm.image for alarm in monitor.alarms), default=MOST)
    else:
        later = first - CLEAN
    mean, sigma = scores[:CLEAN].mean(), scores[:CLEAN].std()
    reference = head.scoring.ood_scores(clean.double().numpy())
    means = np.convolve(scores, np.ones(25) / 25, "valid")
    charts = {
        "sigma": scores > mean + 3.72 * sigma,
        "oracle": scores > reference.max(),
        "sigma25": np.concatenate([np.zeros(24, bool), means > mean + 3.72 * sigma / 5]),
    }
    found = [
        promise_row("drift", name, f"{case}, monitor", "images to alarm", min(later, MOST), draw),
        promise_row(
            "drift", name, f"{case}, monitor", "false alarm in 1000", float(first <= CLEAN), draw
        ),
    ]
    for chart, raised in charts.items():
        after = np.flatnonzero(raised[CLEAN:])
        value = after[0] + 1 if len(after) else MOST
        found.append(promise_row("drift", name, f"{case}, {chart}", "images to alarm", value, draw))
        found.append(
            promise_row(
                "drift", name, f"{case}, {chart}", "false alarm in 1000", raised[:CLEAN].any(), draw
            )
        )
    return found


def _learned(train, names: list, rng: np.random.Generator, n: int = 100) -> ContinualClassifier:
    labels = np.asarray(train.labels)
    chosen = [i for name in names for i in rng.permutation(np.flatnonzero(labels == name))[:n]]
    head = ContinualClassifier(train.features.shape[1], memory=n)
    head.extend(train.features[chosen].float(), labels[chosen].tolist())
    head.chosen = chosen
    return head


def _rest(train, labels: np.ndarray, known: np.ndarray, head) -> torch.Tensor:
    """Training images of the known classes that were not learned."""
    fresh = np.isin(labels, known)
    fresh[head.chosen] = False
    return train.features[fresh]


def _drawn(features: torch.Tensor, n: int, rng: np.random.Generator) -> torch.Tensor:
    return features[rng.integers(len(features), size=n)]


def _altered(image: Image.Image, kind: str, amount: float) -> Image.Image:
    """An image out of focus by a share of its shorter side, or with a part of its light."""
    image = image.convert("RGB")
    if kind == "blur":
        return image.filter(ImageFilter.GaussianBlur(amount * min(image.size)))
    return ImageEnhance.Brightness(image).enhance(amount) if kind == "light" else image


def extract(images: Path, weights: Path, out: Path, size: int, *, per_class: int = 200) -> None:
    """Write the features of the images that are not in a folder train, at all levels."""
    body = create_body("mobilenetv2_100", str(weights), img_size=size, pad_type="same").eval()
    recipe = Preprocessing(size, mean=[0.5] * 3, std=[0.5] * 3)
    paths = sorted(p for p in images.rglob("*") if p.is_file() and p.parts[-3] != "train")
    folders = sorted({path.parent for path in paths})
    paths = [p for f in folders for p in [p for p in paths if p.parent == f][:per_class]]
    rows = []
    for kind, amount in LEVELS:
        parts = []
        for start in range(0, len(paths), 32):
            pictures = [_altered(Image.open(p), kind, amount) for p in paths[start : start + 32]]
            batch = torch.stack([recipe.load(np.asarray(picture)) for picture in pictures])
            with torch.inference_mode():
                parts.append(body(recipe.normalize(batch)).mean((2, 3)))
        rows.append(torch.cat(parts).numpy())
    kinds, amounts = zip(*LEVELS, strict=True)
    np.savez(out, features=np.stack(rows), kind=np.array(kinds), value=np.array(amounts))


if __name__ == "__main__":
    extract(*map(Path, sys.argv[1:4]), int(sys.argv[4]))
