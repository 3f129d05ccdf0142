"""What learning on costs: beside the pass through the network, per refit, and per-sample updates.

1. `init_continual` and `extend` from image files against the bare feature pass over the same files.
2. Processor time and peak memory over numbers of classes and features, each in a fresh process:
   of a refit (everything that follows from given statistics), of learning four images more, one of
   them of a new class (statistics and refit, beside the classifier there is), and of loading (from
   tensors in memory), and of learning one image more, the least of five. The memory is the peak of
   resident memory (Linux) less what it was before: less the statistics, and for learning more, less
   the classifier fitted to them. `--beside CHECKOUT` measures another checkout in turns with it.
3. Learning from features, with the refit, against deep streaming LDA, which updates a covariance
   per sample (`streaming_lda` in `_baselines.py`, the arithmetic of avalanche's `StreamingLDA`).

Without `--data` the images are scikit-learn's digits, enlarged, and the network has random weights.
Run: python benchmarks/continual_cost.py [--data FOLDER --weights FILE] [--rounds N]
"""

import gc
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from argparse import ArgumentParser, Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from _baselines import streaming_lda
from _bench import interleaved_times, report, timing_row, write_csv
from frozen_features import write_digits

from learnkit.continual.classifier import ContinualClassifier
from learnkit.continual.knowledge import History, Knowledge
from learnkit.continual.settings import Settings
from learnkit.continual.statistics import ClassStatistics
from learnkit.data.dataset import ImageDataset
from learnkit.deploy.predictor import Predictor
from learnkit.learner.factory import cnn_learner
from learnkit.learner.learner import ImageLearner

PER_CLASS = 64
# classes, features, images of a class
SHAPES = [(c, d, PER_CLASS) for c in (10, 100, 1000) for d in (512, 1280, 2048)] + [(65_535, 64, 2)]
FEW = [(2, 1280, 20), (2, 1280, 120), (10, 1280, 20), (10, 1280, 200)]  # where one image matters
GOAL_AT, GOAL_SECONDS, GOAL_MB = (1000, 2048), 5.0, 500
PASS, INIT, EXTEND, DEPLOYED = "feature pass", "init_continual", "extend", "extend, deployed"
OURS, PEER = "learnkit extend", "streaming LDA, per sample"


def options() -> Namespace:
    """The options of the command line."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with train/CLASS")
    parser.add_argument("--weights", type=Path, help="weights file of the body")
    parser.add_argument("--arch", default="mobilenetv2_100")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--images", type=int, default=240, help="images of the feature pass")
    parser.add_argument("--samples", type=int, default=5000, help="samples of streaming LDA")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--refit", type=int, nargs=3, metavar=("CLASSES", "WIDTH", "PER_CLASS"))
    parser.add_argument("--table-only", action="store_true", help="the second part alone")
    parser.add_argument("--beside", type=Path, help="another checkout, for the second part")
    return parser.parse_args()


def learner_of(data: ImageDataset, asked: Namespace) -> ImageLearner:
    """A learner over `data` whose head is never trained: only its body matters here."""
    weights = str(asked.weights) if asked.weights else False
    return cnn_learner(data.dataloaders(size=asked.size, bs=32), asked.arch, weights)


def against_the_pass(asked: Namespace, folder: Path) -> list[dict[str, object]]:
    """Rows of `init_continual` and `extend` against the bare pass over the same files."""
    data = write_digits(folder, asked.size)
    if asked.data is not None:
        data = ImageDataset.from_folder(asked.data)
    data = data.sample(min(asked.images, len(data)), seed=0).split(1.0, 0.0, 0.0, overwrite=True)
    split = data.split(0.8, 0.2, seed=0, overwrite=True)
    learn = learner_of(split, asked)
    with learn.no_bar(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the same images are learned again and again
        predictor = learn.predictor()

        def init() -> None:
            learn.init_continual(data, reset_class_information=True)
            learn.drop_continual()

        learn.init_continual(data, reset_class_information=True)
        expected = learn.continual.statistics

        def extend(model: ImageLearner | Predictor) -> None:
            empty = ContinualClassifier(expected.n_features, root=expected.root)
            model.model[1] = empty
            model.extend(data) if model is learn else model.extend(data, progress=False)
            assert empty.statistics.equals(expected), "not the same was learned"

        deployed = Predictor(
            torch.nn.Sequential(learn.model[0], learn.model[1]), predictor.preprocessing
        )
        trained = learn.model
        candidates = {
            PASS: lambda: predictor.features(data.paths, progress=False),
            EXTEND: lambda: extend(learn),
            DEPLOYED: lambda: extend(deployed),
        }
        times = interleaved_times(candidates, repeats=asked.rounds, warmup=1)
        learn.model = trained
        learn.drop_continual()
        again = interleaved_times(
            {PASS: candidates[PASS], INIT: init}, repeats=asked.rounds, warmup=1
        )
    about = {"case": f"{len(data)} images of {asked.size} pixels, {asked.arch}"}
    return [
        timing_row(again, INIT, PASS, **about),
        timing_row(times, EXTEND, PASS, **about),
        timing_row(times, DEPLOYED, PASS, **about),
    ]


def random_features(labels: torch.Tensor, n_classes: int, width: int) -> torch.Tensor:
    """Features float32 (N, width), never negative, that scatter around a mean per class."""
    generator = torch.Generator().manual_seed(0)
    means = torch.rand(n_classes, width, generator=generator)
    noise = torch.rand(len(labels), width, generator=generator.manual_seed(int(labels[0]) + 1))
    return means[labels] + 1.5 * noise


def against_streaming_lda(n_samples: int, width: int = 1280) -> dict[str, object]:
    """The row of learning `n_samples` features of ten classes, until all can be told apart."""
    labels = torch.arange(n_samples) % 10
    features = random_features(labels, 10, width)
    names = [f"class {label}" for label in labels.tolist()]
    found = {}

    def ours() -> None:
        head = ContinualClassifier(width)
        head.extend(features, names)
        found[OURS] = head(features[:1000]).argmax(1)

    def peer() -> None:
        logits = streaming_lda(features.double(), labels, 10, [np.arange(n_samples)])
        found[PEER] = logits(features[:1000].double()).argmax(1)

    times = interleaved_times({OURS: ours, PEER: peer}, repeats=1, warmup=0)
    agreement = (found[OURS] == found[PEER]).double().mean().item()
    assert agreement > 0.98, f"the classifiers agree on {agreement:.1%} only"
    return timing_row(times, PEER, OURS, case=f"{n_samples} features of width {width}")


def statistics_of(n_classes: int, width: int, per_class: int) -> ClassStatistics:
    """Statistics of random images, `per_class` of each class, built some classes at a time."""
    stats, step = ClassStatistics.empty(width, root=False), max(1, 6400 // per_class)
    step = max(step, 2**22 // width // per_class)
    for first in range(0, n_classes, step):
        labels = torch.arange(first, min(first + step, n_classes)).repeat_interleave(per_class)
        features = random_features(labels, n_classes, width)
        stats = stats.update(features, [f"{label:05}" for label in labels.tolist()])
    return stats


def refit(n_classes: int, width: int, per_class: int) -> dict[str, float]:
    """Seconds and megabytes of a refit, of learning four images more, and of loading."""
    knowledge = Knowledge.empty(Settings(width, False))
    stats = statistics_of(n_classes, width, per_class)
    knowledge = replace(
        knowledge, statistics=stats, validation=knowledge.validation.named(stats.class_names)
    )
    held = round(stats.nbytes / 1e6)
    del stats
    small = ContinualClassifier(8)
    small.extend(torch.rand(4, 8), list("aabb"))  # what libraries set up once
    head = ContinualClassifier(width)
    with Cost() as refitted:
        head.history = History((knowledge.derive(None),))
    labels = torch.tensor([0, 0, 1, 1])
    features = random_features(labels, n_classes, width)
    with Cost() as extended:
        head.extend(features, ["00000", "00000", "00001", "new"])
    fresh = random_features(labels[:1].repeat(6), n_classes, width)[1:]  # the first is known
    one = min(learn_one(head, features) for features in fresh.split(1))
    state = head.state()
    state = state[0], {name: tensor.clone() for name, tensor in state[1].items()}
    del head, knowledge
    with Cost() as loaded:
        ContinualClassifier.from_state(*state)
    costs = {"refit": refitted, "extend": extended, "load": loaded}
    return {"statistics_mb": held, "one_image_cpu_s": one} | {
        f"{what}_{unit}": value
        for what, cost in costs.items()
        for unit, value in (("cpu_s", cost.seconds), ("wall_s", cost.wall), ("mb", cost.megabytes))
    }


def learn_one(head: ContinualClassifier, features: torch.Tensor) -> float:
    """Processor seconds of learning one image more of a class there is."""
    start = time.process_time()
    head.extend(features, ["00000"])
    return round(time.process_time() - start, 3)


class Cost:
    """Processor seconds, wall seconds and megabytes of resident memory taken while it is open."""

    def __enter__(self) -> "Cost":
        gc.collect()
        Path("/proc/self/clear_refs").write_text(
            "5", encoding="utf-8"
        )  # the peak counts from here on
        self.base = status("VmRSS")
        self.start = time.process_time(), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = round(time.process_time() - self.start[0], 2)
        self.wall = round(time.perf_counter() - self.start[1], 2)
        self.megabytes = round((status("VmHWM") - self.base) / 1e6)


def status(name: str) -> int:
    """Bytes of a kind of memory of this process (Linux)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))


def refit_table(rounds: int, beside: Path | None) -> list[dict[str, object]]:
    """A row per shape, each the medians over some fresh processes, memory the largest."""
    rows, here = [], Path(__file__).parents[1]
    for shape in (*FEW, *SHAPES):
        call = [sys.executable, __file__, "--refit", *map(str, shape)]
        found = {"this": [], **({"beside": []} if beside else {})}
        for _ in range(rounds):
            for name, costs in found.items():
                path = {"PYTHONPATH": str(here if name == "this" else beside)}
                done = subprocess.run(call, check=True, capture_output=True, env=os.environ | path)
                costs.append(json.loads(done.stdout))
        for name, costs in found.items():
            about = dict(zip(("classes", "features", "images_per_class"), shape, strict=True))
            rows.append({"checkout": name} | about | _summary(costs))
            print(rows[-1], flush=True)
    return rows


def _summary(costs: list[dict[str, float]]) -> dict[str, float]:
    """Medians of seconds and the largest of megabytes over some processes."""
    pick = {name: [one[name] for one in costs] for name in costs[0]}
    return {
        name: max(values) if name.endswith("mb") else round(float(np.median(values)), 3)
        for name, values in pick.items()
    }


def check_goal(rows: list[dict[str, object]]) -> None:
    """Assert the goal of the largest network: memory always, time on cores that are free."""
    ours = [one for one in rows if one["checkout"] == "this"]
    (row,) = (one for one in ours if (one["classes"], one["features"]) == GOAL_AT)
    for what in "refit", "extend":
        assert row[f"{what}_mb"] < GOAL_MB, f"{what} takes {row[f'{what}_mb']} MB"
        if row[f"{what}_wall_s"] >= GOAL_SECONDS:
            print(f"{what} took {row[f'{what}_wall_s']} s, more than {GOAL_SECONDS:g}: cores free?")


def main() -> None:
    """Run all three parts, print and save the tables."""
    asked = options()
    if asked.refit:
        print(json.dumps(refit(*asked.refit)))
        return
    if not asked.table_only:
        with tempfile.TemporaryDirectory() as folder:
            rows = against_the_pass(asked, Path(folder))
        rows.append(against_streaming_lda(asked.samples))
        print(report(rows))
        print("goals: init and extend at most 1.1 x the pass; streaming LDA at least 20 x learnkit")
        print(f"wrote {write_csv('continual_cost', rows)}")
    table = refit_table(max(1, asked.rounds // 2), asked.beside)
    print(report(table))
    print("goal for 1000 classes x 2048 features: below 5 s on two cores, below 500 MB")
    print(f"wrote {write_csv('continual_refit', table)}")
    check_goal(table)


if __name__ == "__main__":
    main()
