"""Published continual classifiers over frozen features, re-implemented from their formulas.

Each takes (features (N,D) float64, labels (N,) class numbers, n_classes, tasks) and returns a
function from features to logits (M,C); the largest is the answer. `tasks` are the arrivals: index
arrays into the samples, in order; methods that do not care about arrival ignore them. Features come
as the network pooled them; each method prepares them as published. `METHODS` have the answers,
`LOGITS` the logits.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from learnkit.continual.closed_form.lda import fit_lda, fit_prototype
from learnkit.continual.closed_form.ridge import fit_ridge
from learnkit.continual.embedding import embed
from learnkit.continual.statistics import ClassStatistics

Predict = Callable[[Tensor], Tensor]
Logits = Callable[[Tensor], Tensor]
FitLogits = Callable[[Tensor, Tensor, int, Sequence[np.ndarray]], Logits]
Fit = Callable[[Tensor, Tensor, int, Sequence[np.ndarray]], Predict]


def is_root(features: Tensor) -> bool:
    """Whether the features are never negative: then peers that profit take the square root."""
    return bool((features >= 0).all())


def learnkit_method(fit: Callable) -> FitLogits:
    """One of learnkit's classifiers, its statistics grown arrival by arrival."""

    def run(features, labels, n_classes, tasks):
        names = [f"{c:05}" for c in range(n_classes)]
        stats = ClassStatistics.empty(features.shape[1], root=False).with_classes(names)
        for task in tasks:
            stats = stats.update(features[task], [names[c] for c in labels[task].tolist()])
        classifier = fit(stats.moments())
        return lambda x: classifier.logits(embed(x, root=False))

    return run


def nearest_mean(features, labels, n_classes, tasks) -> Logits:
    """Largest cosine between a feature and the class means."""
    means = torch.stack([_unit(features)[labels == c].mean(0) for c in range(n_classes)])
    return lambda x: _unit(x) @ _unit(means).T


def nearest_neighbor(features, labels, n_classes, tasks) -> Logits:
    """Largest cosine of a feature with the learned ones of each class."""

    def logits(x):
        near = _unit(x) @ _unit(features).T
        return torch.stack([near[:, labels == c].amax(1) for c in range(n_classes)], 1)

    return logits


def sklearn_lda(features, labels, n_classes, tasks) -> Logits:
    """Scikit-learn's, Ledoit-Wolf shrinkage, uniform prior; needs more samples than classes."""
    root = is_root(features)
    model = LinearDiscriminantAnalysis(
        solver="lsqr", shrinkage="auto", priors=[1 / n_classes] * n_classes
    )
    model.fit(embed(features, root=root).numpy(), labels.numpy())
    return lambda x: torch.from_numpy(model.predict_log_proba(embed(x, root=root).numpy()))


def streaming_lda(features, labels, n_classes, tasks) -> Logits:
    """Deep streaming LDA, one update per sample, in float32.

    Source: Hayes and Kanan, "Lifelong machine learning with deep streaming linear discriminant
    analysis", 2020, and the authors' code (first covariance all ones, ridge 1e-4).
    """
    width = features.shape[1]
    sigma, means, counts = torch.ones(width, width), torch.zeros(n_classes, width), [0] * n_classes
    for n, row in enumerate(np.concatenate(tasks)):
        x, c = features[row].float(), int(labels[row])
        away = x - means[c]
        sigma = (n * sigma + torch.outer(away, away) * n / (n + 1)) / (n + 1)
        means[c] += away / (counts[c] + 1)
        counts[c] += 1
    shrunk = (1 - 1e-4) * sigma + 1e-4 * torch.eye(width)
    inverse = torch.linalg.pinv(shrunk, hermitian=True)
    weight = means @ inverse
    bias = -0.5 * (weight * means).sum(1)
    return lambda x: x.float() @ weight.T + bias


def ranpac(features, labels, n_classes, tasks, *, width: int = 2000) -> Logits:
    """Ridge on random ReLU features; the penalty from a split of the last arrival.

    Source: McDonnell et al., "RanPAC: random projections and pre-trained models for continual
    learning", 2023, phase 2, and the authors' code.
    """
    generator = torch.Generator().manual_seed(0)
    projection = torch.randn(features.shape[1], width, generator=generator, dtype=torch.float64)
    hidden = (features @ projection).relu_()
    targets = torch.nn.functional.one_hot(labels, n_classes).double()
    last = torch.as_tensor(np.random.default_rng(0).permutation(tasks[-1]))
    cut = max(1, int(0.8 * len(last)))
    train, held = last[:cut], last[cut:] if cut < len(last) else last
    penalty = _best_penalty(hidden, targets, train, held)
    weight = _ridge(hidden, targets, penalty)
    return lambda x: (x @ projection).relu_() @ weight


def fecam_common(features, labels, n_classes, tasks) -> Logits:
    """Mahalanobis distance of one covariance, made a correlation, after Tukey's square root.

    Source: Goswami et al., "FeCAM: exploiting the heterogeneity of class distributions in
    exemplar-free continual learning", 2023; the covariance is the one within all classes.
    """
    tukey = (lambda x: x.sqrt()) if is_root(features) else (lambda x: x)
    z = tukey(features)
    means = torch.stack([z[labels == c].mean(0) for c in range(n_classes)])
    away = z - means[labels]
    covariance = away.T @ away / max(len(z) - n_classes, 1)
    n = len(covariance)
    diagonal = covariance.diagonal().mean()
    off = (covariance.sum() - covariance.diagonal().sum()) / (n * (n - 1))
    eye = torch.eye(n, dtype=z.dtype)
    covariance = covariance + diagonal * eye + off * (1 - eye)
    scale = covariance.diagonal().clamp_min(1e-12).sqrt()
    inverse = torch.linalg.pinv(covariance / torch.outer(scale, scale), hermitian=True)
    weight = _unit(means) @ inverse
    bias = -0.5 * (weight * _unit(means)).sum(1)
    return lambda x: _unit(tukey(x)) @ weight.T + bias


def joint_logistic(features, labels, n_classes, tasks, *, balanced: bool = False) -> Logits:
    """Logistic regression on all data at once; its penalty on a held-out fifth."""
    root = is_root(features)
    z, y = embed(features, root=root).numpy(), labels.numpy()
    weights = "balanced" if balanced else None

    def fit(rows, strength):
        model = LogisticRegression(C=strength, max_iter=300, class_weight=weights)
        return model.fit(z[rows], y[rows])

    held = np.concatenate(
        [np.flatnonzero(y == c)[::5][: (y == c).sum() - 1] for c in range(n_classes)]
    )
    train = np.setdiff1d(np.arange(len(y)), held)
    strengths = (3.0, 30.0, 300.0)
    scores = [fit(train, c).score(z[held], y[held]) if len(held) else 0 for c in strengths]
    model = fit(np.arange(len(y)), strengths[int(np.argmax(scores))])
    return lambda x: torch.from_numpy(model.predict_log_proba(embed(x, root=root).numpy()))


LOGITS: dict[str, FitLogits] = {
    "learnkit lda": learnkit_method(fit_lda),
    "learnkit ridge": learnkit_method(fit_ridge),
    "learnkit prototype": learnkit_method(fit_prototype),
    "nearest mean": nearest_mean,
    "nearest neighbour": nearest_neighbor,
    "scikit-learn LDA": sklearn_lda,
    "streaming LDA": streaming_lda,
    "RanPAC M=2000": ranpac,
    "FeCAM common": fecam_common,
    "joint logistic": joint_logistic,
    "joint logistic, balanced": lambda *args: joint_logistic(*args, balanced=True),
}


def _answers(fit: FitLogits) -> Fit:
    """The same method, its answers in place of its logits."""

    def run(*args):
        logits = fit(*args)
        return lambda x: logits(x).argmax(1)

    return run


METHODS: dict[str, Fit] = {name: _answers(fit) for name, fit in LOGITS.items()}


def _unit(x: Tensor) -> Tensor:
    return torch.nn.functional.normalize(x, dim=1)


def _ridge(hidden: Tensor, targets: Tensor, penalty: float) -> Tensor:
    """Solve the ridge regression, on the side of whichever are fewer, samples or features."""
    if len(hidden) < hidden.shape[1]:
        gram = hidden @ hidden.T
        gram.diagonal().add_(penalty)
        return hidden.T @ torch.linalg.solve(gram, targets)
    gram = hidden.T @ hidden
    gram.diagonal().add_(penalty)
    return torch.linalg.solve(gram, hidden.T @ targets)


def _best_penalty(hidden: Tensor, targets: Tensor, train: Tensor, held: Tensor) -> float:
    """Of 17 powers of ten, the one with the least squared error on what is held out."""
    if len(train) < hidden.shape[1]:
        outer, spread, axes = torch.linalg.svd(hidden[train], full_matrices=False)
        values, axes, moments = (
            spread.square(),
            axes.T,
            spread[:, None] * (outer.T @ targets[train]),
        )
    else:
        values, axes = torch.linalg.eigh(hidden[train].T @ hidden[train])
        moments = axes.T @ (hidden[train].T @ targets[train])
    turned = hidden[held] @ axes  # one decomposition in place of 17 solves
    errors = {
        10.0**power: float(
            (turned @ (moments / (values.clamp_min(0) + 10.0**power)[:, None]) - targets[held])
            .square()
            .mean()
        )
        for power in range(-8, 9)
    }
    return min(errors, key=errors.__getitem__)
