"""Label errors: exact leave-one-out of the class statistics beside cleanlab on the same features.

Labels of training images are flipped to another class at random, 5 % and 10 % of them, and ranked
by how suspicious they are. cleanlab ranks by probabilities from logistic regression in five-fold
cross-validation (standardised features; of the penalties C the one with the least log loss on the
labels as they are), by its self-confidence and by its normalised margin. Asserted first: from
learnkit's held-out probabilities cleanlab's self-confidence gives learnkit's own order.

`found`: share of the flipped labels in the first 10 % of the list (5 % flipped) or 15 % (10 %);
`precision`: share of flipped labels among the first as many as were flipped; `auroc`: of the
ranking; `expected`: how many wrong labels learnkit expects; `cpu_s`: processor seconds.

Run: python benchmarks/label_errors.py [--features FILE.npz | --data ZIP --weights FILE]
[--seeds 5] [--penalties 0.001 0.01 0.1]; without arguments scikit-learn's digits.
"""

import time
import warnings
from argparse import ArgumentParser
from collections.abc import Iterator

import numpy as np
import pandas as pd
from _bench import write_csv
from _digits import load_or_digits
from _features import add_arguments
from cleanlab.rank import get_label_quality_scores
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from learnkit.continual.label_issues import label_errors
from learnkit.uncertainty.ood import auroc

LOOKED_AT = {0.05: 0.10, 0.10: 0.15}  # share flipped -> share of the list that is looked at
PENALTIES, FOLDS = (0.001, 0.01, 0.1), 5


def flipped(targets: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(labels, which are wrong): a share of them is another class, drawn at random."""
    rng, n_classes = np.random.default_rng(seed), targets.max() + 1
    wrong = np.zeros(len(targets), bool)
    wrong[rng.choice(len(targets), round(share * len(targets)), replace=False)] = True
    labels = targets.copy()
    labels[wrong] = (labels[wrong] + rng.integers(1, n_classes, wrong.sum())) % n_classes
    return labels, wrong


def by_learnkit(features, labels: np.ndarray, classes: np.ndarray):
    """(quality of each label, expected number of wrong ones)."""
    found = label_errors(features, classes[labels].tolist(), range(len(labels)))
    ranks = np.empty(len(labels))
    ranks[found.frame["place"]] = np.arange(len(labels))
    ours = found.probs[np.arange(len(labels)), labels]
    theirs = get_label_quality_scores(labels, found.probs, method="self_confidence")
    assert np.allclose(ours, theirs)
    assert np.all(np.diff(theirs[found.frame["place"]]) >= 0)
    return ranks, found.n_wrong


def by_cross_validation(features, labels: np.ndarray, seed: int, penalties) -> np.ndarray:
    """Probabilities (N, C) of logistic regression that has not seen the image."""
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    rows, found = features.numpy().astype(np.float32), []
    for penalty in penalties:
        fit = make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=100))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # 100 iterations are enough for a ranking
            found.append(cross_val_predict(fit, rows, labels, cv=folds, method="predict_proba"))
    return min(found, key=lambda probs: log_loss(labels, probs))


def measure(split, seed: int, penalties) -> Iterator[dict[str, object]]:
    """One row per share of flipped labels and method."""
    classes, targets = np.unique(split.labels, return_inverse=True)
    for share, looked_at in LOOKED_AT.items():
        labels, wrong = flipped(targets, share, seed)

        def row(method, quality, cpu, expected=None, wrong=wrong, looked_at=looked_at, share=share):
            order = np.argsort(quality, kind="stable")
            first = order[: round(looked_at * len(order))]
            return {
                "method": method,
                "flipped": share,
                "seed": seed,
                "found": wrong[first].sum() / wrong.sum(),
                "precision": wrong[order[: wrong.sum()]].mean(),
                "auroc": auroc(-quality[~wrong], -quality[wrong]),
                "expected": expected,
                "wrong": int(wrong.sum()),
                "cpu_s": cpu,
            }

        start = time.process_time()
        quality, expected = by_learnkit(split.features, labels, classes)
        yield row("learnkit, leave-one-out", quality, time.process_time() - start, expected)
        start = time.process_time()
        probs = by_cross_validation(split.features, labels, seed, penalties)
        cpu = time.process_time() - start
        for method in ("self_confidence", "normalized_margin"):
            found = get_label_quality_scores(labels, probs, method=method)
            yield row(f"cleanlab, {method.replace('_', ' ')}", found, cpu)


def main() -> None:
    """Measure, print and save."""
    parser = ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--penalties", type=float, nargs="+", default=PENALTIES)
    options = parser.parse_args()
    name, data = load_or_digits(options)
    rows = []
    for seed in range(options.seeds):
        rows += measure(data["train"], seed, options.penalties)
    frame = pd.DataFrame(rows)
    means = frame.groupby(["flipped", "method"], sort=False).mean(numeric_only=True)
    print(name, means.drop(columns="seed").round(3).to_string(), sep="\n")
    write_csv(f"label_errors_{name}", rows, packages=("cleanlab", "scikit-learn"))


if __name__ == "__main__":
    main()
