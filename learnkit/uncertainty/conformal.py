"""Sets of classes that hold the true one with a chosen probability, whatever the network.

Split conformal prediction: the scores of calibration images the network has not learned from say
how wide the sets must be. The promise is about the average over images and calibration sets.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from learnkit.errors import UncertaintyError
from learnkit.evaluation.inputs import check_labels, check_probs, check_same_length
from learnkit.uncertainty.checks import check_choice, check_rate, check_scores, check_weights
from learnkit.uncertainty.quantiles import allowed_above, first_with_little_above, sorted_together

METHODS = ("lac", "aps")


def conformal_quantile(scores: Any, alpha: float, *, weights: Any = None) -> float:
    """Score that the next one exceeds with probability at most `alpha`, or infinity.

    The `ceil((n + 1)(1 - alpha))`-th smallest of the n scores. Infinity if n is too small for
    `alpha`, below `1 / alpha - 1`: only sets of all classes keep the promise then.

    Args:
        scores: finite nonconformity scores (n,).
        alpha: in 0..1.
        weights: of the scores; the next one counts as the heaviest.

    >>> conformal_quantile(range(9), 0.1), conformal_quantile(range(8), 0.1)
    (8.0, inf)
    """
    scores, alpha = check_scores(scores), check_rate(alpha, name="alpha")
    scores, weights = sorted_together(scores, check_weights(weights, len(scores)))
    allowed = allowed_above(weights, alpha, "split", alpha)
    return math.inf if allowed is None else first_with_little_above(scores, weights, allowed)


def lac_scores(probs: Any, targets: Any) -> Tensor:
    """`1 - p(truth)`, float64 (N,) in 0..1; higher = stranger. Gives the smallest sets.

    Source: Sadinle, Lei and Wasserman, "Least ambiguous set-valued classifiers with bounded error
    levels", 2019.
    """
    return _of_targets(_lac_table, probs, targets)


def aps_scores(probs: Any, targets: Any) -> Tensor:
    """Probability of the classes at least as likely as the truth, (N,) in 0..1; higher = stranger.

    Sets of this score grow with the difficulty of the image. Not randomised: the sets are a little
    larger than they must be, and the same image always gets the same one.

    Source: Romano, Sesia and Candes, "Classification with valid and adaptive coverage", 2020.
    """
    return _of_targets(_aps_table, probs, targets)


def prediction_sets(probs: Any, quantile: float, *, method: str = "lac") -> Tensor:
    """Which classes belong to each image's set, bool (N, C): those whose score is up to `quantile`.

    The likeliest class always belongs to it: no set is empty, and the coverage only grows.

    Args:
        probs: probabilities (N, C).
        quantile: from `conformal_quantile` of scores of the same method.
        method: "lac" or "aps".

    >>> prediction_sets([[0.7, 0.2, 0.1], [0.5, 0.4, 0.1]], 0.65).tolist()
    [[True, False, False], [True, True, False]]
    """
    probs = _check_probs(probs)
    if math.isnan(quantile):
        raise UncertaintyError("`quantile` is nan; take it from `conformal_quantile`")
    inside = _table(method)(probs) <= quantile
    if len(probs):
        inside.scatter_(1, probs.argmax(1, keepdim=True), True)
    return inside


@dataclass(frozen=True)
class ConformalSets:
    """A fitted rule for prediction sets.

    Attributes:
        quantile: largest score of a class in a set; infinite if the calibration images were too
            few, which puts every class into every set.
        alpha: wanted share of images whose set misses the truth.
        method: score the rule is about, "lac" or "aps".
        n: number of calibration images.
    """

    quantile: float
    alpha: float
    method: str
    n: int

    def __call__(self, probs: Any) -> Tensor:
        """Which classes belong to each image's set, bool (N, C)."""
        return prediction_sets(probs, self.quantile, method=self.method)

    @property
    def statement(self) -> str:
        """The promise in words."""
        if math.isinf(self.quantile):
            return f"{self.n} images are too few for {1 - self.alpha:.3g}: sets hold every class"
        return (
            f"sets hold the true class of at least {1 - self.alpha:.3g} of the images like these"
            f" {self.n}, on average over such calibration sets"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, an infinite quantile as None: `json.dumps` takes it as it is."""
        return asdict(self) | {"quantile": self.quantile if self.quantile < math.inf else None}


def fit_prediction_sets(
    probs: Any, targets: Any, *, alpha: float = 0.1, method: str = "lac", weights: Any = None
) -> ConformalSets:
    """Rule whose sets miss the truth for at most a share `alpha` of images like these.

    Args:
        probs: probabilities (N, C) of images the network has not learned from.
        targets: class numbers (N,).
        alpha: in 0..1.
        method: "lac" for the smallest sets, "aps" for sets that show how hard an image is.
        weights: of the images (N,).

    Raises:
        UncertaintyError: `alpha` outside 0..1, an unknown method, or bad weights.
        EvaluationError: no probabilities, or class numbers outside 0..C-1.
    """
    scores = _of_targets(_table(method), probs, targets)
    return ConformalSets(
        conformal_quantile(scores, alpha, weights=weights), float(alpha), method, len(scores)
    )


def _table(method: str) -> Any:
    check_choice(method, METHODS, name="method")
    return {"lac": _lac_table, "aps": _aps_table}[method]


def _lac_table(probs: Tensor) -> Tensor:
    return 1 - probs


def _aps_table(probs: Tensor) -> Tensor:
    """Return each class's probability plus that of the likelier ones; equal ones count alike."""
    ordered, classes = probs.sort(dim=1, descending=True)
    sums = ordered.cumsum(1)
    # Of equal probabilities the last in order has the sum of all of them: carry it to the others.
    ends = torch.ones_like(ordered, dtype=torch.bool)
    ends[:, :-1] = ordered[:, :-1] > ordered[:, 1:]
    sums = torch.where(ends, sums, math.inf).flip(1).cummin(1).values.flip(1)
    return torch.empty_like(sums).scatter_(1, classes, sums).clamp_(max=1)


def _of_targets(table: Any, probs: Any, targets: Any) -> Tensor:
    probs = _check_probs(probs)
    targets = check_labels(targets, probs.shape[1])
    check_same_length(probs=probs, targets=targets)
    return table(probs).gather(1, torch.from_numpy(targets)[:, None])[:, 0]


def _check_probs(probs: Any) -> Tensor:
    return torch.as_tensor(check_probs(probs)).double()
