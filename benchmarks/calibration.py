"""Confidence after init and after every extend, beside netcal's temperature scaling.

The classes arrive in three steps; of two classes, the images in two. After each step the confidence
on held-out test images of the classes known so far is measured: of the bare discriminant
(temperature 1), of learnkit's classifier without any validation image (leave-one-out), of the same
with validation images, and of netcal's temperature scaling fitted on the same validation images.
Half of the test split validates, the other half tests. Expected calibration error: 15 bins of equal
width, the same as netcal's.

Run: python benchmarks/calibration.py [--data ZIP --weights FILE]; without arguments scikit-learn's
digits.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from _bench import report, write_csv
from _digits import load_or_digits
from _features import Split, add_arguments
from netcal.metrics import ECE
from netcal.scaling import TemperatureScaling

from learnkit.continual.classifier import ContinualClassifier
from learnkit.evaluation.measures import expected_calibration_error, log_loss

SEEDS = {5: 20, 20: 10, 100: 5, None: 1}  # draws by number of images of a class; None: all
N_STEPS = 3


class Arrival(NamedTuple):
    """What a step brings: images of these classes, from one share of the drawn ones to another."""

    known: list[str]
    new: list[str]
    share: tuple[float, float] = (0.0, 1.0)


def arrivals(data: dict[str, Split], seed: int) -> Iterator[Arrival]:
    """Yield the steps: classes in a random order, or of two classes one half of the images each."""
    classes = np.random.default_rng(seed).permutation(sorted(set(data["train"].labels))).tolist()
    if len(classes) < 2 * N_STEPS:
        yield from (Arrival(classes, classes, share) for share in ((0, 0.5), (0.5, 1)))
        return
    ends = [max(2, round(len(classes) * (i + 1) / N_STEPS)) for i in range(N_STEPS)]
    yield from (Arrival(classes[:end], classes[start:end]) for start, end in pairwise([0, *ends]))


def rows_of(
    split: Split, classes: list[str], k: int | None, seed: int, share: tuple[float, float] = (0, 1)
) -> torch.Tensor:
    """A share of up to `k` images of each class, in random order."""
    rng = np.random.default_rng(seed)
    rows = [rng.permutation(np.flatnonzero(split.labels == name))[:k] for name in classes]
    parts = [r[round(share[0] * len(r)) : round(share[1] * len(r))] for r in rows]
    return torch.from_numpy(np.concatenate(parts))


def halves(split: Split) -> tuple[Split, Split]:
    """Validation and test half of a split, classes alike."""
    order = np.random.default_rng(0).permutation(len(split.labels))
    first = torch.from_numpy(np.isin(np.arange(len(order)), order[: len(order) // 2]))
    return tuple(Split(split.features[mask], split.labels[mask]) for mask in (first, ~first))


def measure(data: dict[str, Split], k: int | None, seed: int) -> Iterator[dict[str, object]]:
    """One row per step and method."""
    validation, test = halves(data["test"])
    plain, validated = (ContinualClassifier(data["train"].features.shape[1]) for _ in range(2))
    for step, (known, new, share) in enumerate(arrivals(data, seed), start=1):
        train = data["train"]
        rows = rows_of(train, new, k, seed, share)
        fresh = rows_of(validation, new, None, seed, share)
        images = train.features[rows], train.labels[rows].tolist()
        plain.extend(*images)
        held_out = validation.features[fresh], validation.labels[fresh].tolist()
        validated.extend(*images, validation=held_out)
        parts = (_of(validation, known, plain.classes), _of(test, known, plain.classes))
        about = {"images": k or "all", "step": step, "n_classes": len(known), "seed": seed}
        for method, (probs, temperature) in _methods(plain, validated, *parts).items():
            yield about | {"method": method, **_errors(probs, parts[1][1]), "T": temperature}


def _of(
    split: Split, known: list[str], classes: tuple[str, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Features and class numbers of the images of known classes."""
    inside = torch.from_numpy(np.isin(split.labels, known))
    numbers = [classes.index(name) for name in split.labels[inside.numpy()]]
    return split.features[inside], torch.tensor(numbers)


def _methods(
    plain: ContinualClassifier,
    validated: ContinualClassifier,
    validation: tuple[torch.Tensor, torch.Tensor],
    test: tuple[torch.Tensor, torch.Tensor],
) -> dict[str, tuple[np.ndarray, float]]:
    """Probabilities of the test images, and the temperature, by method."""
    # At temperature 1 many probabilities round to 0 and 1 and have no logits left: netcal starts
    # from milder ones, which is all the same to a method that looks for the best temperature.
    mild = [_logits(plain, x).softmax(1).numpy() for x, _ in (validation, test)]
    scaling = TemperatureScaling().fit(mild[0], validation[1].numpy())
    theirs = scaling.transform(mild[1])
    theirs = np.column_stack([1 - theirs, theirs]) if theirs.ndim == 1 else theirs
    bare = (_logits(plain, test[0]) * plain.temperature).softmax(1).numpy()
    validated_probs = _logits(validated, test[0]).softmax(1).numpy()
    return {
        "temperature 1": (bare, 1.0),
        "learnkit, no validation": (mild[1], plain.temperature),
        "learnkit, validation": (validated_probs, validated.temperature),
        "netcal, validation": (theirs, float("nan")),
    }


def _logits(classifier: ContinualClassifier, features: torch.Tensor) -> torch.Tensor:
    """Calibrated logits in double precision."""
    with torch.inference_mode():
        return classifier(features).double()


def _errors(probs: np.ndarray, targets: torch.Tensor) -> dict[str, float]:
    """Accuracy, calibration error and log loss; both sides agree about the error."""
    ece = expected_calibration_error(probs, targets)
    if probs.shape[1] > 2:  # of two classes netcal looks at one column alone
        theirs = ECE(15).measure(probs, targets.numpy())
        assert abs(ece - theirs) < 2e-3, f"calibration errors differ: {ece} and {theirs}"
    accuracy = (probs.argmax(1) == targets.numpy()).mean()
    return {"accuracy": accuracy, "ece": ece, "log_loss": log_loss(probs, targets)}


def main(options: Namespace) -> None:
    """Measure, print, save."""
    name, data = load_or_digits(options)
    runs = pd.DataFrame(
        row
        for k, most in SEEDS.items()
        for seed in range(min(most, options.seeds))
        for row in measure(data, k, seed)
    )
    keys = ["images", "step", "n_classes", "method"]
    table = runs.groupby(keys, sort=False).mean().drop(columns="seed").reset_index().round(4)
    rows = table.astype(object).where(table.notna(), "").to_dict("records")
    print(report(rows))
    print(write_csv(f"calibration_{name}", rows, packages=["netcal"]).name)
    gaps = gaps_of(runs)
    print(f"calibration error above netcal's, paired by draw\n{gaps.round(4).to_string()}")
    # Of 5 images a class there are 10 to 15 to leave out at first, often all right: those may err
    # more than .02, but not surely so.
    sure = gaps["mean"] - 2 * gaps["sem"].fillna(0).where(gaps.index == 5, 0)
    assert (sure < 0.02).all(), "without validation images the error is larger by .02"


def gaps_of(runs: pd.DataFrame) -> pd.DataFrame:
    """By how much more learnkit errs without validation images than netcal with them, by k.

    Mean over steps and draws, standard error over draws.
    """
    means = runs.groupby(["images", "seed", "method"], sort=False)["ece"].mean().unstack()
    gap = means["learnkit, no validation"] - means["netcal, validation"]
    return gap.groupby(level="images", sort=False).agg(["mean", "sem", "count"])


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument("--seeds", type=int, default=20, help="draws at most")
    main(parser.parse_args())
