"""Continual classifiers over frozen features: accuracy, imbalance, order of arrival, time.

All methods see the same features in one run, and the same draws of them: `lead` is by how much a
method is ahead of learnkit's discriminant, paired by draw. Without options the features are the
pixels of scikit-learn's digits; with images and weights, or with a file of features, what those
give.

Run: python benchmarks/continual.py [--features FILE.npz | --data ZIP/FOLDER --weights FILE]
"""

import threading
import time
from argparse import ArgumentParser

import numpy as np
import psutil
import torch
from _baselines import METHODS, learnkit_method, streaming_lda
from _bench import report, write_csv
from _digits import load_or_digits
from _features import Split, add_arguments
from tqdm.auto import tqdm

from learnkit.continual.closed_form.lda import fit_lda
from learnkit.continual.statistics import ClassStatistics

# Draws by number of images of a class; None: all there are. The fewer, the more they differ.
SEEDS = {1: 20, 5: 20, 20: 10, 100: 4, None: 1}
OURS = "learnkit lda"
OLD, N_NEW = 300, (1, 2, 5, 20)  # images of a class, at most
ORDERS = 10


class Data:
    """Features of two splits with class numbers, and ways to draw from them."""

    def __init__(self, name: str, splits: dict[str, Split]) -> None:
        self.name = name
        self.classes = sorted(set(splits["train"].labels))
        number = {label: i for i, label in enumerate(self.classes)}
        self.x, self.y = (
            (splits["train"].features, _numbers(splits["train"].labels, number)),
            (splits["test"].features, _numbers(splits["test"].labels, number)),
        )

    @property
    def n_classes(self) -> int:
        return len(self.classes)

    def draw(self, counts: list[int | None], seed: int) -> list[np.ndarray]:
        """Row numbers per class, so many of each."""
        rng, labels = np.random.default_rng(seed), self.x[1].numpy()
        rows = [rng.permutation(np.flatnonzero(labels == c)) for c in range(self.n_classes)]
        return [r[:n] for r, n in zip(rows, counts, strict=True)]

    def score(self, name: str, tasks: list[np.ndarray]) -> torch.Tensor:
        """Recall (C,) of a method that learned these arrivals; NaN where it cannot."""
        rows = np.concatenate(tasks)
        place = {row: i for i, row in enumerate(rows)}
        tasks = [np.array([place[row] for row in task]) for task in tasks]
        x, y = self.x[0][rows], self.x[1][rows]
        try:
            predict = METHODS[name](x, y, self.n_classes, tasks)
        except ValueError:  # scikit-learn's discriminant needs more samples than classes
            return torch.full((self.n_classes,), float("nan"))
        right = (predict(self.y[0]) == self.y[1]).double()
        return torch.stack([right[self.y[1] == c].mean() for c in range(self.n_classes)])


def _numbers(labels: np.ndarray, number: dict[str, int]) -> torch.Tensor:
    return torch.tensor([number[label] for label in labels])


def accuracy_rows(data: Data, n_seeds: int) -> list[dict[str, object]]:
    """Balanced classes: mean recall for each number of images, of the same draws."""
    rows = []
    for count, most in tqdm(SEEDS.items(), desc="balanced"):
        draws = [
            [np.concatenate(data.draw([count] * data.n_classes, seed))]
            for seed in range(min(most, n_seeds))
        ]
        ours = None
        for name in METHODS:
            if "balanced" in name and count is not None:
                continue
            scores = [float(data.score(name, tasks).mean()) for tasks in draws]
            ours = scores if name == OURS else ours
            row = _row(data, "balanced", count or "all", name, scores)
            rows.append(row | _lead(scores, ours))
    return rows


def imbalance_rows(data: Data, n_seeds: int) -> list[dict[str, object]]:
    """Six tenths of the classes with many images, then the others with few: harmonic mean."""
    rows, n_old = [], round(0.6 * data.n_classes)
    for few in tqdm(N_NEW, desc="imbalanced"):
        ours = None
        for name in METHODS:
            scores, old, new = [], [], []
            for seed in range(min(3, n_seeds)):
                order = np.random.default_rng(seed).permutation(data.n_classes)
                counts = [few] * data.n_classes
                for c in order[:n_old]:
                    counts[c] = OLD
                drawn = data.draw(counts, seed)
                tasks = [
                    np.concatenate([drawn[c] for c in part])
                    for part in (order[:n_old], order[n_old:])
                ]
                recall = data.score(name, tasks)
                a, b = float(recall[order[:n_old]].mean()), float(recall[order[n_old:]].mean())
                old, new = [*old, a], [*new, b]
                scores.append(2 * a * b / (a + b) if a + b else 0.0)
            ours = scores if name == OURS else ours
            row = _row(data, "many old, few new", few, name, scores) | _lead(scores, ours)
            rows.append(row | {"old": _mean(old), "new": _mean(new)})
    return rows


def order_rows(data: Data, n_seeds: int) -> list[dict[str, object]]:
    """One class after the other in ten orders: how far the final accuracies lie apart."""
    rows = []
    for name in tqdm(METHODS, desc="orders"):
        drawn = data.draw([20] * data.n_classes, 0)
        orders = [np.random.default_rng(s).permutation(data.n_classes) for s in range(ORDERS)]
        scores = [float(data.score(name, [drawn[c] for c in order]).mean()) for order in orders]
        row = _row(data, "class by class, ten orders", 20, name, scores)
        rows.append({**row, "spread": round(max(scores) - min(scores), 4)})
        if name == OURS:
            assert max(scores) == min(scores), f"the order of arrival matters: {scores}"
    return rows


def _row(data: Data, setting: str, count: object, method: str, scores: list[float]) -> dict:
    return {
        "data": data.name,
        "setting": setting,
        "images": count,
        "method": method,
        "score": _mean(scores),
        "seeds": len(scores),
        "stderr": _stderr(scores),
        "lead": "",
        "lead_stderr": "",
        "old": "",
        "new": "",
        "spread": "",
    }


def _lead(scores: list[float], ours: list[float]) -> dict[str, object]:
    """By how much a method is ahead of learnkit's on the same draws, and how sure that is."""
    lead = [theirs - own for theirs, own in zip(scores, ours, strict=True)]
    return {"lead": _mean(lead), "lead_stderr": _stderr(lead)}


def _stderr(scores: list[float]) -> object:
    """Standard error of the mean over draws; the test images are the same in all."""
    return round(float(np.std(scores, ddof=1)) / len(scores) ** 0.5, 4) if len(scores) > 1 else ""


def _mean(scores: list[float]) -> float:
    return round(float(np.mean(scores)), 4)


def refit_rows() -> list[dict[str, object]]:
    """Seconds and memory of one refit over classes and features, 20 images of each class."""
    rows = []
    for n_features in (512, 1280, 2048):
        for n_classes in (10, 100, 1000):
            stats = _synthetic(n_classes, n_features)
            seconds, megabytes = _measured(lambda stats=stats: fit_lda(stats.moments()))
            rows.append(
                {
                    "what": "refit",
                    "classes": n_classes,
                    "features": n_features,
                    "seconds": round(seconds, 3),
                    "peak_mb": round(megabytes),
                    "ratio": "",
                }
            )
    return rows


def update_rows(data: Data) -> list[dict[str, object]]:
    """Seconds to learn every training image, beside the per-sample update of streaming LDA."""
    x, y = data.x
    task = [np.arange(len(y))]
    start = time.perf_counter()
    learnkit_method(fit_lda)(x, y, data.n_classes, task)
    ours = time.perf_counter() - start
    start = time.perf_counter()
    streaming_lda(x, y, data.n_classes, task)
    theirs = time.perf_counter() - start
    about = {"classes": data.n_classes, "features": x.shape[1], "peak_mb": ""}
    n = len(y)
    return [
        {"what": f"learn {n} images, learnkit lda", **about, "seconds": round(ours, 3), "ratio": 1},
        {
            "what": f"learn {n} images, streaming LDA",
            **about,
            "seconds": round(theirs, 3),
            "ratio": round(theirs / ours, 1),
        },
    ]


def _synthetic(n_classes: int, n_features: int, per_class: int = 20) -> ClassStatistics:
    """Statistics of normal features."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(n_classes, n_features, generator=generator)
    stats = ClassStatistics.empty(n_features, root=False)
    for part in torch.arange(n_classes).split(100):
        labels = part.repeat_interleave(per_class)
        noise = torch.randn(len(labels), n_features, generator=generator)
        stats = stats.update((centers[labels] + 2 * noise).double(), [str(int(c)) for c in labels])
    return stats


def _measured(call) -> tuple[float, float]:
    """Seconds, and megabytes by which the process grew at most."""
    process, done = psutil.Process(), threading.Event()
    base = peak = process.memory_info().rss

    def watch():
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    call()
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    return seconds, (peak - base) / 1e6


def main() -> None:
    """Measure, print, save."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--parts", nargs="+", default=["balanced", "imbalanced", "orders", "time"])
    parser.add_argument("--seeds", type=int, default=20, help="draws at most")
    options = parser.parse_args()
    data = Data(*load_or_digits(options))
    parts = {"balanced": accuracy_rows, "imbalanced": imbalance_rows, "orders": order_rows}
    rows = [
        row
        for name, part in parts.items()
        if name in options.parts
        for row in part(data, options.seeds)
    ]
    if rows:
        print(report(rows))
        print(write_csv(f"continual_{data.name}", rows, packages=["scikit-learn"]).name)
    if "time" in options.parts:
        rows = [*refit_rows(), *update_rows(data)]
        print(report(rows))
        print(write_csv(f"continual_time_{data.name}", rows, packages=["scikit-learn"]).name)


if __name__ == "__main__":
    main()
