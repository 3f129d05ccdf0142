"""Confidence after init and after every extend, beside netcal's temperature scaling.

The classes arrive in three steps. After each step the confidence on held-out test images of the
classes known so far is measured: of the bare discriminant (temperature 1), of learnkit's classifier
without any validation image (leave-one-out), of the same with validation images, and of netcal's
temperature scaling fitted on the same validation images. Half of the test split validates, the
other half tests. Expected calibration error: 15 bins of equal width, the same as netcal's.

Run: python benchmarks/calibration.py [--data ZIP --weights FILE]; without arguments scikit-learn's
digits.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from itertools import pairwise

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

PER_CLASS = (5, 20, 100, None)
N_STEPS = 3


def arrivals(data: dict[str, Split], seed: int) -> Iterator[tuple[list[str], list[str]]]:
    """Yield (classes known before, classes that arrive) of each step, in a random order."""
    classes = np.random.default_rng(seed).permutation(sorted(set(data["train"].labels))).tolist()
    n_steps = min(N_STEPS, max(1, len(classes) - 1))
    ends = [max(2, round(len(classes) * (i + 1) / n_steps)) for i in range(n_steps)]
    yield from ((classes[:start], classes[start:end]) for start, end in pairwise([0, *ends]))


def rows_of(split: Split, classes: list[str], k: int | None, seed: int) -> torch.Tensor:
    """Rows of up to `k` images of each class, in random order."""
    rng = np.random.default_rng(seed)
    rows = [rng.permutation(np.flatnonzero(split.labels == name))[:k] for name in classes]
    return torch.from_numpy(np.concatenate(rows))


def halves(split: Split) -> tuple[Split, Split]:
    """Validation and test half of a split, classes alike."""
    order = np.random.default_rng(0).permutation(len(split.labels))
    first = torch.from_numpy(np.isin(np.arange(len(order)), order[: len(order) // 2]))
    return tuple(Split(split.features[mask], split.labels[mask]) for mask in (first, ~first))


def measure(data: dict[str, Split], k: int | None, seed: int) -> Iterator[dict[str, object]]:
    """One row per step and method."""
    validation, test = halves(data["test"])
    root = bool((data["train"].features >= 0).all())
    plain, validated = (
        ContinualClassifier(data["train"].features.shape[1], root=root) for _ in range(2)
    )
    for before, new in arrivals(data, seed):
        known, train = before + new, data["train"]
        rows, fresh = rows_of(train, new, k, seed), rows_of(validation, new, None, seed)
        images = train.features[rows], train.labels[rows].tolist()
        plain.extend(*images)
        judged = validation.features[fresh], validation.labels[fresh].tolist()
        validated.extend(*images, validation=judged)
        parts = (_of(validation, known, plain.classes), _of(test, known, plain.classes))
        about = {"images": k or "all", "n_classes": len(known)}
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
    judged = _logits(validated, test[0]).softmax(1).numpy()
    return {
        "temperature 1": (bare, 1.0),
        "learnkit, no validation": (mild[1], plain.temperature),
        "learnkit, validation": (judged, validated.temperature),
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
    rows = [
        row
        for k in PER_CLASS
        for seed in range(options.seeds if k else 1)
        for row in measure(data, k, seed)
    ]
    keys = ["images", "n_classes", "method"]
    table = pd.DataFrame(rows).groupby(keys, sort=False).mean().reset_index().round(4)
    # Of 5 images a class there are 10 to 15 to leave out at first: too few to hold to a promise.
    enough = table[table["images"] != 5]
    for part, numbers in ((table, "all numbers of images"), (enough, "20 images a class and more")):
        means = part.groupby("method")[["ece", "log_loss"]].mean().round(4)
        print(f"mean over the steps, {numbers}\n{means.to_string()}\n")
    rows = table.astype(object).where(table.notna(), "").to_dict("records")
    print(report(rows))
    print(write_csv(f"calibration_{name}", rows, packages=["netcal"]).name)
    gap = means["ece"]["learnkit, no validation"] - means["ece"]["netcal, validation"]
    assert gap < 0.02, f"without validation images the error is {gap:.3f} larger"


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument("--seeds", type=int, default=3)
    main(parser.parse_args())
