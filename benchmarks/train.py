"""Epochs beside fastai's `vision_learner` on the same loaders and weights; accuracy by precision.

scikit-learn's digits, enlarged and written as image files. fastai's learner over a timm network is
compared with learnkit's over the same network, rebuilt, with the same weights: in float32 both give
the same losses before and after an epoch, which is asserted first. Then an epoch of each is timed,
validation included, frozen and unfrozen, with learnkit's `precision="auto"`; seconds are those of
the processor, with one thread.

Run: python benchmarks/train.py [rounds]. With `--weights FILE [--data FOLDER]` instead the accuracy
of five trainings in float32 and in bfloat16, on the digits and on a folder with train/CLASS and
val/CLASS: three epochs of the head on stored features, then two of the whole MobileNetV2.
"""

import copy
import tempfile
import time
import warnings
from argparse import ArgumentParser
from pathlib import Path

import numpy as np
import torch
from _bench import interleaved_times, report, timing_row, write_csv
from fastai.metrics import accuracy
from fastai.torch_core import set_seed
from fastai.vision.all import CrossEntropyLossFlat, Learner, vision_learner
from frozen_features import write_digits

from learnkit.callback.frozen_features import FrozenFeatures
from learnkit.callback.training_precision import precision_of
from learnkit.data.dataset import ImageDataset
from learnkit.learner.adopt import travelling
from learnkit.learner.factory import cnn_learner
from learnkit.learner.learner import ImageLearner
from learnkit.learner.transforms import preprocessing_of
from learnkit.models.param_groups import param_groups

NETWORKS = ("resnet18", "mobilenetv2_100", "vit_tiny_patch16_224", "convnext_atto")
# Largest ratio to fastai's epoch that was aimed at, by network and whether the body is frozen.
GOALS = {("resnet18", False): 0.5, ("resnet18", True): 0.5, ("mobilenetv2_100", False): 0.65}
SIZE, BS, N_IMAGES = 224, 16, 64
FASTAI, OURS = "fastai vision_learner", "learnkit"
SEEDS = range(5)


def peers(dls, arch: str) -> dict[str, Learner]:
    """fastai's learner, and learnkit's in both precisions, with equal weights of their own."""
    set_seed(0)
    theirs = vision_learner(
        dls, arch, pretrained=False, normalize=False, ps=0.0, loss_func=CrossEntropyLossFlat()
    )
    network = travelling(theirs, preprocessing_of(dls))
    return {FASTAI: theirs} | {
        name: ImageLearner(
            dls,
            copy.deepcopy(network),
            CrossEntropyLossFlat(),
            splitter=param_groups,
            train_bn="all",  # as fastai's
            precision=precision,
        )
        for name, precision in ((f"{OURS} float32", "float32"), (OURS, "auto"))
    }


def epoch(learn: Learner) -> float:
    """The validation loss after one more epoch over the images in their order."""
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-4)
    return learn.recorder.values[-1][1]


def compare(data: ImageDataset, arch: str, rounds: int) -> list[dict[str, object]]:
    """Rows of a network, unfrozen and frozen, after proof that both sides compute the same."""
    dls = data.dataloaders(size=SIZE, bs=BS, num_workers=0)
    dls.train.shuffle = False
    learners = peers(dls, arch)
    theirs, same = learners[FASTAI], learners.pop(f"{OURS} float32")
    losses = [(float(learn.validate()[0]), epoch(learn)) for learn in (theirs, same)]
    assert np.allclose(*losses, rtol=1e-3), f"{arch}: losses differ: {losses}"
    rows = []
    for frozen in (False, True):
        for learn in learners.values():
            learn.freeze_to(-1 if frozen else 0)
        calls = {name: (lambda learn=learn: epoch(learn)) for name, learn in learners.items()}
        times = interleaved_times(calls, repeats=rounds, warmup=1, clock=time.process_time)
        about = {"arch": arch, "frozen": frozen, "precision": precision_of(learners[OURS])}
        goal = GOALS.get((arch, frozen), 1.0)
        rows.append({**timing_row(times, OURS, FASTAI, **about), "goal": goal})
        print(report(rows[-1:]), flush=True)
    return rows


def time_epochs(rounds: int) -> None:
    """Measure, print, save."""
    with tempfile.TemporaryDirectory() as root:
        data = write_digits(Path(root), SIZE, n_images=N_IMAGES)
        rows = [row for arch in NETWORKS for row in compare(data, arch, rounds)]
    print(report(rows))
    print(write_csv("train", rows, packages=["scikit-learn"]).name)
    missed = [row for row in rows if row["ratio"] > row["goal"]]
    print("goals missed:", ", ".join(f"{r['arch']} {r['ratio']}" for r in missed) or "none")


def trained(data: ImageDataset, weights: Path, precision: str, seed: int, size: int) -> float:
    """Accuracy on the test images of MobileNetV2 after a short fine-tuning."""
    set_seed(seed)
    learn = cnn_learner(
        data.dataloaders(size=size, bs=BS, seed=seed),
        "mobilenetv2_100",
        weights,
        arch_kwargs={"pad_type": "same"},
        normalize=((0.5,) * 3, (0.5,) * 3),
        metrics=accuracy,
        train_bn=False,
        precision=precision,
        cbs=FrozenFeatures(),
    )
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(3, 2e-3)
        learn.unfreeze()
        learn.fit_one_cycle(2, slice(1e-5, 5e-4))
        return float(learn.evaluate(data=data.test).summary["accuracy"])


def compare_accuracies(weights: Path, folder: Path | None) -> None:
    """Train with five seeds in both precisions, and save the accuracies."""
    rows = []
    with tempfile.TemporaryDirectory() as root:
        digits = write_digits(Path(root), 96, n_images=720).split(
            0.35, 0.05, 0.6, seed=0, overwrite=True
        )
        sets = {"digits": (digits, 96)}
        if folder is not None:
            frame = ImageDataset.from_folder(folder).frame
            few = frame["split"].eq("train") & (np.arange(len(frame)) % 10 == 0)
            splits = frame["split"].replace("valid", "test").mask(few, "valid")
            sets[folder.name] = ImageDataset(frame.assign(split=splits), folder), 128
        for name, (data, size) in sets.items():
            for seed in SEEDS:
                for precision in ("float32", "bfloat16"):
                    start = time.process_time()
                    found = trained(data, weights, precision, seed, size)
                    seconds = round(time.process_time() - start, 1)
                    rows.append(
                        {
                            "data": name,
                            "size": size,
                            "test_images": len(data.test),
                            "seed": seed,
                            "precision": precision,
                            "accuracy": round(found, 4),
                            "seconds": seconds,
                        }
                    )
                    print(report(rows[-1:]).splitlines()[-1], flush=True)
    print(write_csv("train_accuracy", rows, packages=["scikit-learn"]).name)


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rounds", type=int, nargs="?", default=3)
    parser.add_argument(
        "--weights", type=Path, help="weights of MobileNetV2 (TensorFlow's padding)"
    )
    parser.add_argument("--data", type=Path, help="folder with train/CLASS and val/CLASS")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if options.weights:
        compare_accuracies(options.weights, options.data)
    else:
        time_epochs(options.rounds)
